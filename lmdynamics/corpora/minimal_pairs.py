"""Minimal pairs: two sentences that differ in one grammatical point, of which one is right.

BLiMP (Warstadt et al. 2020): 67 paradigms of 1,000 pairs, ordinary spelling. Zorro (Huebner et al. 2021): 23 paradigms
of 2,000 pairs over a child's vocabulary, words and punctuation separated by spaces.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from lmdynamics.corpora.fetch import locate
from lmdynamics.errors import UserError, did_you_mean

SCHEMA = {"paradigm": pl.String, "pair": pl.Int64, "good": pl.String, "bad": pl.String}
NAMES = ("blimp", "zorro")


@dataclass(frozen=True, eq=False)
class MinimalPairs:
    """One row per pair: `paradigm`, `pair` (unique), `good`, `bad`, spelt as in the source.

    BLiMP has a few pairs whose sentences are the same (7 of 67,000): no model can be right on those.
    `split_into_words`: the sentences are words joined by single spaces, to be tokenised word by word, as the trees
    of a treebank are; otherwise they are ordinary text.
    """

    name: str
    frame: pl.DataFrame
    split_into_words: bool

    @cached_property
    def fingerprint(self) -> str:
        """Content hash (16 hex digits): part of the cache key of every measurement made on these pairs."""
        digest = hashlib.sha256(json.dumps([self.split_into_words, *self.frame.columns]).encode())
        for row in self.frame.iter_rows():
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()[:16]

    @property
    def paradigms(self) -> list[str]:
        return self.frame["paradigm"].unique(maintain_order=True).to_list()

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        return f"MinimalPairs({self.name!r}, {len(self):,} pairs in {len(self.paradigms)} paradigms)"

    def sample(self, n_per_paradigm: int, seed: int = 0) -> "MinimalPairs":
        """At most `n_per_paradigm` pairs of each paradigm, drawn without replacement; `pair` is unchanged.

        Raises ValueError if `n_per_paradigm` is less than 1.
        """
        if n_per_paradigm < 1:
            raise ValueError(f"cannot sample {n_per_paradigm} pairs of each paradigm: ask for at least 1")
        draw = pl.Series("draw", np.random.default_rng(seed).random(len(self)))
        rank = pl.col("draw").rank("ordinal").over("paradigm")
        frame = self.frame.with_columns(draw).filter(rank <= n_per_paradigm).drop("draw")
        return replace(self, frame=frame)


def read_blimp(path: str | Path) -> MinimalPairs:
    """BLiMP from its zip, a folder of its `*.jsonl`, or a folder that holds the zip. Nothing is unpacked to disk.

    Raises UserError if there is nothing to read, the zip is damaged, or a line is not JSON with `UID`, `sentence_good`
    and `sentence_bad`.
    """
    path = Path(path)
    pairs = []
    for name, lines in _jsonl_files(path):
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                pair = (row["UID"], row["sentence_good"], row["sentence_bad"])
            except (ValueError, KeyError, TypeError):
                pair = ()
            if not pair or not all(isinstance(text, str) for text in pair):
                raise UserError(
                    f"{name}, line {number} is not a BLiMP pair: expected a JSON object with UID, sentence_good "
                    "and sentence_bad"
                )
            pairs.append(pair)
    return _pairs("blimp", path, pairs, split_into_words=False)


def read_zorro(folder: str | Path) -> MinimalPairs:
    """Zorro from the folder of its `*.txt` files, or a parent of it; the file's name is the paradigm.

    Odd lines are the wrong sentences, even lines the right ones.

    Raises UserError if there are no such files, or one has an odd number of lines or an empty line.
    """
    folder = Path(folder)
    inner = folder / "sentences" / "babyberta"
    files = sorted((inner if inner.is_dir() else folder).glob("*.txt"))
    if not files:
        raise UserError(
            f"{folder} holds no *.txt files of Zorro; give the folder `sentences/babyberta` or one above it"
        )
    pairs = []
    for file in files:
        lines = _lines(file.read_bytes(), str(file))
        if len(lines) % 2 or not all(lines):
            fault = (
                f"line {lines.index('') + 1} is empty" if "" in lines else f"the number of lines, {len(lines)}, is odd"
            )
            raise UserError(f"{file}: {fault}; in Zorro each wrong sentence is followed by its right one")
        pairs += [(file.stem, good, bad) for bad, good in zip(lines[0::2], lines[1::2], strict=True)]
    return _pairs("zorro", folder, pairs, split_into_words=True)


def open_pairs(name: str) -> MinimalPairs:
    """Minimal pairs by name (`blimp`, `zorro`) or by path (a zip or folder with the layout of one of them).

    Raises UserError if it is neither a known name nor a path, or is not on this machine, or does not parse.
    """
    if name in NAMES:
        return {"blimp": read_blimp, "zorro": read_zorro}[name](locate(name))
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"no minimal pairs {name!r}: neither a known name nor a path{did_you_mean(name, NAMES)}")
    is_blimp = path.is_file() or any(path.rglob("*.jsonl")) or any(path.glob("*.zip"))
    return replace(read_blimp(path) if is_blimp else read_zorro(path), name=path.stem)


def _pairs(name: str, path: Path, pairs: Iterable[tuple[str, str, str]], split_into_words: bool) -> MinimalPairs:
    rows = [(paradigm, i, good, bad) for i, (paradigm, good, bad) in enumerate(pairs)]
    if not rows:
        raise UserError(f"{path} holds no pairs; the files in it are empty")
    return MinimalPairs(name, pl.DataFrame(rows, schema=SCHEMA, orient="row"), split_into_words)


def _jsonl_files(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, lines) of each `*.jsonl`, in order of name."""
    if path.is_dir():
        if files := sorted(path.rglob("*.jsonl")):
            for file in files:
                yield str(file), _lines(file.read_bytes(), str(file))
            return
        zips = sorted(path.glob("*.zip"))
        if len(zips) != 1:
            raise UserError(
                f"{path} holds no *.jsonl files and {len(zips)} zips; give BLiMP's zip or its unpacked folder"
            )
        path = zips[0]
    if not path.is_file():
        raise UserError(f"{path} does not exist; give BLiMP's zip or its unpacked folder")
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(n for n in archive.namelist() if n.endswith(".jsonl") and not n.startswith("__MACOSX/"))
            if not names:
                raise UserError(f"{path} holds no *.jsonl files; it is not BLiMP's zip")
            for name in names:
                yield f"{path}/{name}", _lines(archive.read(name), f"{path}/{name}")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise UserError(f"{path} is not a complete zip file ({error}); fetch it again") from None


def _lines(content: bytes, name: str) -> list[str]:
    """Lines without their line ends and surrounding spaces; a final line end adds none."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 (byte {error.start}); convert the file") from None
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
