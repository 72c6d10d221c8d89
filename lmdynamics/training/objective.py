"""What training minimises: the loss from logits at chosen positions only, and the syntactic-attention penalty.

The vocabulary projection is where a small model spends its time: it is computed for the positions to predict. Then

    loss = L_MLM + λ · mean over arcs of γ(i, j)

after Chen et al. 2023 (arXiv 2309.07311): γ is the attention from i to j, the largest of all layers and heads (`max`)
or their sum (`uniform`). λ > 0 suppresses syntactic attention structure (SAS−), λ < 0 promotes it (SAS+). The authors'
code sums over batch and tokens, so that its λ depends on the batch; here it is the mean over arcs.

An arc counts from the dependent to its head (`head`), from the head to its dependent (`children`), or both ways.
Attention between words of several pieces: summed over the pieces attended to, averaged over those attending.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped
from torch import Tensor, nn

from lmdynamics.corpora.tokens import TokenRows, tokenize_words
from lmdynamics.corpora.treebanks import Treebank
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

    Raises UserError if the model has no separate body, its head gives logits of another shape, or the attention that
    is asked for is not there.
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
            attentions.extend(attention_of(output, model))
        return output

    shown = {} if attentions is None else {"output_attentions": True}
    hook = body.register_forward_hook(thin_out)
    try:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **shown).logits
    finally:
        hook.remove()
    if logits.dim() != 3 or logits.shape[:2] != (1, len(index)):
        raise UserError(
            f"{_name(model)} gave logits of shape {list(logits.shape)} for {len(index)} positions; "
            "its head does not treat positions one by one: use a masked or causal language model"
        )
    return logits[0]


def attention_of(output, model: nn.Module) -> list[Tensor]:
    """Attention of every layer, [batch heads time time] each, from what the model's body gave.

    Raises UserError if it is not there: all but `attn_implementation="eager"` leave it out without a word.
    """
    found = [layer for layer in output.attentions or () if layer is not None]
    layers = _unwrap(model).config.num_hidden_layers
    if len(found) != layers:
        raise UserError(
            f'{_name(model)} gave attention for {len(found)} of {layers} layers; load it with attention="eager"'
        )
    return found


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


FORMS = ("max", "uniform")
WAYS = ("both", "head", "children")


class Movable:
    """A dataclass of tensors, or of such dataclasses, that can be moved to a device."""

    def to(self, device):
        return replace(self, **{name: part.to(device) for name, part in vars(self).items() if hasattr(part, "to")})


@dataclass(frozen=True, eq=False)
class Links(Movable):
    """The pairs of tokens that make up the arcs of a batch: `weight` of attention[row, :, query, key] goes to `arc`."""

    row: Int64[Tensor, " links"]
    query: Int64[Tensor, " links"]
    key: Int64[Tensor, " links"]
    arc: Int64[Tensor, " links"]
    weight: Float32[Tensor, " links"]
    arcs: int  # of the whole batch

    def share(self, process: int, processes: int) -> "Links":
        """The links in the rows of one of several processes."""
        mine = self.row % processes == process
        row, *rest = (x[mine] for x in (self.row, self.query, self.key, self.arc, self.weight))
        return Links(row // processes, *rest, self.arcs)


@dataclass(frozen=True, eq=False)
class Trees:
    """Rows of tokens with the trees over them: per token, the word it is a piece of, and that word's head word.

    Words are numbered within their row; -1 stands at special tokens (`word`) and at roots (`head`).
    """

    rows: TokenRows
    word: TokenRows
    head: TokenRows

    @classmethod
    def of_words(cls, rows: TokenRows, heads: TokenRows) -> "Trees":
        """Where every word is one token, between [CLS] and [SEP]."""
        place = np.arange(len(rows.ids)) - np.repeat(rows.offsets[:-1], rows.lengths) - 1
        place[rows.offsets[1:] - 1] = -1
        return cls(rows, TokenRows(place.astype(np.int32), rows.offsets), heads)

    def links(self, chosen: Sequence[int], way: str = "both") -> Links:
        """The arcs of the rows `chosen`, in that order, for a batch padded on the right."""
        parts = [_pieces(self.word[i], self.head[i]) for i in chosen]
        sizes = [len(dependent) for dependent, *_ in parts]
        row = np.repeat(np.arange(len(parts)), sizes)
        dependent, head, of_dependent, of_head, arc = (np.concatenate(x) for x in zip(*parts, strict=True))
        arcs = np.cumsum([0, *(int(part[4][-1]) + 1 if len(part[4]) else 0 for part in parts)])
        arc = arc + np.repeat(arcs[:-1], sizes)
        upwards, downwards = (row, dependent, head, arc, 1 / of_dependent), (row, head, dependent, arc, 1 / of_head)
        ways = {"head": [upwards], "children": [downwards], "both": [upwards, downwards]}[way]
        total = int(arcs[-1])
        row, query, key, arc, weight = (np.concatenate(x) for x in zip(*ways, strict=True))
        if way == "both":
            arc[len(arc) // 2 :] += total
        indices = (torch.from_numpy(x.astype(np.int64)) for x in (row, query, key, arc))
        return Links(*indices, torch.from_numpy(weight.astype(np.float32)), total * len(ways))


def _pieces(word: np.ndarray, head: np.ndarray):
    """Pairs (token of a dependent, token of its head), with the pieces of either word and the number of the arc."""
    token = np.flatnonzero(head >= 0)
    words = int(word.max(initial=-1)) + 1
    count = np.bincount(word[word >= 0], minlength=words)
    start = np.full(words, len(word))
    np.minimum.at(start, word[word >= 0], np.flatnonzero(word >= 0))
    of_dependent, of_head = count[word[token]], count[head[token]]
    _, arc = np.unique(word[token], return_inverse=True)
    token, of_dependent, arc = (np.repeat(x, of_head) for x in (token, of_dependent, arc))
    within = np.arange(len(token)) - np.repeat(np.cumsum(of_head) - of_head, of_head)
    head_token = np.repeat(start[head[np.flatnonzero(head >= 0)]], of_head) + within
    return token, head_token, of_dependent, np.repeat(of_head, of_head), arc


def encode_trees(treebank: Treebank, tokenizer, longest: int) -> Trees:
    """The sentences of a treebank as rows for a model; those of more than `longest` tokens are left out.

    Raises UserError if no sentence is left, or where `tokenize_words` does.
    """
    lengths = map(
        len, tokenizer([list(s.words) for s in treebank], is_split_into_words=True, verbose=False)["input_ids"]
    )
    kept = [sentence for sentence, length in zip(treebank, lengths, strict=True) if length <= longest]
    if not kept:
        raise UserError(f"{treebank.name} has no sentence of at most {longest} tokens; use shorter ones")
    ids, words = tokenize_words(tokenizer, [sentence.words for sentence in kept], treebank.name)
    heads = [[-1 if i < 0 else tree.heads[i] for i in of_word] for tree, of_word in zip(kept, words, strict=True)]
    return Trees(*map(TokenRows.from_rows, (ids, words, heads)))


def arc_attention(
    attentions: Sequence[Float[Tensor, "batch heads time time"]], links: Links
) -> Float[Tensor, "arcs layers_heads"]:
    """Attention along each arc under every head of every layer."""
    columns = []
    for attention in attentions:
        _, heads, time, _ = attention.shape
        # one flat index_select: its backward pass is a plain index_add, that of indexing by four tensors is slow
        flat = ((links.row * heads)[:, None] + torch.arange(heads, device=attention.device)) * time**2
        flat = flat + (links.query * time + links.key)[:, None]
        columns.append(attention.reshape(-1).index_select(0, flat.reshape(-1)).view(-1, heads))
    along = torch.cat(columns, 1).float() * links.weight[:, None]
    if len(links.arc) == links.arcs:
        return along  # no word is split: link i is arc i, but for their order
    return along.new_zeros(links.arcs, along.shape[1]).index_add(0, links.arc, along)


def penalty_sum(
    attentions: Sequence[Float[Tensor, "batch heads time time"]], links: Links, form: str
) -> Float[Tensor, ""]:
    """Sum over arcs of γ: the largest attention of all heads and layers (`max`), or their sum (`uniform`)."""
    along = arc_attention(attentions, links)
    return (along.amax(1) if form == "max" and along.numel() else along).sum()


def attend(model: nn.Module, implementation: str) -> None:
    """Let a model compute attention by `eager` (which can show it) or `sdpa` (which is faster)."""
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)
