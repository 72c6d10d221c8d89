"""From plain text or Markdown to a tokenizer and packed blocks of token ids.

Files are read line by line, as paragraphs of one line each. Paragraphs are tokenised one by one and concatenated.
A corpus is built once, in a folder named by a hash of its texts and options.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from lmdynamics.corpora.tokens import TokenRows, train_tokenizer, write_array
from lmdynamics.errors import UserError
from lmdynamics.files import atomic_folder, clear, locked, saving, sha256
from lmdynamics.paths import writable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUFFIXES = (".txt", ".md")
NOT_TEXT = re.compile(r"(source|readme|licen[cs]e|copying)\b", re.IGNORECASE)
HEADER_LINES = 20  # a rule this near the top of a Markdown file ends its header (title, author, year)
HEADER_RULE = re.compile(r"-{7,}\s*")
MARKUP = str.maketrans("", "", "_*#")
MAX_CHARACTERS = 10_000  # a longer paragraph is cut at a line end, to save memory


def text_files(path: str | Path) -> tuple[Path, tuple[Path, ...]]:
    """The folder that names are relative to, and a file, or every `.txt` and `.md` below a folder in order of name.

    In a folder, files about the texts (SOURCE, README, LICENSE, COPYING) and hidden files are skipped.

    Raises UserError if there are none.
    """
    path = Path(path)
    if path.is_file():
        return path.parent, (path,)
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give a text file or a folder of .txt and .md files")
    files = sorted(
        (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and _is_text(file, path)),
        key=lambda file: file.relative_to(path).as_posix(),
    )
    if not files:
        raise UserError(f"{path} holds no .txt or .md files; give a text file or a folder of them")
    return path, tuple(files)


@dataclass(frozen=True)
class Paragraphs:
    """The paragraphs of some files, in order, read again on each iteration; words are separated by single spaces.

    Markdown loses its header (up to a line of dashes near the top) and the characters `_ * #`. Iterating raises a
    UserError for a file that is not UTF-8 or has no text.
    """

    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(map(_paragraphs, self.files))


def _is_text(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and not NOT_TEXT.match(file.name) and file.is_file()


def _paragraphs(file: Path) -> Iterator[str]:
    empty = True
    words, characters = [], 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in chain(_without_markup(lines) if file.suffix.lower() == ".md" else lines, [""]):
                words += (in_line := line.split())
                characters += len(line)
                if words and (not in_line or characters > MAX_CHARACTERS):
                    yield " ".join(words)
                    words, characters, empty = [], 0, False
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error.reason}); convert it, or remove it from the folder") from None
    if empty:
        raise UserError(f"{file} holds no text; replace it, or remove it from the folder")


def _without_markup(lines: Iterable[str]) -> Iterator[str]:
    """Lines of a Markdown file below its header, if it has one."""
    lines = iter(lines)
    top = list(islice(lines, HEADER_LINES))
    rules = [i for i, line in enumerate(top) if HEADER_RULE.fullmatch(line)]
    for line in chain(top[rules[0] + 1 :] if rules else top, lines):
        yield line.translate(MARKUP)


T = TypeVar("T")
COMPLETE = "corpus.json"  # the file that `build` writes last, with a description of the corpus


def load_or_build(folder: Path, load: Callable[[Path], T], build: Callable[[Path], None]) -> T:
    """`load(folder)`; if it is missing or damaged, `build` first fills a temporary folder, which replaces it.

    Of two processes that need it at the same time, one waits. If the folder cannot be written, it is built for this
    process only, with a message.

    Raises UserError if the disk is full.
    """
    if (corpus := _load(folder, load)) is not None:
        return corpus
    with saving(str(folder)):
        folder = writable(folder.parent) / folder.name
        with locked(folder.with_suffix(".lock")):
            if (corpus := _load(folder, load)) is None:
                clear(folder.parent, folder.name)
                with atomic_folder(folder) as temporary:
                    build(temporary)
                corpus = load(folder)
    return corpus


def _load(folder: Path, load: Callable[[Path], T]) -> T | None:
    try:
        return load(folder) if (folder / COMPLETE).is_file() else None
    except (OSError, ValueError):
        return None


BATCH = 1_000  # paragraphs tokenised at a time
ROWS = 10_000  # rows copied at a time
CHUNK = 16  # held-out rows come in runs of this many: paragraphs, not single lines of a training paragraph
FORMAT = 1  # raise when the files written would change


def build_text_corpus(
    paths: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    kind: Literal["wordpiece", "bpe"] = "wordpiece",
    vocab_size: int = 4096,
    lowercase: bool = True,
    block_size: int = 64,
    held_out: float = 0.01,
) -> tuple["PreTrainedTokenizerFast", TokenRows, TokenRows]:
    """Tokenizer, training rows and held-out rows of the text at a path, or at several in this order, memory-mapped.

    They are built once, in a folder below `folder` named by a hash of the texts and the options; later calls load
    them. Of two processes that need them at the same time, one waits. Token ids are written to disk batch by batch, so
    the text may be larger than memory.

    `held_out` is the share of held-out rows (at least one), in short runs spread evenly over the text.

    Raises UserError if the text cannot be read (see `text_files`, `Paragraphs`) or has fewer than two rows, an option
    is invalid, or the disk is full.
    """
    if block_size < 3 or not 0 < held_out <= 0.5:
        raise UserError(
            f"block_size {block_size} and held_out {held_out} are invalid; block_size must be at least 3 "
            "and held_out above 0 and at most 0.5"
        )
    texts = [text_files(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    vocabulary = {"kind": kind, "vocab_size": vocab_size, "lowercase": lowercase}
    options = {**vocabulary, "block_size": block_size, "held_out": held_out}
    contents = [[file.relative_to(root).as_posix(), sha256(file)] for root, files in texts for file in files]
    paragraphs = Paragraphs(tuple(file for _, files in texts for file in files))
    key = hashlib.sha256(json.dumps([FORMAT, options, contents]).encode()).hexdigest()[:16]
    return load_or_build(Path(folder) / key, _open, partial(_build, paragraphs, {**options, "texts": contents}))


def _build(paragraphs: Paragraphs, description: dict, folder: Path) -> None:
    """Write tokenizer, rows and description into a folder."""
    block_size = description["block_size"]
    options = {name: description[name] for name in ("kind", "vocab_size", "lowercase")}
    tokenizer = train_tokenizer(paragraphs, **options, max_length=block_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    with (folder / "stream").open("wb") as stream:
        for ids in _token_ids(paragraphs, tokenizer):
            stream.write(ids.data)
        tokens = stream.tell() // np.dtype(np.int32).itemsize
    count = tokens // (block_size - 2)
    if count < 2:
        raise UserError(
            f"the text has only {tokens} tokens; with blocks of {block_size}, training and held-out rows "
            f"need at least {2 * (block_size - 2)}"
        )
    stream = np.memmap(folder / "stream", np.int32, "r")
    held_out = _held_out_rows(count, description["held_out"])
    for name, rows in (("train", np.flatnonzero(~held_out)), ("held_out", np.flatnonzero(held_out))):
        (folder / name).mkdir()
        write_array(folder / name / "ids.npy", _rows(stream, rows, block_size, tokenizer), len(rows) * block_size)
        write_array(folder / name / "offsets.npy", [np.arange(len(rows) + 1) * block_size], len(rows) + 1)
    del stream
    (folder / "stream").unlink()
    text = json.dumps({**description, "tokens": tokens, "vocabulary": len(tokenizer)}, indent=1)
    (folder / COMPLETE).write_text(text + "\n", encoding="utf-8")


def _open(folder: Path) -> "tuple[PreTrainedTokenizerFast, TokenRows, TokenRows]":
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    return tokenizer, TokenRows.load(folder / "train"), TokenRows.load(folder / "held_out")


def _held_out_rows(count: int, share: float) -> np.ndarray:
    """Mask of the held-out rows: runs of CHUNK in the middle of equal parts of the text, not random."""
    size = min(count - 1, max(1, round(count * share)))
    runs = -(-size // CHUNK)
    mask = np.zeros(count, bool)
    for run in range(runs):
        length = size * (run + 1) // runs - size * run // runs
        middle = (2 * run + 1) * count // (2 * runs)
        mask[middle - length // 2 : middle - length // 2 + length] = True
    return mask


def _rows(
    stream: np.ndarray, chosen: np.ndarray, block_size: int, tokenizer: "PreTrainedTokenizerFast"
) -> Iterator[np.ndarray]:
    """The chosen rows of the stream between [CLS] and [SEP], as arrays of shape [at most ROWS, block_size]."""
    body = block_size - 2
    bodies = stream[: len(stream) // body * body].reshape(-1, body)
    for start in range(0, len(chosen), ROWS):
        part = bodies[chosen[start : start + ROWS]]
        yield np.pad(part, ((0, 0), (1, 1)), constant_values=(tokenizer.cls_token_id, tokenizer.sep_token_id))


def _token_ids(texts: Iterable[str], tokenizer: "PreTrainedTokenizerFast") -> Iterator[np.ndarray]:
    """Token ids of the texts in order, without special tokens, a batch of texts at a time."""
    texts = iter(texts)
    while batch := list(islice(texts, BATCH)):
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        yield np.fromiter(chain.from_iterable(encoding.ids for encoding in encoded), np.int32)
