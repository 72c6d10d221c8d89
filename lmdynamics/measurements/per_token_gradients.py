"""Gradients of single tokens and of single rows, without a backward pass and a copy of all parameters for each.

A layer's gradient is a sum over positions of outer products of its input and the derivative of the loss by its output
(Goodfellow 2015, arXiv 1510.01799). All examples share the inputs; each needs only its derivatives, and the products
are formed layer by layer, used and discarded. Rows of a batch are independent: one backward pass computes the
derivatives of one token of *every* row.

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

MAX_ELEMENTS = {"cpu": 2**21}  # of gradients formed at once; on a CPU they should fit its caches


def max_elements(device: torch.device) -> int:
    """Number of gradient elements formed at once on a device."""
    return MAX_ELEMENTS.get(device.type, 2**27)


@dataclass(eq=False)
class Layer:
    """A module with parameters of its own, and its input and output in one forward pass.

    `kind`: linear, embedding or norm. In the body, `inputs` and `outputs` are [B, T, ·]; in the head, which gets the
    predicted positions only, [1, N, ·].
    """

    name: str
    kind: str
    module: nn.Module
    inputs: Tensor
    outputs: Tensor
    in_head: bool
    tied: "Layer | None" = None  # for an embedding: the head's layer with the same weights

    def outer(
        self, delta: Float[Tensor, "... time out"], inputs: Float[Tensor, "... time in"], rows=slice(None)
    ) -> Tensor:
        """A linear layer's weight gradient, in the weight's own shape (or `rows` of it): Σ_t delta_t ⊗ inputs_t."""
        if isinstance(self.module, Conv1D):  # its weight is [in, out]
            return inputs[..., rows].mT @ delta
        return delta[..., rows].mT @ inputs

    def linear(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """The output of a linear layer with another weight."""
        return inputs @ weight if isinstance(self.module, Conv1D) else F.linear(inputs, weight)


@dataclass(eq=False)
class Tape:
    """One forward pass over a batch, recorded to compute the gradients of its tokens and rows.

    Raises UserError if the model has parameters in a layer other than Linear, Conv1D, Embedding, LayerNorm and RMSNorm,
    or uses a layer more than once.
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
        body_modules = set(body_of(self.model).modules())
        hooks, names, states = [], set(), []

        def make_hook(name: str, module: nn.Module, kind: str):
            def record(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
                if name in names:
                    raise UserError(f"{self._name} uses {name} more than once; its tokens' gradients are not supported")
                names.add(name)
                inputs = arguments[0].detach()
                if kind == "embedding" and output.shape[0] == 1 < rows:
                    # position ids are often [1, T]: give every row its own
                    output, inputs = output.expand(rows, -1, -1), inputs.expand(rows, -1)
                self.layers.append(Layer(name, kind, module, inputs, output, module not in body_modules))
                return output

            return record

        for name, module in self.model.named_modules():
            if kind := _layer_kind(module):
                hooks.append(module.register_forward_hook(make_hook(name, module, kind)))
        try:
            with torch.enable_grad():
                self.losses = token_losses(self.model, batch, states)
        finally:
            for hook in hooks:
                hook.remove()
        for layer in self.layers:
            if layer.kind == "norm":
                layer.inputs = _normalised(layer, f"{self._name}: {layer.name}")
        self.states = states[0]
        self._refuse_unknown()
        self._tie()

    @property
    def _name(self) -> str:
        return type(self.model).__name__

    def _refuse_unknown(self) -> None:
        supported = {id(p) for layer in self.layers for p in layer.module.parameters(recurse=False)}
        unsupported = {n: p for n, p in self.model.named_parameters() if p.requires_grad and id(p) not in supported}
        if not unsupported:
            return
        grads = torch.autograd.grad(self.losses.sum(), list(unsupported.values()), retain_graph=True, allow_unused=True)
        for name, derivative in zip(unsupported, grads, strict=True):
            if derivative is not None:
                holder = self.model.get_submodule(name.rpartition(".")[0])
                raise UserError(
                    f"{self._name} has the parameter {name} in a {type(holder).__name__}; gradients of single tokens "
                    "are supported for Linear, Conv1D, Embedding, LayerNorm and RMSNorm layers"
                )

    def _tie(self) -> None:
        """Link an embedding to the head's layer with the same weights; refuse any other sharing."""
        by_weight: dict[Tensor, Layer] = {}
        for layer in self.layers:
            first = by_weight.setdefault(layer.module.weight, layer)
            if first is not layer:
                if not (first.kind == "embedding" and layer.kind == "linear" and layer.in_head):
                    raise UserError(f"{self._name}: weights shared by {first.name} and {layer.name} are not supported")
                first.tied = layer

    @property
    def rows(self) -> Int[Tensor, " tokens"]:
        """The row of each predicted token."""
        return self.batch.selected.nonzero()[:, 0]

    def rounds(self, selection: Int[Tensor, " some"] | None = None) -> Int[Tensor, " tokens"]:
        """Numbers 0, 1, … for the tokens of each row, left to right; -1 for tokens outside `selection`.

        Tokens with the same number are in different rows, so one backward pass is enough for all of them.
        """
        device = self.rows.device
        chosen = torch.arange(len(self.rows), device=device) if selection is None else selection.sort().values
        rows = self.rows[chosen].contiguous()  # sorted: tokens come row by row
        numbers = torch.full_like(self.rows, -1)
        numbers[chosen] = torch.arange(len(chosen), device=device) - torch.searchsorted(rows, rows)
        return numbers

    @cached_property
    def token_derivatives(self) -> tuple[dict[Layer, Tensor], Float[Tensor, "tokens width"]]:
        """Derivatives of each token's loss by the outputs of the head's layers, [N, ·], and by its last hidden state.

        The head treats positions one by one, so one backward pass is enough for all tokens.
        """
        head = [layer for layer in self.layers if layer.in_head]
        outputs = [*(layer.outputs for layer in head), self.states]
        derivatives = torch.autograd.grad(self.losses, outputs, torch.ones_like(self.losses), retain_graph=True)
        return {layer: delta[0] for layer, delta in zip(head, derivatives, strict=False)}, derivatives[-1][0]

    def body_deltas(self, by_state: Float[Tensor, "examples tokens width"]) -> dict[Layer, Tensor]:
        """Derivatives by outputs of the body's layers, [examples, B, T, ·], from those by its last hidden states."""
        body = [layer for layer in self.layers if not layer.in_head]
        deltas = torch.autograd.grad(
            [self.states],
            [layer.outputs for layer in body],
            [by_state.unsqueeze(1)],
            retain_graph=True,
            is_grads_batched=True,
        )
        return dict(zip(body, deltas, strict=True))

    def token_deltas(
        self, rounds: Int[Tensor, " tokens"], n_rounds: int, at_once: int
    ) -> Iterator[tuple[Int[Tensor, "examples batch"], dict[Layer, Tensor]]]:
        """The tokens of rounds 0 … `n_rounds` - 1, `at_once` rounds at a time: their numbers and their `body_deltas`.

        For a row without such a token the number is -1 and the deltas are zero. For a causal model the deltas end with
        the last of these tokens.
        """
        _, by_state = self.token_derivatives
        positions = self.batch.selected.nonzero()[:, 1]
        for start in range(0, n_rounds, at_once):
            current = torch.arange(start, min(start + at_once, n_rounds), device=rounds.device)
            chosen = rounds == current[:, None]  # [examples, N]
            numbers = torch.full((len(current), len(self.batch.ids)), -1, device=rounds.device)
            example, token = chosen.nonzero(as_tuple=True)
            numbers[example, self.rows[token]] = token
            deltas = self.body_deltas(by_state * chosen[..., None])
            end = int(positions[token].max()) + 1
            if not any(d[:, :, end:].any() for layer, d in deltas.items() if layer.kind == "embedding"):
                deltas = {layer: d[:, :, :end] for layer, d in deltas.items()}
            yield numbers, deltas


def gradient(losses: Float[Tensor, " tokens"], model: nn.Module) -> dict[str, Tensor]:
    """Gradient of the summed losses by every parameter, by name; zeros if they do not depend on it."""
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    gradients = torch.autograd.grad(losses.sum(), parameters, retain_graph=True, materialize_grads=True)
    return dict(zip(names, gradients, strict=True))


def directional_derivative(
    model: nn.Module, direction: dict[str, Tensor], batch: Predictions
) -> Float[Tensor, " tokens"]:
    """Derivative of each token's loss along `direction`: Σ_j g_ij u_j for all tokens in one forward-mode pass.

    The model's attention must be `eager`: fused kernels do not support forward mode.
    """
    module = _Losses(model)
    point = {f"model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    tangents = {f"model.{name}": direction[name].to(p.dtype) for name, p in model.named_parameters() if p.requires_grad}

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(module, parameters, (batch,))

    with warnings.catch_warnings():  # torch scripts derivatives when forward mode is first used
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        return torch.func.jvp(losses, (point,), (tangents,))[1]


class _Losses(nn.Module):
    """The tokens' losses as a module, so that `functional_call` can replace the parameters."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Predictions) -> Tensor:
        return token_losses(self.model, batch)


def token_losses(model: nn.Module, batch: Predictions, states: list[Tensor] | None = None) -> Float[Tensor, " tokens"]:
    """Loss of every predicted token (nats, at least float32), differentiable; `states` as for `logits_at`."""
    logits = logits_at(model, batch.ids, batch.attention_mask, batch.selected, states=states)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(dtype), batch.gold, reduction="none")


def _layer_kind(module: nn.Module) -> str | None:
    if isinstance(module, (nn.Linear, Conv1D)):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    weight = getattr(module, "weight", None)
    is_norm = "norm" in type(module).__name__.lower() and weight is not None and weight.ndim == 1
    return "norm" if is_norm else None


def _normalised(layer: Layer, name: str) -> Tensor:
    """The values that a norm multiplies by its weight; refused if it uses the weight otherwise (Gemma: 1 + weight)."""
    module, outputs = layer.module, layer.outputs.detach()
    with torch.no_grad():
        plain = {name: torch.full_like(p, float(name == "weight")) for name, p in module.named_parameters()}
        normalised = functional_call(module, plain, (layer.inputs,))
        expected = normalised * module.weight + (0 if getattr(module, "bias", None) is None else module.bias)
    if not torch.allclose(expected, outputs, rtol=1e-3, atol=1e-5 * float(outputs.abs().max())):
        raise UserError(
            f"{name} ({type(module).__name__}) is not a norm times a weight; its gradients are not supported"
        )
    return normalised


def parts(tape: Tape) -> Iterator[tuple[str, str, list[str]]]:
    """(level, part, its parameters' names): all of them; embeddings, each layer, head; every module.

    Modules before the first numbered layer are embeddings, those after the last are the head; tied weights belong to
    the embeddings.
    """
    name_of = {id(p): name for name, p in tape.model.named_parameters()}
    by_layer: dict[str, list[str]] = {}
    by_module: dict[str, list[str]] = {}
    assigned, part = set(), "embeddings"
    numbers = [re.search(r"\.(\d+)\.", layer.name) for layer in tape.layers]
    last = max((i for i, number in enumerate(numbers) if number), default=-1)
    for i, (layer, number) in enumerate(zip(tape.layers, numbers, strict=True)):
        if number:
            part = f"layer {number[1]}"
        elif i > last >= 0:
            part = "head"
        names = [name_of[id(p)] for p in layer.module.parameters(recurse=False) if id(p) in name_of]
        new = [name for name in names if name not in assigned]
        assigned.update(new)
        if new:
            by_layer.setdefault(part, []).extend(new)
            by_module[layer.name] = new
    yield "all", "all", [name for names in by_layer.values() for name in names]
    yield from (("layer", part, names) for part, names in by_layer.items())
    yield from (("module", module, names) for module, names in by_module.items())
