"""Tokenizers: learnt from text (WordPiece as BERT has it, or byte-level BPE), and sentences given to them word by word.

A sentence is read as running text: its words with a space between them. A tokenizer that cuts words given one by one
just so (WordPiece; byte-level BPE with add_prefix_space=True) gets the words. Any other (byte-level BPE as RoBERTa,
GPT-2, Pythia and OLMo-2 are published) would glue them together, so it gets the text, and a token belongs to the word
in which it lies.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from lmdynamics.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
SMALLEST = {"wordpiece": 4 * len(SPECIAL), "bpe": 256 + len(SPECIAL)}


def train_tokenizer(
    texts: Iterable[str], kind: Literal["wordpiece", "bpe"], vocab_size: int, lowercase: bool, max_length: int
) -> "PreTrainedTokenizerFast":
    """Learn a vocabulary of at most `vocab_size`, special tokens included: [PAD] [UNK] [CLS] [SEP] [MASK], ids 0 to 4.

    Both kinds put [CLS] before a text and [SEP] after it, and take words already split
    (`is_split_into_words=True`). To byte-level BPE nothing is unknown. The same texts give the same vocabulary.
    `texts` is read twice; an iterator, which can be read once only, is kept in memory.

    Raises UserError if `kind` is unknown, `vocab_size` is too small for the single characters, or there is no text.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if kind not in SMALLEST:
        raise UserError(f"unknown tokenizer kind {kind!r}; known: {', '.join(SMALLEST)}")
    if vocab_size < SMALLEST[kind]:
        raise UserError(f"a {kind} vocabulary of {vocab_size} is too small; it needs at least {SMALLEST[kind]}")
    texts = list(texts) if isinstance(texts, Iterator) else texts
    if not any(text.strip() for text in texts):
        raise UserError("there is no text to learn a vocabulary from; give a text with words in it")
    tokenizer = (_wordpiece if kind == "wordpiece" else _byte_level_bpe)(texts, vocab_size, lowercase)
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    template = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    trim = [processors.ByteLevel(trim_offsets=True)] if kind == "bpe" else []
    tokenizer.post_processor = processors.Sequence([*trim, template])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **SPECIAL)


def _byte_level_bpe(texts: Iterable[str], vocab_size: int, lowercase: bool) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def untrained(**vocabulary: dict[str, int]) -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(**vocabulary, unk_token=SPECIAL["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    # Left to itself the trainer numbers the pieces `##a`, `##b`, ... in the order of a hash map that differs from run
    # to run, and breaks ties by those numbers. Handing them over as special tokens fixes their order; a tokenizer made
    # from the vocabulary that comes out no longer treats them as special.
    learner = untrained()
    alphabet = _alphabet(texts, learner, limit=(vocab_size - len(SPECIAL)) // 3)
    inside = [f"##{c}" for c in alphabet if len(learner.pre_tokenizer.pre_tokenize_str(f"a{c}")) == 1]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *inside],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = untrained(vocab=learner.get_vocab())
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    return tokenizer


def _alphabet(texts: Iterable[str], tokenizer: "Tokenizer", limit: int) -> list[str]:
    """The `limit` most frequent characters after normalising, sorted; ties go to the lower code point."""
    raw = Counter()
    for text in texts:
        raw.update(text)
    counts = Counter()
    for character, count in raw.items():
        for normal in tokenizer.normalizer.normalize_str(character):
            if not normal.isspace():
                counts[normal] += count
    return sorted(sorted(counts, key=lambda c: (-counts[c], c))[:limit])


def tokenize_words(tokenizer, sentences: Sequence[Sequence[str]], name: str) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each sentence, and the number of the word that each token belongs to, -1 for special tokens.

    Raises UserError if the tokenizer makes nothing of a word, makes one token of two words, or does not say where its
    tokens lie.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"a {type(tokenizer).__name__} does not say which word a token belongs to; "
            "save the tokenizer as a fast one (tokenizer.json)"
        )
    options = {"return_attention_mask": False, "verbose": False}
    if takes_words(tokenizer):
        encoded = tokenizer([list(words) for words in sentences], is_split_into_words=True, **options)
        of_words = [[-1 if word is None else word for word in encoded.word_ids(i)] for i in range(len(sentences))]
    else:
        texts = [" ".join(words) for words in sentences]
        encoded = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True, **options)
        each = zip(sentences, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        of_words = [_words_at(words, spans, special, name) for words, spans, special in each]
    for words, of_word in zip(sentences, of_words, strict=True):
        if lost := sorted(set(range(len(words))) - set(of_word)):
            raise UserError(
                f"{name}: the tokenizer makes nothing of {words[lost[0]]!r} in {_quote(words)}; "
                "leave the sentence out or use the tokenizer the model was trained with"
            )
    return encoded["input_ids"], of_words


def takes_words(tokenizer) -> bool:
    """Whether words given one by one become the same tokens as the same words in running text."""
    words = ["the", "cat", "and", "the", "dog"]
    return tokenizer(words, is_split_into_words=True)["input_ids"] == tokenizer(" ".join(words))["input_ids"]


def special_around(tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text and after it, perhaps none."""
    encoded = tokenizer("the cat", return_special_tokens_mask=True)
    ids, own = encoded["input_ids"], np.flatnonzero(np.array(encoded["special_tokens_mask"]) == 0)
    return ids[: own[0]], ids[own[-1] + 1 :]


def _words_at(words: Sequence[str], spans: Sequence[tuple[int, int]], special: Sequence[int], name: str) -> list[int]:
    """The word in which each token lies, from its first to its last character that is no space.

    A space stands in front of a word and belongs to it; so does a token of nothing else.
    """
    text = " ".join(words)
    at = np.repeat(np.arange(len(words)), [len(word) + (i > 0) for i, word in enumerate(words)])
    found = []
    for (start, end), added in zip(spans, special, strict=True):
        inside = [place for place in range(start, end) if not text[place].isspace()]
        first, last = (inside[0], inside[-1]) if inside else (min(start, len(text) - 1),) * 2
        if not added and at[first] != at[last]:
            raise UserError(
                f"{name}: the tokenizer makes one token of {text[start:end].strip()!r} in {_quote(words)}, which are "
                "several words; leave the sentence out"
            )
        found.append(-1 if added else int(at[first]))
    return found


def _quote(words: Sequence[str]) -> str:
    text = " ".join(words)
    return repr(text if len(text) <= 60 else text[:57] + "...")
