"""Attention between words, and the word each head looks at most.

Definitions (Clark et al. 2019): attention to a word is the sum over its pieces, attention from it the mean over
its pieces; then the diagonal is zeroed and special tokens' rows and columns dropped, without renormalising.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int16
from torch import Tensor, nn

from lmdynamics.corpora.treebank import Treebank
from lmdynamics.errors import UserError

TOKENS = 2048  # per batch, padding included
PADDING = 64  # tokens of padding that cost about as much as another batch
DIRECTIONS = ("dependent→head", "head→dependent")


@dataclass(frozen=True, eq=False)
class WordBatch:
    """Some sentences as one input, and where their words are in it. T tokens, W words in the longest sentence."""

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Int[Tensor, "batch time"]
    start: int  # token of the first word, where no word is split
    membership: Float[Tensor, "batch time words"] | None  # 1 where a token is a piece of a word; None: no word is split
    between: Float[Tensor, "batch 1 words words"]  # 1 between two different words of the sentence, otherwise 0
    cells: Int[Tensor, " n"]  # the words there are, as row * W + word
    columns: Int[Tensor, " n"]  # the same words, counted through all sentences in their own order

    def to(self, device: str) -> "WordBatch":
        if device == "cpu":
            return self
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(self).items()}
        return WordBatch(**moved)


@dataclass(frozen=True, eq=False)
class WordBatches:
    """All sentences, the like-long together: their order is that of neither the text nor chance."""

    name: str
    batches: tuple[WordBatch, ...]
    tokens: tuple[int, ...]  # of each sentence, special ones included
    words: int


@dataclass(frozen=True, eq=False)
class Parents:
    """For each word and head, the word that the head would make its parent, and the weight on the gold parent.

    Axes: layer, direction (as `DIRECTIONS`), head, word (counted through all sentences). `parent` counts within the
    sentence; -1 where the head gives no weight to any other word, as a causal head has nothing left of the first.
    """

    parent: Int16[np.ndarray, "layers 2 heads words"]
    weight: Float32[np.ndarray, "layers 2 heads words"]


@lru_cache(maxsize=4)
def encode_treebank(tokenizer, treebank: Treebank) -> WordBatches:
    """The sentences of `treebank` as batches for models that use `tokenizer`."""
    return encode_words(tokenizer, [sentence.words for sentence in treebank], treebank.name)


def encode_words(tokenizer, sentences: Sequence[Sequence[str]], name: str) -> WordBatches:
    """Tokenise sentences word by word and batch those of like length.

    Sentences none of whose words are split are batched apart: their word-level attention is a view, not a product.

    Raises
    ------
    UserError
        If there is no sentence, or the tokenizer drops a word, or does not treat words as it treats running text.
    """
    if not sentences:
        raise UserError(f"{name} has no sentences; nothing can be measured on it")
    _check_word_boundaries(tokenizer)
    encoded = tokenizer(
        [list(words) for words in sentences], is_split_into_words=True, return_attention_mask=False, verbose=False
    )
    pieces = [[-1 if word is None else word for word in encoded.word_ids(i)] for i in range(len(sentences))]
    for words, of_word in zip(sentences, pieces, strict=True):
        if lost := sorted(set(range(len(words))) - set(of_word)):
            raise UserError(
                f"{name}: the tokenizer makes nothing of {words[lost[0]]!r} in {_quote(words)}; "
                "leave the sentence out or use the tokenizer the model was trained with"
            )
    split = [len(of_word) - of_word.count(-1) > len(words) for words, of_word in zip(sentences, pieces, strict=True)]
    tokens = [len(of_word) for of_word in pieces]
    first = np.concatenate([[0], np.cumsum([len(words) for words in sentences])])
    order = sorted(range(len(sentences)), key=lambda i: (split[i], tokens[i], i))
    pad = tokenizer.pad_token_id or 0
    batches = []
    for chosen in _alike(order, tokens, split):
        longest = max(tokens[i] for i in chosen)
        ids = np.full((len(chosen), longest), pad)
        of_word = np.full((len(chosen), longest), -1)
        for row, i in enumerate(chosen):
            ids[row, : tokens[i]] = encoded["input_ids"][i]
            of_word[row, : tokens[i]] = pieces[i]
        counts = torch.tensor([len(sentences[i]) for i in chosen])
        there = torch.arange(int(counts.max())) < counts[:, None]
        between = (there[:, :, None] & there[:, None, :]).float().tril(-1)
        membership = torch.from_numpy(of_word)[:, :, None] == torch.arange(there.shape[1])
        batches.append(
            WordBatch(
                input_ids=torch.from_numpy(ids),
                attention_mask=(torch.arange(longest) < torch.tensor([tokens[i] for i in chosen])[:, None]).long(),
                start=pieces[chosen[0]].index(0),
                membership=membership.float() if split[chosen[0]] else None,
                between=(between + between.mT)[:, None],
                cells=there.flatten().nonzero().squeeze(1),
                columns=torch.cat([torch.arange(first[i], first[i + 1]) for i in chosen]),
            )
        )
    return WordBatches(name, tuple(batches), tuple(tokens), int(first[-1]))


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


def check_length(model: nn.Module, encoded: WordBatches) -> None:
    """Raise a UserError that names the longest sentence if the model has too few positions for it."""
    limit = longest_input(model)
    longest = int(np.argmax(encoded.tokens))
    if limit is not None and encoded.tokens[longest] > limit:
        raise UserError(
            f"sentence {longest} of {encoded.name} is {encoded.tokens[longest]} tokens long, the model takes at most "
            f"{limit}; leave out sentences that long"
        )


def longest_input(model: nn.Module) -> int | None:
    """Tokens that the model has positions for; None if its configuration sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa counts positions from behind its padding index
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return limit if limit is None or limit > 0 else None


def _alike(order: list[int], tokens: list[int], split: list[bool]) -> Iterator[list[int]]:
    """Cut `order` (by rising length) into batches of at most TOKENS, of which at most PADDING is padding."""
    batch: list[int] = []
    filled = 0
    for i in order:
        padded, filled = (len(batch) + 1) * tokens[i], filled + tokens[i]
        if batch and (padded > TOKENS or padded - filled > PADDING or split[i] != split[batch[0]]):
            yield batch
            batch, filled = [], tokens[i]
        batch.append(i)
    if batch:
        yield batch


def _check_word_boundaries(tokenizer) -> None:
    words = ["the", "cat", "and", "the", "dog"]
    apart = tokenizer(words, is_split_into_words=True)["input_ids"]
    if apart != tokenizer(" ".join(words))["input_ids"]:
        raise UserError(
            "the tokenizer cuts words given one by one differently from running text; "
            "a byte-level BPE must be built with add_prefix_space=True"
        )


def _check_distribution(attention: Tensor, batch: WordBatch, layer: int) -> None:
    sums = attention.float().sum(-1).transpose(1, 2)[batch.attention_mask.bool()]
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        found = "NaN: the model has diverged" if sums.isnan().any() else f"{float(sums.min()):.3f}"
        raise UserError(f"attention of layer {layer} should sum to 1 over the tokens looked at, but sums to {found}")


def _quote(words: Sequence[str]) -> str:
    text = " ".join(words)
    return repr(text if len(text) <= 60 else text[:57] + "...")
