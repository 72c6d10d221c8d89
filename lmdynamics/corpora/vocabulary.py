"""Learning a tokenizer's vocabulary from text: WordPiece as BERT has it, or byte-level BPE."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

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

    Raises
    ------
    UserError
        If `kind` is unknown, `vocab_size` is too small for the single characters, or there is no text.
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
