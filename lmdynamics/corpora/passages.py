"""Text files as passages: paragraphs on one line each, read a line at a time however large the files are."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from lmdynamics.errors import UserError

SUFFIXES = (".txt", ".md")
NOT_TEXT = re.compile(r"(source|readme|licen[cs]e|copying)\b", re.IGNORECASE)
HEADER_LINES = 20  # a rule this near the top of a Markdown file ends its header (title, author, year)
HEADER_RULE = re.compile(r"-{7,}\s*")
MARKUP = str.maketrans("", "", "_*#")
LONGEST = 10_000  # characters: a paragraph longer than this is cut at a line end, so that memory stays small


def read_texts(path: str | Path) -> list[tuple[str, str]]:
    """(name, text) of a file, or of every `.txt` and `.md` below a folder in order of name; a line per paragraph.

    Markdown loses its header (up to a line of dashes near the top) and the characters `_ * #`. In a folder, files
    about the texts (SOURCE, README, LICENSE, COPYING) and hidden ones are passed over.

    Raises
    ------
    UserError
        If there is nothing to read, a file is not UTF-8, or a file is empty.
    """
    folder, files = text_files(path)
    return [(file.relative_to(folder).as_posix(), "\n".join(Passages((file,)))) for file in files]


def text_files(path: str | Path) -> tuple[Path, tuple[Path, ...]]:
    """The folder that names are relative to, and the text files `read_texts` reads, in order of name.

    Raises
    ------
    UserError
        If there are none.
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
class Passages:
    """The paragraphs of some files, in order, read anew on each iteration; white space is single spaces.

    So hard-wrapped and unwrapped files give the same words as a treebank does. Iterating raises a UserError for a
    file that is not UTF-8 or has no text.
    """

    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(map(_passages, self.files))


def _is_text(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and not NOT_TEXT.match(file.name) and file.is_file()


def _passages(file: Path) -> Iterator[str]:
    empty = True
    words, characters = [], 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in chain(_without_markup(lines) if file.suffix.lower() == ".md" else lines, [""]):
                words += (in_line := line.split())
                characters += len(line)
                if words and (not in_line or characters > LONGEST):
                    yield " ".join(words)
                    words, characters, empty = [], 0, False
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error.reason}); convert it, or take it out of the folder") from None
    if empty:
        raise UserError(f"{file} holds no text; replace it, or take it out of the folder")


def _without_markup(lines: Iterable[str]) -> Iterator[str]:
    """Lines of a Markdown file below its header, if it has one."""
    lines = iter(lines)
    top = list(islice(lines, HEADER_LINES))
    rules = [i for i, line in enumerate(top) if HEADER_RULE.fullmatch(line)]
    for line in chain(top[rules[0] + 1 :] if rules else top, lines):
        yield line.translate(MARKUP)
