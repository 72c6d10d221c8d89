"""The checkpoint slider: what it offers, where it goes, and several that go together."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.explorers.checkpoints import CheckpointSlider, nearest, together

STEPS = [0, 1, 2, 4, 8, 64, 512]


def test_it_shows_step_and_loss():
    slider = CheckpointSlider(STEPS, 8, {8: 2.3456})
    assert (slider.step, slider.slider.label, slider.loss.value) == (8, "8", "loss 2.346")
    slider.slider.value = 64
    assert (slider.step, slider.loss.value) == (64, "")


def test_it_starts_at_the_last_unless_told():
    assert CheckpointSlider(STEPS).step == 512


def test_keys_buttons_and_code_all_arrive_at_step():
    slider, seen = CheckpointSlider(STEPS), []
    slider.observe(lambda change: seen.append(change["new"]), names="step")
    slider.slider.index = 2
    slider.step = 4
    slider.go(100)
    assert seen == [2, 4, 64]
    assert slider.slider.value == 64


def test_other_checkpoints_keep_the_place_and_tell_once():
    slider, seen = CheckpointSlider(STEPS, 64), []
    slider.observe(lambda change: seen.append(change["new"]), names="step")
    slider.offer([0, 3, 50, 100], slider.step, {50: 1.0})
    assert (slider.step, slider.loss.value, seen, slider.play.max) == (50, "loss 1.000", [50], 3)
    assert slider.steps == [0, 3, 50, 100]


def test_a_click_goes_to_the_nearest_place():
    slider = CheckpointSlider(STEPS)
    slider.clicks["jump"]({"x": 0.5})
    assert slider.step == 0


@pytest.mark.parametrize(("step", "found"), [(0, 0), (0.5, 0), (0.8, 1), (3, 4), (6, 8), (22, 8), (23, 64), (1e9, 512)])
def test_nearest_is_so_on_a_logarithmic_axis(step, found):
    assert nearest(STEPS, step) == found


@given(st.sets(st.integers(0, 10**6), min_size=1), st.integers(0, 10**6))
def test_a_step_that_is_there_is_nearest_to_itself(steps, step):
    assert nearest(sorted(steps | {step}), step) == step


def test_explorers_go_together_each_to_its_own_nearest():
    one, other = (SimpleNamespace(checkpoint=CheckpointSlider(steps)) for steps in (STEPS, [0, 10, 100]))
    together(one, other)
    assert other.checkpoint.step == 100
    other.checkpoint.go(10)
    assert (one.checkpoint.step, other.checkpoint.step) == (8, 10)
    one.checkpoint.go(0)
    assert other.checkpoint.step == 0


def test_explorers_that_are_not_joined_stay_apart():
    one, other = CheckpointSlider(STEPS), CheckpointSlider(STEPS)
    one.go(0)
    assert other.step == 512
