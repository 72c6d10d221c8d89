"""Loss on text a run was not trained on: as one number, or token by token."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.errors import UserError
from lmdynamics.measurements.grammaticality import log_probability
from lmdynamics.measurements.measurement import Measurement
from lmdynamics.measurements.vocabulary import check_ids, unused_rows
from lmdynamics.measurements.word_batches import longest_input
from lmdynamics.training.batches import pad
from lmdynamics.training.logits import logits_at
from lmdynamics.training.masking import Masker

ROWS = 64  # per batch; the masks depend on it
MASKING_RATE = 0.15  # at which every masked model is measured, whatever it was trained at (Ankner et al. 2023)


@dataclass(frozen=True)
class HeldOutLoss(Measurement):
    """Mean loss over the predicted tokens. One row: `loss` (nats per token), `tokens` (how many), `stderr`,
    `unused_rows`.

    A masked model predicts the tokens that `seed` selects, the same at every checkpoint, at 15 % whatever rate the
    run was trained at (Ankner et al. 2023); a causal one, every next token; a discriminator (rts) tells of every token
    whether it was replaced, at that rate. Losses of different objectives do not compare. `stderr` takes rows of text
    as the independent units (ratio estimator), and is null where one row alone has tokens to predict. `unused_rows`:
    output rows of the model that belong to no token of its tokenizer (count); they share in the probabilities, so that
    an untrained model's loss is the logarithm of all rows.
    """

    blocks: Blocks
    masking_rate: float = MASKING_RATE
    seed: int = 0

    version = 3  # 3: `unused_rows`
    unit = "nats per token"
    higher_is_better = False

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        sums, counts = [], []
        model = checkpoint.model(device=device)
        for batch, losses in predicted_losses(checkpoint, model, self.blocks, self.masking_rate, self.seed, device):
            rows = batch.selected.nonzero()[:, 0]
            sums.append(torch.zeros(len(batch.ids), dtype=torch.float64).index_add_(0, rows, losses.double()))
            counts.append(batch.selected.sum(1))
        total, tokens = torch.cat(sums).numpy(), torch.cat(counts).numpy()
        if not tokens.sum():
            raise nothing_to_predict(self.blocks)
        loss = total.sum() / tokens.sum()
        rows, stderr = len(total), None
        if (tokens > 0).sum() > 1:
            stderr = float(np.sqrt(((total - loss * tokens) ** 2).sum() * rows / (rows - 1)) / tokens.sum())
        numbers = {"loss": [loss], "tokens": [int(tokens.sum())], "stderr": [stderr]}
        numbers["unused_rows"] = [unused_rows(model, checkpoint)]
        return pl.DataFrame(numbers, schema_overrides={"stderr": pl.Float64})


@dataclass(frozen=True)
class TokenLosses(Measurement):
    """The loss of every predicted token. Rows: `row`, `position` (of the predicted token in its row), `token`, `loss`.

    `loss` is in nats; the mean of it is what `HeldOutLoss` gives, which says what is predicted. `token` is the id that
    the text has there: what a masked model is to find, what a discriminator judges, original or replaced. A causal
    model predicts a token from the position before it. The same tokens in the same order at every checkpoint.
    """

    blocks: Blocks
    masking_rate: float = MASKING_RATE
    seed: int = 0

    version = 1
    unit = "nats"
    higher_is_better = False

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        frames, first = [], 0
        model = checkpoint.model(device=device)
        for batch, losses in predicted_losses(checkpoint, model, self.blocks, self.masking_rate, self.seed, device):
            named = predicted_tokens(batch, self.blocks, first, checkpoint.objective)
            frames.append(named.with_columns(loss=losses.numpy()))
            first += len(batch.ids)
        if not sum(map(len, frames)):
            raise nothing_to_predict(self.blocks)
        return pl.concat(frames)


@dataclass(frozen=True)
class Predictions:
    """A batch with what is to be predicted: `gold` holds the right tokens of the `selected` positions, in order."""

    ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time"] | None
    selected: Bool[Tensor, "batch time"]
    gold: Int[Tensor, " selected"]

    def to(self, device: str) -> "Predictions":
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        return Predictions(self.ids.to(device), mask, self.selected.to(device), self.gold.to(device))


def predicted_losses(
    checkpoint, model: nn.Module, blocks: Blocks, masking_rate: float, seed: int, device: str
) -> Iterator[tuple[Predictions, Float[Tensor, " selected"]]]:
    """Batch by batch what is predicted, and the loss of each (nats, float32, on the CPU), in the order of `gold`."""
    check_rows(model, blocks)
    unused_rows(model, checkpoint)
    for batch in prediction_batches(checkpoint, blocks, masking_rate, seed, ROWS):
        yield batch, batch_losses(model, batch, device)


@torch.inference_mode()
def batch_losses(model: nn.Module, batch: Predictions, device: str = "cpu") -> Float[Tensor, " selected"]:
    """The loss of each predicted token of one batch (nats)."""
    batch = batch.to(device)
    logits = logits_at(model, batch.ids, batch.attention_mask, batch.selected)
    return -log_probability(logits, batch.gold).cpu()


def predicted_tokens(batch: Predictions, blocks: Blocks, first_row: int, objective: str) -> pl.DataFrame:
    """Which tokens a batch predicts, in the order of `gold`: row, position, token (Int32).

    The batch's rows are those of `blocks` from `first_row` on.
    """
    row, position = batch.selected.nonzero().numpy().T
    row, position = row + first_row, position + (objective == "clm")
    names = {"row": row, "position": position, "token": blocks.ids[blocks.offsets[row] + position]}
    return pl.DataFrame(names, schema=dict.fromkeys(names, pl.Int32))


def prediction_batches(
    checkpoint, blocks: Blocks, masking_rate: float, seed: int, rows: int, loss_share: float = 1.0
) -> Iterator[Predictions]:
    """`blocks` in order, `rows` at a time: with fixed masks for a masked model, next tokens for a causal one.

    `loss_share`: of the masked tokens, those that are predicted, as in training (`Schedule.loss_share`).
    """
    tokenizer = checkpoint.tokenizer
    masker = None if checkpoint.objective == "clm" else Masker.for_tokenizer(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(blocks), rows):
        ids, padded = pad(
            [blocks[i] for i in range(start, min(start + rows, len(blocks)))], tokenizer.pad_token_id or 0
        )
        mask = None if padded is None else ~padded
        if masker is None:
            selected = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.roll(-1, dims=1)
            selected[:, -1] = False
            yield Predictions(ids, mask, selected, ids.roll(-1, dims=1)[selected])
        elif checkpoint.objective == "rts":
            corrupted, replaced = masker.substitute(ids, masking_rate, generator, padded)
            selected = masker.ordinary(ids, padded)
            yield Predictions(corrupted, mask, selected, replaced[selected].long())
        else:
            corrupted, selected = masker(ids, masking_rate, generator, loss_share, padded)
            yield Predictions(corrupted, mask, selected, ids[selected])


def nothing_to_predict(blocks: Blocks) -> UserError:
    """What to raise where no token of any row is predicted."""
    return UserError(f"{len(blocks)} held-out rows have no token to predict; give longer text or a higher masking rate")


def check_rows(model, blocks: Blocks) -> None:
    """Raise a UserError if there are no rows, one is longer than the model allows, or a token has no embedding."""
    if not len(blocks):
        raise UserError("there are no held-out rows to measure on; give some text")
    limit, longest = longest_input(model), int(blocks.lengths.max())
    if limit is not None and longest > limit:
        raise UserError(
            f"a held-out row is {longest} tokens long, the model takes at most {limit}; cut the text shorter"
        )
    check_ids(model, int(blocks.ids.max()), "a held-out row")
