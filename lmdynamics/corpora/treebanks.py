"""Treebanks: sentences with gold dependency trees.

What counts as a word is the syntactic word of Universal Dependencies: `don't` is two words, `do` and `n't`.
Multiword ranges (`2-3`) and the empty nodes of enhanced graphs (`8.1`) have no basic arc and are left out.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

import conllu
import numpy as np

from lmdynamics.corpora.fetch import locate
from lmdynamics.errors import UserError, did_you_mean

COLUMNS = 10
# Short names: the source, and the file in its folder; "." is the whole folder.
FILES = {
    "ewt": ("ewt", "en_ewt-ud-dev.conllu"),
    "ewt-dev": ("ewt", "en_ewt-ud-dev.conllu"),
    "ewt-test": ("ewt", "en_ewt-ud-test.conllu"),
    "childes": ("childes", "."),
    "atis": ("atis", "."),
    "pud": ("pud", "."),
}


@dataclass(frozen=True)
class Sentence:
    """One sentence: `words`, for each the 0-based index of its head word (`heads`, -1 for a root), and its relation."""

    words: tuple[str, ...]
    heads: tuple[int, ...]
    relations: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True)
class Treebank:
    """Sentences with gold trees. `name` is for titles; only the sentences make the fingerprint."""

    name: str
    sentences: tuple[Sentence, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Content hash (16 hex digits): part of the cache key of every measurement made on these trees."""
        digest = hashlib.sha256()
        for sentence in self.sentences:
            digest.update(json.dumps([sentence.words, sentence.heads, sentence.relations]).encode() + b"\n")
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.sentences)

    def __iter__(self) -> Iterator[Sentence]:
        return iter(self.sentences)

    def __repr__(self) -> str:
        return f"Treebank({self.name!r}, {len(self):,} sentences, {sum(map(len, self)):,} words)"

    def take(self, n: int, seed: int = 0) -> "Treebank":
        """`n` sentences drawn without replacement, in their own order; all of them if there are no more than `n`.

        Raises ValueError if `n` is less than 1.
        """
        if n < 1:
            raise ValueError(f"cannot take {n} sentences: ask for at least 1")
        if n >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), size=n, replace=False))
        return replace(self, sentences=tuple(self.sentences[i] for i in chosen))


def read_conllu(path: str | Path, *, subtypes: bool = False) -> Treebank:
    """Read a CoNLL-U file, or every `*.conllu` in a folder (in order of name).

    `subtypes=False` cuts relations at the colon: `nsubj:pass` becomes `nsubj`. A sentence with several roots is
    kept as it is, each root with head -1 (older conversions have them). Blocks with comments only are skipped.

    Raises UserError naming the file, the sentence and the fault, if any sentence is not a tree over its words: a
    missing column, a head that is no word of the sentence, a cycle, no root.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.conllu"))
        if not files:
            raise UserError(f"{path} holds no *.conllu files; give a CoNLL-U file or a folder of them")
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"{path} does not exist; give a CoNLL-U file or a folder of them")
    sentences = tuple(sentence for file in files for sentence in _read_file(file, subtypes))
    if not sentences:
        raise UserError(f"{path} holds no sentences; CoNLL-U has one word a line and a blank line after each sentence")
    if all(word == "_" for sentence in sentences for word in sentence.words):
        raise UserError(
            f"{path} has '_' for every word: this treebank was published without its text, which must be merged in"
        )
    return Treebank(path.stem, sentences)


def open_treebank(name: str) -> Treebank:
    """A treebank by name (`ewt` is EWT's dev set; `ewt-test`, `childes`, `atis`, `pud`) or by path.

    Raises UserError if it is neither a known name nor a path, or is not on this machine, or does not parse.
    """
    if name in FILES:
        source, part = FILES[name]
        return replace(read_conllu(locate(source) / part), name=name)
    if not Path(name).expanduser().exists():
        raise UserError(f"no treebank {name!r}: neither a known name nor a path{did_you_mean(name, FILES)}")
    return read_conllu(Path(name).expanduser())


def _read_file(path: Path, subtypes: bool) -> Iterator[Sentence]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); CoNLL-U must be, so convert the file") from None
    # Split at "\n" alone: words may hold the rarer line separators that str.splitlines() would cut at.
    lines = enumerate(text.split("\n"), start=1)
    for blank, block in groupby(lines, key=lambda line: not line[1].strip()):
        if not blank and (sentence := _read_sentence(list(block), path, subtypes)):
            yield sentence


def _read_sentence(block: list[tuple[int, str]], path: Path, subtypes: bool) -> Sentence | None:
    """Parse one block of lines as a sentence; None if it has comments only."""
    rows = [(number, line) for number, line in block if not line.startswith("#")]
    if not rows:
        return None
    location = f"{path}, sentence at line {block[0][0]}"
    for number, line in rows:
        if (columns := line.count("\t") + 1) != COLUMNS:
            raise UserError(f"{path}, line {number} has {columns} tab-separated columns; CoNLL-U has {COLUMNS}")
    try:
        parsed = conllu.parse_token_and_metadata("\n".join(line for _, line in block), field_parsers=_AS_TEXT)
    except conllu.exceptions.ParseException as error:
        raise UserError(f"{location}: {str(error).rstrip('.')}; correct the file") from None
    if sent_id := parsed.metadata.get("sent_id"):
        location += f" (sent_id {sent_id})"
    words = [token for token in parsed if isinstance(token["id"], int)]
    try:
        heads = _heads(words)
    except ValueError as error:
        raise UserError(f"{location}: {error}; correct the file") from None
    relations = (word["deprel"] if subtypes else word["deprel"].split(":")[0] for word in words)
    return Sentence(tuple(word["form"] for word in words), heads, tuple(relations))


def _heads(words: list[conllu.Token]) -> tuple[int, ...]:
    """0-based heads, -1 for a root; ValueError with the fault if they are not a tree."""
    if not words:
        raise ValueError("no words, only multiword ranges or empty nodes")
    if (ids := [word["id"] for word in words]) != list(range(1, len(words) + 1)):
        expected = next(i for i, word_id in enumerate(ids, start=1) if word_id != i)
        raise ValueError(f"word ids must be 1, 2, 3, ...; expected {expected}, got {ids[expected - 1]}")
    for word in words:
        if not word["form"].strip() or word["deprel"] in ("", "_"):
            raise ValueError(f"word {word['id']} has no {'form' if not word['form'].strip() else 'relation'}")
        if not word["head"].isascii() or not word["head"].isdigit():
            raise ValueError(
                f"word {word['id']} ({word['form']}) has head {word['head']!r}, which is not a whole number"
            )
        if int(word["head"]) > len(words):
            raise ValueError(f"word {word['id']} ({word['form']}) has head {word['head']} in {len(words)} words")
    heads = tuple(int(word["head"]) - 1 for word in words)
    if -1 not in heads:
        raise ValueError("no root: no word has head 0")
    reaches_root = {-1}
    for start in range(len(words)):
        path, node = [], start
        while node not in reaches_root:
            if node in path:
                cycle = " -> ".join(words[i]["form"] for i in [*path[path.index(node) :], node])
                raise ValueError(f"the heads make a cycle: {cycle}")
            path.append(node)
            node = heads[node]
        reaches_root.update(path)
    return heads


# Unused columns stay text: parsing features and enhanced arcs would take most of the time.
_AS_TEXT = {name: (lambda row, i: row[i]) for name in ("xpos", "feats", "head", "deps", "misc")}
