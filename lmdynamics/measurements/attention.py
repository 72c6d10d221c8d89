"""Attention between words, and the word each head looks at most.

Definitions (Clark et al. 2019): attention to a word is the sum over its pieces, attention from it the mean over
its pieces; then the diagonal is zeroed and special tokens' rows and columns dropped, without renormalising.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int16
from torch import Tensor, nn

from lmdynamics.errors import UserError
from lmdynamics.measurements.word_batches import WordBatch, WordBatches, check_length

DIRECTIONS = ("dependent→head", "head→dependent")


@dataclass(frozen=True, eq=False)
class Parents:
    """For each word and head, the word that the head would make its parent, and the weight on the gold parent.

    Axes: layer, direction (as `DIRECTIONS`), head, word (counted through all sentences). `parent` counts within the
    sentence; -1 where the head gives no weight to any other word, as a causal head has nothing left of the first.
    """

    parent: Int16[np.ndarray, "layers 2 heads words"]
    weight: Float32[np.ndarray, "layers 2 heads words"]


def word_attention(
    attention: Float[Tensor, "batch heads time time"], batch: WordBatch
) -> Float[Tensor, "batch heads words words"]:
    """Attention from word to word; zero on the diagonal and where a sentence has no such word.

    May overwrite `attention`.
    """
    if batch.membership is None:
        inner = slice(batch.start, batch.start + batch.between.shape[-1])
        words = attention[:, :, inner, inner]
    else:
        member = batch.membership[:, None].to(attention.dtype)
        pieces = member.sum(2).clamp(min=1)[..., None]
        # one product for all heads on the key side: rows of all heads stand below each other
        rows = torch.bmm(attention.flatten(1, 2), member[:, 0]).unflatten(1, attention.shape[1:3])
        words = (member.mT @ rows).div_(pieces)
    return words.mul_(batch.between)


def attentions(model: nn.Module, batch: WordBatch) -> tuple[Tensor, ...]:
    """Attention of every layer, shape [batch heads time time] each, from the model's body alone.

    Raises
    ------
    UserError
        If the model does not give them, which all but `attn_implementation="eager"` leave out without a word.
    """
    body = getattr(model, "base_model", model)
    output = body(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True, return_dict=True
    )
    found = tuple(layer for layer in output.attentions or () if layer is not None)
    if len(found) != model.config.num_hidden_layers:
        raise UserError(
            f"{type(model).__name__} gave attention for {len(found)} of {model.config.num_hidden_layers} layers; "
            'load it with attention="eager"'
        )
    return found


@torch.inference_mode()
def parents(model: nn.Module, encoded: WordBatches, heads: Int[np.ndarray, " words"]) -> Parents:
    """What every head predicts for every word; `heads` is the gold parent within its sentence, negative for none.

    The parent of word i is argmax_j A_ij (dependent→head) or argmax_j A_ji (head→dependent), the first of equals.
    Memory: 12 bytes per word, layer and head.

    Raises
    ------
    UserError
        If a sentence is longer than the model allows, or the attention is missing or no distribution.
    """
    check_length(model, encoded)
    device = str(next(model.parameters()).device)
    gold = torch.from_numpy(np.asarray(heads, dtype=np.int64)).to(device)
    parent = weight = None
    for number, batch in enumerate(batch.to(device) for batch in encoded.batches):
        layers = attentions(model, batch)
        if parent is None:
            shape = (len(layers), 2, layers[0].shape[1], encoded.words)
            parent = torch.empty(shape, dtype=torch.int16, device=device)
            weight = torch.empty(shape, dtype=torch.float32, device=device)
        width = batch.between.shape[-1]
        row, word, head = batch.cells // width, batch.cells % width, gold[batch.columns]
        at_head = head.clamp(min=0)
        for layer, attention in enumerate(layers):
            if number == 0:
                _check_distribution(attention, batch, layer)
            words = word_attention(attention.float(), batch)
            for direction in (0, 1):
                most, where = words.max(-1 - direction)
                where = where.to(torch.int16).masked_fill_(most <= 0, -1)
                parent[layer, direction].index_copy_(1, batch.columns, where.transpose(0, 1).flatten(1)[:, batch.cells])
            for direction, on_gold in enumerate((words[row, :, word, at_head], words[row, :, at_head, word])):
                on_gold = on_gold.masked_fill_(head[:, None] < 0, 0)
                weight[layer, direction].index_copy_(1, batch.columns, on_gold.T)
    return Parents(parent.cpu().numpy(), weight.cpu().numpy())


def _check_distribution(attention: Tensor, batch: WordBatch, layer: int) -> None:
    sums = attention.float().sum(-1).transpose(1, 2)[batch.attention_mask.bool()]
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        found = "NaN: the model has diverged" if sums.isnan().any() else f"{float(sums.min()):.3f}"
        raise UserError(f"attention of layer {layer} should sum to 1 over the tokens looked at, but sums to {found}")
