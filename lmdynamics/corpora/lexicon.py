"""The words of the built-in language.

They are in `english_small.csv` and `english_large.csv`, beside this module. Each row is a lemma with its
part of speech and its semantic class. The class describes which words go together:

- noun: its own class; `form` is its plural
- verb: the class of its subjects; `lemma` is its plural, `form` its third person singular; `transitive` is 1 or 0;
  `object_class` is the class of its objects
- adjective: the class of the nouns it describes
- adverb: the class of the subjects of the verbs it describes
- preposition: the class of the noun that follows it

Within a class, common words come before rare ones. Rows of one part of speech alternate between the classes, so
the first rows contain words of every class. No form occurs twice in a list.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import polars as pl

from lmdynamics.corpora.tokens import SPECIAL

SPECIAL_TOKENS = tuple(SPECIAL.values())  # [PAD] [UNK] [CLS] [SEP] [MASK], ids 0 to 4
SIZES = ("small", "large")
# of any number, singular only, plural only; without "a", which would be "an" before a vowel
DETERMINERS = (("the", "no"), ("one", "this", "every"), ("these", "many", "some"))
AUXILIARIES = ("can", "will", "must", "may", "should", "could")

_COLUMNS = {
    "lemma": pl.String,
    "pos": pl.String,
    "class": pl.String,
    "form": pl.String,
    "transitive": pl.Int8,
    "object_class": pl.String,
}


def word_list(size: Literal["small", "large"]) -> pl.DataFrame:
    """The words of a size, with the columns of the file; empty fields are null, `transitive` is a boolean."""
    path = Path(__file__).with_name(f"english_{size}.csv")
    return pl.read_csv(path, schema=_COLUMNS).cast({"transitive": pl.Boolean})


class Words(NamedTuple):
    """The words of a language: for each lemma its forms and its semantic class (0, 1, …)."""

    nouns: list[tuple[str, ...]]  # singular, plural
    noun_classes: list[int]
    verbs: list[tuple[str, ...]]  # singular, plural
    verb_classes: list[int]  # of their subjects
    object_classes: list[int]
    transitive: list[bool]
    adjectives: list[tuple[str, ...]]
    adjective_classes: list[int]
    adverbs: list[tuple[str, ...]]
    adverb_classes: list[int]
    prepositions: list[tuple[str, ...]]
    complement_classes: list[int]


def load_words(size: Literal["small", "large"]) -> Words:
    frame = word_list(size)
    numbers = {name: i for i, name in enumerate(frame.filter(pos="noun")["class"].unique().sort())}

    def part(pos: str, *forms: str) -> tuple[list[tuple[str, ...]], list[int]]:
        rows = frame.filter(pos=pos)
        return rows.select(forms).rows(), [numbers[name] for name in rows["class"]]

    verbs = frame.filter(pos="verb")
    objects = [numbers.get(name, 0) for name in verbs["object_class"]]  # not used where there is no object
    return Words(
        *part("noun", "lemma", "form"), *part("verb", "form", "lemma"), objects, verbs["transitive"].to_list(),
        *part("adjective", "lemma"), *part("adverb", "lemma"), *part("preposition", "lemma"),
    )  # fmt: skip
