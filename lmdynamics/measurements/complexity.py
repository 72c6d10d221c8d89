"""Model complexity: dimension of its representations, size of its weights, sharpness of its likelihood.

Chen et al. 2023 (arXiv 2309.07311) compare these with the onset of syntax. TwoNN: Facco et al. 2017.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.corpora.treebanks import Treebank
from lmdynamics.devices import in_float64
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import check_sentences, encode_treebank, unused_rows
from lmdynamics.measurements.losses import BATCH_ROWS, MASKING_RATE, Predictions, check_rows, prediction_batches
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.batches import padded_batches
from lmdynamics.training.objective import logits_at


@dataclass(frozen=True)
class IntrinsicDimension(Measurement):
    """TwoNN dimension of the sentence states of the last layer. One row: `dimension`, `points` used.

    A sentence's state is that of its first token ([CLS]); for a causal model, of its last token, the only one with the
    whole sentence as context. Null where the states coincide, as in a collapsed model. For the distance see `two_nn`.
    """

    text: Treebank | TokenRows

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        model = checkpoint.model(device=device)
        states = sentence_states(model, checkpoint, self.text)
        dimension, points = two_nn(states.cpu().double().numpy())
        return pl.DataFrame(
            {"dimension": [dimension], "points": [points]}, schema={"dimension": pl.Float64, "points": pl.Int64}
        )


@dataclass(frozen=True)
class WeightNorm(Measurement):
    """Squared norm of all parameters, tied ones once. One row: `norm2`."""

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        parameters = checkpoint.model(device=device).parameters()
        return pl.DataFrame({"norm2": [sum(float(in_float64(p.detach()).square().sum()) for p in parameters)]})


@dataclass(frozen=True)
class FisherTrace(Measurement):
    """Trace of the empirical Fisher information. One row: `trace`, `stderr`, `examples`.

    The mean over examples of the squared norm of the gradient of an example's loss, computed with the gold tokens, not
    with tokens drawn from the model. An example is one row of `blocks`, its loss the mean over its predicted tokens
    (nats): results for rows of other lengths are comparable, but the trace per token is larger. `seed` draws the masks
    and the rows.
    """

    blocks: TokenRows
    examples: int = 64
    masking_rate: float = MASKING_RATE
    seed: int = 0

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        model = checkpoint.model(device=device)
        check_rows(model, self.blocks)
        unused_rows(model, checkpoint)
        chosen = np.random.default_rng(self.seed).permutation(len(self.blocks))[: self.examples]
        rows = self.blocks.take(np.sort(chosen))
        examples = prediction_batches(checkpoint, rows, self.masking_rate, self.seed, 1)
        norms = [squared_gradient(model, example, device) for example in examples if len(example.gold)]
        if len(norms) < 2:
            raise UserError(
                f"{len(norms)} of {len(chosen)} rows have a token to predict, at least 2 are needed; "
                "give more or longer rows"
            )
        return pl.DataFrame(
            {
                "trace": [float(np.mean(norms))],
                "stderr": [float(np.std(norms, ddof=1) / np.sqrt(len(norms)))],
                "examples": [len(norms)],
            }
        )


def squared_gradient(model: nn.Module, example: Predictions, device: str) -> float:
    """‖∇θ mean loss‖² of one batch of predictions (nats²)."""
    example = example.to(device)
    with torch.enable_grad():
        logits = logits_at(model, example.ids, example.attention_mask, example.selected)
        loss = F.cross_entropy(logits.float(), example.gold)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return float(sum(in_float64(g).square().sum() for g in gradients if g is not None))


@torch.inference_mode()
def sentence_states(model: nn.Module, checkpoint, text: Treebank | TokenRows) -> Float[Tensor, "sentences width"]:
    """One state per sentence or row, from the last layer: of the first token, or of the last in a causal model."""
    if isinstance(text, Treebank):
        encoded = encode_treebank(checkpoint.tokenizer, text)
        check_sentences(model, encoded)
        inputs = [(batch.input_ids, batch.attention_mask.bool()) for batch in encoded.batches]
    else:
        check_rows(model, text)
        inputs = [
            (ids, torch.ones_like(ids, dtype=torch.bool) if padded is None else ~padded)
            for ids, padded in padded_batches(text, BATCH_ROWS, checkpoint.tokenizer.pad_token_id or 0)
        ]
    device = next(model.parameters()).device
    body = getattr(model, "base_model", model)
    states = []
    for ids, mask in inputs:
        hidden = body(input_ids=ids.to(device), attention_mask=mask.to(device), return_dict=True).last_hidden_state
        position = mask.sum(1) - 1 if checkpoint.objective == "clm" else torch.zeros(len(ids), dtype=torch.long)
        states.append(hidden[torch.arange(len(ids), device=device), position.to(device)])
    return torch.cat(states)


def two_nn(points: Float64[np.ndarray, "points width"], discard: float = 0.1) -> tuple[float | None, int]:
    """Intrinsic dimension from the ratio μ = r2 / r1 of the distances to the two nearest neighbours; points used.

    Slope through the origin of -log(1 - F) on log μ, F the empirical distribution of μ, without the largest
    `discard` of the μ (Facco et al. 2017). Distances are cosine distances, as in Chen et al. 2023: half the squared
    chord between directions, so that the estimate is *half* the dimension of the manifold of directions. Points in
    the same direction count once. None with fewer than three directions, or without spread.
    """
    directions = points / np.linalg.norm(points, axis=1, keepdims=True)
    directions = np.unique(directions, axis=0)
    n = len(directions)
    nearest = np.empty((n, 2))
    if n < 3:
        return None, n
    for start in range(0, n, 1024):
        distance = 1 - directions[start : start + 1024] @ directions.T
        distance[np.arange(len(distance)), np.arange(start, start + len(distance))] = np.inf
        nearest[start : start + 1024] = np.partition(distance, 1, axis=1)[:, :2]
    ratio = np.sort((nearest[:, 1] / nearest[:, 0])[nearest[:, 0] > 1e-14])  # smaller distances are rounding
    used = int(len(ratio) * (1 - discard))
    x, y = np.log(ratio[:used]), -np.log1p(-np.arange(1, used + 1) / max(1, len(ratio)))
    if used < 2 or not (x @ x) > 0:
        return None, used
    return float(x @ y / (x @ x)), used
