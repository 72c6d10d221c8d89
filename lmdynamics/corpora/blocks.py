"""Token sequences ready for a model: one ragged array, in memory or memory-mapped."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows of token ids, each with its special tokens, equally long (packed) or not (sentence by sentence).

    `ids` holds all rows end to end, shape [tokens]; row `i` is `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: np.ndarray
    offsets: np.ndarray = field(repr=False)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[int]]) -> "Blocks":
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
    def load(cls, folder: Path) -> "Blocks":
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

    def take(self, rows: Sequence[int]) -> "Blocks":
        return Blocks.from_rows([self[row] for row in rows])

    def packed(self, block_size: int) -> "Blocks":
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
        return Blocks(rows.ravel(), np.arange(len(rows) + 1, dtype=np.int64) * block_size)

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
