"""How far the predictions of two checkpoints differ: two seeds at the same step, or one run at two of its steps.

The divergence is the mean of both Kullback–Leibler divergences, in nats: the expected divergence of two runs in either
order, as in Fehlauer, Mahowald and Pimentel 2025 (arXiv 2509.26643), who take it over all pairs of seeds.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from lmdynamics.corpora.tokens import TokenRows, unigram_counts
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import MASKING_RATE, Predictions, log_probability, token_table
from lmdynamics.progress import bar
from lmdynamics.runs.run import Checkpoint, Run
from lmdynamics.training.objective import logits_at

SEEDS, EARLIER, UNIGRAM = "another seed", "itself at half the step", "token frequencies"  # what a run is compared with


def divergence(
    checkpoint: Checkpoint,
    others: Mapping[str, Checkpoint],
    blocks: TokenRows,
    masking_rate: float = MASKING_RATE,
    seed: int = 0,
    device: str = "cpu",
) -> pl.DataFrame:
    """The divergence of a checkpoint's predictions from those of others, at every token that `TokenLosses` predicts.

    Rows: `row`, `position`, `token`, `loss` of the checkpoint, its divergence from the `token frequencies` of `blocks`
    (each count plus one: a model that sees no context), and a column for each of `others`; all in nats. Every model
    sees the same masks. The sum is over the whole vocabulary.

    Raises UserError if another checkpoint has a different tokenizer, objective or vocabulary, none predicts tokens
    (rts), or where `TokenLosses` does.
    """
    for other in others.values():
        _refuse_different(checkpoint, other)
    model, *models = (each.model(device=device) for each in (checkpoint, *others.values()))
    special = None if checkpoint.objective == "clm" else checkpoint.tokenizer.all_special_ids

    @torch.inference_mode()
    def columns(batch: Predictions, first_row: int) -> dict[str, np.ndarray]:
        batch = batch.to(device)
        logits = [logits_at(each, batch.ids, batch.attention_mask, batch.selected) for each in (model, *models)]
        own, *rest = (each.float().log_softmax(-1) for each in logits)
        if any(each.shape != own.shape for each in rest):
            sizes = ", ".join(f"{each.shape[-1]:,}" for each in (own, *rest))
            raise UserError(f"{checkpoint.run_name}: the models have {sizes} output rows; compare runs of one recipe")
        counts = torch.from_numpy(unigram_counts(blocks, special, own.shape[-1]) + 1.0)
        frequencies = (counts / counts.sum()).log().float().to(device).expand_as(own)
        compared = zip((UNIGRAM, *others), (frequencies, *rest), strict=True)
        loss = {"loss": -log_probability(logits[0], batch.gold).cpu().numpy()}
        return loss | {name: symmetric_kl(own, each).cpu().numpy() for name, each in compared}

    return token_table(checkpoint, model, blocks, masking_rate, seed, columns)


def symmetric_kl(p: Float[Tensor, "n vocab"], q: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    """(KL(p‖q) + KL(q‖p)) / 2 of log-probabilities, nats: half the sum of (p − q) (log p − log q)."""
    return ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2


def divergence_over_training(
    run: Run,
    other: Run,
    blocks: TokenRows,
    steps: Sequence[int] | None = None,
    masking_rate: float = MASKING_RATE,
    seed: int = 0,
    device: str = "cpu",
    progress: bool | None = None,
) -> pl.DataFrame:
    """`divergence` of two runs at each of `steps` that both have (default: all), and its control.

    The control is the run itself at half the step, or at its last checkpoint before that; null at step 0. Rows: `step`
    and those of `divergence`, with the columns `another seed` and `itself at half the step`.

    Raises UserError if the runs have no step in common, and where `divergence` does.
    """
    shared = sorted({*run.steps} & {*other.steps} & {*(run.steps if steps is None else steps)})
    if not shared:
        raise UserError(
            f"{run.name} (steps {run.steps[0]:,} to {run.steps[-1]:,}) and {other.name} ({other.steps[0]:,} to "
            f"{other.steps[-1]:,}) have no step in common to compare; choose runs with the same checkpoints"
        )
    frames = []
    with bar(len(shared), "divergence", progress, unit="checkpoint") as meter:
        for step in shared:
            earlier = max((s for s in run.steps if 2 * s <= step and s < step), default=None)
            others = {SEEDS: other[step]} | ({} if earlier is None else {EARLIER: run[earlier]})
            frame = divergence(run[step], others, blocks, masking_rate, seed, device)
            frames.append(frame.select(pl.lit(step, pl.Int64).alias("step"), pl.all()))
            meter.update()
    return pl.concat(frames, how="diagonal")


def _refuse_different(one: Checkpoint, other: Checkpoint) -> None:
    if "rts" in (one.objective, other.objective):
        raise UserError(
            f"{one.run_name} classifies tokens as replaced or not and predicts no tokens; compare mlm or clm"
        )
    if one.objective != other.objective:
        raise UserError(
            f"{one.run_name} is trained as {one.objective}, {other.run_name} as {other.objective}: they predict "
            "different tokens; compare runs of one objective"
        )
    vocabularies = one.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        differing = len({*vocabularies[0].items()} ^ {*vocabularies[1].items()})
        raise UserError(
            f"{one.run_name} and {other.run_name} have different tokenizers ({differing:,} tokens differ), so their "
            "predictions cannot be compared; compare runs that share a tokenizer"
        )
