"""One step of a run's own optimizer from one of its checkpoints: what it changes, and how tokens' gradients add up.

The step is the recipe's: AdamW with its state at the checkpoint, its learning rate, clipping and precision, on float32
weights; losses before and after are taken in float32. (The analysis published by Mircea et al. 2025, arXiv 2506.05447,
rounds weights to bf16 first, does not clip, and where the last learning rate is 0 takes the first.) Masks and the
tokens whose loss is taken are drawn as the recipe's schedule has it at that step. Only the rows stepped on are others:
held-out ones, which no run has seen.

Interference along an update u is theirs: with p_ij = g_ij u_j, the first-order change of token i's loss that parameter
j's update causes, C_g = Σ_j|Σ_i p_ij| / Σ_jΣ_i|p_ij| (tokens agree on a parameter), C_ug = Σ_i|Σ_j p_ij| /
Σ_jΣ_i|p_ij| (parameters agree on a token) and C_uG = |ΣΣ p| / Σ_j|Σ_i p_ij|, so that 1 - D(Δ̂ℓ) = C_g C_uG / C_ug.

Σ_j p_ij comes of one forward-mode pass and Σ_i p_ij of one backward pass; only Σ_i|p_ij| = |u_j| Σ_i|g_ij| needs every
token's gradient, which is formed layer by layer (`per_token_gradients`), or estimated from a sample of tokens.
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

    Batch b steps on rows `b * batch_size` and following of `blocks`; what comes after all batches is held out,
    `held_out` rows of it. `batch_size` 0 is the recipe's own. `direction`: `update`, what the optimizer does, and as a
    control `random`, a Gaussian step of the same norm in every parameter tensor. `loss`: before the step; `change`:
    measured after it (nats; below 0 the token gained); `first_order`: what the gradients at the checkpoint foretell.

    Raises UserError where the run has no recipe or no optimizer state at the step, the learning rate is 0, a syntactic
    penalty is on, or the rows are too few.
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
                with step.taken(moved):
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
    """Rows as one batch on the device, and which tokens of the rows they come from are predicted."""

    batch: Predictions
    tokens: pl.DataFrame  # row, position, token, in the order of `batch.gold`


class Step:
    """A checkpoint with its optimizer, ready to step and to step back.

    `model` reads with eager attention, which forward mode needs; its weights are float32.
    """

    def __init__(self, checkpoint, batch_size: int = 0, device: str = "cpu"):
        recipe = checkpoint.recipe
        if recipe is None:
            raise UserError(
                f"{checkpoint.run_name} was trained elsewhere, so its optimizer is not known; measure changes between "
                "checkpoints instead"
            )
        if not checkpoint.has_optimizer_state:
            checkpoint.optimizer_state()  # says what to do
        self.lr = recipe.training.lr_at(checkpoint.step)
        if not self.lr > 0:
            raise UserError(
                f"the learning rate of {checkpoint.run_name} is 0 at step {checkpoint.step}; take an earlier checkpoint"
            )
        if recipe.regularizer.strength_at(checkpoint.step):
            raise UserError(
                f"{checkpoint.run_name} trains with a syntactic penalty at step {checkpoint.step}; a step of its "
                "optimizer is not one on the loss alone"
            )
        self.checkpoint, self.recipe, self.device = checkpoint, recipe, device
        self.batch_size = batch_size or recipe.training.batch_size
        self.model = checkpoint.model("eager", device).float()
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}

    def batches(self, blocks: TokenRows, batches: int, held_out: int, seed: int) -> Iterator[tuple[int, Text, Text]]:
        """Each batch's number, the rows to step on, and the held-out rows, the same for all."""
        check_rows(self.model, blocks)
        unused_rows(self.model, self.checkpoint)
        size, there = self.batch_size, len(blocks)
        if there < batches * size + min(1, held_out):
            raise UserError(
                f"{batches} batches of {size} rows and some held out need more than {there} rows; give more text, "
                "fewer batches or a smaller batch_size"
            )
        x = self.checkpoint.step / self.recipe.training.steps
        rate, loss_share = self.recipe.schedule(x), self.recipe.schedule.loss_share(x)
        after = batches * size
        kept = self.text(blocks, after, min(held_out, there - after), MASKING_RATE, seed)
        for b in range(batches):
            yield b, self.text(blocks, b * size, size, rate, mix(seed, b), loss_share), kept

    def text(self, blocks: TokenRows, first: int, n: int, rate: float, seed: int, loss_share: float = 1.0) -> Text:
        """`n` rows from `first` on as one batch on the device."""
        chosen = blocks.take(range(first, first + n))
        (batch,) = prediction_batches(self.checkpoint, chosen, rate, seed, n, loss_share)
        return Text(batch.to(self.device), predicted_tokens(batch, blocks, first, self.checkpoint.objective))

    def losses(self, text: Text) -> Float[Tensor, " tokens"]:
        with torch.no_grad():
            return token_losses(self.model, text.batch)

    def update(self, text: Text) -> dict[str, Tensor]:
        """What the optimizer adds to each parameter, in float32; the model is left as it was.

        Dropout is on, as in training, its seed a function of the step.
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
            loss = losses.sum() / max(1, len(losses))  # as training does, also where nothing was masked
        loss.backward()
        if t.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), t.clip)
        optimizer.step()
        optimizer.zero_grad()
        self.model.eval()
        update = {name: p.detach() - self.start[name] for name, p in self.parameters.items()}
        self._put(self.start)
        return update

    @contextmanager
    def taken(self, update: dict[str, Tensor]):
        """The model after a step; inside the block only."""
        self._put({name: value + update[name] for name, value in self.start.items()})
        try:
            yield self.model
        finally:
            self._put(self.start)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def random_direction(update: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A step in a random direction, as long as `update` in every parameter tensor."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, u in update.items():
        noise = torch.randn(u.shape, generator=generator).to(u)
        found[name] = noise * (u.norm() / noise.norm())
    return found


ROUNDING = 1e-6  # of the largest gradient: what float32 leaves of one that should be nothing
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

    Batches are those of `OneStep`; `rows` held-out rows carry the tokens. `share` below 1 forms the gradients of a
    random sample of so many of the predicted tokens only (at least 12). For the whole model the identity
    1 - D = C_g C_uG / C_ug holds to 1e-6, less well in a module that hardly has a gradient: some architectures take
    softmax and norms in float32 in any case.

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
            found = coefficients(tape, update, self.share, self.seed)
            frames.append(found.select(pl.lit(b, pl.Int32).alias("batch"), pl.all()))
            step.model.float()
        return pl.concat(frames)


def coefficients(tape: Tape, update: dict[str, Tensor], share: float = 1.0, seed: int = 0) -> pl.DataFrame:
    """C_g, C_ug, C_uG and the interference of first-order changes: of all parameters, by layer, and by module.

    `update`: by parameter name. `share`: of all predicted tokens whose gradients are formed, a simple random sample
    drawn by `seed`, of 12 tokens at least; below 1, Σ|p_ij| is estimated by regression on the size of the derivatives
    by the last hidden states, known for every token, and C_g has the standard error of that design (Student's t with
    `sampled` - 2 degrees of freedom); gradient_interference is then null. `gradient_interference` is the mean over
    coordinates of D of the tokens' gradients. `identity_error`: |1 - D - C_g C_uG / C_ug|, D from the forward-mode
    pass, C_uG from the backward pass, the rest from the tokens' own gradients.

    Columns: level (all, layer, module), part, sum_abs (Σ|p_ij|, nats), the coefficients, and sampled (tokens whose
    gradients were formed).

    Raises UserError if the fast gradients differ from plain ones, or nothing changes at first order.
    """
    cross_check(tape, update)
    along = in_float64(directional_derivative(tape.model, update, tape.batch))
    whole = gradient(tape.losses, tape.model)
    sums, sampled = token_sums(tape, update, share, seed)
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
    return pl.DataFrame(rows, COEFFICIENTS, orient="row")


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
