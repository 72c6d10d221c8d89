"""One step of a run's own optimizer from one of its checkpoints: the changes of losses, and the tokens' interference.

The step is the recipe's: AdamW with its state at the checkpoint, its learning rate, clipping and precision, on float32
weights; losses before and after are computed in float32. (The analysis published by Mircea et al. 2025, arXiv
2506.05447, first rounds weights to bf16, does not clip, and replaces a last learning rate of 0 by the first.) Masks and
the predicted tokens follow the recipe's schedule at that step. Only the rows differ from training: they are held out.

Interference along an update u, as in that paper: with p_ij = g_ij u_j, the first-order change of token i's loss by
parameter j's update, C_g = Σ_j|Σ_i p_ij| / Σ_jΣ_i|p_ij| (tokens agree on a parameter), C_ug = Σ_i|Σ_j p_ij| /
Σ_jΣ_i|p_ij| (parameters agree on a token) and C_uG = |ΣΣ p| / Σ_j|Σ_i p_ij|, so that 1 - D(Δ̂ℓ) = C_g C_uG / C_ug.

Σ_j p_ij needs one forward-mode pass and Σ_i p_ij one backward pass; only Σ_i|p_ij| = |u_j| Σ_i|g_ij| needs every
token's gradient, formed layer by layer (`per_token_gradients`); or it is estimated from a sample of tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.devices import has_float64, in_float64, need_device
from lmdynamics.errors import UserError
from lmdynamics.measurements.gradients import cross_check, token_sums
from lmdynamics.measurements.inputs import unused_rows
from lmdynamics.measurements.losses import MASKING_RATE, Predictions, check_rows, predicted_tokens, prediction_batches
from lmdynamics.measurements.per_token_gradients import Tape, directional_derivative, gradient, parts, token_losses
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.batches import mix
from lmdynamics.training.loop import build_optimizer
from lmdynamics.training.state import load_state


@dataclass(frozen=True)
class OneStep(Measurement):
    """Change of each token's loss by one optimizer step. One row per batch, split, direction and predicted token.

    Batch b steps on rows `b * batch_size` and following of `blocks`; of the rows after all batches, `held_out` are held
    out. `batch_size` 0 is the recipe's. `direction`: `update`, the optimizer's step, or as a control `random`, a
    Gaussian step of the same norm in every parameter tensor. `loss`: before the step; `change`: measured after it
    (nats; negative if the loss fell); `first_order`: the change predicted from the gradients at the checkpoint.

    Raises UserError if the run has no recipe or no optimizer state at the step, the learning rate is 0, the syntactic
    penalty is on, or there are too few rows.
    """

    blocks: TokenRows
    batches: int = 4
    batch_size: int = 0
    held_out: int = 32
    seed: int = 0

    version = 2
    reads_training = True

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        step = Step(checkpoint, self.batch_size, device)
        frames = []
        for b, stepped, held_out in step.batches(self.blocks, self.batches, self.held_out, self.seed):
            update = step.update(stepped)
            directions = {"update": update, "random": random_direction(update, mix(self.seed, checkpoint.step, b))}
            texts = {"stepped": stepped, "held out": held_out}
            before = {split: step.losses(text) for split, text in texts.items()}
            for direction, moved in directions.items():
                predicted = {
                    split: directional_derivative(step.model, moved, text.batch) for split, text in texts.items()
                }
                with step.applied(moved):
                    after = {split: step.losses(text) for split, text in texts.items()}
                for split, text in texts.items():
                    numbers = {
                        "loss": before[split], "change": after[split] - before[split], "first_order": predicted[split]
                    }  # fmt: skip
                    frames.append(
                        text.tokens.select(
                            pl.lit(b, pl.Int32).alias("batch"),
                            pl.lit(split).alias("split"),
                            pl.lit(direction).alias("direction"),
                            pl.all(),
                            *(pl.Series(name, x.cpu().numpy(), pl.Float32) for name, x in numbers.items()),
                        )
                    )
        return pl.concat(frames)


@dataclass(frozen=True, eq=False)
class Text:
    """Rows as one batch on the device, and the predicted tokens as a frame."""

    batch: Predictions
    tokens: pl.DataFrame  # row, position, token, in the order of `batch.gold`


class Step:
    """A checkpoint with its optimizer, which can take a step and undo it.

    `model` has eager attention, which forward mode needs, and float32 weights.
    """

    def __init__(self, checkpoint, batch_size: int = 0, device: str = "cpu"):
        recipe = checkpoint.recipe
        if recipe is None:
            raise UserError(
                f"{checkpoint.run_name} was trained elsewhere, so its optimizer is unknown; measure changes between "
                "checkpoints instead"
            )
        if not checkpoint.has_optimizer_state:
            checkpoint.optimizer_state()  # raises with advice
        self.lr = recipe.training.lr_at(checkpoint.step)
        if not self.lr > 0:
            raise UserError(
                f"the learning rate of {checkpoint.run_name} is 0 at step {checkpoint.step}; use an earlier checkpoint"
            )
        if recipe.regularizer.strength_at(checkpoint.step):
            raise UserError(
                f"{checkpoint.run_name} trains with a syntactic penalty at step {checkpoint.step}; a step of its "
                "optimizer does not minimise the loss alone"
            )
        self.checkpoint, self.recipe, self.device = checkpoint, recipe, device
        self.batch_size = batch_size or recipe.training.batch_size
        self.model = checkpoint.model("eager", device).float()
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}

    def batches(self, blocks: TokenRows, batches: int, held_out: int, seed: int) -> Iterator[tuple[int, Text, Text]]:
        """Each batch's number, the rows to step on, and the held-out rows, which are the same for all batches."""
        check_rows(self.model, blocks)
        unused_rows(self.model, self.checkpoint)
        size, available = self.batch_size, len(blocks)
        if available < batches * size + min(1, held_out):
            raise UserError(
                f"{batches} batches of {size} rows and some held out need more than {available} rows; give more text, "
                "fewer batches or a smaller batch_size"
            )
        x = self.checkpoint.step / self.recipe.training.steps
        rate, loss_share = self.recipe.schedule(x), self.recipe.schedule.loss_share(x)
        first = batches * size
        held_out_text = self.text(blocks, first, min(held_out, available - first), MASKING_RATE, seed)
        for b in range(batches):
            yield b, self.text(blocks, b * size, size, rate, mix(seed, b), loss_share), held_out_text

    def text(self, blocks: TokenRows, first: int, n: int, rate: float, seed: int, loss_share: float = 1.0) -> Text:
        """`n` rows from `first` on as one batch on the device."""
        chosen = blocks.take(range(first, first + n))
        (batch,) = prediction_batches(self.checkpoint, chosen, rate, seed, n, loss_share)
        return Text(batch.to(self.device), predicted_tokens(batch, blocks, first, self.checkpoint.objective))

    def losses(self, text: Text) -> Float[Tensor, " tokens"]:
        with torch.no_grad():
            return token_losses(self.model, text.batch)

    def update(self, text: Text) -> dict[str, Tensor]:
        """The optimizer's change of each parameter, in float32; the model is restored.

        Dropout is on, as in training, with a seed that is a function of the step.
        """
        t = self.recipe.training
        optimizer = build_optimizer(self.recipe, self.model)
        load_state(self.checkpoint.folder, self.model, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.lr
        self.model.train()
        torch.manual_seed(mix(self.recipe.seed, self.checkpoint.step))
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=t.precision == "bf16"):
            losses = token_losses(self.model, text.batch)
            loss = losses.sum() / max(1, len(losses))  # as in training, also if nothing was masked
        loss.backward()
        if t.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), t.clip)
        optimizer.step()
        optimizer.zero_grad()
        self.model.eval()
        update = {name: p.detach() - self.start[name] for name, p in self.parameters.items()}
        self._set(self.start)
        return update

    @contextmanager
    def applied(self, update: dict[str, Tensor]):
        """The model after a step, inside the block only."""
        self._set({name: value + update[name] for name, value in self.start.items()})
        try:
            yield self.model
        finally:
            self._set(self.start)

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def random_direction(update: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A step in a random direction, as long as `update` in every parameter tensor."""
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, u in update.items():
        noise = torch.randn(u.shape, generator=generator).to(u)
        direction[name] = noise * (u.norm() / noise.norm())
    return direction


ROUNDING = 1e-6  # of the largest gradient: smaller ones may be zeros with float32 rounding
COEFFICIENTS = {
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

    Batches are those of `OneStep`; the tokens are those of `rows` held-out rows. With `share` below 1, gradients are
    formed for a random sample of this share of the predicted tokens only (at least 12). For the whole model the
    identity 1 - D = C_g C_uG / C_ug holds to 1e-6; the error is larger in modules with very small gradients, because
    some architectures always compute softmax and norms in float32.

    Raises UserError as `OneStep` and `coefficients` do.
    """

    blocks: TokenRows
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
        frames = []
        for b, stepped, held_out in step.batches(self.blocks, self.batches, self.rows, self.seed):
            update = step.update(stepped)
            tape = Tape(step.model.to(getattr(torch, self.precision)), held_out.batch)
            frame = coefficients(tape, update, self.share, self.seed)
            frames.append(frame.select(pl.lit(b, pl.Int32).alias("batch"), pl.all()))
            step.model.float()
        return pl.concat(frames)


def coefficients(tape: Tape, update: dict[str, Tensor], share: float = 1.0, seed: int = 0) -> pl.DataFrame:
    """C_g, C_ug, C_uG and the interference of first-order changes: of all parameters, by layer, and by module.

    `update`: by parameter name. `share` of the predicted tokens whose gradients are formed: a simple random sample
    drawn by `seed`, at least 12 tokens. Below 1, Σ|p_ij| is estimated by regression on the norms of the derivatives by
    the last hidden states, known for every token, and C_g has the standard error of that design (Student's t with
    `sampled` - 2 degrees of freedom); gradient_interference is then null. `gradient_interference` is the mean over
    coordinates of D of the tokens' gradients. `identity_error`: |1 - D - C_g C_uG / C_ug|, D from the forward-mode
    pass, C_uG from the backward pass, the others from the tokens' gradients.

    Columns: level (all, layer, module), part, sum_abs (Σ|p_ij|, nats), the coefficients, and sampled (tokens whose
    gradients were formed).

    Raises UserError if the fast gradients differ from plain ones, or nothing changes at first order.
    """
    cross_check(tape, update)
    forward = in_float64(directional_derivative(tape.model, update, tape.batch))
    gradients = gradient(tape.losses, tape.model)
    sums, sampled = token_sums(tape, update, share, seed)
    signed = in_float64(sum(s.signed for s in sums.values()))
    scale = forward.abs().max()
    if not scale > 0:
        raise UserError("the update changes no token's loss at first order; is its learning rate 0?")
    if (signed - forward[sampled.to(forward.device)]).abs().max() > 1e-3 * scale:
        raise UserError(
            f"fast gradients of single tokens of {type(tape.model).__name__} do not add up to those of forward mode; "
            "this architecture is not supported"
        )
    proxy = in_float64(tape.token_derivatives[1]).norm(dim=-1)
    largest = max(float(s.size.max()) for s in sums.values()) if share == 1 else 0.0
    rows = []
    for level, part, names in parts(tape):
        names = [name for name in names if name in sums]
        product = [in_float64(gradients[name] * update[name].to(gradients[name].dtype)) for name in names]
        by_parameter, net = float(sum(p.abs().sum() for p in product)), abs(float(sum(p.sum() for p in product)))
        by_token = in_float64(sum(sums[name].signed for name in names))
        stderr, mean_interference = 0.0, None
        if share < 1:
            total, stderr = _regression_estimate(sum(sums[name].absolute for name in names), proxy, sampled)
            total += sum(sums[name].head for name in names)
        else:
            sizes = ((in_float64(sums[n].size), in_float64(update[n].to(sums[n].size))) for n in names)
            total = sum(float((size * u.abs()).sum()) for size, u in sizes)
            mean_interference = _mean_interference([(gradients[n], sums[n].size) for n in names], largest)
        changes = forward if level == "all" else by_token  # for the whole model, forward mode has all tokens
        size = float(changes.abs().sum())
        if not (total > 0 and by_parameter > 0 and size > 0):
            continue  # no change: the coefficients are not defined
        ratio, error = abs(float(changes.sum())) / size, None
        c_g, c_ug, c_u = by_parameter / total, size * len(forward) / len(changes) / total, net / by_parameter
        if share == 1:  # then C_ug has another source than D, which tests the identity
            c_ug = float(by_token.abs().sum()) / total
            error = abs(ratio - c_g * c_u / c_ug)
        error_g = c_g * stderr / total
        rows.append((level, part, total, c_g, c_ug, c_u, 1 - ratio, mean_interference, error_g, error, len(sampled)))
    return pl.DataFrame(rows, COEFFICIENTS, orient="row")


def _mean_interference(pairs: list[tuple[Tensor, Tensor]], largest: float) -> float | None:
    """Mean over coordinates of 1 - |Σ_i g_ij| / Σ_i|g_ij|, where gradients are larger than rounding.

    Some are exactly zero: a bias of all keys does not change attention.
    """
    shares = [in_float64((1 - total.abs() / size)[size > ROUNDING * largest]).flatten() for total, size in pairs]
    all_shares = torch.cat(shares)
    return float(all_shares.mean()) if len(all_shares) else None


def _regression_estimate(
    values: Float[Tensor, " sampled"], proxy: Float[Tensor, " tokens"], sampled: Int[Tensor, " sampled"]
) -> tuple[float, float]:
    """The sum of a quantity over all tokens from a simple random sample, and its standard error.

    Regression estimator: least squares on a proxy that is known for every token (Cochran 1977, ch. 7). Residuals are
    weighted by the g-weights of the regression (Särndal, Swensson, Wretman 1989).
    """
    y, x = values.cpu().double().numpy(), proxy.cpu().numpy()
    design = np.stack([np.ones_like(x), x], 1)
    sample = design[sampled.cpu().numpy()]
    fit, *_ = np.linalg.lstsq(sample, y, rcond=None)
    residuals, n, n_tokens = y - sample @ fit, len(y), len(x)
    weights = n / n_tokens * sample @ np.linalg.pinv(sample.T @ sample) @ design.sum(0)
    variance = ((weights * residuals) ** 2).sum() / max(1, n - 2)
    return float((design @ fit).sum()), float(n_tokens * np.sqrt(variance * (1 - n / n_tokens) / n))
