"""Sums and cosines of the gradients of single tokens and rows, which `per_token_gradients` forms layer by layer.

Sums over tokens: Σ_i|g_ij| by coordinate, Σ_j p_ij and Σ_j|p_ij| by token. Cosines between rows, and between groups of
tokens, show whether their gradients agree. Mircea et al. 2025 (arXiv 2506.05447): where learning has slowed down,
gradients of examples oppose each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.devices import in_float64
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import unused_rows
from lmdynamics.measurements.losses import MASKING_RATE, Predictions, check_rows, prediction_batches
from lmdynamics.measurements.per_token_gradients import Layer, Tape, gradient, max_elements, parts
from lmdynamics.measurements.trace import Measurement

MIN_SAMPLE = 12  # tokens; the standard error of a smaller sample is not reliable


@dataclass
class Sums:
    """Sums over the tokens' gradients g and the update u, for one parameter tensor.

    `size`: Σ_i|g_ij| by coordinate, if all tokens are used. Otherwise `absolute`: Σ_j|p_ij| of the sampled tokens,
    without the head's part, which is known for all tokens (`head`, summed). `signed`: Σ_j p_ij of the sampled tokens.
    """

    size: Tensor | None
    absolute: Tensor | None
    signed: Float[Tensor, " sampled"]
    head: float = 0.0

    def add_head(self, signed: Tensor, absolute: Tensor, sampled: Tensor, size: Callable[[], Tensor]) -> None:
        """Add the head's part of every token; `size` is computed only if needed."""
        self.signed += signed[sampled]
        self.head += float(in_float64(absolute).sum())
        if self.size is not None:
            self.size += size()

    def add_signed(self, index: Tensor, values: Tensor) -> None:
        self.signed.index_add_(0, index[index >= 0], values[index >= 0])

    def add_absolute(self, index: Tensor, values: Tensor) -> None:
        self.absolute.index_add_(0, index[index >= 0], values[index >= 0])

    def add(self, formed: Float[Tensor, "examples batch width"], u: Tensor, index: Tensor) -> None:
        """Add gradients of a vector, in full."""
        self.add_signed(index, formed @ u)
        if self.size is not None:
            self.size += formed.abs().sum((0, 1))
        else:
            self.add_absolute(index, formed.abs() @ u.abs())


def token_sums(
    tape: Tape, update: dict[str, Tensor], share: float, seed: int, rounds_at_once: int = 0
) -> tuple[dict[str, Sums], Int[Tensor, " sampled"]]:
    """`Sums` for each parameter of a recorded layer, and the numbers of the tokens that they include.

    `share` below 1: a simple random sample of this share of the predicted tokens, at least MIN_SAMPLE.
    `rounds_at_once`: tokens of every row whose backward passes are batched into one; 0 chooses by the device.
    """
    n, device = len(tape.losses), tape.losses.device
    size = n if share == 1 else min(n, max(MIN_SAMPLE, round(share * n)))
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:size])
    sampled = torch.from_numpy(chosen).to(device)
    rounds = tape.rounds(sampled)
    n_rounds = int(rounds.max()) + 1
    sample_index = torch.full((n + 1,), -1, device=device)  # -1 at the end, so that number -1 maps to -1
    sample_index[sampled] = torch.arange(len(sampled), device=device)

    names = {id(p): name for name, p in tape.model.named_parameters()}
    sums: dict[str, Sums] = {}

    def sums_of(parameter: Tensor) -> tuple[Sums, Tensor]:
        name, zeros = names[id(parameter)], torch.zeros(len(sampled), dtype=parameter.dtype, device=device)
        if name not in sums:
            exact = share == 1
            sums[name] = Sums(torch.zeros_like(parameter) if exact else None, None if exact else zeros, zeros.clone())
        return sums[name], update[name].to(parameter)

    with torch.no_grad():
        head, _ = tape.token_derivatives
        for layer, delta in head.items():
            _add_head(layer, delta, sampled, sums_of)
        slots = {layer: Slots.from_layer(layer) for layer in tape.layers if layer.kind == "embedding"}
        at_once = rounds_at_once or (4 if device.type == "cpu" else 32)
        for numbers, deltas in tape.token_deltas(rounds, n_rounds, at_once):
            index = sample_index[numbers]
            for layer, delta in deltas.items():
                if layer.kind == "embedding":
                    _add_embedding(layer, delta, numbers, index, head, slots[layer], *sums_of(layer.module.weight))
                else:
                    _add_body(layer, delta, index, sums_of)
    return sums, sampled


def _add_head(layer: Layer, delta: Float[Tensor, "tokens out"], sampled: Tensor, sums_of) -> None:
    """One position per token: |outer product| is the outer product of absolute values, so none is formed."""
    inputs, bias = layer.inputs[0], getattr(layer.module, "bias", None)
    sums, u = sums_of(layer.module.weight)
    if layer.kind == "norm":
        gradients = delta * inputs
        sums.add_head(gradients @ u, gradients.abs() @ u.abs(), sampled, lambda: gradients.abs().sum(0))
    else:
        signed = (delta * layer.linear(u, inputs)).sum(-1)
        absolute = (delta.abs() * layer.linear(u.abs(), inputs.abs())).sum(-1)
        sums.add_head(signed, absolute, sampled, lambda: layer.outer(delta.abs(), inputs.abs()))
    if bias is not None:
        sums, u = sums_of(bias)
        sums.add_head(delta @ u, delta.abs() @ u.abs(), sampled, lambda: delta.abs().sum(0))


def _add_body(
    layer: Layer, delta: Float[Tensor, "examples batch time out"], index: Int[Tensor, "examples batch"], sums_of
):
    """A layer's gradients of some tokens: formed a few at a time, summed, discarded."""
    inputs, bias = layer.inputs[:, : delta.shape[2]], getattr(layer.module, "bias", None)
    sums, u = sums_of(layer.module.weight)
    if layer.kind == "norm":
        sums.add((delta * inputs).sum(-2), u, index)
    else:
        sums.add_signed(index, (delta * layer.linear(u, inputs)).sum((-1, -2)))
        for rounds, rows, gradients in _weight_gradients(layer, delta, inputs):
            gradients.abs_()
            if sums.size is not None:
                sums.size[rows] += gradients.sum((0, 1))
            else:
                sums.add_absolute(index[rounds], gradients.flatten(2) @ u[rows].abs().flatten())
    if bias is not None:
        sums, u = sums_of(bias)
        sums.add(delta.sum(-2), u, index)


def _weight_gradients(layer: Layer, delta: Tensor, inputs: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Weight gradients by rounds and, if one round is large, by rows of the weight; at most `max_elements`."""
    examples, batch = delta.shape[:2]
    height, width = layer.module.weight.shape
    limit = max_elements(delta.device) // (batch * width)
    rounds_at_once, rows_at_once = max(1, limit // height), max(1, min(height, limit))
    for first in range(0, examples, rounds_at_once):
        for row in range(0, height, rows_at_once):
            rounds, rows = slice(first, first + rounds_at_once), slice(row, row + rows_at_once)
            yield rounds, rows, layer.outer(delta[rounds], inputs, rows)


def _add_embedding(layer, delta, numbers, index, head, slots: "Slots", sums: Sums, u: Tensor) -> None:
    """An embedding's gradient is zero outside the rows of its tokens. If the head has the same weights, the gradients
    add up, and only the difference from the head's is added."""
    gradients = slots.sum(delta)
    sums.add_signed(index, (gradients * u[slots.ids]).sum((-1, -2)))
    head_size = 0.0
    if layer.tied is not None:
        rows = head[layer.tied][numbers]  # [examples, batch, vocab]; -1 selects some row, which gets weight 0 below
        head_delta = rows.gather(-1, slots.ids.expand(len(rows), -1, -1)) * (numbers >= 0)[..., None] * slots.valid
        outer = head_delta[..., None] * layer.tied.inputs[0][numbers][:, :, None]
        gradients, head_size = gradients + outer, outer.abs()
    added = gradients.abs() - head_size
    if sums.size is not None:
        sums.size.index_add_(0, slots.ids.flatten(), added.sum(0).flatten(0, 1))
    else:
        sums.add_absolute(index, (added * u[slots.ids].abs()).sum((-1, -2)))


@dataclass(frozen=True, eq=False)
class Slots:
    """The distinct ids of each row of an embedding's input: row b's are `ids[b]` where `valid`, T slots per row."""

    ids: Int[Tensor, "batch time"]
    valid: Tensor  # bool, like ids
    membership: Float[Tensor, "batch slots time"]  # 1 where a position holds the slot's id

    @classmethod
    def from_layer(cls, layer: Layer) -> "Slots":
        ordered, order = layer.inputs.sort(dim=1)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        slot = torch.empty_like(order).scatter_(1, order, first.cumsum(1) - 1)
        ids = torch.zeros_like(ordered).scatter_(1, slot, layer.inputs)
        valid = torch.arange(ids.shape[1], device=ids.device) < first.sum(1, keepdim=True)
        membership = (slot[:, None] == torch.arange(ids.shape[1], device=ids.device)[:, None]).to(layer.outputs)
        if layer.module.padding_idx is not None:  # has no gradient
            membership = membership * (layer.inputs != layer.module.padding_idx)[:, None]
        return cls(ids, valid, membership)

    def sum(self, delta: Float[Tensor, "examples batch time width"]) -> Float[Tensor, "examples batch slots width"]:
        return self.membership[..., : delta.shape[2]] @ delta


def cross_check(tape: Tape, update: dict[str, Tensor]) -> None:
    """Compare Σ_i|g_ij| of two tokens with a plain loop, parameter by parameter.

    Raises UserError if they differ.
    """
    batch, row = tape.batch, int(tape.rows[0])
    selected = torch.zeros_like(batch.selected[row : row + 1])
    selected[0, batch.selected[row].nonzero()[:2, 0]] = True
    mask = None if batch.attention_mask is None else batch.attention_mask[row : row + 1]
    first = Predictions(batch.ids[row : row + 1], mask, selected, batch.gold[: int(selected.sum())])
    small = Tape(tape.model, first)
    sums, _ = token_sums(small, update, share=1.0, seed=0)
    gradients = [gradient(loss[None], tape.model) for loss in small.losses]
    largest = max(float(g.abs().max()) for token_gradient in gradients for g in token_gradient.values())
    for name in sums:
        plain = sum(token_gradient[name].abs() for token_gradient in gradients)
        if not (sums[name].size - plain).abs().max() <= 1e-3 * largest:
            raise UserError(
                f"fast gradients of single tokens by {name} of {type(tape.model).__name__} differ from a plain loop's; "
                "this architecture is not supported"
            )


@dataclass(frozen=True)
class Opposition(Measurement):
    """Cosines between the gradients of rows of text, of all parameters and of each layer's.

    A row's loss is the mean over its predicted tokens. Rows: part (all, embeddings, layer 0 …, head), a, b (numbers of
    two rows of `blocks`, a ≤ b), dot, cosine (null where a gradient is zero). The first `examples` rows are used;
    `seed` draws the masks of a masked model.

    Raises UserError if the rows are too few, or the architecture is not supported.
    """

    blocks: TokenRows
    examples: int = 32
    seed: int = 0

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        tape = record_tape(checkpoint, self.blocks, self.examples, self.seed, device)
        grams = row_grams(tape)
        check_row_grams(tape, grams["all"])
        names = [str(row) for row in range(len(tape.batch.ids))]
        frame = pl.concat(_pairs(part, gram, names) for part, gram in grams.items())
        return frame.with_columns(pl.col("a", "b").cast(pl.Int32))


@dataclass(frozen=True)
class GroupOpposition(Measurement):
    """Cosines between the gradients of groups of tokens. Rows: part, a, b (groups), dot, cosine, tokens_a, tokens_b.

    `groups`: the group of each token id, for example by frequency; a group's gradient is the mean over its predicted
    tokens in the first `examples` rows. Groups are in the order of their first appearance in `groups`.
    """

    blocks: TokenRows
    groups: tuple[str, ...]
    examples: int = 64
    seed: int = 0

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        tape = record_tape(checkpoint, self.blocks, self.examples, self.seed, device)
        gold = tape.batch.gold
        if int(gold.max()) >= len(self.groups):
            raise UserError(
                f"groups= names the group of {len(self.groups)} token ids, the text has token {int(gold.max())}; "
                "give one for every id of the vocabulary"
            )
        names = list(dict.fromkeys(self.groups))
        member = torch.tensor([names.index(self.groups[token]) for token in gold.tolist()])
        counts = torch.bincount(member, minlength=len(names)).tolist()
        used = [i for i, count in enumerate(counts) if count]
        gradients = [gradient(tape.losses[(member == i).to(tape.losses.device)] / counts[i], tape.model) for i in used]
        frames = []
        for level, part, parameters in parts(tape):
            if level == "module":
                continue
            rows = in_float64(torch.stack([torch.cat([g[name].flatten() for name in parameters]) for g in gradients]))
            frames.append(_pairs(part, rows @ rows.T, [names[i] for i in used]))
        sizes = {names[i]: counts[i] for i in used}
        return pl.concat(frames).with_columns(
            pl.col(side).replace_strict(sizes, return_dtype=pl.Int64).alias(f"tokens_{side}") for side in ("a", "b")
        )


def record_tape(checkpoint, blocks: TokenRows, examples: int, seed: int, device: str) -> Tape:
    """One forward pass of the checkpoint over the first rows of `blocks`; a UserError if there are fewer than two."""
    model = checkpoint.model("eager", device).float()
    check_rows(model, blocks)
    unused_rows(model, checkpoint)
    n = min(examples, len(blocks))
    if n < 2:
        raise UserError(f"{n} rows are not enough for a pair; give at least 2 and examples=2 or more")
    (batch,) = prediction_batches(checkpoint, blocks.take(range(n)), MASKING_RATE, seed, n)
    return Tape(model, batch.to(device))


def row_grams(tape: Tape) -> dict[str, Float[Tensor, "rows rows"]]:
    """⟨g_a, g_b⟩ of the rows' gradients, by part, float64; slices of a layer's gradients are formed one at a time."""
    counts = torch.bincount(tape.rows, minlength=len(tape.batch.ids)).clamp(min=1)
    share = (1 / counts)[tape.rows].to(tape.losses)[:, None]  # a row's loss is the mean over its tokens
    head, by_state = tape.token_derivatives
    deltas = {layer: delta * share for layer, delta in head.items()}
    deltas |= {layer: delta[0] for layer, delta in tape.body_deltas(share * by_state[None]).items()}
    part_of = {name: part for level, part, names in parts(tape) if level == "layer" for name in names}
    names = {id(p): name for name, p in tape.model.named_parameters()}
    rows = Rows(tape)
    zero = in_float64(torch.zeros(len(tape.batch.ids), len(tape.batch.ids), device=tape.losses.device))
    grams = {"all": zero} | {part: zero.clone() for part in dict.fromkeys(part_of.values())}
    for layer in tape.layers:
        for parameter, formed in row_gradients(layer, deltas, rows):
            flat = formed.flatten(1)
            grams[part_of[names[id(parameter)]]] += in_float64(flat @ flat.T)
    grams["all"] = sum(gram for part, gram in grams.items() if part != "all")
    return grams


class Rows:
    """The predicted tokens of a batch by row: [B, K] numbers of tokens, and the mask of valid ones."""

    def __init__(self, tape: Tape):
        rounds = tape.rounds()
        self.numbers = torch.zeros(len(tape.batch.ids), int(rounds.max()) + 1, dtype=torch.long, device=rounds.device)
        self.valid = torch.zeros_like(self.numbers, dtype=torch.bool)
        self.numbers[tape.rows, rounds] = torch.arange(len(rounds), device=rounds.device)
        self.valid[tape.rows, rounds] = True

    def gather(self, by_token: Float[Tensor, "tokens width"]) -> Float[Tensor, "batch slots width"]:
        return by_token[self.numbers] * self.valid[..., None]


def row_gradients(layer: Layer, deltas: dict[Layer, Tensor], rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """(parameter, gradient of it or of some rows of it) for every row of text: [B, …]."""
    module, delta, inputs = layer.module, deltas[layer], layer.inputs
    if layer.in_head:
        delta, inputs = rows.gather(delta), rows.gather(inputs[0])
    bias = getattr(module, "bias", None)
    if bias is not None:
        yield bias, delta.sum(1)
    if layer.kind == "norm":
        yield module.weight, (delta * inputs).sum(1)
        return
    if any(layer is other.tied for other in deltas):
        return  # its gradient is added to the embedding's
    height, width = module.weight.shape
    at_once = max(1, max_elements(delta.device) // (len(delta) * width))
    for first in range(0, height, at_once):
        part = slice(first, first + at_once)
        if layer.kind == "linear":
            yield module.weight, layer.outer(delta, inputs, part)
            continue
        gradients = _scattered(layer, delta, first, min(at_once, height - first))
        if layer.tied is not None:
            tied = layer.tied
            gradients = gradients + tied.outer(rows.gather(deltas[tied]), rows.gather(tied.inputs[0]), part)
        yield module.weight, gradients


def _scattered(layer: Layer, delta: Float[Tensor, "batch time width"], first: int, n: int) -> Tensor:
    """An embedding's gradient by row of text, for the `n` ids from `first` on: [B, n, width]."""
    ids = layer.inputs
    selected = (ids >= first) & (ids < first + n)
    if layer.module.padding_idx is not None:
        selected &= ids != layer.module.padding_idx
    row, time = selected.nonzero(as_tuple=True)
    flat = torch.zeros(len(ids) * n, delta.shape[-1], dtype=delta.dtype, device=delta.device)
    flat.index_add_(0, row * n + ids[row, time] - first, delta[row, time])
    return flat.view(len(ids), n, -1)


def check_row_grams(tape: Tape, gram: Float[Tensor, "rows rows"]) -> None:
    """Compare the products of two rows' gradients with those of a plain loop; a UserError if they differ."""
    counts = torch.bincount(tape.rows, minlength=len(tape.batch.ids))
    pair = counts.nonzero()[:2, 0]
    plain = [gradient(tape.losses[tape.rows == row] / counts[row], tape.model) for row in pair]
    plain = [{name: in_float64(g) for name, g in row_gradient.items()} for row_gradient in plain]
    dots = torch.stack([torch.stack([sum((a[n] * b[n]).sum() for n in a) for b in plain]) for a in plain])
    pair = pair.to(gram.device)
    fast = gram[pair][:, pair]
    if not (fast - dots).abs().max() <= 1e-3 * dots.abs().max():
        raise UserError(
            f"fast gradients of rows of {type(tape.model).__name__} differ from a plain loop's; "
            "this architecture is not supported"
        )


def _pairs(part: str, gram: Float[Tensor, "n n"], names: Sequence[str]) -> pl.DataFrame:
    """The upper triangle of a matrix of products as rows: part, a, b, dot, cosine."""
    dots = gram.cpu().numpy()
    norms = np.sqrt(np.diag(dots))
    a, b = np.triu_indices(len(dots))
    size = norms[a] * norms[b]
    cosine = np.divide(dots[a, b], size, out=np.full(len(a), np.nan), where=size > 0)
    frame = {"part": part, "a": [names[i] for i in a], "b": [names[i] for i in b], "dot": dots[a, b], "cosine": cosine}
    return pl.DataFrame(frame).with_columns(pl.col("cosine").clip(-1, 1).fill_nan(None))
