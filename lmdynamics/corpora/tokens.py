"""Rows of token ids ready for a model, and the tokenizers that make them.

Tokenizers are learnt from text: WordPiece as in BERT, or byte-level BPE. A sentence is tokenised as running text, its
words separated by spaces. Some tokenizers return the same tokens for a list of words (WordPiece; byte-level BPE with
add_prefix_space=True); these get the words. Others (byte-level BPE as published with RoBERTa, GPT-2, Pythia and OLMo-2)
would join the words, so they get the text, and offsets assign each token to a word. Tokens can be labelled with their
word and its relation, and grouped by frequency and position.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from lmdynamics.corpora.treebanks import Treebank
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
MIN_VOCAB = {"wordpiece": 4 * len(SPECIAL), "bpe": 256 + len(SPECIAL)}


def train_tokenizer(
    texts: Iterable[str], kind: Literal["wordpiece", "bpe"], vocab_size: int, lowercase: bool, max_length: int
) -> "PreTrainedTokenizerFast":
    """Learn a vocabulary of at most `vocab_size`, special tokens included: [PAD] [UNK] [CLS] [SEP] [MASK], ids 0 to 4.

    Both kinds put [CLS] before a text and [SEP] after it, and take words already split
    (`is_split_into_words=True`). Byte-level BPE has no unknown tokens. The same texts give the same vocabulary.
    `texts` is read twice; an iterator is first read into memory.

    Raises UserError if `kind` is unknown, `vocab_size` is too small for the single characters, or there is no text.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if kind not in MIN_VOCAB:
        raise UserError(f"unknown tokenizer kind {kind!r}; known: {', '.join(MIN_VOCAB)}")
    if vocab_size < MIN_VOCAB[kind]:
        raise UserError(f"a {kind} vocabulary of {vocab_size} is too small; it needs at least {MIN_VOCAB[kind]}")
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

    # By default the trainer numbers the pieces `##a`, `##b`, ... in the order of a hash map, which differs from run to
    # run, and breaks ties by those numbers. Passing them as special tokens fixes their order; a new tokenizer with the
    # resulting vocabulary does not treat them as special.
    learner = untrained()
    alphabet = _alphabet(texts, learner, limit=(vocab_size - len(SPECIAL)) // 3)
    continuations = [f"##{c}" for c in alphabet if len(learner.pre_tokenizer.pre_tokenize_str(f"a{c}")) == 1]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *continuations],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    tokenizer = untrained(vocab=learner.get_vocab())
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    return tokenizer


def _alphabet(texts: Iterable[str], tokenizer: "Tokenizer", limit: int) -> list[str]:
    """The `limit` most frequent characters after normalising, sorted; ties: the lower code point first."""
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
    """Token ids of each sentence, and the index of each token's word in its sentence, -1 for special tokens.

    Raises UserError if a word gets no token, a token covers two words, or the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"a {type(tokenizer).__name__} does not report which word a token belongs to; "
            "save the tokenizer as a fast one (tokenizer.json)"
        )
    options = {"return_attention_mask": False, "verbose": False}
    if takes_words(tokenizer):
        encoded = tokenizer([list(words) for words in sentences], is_split_into_words=True, **options)
        word_ids = [[-1 if word is None else word for word in encoded.word_ids(i)] for i in range(len(sentences))]
    else:
        texts = [" ".join(words) for words in sentences]
        encoded = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True, **options)
        tokens = zip(sentences, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        word_ids = [_word_ids(words, spans, special, name) for words, spans, special in tokens]
    for words, ids in zip(sentences, word_ids, strict=True):
        if missing := sorted(set(range(len(words))) - set(ids)):
            raise UserError(
                f"{name}: the tokenizer gives no token for {words[missing[0]]!r} in {_quote(words)}; "
                "leave the sentence out or use the tokenizer the model was trained with"
            )
    return encoded["input_ids"], word_ids


def takes_words(tokenizer) -> bool:
    """Whether a list of words becomes the same tokens as the same words in running text."""
    words = ["the", "cat", "and", "the", "dog"]
    return tokenizer(words, is_split_into_words=True)["input_ids"] == tokenizer(" ".join(words))["input_ids"]


def _word_ids(words: Sequence[str], spans: Sequence[tuple[int, int]], special: Sequence[int], name: str) -> list[int]:
    """The index of each token's word, by its first and last characters that are not spaces.

    A space belongs to the word after it, and so does a token of spaces only.
    """
    text = " ".join(words)
    word_of_character = np.repeat(np.arange(len(words)), [len(word) + (i > 0) for i, word in enumerate(words)])
    word_ids = []
    for (start, end), added in zip(spans, special, strict=True):
        characters = [i for i in range(start, end) if not text[i].isspace()]
        first, last = (characters[0], characters[-1]) if characters else (min(start, len(text) - 1),) * 2
        if not added and word_of_character[first] != word_of_character[last]:
            raise UserError(
                f"{name}: the tokenizer makes one token of {text[start:end].strip()!r} in {_quote(words)}, which is "
                "several words; leave the sentence out"
            )
        word_ids.append(-1 if added else int(word_of_character[first]))
    return word_ids


def _quote(words: Sequence[str]) -> str:
    text = " ".join(words)
    return repr(text if len(text) <= 60 else text[:57] + "...")


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of token ids with special tokens, of equal length (packed) or not (one sentence each).

    `ids` holds all rows, concatenated: shape [tokens]; row `i` is `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> "TokenRows":
        rows = [np.asarray(row, dtype=np.int32) for row in rows]
        lengths = [len(row) for row in rows]
        ids = np.concatenate(rows) if rows else np.zeros(0, np.int32)
        return cls(ids, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    def save(self, folder: Path) -> None:
        """Write `ids.npy` and `offsets.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_array(folder / "ids.npy", [self.ids], len(self.ids))
        write_array(folder / "offsets.npy", [self.offsets], len(self.offsets))

    @classmethod
    def load(cls, folder: Path) -> "TokenRows":
        """Memory-map the files that `save` wrote."""
        return cls(np.load(folder / "ids.npy", mmap_mode="r"), np.load(folder / "offsets.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"TokenRows({len(self):,} rows, {len(self.ids):,} tokens)"

    def __getitem__(self, row: int) -> np.ndarray:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: Sequence[int]) -> "TokenRows":
        return TokenRows.from_rows([self[row] for row in rows])

    def packed(self, block_size: int) -> "TokenRows":
        """The rows without their first and last tokens, concatenated and cut into rows of `block_size` between the same
        two tokens; a last row that is not full is left out."""
        body = block_size - 2
        if body < 1 or not len(self):
            raise ValueError(f"{len(self)} rows make no blocks of {block_size}: give rows, and a block of 3 or more")
        inner = np.ones(len(self.ids), bool)
        inner[self.offsets[:-1]] = inner[self.offsets[1:] - 1] = False
        stream = self.ids[inner]
        rows = np.empty((len(stream) // body, block_size), np.int32)
        rows[:, 0], rows[:, -1] = self.ids[0], self.ids[-1]
        rows[:, 1:-1] = stream[: len(rows) * body].reshape(-1, body)
        return TokenRows(rows.ravel(), np.arange(len(rows) + 1, dtype=np.int64) * block_size)

    @cached_property
    def fingerprint(self) -> str:
        """Content hash: part of the cache key of every measurement made on these rows."""
        digest = hashlib.sha256(np.ascontiguousarray(self.offsets, np.int64).tobytes())
        digest.update(np.ascontiguousarray(self.ids, np.int32).tobytes())
        return digest.hexdigest()[:16]


def write_array(path: Path, slabs: Iterable[np.ndarray], length: int) -> None:
    """Write slabs, concatenated, as one flat .npy array of `length` items.

    With plain writes, which raise an error on a full disk; a memory map would kill the process.
    """
    slabs = iter(slabs)
    first = next(slabs)
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        for slab in chain([first], slabs):
            file.write(np.ascontiguousarray(slab).data)


def annotated_rows(treebank: Treebank, tokenizer, block_size: int = 0) -> tuple[TokenRows, pl.DataFrame]:
    """The sentences of `treebank`, one per row ([CLS] words [SEP]), or packed in rows of `block_size`.

    The frame has a row for each token of a word: row, position (Int32, in the returned rows), sentence and word (Int32,
    0-based, in the treebank and in the sentence), relation (of the word to its head), form (the word's spelling).
    All pieces of a split word have its relation; special tokens are left out. Packing, as in `TokenRows.packed`, may
    cut a sentence or a word.

    Raises UserError where `tokenize_words` does; or, when packing, if the tokenizer does not put one special token
    before and one after a sentence, or the treebank does not fill one row.
    """
    if not len(treebank):
        raise UserError(f"{treebank.name} has no sentences; give a treebank that has some")
    ids, word_ids = tokenize_words(tokenizer, [sentence.words for sentence in treebank], treebank.name)
    words = pl.DataFrame(
        [
            (i, word, relation, form)
            for i, sentence in enumerate(treebank)
            for word, (relation, form) in enumerate(zip(sentence.relations, sentence.words, strict=True))
        ],
        schema={"sentence": pl.Int32, "word": pl.Int32, "relation": pl.String, "form": pl.String},
        orient="row",
    )
    first = np.concatenate([[0], np.cumsum([len(sentence) for sentence in treebank])])
    # each token's word, numbered through the treebank; -1: none
    numbers = [[-1 if word < 0 else first[i] + word for word in word_rows] for i, word_rows in enumerate(word_ids)]
    blocks, word_rows = TokenRows.from_rows(ids), TokenRows.from_rows(numbers)
    if block_size:
        blocks, word_rows = _packed(blocks, word_rows, treebank, block_size)
    labelled = np.flatnonzero(word_rows.ids >= 0)
    row = np.repeat(np.arange(len(blocks)), blocks.lengths)[labelled]
    positions = {"row": row, "position": labelled - blocks.offsets[row]}
    labels = pl.DataFrame(positions, schema=dict.fromkeys(positions, pl.Int32))
    return blocks, labels.hstack(words[word_rows.ids[labelled]])


def _packed(blocks: TokenRows, word_ids: TokenRows, treebank: Treebank, block_size: int) -> tuple[TokenRows, TokenRows]:
    """Both packed in the same rows; the tokens that `packed` removes must be the special tokens."""
    edges = np.concatenate([word_ids.offsets[:-1], word_ids.offsets[1:] - 1])
    if (word_ids.ids[edges] >= 0).any() or (word_ids.ids < 0).sum() != len(edges):
        raise UserError(
            f"{treebank.name}: the tokenizer does not put one special token before and one after a sentence, "
            "as packing needs; leave the sentences one per row (block_size=0)"
        )
    if block_size < 3 or len(word_ids.ids) - len(edges) < block_size - 2:
        raise UserError(
            f"{treebank.name} has {len(word_ids.ids) - len(edges)} tokens, which fill no row of {block_size}; give "
            "more sentences, or a block of 3 or more"
        )
    return blocks.packed(block_size), word_ids.packed(block_size)


BINS = (100, 1_000, 10_000)


def frequency_groups(blocks: TokenRows, vocab_size: int, bins: Sequence[int] = BINS) -> pl.DataFrame:
    """Every token of the vocabulary with its count in `blocks` and its group, by relative frequency.

    Rows, by token: token (Int32), count (Int64), group (Enum, sorted from frequent to rare). A bin N separates tokens
    that occur at least once in N tokens (special ones included) from rarer ones; tokens that never occur are in the
    last group. To compare checkpoints and sizes, let `blocks` be rows that the models were trained on, or similar ones.

    Raises UserError if there are no tokens, one is not in the vocabulary, or bins do not increase or start below 2.
    """
    if not len(bins) or min(bins) < 2 or sorted(set(bins)) != list(bins):
        raise UserError(f"frequency bins must increase, from 2 upwards; {list(bins)} do not")
    if not len(blocks.ids):
        raise UserError("no rows to count tokens in; give some that the models were trained on")
    if blocks.ids.max() >= vocab_size:
        raise UserError(f"token {blocks.ids.max()} is in the rows, but the vocabulary has {vocab_size} tokens")
    counts = np.bincount(blocks.ids, minlength=vocab_size).astype(np.int64)
    names = group_names(bins)
    # in integers: a token that occurs exactly once in N is in the more frequent group
    group = (counts[:, None] * np.array(bins) < counts.sum()).sum(1)
    return pl.DataFrame(
        {
            "token": pl.Series(np.arange(vocab_size), dtype=pl.Int32),
            "count": counts,
            "group": pl.Series([names[i] for i in group], dtype=pl.Enum(names)),
        }
    )


def group_names(bins: Sequence[int] = BINS) -> list[str]:
    """Names of the groups between `bins`, from frequent to rare."""
    between = [f"1 in {a:,}–{b:,}" for a, b in pairwise(bins)]
    return [f"at least 1 in {bins[0]:,}", *between, f"rarer than 1 in {bins[-1]:,}"]


def unigram_counts(blocks: TokenRows, special: Collection[int] | None, vocab_size: int = 0) -> np.ndarray:
    """How often each token occurs among those that a model predicts, without masks: shape [vocab].

    A causal model (`special`: None) predicts every token except the first of a row, a masked one all but `special`.
    """
    ids = np.asarray(blocks.ids)
    predicted = np.ones(len(ids), bool) if special is None else ~np.isin(ids, list(special))
    if special is None:
        predicted[np.asarray(blocks.offsets[:-1])] = False
    return np.bincount(ids[predicted], minlength=vocab_size)


def position_groups(blocks: TokenRows) -> pl.DataFrame:
    """Every token of some rows with the group of its position: 0, 1, 2–3, 4–7, …

    Rows: row, position (Int32), group (Enum, from the first position to the last). Later tokens have more context.
    """
    if not len(blocks.ids):
        raise UserError("no rows with positions to group; give some text")
    lengths = blocks.lengths
    position = np.arange(len(blocks.ids)) - np.repeat(np.asarray(blocks.offsets[:-1]), lengths)
    octave = np.frexp(position)[1]  # 0, 1, 2, 2, 3, 3, 3, 3, …
    names = ["0", "1", *(f"{2**k}–{2 ** (k + 1) - 1}" for k in range(1, max(2, int(octave.max()))))]
    return pl.DataFrame(
        {
            "row": pl.Series(np.repeat(np.arange(len(blocks)), lengths), dtype=pl.Int32),
            "position": pl.Series(position, dtype=pl.Int32),
            "group": pl.Series([names[i] for i in octave], dtype=pl.Enum(names)),
        }
    )
