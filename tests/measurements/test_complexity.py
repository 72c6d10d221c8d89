"""TwoNN on manifolds of known dimension; `support.py` holds the rest against plain loops, on every family."""

import numpy as np
import polars as pl
import pytest

from lmdynamics.measurements.complexity import FisherTrace, IntrinsicDimension, two_nn
from tests.conftest import refuses
from tests.measurements.conftest import StandIn
from tests.measurements.test_losses import rows


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_directions_uniform_on_a_sphere(dimension):
    """Cosine distance is a squared length: half the sphere's dimension comes out, whatever space it lies in."""
    random = np.random.default_rng(0)
    points = random.normal(size=(2000, dimension + 1)) @ np.linalg.qr(random.normal(size=(20, 20)))[0][: dimension + 1]
    scaled = points * random.uniform(0.1, 10, size=(2000, 1))  # length plays no part
    estimate, used = two_nn(scaled)
    assert used == 1800
    assert estimate == pytest.approx(dimension / 2, rel=0.08)


def test_equals_a_loop_where_directions_lie_on_one_side():
    points = np.random.default_rng(2).uniform(0.2, 1, size=(60, 3))
    directions = [point / np.sqrt((point**2).sum()) for point in points]
    ratios = []
    for i, direction in enumerate(directions):
        nearest = sorted(1 - float(direction @ other) for j, other in enumerate(directions) if j != i)
        ratios.append(nearest[1] / nearest[0])
    smallest = sorted(ratios)[:54]
    x, y = np.log(smallest), [-np.log(1 - (i + 1) / 60) for i in range(54)]
    estimate, used = two_nn(points)
    assert used == 54
    assert estimate == pytest.approx(sum(x * y) / sum(x * x))


def test_repeated_directions_count_once():
    points = np.random.default_rng(1).normal(size=(200, 5))
    assert two_nn(np.concatenate([points, points])) == two_nn(points)


@pytest.mark.parametrize("points", [np.ones((50, 4)), np.eye(2), np.eye(30)])
def test_no_spread_no_dimension(points):
    assert two_nn(points.astype(float))[0] is None


def test_dimension_from_rows():
    frame = IntrinsicDimension(rows([8, 12, 20] * 30))(StandIn())
    assert frame["points"].item() == 81
    assert dict(frame.schema) == {"dimension": pl.Float64, "points": pl.Int64}


def test_fisher_trace_of_one_row_is_refused():
    refuses("1 of 1 rows have a token to predict", lambda: FisherTrace(rows([25]))(StandIn()))
