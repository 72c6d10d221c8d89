"""The word lists: sizes, spelling, no two forms alike, and classes that fit together."""

import re
from collections import Counter

import polars as pl
import pytest

from lmdynamics.corpora.lexicon import AUXILIARIES, DETERMINERS, word_list

# words of each part of speech, and the fewest of them in one class
SIZES = {
    "small": {"noun": (130, 14), "verb": (80, 7), "adjective": (80, 10), "adverb": (40, 5), "preposition": (20, 0)},
    "large": {
        "noun": (1200, 22),
        "verb": (700, 11),
        "adjective": (600, 11),
        "adverb": (300, 6),
        "preposition": (40, 0),
    },
}
CLASSES = {"small": 8, "large": 40}
IRREGULAR = {
    "bookshelf": "bookshelves",
    "calf": "calves",
    "child": "children",
    "domino": "dominoes",
    "echo": "echoes",
    "fireman": "firemen",
    "fisherman": "fishermen",
    "fresco": "frescoes",
    "goose": "geese",
    "grandchild": "grandchildren",
    "knife": "knives",
    "leaf": "leaves",
    "louse": "lice",
    "man": "men",
    "mango": "mangoes",
    "milkman": "milkmen",
    "mosquito": "mosquitoes",
    "mouse": "mice",
    "oasis": "oases",
    "ox": "oxen",
    "policeman": "policemen",
    "postman": "postmen",
    "potato": "potatoes",
    "scarf": "scarves",
    "schoolchild": "schoolchildren",
    "shelf": "shelves",
    "tomato": "tomatoes",
    "tornado": "tornadoes",
    "volcano": "volcanoes",
    "wife": "wives",
    "wolf": "wolves",
    "woman": "women",
}
# violence towards people, weapons, drugs, insults
UNSUITABLE = """
attack beat bomb cigarette cocaine corpse cripple drug enslave execute fat grenade gun heroin idiot kill moron murder
naked nude pistol punch rape rifle savage sexy shoot slave stab strangle stupid terrorist torture ugly
"""
UNCOUNTABLE = "advice bread butter cheese furniture grass information jewelry luggage milk music rice sand water"


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def words(size):
    return word_list(size)


def regular(lemma: str) -> str:
    """The plural of a regular noun, or the third person singular of a regular verb."""
    if re.search(r"(s|x|z|ch|sh)$", lemma):
        return f"{lemma}es"
    return re.sub("y$", "ies", lemma) if re.search(r"[^aeiou]y$", lemma) else f"{lemma}s"


def test_sizes_are_as_promised(size, words):
    assert Counter(words["pos"]) == {pos: n for pos, (n, _) in SIZES[size].items()}
    assert words.filter(pos="noun")["class"].n_unique() == CLASSES[size]


def test_every_class_has_enough_words_of_every_kind(size, words):
    counts = Counter(words.select("class", "pos").iter_rows())
    for name in words["class"].unique():
        for pos, (_, fewest) in SIZES[size].items():
            assert counts[name, pos] >= fewest, (name, pos)


def test_words_of_every_class_come_first(size, words):
    for pos in ("noun", "verb", "adjective", "adverb"):
        assert words.filter(pos=pos).head(CLASSES[size])["class"].n_unique() == CLASSES[size]


def test_no_two_forms_are_alike(words):
    forms = Counter([*words["lemma"], *words["form"].drop_nulls()])
    forms.update({".", "that", *AUXILIARIES, *(d for kind in DETERMINERS for d in kind)})
    assert [form for form, n in forms.items() if n > 1] == []


def test_forms_are_lower_case_letters(words):
    for column in ("lemma", "class", "form", "object_class"):
        assert [x for x in words[column].drop_nulls() if not re.fullmatch("[a-z]+", x)] == []


def test_inflection_follows_english_spelling(words):
    for lemma, form in words.filter(pl.col("pos").is_in(["noun", "verb"])).select("lemma", "form").iter_rows():
        assert form == IRREGULAR.get(lemma, regular(lemma))


def test_only_nouns_and_verbs_have_a_second_form(words):
    inflected = pl.col("pos").is_in(["noun", "verb"])
    assert (words["form"].is_not_null() == words.select(inflected).to_series()).all()


def test_nouns_can_be_counted(words):
    assert set(words.filter(pos="noun")["lemma"]).isdisjoint(UNCOUNTABLE.split())


def test_transitive_verbs_and_no_others_have_objects(words):
    nouns = set(words.filter(pos="noun")["class"])
    assert set(words["class"]) == nouns
    assert set(words["object_class"].drop_nulls()) == nouns  # nouns of every class are objects of some verb
    assert (words["transitive"].is_not_null() == (words["pos"] == "verb")).all()
    assert (words["transitive"].fill_null(False) == words["object_class"].is_not_null()).all()
    assert 0.55 <= words["transitive"].mean() <= 0.75


def test_no_word_is_unsuitable(words):
    assert set(words["lemma"]).isdisjoint(UNSUITABLE.split())
