"""What goes into a model: sentences given word by word, as batches; and what its heads are held against, gold arcs.

Also whether the model's vocabulary is the tokenizer's, the halves that sentences are split into, and the controls,
which are fixed offsets and shuffled arcs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lmdynamics.corpora.gold import Sentence, Treebank
from lmdynamics.corpora.tokens import tokenize_words
from lmdynamics.errors import UserError
from lmdynamics.progress import print_once
from lmdynamics.training.batches import pad
from lmdynamics.training.objective import Movable


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
        print_once(
            f"{checkpoint.run_name}: the model has {rows:,} output rows, its tokenizer {tokens:,} tokens; the "
            f"{rows - tokens:,} unused rows share in every probability, and so in loss, pair scores and dissent"
        )
    return max(0, rows - tokens)


TOKENS = 2048  # per batch, padding included
PADDING = 64  # tokens of padding that cost about as much as another batch


@dataclass(frozen=True, eq=False)
class WordBatch(Movable):
    """Some sentences as one input, and where their words are in it. T tokens, W words in the longest sentence."""

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Int[Tensor, "batch time"]
    start: int  # token of the first word, where no word is split
    membership: Float[Tensor, "batch time words"] | None  # 1 where a token is a piece of a word; None: no word is split
    between: Float[Tensor, "batch 1 words words"]  # 1 between two different words of the sentence, otherwise 0
    cells: Int[Tensor, " n"]  # the words there are, as row * W + word
    columns: Int[Tensor, " n"]  # the same words, counted through all sentences in their own order


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
        ids, padded = pad([ids_of[i] for i in chosen], tokenizer.pad_token_id or 0)
        of_word, _ = pad([pieces[i] for i in chosen], -1)
        there = torch.arange(max(len(sentences[i]) for i in chosen)) < torch.tensor(
            [[len(sentences[i])] for i in chosen]
        )
        between = (there[:, :, None] & there[:, None, :]).float().tril(-1)
        membership = of_word[:, :, None] == torch.arange(there.shape[1])
        batches.append(
            WordBatch(
                input_ids=ids,
                attention_mask=torch.ones_like(ids) if padded is None else (~padded).long(),
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


def check_sentences(model: nn.Module, encoded: WordBatches) -> None:
    """Raise a UserError if the model has too few positions for the longest sentence, or no embedding for a token."""
    check_ids(model, max(int(batch.input_ids.max()) for batch in encoded.batches), encoded.name)
    longest = int(np.argmax(encoded.tokens))
    check_length(model, encoded.tokens[longest], f"sentence {longest} of {encoded.name}")


def check_length(model: nn.Module, longest: int, what: str, remedy: str = "leave out sentences that long") -> None:
    """Raise a UserError if `what` is longer than the model has positions for."""
    limit = longest_input(model)
    if limit is not None and longest > limit:
        raise UserError(f"{what} is {longest} tokens long, the model takes at most {limit}; {remedy}")


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


@dataclass(frozen=True, eq=False)
class Arcs:
    """Dependents of the chosen relations. Arrays have one entry per arc; `names[relation]` is its relation."""

    column: Int[np.ndarray, " arcs"]  # the dependent, counted through all sentences
    sentence: Int[np.ndarray, " arcs"]
    word: Int[np.ndarray, " arcs"]  # the dependent, counted within its sentence
    head: Int[np.ndarray, " arcs"]  # its gold head, counted within the sentence
    relation: Int[np.ndarray, " arcs"]
    names: tuple[str, ...]  # the most frequent first

    def __len__(self) -> int:
        return len(self.column)


@lru_cache(maxsize=8)
def gold_arcs(treebank: Treebank, min_count: int, leave_out: tuple[str, ...] = ()) -> Arcs:
    """All arcs of relations that have at least `min_count` in the treebank; roots have no head, so no arc.

    Raises UserError if no relation is that frequent.
    """
    sentence = np.repeat(np.arange(len(treebank)), [len(s) for s in treebank])
    word = np.concatenate([np.arange(len(s)) for s in treebank]) if len(treebank) else np.zeros(0, int)
    head = gold_heads(treebank)
    labels = np.array([relation for s in treebank for relation in s.relations], dtype=str)
    names, relation, counts = np.unique(labels[head >= 0], return_inverse=True, return_counts=True)
    kept = [i for i in np.argsort(-counts, kind="stable") if counts[i] >= min_count and names[i] not in leave_out]
    if not kept:
        most = max(((int(c), str(n)) for c, n in zip(counts, names, strict=True) if n not in leave_out), default=None)
        found = f"the most frequent is {most[1]} with {most[0]}" if most else "there are none"
        raise UserError(
            f"{treebank.name}: no relation has {min_count} dependents ({found}); lower min_count or use more sentences"
        )
    new_number = np.full(len(names), -1)
    new_number[kept] = np.arange(len(kept))
    relation = new_number[relation]
    column = np.flatnonzero(head >= 0)[relation >= 0]
    return Arcs(
        column,
        sentence[column],
        word[column],
        head[column],
        relation[relation >= 0],
        tuple(str(names[i]) for i in kept),
    )


def gold_heads(treebank: Treebank) -> Int[np.ndarray, " words"]:
    """Head of every word, counted within its sentence; -1 for a root."""
    return np.array([head for sentence in treebank for head in sentence.heads], dtype=np.int64)


def score_half(sentences: int, seed: int) -> Bool[np.ndarray, " sentences"]:
    """True for the half of the sentences that heads are scored on; they are chosen on the other."""
    return np.random.default_rng(seed).permutation(sentences) >= sentences // 2


@lru_cache(maxsize=8)
def shuffled(treebank: Treebank, seed: int) -> Treebank:
    """The same sentences under trees of the same shape and relations, whose words were dealt anew within the sentence.

    Dealing heads alone to the dependents would not do as a control: in short sentences a third of the arcs stay right
    (most words hang on few heads), and attention to those few heads would pass for syntax.
    """
    rng = np.random.default_rng(seed)
    sentences = []
    for sentence in treebank:
        place = rng.permutation(len(sentence))  # where each node of the tree goes
        heads, relations = [-1] * len(sentence), [""] * len(sentence)
        for node, (head, relation) in enumerate(zip(sentence.heads, sentence.relations, strict=True)):
            heads[place[node]] = int(place[head]) if head >= 0 else -1
            relations[place[node]] = relation
        sentences.append(Sentence(sentence.words, tuple(heads), tuple(relations)))
    return Treebank(f"{treebank.name}, shuffled", tuple(sentences))


def best_candidate(
    correct: Bool[np.ndarray, "candidates arcs"],
    relation: Int[np.ndarray, " arcs"],
    choosing: Bool[np.ndarray, " arcs"],
    relations: int,
) -> Int[np.ndarray, " relations"]:
    """Per relation, the candidate most often right where `choosing` is true; of equals the first; -1 without arcs."""
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
    """The arcs that a head can find when read as dependent→head, and as head→dependent: all, unless it is causal.

    A causal head attends from the later word to the earlier: the dependent to a head on its left, or the head to a
    dependent on its left.
    """
    to_the_left = arcs.head < arcs.word
    return np.stack([to_the_left, ~to_the_left]) | (not causal)


def offset_baseline(treebank: Treebank, min_count: int = 100, seed: int = 0) -> pl.DataFrame:
    """How far a fixed distance to the head gets: the best offset of each relation, without any model.

    Rows: `relation`, `offset` (head minus dependent, in words), `split`, `count`, `accuracy`. For "select" and
    "score" the offset is chosen on the select half; for "all", on all sentences. An offset looks to one side, as does
    a head of a causal model, so the two compare as they stand.

    Raises UserError if no relation has `min_count` dependents.
    """
    arcs = gold_arcs(treebank, min_count)
    score = score_half(len(treebank), seed)[arcs.sentence]
    everywhere = np.ones_like(score)
    offsets, correct = offset_candidates(arcs)
    rows = []
    for split, choosing, scoring in (
        ("select", ~score, ~score),
        ("score", ~score, score),
        ("all", everywhere, everywhere),
    ):
        best = best_candidate(correct, arcs.relation, choosing, len(arcs.names))
        for number, name in enumerate(arcs.names):
            scored = scoring & (arcs.relation == number)
            known = best[number] >= 0 and scored.any()
            offset = int(offsets[best[number]]) if best[number] >= 0 else None
            accuracy = float(correct[best[number], scored].mean()) if known else None
            rows.append((name, offset, split, int(scored.sum()), accuracy))
    kinds = (pl.String, pl.Int64, pl.String, pl.Int64, pl.Float64)
    names = ("relation", "offset", "split", "count", "accuracy")
    return pl.DataFrame(rows, dict(zip(names, kinds, strict=True)), orient="row")


def offset_candidates(arcs: Arcs) -> tuple[Int[np.ndarray, " candidates"], Bool[np.ndarray, "candidates arcs"]]:
    """Every distance that occurs, and which arcs it is right about."""
    distance = arcs.head - arcs.word
    offsets = np.unique(distance)
    return offsets, distance == offsets[:, None]
