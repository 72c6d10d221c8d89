"""Sums and cosines of the gradients of single tokens and rows, which `per_token_gradients` forms layer by layer.

Sums over tokens: Σ_i|g_ij| by coordinate, Σ_j p_ij and Σ_j|p_ij| by token. Cosines between rows, and between groups of
tokens: do they pull the parameters the same way? Mircea et al. 2025 (arXiv 2506.05447): where learning has slowed down,
gradients of examples point against each other.
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
from lmdynamics.measurements.per_token_gradients import Layer, Tape, elements, gradient, parts
from lmdynamics.measurements.trace import Measurement

FEWEST = 12  # tokens of a sample, below which its standard error is not to be trusted


@dataclass
class Sums:
    """What the tokens' gradients g and the update u come to, for one parameter tensor.

    `size`: Σ_i|g_ij| by coordinate, where every token counts. Otherwise `absolute`: Σ_j|p_ij| of the sampled tokens,
    without the head's share, which is known for all tokens (`known`, summed). `signed`: Σ_j p_ij of the sampled tokens.
    """

    size: Tensor | None
    absolute: Tensor | None
    signed: Float[Tensor, " sampled"]
    known: float = 0.0

    def know(self, signed: Tensor, absolute: Tensor, sampled: Tensor, size: Callable[[], Tensor]) -> None:
        """Take in the head's share of every token; its `size` is computed where it is needed."""
        self.signed += signed[sampled]
        self.known += float(in_float64(absolute).sum())
        if self.size is not None:
            self.size += size()

    def signed_at(self, at: Tensor, values: Tensor) -> None:
        self.signed.index_add_(0, at[at >= 0], values[at >= 0])

    def absolute_at(self, at: Tensor, values: Tensor) -> None:
        self.absolute.index_add_(0, at[at >= 0], values[at >= 0])

    def add(self, formed: Float[Tensor, "examples batch width"], u: Tensor, at: Tensor) -> None:
        """Take in gradients of a vector, formed as they are."""
        self.signed_at(at, formed @ u)
        if self.size is not None:
            self.size += formed.abs().sum((0, 1))
        else:
            self.absolute_at(at, formed.abs() @ u.abs())


def token_sums(
    tape: Tape, update: dict[str, Tensor], share: float, seed: int, rounds_at_once: int = 0
) -> tuple[dict[str, Sums], Int[Tensor, " sampled"]]:
    """`Sums` for each parameter that a recorded layer holds, and the numbers of the tokens they are over.

    `share` below 1: of a simple random sample of so many of the predicted tokens, FEWEST at least.
    `rounds_at_once`: tokens of every row whose backward passes are batched into one; 0 chooses by the device.
    """
    n, device = len(tape.losses), tape.losses.device
    size = n if share == 1 else min(n, max(FEWEST, round(share * n)))
    chosen = np.sort(np.random.default_rng(seed).permutation(n)[:size])
    sampled = torch.from_numpy(chosen).to(device)
    rounds = tape.rounds(sampled)
    upto = int(rounds.max()) + 1
    place = torch.full((n + 1,), -1, device=device)  # a number of -1 stays -1
    place[sampled] = torch.arange(len(sampled), device=device)

    names = {id(p): name for name, p in tape.model.named_parameters()}
    sums: dict[str, Sums] = {}

    def of(parameter: Tensor) -> tuple[Sums, Tensor]:
        name, zeros = names[id(parameter)], torch.zeros(len(sampled), dtype=parameter.dtype, device=device)
        if name not in sums:
            exact = share == 1
            sums[name] = Sums(torch.zeros_like(parameter) if exact else None, None if exact else zeros, zeros.clone())
        return sums[name], update[name].to(parameter)

    with torch.no_grad():
        head, _ = tape.by_token
        for layer, delta in head.items():
            _add_head(layer, delta, sampled, of)
        slots = {layer: Slots.of(layer) for layer in tape.layers if layer.kind == "embedding"}
        at_once = rounds_at_once or (4 if device.type == "cpu" else 32)
        for numbers, deltas in tape.token_deltas(rounds, upto, at_once):
            at = place[numbers]
            for layer, delta in deltas.items():
                if layer.kind == "embedding":
                    _add_embedding(layer, delta, numbers, at, head, slots[layer], *of(layer.module.weight))
                else:
                    _add_body(layer, delta, at, of)
    return sums, sampled


def _add_head(layer: Layer, delta: Float[Tensor, "tokens out"], sampled: Tensor, of) -> None:
    """One position a token: the size of an outer product is the outer product of sizes, and none is formed."""
    read, bias = layer.read[0], getattr(layer.module, "bias", None)
    sums, u = of(layer.module.weight)
    if layer.kind == "norm":
        own = delta * read
        sums.know(own @ u, own.abs() @ u.abs(), sampled, lambda: own.abs().sum(0))
    else:
        signed = (delta * layer.through(u, read)).sum(-1)
        absolute = (delta.abs() * layer.through(u.abs(), read.abs())).sum(-1)
        sums.know(signed, absolute, sampled, lambda: layer.outer(delta.abs(), read.abs()))
    if bias is not None:
        sums, u = of(bias)
        sums.know(delta @ u, delta.abs() @ u.abs(), sampled, lambda: delta.abs().sum(0))


def _add_body(layer: Layer, delta: Float[Tensor, "examples batch time out"], at: Int[Tensor, "examples batch"], of):
    """A layer's gradients of some tokens: formed a few at a time, summed, forgotten."""
    read, bias = layer.read[:, : delta.shape[2]], getattr(layer.module, "bias", None)
    sums, u = of(layer.module.weight)
    if layer.kind == "norm":
        sums.add((delta * read).sum(-2), u, at)
    else:
        sums.signed_at(at, (delta * layer.through(u, read)).sum((-1, -2)))
        for rounds, rows, formed in _formed(layer, delta, read):
            formed.abs_()
            if sums.size is not None:
                sums.size[rows] += formed.sum((0, 1))
            else:
                sums.absolute_at(at[rounds], formed.flatten(2) @ u[rows].abs().flatten())
    if bias is not None:
        sums, u = of(bias)
        sums.add(delta.sum(-2), u, at)


def _formed(layer: Layer, delta: Tensor, read: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Weight gradients by rounds and, where one round is already much, by rows of the weight; at most `elements`."""
    examples, batch = delta.shape[:2]
    height, width = layer.module.weight.shape
    room = elements(delta.device) // (batch * width)
    many, high = max(1, room // height), max(1, min(height, room))
    for first in range(0, examples, many):
        for row in range(0, height, high):
            rounds, rows = slice(first, first + many), slice(row, row + high)
            yield rounds, rows, layer.outer(delta[rounds], read, rows)


def _add_embedding(layer, delta, numbers, at, head, slots: "Slots", sums: Sums, u: Tensor) -> None:
    """An embedding's gradient touches the rows of its tokens only; where the head has the same weights, it adds to
    that of the head there, and only the difference it makes is counted."""
    scattered = slots.sum(delta)
    sums.signed_at(at, (scattered * u[slots.ids]).sum((-1, -2)))
    before = 0.0
    if layer.tied is not None:
        rows = head[layer.tied][numbers]  # [examples, batch, vocab]; -1 picks some row, which is weighed 0 below
        here = rows.gather(-1, slots.ids.expand(len(rows), -1, -1)) * (numbers >= 0)[..., None] * slots.there
        outer = here[..., None] * layer.tied.read[0][numbers][:, :, None]
        scattered, before = scattered + outer, outer.abs()
    more = scattered.abs() - before
    if sums.size is not None:
        sums.size.index_add_(0, slots.ids.flatten(), more.sum(0).flatten(0, 1))
    else:
        sums.absolute_at(at, (more * u[slots.ids].abs()).sum((-1, -2)))


@dataclass(frozen=True, eq=False)
class Slots:
    """The different ids of each row of an embedding's input: row b's are `ids[b]` where `there`, T slots to a row."""

    ids: Int[Tensor, "batch time"]
    there: Tensor  # bool, like ids
    place: Float[Tensor, "batch slots time"]  # 1 where a position holds the slot's id

    @classmethod
    def of(cls, layer: Layer) -> "Slots":
        ordered, order = layer.read.sort(dim=1)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        slot = torch.empty_like(order).scatter_(1, order, fresh.cumsum(1) - 1)
        ids = torch.zeros_like(ordered).scatter_(1, slot, layer.read)
        there = torch.arange(ids.shape[1], device=ids.device) < fresh.sum(1, keepdim=True)
        place = (slot[:, None] == torch.arange(ids.shape[1], device=ids.device)[:, None]).to(layer.wrote)
        if layer.module.padding_idx is not None:  # gets no gradient
            place = place * (layer.read != layer.module.padding_idx)[:, None]
        return cls(ids, there, place)

    def sum(self, delta: Float[Tensor, "examples batch time width"]) -> Float[Tensor, "examples batch slots width"]:
        return self.place[..., : delta.shape[2]] @ delta


def cross_check(tape: Tape, update: dict[str, Tensor]) -> None:
    """Compare Σ_i|g_ij| of two tokens with a plain loop, parameter by parameter.

    Raises UserError if they differ.
    """
    batch, row = tape.batch, int(tape.rows[0])
    selected = torch.zeros_like(batch.selected[row : row + 1])
    selected[0, batch.selected[row].nonzero()[:2, 0]] = True
    mask = None if batch.attention_mask is None else batch.attention_mask[row : row + 1]
    first = Predictions(batch.ids[row : row + 1], mask, selected, batch.gold[: int(selected.sum())])
    few = Tape(tape.model, first)
    fast, _ = token_sums(few, update, share=1.0, seed=0)
    slow = [gradient(loss[None], tape.model) for loss in few.losses]
    largest = max(float(g.abs().max()) for of_token in slow for g in of_token.values())
    for name in fast:
        plain = sum(of_token[name].abs() for of_token in slow)
        if not (fast[name].size - plain).abs().max() <= 1e-3 * largest:
            raise UserError(
                f"fast gradients of single tokens by {name} of {type(tape.model).__name__} differ from a plain loop's; "
                "this architecture is not supported"
            )


@dataclass(frozen=True)
class Opposition(Measurement):
    """Cosines between the gradients of rows of text, of all parameters and of each layer's.

    A row's loss is the mean over its predicted tokens. Rows: part (all, embeddings, layer 0 …, head), a, b (numbers of
    two rows of `blocks`, a ≤ b), dot, cosine (null where a gradient is zero). The first `examples` rows are taken;
    masks of a masked model are drawn by `seed`.

    Raises UserError if the rows are too few, or the architecture is not supported.
    """

    blocks: TokenRows
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

    blocks: TokenRows
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


def tape_of(checkpoint, blocks: TokenRows, examples: int, seed: int, device: str) -> Tape:
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


class Rows:
    """The predicted tokens of a batch row by row: [B, K] numbers of tokens, and where there are so many."""

    def __init__(self, tape: Tape):
        rounds = tape.rounds()
        self.numbers = torch.zeros(len(tape.batch.ids), int(rounds.max()) + 1, dtype=torch.long, device=rounds.device)
        self.there = torch.zeros_like(self.numbers, dtype=torch.bool)
        self.numbers[tape.rows, rounds] = torch.arange(len(rounds), device=rounds.device)
        self.there[tape.rows, rounds] = True

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
