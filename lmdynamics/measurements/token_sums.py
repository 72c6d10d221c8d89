"""Sums over tokens' gradients that are never all in memory: Σ_i|g_ij| by coordinate, Σ_j p_ij and Σ_j|p_ij| by token.

Gradients are formed layer by layer and some tokens at a time (`per_example`), reduced, and forgotten.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lmdynamics.devices import in_float64
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import Predictions
from lmdynamics.measurements.per_example import Layer, Tape, elements, gradient

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

    def know(self, signed: Tensor, absolute: Tensor, sampled: Tensor) -> None:
        """Take in the head's share of every token."""
        self.signed += signed[sampled]
        self.known += float(in_float64(absolute).sum())

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
        for numbers, deltas in tape.token_deltas(rounds, upto, rounds_at_once or (4 if device.type == "cpu" else 32)):
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
        sums.know((delta * read) @ u, (delta * read).abs() @ u.abs(), sampled)
        size = (delta * read).abs().sum(0)
    else:
        sums.know(
            (delta * layer.through(u, read)).sum(-1),
            (delta.abs() * layer.through(u.abs(), read.abs())).sum(-1),
            sampled,
        )
        size = layer.outer(delta.abs(), read.abs()) if sums.size is not None else None
    if sums.size is not None:
        sums.size += size
    if bias is not None:
        sums, u = of(bias)
        sums.know(delta @ u, delta.abs() @ u.abs(), sampled)
        if sums.size is not None:
            sums.size += delta.abs().sum(0)


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
