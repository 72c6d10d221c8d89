"""Which tokens of a batch are masked or replaced, and schedules of the masking rate over training.

Selection is i.i.d. Bernoulli; of the selected tokens 80 % become [MASK], 10 % a random token, 10 % do not change
(Devlin et al. 2019). Special tokens and padding are never selected. Schedules of the rate: Ankner et al. 2023 (arXiv
2305.15096), over x = t/T from 0 to 1, where T is the length of training, independent of the learning rate.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lmdynamics.errors import UserError, did_you_mean, shortened


@dataclass(frozen=True)
class Masker:
    """Corrupts batches for one tokenizer. Pure: the same generator state gives the same masks.

    `padded`: mask of a batch's padding. A tokenizer without a pad token pads with an ordinary one, so the ids do not
    show it.
    """

    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]

    @classmethod
    def for_tokenizer(cls, tokenizer) -> "Masker":
        if tokenizer.mask_token_id is None:
            raise UserError("the tokenizer has no mask token; tokenizer.add_special_tokens({'mask_token': '[MASK]'})")
        return cls(tokenizer.mask_token_id, len(tokenizer), tuple(sorted(set(tokenizer.all_special_ids))))

    def __call__(
        self,
        ids: Int[Tensor, "batch time"],
        rate: float,
        generator: torch.Generator,
        loss_share: float = 1.0,
        padded: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        """Corrupted ids, and the positions that the loss is computed at: all selected ones, or a random part."""
        draw = torch.rand(ids.shape, generator=generator)  # one draw decides both selection and replacement
        selected = (draw < rate) & self.ordinary(ids, padded)
        corrupted = ids.masked_fill(selected & (draw < 0.8 * rate), self.mask_id)
        self._replace(corrupted, selected & (draw >= 0.8 * rate) & (draw < 0.9 * rate), generator)
        if loss_share < 1:
            selected &= torch.rand(ids.shape, generator=generator) < loss_share
        return corrupted, selected

    def substitute(
        self,
        ids: Int[Tensor, "batch time"],
        rate: float,
        generator: torch.Generator,
        padded: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        """Random-token substitution: ids with a share `rate` redrawn, and the mask of those that changed."""
        replaced = ids.clone()
        drawn = torch.rand(ids.shape, generator=generator) < rate
        self._replace(replaced, drawn & self.ordinary(ids, padded), generator)
        return replaced, replaced != ids

    def ordinary(
        self, ids: Int[Tensor, "batch time"], padded: Bool[Tensor, "batch time"] | None = None
    ) -> Bool[Tensor, "batch time"]:
        """Mask of the tokens that are neither special ones nor padding."""
        mask = torch.ones_like(ids, dtype=torch.bool) if padded is None else ~padded
        for special in self.special_ids:
            mask &= ids != special
        return mask

    def _replace(self, ids: Tensor, positions: Tensor, generator: torch.Generator) -> None:
        ids[positions] = torch.randint(self.vocab_size, (int(positions.sum()),), generator=generator, dtype=ids.dtype)


SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda x, first, last: first,
    "linear": lambda x, first, last: first + x * (last - first),
    "cosine": lambda x, first, last: first + (last - first) / 2 * (1 + math.cos((1 - x) * math.pi)),
    "step": lambda x, first, last: first if x < 0.5 else last,
    "subset-linear": lambda x, first, last: first + x * (last - first),
}
SUBSET = 0.15  # share of positions that the loss is computed at under `subset-linear`


@dataclass(frozen=True)
class Schedule:
    """The masking rate over training, called on x = t/T. Written `linear-0.30-0.15`, `constant-0.15`, …

    `constant`; `linear`, `cosine` and `step` from the first rate to the last, increasing or decreasing;
    `subset-linear`: corrupted like `linear`, but the loss is computed at a random part of the selected positions, 15 %
    of all; `points`: any number of rates, equally spaced in x, with linear interpolation.
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
            return f"it computes the loss at {SUBSET:.0%} of the positions, so neither rate can be lower"
        return None

    def __call__(self, x: float) -> float:
        if self.shape == "points":
            last = len(self.rates) - 1
            nearest, below = round(x * last), min(int(x * last), last - 1)
            if nearest / last == x:
                return self.rates[nearest]  # exact at every x = t/last, where x * last is rounded
            weight = x * last - below
            return (1 - weight) * self.rates[below] + weight * self.rates[below + 1]
        return SHAPES[self.shape](x, self.rates[0], self.rates[-1])

    def loss_share(self, x: float) -> float:
        """Share of the selected positions that the loss is computed at: 1 except for `subset-linear`."""
        return SUBSET / self(x) if self.shape == "subset-linear" else 1.0

    def __str__(self) -> str:
        return "-".join([self.shape, *(np.format_float_positional(rate, trim="-") for rate in self.rates)])


def parse_schedule(text: str) -> Schedule:
    """`linear-0.30-0.15` as a Schedule.

    Raises UserError if the format is wrong, a rate is not between 0 and 1, or the rates do not fit the shape.
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
    """Any function of x = t/T as a schedule that a recipe can contain: its value at each of `steps` + 1 steps.

    Raises UserError if a value is not a rate.
    """
    values = [rate(step / steps) for step in range(steps + 1)]
    try:
        return Schedule("points", tuple(map(float, values)))
    except (TypeError, ValueError):
        raise UserError(f"masking: the function must return a rate at every x from 0 to 1; got {values[0]!r}") from None
