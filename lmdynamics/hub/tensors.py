"""Values of a checkpoint's tensors, from whole local files, or from headers and byte ranges over the network.

Of remote files, the header is read and a window from the middle of some matrices. Local files are read whole: every
tensor is hashed, and checked for values that are not finite.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lmdynamics.errors import UserError
from lmdynamics.hub import client
from lmdynamics.hub.checkpoints import Pin
from lmdynamics.hub.client import RemoteFile

WINDOW = 2048  # values of a tensor
MAX_MATRICES = 32  # of a remote checkpoint
FIRST_READ = 16_384  # bytes of the first request, mostly the header
MAX_GAP = 8_192  # bytes between two windows that are read with one request
TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}

Reader = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Sample:
    """Part of a tensor. `digest`: of the stored values; `full_digest`: of the whole tensor, if it was read."""

    shape: tuple[int, ...]
    values: np.ndarray  # float32, from the middle of the tensor
    digest: bytes
    full_digest: bytes | None = None
    is_finite: bool = True
    is_half: bool = False

    @property
    def is_constant(self) -> bool:
        return bool(self.values.size == 0 or (self.values == self.values[0]).all())

    @property
    def is_matrix(self) -> bool:
        """Large enough for a meaningful direction."""
        return len(self.shape) > 1 and self.values.size >= 256


@dataclass(frozen=True)
class Samples:
    """Samples of one checkpoint by name, the shapes of all its tensors, and the bytes that were downloaded."""

    tensors: dict[str, Sample]
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[], int]
    reread: Callable[[str, float], bytes]  # another window of a tensor, at a fraction of its length


def read_samples(pin: Pin) -> Samples | None:
    """Read a checkpoint; None for remote .bin files, which cannot be read in part.

    Raises UserError for a file that is damaged or holds more than tensors, or a server that does not send byte ranges.
    """
    is_local = not pin.missing(pin.weights)
    if any(not file.path.endswith(".safetensors") for file in pin.weights):
        return _read_bins([pin.folder / file.path for file in pin.weights]) if is_local else None
    downloaded = [0]
    entries: dict[str, _Entry] = {}
    for file in pin.weights:
        entries |= _header(pin, file, _reader(pin, file, is_local, downloaded))
    if is_local:
        tensors = {name: _read_tensor(entry) for name, entry in entries.items()}
    else:
        tensors = dict(_windows({name: entries[name] for name in _choose_matrices(entries)}))
    shapes = {name: entry.shape for name, entry in entries.items()}
    return Samples(tensors, shapes, lambda: downloaded[0], lambda name, share: entries[name].read_window(share))


@dataclass(frozen=True)
class _Entry:
    """A tensor's position in its file, and a reader of that file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    end: int
    path: str
    read: Reader

    @property
    def width(self) -> int:
        return np.dtype(TYPES[self.kind]).itemsize

    def window(self, share: float = 0.5) -> tuple[int, int]:
        """Start and size in bytes of a window at a fraction of the tensor's length."""
        values = (self.end - self.start) // self.width
        size = min(values, WINDOW)
        return self.start + int((values - size) * share) * self.width, size * self.width

    def read_window(self, share: float) -> bytes:
        return self.read(*self.window(share))


def _reader(pin: Pin, file: RemoteFile, is_local: bool, downloaded: list[int]) -> Reader:
    if is_local:
        return lambda start, size: _from_disk(pin.folder / file.path, start, size)
    remote = client.range_reader(pin.repository, pin.commit, file)

    def read(start: int, size: int) -> bytes:
        content = remote(start, size)
        downloaded[0] += len(content)
        return content

    return read


def _from_disk(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as content:
        content.seek(start)
        return content.read(size)


def _header(pin: Pin, file: RemoteFile, read: Reader) -> dict[str, _Entry]:
    """Names and positions of the floating-point tensors in a safetensors file."""
    size, entries = file.bytes, {}
    try:
        content = read(0, min(FIRST_READ, size))
        length = int.from_bytes(content[:8], "little")
        if not 2 <= length <= size - 8:
            raise ValueError(f"a header of {length:,} bytes")
        if length + 8 > len(content):
            content += read(len(content), length + 8 - len(content))
        table: Mapping[str, Any] = json.loads(content[8 : 8 + length])
        for name, fields in table.items():
            if name == "__metadata__" or fields["dtype"] not in TYPES:
                continue
            first, last = (8 + length + int(offset) for offset in fields["data_offsets"])
            entry = _Entry(fields["dtype"], tuple(fields["shape"]), first, last, file.path, read)
            if not 0 <= first <= last <= size or last - first != math.prod(entry.shape) * entry.width:
                raise ValueError(f"{name} outside the file")
            entries[name] = entry
    except (ValueError, KeyError, TypeError, AttributeError) as broken:
        name = f"{pin.repository} step {pin.step:,}: {file.path}"
        raise UserError(f"{name} is not a safetensors file ({broken})") from None
    return entries


def _choose_matrices(entries: Mapping[str, _Entry]) -> list[str]:
    """Matrices to read: the two largest, which are embeddings, and others evenly spaced over the model."""
    matrices = [name for name, entry in entries.items() if len(entry.shape) > 1 and entry.end > entry.start]
    matrices.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    largest = sorted(matrices, key=lambda name: entries[name].start - entries[name].end)[:2]
    layers = [name for name in matrices if name not in largest]
    count = MAX_MATRICES - len(largest)
    spaced = [layers[i * len(layers) // count] for i in range(count)] if len(layers) > count else layers
    return [*largest, *spaced]


def _windows(entries: Mapping[str, _Entry]) -> Iterator[tuple[str, Sample]]:
    """One window of each tensor; windows that are close together in a file are read with one request."""
    groups: list[list[tuple[str, int, int, str]]] = []
    for path, start, size, name in sorted((entry.path, *entry.window(), name) for name, entry in entries.items()):
        before = groups[-1][-1] if groups else None
        if before and before[0] == path and start - before[1] - before[2] <= MAX_GAP:
            groups[-1].append((path, start, size, name))
        else:
            groups.append([(path, start, size, name)])
    for group in groups:
        first, last = group[0][1], group[-1][1] + group[-1][2]
        content = entries[group[0][3]].read(first, last - first)
        for _, start, size, name in group:
            yield name, _sample(entries[name], content[start - first : start - first + size])


def _read_tensor(entry: _Entry) -> Sample:
    content = entry.read(entry.start, entry.end - entry.start)
    start, size = entry.window()
    window = content[start - entry.start : start - entry.start + size]
    finite = bool(np.isfinite(_values(entry.kind, content)).all())
    return _sample(entry, window, hashlib.sha1(content, usedforsecurity=False).digest(), finite)


def _sample(entry: _Entry, window: bytes, full_digest: bytes | None = None, finite: bool = True) -> Sample:
    values = _values(entry.kind, window)
    digest = hashlib.sha1(window, usedforsecurity=False).digest()
    finite = finite and bool(np.isfinite(values).all())
    return Sample(entry.shape, values, digest, full_digest, finite, entry.width == 2)


def _values(kind: str, content: bytes) -> np.ndarray:
    stored = np.frombuffer(content, TYPES[kind])
    if kind == "BF16":  # the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _read_bins(paths: Sequence[Path]) -> Samples:
    """Read local .bin files of PyTorch; nothing but tensors is unpickled."""
    from pickle import UnpicklingError

    from transformers.modeling_utils import load_state_dict

    tensors: dict[str, Sample] = {}
    for path in paths:
        try:
            state = load_state_dict(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError):
            raise UserError(f"{path} is damaged or holds more than tensors, so it is not opened") from None
        for name, tensor in state.items():
            if tensor.is_floating_point():
                content = tensor.detach().float().contiguous().numpy().tobytes()
                read = partial(_slice, content)
                tensors[name] = _read_tensor(_Entry("F32", tuple(tensor.shape), 0, len(content), str(path), read))
    shapes = {name: sample.shape for name, sample in tensors.items()}
    return Samples(tensors, shapes, lambda: 0, lambda name, share: b"")


def _slice(content: bytes, start: int, size: int) -> bytes:
    return content[start : start + size]
