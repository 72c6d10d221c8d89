"""Destructive interference and magnitude: what they are by definition, and what must not move them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.measurements.interference import decomposition, destructive_interference, magnitude

sizes = st.floats(1e-6, 1e6)
numbers = st.one_of(sizes, sizes.map(lambda x: -x), st.just(0.0))


@st.composite
def changes(draw, dtype=torch.float64):
    """One to thirty changes in one to three dimensions, at least one of them not zero."""
    values = draw(st.lists(numbers, min_size=1, max_size=30).filter(any))
    shape = draw(st.sampled_from([(-1,), (1, -1), (-1, 1, 1)]))
    return torch.tensor(values, dtype=dtype).reshape(shape)


def naive(change: torch.Tensor) -> tuple[float, float, float]:
    """Interference, magnitude and mean change, item by item; `fsum` does not round on the way."""
    values = [float(x) for x in change.flatten()]
    net, total = math.fsum(values), math.fsum(map(abs, values))
    return 1 - abs(net) / total, total / len(values), net / len(values)


@given(changes())
def test_equals_a_loop_over_items(x):
    found, expected = decomposition(x), naive(x)
    assert found.interference == pytest.approx(expected[0], abs=1e-12)
    assert found.magnitude == pytest.approx(expected[1], rel=1e-12)
    assert found.mean_change == pytest.approx(expected[2], rel=1e-9, abs=1e-12 * expected[1])
    assert (destructive_interference(x), magnitude(x)) == (found.interference, found.magnitude)


@given(changes())
def test_lies_between_0_and_1(x):
    assert 0 <= destructive_interference(x) <= 1


@given(changes())
def test_the_mean_change_is_magnitude_times_what_does_not_cancel(x):
    found = decomposition(x)
    assert abs(found.mean_change) == pytest.approx(
        found.magnitude * (1 - found.interference), rel=1e-6, abs=1e-14 * found.magnitude
    )


@given(changes(), sizes)
def test_is_invariant_to_sign_and_scale(x, scale):
    interference = destructive_interference(x)
    assert destructive_interference(-x) == interference
    assert destructive_interference(x * scale) == pytest.approx(interference, abs=1e-12)
    assert magnitude(x * scale) == pytest.approx(magnitude(x) * scale, rel=1e-12)


@given(changes(), st.randoms(use_true_random=False))
def test_is_invariant_to_order(x, random):
    order = list(range(x.numel()))
    random.shuffle(order)
    assert destructive_interference(x.flatten()[order]) == pytest.approx(destructive_interference(x), abs=1e-12)


@given(changes())
def test_changes_of_one_sign_do_not_interfere_and_mirrored_ones_do_nothing_else(x):
    assert destructive_interference(x.abs()) == destructive_interference(-x.abs()) == 0
    assert destructive_interference(torch.cat([x, -x])) == pytest.approx(1, abs=1e-12)


@given(changes(), st.integers(1, 5))
def test_zeros_and_repetition_do_not_change_interference(x, n):
    padded = torch.cat([x.flatten(), torch.zeros(n, dtype=x.dtype)])
    assert destructive_interference(padded) == pytest.approx(destructive_interference(x), abs=1e-12)
    assert destructive_interference(x.repeat(n, 1, 1)) == pytest.approx(destructive_interference(x), abs=1e-12)


@given(changes(torch.float32))
def test_single_precision_is_summed_in_double(x):
    assert destructive_interference(x) == pytest.approx(naive(x)[0], abs=1e-12)


def test_many_small_changes_beside_a_large_one_are_not_lost():
    x = torch.full((2**25,), -1.0)
    x[0] = 2.0**25
    assert destructive_interference(x) == pytest.approx(1, abs=1e-6)


def test_a_gradient_is_no_obstacle():
    x = torch.tensor([1.0, -1.0, 1.0], requires_grad=True)
    assert destructive_interference(x) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "interference of 0 changes is undefined: their total size is 0"),
        ([0.0, 0.0], "interference of 2 changes is undefined: their total size is 0"),
        ([1.0, math.nan], "interference of 2 changes is undefined: their total size is nan"),
        ([1.0, -math.inf, 2.0], "interference of 3 changes is undefined: their total size is inf"),
    ],
)
def test_what_has_no_interference_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        destructive_interference(torch.tensor(change))
    with pytest.raises(ValueError, match=message):
        decomposition(torch.tensor(change))


def test_no_change_has_a_magnitude_and_no_changes_have_none():
    assert magnitude(torch.zeros(3)) == 0
    for values in ([], [math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError, match=f"magnitude of {len(values)} changes is undefined"):
            magnitude(torch.tensor(values))
