"""Tokens in groups of like frequency."""

from collections import Counter
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.corpora.blocks import Blocks, frequency_groups, group_names, position_groups
from lmdynamics.errors import UserError

rows = st.lists(st.lists(st.integers(0, 19), max_size=30), min_size=1, max_size=10).filter(any)
rising = st.sets(st.integers(2, 60), min_size=1, max_size=4).map(sorted)


@given(rows, rising)
def test_equals_a_loop_over_tokens(texts, bins):
    counts = Counter(token for text in texts for token in text)
    total = counts.total()
    expected = []
    for token in range(20):
        group = sum(Fraction(counts[token], total) < Fraction(1, n) for n in bins)
        expected.append((token, counts[token], group_names(bins)[group]))
    found = frequency_groups(Blocks.from_rows(texts), 20, bins)
    assert found.rows() == expected
    assert dict(found.schema) == {"token": pl.Int32, "count": pl.Int64, "group": pl.Enum(group_names(bins))}


@given(rows, rising)
def test_groups_are_ordered_from_frequent_to_rare(texts, bins):
    found = frequency_groups(Blocks.from_rows(texts), 20, bins).sort("group", maintain_order=True)
    bounds = found.group_by("group", maintain_order=True).agg(low=pl.col("count").min(), high=pl.col("count").max())
    assert all(low > high for low, high in zip(bounds["low"][:-1], bounds["high"][1:], strict=True))


def test_names_say_how_often_and_the_unseen_are_with_the_rarest():
    blocks = Blocks.from_rows([[1] * 9_899, [2] * 100, [3]])
    found = frequency_groups(blocks, 6)
    assert found["group"].to_list() == [
        "rarer than 1 in 10,000",
        "at least 1 in 100",
        "at least 1 in 100",  # exactly 1 in 100
        "1 in 1,000–10,000",  # exactly 1 in 10,000
        "rarer than 1 in 10,000",
        "rarer than 1 in 10,000",
    ]
    assert group_names() == [
        "at least 1 in 100",
        "1 in 100–1,000",
        "1 in 1,000–10,000",
        "rarer than 1 in 10,000",
    ]


def test_what_makes_no_groups_is_refused():
    blocks = Blocks.from_rows([[1, 7]])
    with pytest.raises(UserError, match="token 7 is in the rows, but the vocabulary has 5 tokens"):
        frequency_groups(blocks, 5)
    with pytest.raises(UserError, match="no rows to count tokens in"):
        frequency_groups(Blocks.from_rows([]), 5)
    for bins in ([], [1, 10], [10, 5], [10, 10]):
        with pytest.raises(UserError, match="frequency bins must rise, from 2 upwards"):
            frequency_groups(blocks, 8, bins)


def test_positions_are_grouped_by_how_much_stands_before_them():
    found = position_groups(Blocks.from_rows([[2] * 10, [3], [4] * 3]))
    assert found["row"].to_list() == [0] * 10 + [1] + [2] * 3
    assert found["position"].to_list() == [*range(10), 0, 0, 1, 2]
    assert found["group"].to_list()[:10] == ["0", "1", "2–3", "2–3", "4–7", "4–7", "4–7", "4–7", "8–15", "8–15"]
    assert found.sort("group", "position")["position"].is_sorted()
    with pytest.raises(UserError, match="no rows with positions"):
        position_groups(Blocks.from_rows([]))


@given(st.integers(1, 200))
def test_every_position_has_a_group_that_holds_it(n):
    for position, group in position_groups(Blocks.from_rows([[1] * n])).select("position", "group").iter_rows():
        low, _, high = group.partition("–")
        assert int(low) <= position <= int(high or low)
