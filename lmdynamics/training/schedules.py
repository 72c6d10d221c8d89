"""Masking-rate schedules: the share of tokens to predict as training goes on.

Ankner et al. 2023 (arXiv 2305.15096), over x = t/T from 0 to 1, where T is the whole of training, whatever the learning
rate does.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmdynamics.errors import UserError, did_you_mean, shortened

SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda x, first, last: first,
    "linear": lambda x, first, last: first + x * (last - first),
    "cosine": lambda x, first, last: first + (last - first) / 2 * (1 + math.cos((1 - x) * math.pi)),
    "step": lambda x, first, last: first if x < 0.5 else last,
    "subset-linear": lambda x, first, last: first + x * (last - first),
}
SUBSET = 0.15  # share of positions whose loss is taken under `subset-linear`


@dataclass(frozen=True)
class Schedule:
    """The masking rate over training, called on x = t/T. Written `linear-0.30-0.15`, `constant-0.15`, …

    `constant`; `linear`, `cosine` and `step` from the first rate to the last, upwards or downwards;
    `subset-linear`: corrupted like `linear`, but the loss is taken on a random part of the selected positions worth
    15 % of all; `points`: any number of rates, equally spaced in x, straight lines between them.
    """

    shape: str
    rates: tuple[float, ...]

    def __post_init__(self):
        if fault := self._fault():
            raise UserError(f"masking {shortened(str(self))}: {fault}")

    def _fault(self) -> str | None:
        if self.shape not in {*SHAPES, "points"}:
            return f"there is no schedule {self.shape!r}{did_you_mean(self.shape, [*SHAPES, 'points'])}"
        for rate in self.rates:
            if not 0 < rate < 1:
                percent = f"; {rate:g} per cent is {rate / 100:g}" if 1 <= rate < 100 else ""
                return f"a rate must lie between 0 and 1, {rate:g} does not{percent}"
        if self.shape == "points":
            return None if len(self.rates) > 1 else "give at least two points"
        if self.shape == "constant":
            return None if len(self.rates) == 1 else "a constant schedule has one rate; write linear, cosine or step"
        if len(self.rates) != 2:
            return f"write {self.shape}-FIRST-LAST, for example {self.shape}-0.30-0.15"
        if self.rates[0] == self.rates[1]:
            return f"it starts and ends at {self.rates[0]:g}, which is constant-{self.rates[0]:g}"
        if self.shape == "subset-linear" and min(self.rates) < SUBSET:
            return f"it takes the loss on {SUBSET:.0%} of the positions, so neither rate can be lower"
        return None

    def __call__(self, x: float) -> float:
        if self.shape == "points":
            last = len(self.rates) - 1
            near, below = round(x * last), min(int(x * last), last - 1)
            if near / last == x:
                return self.rates[near]  # exact at every x = t/last, which x * last need not be
            part = x * last - below
            return (1 - part) * self.rates[below] + part * self.rates[below + 1]
        return SHAPES[self.shape](x, self.rates[0], self.rates[-1])

    def loss_share(self, x: float) -> float:
        """Which part of the selected positions the loss is taken on: 1 but for `subset-linear`."""
        return SUBSET / self(x) if self.shape == "subset-linear" else 1.0

    def __str__(self) -> str:
        return "-".join([self.shape, *(np.format_float_positional(rate, trim="-") for rate in self.rates)])


def parse_schedule(text: str) -> Schedule:
    """`linear-0.30-0.15` as a Schedule.

    Raises
    ------
    UserError
        If it is not written like that, a rate is no share, or first and last rate make no such schedule.
    """
    match = re.fullmatch(r"([a-z]+(?:-[a-z]+)*)((?:-[0-9.]+)+)", text.strip())
    try:
        shape, rates = match[1], tuple(float(rate) for rate in match[2][1:].split("-"))
    except (TypeError, ValueError):
        raise UserError(
            f"masking {shortened(text)!r} is not a schedule; write SHAPE-FIRST-LAST, for example constant-0.15 or "
            f"linear-0.30-0.15 (shapes: {', '.join(SHAPES)}, points)"
        ) from None
    return Schedule(shape, rates)


def tabulate(rate: Callable[[float], float], steps: int) -> Schedule:
    """Any function of x = t/T as a schedule: its value at each of `steps` + 1 steps, so that a recipe can hold it.

    Raises
    ------
    UserError
        If a value is no rate.
    """
    values = [rate(step / steps) for step in range(steps + 1)]
    try:
        return Schedule("points", tuple(map(float, values)))
    except (TypeError, ValueError):
        raise UserError(f"masking: the function must give a rate at every x from 0 to 1; got {values[0]!r}") from None
