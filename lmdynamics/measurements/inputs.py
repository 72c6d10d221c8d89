"""Inputs of a model, which are sentences word by word in batches; and gold arcs, to score its heads.

Also checks of vocabulary and length, the halves of the sentences to choose and to score on, and the controls: fixed
offsets and shuffled arcs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lmdynamics.corpora.tokens import tokenize_words
from lmdynamics.corpora.treebanks import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.progress import print_once
from lmdynamics.training.batches import pad
from lmdynamics.training.objective import Movable


def check_ids(model: nn.Module, highest: int, text: str) -> None:
    """Raise a UserError if `highest`, the highest token id of `text`, has no embedding in the model."""
    rows = model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise UserError(
            f"{text} has the token id {highest}, the model has embeddings for ids 0 to {rows - 1}: this tokenizer is "
            "not the model's; save the one it was trained with beside it"
        )


def unused_rows(model: nn.Module, checkpoint) -> int:
    """Number of the model's output rows without a token; reported once, because the softmax includes them.

    Raises UserError if a masked model has fewer embeddings than its tokenizer has tokens: the mask or a random token
    might have none.
    """
    head, tokens = model.get_output_embeddings(), len(checkpoint.tokenizer)
    embeddings = model.get_input_embeddings().weight.shape[0]
    if checkpoint.objective != "clm" and tokens > embeddings:
        raise UserError(
            f"{checkpoint.run_name}: its tokenizer has {tokens:,} tokens, the model embeddings for {embeddings:,}, so "
            "a masked or random token may have none; save the tokenizer it was trained with beside it"
        )
    weight = getattr(head, "weight", None)  # a head of several layers has no such weight
    if weight is None or checkpoint.objective == "rts":
        return 0
    rows = weight.shape[0]
    if rows > tokens:
        print_once(
            f"{checkpoint.run_name}: the model has {rows:,} output rows, its tokenizer {tokens:,} tokens; the "
            f"{rows - tokens:,} unused rows take part in every probability, and so in loss, pair scores and dissent"
        )
    return max(0, rows - tokens)


MAX_TOKENS = 2048  # per batch, padding included
MAX_PADDING = 64  # tokens; this much padding costs about as much as another batch


@dataclass(frozen=True, eq=False)
class WordBatch(Movable):
    """Some sentences as one input, and the positions of their words. T tokens, W words in the longest sentence."""

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Int[Tensor, "batch time"]
    start: int  # token of the first word, where no word is split
    membership: Float[Tensor, "batch time words"] | None  # 1 where a token is a piece of a word; None: no word is split
    word_pairs: Float[Tensor, "batch 1 words words"]  # 1 between two different words of a sentence, otherwise 0
    cells: Int[Tensor, " n"]  # the valid words, as row * W + word
    columns: Int[Tensor, " n"]  # the same words, numbered through all sentences in the original order


@dataclass(frozen=True, eq=False)
class WordBatches:
    """All sentences, batched by length, so not in their original order."""

    name: str
    batches: tuple[WordBatch, ...]
    tokens: tuple[int, ...]  # of each sentence, special ones included
    words: int


@lru_cache(maxsize=4)
def encode_treebank(tokenizer, treebank: Treebank) -> WordBatches:
    """The sentences of `treebank` as batches for models that use `tokenizer`."""
    return encode_words(tokenizer, [sentence.words for sentence in treebank], treebank.name)


def encode_words(tokenizer, sentences: Sequence[Sequence[str]], name: str) -> WordBatches:
    """Tokenise sentences word by word and batch those of similar length.

    Sentences without split words have batches of their own: their word-level attention is a view, not a product.

    Raises UserError if there is no sentence, or where `tokenize_words` does.
    """
    if not sentences:
        raise UserError(f"{name} has no sentences; nothing can be measured on it")
    token_ids, word_ids = tokenize_words(tokenizer, sentences, name)
    split = [len(ids) - ids.count(-1) > len(words) for words, ids in zip(sentences, word_ids, strict=True)]
    tokens = [len(ids) for ids in word_ids]
    first = np.concatenate([[0], np.cumsum([len(words) for words in sentences])])
    order = sorted(range(len(sentences)), key=lambda i: (split[i], tokens[i], i))
    batches = []
    for chosen in _length_batches(order, tokens, split):
        ids, padded = pad([token_ids[i] for i in chosen], tokenizer.pad_token_id or 0)
        word, _ = pad([word_ids[i] for i in chosen], -1)
        is_word = torch.arange(max(len(sentences[i]) for i in chosen)) < torch.tensor(
            [[len(sentences[i])] for i in chosen]
        )
        pairs = (is_word[:, :, None] & is_word[:, None, :]).float().tril(-1)
        membership = word[:, :, None] == torch.arange(is_word.shape[1])
        batches.append(
            WordBatch(
                input_ids=ids,
                attention_mask=torch.ones_like(ids) if padded is None else (~padded).long(),
                start=word_ids[chosen[0]].index(0),
                membership=membership.float() if split[chosen[0]] else None,
                word_pairs=(pairs + pairs.mT)[:, None],
                cells=is_word.flatten().nonzero().squeeze(1),
                columns=torch.cat([torch.arange(first[i], first[i + 1]) for i in chosen]),
            )
        )
    return WordBatches(name, tuple(batches), tuple(tokens), int(first[-1]))


def spelled_words(tokenizer, treebank: Treebank) -> float:
    """Share of words that their tokens spell: 1 unless the tokenizer has unknown tokens.

    Checks that the attention of a word is read at its own tokens; it does not depend on the model.
    """
    words = [word.casefold() for sentence in treebank for word in sentence.words]
    spelled = 0
    for batch in encode_treebank(tokenizer, treebank).batches:
        width = batch.word_pairs.shape[-1]
        for cell, column in zip(batch.cells.tolist(), batch.columns.tolist(), strict=True):
            row, word = divmod(cell, width)
            own = [batch.start + word] if batch.membership is None else batch.membership[row, :, word].nonzero()[:, 0]
            text = tokenizer.decode(batch.input_ids[row, own], clean_up_tokenization_spaces=False)
            spelled += text.strip().casefold() == words[column]
    return spelled / len(words)


def unknown_words(tokenizer, words: Sequence[str]) -> list[str]:
    """The words that a tokenizer reads as its unknown token, wholly or in part."""
    read = (tokenizer([word], is_split_into_words=True)["input_ids"] for word in words)
    return [word for word, ids in zip(words, read, strict=True) if tokenizer.unk_token_id in ids]


def check_sentences(model: nn.Module, encoded: WordBatches) -> None:
    """Raise a UserError if the model has too few positions for the longest sentence, or no embedding for a token."""
    check_ids(model, max(int(batch.input_ids.max()) for batch in encoded.batches), encoded.name)
    longest = int(np.argmax(encoded.tokens))
    check_length(model, encoded.tokens[longest], f"sentence {longest} of {encoded.name}")


def check_length(model: nn.Module, longest: int, text: str, remedy: str = "leave out sentences that long") -> None:
    """Raise a UserError if `text` is longer than the model's number of positions."""
    limit = longest_input(model)
    if limit is not None and longest > limit:
        raise UserError(f"{text} is {longest} tokens long, the model takes at most {limit}; {remedy}")


def longest_input(model: nn.Module) -> int | None:
    """Number of positions of the model; None if its configuration sets no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa's positions start after its padding index
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return limit if limit is None or limit > 0 else None


def _length_batches(order: list[int], tokens: list[int], split: list[bool]) -> Iterator[list[int]]:
    """Cut `order` (by increasing length) into batches of at most MAX_TOKENS, at most MAX_PADDING of them padding."""
    batch: list[int] = []
    filled = 0
    for i in order:
        padded, filled = (len(batch) + 1) * tokens[i], filled + tokens[i]
        if batch and (padded > MAX_TOKENS or padded - filled > MAX_PADDING or split[i] != split[batch[0]]):
            yield batch
            batch, filled = [], tokens[i]
        batch.append(i)
    if batch:
        yield batch


@dataclass(frozen=True, eq=False)
class Arcs:
    """Arcs of the chosen relations. Arrays have one entry per arc; `names[relation]` is its relation."""

    column: Int[np.ndarray, " arcs"]  # the dependent, numbered through all sentences
    sentence: Int[np.ndarray, " arcs"]
    word: Int[np.ndarray, " arcs"]  # the dependent, numbered within its sentence
    head: Int[np.ndarray, " arcs"]  # its gold head, numbered within the sentence
    relation: Int[np.ndarray, " arcs"]
    names: tuple[str, ...]  # the most frequent first

    def __len__(self) -> int:
        return len(self.column)


@lru_cache(maxsize=8)
def gold_arcs(treebank: Treebank, min_count: int, leave_out: tuple[str, ...] = ()) -> Arcs:
    """All arcs of relations with at least `min_count` dependents in the treebank; roots have no arc.

    Raises UserError if no relation is that frequent.
    """
    every = every_word(treebank)
    head = every.head
    labels = np.array([relation for s in treebank for relation in s.relations], dtype=str)
    names, relation, counts = np.unique(labels[head >= 0], return_inverse=True, return_counts=True)
    frequent = [i for i in np.argsort(-counts, kind="stable") if counts[i] >= min_count and names[i] not in leave_out]
    if not frequent:
        top = max(((int(c), str(n)) for c, n in zip(counts, names, strict=True) if n not in leave_out), default=None)
        reason = f"the most frequent is {top[1]} with {top[0]}" if top else "there are none"
        raise UserError(
            f"{treebank.name}: no relation has {min_count} dependents ({reason}); lower min_count or use more sentences"
        )
    new_number = np.full(len(names), -1)
    new_number[frequent] = np.arange(len(frequent))
    relation = new_number[relation]
    column = np.flatnonzero(head >= 0)[relation >= 0]
    chosen = (column, every.sentence[column], every.word[column], head[column])
    return Arcs(*chosen, relation[relation >= 0], tuple(str(names[i]) for i in frequent))


@lru_cache(maxsize=8)
def every_word(treebank: Treebank) -> Arcs:
    """All words as if of one relation, roots and punctuation included; the head of a root is negative."""
    sentence = np.repeat(np.arange(len(treebank)), [len(s) for s in treebank])
    word = np.concatenate([np.arange(len(s)) for s in treebank]) if len(treebank) else np.zeros(0, int)
    return Arcs(np.arange(len(word)), sentence, word, gold_heads(treebank), np.zeros(len(word), int), ("all",))


def gold_heads(treebank: Treebank) -> Int[np.ndarray, " words"]:
    """Head of every word, numbered within its sentence; -1 for a root."""
    return np.array([head for sentence in treebank for head in sentence.heads], dtype=np.int64)


def score_half(sentences: int, seed: int) -> Bool[np.ndarray, " sentences"]:
    """Mask of the half of the sentences to score heads on; heads are chosen on the other half."""
    return np.random.default_rng(seed).permutation(sentences) >= sentences // 2


@lru_cache(maxsize=8)
def shuffled_trees(treebank: Treebank, seed: int) -> Treebank:
    """The same sentences with trees of the same shape and relations, whose nodes are permuted within the sentence.

    Permuting only the heads would be a weak control: in short sentences a third of the arcs stay right (most words
    depend on few heads), and attention to those few heads would look like syntax.
    """
    rng = np.random.default_rng(seed)
    sentences = []
    for sentence in treebank:
        position = rng.permutation(len(sentence))  # the word that each node of the tree is moved to
        heads, relations = [-1] * len(sentence), [""] * len(sentence)
        for node, (head, relation) in enumerate(zip(sentence.heads, sentence.relations, strict=True)):
            heads[position[node]] = int(position[head]) if head >= 0 else -1
            relations[position[node]] = relation
        sentences.append(Sentence(sentence.words, tuple(heads), tuple(relations)))
    return Treebank(f"{treebank.name}, shuffled", tuple(sentences))


def best_candidate(
    correct: Bool[np.ndarray, "candidates arcs"],
    relation: Int[np.ndarray, " arcs"],
    choosing: Bool[np.ndarray, " arcs"],
    relations: int,
) -> Int[np.ndarray, " relations"]:
    """Per relation, the candidate with most correct arcs in the mask `choosing`; of equals the first; -1 if no arcs."""
    group = relation[choosing]
    hits = sum_by(correct[:, choosing], group, relations)
    return np.where(np.bincount(group, minlength=relations) > 0, hits.argmax(0), -1)


def sum_by(values: np.ndarray, group: Int[np.ndarray, " n"], groups: int) -> np.ndarray:
    """Sums over the last axis of `values` within each group, in float64: shape [..., groups]."""
    order = np.argsort(group, kind="stable")
    present, starts = np.unique(group[order], return_index=True)
    sums = np.zeros((*values.shape[:-1], groups))
    if len(present):
        sums[..., present] = np.add.reduceat(values[..., order], starts, axis=-1, dtype=np.float64)
    return sums


def within_reach(arcs: Arcs, causal: bool) -> Bool[np.ndarray, "2 arcs"]:
    """Mask of the arcs that a head can find as dependent→head, and as head→dependent: all, unless it is causal.

    A causal head attends from a later word to an earlier one: from the dependent to a head on its left, or from the
    head to a dependent on its left. A root is out of reach in any model.
    """
    to_the_left = arcs.head < arcs.word
    return (np.stack([to_the_left, ~to_the_left]) | (not causal)) & (arcs.head >= 0)


def offset_baseline(treebank: Treebank, min_count: int = 100, seed: int = 0) -> pl.DataFrame:
    """Accuracy of a fixed distance to the head: the best offset of each relation, without a model.

    Rows: `relation`, `offset` (head minus dependent, in words), `split`, `count`, `accuracy`. For "select" and
    "score" the offset is chosen on the select half; for "all", on all sentences. An offset has one side, like a head
    of a causal model, so the two are comparable.

    Raises UserError if no relation has `min_count` dependents.
    """
    arcs = gold_arcs(treebank, min_count)
    score = score_half(len(treebank), seed)[arcs.sentence]
    everything = np.ones_like(score)
    offsets, correct = offset_candidates(arcs)
    rows = []
    for split, choosing, scoring in (
        ("select", ~score, ~score),
        ("score", ~score, score),
        ("all", everything, everything),
    ):
        best = best_candidate(correct, arcs.relation, choosing, len(arcs.names))
        for number, name in enumerate(arcs.names):
            scored = scoring & (arcs.relation == number)
            defined = best[number] >= 0 and scored.any()
            offset = int(offsets[best[number]]) if best[number] >= 0 else None
            accuracy = float(correct[best[number], scored].mean()) if defined else None
            rows.append((name, offset, split, int(scored.sum()), accuracy))
    dtypes = (pl.String, pl.Int64, pl.String, pl.Int64, pl.Float64)
    names = ("relation", "offset", "split", "count", "accuracy")
    return pl.DataFrame(rows, dict(zip(names, dtypes, strict=True)), orient="row")


def offset_candidates(arcs: Arcs) -> tuple[Int[np.ndarray, " candidates"], Bool[np.ndarray, "candidates arcs"]]:
    """Every distance that occurs, and the mask of arcs that have it."""
    distance, has_head = arcs.head - arcs.word, arcs.head >= 0
    offsets = np.unique(distance[has_head])
    return offsets, (distance == offsets[:, None]) & has_head
