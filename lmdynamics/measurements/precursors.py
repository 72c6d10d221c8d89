"""What may precede a sudden drop of the loss: repeated predictions, parallel hidden states, attention that moves.

Gopalani and Hu 2025 (arXiv 2506.13688) report all three on the plateau before the drop. Each measurement has a control.
Its results have a row per group of rows of text: a bootstrap can resample groups, and results stay small.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int
from torch.nn import functional as F

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.devices import in_float64
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import unused_rows
from lmdynamics.measurements.losses import (
    BATCH_ROWS,
    MASKING_RATE,
    MAX_TOKENS,
    Predictions,
    check_rows,
    log_probability,
    nothing_predicted,
    prediction_batches,
    token_table,
)
from lmdynamics.measurements.trace import Measurement
from lmdynamics.runs.run import Checkpoint
from lmdynamics.training.batches import padded_batches
from lmdynamics.training.objective import attention_of, body_of, logits_at

GROUPS = 20  # of rows of text, at most: the units of a bootstrap


def row_groups(rows: int) -> Int[np.ndarray, " rows"]:
    """The group of each row: neighbouring rows, in groups of equal size (± 1) and of at least two rows."""
    return np.arange(rows) * max(1, min(GROUPS, rows // 2)) // max(1, rows)


@dataclass(frozen=True)
class Repetition(Measurement):
    """How often a model predicts one token at two positions of a row. Rows: `group`, `tokens`, `loss`, `pairs`,
    `repeated`, `in_text`, `other_rows`.

    The predicted tokens and the `loss` (nats per token) are those of `HeldOutLoss`. `repeated` is the share of the
    `pairs` of predicted positions of a row at which the most probable token is the same. Two controls: `in_text`, the
    same share for the true tokens; `other_rows`, the share for pairs of positions in different rows of the group, which
    is what independent draws of equally frequent predictions give. Null without pairs; a group without predicted tokens
    is left out.
    """

    blocks: TokenRows
    masking_rate: float = MASKING_RATE
    seed: int = 0

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        if checkpoint.objective == "rts":
            raise UserError(
                f"{checkpoint.run_name} classifies tokens as replaced or not, so it predicts no tokens that could be "
                "repeated; use a masked or causal model"
            )
        model = checkpoint.model(device=device)

        @torch.inference_mode()
        def most_probable(batch: Predictions, first_row: int) -> dict[str, np.ndarray]:
            batch = batch.to(device)
            logits = logits_at(model, batch.ids, batch.attention_mask, batch.selected)
            losses = -log_probability(logits, batch.gold)
            return {"top": logits.argmax(1).cpu().numpy(), "loss": losses.cpu().numpy()}

        tokens = token_table(checkpoint, model, self.blocks, self.masking_rate, self.seed, most_probable)
        tokens = tokens.with_columns(group=pl.Series(row_groups(len(self.blocks))).gather(tokens["row"]))
        numbers = tokens.group_by("group").agg(pl.len().alias("tokens"), pl.col("loss").cast(pl.Float64).mean())
        repeated, text = (_equal_pairs(tokens, name) for name in ("top", "token"))
        names = {"within": "repeated", "between": "other_rows"}
        columns = repeated.rename(names).join(text.select("group", in_text="within"), on="group")
        return (
            numbers.join(columns, on="group")
            .sort("group")
            .select("group", "tokens", "loss", "pairs", "repeated", "in_text", "other_rows")
        )


@dataclass(frozen=True)
class StateCosine(Measurement):
    """Mean cosine between hidden states of different positions. Rows: `group`, `layer`, `pairs`, `cosine`,
    `other_rows`.

    The states are those after each layer (0-based; the last as the head reads it) at the predicted positions of
    `HeldOutLoss`. `cosine` is the mean over `pairs` of positions of a row. The control `other_rows` is the mean over
    pairs of positions in different rows of the group: where both are equal, a direction common to all text makes the
    states parallel, not the row. In a masked model most of these positions have the same input token, the mask, so the
    cosine is above zero without training: compare it with step 0. Null without pairs; a group without predicted tokens
    is left out.
    """

    blocks: TokenRows
    masking_rate: float = MASKING_RATE
    seed: int = 0

    version = 1

    @torch.inference_mode()
    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        model = checkpoint.model(device=device)
        check_rows(model, self.blocks)
        unused_rows(model, checkpoint)
        groups, row_sums, counts, totals = row_groups(len(self.blocks)), [], [], None
        for batch in prediction_batches(checkpoint, self.blocks, self.masking_rate, self.seed, BATCH_ROWS):
            batch = batch.to(device)
            output = body_of(model)(
                input_ids=batch.ids, attention_mask=batch.attention_mask, output_hidden_states=True, return_dict=True
            )
            states = torch.stack([layer[batch.selected] for layer in output.hidden_states[1:]])
            directions = in_float64(F.normalize(states.float(), dim=-1)).cpu()  # layers, positions, width
            row = batch.selected.nonzero()[:, 0].cpu()
            sums = directions.new_zeros(len(directions), len(batch.ids), directions.shape[-1])
            sums.index_add_(1, row, directions)  # the sum of the directions of each row
            group = torch.from_numpy(groups[len(counts) : len(counts) + len(sums[0])])
            if totals is None:
                totals = sums.new_zeros(len(sums), int(groups.max(initial=0)) + 1, sums.shape[-1])
            totals.index_add_(1, group, sums)
            row_sums.append(sums.square().sum(-1))
            counts += torch.bincount(row, minlength=len(batch.ids)).tolist()
        squares, counts = torch.cat(row_sums, 1).numpy(), np.array(counts)
        if not counts.any():
            raise nothing_predicted(self.blocks)
        frames = []
        for layer, (in_row, total) in enumerate(zip(squares, totals, strict=True)):
            # a direction has length 1, so the cosines of all pairs sum to the squared sum less the number of directions
            frame = pl.DataFrame({"group": groups, "n": counts, "n2": counts**2, "in_row": in_row})
            sums = frame.group_by("group", maintain_order=True).sum().filter(pl.col("n") > 0)
            columns = (sums[name].to_numpy().astype(float) for name in ("n", "in_row", "n2"))
            pairs = _mean_of_pairs(sums["group"], *columns, total[sums["group"]].square().sum(-1).numpy())
            names = {"cosine": "within", "other_rows": "between"}
            frames.append(pairs.select("group", pl.lit(layer).alias("layer"), "pairs", **names))
        return pl.concat(frames)


@dataclass(frozen=True)
class AttentionDistance(Measurement):
    """How far attention is from that of another checkpoint. Rows: `group`, `layer`, `distance`, `other_heads`.

    `distance` is the total variation between the attention of each head and of the same head of `final`, such as the
    last checkpoint of the run: half the sum over keys of the absolute difference, from 0 to 1, as a mean over heads and
    tokens. The text is not masked. The control `other_heads` is the distance to the next head of the same layer of
    `final`, in a circle: it falls if heads become alike or diffuse, not if each approaches its own final form. Null
    with one head.

    Raises UserError for a model without attention weights, or if the two have other layers or heads.
    """

    blocks: TokenRows
    final: Checkpoint

    version = 1

    @torch.inference_mode()
    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        models = [each.model(attention="eager", device=device) for each in (checkpoint, self.final)]
        for model in models:
            check_rows(model, self.blocks)
        rows, sums, queries = max(1, MAX_TOKENS // int(self.blocks.lengths.max())), [], []
        for ids, padded in padded_batches(self.blocks, rows, checkpoint.tokenizer.pad_token_id or 0):
            is_token = torch.ones_like(ids) if padded is None else (~padded).long()
            ids, mask = ids.to(device), None if padded is None else is_token.to(device)
            own, final = (
                attention_of(body_of(model)(ids, attention_mask=mask, output_attentions=True, return_dict=True), model)
                for model in models
            )
            if [layer.shape for layer in own] != [layer.shape for layer in final]:
                raise UserError(
                    f"{checkpoint.run_name} has {_shape(own)}, {self.final.run_name} has {_shape(final)}; compare "
                    "checkpoints of one architecture"
                )
            pairs = zip(own, final, strict=True)
            layers = [torch.stack([_distance(a, b), _distance(a, b.roll(1, 1))]) for a, b in pairs]
            by_row = torch.stack(layers) * is_token.to(device)  # layers, own or other heads, rows, queries
            sums.append(in_float64(by_row).sum(-1).cpu().numpy())
            queries.append(is_token.sum(1).numpy())
        sums, queries, groups = np.concatenate(sums, -1), np.concatenate(queries), row_groups(len(self.blocks))
        tokens = np.bincount(groups, queries)
        frames = []
        for layer, kinds in enumerate(sums):
            distance, other = (np.bincount(groups, kind) / tokens for kind in kinds)
            columns = {"group": np.arange(len(tokens)), "layer": layer, "distance": distance, "other_heads": other}
            frames.append(pl.DataFrame(columns))
        frame = pl.concat(frames)
        return frame if own[0].shape[1] > 1 else frame.with_columns(other_heads=pl.lit(None, pl.Float64))


def _distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Total variation over keys, mean over heads: [batch queries]."""
    return (first.float() - second.float()).abs().sum(-1).mean(1) / 2


def _shape(layers: list[torch.Tensor]) -> str:
    return f"{len(layers)} layers of {layers[0].shape[1]} heads"


def _equal_pairs(tokens: pl.DataFrame, column: str) -> pl.DataFrame:
    """Per group the share of pairs of positions with the same value: `group`, `pairs`, `within` a row, `between`."""

    def squares(*by: str) -> pl.DataFrame:
        counts = tokens.group_by("group", *by).len().select("group", count=pl.col("len").cast(pl.Float64))
        return counts.group_by("group").agg(pl.col("count").sum(), square=pl.col("count").pow(2).sum()).sort("group")

    rows, same_row, same_group = squares("row"), squares("row", column), squares(column)
    sums = (rows["count"], same_row["square"], rows["square"], same_group["square"])
    return _mean_of_pairs(rows["group"], *(column.to_numpy() for column in sums))


def _mean_of_pairs(
    group: pl.Series,
    count: Float64[np.ndarray, " groups"],
    in_row: Float64[np.ndarray, " groups"],
    row_squares: Float64[np.ndarray, " groups"],
    in_group: Float64[np.ndarray, " groups"],
) -> pl.DataFrame:
    """Mean similarity of pairs of positions within a row and between rows: `group`, `pairs`, `within`, `between`.

    A position is similar to itself by 1. `count`: positions; `row_squares`: the sum of the squared positions of each
    row; `in_row`: the sum of the similarities of all ordered pairs within rows, with itself too; `in_group`: the same
    of the whole group.
    """
    means = {}
    for name, total, pairs in (
        ("within", in_row - count, row_squares - count),
        ("between", in_group - in_row, count**2 - row_squares),
    ):
        mean = np.divide(total, pairs, out=np.full(len(count), np.nan), where=pairs > 0)
        means[name] = pl.Series(mean).fill_nan(None)
    return pl.DataFrame({"group": group, "pairs": ((row_squares - count) / 2).astype(int), **means})
