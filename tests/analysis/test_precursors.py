"""What precedes a drop: against curves whose onsets are known, against none, and against bad tables."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.precursors import (
    ATTENTION,
    DROP,
    MODEL,
    ONSETS,
    REPETITION,
    before_drop,
    precursor_curves,
    precursor_onsets,
    precursor_table,
    resampled,
)
from tests.analysis.frames import STEPS, precursor_rows
from tests.conftest import refuses


@pytest.fixture(scope="module")
def onsets():
    return precursor_onsets(resampled(precursor_rows()))


def test_planted_onsets_are_found_in_their_order(onsets):
    assert set(onsets) == {DROP, *ONSETS}
    half = 300 * np.exp(-np.log(3 + 8**0.5) / 8)  # where a logistic curve of sharpness 8 has half of its steepest slope
    assert abs(np.log(onsets[DROP].step / half)) < np.log(1.3)
    assert onsets[DROP].low < onsets[DROP].step <= onsets[DROP].high
    assert onsets["repetition"].step in (16, 32)
    assert onsets["parallel states within rows"].step in (16, 32)
    assert before_drop(onsets) == {
        "before": ["repetition", "parallel states", "parallel states within rows"],
        "after": ["attention", "attention beyond other heads"],
        "undecided": [],
        "undated": ["repetition beyond frequency"],
    }


def test_the_drop_follows_the_loss_and_not_its_first_fall(onsets):
    later = precursor_onsets(resampled(precursor_rows(drop=900)))
    assert later[DROP].step / onsets[DROP].step == pytest.approx(3, rel=0.35)
    assert later["repetition"].step == onsets["repetition"].step
    earlier = precursor_onsets(resampled(precursor_rows(attention=60)))
    assert "attention" in before_drop(earlier)["before"]


def test_a_loss_above_the_unigram_entropy_has_no_drop():
    rows = precursor_rows().with_columns(loss=pl.max_horizontal("loss", pl.lit(4.95)))
    onsets = precursor_onsets(resampled(rows))
    assert onsets[DROP].step is None
    assert "the fall below the unigram entropy, in nats: never more than 0.1 above zero" in onsets[DROP].reason
    order = before_drop(onsets)
    assert order["before"] == order["after"] == []
    assert "repetition" in order["undecided"]


def test_values_are_means_over_groups_and_progress_is_relative_to_the_first_checkpoint():
    rows = precursor_rows(noise=0.05)
    curves = precursor_curves(resampled(rows))
    at = rows.filter(step=596)
    model = curves.filter(step=596, curve=MODEL)
    assert model.filter(measure=REPETITION)["value"].item() == pytest.approx(sum(at["repeated"]) / 20)
    first = rows.filter(step=0)["distance"].mean()
    progress = model.filter(measure=ATTENTION)
    assert progress["value"].item() == pytest.approx(1 - at["distance"].mean() / first)
    assert progress["low"].item() < progress["value"].item() < progress["high"].item()
    assert curves.filter(measure=ATTENTION, step=0)["value"].to_list() == [0.0, 0.0]


def test_equal_final_attention_is_progress_one():
    rows = precursor_rows().with_columns(distance=pl.when(pl.col("step") == STEPS[-1]).then(0.0).otherwise("distance"))
    last = precursor_curves(resampled(rows)).filter(measure=ATTENTION, curve=MODEL, step=STEPS[-1])
    assert last.select("value", "low", "high").row(0) == (1.0, 1.0, 1.0)


def test_intervals_cover_what_new_groups_show():
    """Of 40 texts drawn anew, the interval of one covers most means."""
    exact, covered = 0.02, 0
    for seed in range(40):
        curves = precursor_curves(resampled(precursor_rows(noise=0.05, seed=seed), seed=seed))
        low, high = curves.filter(curve="in the text", step=100).select("low", "high").row(0)
        covered += low <= exact <= high
    assert covered >= 34


def test_few_groups_have_no_interval_and_decide_nothing():
    data = resampled(precursor_rows(groups=5))
    assert precursor_curves(data)["low"].null_count() == len(precursor_curves(data))
    onsets = precursor_onsets(data)
    assert onsets["repetition"].step is not None
    assert onsets["repetition"].low is None
    assert "repetition" in before_drop(onsets)["undecided"]


def test_without_attention_the_rest_is_dated():
    without = precursor_onsets(resampled(precursor_rows().drop("distance", "distance_other")))
    assert set(ONSETS) - set(without) == {"attention", "attention beyond other heads"}
    one_head = precursor_rows().with_columns(distance_other=pl.lit(None, pl.Float64))
    assert set(ONSETS) - set(precursor_onsets(resampled(one_head))) == {"attention beyond other heads"}


def test_traces_are_joined_by_group_with_the_last_layer_and_the_mean_over_layers():
    keys = {"step": [0, 0], "group": [0, 1]}
    shares = {"loss": [5.0, 5.5], "repeated": [0.5, None], "in_text": [0.1, None], "other_rows": [0.2, 0.3]}
    repetition = pl.DataFrame(keys | {"tokens": [4, 1], "pairs": [6, 0]} | shares)
    layered = pl.DataFrame({"step": 0, "group": [0, 1, 0, 1], "layer": [0, 0, 1, 1]})
    cosines = layered.with_columns(cosine=pl.Series([0.1, None, 0.9, None]), other_rows=pl.Series([0.0, 0.0, 0.4, 0.4]))
    distances = layered.with_columns(
        distance=pl.Series([0.2, 0.2, 0.4, 0.4]), other_heads=pl.Series([0.6, 0.6, 1.0, 1.0])
    )
    table = precursor_table(repetition, cosines, distances)
    names = ["group", "loss", "repeated", "repeated_between", "cosine", "cosine_between", "distance", "distance_other"]
    assert np.allclose(table.select(names).row(0), (0, 5.0, 0.5, 0.2, 0.9, 0.4, 0.3, 0.8))
    assert len(table) == 1, "a group without a pair is left out"
    assert "distance" not in precursor_table(repetition, cosines, None).columns


def test_a_run_that_diverged_is_refused():
    rows = precursor_rows().with_columns(loss=pl.when(pl.col("step") == 64).then(np.nan).otherwise("loss"))
    refuses("'loss' has no number at step 64", resampled, rows)
