"""Plain text or Markdown, to a tokenizer, to packed blocks of token ids.

Passages (paragraphs, see `passages`) are tokenised one by one and laid end to end.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lmdynamics.corpora.blocks import Blocks, write_array
from lmdynamics.corpora.fetch import sha256_of
from lmdynamics.corpora.passages import Passages, read_texts, text_files
from lmdynamics.corpora.stored import COMPLETE, stored
from lmdynamics.corpora.vocabulary import train_tokenizer
from lmdynamics.corpora.words import special_around
from lmdynamics.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["build_text_corpus", "pack", "read_texts", "train_tokenizer"]

BATCH = 1_000  # passages tokenised at a time
ROWS = 10_000  # rows copied at a time
CHUNK = 16  # held-out rows lie in runs of this many: whole passages, not single lines out of a training passage
FORMAT = 1  # raise when what is written would change


def pack(texts: Iterable[str], tokenizer: "PreTrainedTokenizerFast", block_size: int) -> Blocks:
    """Texts end to end, cut into rows of exactly `block_size`, with what the tokenizer puts around a text around each.

    So a row of BERT's has [CLS] before and [SEP] after block_size - 2 tokens, one of GPT-2's nothing but tokens. What
    is left over at the end and does not fill a row is dropped.

    Raises
    ------
    ValueError
        If `block_size` leaves no room for a token.
    """
    if block_size < 3:
        raise ValueError(f"a block of {block_size} has no room between [CLS] and [SEP]: block_size must be at least 3")
    stream = np.concatenate([np.zeros(0, np.int32), *_token_ids(texts, tokenizer)])
    count = len(stream) // (block_size - sum(map(len, special_around(tokenizer))))
    slabs = [np.zeros((0, block_size), np.int32), *_rows(stream, np.arange(count), block_size, tokenizer)]
    return Blocks(np.concatenate(slabs).ravel(), np.arange(count + 1) * block_size)


def build_text_corpus(
    path: str | Path,
    folder: str | Path,
    *,
    kind: Literal["wordpiece", "bpe"] = "wordpiece",
    vocab_size: int = 4096,
    lowercase: bool = True,
    block_size: int = 64,
    held_out: float = 0.01,
) -> tuple["PreTrainedTokenizerFast", Blocks, Blocks]:
    """Tokenizer, training rows and held-out rows of the text at `path`, memory-mapped.

    They are built once, in a folder below `folder` named by a hash of the texts and the options, and only opened
    after that. It appears there whole or not at all; of two processes that want it at once, one waits. Token ids
    go to disk as they are made, so the text may be larger than memory.

    `held_out` is the share of rows set aside (at least one), in short runs spread evenly over the text.

    Raises
    ------
    UserError
        If the text cannot be read (see `read_texts`), gives fewer than two rows, an option makes no sense, or the
        disk is full.
    """
    if block_size < 3 or not 0 < held_out <= 0.5:
        raise UserError(
            f"block_size {block_size} and held_out {held_out} make no blocks; block_size must be at least 3 "
            "and held_out above 0 and at most 0.5"
        )
    root, files = text_files(path)
    vocabulary = {"kind": kind, "vocab_size": vocab_size, "lowercase": lowercase}
    options = {**vocabulary, "block_size": block_size, "held_out": held_out}
    contents = [[file.relative_to(root).as_posix(), sha256_of(file)] for file in files]
    key = hashlib.sha256(json.dumps([FORMAT, options, contents]).encode()).hexdigest()[:16]
    place = Path(folder) / key
    return stored(place, _open, partial(_build, Passages(files), {**options, "texts": contents}))


def _build(passages: Passages, description: dict, building: Path) -> None:
    """Write everything into a folder."""
    block_size = description["block_size"]
    options = {name: description[name] for name in ("kind", "vocab_size", "lowercase")}
    tokenizer = train_tokenizer(passages, **options, max_length=block_size)
    tokenizer.save_pretrained(building / "tokenizer")
    with (building / "stream").open("wb") as stream:
        for ids in _token_ids(passages, tokenizer):
            stream.write(ids.data)
        tokens = stream.tell() // np.dtype(np.int32).itemsize
    count = tokens // (block_size - 2)
    if count < 2:
        raise UserError(
            f"the text has only {tokens} tokens; with blocks of {block_size}, training and held-out rows "
            f"need at least {2 * (block_size - 2)}"
        )
    stream = np.memmap(building / "stream", np.int32, "r")
    apart = _held_out_rows(count, description["held_out"])
    for name, rows in (("train", np.flatnonzero(~apart)), ("held_out", np.flatnonzero(apart))):
        (building / name).mkdir()
        write_array(building / name / "ids.npy", _rows(stream, rows, block_size, tokenizer), len(rows) * block_size)
        write_array(building / name / "offsets.npy", [np.arange(len(rows) + 1) * block_size], len(rows) + 1)
    del stream
    (building / "stream").unlink()
    text = json.dumps({**description, "tokens": tokens, "vocabulary": len(tokenizer)}, indent=1)
    (building / COMPLETE).write_text(text + "\n", encoding="utf-8")


def _open(place: Path) -> "tuple[PreTrainedTokenizerFast, Blocks, Blocks]":
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(place / "tokenizer")
    return tokenizer, Blocks.load(place / "train"), Blocks.load(place / "held_out")


def _held_out_rows(count: int, share: float) -> np.ndarray:
    """Which of `count` rows are held out: runs of CHUNK in the middle of equal stretches, no randomness."""
    wanted = min(count - 1, max(1, round(count * share)))
    runs = -(-wanted // CHUNK)
    apart = np.zeros(count, bool)
    for run in range(runs):
        length = wanted * (run + 1) // runs - wanted * run // runs
        middle = (2 * run + 1) * count // (2 * runs)
        apart[middle - length // 2 : middle - length // 2 + length] = True
    return apart


def _rows(
    stream: np.ndarray, chosen: np.ndarray, block_size: int, tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[np.ndarray]:
    """The chosen rows of the stream, special tokens around them, as slabs of shape [at most ROWS, block_size]."""
    before, after = (np.array(ids, np.int32) for ids in special_around(tokenizer))
    body = block_size - len(before) - len(after)
    whole = stream[: len(stream) // body * body].reshape(-1, body)
    for start in range(0, len(chosen), ROWS):
        inside = whole[chosen[start : start + ROWS]]
        yield np.hstack([np.tile(before, (len(inside), 1)), inside, np.tile(after, (len(inside), 1))])


def _token_ids(texts: Iterable[str], tokenizer: "PreTrainedTokenizerFast") -> Iterator[np.ndarray]:
    """Token ids of the texts in order, without special tokens, a batch of texts at a time."""
    texts = iter(texts)
    while batch := list(islice(texts, BATCH)):
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        yield np.fromiter(chain.from_iterable(one.ids for one in encoded), np.int32)
