"""The training objective: the loss from logits at chosen positions only, and the syntactic-attention penalty.

The vocabulary projection takes most of a small model's time, so it is computed at the predicted positions only. Then

    loss = L_MLM + λ · mean over arcs of γ(i, j)

after Chen et al. 2023 (arXiv 2309.07311): γ is the attention from i to j, the largest of all layers and heads (`max`)
or their sum (`uniform`). λ > 0 suppresses syntactic attention structure (SAS−), λ < 0 promotes it (SAS+). The authors'
code sums over batch and tokens, so that its λ depends on the batch; here it is the mean over arcs.

The attention of an arc is from the dependent to its head (`head`), from the head to its dependent (`children`), or
both. Between words of several pieces it is summed over the pieces attended to and averaged over those attending.
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

    Equal to `model(input_ids, attention_mask).logits[selected]`, gradients included, but the head computes no other
    positions. The hidden states are selected between the model's body and its head, so this works for any
    `transformers` model whose head treats positions independently and reads its body's last hidden state. `model` may
    be wrapped for several processes; under `torch.compile`, compile the body's `forward`, not the whole model. A list
    passed as `attentions` is filled with every layer's attention, which the model must compute by `eager`; one passed
    as `states` with the head's input, [1, selected, width].

    Raises UserError if the model has no separate body, its head returns logits of another shape, or the attention is
    missing.
    """
    body = body_of(model)
    index = selected.flatten().nonzero().squeeze(1)

    def select_states(module: nn.Module, arguments: tuple, output):
        hidden = output.last_hidden_state.flatten(0, 1)
        # index_select: its backward pass is a plain index_add, that of boolean indexing sorts first
        output.last_hidden_state = hidden.index_select(0, index.to(hidden.device)).unsqueeze(0)
        if states is not None:
            states.append(output.last_hidden_state)
        if attentions is not None:
            attentions.extend(attention_of(output, model))
        return output

    options = {} if attentions is None else {"output_attentions": True}
    hook = body.register_forward_hook(select_states)
    try:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **options).logits
    finally:
        hook.remove()
    if logits.dim() != 3 or logits.shape[:2] != (1, len(index)):
        raise UserError(
            f"{_name(model)} returned logits of shape {list(logits.shape)} for {len(index)} positions; "
            "its head does not treat positions one by one: use a masked or causal language model"
        )
    return logits[0]


def attention_of(output, model: nn.Module) -> list[Tensor]:
    """Attention of every layer, [batch heads time time] each, from the output of the model's body.

    Raises UserError if it is missing: only `attn_implementation="eager"` returns it.
    """
    attentions = [layer for layer in output.attentions or () if layer is not None]
    layers = _unwrap(model).config.num_hidden_layers
    if len(attentions) != layers:
        raise UserError(
            f'{_name(model)} returned attention for {len(attentions)} of {layers} layers; load with attention="eager"'
        )
    return attentions


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
ARC_DIRECTIONS = ("both", "head", "children")


class Movable:
    """A dataclass of tensors, or of such dataclasses, with a method to move it to a device."""

    def to(self, device):
        return replace(self, **{name: part.to(device) for name, part in vars(self).items() if hasattr(part, "to")})


@dataclass(frozen=True, eq=False)
class Links(Movable):
    """The pairs of tokens that form the arcs of a batch: attention[row, :, query, key] adds to `arc` with `weight`."""

    row: Int64[Tensor, " links"]
    query: Int64[Tensor, " links"]
    key: Int64[Tensor, " links"]
    arc: Int64[Tensor, " links"]
    weight: Float32[Tensor, " links"]
    arcs: int  # of the whole batch

    def share(self, process: int, processes: int) -> "Links":
        """The links in the rows of one of several processes."""
        in_share = self.row % processes == process
        row, *columns = (column[in_share] for column in (self.row, self.query, self.key, self.arc, self.weight))
        return Links(row // processes, *columns, self.arcs)


@dataclass(frozen=True, eq=False)
class Trees:
    """Rows of tokens with their trees: per token, its word and the head of that word.

    Words are numbered within their row; `word` is -1 at special tokens, `head` is -1 at special tokens and roots.
    """

    rows: TokenRows
    word: TokenRows
    head: TokenRows

    @classmethod
    def from_words(cls, rows: TokenRows, heads: TokenRows) -> "Trees":
        """Trees of rows in which every word is one token, between [CLS] and [SEP]."""
        word = np.arange(len(rows.ids)) - np.repeat(rows.offsets[:-1], rows.lengths) - 1
        word[rows.offsets[1:] - 1] = -1
        return cls(rows, TokenRows(word.astype(np.int32), rows.offsets), heads)

    def shuffled(self, seed: int) -> "Trees":
        """A control: each tree keeps its shape, and its nodes are moved to other words of the sentence.

        For rows in which every word is one token.
        """
        tokens = np.flatnonzero(self.word.ids >= 0)  # the nodes, in order
        row = np.repeat(np.arange(len(self.rows)), self.rows.lengths)[tokens]
        moved = tokens[np.lexsort((np.random.default_rng(seed).random(len(tokens)), row))]  # where each node goes
        gold = self.head.ids[tokens]
        head_node = np.searchsorted(row, row) + gold  # of a root: some other node, not used
        heads = np.full_like(self.head.ids, -1)
        heads[moved[gold >= 0]] = self.word.ids[moved[head_node[gold >= 0]]]
        return replace(self, head=TokenRows(heads, self.head.offsets))

    def links(self, chosen: Sequence[int], direction: str = "both") -> Links:
        """The arcs of the rows `chosen`, in this order, for a batch padded on the right."""
        parts = [_token_pairs(self.word[i], self.head[i]) for i in chosen]
        sizes = [len(dependent) for dependent, *_ in parts]
        row = np.repeat(np.arange(len(parts)), sizes)
        dependent, head, own_pieces, head_pieces, arc = (np.concatenate(x) for x in zip(*parts, strict=True))
        arcs = np.cumsum([0, *(int(part[4][-1]) + 1 if len(part[4]) else 0 for part in parts)])
        arc = arc + np.repeat(arcs[:-1], sizes)
        to_head, to_child = (row, dependent, head, arc, 1 / own_pieces), (row, head, dependent, arc, 1 / head_pieces)
        directions = {"head": [to_head], "children": [to_child], "both": [to_head, to_child]}[direction]
        total = int(arcs[-1])
        row, query, key, arc, weight = (np.concatenate(column) for column in zip(*directions, strict=True))
        if direction == "both":
            arc[len(arc) // 2 :] += total
        indices = (torch.from_numpy(column.astype(np.int64)) for column in (row, query, key, arc))
        return Links(*indices, torch.from_numpy(weight.astype(np.float32)), total * len(directions))


def _token_pairs(word: np.ndarray, head: np.ndarray):
    """Pairs (token of a dependent, token of its head), with both words' numbers of pieces and the arc's number."""
    token = np.flatnonzero(head >= 0)
    words = int(word.max(initial=-1)) + 1
    count = np.bincount(word[word >= 0], minlength=words)
    start = np.full(words, len(word))
    np.minimum.at(start, word[word >= 0], np.flatnonzero(word >= 0))
    own_pieces, head_pieces = count[word[token]], count[head[token]]
    _, arc = np.unique(word[token], return_inverse=True)
    token, own_pieces, arc = (np.repeat(x, head_pieces) for x in (token, own_pieces, arc))
    within = np.arange(len(token)) - np.repeat(np.cumsum(head_pieces) - head_pieces, head_pieces)
    head_token = np.repeat(start[head[np.flatnonzero(head >= 0)]], head_pieces) + within
    return token, head_token, own_pieces, np.repeat(head_pieces, head_pieces), arc


def encode_trees(treebank: Treebank, tokenizer, longest: int) -> Trees:
    """The sentences of a treebank as rows for a model; those of more than `longest` tokens are left out.

    Raises UserError if no sentence remains, or where `tokenize_words` does.
    """
    lengths = map(
        len, tokenizer([list(s.words) for s in treebank], is_split_into_words=True, verbose=False)["input_ids"]
    )
    sentences = [sentence for sentence, length in zip(treebank, lengths, strict=True) if length <= longest]
    if not sentences:
        raise UserError(f"{treebank.name} has no sentence of at most {longest} tokens; use shorter ones")
    ids, word_ids = tokenize_words(tokenizer, [sentence.words for sentence in sentences], treebank.name)
    heads = [[-1 if i < 0 else tree.heads[i] for i in row] for tree, row in zip(sentences, word_ids, strict=True)]
    return Trees(*map(TokenRows.from_rows, (ids, word_ids, heads)))


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
    weights = torch.cat(columns, 1).float() * links.weight[:, None]
    if len(links.arc) == links.arcs:
        return weights  # no word is split: link i is arc i, except for the order
    return weights.new_zeros(links.arcs, weights.shape[1]).index_add(0, links.arc, weights)


def penalty_sum(
    attentions: Sequence[Float[Tensor, "batch heads time time"]], links: Links, form: str
) -> Float[Tensor, ""]:
    """Sum over arcs of γ: the largest attention of all heads and layers (`max`), or their sum (`uniform`)."""
    weights = arc_attention(attentions, links)
    return (weights.amax(1) if form == "max" and weights.numel() else weights).sum()


def set_attention(model: nn.Module, implementation: str) -> None:
    """Let a model compute attention by `eager` (which can return it) or `sdpa` (which is faster)."""
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)
