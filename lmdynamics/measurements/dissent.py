"""Gradient dissent: the part of the gradient towards the gold token against the part away from all others.

Mircea, Lobacheva and Rish 2024. With logits U h (+ b), p their softmax, and token 1 the gold token, the gradient of
the loss at the hidden state is ∇h = ∇h⁺ + ∇h⁻: attractive ∇h⁺ = (p_1 - 1) U_1, repulsive ∇h⁻ = Σ_{j≠1} p_j U_j. At the
logits the two have different tokens (cosine 0, equal L1 norms 1 - p_1), so they can only oppose each other through U.
The computation is analytic: no backward pass.
"""

from dataclasses import dataclass
from typing import NamedTuple

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import MASKING_RATE, Predictions, token_table
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.batches import mix
from lmdynamics.training.objective import logits_at

MAX_LOGITS = 1 << 24  # computed at once: 64 MiB


@dataclass(frozen=True)
class Dissent(Measurement):
    """Gradient dissent at every predicted token, identified as in `TokenLosses`. Rows: row, position, token, and
    (Float32) probability (p_1), norm_hidden, norm_attractive, norm_repulsive, dissent (cos(∇h⁺, ∇h⁻)),
    cos_hidden_attractive (cos(h, ∇h⁺)), cos_hidden_repulsive (cos(h, ∇h⁻)), dissent_control.

    The control is the cosine of a token's attraction with the repulsion at another position, drawn at random: their
    similarity in any context, because all rows of U share a direction or some tokens are always likely.

    h is the input of the output embedding: in BERT, after the head's own layer. Norms are of one token's gradient, not
    of the mean loss's. A cosine with a zero vector is null. Models whose logits do not come from one linear layer are
    refused.
    """

    blocks: TokenRows
    masking_rate: float = MASKING_RATE
    seed: int = 0

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        model = checkpoint.model(device=device)

        def columns(batch: Predictions, first_row: int) -> dict[str, pl.Series]:
            head, hidden = linear_head(model), head_inputs(model, batch, device)
            dissents = dissent(hidden, head.weight, batch.gold.to(device), head.bias, mix(self.seed, first_row))
            return {name: pl.Series(x.cpu().numpy(), dtype=pl.Float32) for name, x in dissents._asdict().items()}

        frame = token_table(checkpoint, model, self.blocks, self.masking_rate, self.seed, columns)
        return frame.with_columns(pl.col(pl.Float32).fill_nan(None))


def linear_head(model: nn.Module) -> nn.Linear:
    """The output embedding, U and b.

    Raises UserError if the model has none, or it is not a plain linear layer.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        description = "no output embedding" if head is None else f"a {type(head).__name__} for its output embedding"
        raise UserError(
            f"{type(model).__name__} has {description}; dissent needs a masked or causal language model whose logits "
            "come from one linear layer"
        )
    return head


@torch.inference_mode()
def head_inputs(model: nn.Module, batch: Predictions, device: str) -> Float[Tensor, "selected width"]:
    """The input of the output embedding at the predicted positions of a batch, computed a few rows at a time.

    Raises UserError if the model changes the logits after its output embedding, for example scales or caps them.
    """
    head, calls = linear_head(model), []
    hook = head.register_forward_hook(lambda module, arguments, output: calls.append((arguments[0], output)))
    rows = max(1, MAX_LOGITS // (batch.ids.shape[1] * head.out_features))
    batch, hidden = batch.to(device), []
    try:
        for start in range(0, len(batch.ids), rows):
            chosen = slice(start, start + rows)
            mask = None if batch.attention_mask is None else batch.attention_mask[chosen]
            logits = logits_at(model, batch.ids[chosen], mask, batch.selected[chosen])
            inputs, outputs = calls.pop()
            if not torch.equal(outputs.reshape(logits.shape).to(logits.dtype), logits):
                raise UserError(
                    f"{type(model).__name__} changes its logits after the output embedding (it scales or caps them); "
                    "dissent needs a model whose logits come from one linear layer"
                )
            hidden.append(inputs.reshape(-1, inputs.shape[-1]))
    finally:
        hook.remove()
    return torch.cat(hidden)


class Dissents(NamedTuple):
    """One number per token. A cosine is NaN where one of its vectors is zero."""

    probability: Float[Tensor, " tokens"]  # p_1, of the gold token
    norm_hidden: Float[Tensor, " tokens"]  # ‖h‖
    norm_attractive: Float[Tensor, " tokens"]  # ‖∇h⁺‖
    norm_repulsive: Float[Tensor, " tokens"]  # ‖∇h⁻‖
    dissent: Float[Tensor, " tokens"]  # cos(∇h⁺, ∇h⁻); -1: exactly opposed
    cos_hidden_attractive: Float[Tensor, " tokens"]
    cos_hidden_repulsive: Float[Tensor, " tokens"]
    dissent_control: Float[Tensor, " tokens"]  # cos(∇h⁺, ∇h⁻ of another token)


@torch.no_grad()
def dissent(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    gold: Int[Tensor, " tokens"],
    bias: Float[Tensor, " vocab"] | None = None,
    seed: int = 0,
) -> Dissents:
    """Dissent of each token, from input (`hidden`) and `weight` of the output embedding; `seed` pairs the control.

    In the type of `hidden`, but at least in float32. Both parts are 1 - p_1 times a vector that does not depend on
    p_1: U_1, and the mean of the other rows of U, weighted by their probabilities given that the token is not 1. So
    cosines are exact even where p_1 rounds to 1.
    """
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    gold_rows, other_rows = weight[gold].to(hidden.dtype), torch.empty_like(hidden)
    log_odds = hidden.new_empty(len(gold))
    for part in torch.arange(len(gold), device=gold.device).split(max(1, MAX_LOGITS // len(weight))):
        other_rows[part], log_odds[part] = _directions(hidden[part], weight, gold[part], bias)
    shuffled = torch.randperm(len(gold), generator=torch.Generator().manual_seed(seed)).to(gold.device)
    return Dissents(
        torch.sigmoid(-log_odds),
        hidden.norm(dim=1),
        torch.sigmoid(log_odds) * gold_rows.norm(dim=1),
        torch.sigmoid(log_odds) * other_rows.norm(dim=1),
        -_cosine(gold_rows, other_rows),
        -_cosine(hidden, gold_rows),
        _cosine(hidden, other_rows),
        -_cosine(gold_rows, other_rows[shuffled]),
    )


def _directions(
    hidden: Float[Tensor, "tokens width"], weight: Tensor, gold: Int[Tensor, " tokens"], bias: Tensor | None
) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, " tokens"]]:
    """The mean of the other tokens' rows weighted by p_j / (1 - p_1), and the log odds against token 1.

    1 - p_1 is a sigmoid of these odds, not a difference of two numbers close to 1.
    """
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    logits = F.linear(hidden, weight, bias)
    index = gold[:, None]
    gold_logits = logits.gather(1, index).squeeze(1)
    logits.scatter_(1, index, float("-inf"))
    log_odds = logits.logsumexp(1) - gold_logits
    return logits.softmax(1) @ weight, log_odds


def _cosine(a: Float[Tensor, "tokens width"], b: Float[Tensor, "tokens width"]) -> Float[Tensor, " tokens"]:
    """Cosine of each pair of rows, within -1 and 1; NaN where one of them is zero."""
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)
