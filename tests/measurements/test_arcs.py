"""Halves, shuffled arcs and fixed offsets, without any model."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.corpora.treebank import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.measurements.arcs import gold_arcs, gold_heads, offset_baseline, score_half, shuffled, sum_by
from tests.measurements.conftest import random_treebank


@given(st.integers(1, 300), st.integers(0, 5))
def test_halves_are_halves_and_repeatable(n, seed):
    half = score_half(n, seed)
    assert half.sum() == n - n // 2
    assert (half == score_half(n, seed)).all()


@given(st.integers(0, 20))
def test_shuffled_trees_keep_their_shape(seed):
    treebank = random_treebank(30, seed)
    control = shuffled(treebank, seed)
    for before, after in zip(treebank, control, strict=True):
        assert before.words == after.words
        assert labelled_shape(before) == labelled_shape(after)
    assert control == shuffled.__wrapped__(treebank, seed)
    assert (gold_heads(control) != gold_heads(treebank)).any()


def labelled_shape(sentence: Sentence, node: int = -1):
    """A tree without its words: the relation of each node with the sorted shapes below it."""
    children = [i for i, head in enumerate(sentence.heads) if head == node]
    return sorted((sentence.relations[i], labelled_shape(sentence, i)) for i in children)


def test_few_shuffled_arcs_are_gold():
    """No more than chance: one of the other words, or so."""
    sentence = Sentence(tuple("abcdefghij"), (-1, *[0] * 9), ("root", *["x"] * 9))
    control = shuffled(Treebank("star", (sentence,) * 500), 0)
    assert np.mean(gold_heads(control)[gold_heads(control) >= 0] == 0) == pytest.approx(0.1, abs=0.02)


def test_offset_baseline_on_a_language_of_fixed_distances():
    """det always one to the right; obj two to the left in most sentences, one in some."""
    near = Sentence(("see", "a", "dog"), (-1, 2, 0), ("root", "det", "obj"))
    far = Sentence(("see", "big", "a", "dog"), (-1, 3, 3, 0), ("root", "amod", "det", "obj"))
    frame = offset_baseline(Treebank("fixed", (near,) * 30 + (far,) * 10), min_count=20)
    best = {row["relation"]: row for row in frame.filter(split="all").iter_rows(named=True)}
    assert best.keys() == {"det", "obj"}
    assert (best["det"]["offset"], best["det"]["accuracy"], best["det"]["count"]) == (1, 1.0, 40)
    assert (best["obj"]["offset"], best["obj"]["accuracy"]) == (-2, 0.75)
    halves = frame.filter(pl.col("split") != "all").group_by("relation").agg(pl.col("count").sum())
    assert halves["count"].to_list() == [40, 40]


def test_no_frequent_relation_is_refused():
    treebank = Treebank("small", (Sentence(("a", "dog"), (1, -1), ("det", "root")),))
    with pytest.raises(UserError, match=r"small: no relation has 2 dependents \(the most frequent is det with 1\)"):
        gold_arcs(treebank, 2)
    with pytest.raises(UserError, match=r"\(there are none\)"):
        gold_arcs(Treebank("roots", (Sentence(("dog",), (-1,), ("root",)),)), 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5)), min_size=0, max_size=30))
def test_sums_by_group(items):
    group = np.array([g for g, _ in items], dtype=int)
    values = np.array([v for _, v in items], dtype=float)
    expected = [sum(v for g, v in items if g == k) for k in range(5)]
    np.testing.assert_allclose(sum_by(values, group, 5), expected, atol=1e-9)
