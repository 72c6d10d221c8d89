import numpy as np
import pytest

from lmdynamics.analysis.loss_curves import prepare
from lmdynamics.errors import UserError


def naive_log_average(loss):
    """The published preprocessing, step by step: `loss[j]` is the loss at step j."""
    points = []
    for j in range(1, len(loss)):
        spacing = 10 ** min(int(np.floor(np.log10(j))) - 1, 3) if j >= 10 else 1
        if j % spacing == 0 or j == len(loss) - 1:
            points.append((j, loss[int(j // 1.2) : j + 1].mean()))
    return points


@pytest.mark.parametrize("last", [300, 1_234, 20_007])
def test_log_average_equals_the_published_loop(last):
    loss = np.random.default_rng(0).uniform(2, 8, last + 1)
    step, smoothed = prepare(np.arange(last + 1), loss, "log-average", skip_steps=100)
    expected = [(j, value) for j, value in naive_log_average(loss) if j > 100]
    assert step.tolist() == [j for j, _ in expected]
    # the loop starts at the window's step 0 as well, which has no place on a log axis: none of these windows has it
    assert smoothed == pytest.approx([value for _, value in expected])


def test_a_log_with_gaps_is_thinned_to_the_first_step_after_each_multiple():
    step, _ = prepare([7, 105, 109, 112, 118, 131], [5.0, 4, 4, 4, 4, 3], "log-average", skip_steps=0)
    assert step.tolist() == [7, 105, 112, 131]  # 118 stands in the same ten as 112


def test_medians_of_a_power_law_lie_on_it():
    t = np.arange(1, 50_001)
    step, loss = prepare(t, 20 * t**-0.2, "log-median", skip_steps=100)
    assert loss == pytest.approx(20 * step**-0.2, rel=1e-3)
    assert (np.diff(step) > 0).all()
    assert len(step) < 200


def test_nothing_is_smoothed_unless_asked():
    step, loss = prepare([50, 100, 101, 500], [4.0, 3, 2, 1])
    assert (step.tolist(), loss.tolist()) == ([101, 500], [2, 1])


def test_step_0_has_no_place_on_a_log_axis():
    assert prepare([0, 1, 2], [9.0, 8, 7], skip_steps=0)[0].tolist() == [1, 2]


@pytest.mark.parametrize("smoothing", ["none", "log-average", "log-median"])
def test_nothing_may_be_left(smoothing):
    assert [len(each) for each in prepare([0, 1], [9.0, 8], smoothing, skip_steps=100)] == [0, 0]
    assert [len(each) for each in prepare([], [], smoothing)] == [0, 0]


@pytest.mark.parametrize(
    ("step", "loss", "message"),
    [
        ([1, 1], [2.0, 2], "do not rise"),
        ([2, 1], [2.0, 2], "do not rise"),
        ([1, float("nan")], [2.0, 2], "do not rise"),
        ([1, 2], [2.0, 0], "not a positive number"),
        ([1, 2], [2.0, float("inf")], "not a positive number"),
        ([1, 2, 3], [2.0, 2], "3 steps and 2 losses"),
    ],
)
def test_bad_rows_are_refused(step, loss, message):
    with pytest.raises(UserError, match=message):
        prepare(step, loss)


def test_unknown_smoothing():
    with pytest.raises(UserError, match="log-averag.*did you mean.*log-average"):
        prepare([1], [1.0], "log-averag")
