"""Changes between any two checkpoints against plain loops; their intervals; heads that changed relation."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.checkpoint_pairs import changed_heads, changes_of_all_pairs, context_of
from tests.conftest import refuses
from tests.explorers.made import relations_of_heads, token_losses


@pytest.fixture(scope="module")
def losses() -> pl.DataFrame:
    """Rows of unequal length at three checkpoints."""
    rng, rows = np.random.default_rng(0), []
    for step, mean in ((0, 6.0), (8, 4.0), (64, 3.8)):
        lengths = np.random.default_rng(1).integers(1, 6, 30)
        rows += [(step, row, i, 7, mean + rng.normal()) for row, n in enumerate(lengths) for i in range(n)]
    return pl.DataFrame(rows, ["step", "row", "position", "token", "loss"], orient="row")


def test_each_pair_equals_a_loop_over_tokens(losses):
    table = changes_of_all_pairs(losses)
    assert len(table) == 9
    for a, b in ((0, 8), (64, 8), (8, 8)):
        pair = table.row(by_predicate=(pl.col("from_step") == a) & (pl.col("step") == b), named=True)
        changes = [y - x for x, y in zip(losses.filter(step=a)["loss"], losses.filter(step=b)["loss"], strict=True)]
        assert pair["change"] == pytest.approx(sum(changes) / len(changes))
        assert pair["improved"] == pytest.approx(sum(change < 0 for change in changes) / len(changes))
        assert (pair["tokens"], pair["rows"]) == (len(changes), 30)


def test_losses_in_float32_as_measured(losses):
    short = changes_of_all_pairs(losses.with_columns(pl.col("loss").cast(pl.Float32)))
    assert (short["change"] - changes_of_all_pairs(losses)["change"]).abs().max() < 1e-6


def test_the_interval_is_over_rows_of_text(losses):
    pair = changes_of_all_pairs(losses).filter(from_step=8, step=64).row(0, named=True)
    joined = losses.filter(step=64).with_columns(change=pl.col("loss") - losses.filter(step=8)["loss"])
    rows = joined.group_by("row").agg(total=pl.col("change").sum(), n=pl.len())
    total, n = rows["total"].to_numpy(), rows["n"].to_numpy()
    stderr = np.sqrt(((total - pair["change"] * n) ** 2).sum() * 30 / 29) / n.sum()  # of a ratio
    assert (pair["change_high"] - pair["change_low"]) / (2 * 1.96 * stderr) == pytest.approx(1, abs=0.15)
    assert pair["change_low"] < pair["change"] < pair["change_high"]


def test_few_rows_have_no_interval(losses):
    table = changes_of_all_pairs(losses.filter(pl.col("row") < 5))
    assert table["change_low"].null_count() == table["change_high"].null_count() == len(table)


def test_checkpoints_with_other_tokens_are_refused(losses):
    refuses("measured on other tokens", changes_of_all_pairs, losses[:-1])
    refuses("no rows", changes_of_all_pairs, losses.clear())


def test_only_heads_with_another_relation_are_listed():
    heads = relations_of_heads().with_columns(above=pl.col("accuracy") > 0.4)
    columns = ["layer", "head", "relation_before", "relation"]
    assert changed_heads(heads, 0, 16).select(columns).rows() == [(0, 1, "punct", "nsubj"), (1, 0, "det", "obj")]
    assert changed_heads(heads, 0, 2).select(columns).rows() == []
    assert changed_heads(heads, 8, 8).is_empty()


def test_a_context_has_the_token_in_quotes():
    words = ["the", "big", "dogs", "near", "the", "house"]
    assert context_of(words, 0) == "‹the› big dogs"
    assert context_of(words, 4) == "big dogs near ‹the› house"


def test_a_token_that_is_learnt_and_one_that_is_forgotten():
    pair = changes_of_all_pairs(token_losses()).filter(from_step=0, step=1).row(0, named=True)
    assert pair["change"] == pytest.approx((-0.6 + 0.3 + 0.0) / 3 + 0.05 * 3.5)
    assert pair["improved"] == pytest.approx(8 / 24)
