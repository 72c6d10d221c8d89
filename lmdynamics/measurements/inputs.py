"""What goes into a model: sentences given word by word as batches, and whether its vocabulary is the tokenizer's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmdynamics.corpora.gold import Treebank
from lmdynamics.corpora.tokens import tokenize_words
from lmdynamics.errors import UserError
from lmdynamics.progress import say_once


def check_ids(model: nn.Module, highest: int, what: str) -> None:
    """Raise a UserError if `what` holds a token id that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise UserError(
            f"{what} holds the token id {highest}, the model has embeddings for ids 0 to {rows - 1}: this tokenizer is "
            "not the model's; save the one it was trained with beside it"
        )


def unused_rows(model: nn.Module, checkpoint) -> int:
    """How many of the model's output rows belong to no token; said once, because the softmax runs over them, too.

    Raises UserError if a masked model has fewer rows than its tokenizer has tokens: the mask or a random token would
    have no row.
    """
    head, tokens = model.get_output_embeddings(), len(checkpoint.tokenizer)
    embeddings = model.get_input_embeddings().weight.shape[0]
    if checkpoint.objective != "clm" and tokens > embeddings:
        raise UserError(
            f"{checkpoint.run_name}: its tokenizer has {tokens:,} tokens, the model embeddings for {embeddings:,}, so "
            "a masked or random token may have none; save the tokenizer it was trained with beside it"
        )
    weight = getattr(head, "weight", None)  # a head of several layers does not say how many rows it has
    if weight is None or checkpoint.objective == "rts":
        return 0
    rows = weight.shape[0]
    if rows > tokens:
        say_once(
            f"{checkpoint.run_name}: the model has {rows:,} output rows, its tokenizer {tokens:,} tokens; the "
            f"{rows - tokens:,} unused rows share in every probability, and so in loss, pair scores and dissent"
        )
    return max(0, rows - tokens)


TOKENS = 2048  # per batch, padding included
PADDING = 64  # tokens of padding that cost about as much as another batch


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


@lru_cache(maxsize=4)
def encode_treebank(tokenizer, treebank: Treebank) -> WordBatches:
    """The sentences of `treebank` as batches for models that use `tokenizer`."""
    return encode_words(tokenizer, [sentence.words for sentence in treebank], treebank.name)


def encode_words(tokenizer, sentences: Sequence[Sequence[str]], name: str) -> WordBatches:
    """Tokenise sentences word by word and batch those of like length.

    Sentences none of whose words are split are batched apart: their word-level attention is a view, not a product.

    Raises UserError if there is no sentence, or where `tokenize_words` does.
    """
    if not sentences:
        raise UserError(f"{name} has no sentences; nothing can be measured on it")
    ids_of, pieces = tokenize_words(tokenizer, sentences, name)
    split = [len(of_word) - of_word.count(-1) > len(words) for words, of_word in zip(sentences, pieces, strict=True)]
    tokens = [len(of_word) for of_word in pieces]
    first = np.concatenate([[0], np.cumsum([len(words) for words in sentences])])
    order = sorted(range(len(sentences)), key=lambda i: (split[i], tokens[i], i))
    batches = []
    for chosen in _alike(order, tokens, split):
        ids = _side_by_side([ids_of[i] for i in chosen], tokenizer.pad_token_id or 0)
        of_word = _side_by_side([pieces[i] for i in chosen], -1)
        there = torch.arange(max(len(sentences[i]) for i in chosen)) < torch.tensor(
            [[len(sentences[i])] for i in chosen]
        )
        between = (there[:, :, None] & there[:, None, :]).float().tril(-1)
        membership = of_word[:, :, None] == torch.arange(there.shape[1])
        batches.append(
            WordBatch(
                input_ids=ids,
                attention_mask=(torch.arange(ids.shape[1]) < torch.tensor([[tokens[i]] for i in chosen])).long(),
                start=pieces[chosen[0]].index(0),
                membership=membership.float() if split[chosen[0]] else None,
                between=(between + between.mT)[:, None],
                cells=there.flatten().nonzero().squeeze(1),
                columns=torch.cat([torch.arange(first[i], first[i + 1]) for i in chosen]),
            )
        )
    return WordBatches(name, tuple(batches), tuple(tokens), int(first[-1]))


def spelled_words(tokenizer, treebank: Treebank) -> float:
    """Share of words whose own tokens, put together, spell them: 1 unless the tokenizer does not know some.

    Not how well anything was learnt: whether attention is read from the words it is said to be of.
    """
    words = [word.casefold() for sentence in treebank for word in sentence.words]
    spelled = 0
    for batch in encode_treebank(tokenizer, treebank).batches:
        width = batch.between.shape[-1]
        for cell, column in zip(batch.cells.tolist(), batch.columns.tolist(), strict=True):
            row, word = divmod(cell, width)
            own = [batch.start + word] if batch.membership is None else batch.membership[row, :, word].nonzero()[:, 0]
            made = tokenizer.decode(batch.input_ids[row, own], clean_up_tokenization_spaces=False)
            spelled += made.strip().casefold() == words[column]
    return spelled / len(words)


def _side_by_side(rows: list[list[int]], filler: int) -> Int[Tensor, "batch time"]:
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def check_length(model: nn.Module, encoded: WordBatches) -> None:
    """Raise a UserError if the model has too few positions for the longest sentence, or no embedding for a token."""
    check_ids(model, max(int(batch.input_ids.max()) for batch in encoded.batches), encoded.name)
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
