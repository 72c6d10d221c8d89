"""Logits at chosen positions only: the vocabulary projection is where a small model spends its time."""

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from lmdynamics.errors import UserError


def logits_at(
    model: nn.Module,
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Shaped[Tensor, "batch time"] | None,
    selected: Bool[Tensor, "batch time"],
    attentions: list[Tensor] | None = None,
    states: list[Tensor] | None = None,
) -> Float[Tensor, "selected vocab"]:
    """The logits of `model` at the positions that `selected` marks, row by row, left to right.

    Equal to `model(input_ids, attention_mask).logits[selected]`, gradients included, without the other positions'
    share of the head. The hidden states are thinned out between the model's body and its head, so this works for any
    `transformers` model whose head treats positions independently and reads its body's last hidden state. `model` may
    be wrapped for several processes; under `torch.compile`, compile the body's `forward`, not the whole. A list given
    as `attentions` is filled with every layer's attention, which the model must compute by `eager`; one given as
    `states` with the hidden states that the head reads, [1, selected, width].

    Raises
    ------
    UserError
        If the model has no separate body, or its head gives logits of another shape.
    """
    body = body_of(model)
    index = selected.flatten().nonzero().squeeze(1)

    def thin_out(module: nn.Module, arguments: tuple, output):
        whole = output.last_hidden_state.flatten(0, 1)
        # index_select: its backward pass is a plain index_add, that of boolean indexing sorts first
        output.last_hidden_state = whole.index_select(0, index.to(whole.device)).unsqueeze(0)
        if states is not None:
            states.append(output.last_hidden_state)
        if attentions is not None:
            attentions.extend(layer for layer in output.attentions or () if layer is not None)
        return output

    shown = {} if attentions is None else {"output_attentions": True}
    hook = body.register_forward_hook(thin_out)
    try:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **shown).logits
    finally:
        hook.remove()
    layers = _unwrap(model).config.num_hidden_layers
    if attentions is not None and len(attentions) != layers:
        raise UserError(
            f'{_name(model)} gave attention for {len(attentions)} of {layers} layers; load it with attention="eager"'
        )
    if logits.dim() != 3 or logits.shape[:2] != (1, len(index)):
        raise UserError(
            f"{_name(model)} gave logits of shape {list(logits.shape)} for {len(index)} positions; "
            "its head does not treat positions one by one: use a masked or causal language model"
        )
    return logits[0]


def body_of(model: nn.Module) -> nn.Module:
    bare = _unwrap(model)
    body = getattr(bare, "base_model", bare)
    if body is bare:
        raise UserError(
            f"{_name(model)} has no language-model head of its own; "
            "load it as AutoModelForMaskedLM or AutoModelForCausalLM"
        )
    return body


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel (`module`) or `torch.compile` (`_orig_mod`)."""
    while not hasattr(model, "base_model"):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None:
            break
        model = inner
    return model


def _name(model: nn.Module) -> str:
    return type(_unwrap(model)).__name__
