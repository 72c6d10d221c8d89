"""Do examples pull the parameters the same way? Cosines between gradients of rows, and of groups of tokens.

Mircea et al. 2025 (arXiv 2506.05447): where learning has slowed down, gradients of examples point against each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.devices import in_float64
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import unused_rows
from lmdynamics.measurements.losses import MASKING_RATE, check_rows, prediction_batches
from lmdynamics.measurements.optimizer_step import parts
from lmdynamics.measurements.per_example import Layer, Tape, elements, gradient
from lmdynamics.measurements.trace import Measurement


@dataclass(frozen=True)
class Opposition(Measurement):
    """Cosines between the gradients of rows of text, of all parameters and of each layer's.

    A row's loss is the mean over its predicted tokens. Rows: part (all, embeddings, layer 0 …, head), a, b (numbers of
    two rows of `blocks`, a ≤ b), dot, cosine (null where a gradient is zero). The first `examples` rows are taken;
    masks of a masked model are drawn by `seed`.

    Raises UserError if the rows are too few, or the architecture is not supported.
    """

    blocks: Blocks
    examples: int = 32
    seed: int = 0

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        tape = tape_of(checkpoint, self.blocks, self.examples, self.seed, device)
        grams = row_grams(tape)
        check_rows_of(tape, grams["all"])
        names = [str(row) for row in range(len(tape.batch.ids))]
        frame = pl.concat(_pairs(part, gram, names) for part, gram in grams.items())
        return frame.with_columns(pl.col("a", "b").cast(pl.Int32))


@dataclass(frozen=True)
class GroupOpposition(Measurement):
    """Cosines between the gradients of groups of tokens. Rows: part, a, b (groups), dot, cosine, tokens_a, tokens_b.

    `groups`: the group of each token id, such as how frequent it is; a group's gradient is the mean over its predicted
    tokens in the first `examples` rows. Groups come in the order in which they first appear in `groups`.
    """

    blocks: Blocks
    groups: tuple[str, ...]
    examples: int = 64
    seed: int = 0

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        tape = tape_of(checkpoint, self.blocks, self.examples, self.seed, device)
        gold = tape.batch.gold
        if int(gold.max()) >= len(self.groups):
            raise UserError(
                f"groups= names the group of {len(self.groups)} token ids, the text has token {int(gold.max())}; "
                "give one for every id of the vocabulary"
            )
        known = list(dict.fromkeys(self.groups))
        member = torch.tensor([known.index(self.groups[token]) for token in gold.tolist()])
        counts = torch.bincount(member, minlength=len(known)).tolist()
        there = [i for i, count in enumerate(counts) if count]
        gradients = [gradient(tape.losses[(member == i).to(tape.losses.device)] / counts[i], tape.model) for i in there]
        frames = []
        for level, part, own in parts(tape):
            if level == "module":
                continue
            rows = in_float64(torch.stack([torch.cat([g[name].flatten() for name in own]) for g in gradients]))
            frames.append(_pairs(part, rows @ rows.T, [known[i] for i in there]))
        sizes = {known[i]: counts[i] for i in there}
        return pl.concat(frames).with_columns(
            pl.col(side).replace_strict(sizes, return_dtype=pl.Int64).alias(f"tokens_{side}") for side in ("a", "b")
        )


def tape_of(checkpoint, blocks: Blocks, examples: int, seed: int, device: str) -> Tape:
    """The first rows of `blocks`, read once by the checkpoint's model; a UserError if there are fewer than two."""
    model = checkpoint.model("eager", device).float()
    check_rows(model, blocks)
    unused_rows(model, checkpoint)
    n = min(examples, len(blocks))
    if n < 2:
        raise UserError(f"{n} rows make no pair; give at least 2 and examples=2 or more")
    (batch,) = prediction_batches(checkpoint, blocks.take(range(n)), MASKING_RATE, seed, n)
    return Tape(model, batch.to(device))


def row_grams(tape: Tape) -> dict[str, Float[Tensor, "rows rows"]]:
    """⟨g_a, g_b⟩ of the rows' gradients, by part, float64; a slice of one layer's gradients is formed at a time."""
    counts = torch.bincount(tape.rows, minlength=len(tape.batch.ids)).clamp(min=1)
    share = (1 / counts)[tape.rows].to(tape.losses)[:, None]  # a row's loss is the mean over its tokens
    head, by_state = tape.by_token
    deltas = {layer: delta * share for layer, delta in head.items()}
    deltas |= {layer: delta[0] for layer, delta in tape.body_deltas(share * by_state[None]).items()}
    where = {name: part for level, part, names in parts(tape) if level == "layer" for name in names}
    names = {id(p): name for name, p in tape.model.named_parameters()}
    rows = Rows(tape)
    zero = in_float64(torch.zeros(len(tape.batch.ids), len(tape.batch.ids), device=tape.losses.device))
    grams = {"all": zero} | {part: zero.clone() for part in dict.fromkeys(where.values())}
    for layer in tape.layers:
        for parameter, formed in row_gradients(layer, deltas, rows):
            flat = formed.flatten(1)
            grams[where[names[id(parameter)]]] += in_float64(flat @ flat.T)
    grams["all"] = sum(gram for part, gram in grams.items() if part != "all")
    return grams


@dataclass(frozen=True, eq=False)
class Rows:
    """The predicted tokens of a batch row by row: [B, K] numbers of tokens, and where there are so many."""

    numbers: Int[Tensor, "batch most"]
    there: Tensor  # bool, like numbers

    def __init__(self, tape: Tape):
        rounds = tape.rounds()
        numbers = torch.zeros(len(tape.batch.ids), int(rounds.max()) + 1, dtype=torch.long, device=rounds.device)
        there = torch.zeros_like(numbers, dtype=torch.bool)
        numbers[tape.rows, rounds] = torch.arange(len(rounds), device=rounds.device)
        there[tape.rows, rounds] = True
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "there", there)

    def of(self, by_token: Float[Tensor, "tokens width"]) -> Float[Tensor, "batch most width"]:
        return by_token[self.numbers] * self.there[..., None]


def row_gradients(layer: Layer, deltas: dict[Layer, Tensor], rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    """(parameter, gradient of it or of some rows of it) for every row of text: [B, …]."""
    module, delta, read = layer.module, deltas[layer], layer.read
    if layer.in_head:
        delta, read = rows.of(delta), rows.of(read[0])
    bias = getattr(module, "bias", None)
    if bias is not None:
        yield bias, delta.sum(1)
    if layer.kind == "norm":
        yield module.weight, (delta * read).sum(1)
        return
    if any(layer is other.tied for other in deltas):
        return  # its gradient is formed with the embedding's, to which it adds
    height, width = module.weight.shape
    high = max(1, elements(delta.device) // (len(delta) * width))
    for first in range(0, height, high):
        if layer.kind == "linear":
            yield module.weight, layer.outer(delta, read, slice(first, first + high))
            continue
        formed = _scattered(layer, delta, first, min(high, height - first))
        if layer.tied is not None:
            on = layer.tied
            formed = formed + on.outer(rows.of(deltas[on]), rows.of(on.read[0]), slice(first, first + high))
        yield module.weight, formed


def _scattered(layer: Layer, delta: Float[Tensor, "batch time width"], first: int, high: int) -> Tensor:
    """An embedding's gradient by row of text, for the ids from `first` on: [B, high, width]."""
    ids = layer.read
    wanted = (ids >= first) & (ids < first + high)
    if layer.module.padding_idx is not None:
        wanted &= ids != layer.module.padding_idx
    row, time = wanted.nonzero(as_tuple=True)
    flat = torch.zeros(len(ids) * high, delta.shape[-1], dtype=delta.dtype, device=delta.device)
    flat.index_add_(0, row * high + ids[row, time] - first, delta[row, time])
    return flat.view(len(ids), high, -1)


def check_rows_of(tape: Tape, gram: Float[Tensor, "rows rows"]) -> None:
    """Compare the products of two rows' gradients with those of a plain loop; a UserError if they differ."""
    counts = torch.bincount(tape.rows, minlength=len(tape.batch.ids))
    two = counts.nonzero()[:2, 0]
    plain = [gradient(tape.losses[tape.rows == row] / counts[row], tape.model) for row in two]
    plain = [{name: in_float64(g) for name, g in of_row.items()} for of_row in plain]
    dots = torch.stack([torch.stack([sum((a[n] * b[n]).sum() for n in a) for b in plain]) for a in plain])
    two = two.to(gram.device)
    found = gram[two][:, two]
    if not (found - dots).abs().max() <= 1e-3 * dots.abs().max():
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
