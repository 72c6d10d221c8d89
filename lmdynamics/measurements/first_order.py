"""How tokens' gradients work together and against each other along an update of the parameters: C_g, C_ug, C_uG.

Mircea et al. 2025 (arXiv 2506.05447): with p_ij = g_ij u_j, the first-order change of token i's loss that parameter j's
update causes, C_g = Σ_j|Σ_i p_ij| / Σ_jΣ_i|p_ij| (tokens agree on a parameter), C_ug = Σ_i|Σ_j p_ij| / Σ_jΣ_i|p_ij|
(parameters agree on a token) and C_uG = |ΣΣ p| / Σ_j|Σ_i p_ij|, so that 1 - D(Δ̂ℓ) = C_g C_uG / C_ug.

Σ_j p_ij comes of one forward-mode pass and Σ_i p_ij of one backward pass; only Σ_i|p_ij| = |u_j| Σ_i|g_ij| needs every
token's gradient, which is formed layer by layer (`per_example`), or estimated from a sample of tokens.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.devices import has_float64, in_float64, need_device
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import check_rows
from lmdynamics.measurements.measurement import Measurement
from lmdynamics.measurements.per_example import Tape, directional_derivative, gradient
from lmdynamics.measurements.steps import Step
from lmdynamics.measurements.token_sums import cross_check, token_sums
from lmdynamics.measurements.vocabulary import unused_rows

ROUNDING = 1e-6  # of the largest gradient: what float32 leaves of one that should be nothing
SCHEMA = {
    "level": pl.String,
    "part": pl.String,
    **dict.fromkeys(
        ("sum_abs", "C_g", "C_ug", "C_uG", "interference", "gradient_interference", "C_g_stderr", "identity_error"),
        pl.Float64,
    ),
    "sampled": pl.Int64,
}


@dataclass(frozen=True)
class Coefficients(Measurement):
    """C_g, C_ug, C_uG and D of first-order changes for an optimizer step. Rows: batch, and those of `coefficients`.

    Batches are those of `OneStep`; `rows` held-out rows carry the tokens. `share` below 1 forms the gradients of a
    random sample of so many of the predicted tokens only (at least 12). For the whole model the identity
    1 - D = C_g C_uG / C_ug holds to 1e-6, less well in a module that hardly has a gradient: some architectures take
    softmax and norms in float32 in any case.

    Raises UserError as `OneStep` and `coefficients` do.
    """

    blocks: Blocks
    batches: int = 2
    batch_size: int = 0
    rows: int = 8
    share: float = 1.0
    precision: str = "float64"
    seed: int = 0

    version = 3
    reads_training = True

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        if self.precision not in ("float32", "float64"):
            raise UserError(f"precision is {self.precision!r}; choose float32 or float64")
        need_device(device)
        if self.precision == "float64" and not has_float64(device):
            raise UserError(f"{device} has no float64; set precision to float32, or compute on the CPU")
        step = Step(checkpoint, self.batch_size, device)
        check_rows(step.model, self.blocks)
        unused_rows(step.model, checkpoint)
        frames = []
        for b, stepped, held_out in step.batches(self.blocks, self.batches, self.rows, self.seed):
            update = step.update(stepped)
            tape = Tape(step.model.to(getattr(torch, self.precision)), held_out.batch)
            found = coefficients(tape, update, self.share, self.seed)
            frames.append(found.select(pl.lit(b, pl.Int32).alias("batch"), pl.all()))
            step.model.float()
        return pl.concat(frames)


def coefficients(
    tape: Tape, update: dict[str, Tensor], share: float = 1.0, seed: int = 0, rounds_at_once: int = 0
) -> pl.DataFrame:
    """C_g, C_ug, C_uG and the interference of first-order changes: of all parameters, by layer, and by module.

    `update`: by parameter name. `share`: of all predicted tokens whose gradients are formed, a simple random sample
    drawn by `seed`, of 12 tokens at least; below 1, Σ|p_ij| is estimated by regression on the size of the derivatives
    by the last hidden states, known for every token, and C_g has the standard error of that design (Student's t with
    `sampled` - 2 degrees of freedom); gradient_interference is then null. `gradient_interference` is the mean over
    coordinates of D of the tokens' gradients. `identity_error`: |1 - D - C_g C_uG / C_ug|, D from the forward-mode
    pass, C_uG from the backward pass, the rest from the tokens' own gradients.

    Columns: level (all, layer, module), part, sum_abs (Σ|p_ij|, nats), the coefficients, and sampled (tokens whose
    gradients were formed).

    Raises
    ------
    UserError
        If the fast gradients differ from plain ones, or nothing changes at first order.
    """
    cross_check(tape, update)
    along = in_float64(directional_derivative(tape.model, update, tape.batch))
    whole = gradient(tape.losses, tape.model)
    sums, sampled = token_sums(tape, update, share, seed, rounds_at_once)
    signed = in_float64(sum(of.signed for of in sums.values()))
    reach = along.abs().max()
    if not reach > 0:
        raise UserError("the update changes no token's loss at first order; is its learning rate 0?")
    if (signed - along[sampled.to(along.device)]).abs().max() > 1e-3 * reach:
        raise UserError(
            f"fast gradients of single tokens of {type(tape.model).__name__} do not add up to what forward mode gives; "
            "this architecture is not supported"
        )
    proxy = in_float64(tape.by_token[1]).norm(dim=-1)
    largest = max(float(of.size.max()) for of in sums.values()) if share == 1 else 0.0
    rows = []
    for level, part, names in parts(tape):
        names = [name for name in names if name in sums]
        product = [in_float64(whole[name] * update[name].to(whole[name].dtype)) for name in names]
        by_parameter, net = float(sum(p.abs().sum() for p in product)), abs(float(sum(p.sum() for p in product)))
        own = in_float64(sum(sums[name].signed for name in names))
        stderr, mean_interference = 0.0, None
        if share < 1:
            total, stderr = _estimated(sum(sums[name].absolute for name in names), proxy, sampled)
            total += sum(sums[name].known for name in names)
        else:
            sizes = ((in_float64(sums[n].size), in_float64(update[n].to(sums[n].size))) for n in names)
            total = sum(float((size * u.abs()).sum()) for size, u in sizes)
            mean_interference = _mean_interference([(whole[n], sums[n].size) for n in names], largest)
        change = along if level == "all" else own  # of the whole model, forward mode knows all tokens
        size = float(change.abs().sum())
        if not (total > 0 and by_parameter > 0 and size > 0):
            continue  # nothing moves here: no coefficient is defined
        kept, error = abs(float(change.sum())) / size, None
        c_g, c_ug, c_u = by_parameter / total, size * len(along) / len(change) / total, net / by_parameter
        if share == 1:  # then C_ug has another source than D, and the identity is put to the test
            c_ug = float(own.abs().sum()) / total
            error = abs(kept - c_g * c_u / c_ug)
        error_g = c_g * stderr / total
        rows.append((level, part, total, c_g, c_ug, c_u, 1 - kept, mean_interference, error_g, error, len(sampled)))
    return pl.DataFrame(rows, SCHEMA, orient="row")


def parts(tape: Tape) -> Iterator[tuple[str, str, list[str]]]:
    """(level, part, its parameters' names): all of them; embeddings, each layer, head; every module.

    What comes before the first numbered layer counts as embeddings, what comes after the last as head; tied weights
    belong to the embeddings.
    """
    name_of = {id(p): name for name, p in tape.model.named_parameters()}
    by_layer: dict[str, list[str]] = {}
    by_module: dict[str, list[str]] = {}
    taken, part = set(), "embeddings"
    numbers = [re.search(r"\.(\d+)\.", layer.name) for layer in tape.layers]
    last = max((i for i, number in enumerate(numbers) if number), default=-1)
    for i, (layer, number) in enumerate(zip(tape.layers, numbers, strict=True)):
        if number:
            part = f"layer {number[1]}"
        elif i > last >= 0:
            part = "head"
        own = [name_of[id(p)] for p in layer.module.parameters(recurse=False) if id(p) in name_of]
        fresh = [name for name in own if name not in taken]
        taken.update(fresh)
        if fresh:
            by_layer.setdefault(part, []).extend(fresh)
            by_module[layer.name] = fresh
    yield "all", "all", [name for names in by_layer.values() for name in names]
    yield from (("layer", part, names) for part, names in by_layer.items())
    yield from (("module", module, names) for module, names in by_module.items())


def _mean_interference(pairs: list[tuple[Tensor, Tensor]], largest: float) -> float | None:
    """Mean over coordinates of 1 - |Σ_i g_ij| / Σ_i|g_ij|, where gradients are more than rounding.

    Some are exactly nothing: a bias of all keys moves no attention.
    """
    found = [in_float64((1 - whole.abs() / size)[size > ROUNDING * largest]).flatten() for whole, size in pairs]
    every = torch.cat(found)
    return float(every.mean()) if len(every) else None


def _estimated(
    values: Float[Tensor, " sampled"], proxy: Float[Tensor, " tokens"], sampled: Int[Tensor, " sampled"]
) -> tuple[float, float]:
    """The sum of a quantity over all tokens from a simple random sample, and its standard error.

    Regression estimator: least squares on a proxy that is known for every token (Cochran 1977, ch. 7). Residuals are
    weighed by what the regression makes of each sampled token (g-weights: Särndal, Swensson, Wretman 1989).
    """
    y, x = values.cpu().double().numpy(), proxy.cpu().numpy()
    design = np.stack([np.ones_like(x), x], 1)
    chosen = design[sampled.cpu().numpy()]
    fit, *_ = np.linalg.lstsq(chosen, y, rcond=None)
    left, n, of = y - chosen @ fit, len(y), len(x)
    weights = n / of * chosen @ np.linalg.pinv(chosen.T @ chosen) @ design.sum(0)
    variance = ((weights * left) ** 2).sum() / max(1, n - 2)
    return float((design @ fit).sum()), float(of * np.sqrt(variance * (1 - n / of) / n))
