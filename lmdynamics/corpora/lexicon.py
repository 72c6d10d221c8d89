"""The English words of the built-in language: `english_small.csv` and `english_large.csv`, beside this module.

Each row is a lemma with its part of speech and its semantic class. The class describes which words go together:

- noun: its own class; `form` is its plural
- verb: the class of its subjects; `lemma` is its plural, `form` its third person singular; `transitive` is 1 or 0;
  `object_class` is the class of its objects
- adjective: the class of the nouns it describes
- adverb: the class of the subjects of the verbs it describes
- preposition: the class of the noun that follows it

Within a class, common words come before rare ones. Rows of one part of speech alternate between the classes, so a
draw that favors the first rows favors no class. No form occurs twice in a list.
"""

from pathlib import Path
from typing import Literal

import polars as pl

_COLUMNS = {
    "lemma": pl.String,
    "pos": pl.String,
    "class": pl.String,
    "form": pl.String,
    "transitive": pl.Int8,
    "object_class": pl.String,
}


def english(size: Literal["small", "large"]) -> pl.DataFrame:
    """The word list of this size: the columns of the file; empty fields are null, `transitive` is a boolean."""
    path = Path(__file__).with_name(f"english_{size}.csv")
    return pl.read_csv(path, schema=_COLUMNS).cast({"transitive": pl.Boolean})
