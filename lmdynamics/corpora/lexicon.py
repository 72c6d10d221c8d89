"""The words of the built-in language, invented or English.

The English ones are in `english_small.csv` and `english_large.csv`, beside this module. Each row is a lemma with its
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

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

import polars as pl

from lmdynamics.corpora.tokens import SPECIAL

SPECIAL_TOKENS = tuple(SPECIAL.values())  # [PAD] [UNK] [CLS] [SEP] [MASK], ids 0 to 4
# nouns, verbs, adjectives, adverbs, prepositions, semantic classes
SIZES = {"small": (130, 80, 80, 40, 20, 8), "large": (1200, 700, 600, 300, 40, 40)}
# each: any number, singular only, plural only; English has no "a", which would be "an" before a vowel
DETERMINERS = {
    "invented": (("the", "no"), ("a", "this", "every"), ("these", "many", "some")),
    "english": (("the", "no"), ("one", "this", "every"), ("these", "many", "some")),
}
AUXILIARIES = ("can", "will", "must", "may", "should", "could")

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
    verbs_fit_objects: bool  # in an object relative clause the verb is drawn by its object, not by its subject


def invented_words(nouns: int, verbs: int, adjectives: int, adverbs: int, prepositions: int, n_classes: int) -> Words:
    random = Random(f"lexicon {nouns} {verbs}")
    stems = _stems(random)
    used = {*SPECIAL_TOKENS, ".", "that", *AUXILIARIES, *(d for kind in DETERMINERS["invented"] for d in kind)}

    def part(n: int, endings: tuple[str, ...], spread: int) -> tuple[list[tuple[str, ...]], list[int]]:
        lemmas: list[tuple[str, ...]] = []
        while len(lemmas) < n:
            stem = next(stems)
            forms = tuple(stem + ending for ending in endings)
            if used.isdisjoint(forms):  # no two words look alike
                lemmas.append(forms)
                used.update(forms)
        classes = [i % spread for i in range(n)]
        random.shuffle(classes)
        return lemmas, classes

    noun = part(nouns, ("", "s"), n_classes)
    verb = part(verbs, ("es", "en"), n_classes)
    adjective, adverb = part(adjectives, ("y",), n_classes), part(adverbs, ("ly",), n_classes)
    preposition, _ = part(prepositions, ("a",), 1)
    objects = [random.randrange(n_classes) for _ in range(verbs)]
    complements = [random.randrange(n_classes) for _ in range(prepositions)]
    transitive = [random.random() < 0.65 for _ in range(verbs)]
    return Words(*noun, *verb, objects, transitive, *adjective, *adverb, preposition, complements, False)


def english_words(size: Literal["small", "large"]) -> Words:
    frame = english(size)
    numbers = {name: i for i, name in enumerate(frame.filter(pos="noun")["class"].unique().sort())}

    def part(pos: str, *forms: str) -> tuple[list[tuple[str, ...]], list[int]]:
        rows = frame.filter(pos=pos)
        return rows.select(forms).rows(), [numbers[name] for name in rows["class"]]

    verbs = frame.filter(pos="verb")
    objects = [numbers.get(name, 0) for name in verbs["object_class"]]  # not used where there is no object
    return Words(
        *part("noun", "lemma", "form"), *part("verb", "form", "lemma"), objects, verbs["transitive"].to_list(),
        *part("adjective", "lemma"), *part("adverb", "lemma"), *part("preposition", "lemma"), True,
    )  # fmt: skip


def _stems(random: Random) -> Iterator[str]:
    """Distinct pronounceable stems, the short ones first."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    onsets = [*consonants, "bl", "br", "dr", "fl", "gr", "kl", "pr", "sk", "sp", "st", "tr"]
    short = [a + v + b for a in onsets for v in vowels for b in consonants]
    random.shuffle(short)
    long = [a + v + b for a in short[:400] for v in vowels for b in consonants[:8]]
    random.shuffle(long)
    return iter(short + long)
