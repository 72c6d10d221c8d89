"""One step of a run's own optimizer from one of its checkpoints: what it changes, and whose loss it moves which way.

The step is the recipe's: AdamW with its state at the checkpoint, its learning rate, clipping and precision, on float32
weights; losses before and after are taken in float32. (The analysis published by Mircea et al. 2025, arXiv 2506.05447,
rounds weights to bf16 first, does not clip, and where the last learning rate is 0 takes the first.) Masks and the
tokens whose loss is taken are drawn as the recipe's schedule has it at that step. Only the rows stepped on are others:
held-out ones, which no run has seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import MASKING_RATE, Predictions, check_rows, predicted_tokens, prediction_batches
from lmdynamics.measurements.measurement import Measurement
from lmdynamics.measurements.per_example import directional_derivative, token_losses
from lmdynamics.measurements.vocabulary import unused_rows
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

    blocks: Blocks
    batches: int = 4
    batch_size: int = 0
    held_out: int = 32
    seed: int = 0

    version = 2
    reads_training = True

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        step = Step(checkpoint, self.batch_size, device)
        check_rows(step.model, self.blocks)
        unused_rows(step.model, checkpoint)
        frames = []
        for b, stepped, held_out in step.batches(self.blocks, self.batches, self.held_out, self.seed):
            update = step.update(stepped)
            directions = {"update": update, "random": random_direction(update, mix(self.seed, checkpoint.step, b))}
            texts = {"stepped": stepped, "held out": held_out}
            before = {split: step.losses(text) for split, text in texts.items()}
            for direction, moved in directions.items():
                predicted = {split: step.along(moved, text) for split, text in texts.items()}
                with step.taken(moved):
                    after = {split: step.losses(text) for split, text in texts.items()}
                for split, text in texts.items():
                    place = {"batch": b, "split": split, "direction": direction}
                    numbers = {
                        "loss": before[split], "change": after[split] - before[split], "first_order": predicted[split]
                    }  # fmt: skip
                    frames.append(
                        text.tokens.select(
                            *(pl.lit(value, SCHEMA[name]).alias(name) for name, value in place.items()),
                            pl.all(),
                            *(pl.Series(name, x.cpu().numpy(), SCHEMA[name]) for name, x in numbers.items()),
                        )
                    )
        return pl.concat(frames)


SCHEMA = {
    "batch": pl.Int32, "split": pl.String, "direction": pl.String,
    "loss": pl.Float32, "change": pl.Float32, "first_order": pl.Float32,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Text:
    """Rows as one batch on the device, and which tokens of the Blocks they come from are predicted."""

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

    def batches(self, blocks: Blocks, batches: int, held_out: int, seed: int) -> Iterator[tuple[int, Text, Text]]:
        """Each batch's number, the rows to step on, and the held-out rows, the same for all."""
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

    def text(self, blocks: Blocks, first: int, n: int, rate: float, seed: int, loss_share: float = 1.0) -> Text:
        """`n` rows from `first` on as one batch on the device."""
        chosen = blocks.take(range(first, first + n))
        (batch,) = prediction_batches(self.checkpoint, chosen, rate, seed, n, loss_share)
        return Text(batch.to(self.device), predicted_tokens(batch, blocks, first, self.checkpoint.objective))

    def losses(self, text: Text) -> Float[Tensor, " tokens"]:
        with torch.no_grad():
            return token_losses(self.model, text.batch)

    def along(self, direction: dict[str, Tensor], text: Text) -> Float[Tensor, " tokens"]:
        return directional_derivative(self.model, direction, text.batch)

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
