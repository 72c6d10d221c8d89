"""Rows of token ids ready for a model, and the tokenizers that make them.

Tokenizers are learnt from text (WordPiece as BERT has it, or byte-level BPE), and sentences are given to them word by
word. A sentence is read as running text: its words with a space between them. A tokenizer that cuts words given one by
one just so (WordPiece; byte-level BPE with add_prefix_space=True) gets the words. Any other (byte-level BPE as RoBERTa,
GPT-2, Pythia and OLMo-2 are published) would glue them together, so it gets the text, and a token belongs to the word
in which it lies. Each token has its word and relation, its frequency and its place.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Rows of token ids, each with its special tokens, equally long (packed) or not (sentence by sentence).

    `ids` holds all rows end to end, shape [tokens]; row `i` is `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: np.ndarray
    offsets: np.ndarray = field(repr=False)

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
        """Memory-map what `save` wrote: nothing is read until a row is asked for."""
        return cls(np.load(folder / "ids.npy", mmap_mode="r"), np.load(folder / "offsets.npy", mmap_mode="r"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

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
        """What stands between the first and the last token of each row, end to end, in rows of `block_size` with these
        two around it; what does not fill a row is left out."""
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
    """Write slabs end to end as one flat .npy array of `length` items.

    By plain writes: on a full disk these raise an error, where a memory map kills the process.
    """
    slabs = iter(slabs)
    first = next(slabs)
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(file, header)
        for slab in chain([first], slabs):
            file.write(np.ascontiguousarray(slab).data)


def annotated_rows(treebank: Treebank, tokenizer, block_size: int = 0) -> tuple[TokenRows, pl.DataFrame]:
    """The sentences of `treebank`, one a row ([CLS] words [SEP]), or end to end in rows of `block_size`.

    The frame has a row for each token that belongs to a word: row, position (Int32, its place in the blocks), sentence
    and word (Int32, 0-based, of the treebank and the sentence), relation (of the word to its head), form (the word as
    it is written). All pieces of a split word carry its relation; special tokens are left out. Packed, rows are cut
    wherever they are full, as in `TokenRows.packed`, also within a sentence or a word.

    Raises UserError where `tokenize_words` does; or if the tokenizer, to be packed, does not put one special token
    before and one after a sentence, or the treebank does not fill one row.
    """
    if not len(treebank):
        raise UserError(f"{treebank.name} has no sentences; give a treebank that has some")
    ids, of_words = tokenize_words(tokenizer, [sentence.words for sentence in treebank], treebank.name)
    words = pl.DataFrame(
        [
            (number, place, relation, form)
            for number, sentence in enumerate(treebank)
            for place, (relation, form) in enumerate(zip(sentence.relations, sentence.words, strict=True))
        ],
        schema={"sentence": pl.Int32, "word": pl.Int32, "relation": pl.String, "form": pl.String},
        orient="row",
    )
    first = np.concatenate([[0], np.cumsum([len(sentence) for sentence in treebank])])
    # which of all words, counted through the treebank, each token belongs to; -1: none
    numbers = [[-1 if word < 0 else first[i] + word for word in of_word] for i, of_word in enumerate(of_words)]
    blocks, of_word = TokenRows.from_rows(ids), TokenRows.from_rows(numbers)
    if block_size:
        blocks, of_word = _packed(blocks, of_word, treebank, block_size)
    at = np.flatnonzero(of_word.ids >= 0)
    row = np.repeat(np.arange(len(blocks)), blocks.lengths)[at]
    places = {"row": row, "position": at - blocks.offsets[row]}
    named = pl.DataFrame(places, schema=dict.fromkeys(places, pl.Int32))
    return blocks, named.hstack(words[of_word.ids[at]])


def _packed(blocks: TokenRows, of_word: TokenRows, treebank: Treebank, block_size: int) -> tuple[TokenRows, TokenRows]:
    """Both end to end in the same rows: what `packed` cuts off around a sentence must be its special tokens."""
    edges = np.concatenate([of_word.offsets[:-1], of_word.offsets[1:] - 1])
    if (of_word.ids[edges] >= 0).any() or (of_word.ids < 0).sum() != len(edges):
        raise UserError(
            f"{treebank.name}: the tokenizer does not put one special token before and one after a sentence, "
            "as packing needs; leave the sentences one a row (block_size=0)"
        )
    if block_size < 3 or len(of_word.ids) - len(edges) < block_size - 2:
        raise UserError(
            f"{treebank.name} has {len(of_word.ids) - len(edges)} tokens, which fill no row of {block_size}; give more "
            "sentences, or a block of 3 or more"
        )
    return blocks.packed(block_size), of_word.packed(block_size)


BINS = (100, 1_000, 10_000)


def frequency_groups(blocks: TokenRows, vocab_size: int, bins: Sequence[int] = BINS) -> pl.DataFrame:
    """Every token of the vocabulary with its count in `blocks` and its group, by relative frequency.

    Rows, by token: token (Int32), count (Int64), group (Enum, ordered from frequent to rare, so that sorting by it
    is sorting by frequency). A bin N divides what comes at least once in N tokens (of all, special ones included) from
    what is rarer; tokens that never occur are with the rarest. For comparison across checkpoints and sizes, `blocks`
    are rows the models were trained on, or others like them.

    Raises UserError if there are no tokens, one is not in the vocabulary, or bins do not rise from 2 upwards.
    """
    if not len(bins) or min(bins) < 2 or sorted(set(bins)) != list(bins):
        raise UserError(f"frequency bins must rise, from 2 upwards; {list(bins)} do not")
    if not len(blocks.ids):
        raise UserError("no rows to count tokens in; give some that the models were trained on")
    if blocks.ids.max() >= vocab_size:
        raise UserError(f"token {blocks.ids.max()} is in the rows, but the vocabulary has {vocab_size} tokens")
    counts = np.bincount(blocks.ids, minlength=vocab_size).astype(np.int64)
    names = group_names(bins)
    # counts are whole, so that what comes exactly once in N is on the frequent side, without rounding
    place = (counts[:, None] * np.array(bins) < counts.sum()).sum(1)
    return pl.DataFrame(
        {
            "token": pl.Series(np.arange(vocab_size), dtype=pl.Int32),
            "count": counts,
            "group": pl.Series([names[i] for i in place], dtype=pl.Enum(names)),
        }
    )


def group_names(bins: Sequence[int] = BINS) -> list[str]:
    """What the groups between `bins` are called, from frequent to rare."""
    between = [f"1 in {a:,}–{b:,}" for a, b in pairwise(bins)]
    return [f"at least 1 in {bins[0]:,}", *between, f"rarer than 1 in {bins[-1]:,}"]


def position_groups(blocks: TokenRows) -> pl.DataFrame:
    """Every token of some rows with the group of its position: 0, 1, 2–3, 4–7, … tokens stand before it.

    Rows: row, position (Int32), group (Enum, from the first position to the last). What stands far in can be told from
    more context.
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
