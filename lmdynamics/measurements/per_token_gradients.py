"""Gradients of single tokens and of single rows, without a backward pass and a copy of all parameters for each.

A layer's gradient is a sum over positions of outer products: of what it read, and of the loss's derivative by what it
wrote (Goodfellow 2015, arXiv 1510.01799). What was read is the same for all; so an example costs only its derivatives,
and the products are formed layer by layer, used, and forgotten. Rows of a batch do not touch each other: one backward
pass gives the derivatives of one token of *every* row.

Notation: B rows, T positions, N predicted tokens; an example is a token, or a row; u is an update of the parameters.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import Predictions
from lmdynamics.training.objective import body_of, logits_at

ELEMENTS = {"cpu": 2**21}  # of gradients formed at once: on a CPU, what its caches hold


def elements(device: torch.device) -> int:
    """How many elements of gradients are formed at once on a device."""
    return ELEMENTS.get(device.type, 2**27)


@dataclass(eq=False)
class Layer:
    """A module with parameters of its own, as one forward pass met it.

    `kind`: linear, embedding or norm. In the body, `read` and `wrote` are [B, T, ·]; in the head, which sees predicted
    positions only, [1, N, ·].
    """

    name: str
    kind: str
    module: nn.Module
    read: Tensor
    wrote: Tensor
    in_head: bool
    tied: "Layer | None" = None  # of an embedding: the head's layer that has the same weights

    def outer(
        self, delta: Float[Tensor, "... time out"], read: Float[Tensor, "... time in"], rows=slice(None)
    ) -> Tensor:
        """A linear layer's weight gradient, in the weight's own shape (or `rows` of it): Σ_t delta_t ⊗ read_t."""
        if isinstance(self.module, Conv1D):  # keeps its weight [in, out]
            return read[..., rows].mT @ delta
        return delta[..., rows].mT @ read

    def through(self, weight: Tensor, read: Tensor) -> Tensor:
        """What a linear layer with another weight would write."""
        return read @ weight if isinstance(self.module, Conv1D) else F.linear(read, weight)


@dataclass(eq=False)
class Tape:
    """One forward pass over a batch, with all that gradients of its tokens and rows are made of.

    Raises UserError if the model has parameters in a layer that is none of Linear, Conv1D, Embedding, LayerNorm and
    RMSNorm, or uses a layer more than once.
    """

    model: nn.Module
    batch: Predictions
    layers: list[Layer] = field(default_factory=list, init=False)
    losses: Float[Tensor, " tokens"] = field(init=False)
    states: Float[Tensor, "1 tokens width"] = field(init=False)

    def __post_init__(self):
        batch, rows = self.batch, len(self.batch.ids)
        if not batch.selected.any():
            raise UserError("these rows have no token to predict; give longer text or a higher masking rate")
        inside = set(body_of(self.model).modules())
        hooks, seen, states = [], set(), []

        def watch(name: str, module: nn.Module, kind: str):
            def note(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
                if name in seen:
                    raise UserError(f"{self._is} uses {name} more than once; gradients of single tokens cannot be told")
                seen.add(name)
                read = arguments[0].detach()
                if kind == "embedding" and output.shape[0] == 1 < rows:
                    # position ids are often [1, T]: give every row its own
                    output, read = output.expand(rows, -1, -1), read.expand(rows, -1)
                self.layers.append(Layer(name, kind, module, read, output, module not in inside))
                return output

            return note

        for name, module in self.model.named_modules():
            if kind := _kind(module):
                hooks.append(module.register_forward_hook(watch(name, module, kind)))
        try:
            with torch.enable_grad():
                self.losses = token_losses(self.model, batch, states)
        finally:
            for hook in hooks:
                hook.remove()
        for layer in self.layers:
            if layer.kind == "norm":
                layer.read = _normalised(layer, f"{self._is}: {layer.name}")
        self.states = states[0]
        self._refuse_unknown()
        self._tie()

    @property
    def _is(self) -> str:
        return type(self.model).__name__

    def _refuse_unknown(self) -> None:
        known = {id(p) for layer in self.layers for p in layer.module.parameters(recurse=False)}
        left = {n: p for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in known}
        if not left:
            return
        used = torch.autograd.grad(self.losses.sum(), list(left.values()), retain_graph=True, allow_unused=True)
        for name, derivative in zip(left, used, strict=True):
            if derivative is not None:
                holder = self.model.get_submodule(name.rpartition(".")[0])
                raise UserError(
                    f"{self._is} has the parameter {name} in a {type(holder).__name__}; gradients of single tokens are "
                    "known for Linear, Conv1D, Embedding, LayerNorm and RMSNorm layers"
                )

    def _tie(self) -> None:
        """Link an embedding to the head's layer that has its weights; refuse any other sharing."""
        by_weight: dict[Tensor, Layer] = {}
        for layer in self.layers:
            first = by_weight.setdefault(layer.module.weight, layer)
            if first is not layer:
                if not (first.kind == "embedding" and layer.kind == "linear" and layer.in_head):
                    raise UserError(f"{self._is}: {first.name} and {layer.name} share weights in a way not known here")
                first.tied = layer

    @property
    def rows(self) -> Int[Tensor, " tokens"]:
        """The row of each predicted token."""
        return self.batch.selected.nonzero()[:, 0]

    def rounds(self, among: Int[Tensor, " some"] | None = None) -> Int[Tensor, " tokens"]:
        """Numbers 0, 1, … for the tokens of each row, left to right; -1 for tokens that are not `among` those wanted.

        Tokens with the same number stand in different rows, so one backward pass serves them all.
        """
        device = self.rows.device
        chosen = torch.arange(len(self.rows), device=device) if among is None else among.sort().values
        rows = self.rows[chosen].contiguous()  # sorted: tokens come row by row
        numbers = torch.full_like(self.rows, -1)
        numbers[chosen] = torch.arange(len(chosen), device=device) - torch.searchsorted(rows, rows)
        return numbers

    @cached_property
    def by_token(self) -> tuple[dict[Layer, Tensor], Float[Tensor, "tokens width"]]:
        """Derivatives of each token's loss by what the head's layers wrote, [N, ·], and by its last hidden state.

        The head treats positions one by one, so that one backward pass keeps them apart.
        """
        head = [layer for layer in self.layers if layer.in_head]
        wanted = [*(layer.wrote for layer in head), self.states]
        found = torch.autograd.grad(self.losses, wanted, torch.ones_like(self.losses), retain_graph=True)
        return {layer: delta[0] for layer, delta in zip(head, found, strict=False)}, found[-1][0]

    def body_deltas(self, by_state: Float[Tensor, "examples tokens width"]) -> dict[Layer, Tensor]:
        """Derivatives by what the body's layers wrote, [examples, B, T, ·], from those by its last hidden states."""
        body = [layer for layer in self.layers if not layer.in_head]
        found = torch.autograd.grad(
            [self.states],
            [layer.wrote for layer in body],
            [by_state.unsqueeze(1)],
            retain_graph=True,
            is_grads_batched=True,
        )
        return dict(zip(body, found, strict=True))

    def token_deltas(
        self, rounds: Int[Tensor, " tokens"], upto: int, at_once: int
    ) -> Iterator[tuple[Int[Tensor, "examples batch"], dict[Layer, Tensor]]]:
        """The tokens of rounds 0 … `upto` - 1, `at_once` rounds at a time: their numbers, and their `body_deltas`.

        Where a row has no token left its number is -1 and its deltas are zero. Deltas end where a causal model's do,
        with the last of these tokens.
        """
        _, by_state = self.by_token
        positions = self.batch.selected.nonzero()[:, 1]
        for start in range(0, upto, at_once):
            wanted = torch.arange(start, min(start + at_once, upto), device=rounds.device)
            chosen = rounds == wanted[:, None]  # [examples, N]
            numbers = torch.full((len(wanted), len(self.batch.ids)), -1, device=rounds.device)
            example, token = chosen.nonzero(as_tuple=True)
            numbers[example, self.rows[token]] = token
            deltas = self.body_deltas(by_state * chosen[..., None])
            end = int(positions[token].max()) + 1
            if not any(d[:, :, end:].any() for layer, d in deltas.items() if layer.kind == "embedding"):
                deltas = {layer: d[:, :, :end] for layer, d in deltas.items()}
            yield numbers, deltas


def gradient(losses: Float[Tensor, " tokens"], model: nn.Module) -> dict[str, Tensor]:
    """Gradient of the summed losses by every parameter, under its name; zeros where nothing depends on one."""
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(losses.sum(), parameters, retain_graph=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def directional_derivative(
    model: nn.Module, direction: dict[str, Tensor], batch: Predictions
) -> Float[Tensor, " tokens"]:
    """How fast each token's loss changes along `direction`: Σ_j g_ij u_j for all tokens in one forward-mode pass.

    The model's attention must be `eager`: fused kernels have no forward mode.
    """
    wrapped = _Losses(model)
    point = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    along = {f"model.{name}": direction[name].to(p.dtype) for name, p in model.named_parameters() if p.requires_grad}

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(wrapped, parameters, (batch,))

    with warnings.catch_warnings():  # torch scripts its own derivatives when forward mode is first used
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        return torch.func.jvp(losses, (point,), (along,))[1]


class _Losses(nn.Module):
    """A model as a function to its tokens' losses, so that parameters can be swapped for others from outside."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Predictions) -> Tensor:
        return token_losses(self.model, batch)


def token_losses(model: nn.Module, batch: Predictions, states: list[Tensor] | None = None) -> Float[Tensor, " tokens"]:
    """Loss of every predicted token (nats, float32 at least), open to differentiation; `states` as for `logits_at`."""
    logits = logits_at(model, batch.ids, batch.attention_mask, batch.selected, states=states)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), batch.gold, reduction="none")


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, (nn.Linear, Conv1D)):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    weight = getattr(module, "weight", None)
    is_norm = "norm" in type(module).__name__.lower() and weight is not None and weight.ndim == 1
    return "norm" if is_norm else None


def _normalised(layer: Layer, where: str) -> Tensor:
    """What a norm multiplies with its weight; refused where weight and bias act otherwise (Gemma's is 1 + weight)."""
    module, wrote = layer.module, layer.wrote.detach()
    with torch.no_grad():
        plain = {name: torch.full_like(p, float(name == "weight")) for name, p in module.named_parameters()}
        normalised = functional_call(module, plain, (layer.read,))
        again = normalised * module.weight + (0 if getattr(module, "bias", None) is None else module.bias)
    if not torch.allclose(again, wrote, rtol=1e-3, atol=1e-5 * float(wrote.abs().max())):
        raise UserError(
            f"{where} ({type(module).__name__}) is no norm times a weight; its gradients are not known here"
        )
    return normalised


def parts(tape: Tape) -> Iterator[tuple[str, str, list[str]]]:
    """(level, part, its parameters' names): all of them; embeddings, each layer, head; every module.

    What comes before the first numbered layer counts as embeddings, what comes after the last as head; tied weights
    belong to the embeddings.
    """
    name_of = {id(p): name for name, p in tape.model.named_parameters()}
    by_layer: dict[str, list[str]] = {}
    by_module: dict[str, list[str]] = {}
    taken, part = set(), "embeddings"
    numbers = [re.search(r"\.(\d+)\.", layer.name) for layer in tape.layers]
    last = max((i for i, number in enumerate(numbers) if number), default=-1)
    for i, (layer, number) in enumerate(zip(tape.layers, numbers, strict=True)):
        if number:
            part = f"layer {number[1]}"
        elif i > last >= 0:
            part = "head"
        own = [name_of[id(p)] for p in layer.module.parameters(recurse=False) if id(p) in name_of]
        fresh = [name for name in own if name not in taken]
        taken.update(fresh)
        if fresh:
            by_layer.setdefault(part, []).extend(fresh)
            by_module[layer.name] = fresh
    yield "all", "all", [name for names in by_layer.values() for name in names]
    yield from (("layer", part, names) for part, names in by_layer.items())
    yield from (("module", module, names) for module, names in by_module.items())
