"""How well attention heads follow dependency relations.

Definitions: Clark et al. 2019; Chen et al. 2023 (arXiv 2309.07311). Attention to a word is the sum over its pieces,
attention from it the mean over its pieces; then the diagonal is set to zero and special tokens' rows and columns are
dropped, without renormalising. A head of a causal model attends to the left only, so `dependent→head` can only find
heads before their dependents, `head→dependent` only heads after them. Accuracy counts all arcs, as for other models;
`reachable` is the share of arcs that such a head could find.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Float32, Int, Int16
from torch import Tensor, nn

from lmdynamics.corpora.treebanks import Treebank
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import (
    Arcs,
    WordBatch,
    WordBatches,
    best_candidate,
    check_sentences,
    encode_treebank,
    encode_words,
    every_word,
    gold_arcs,
    gold_heads,
    offset_baseline,
    offset_candidates,
    score_half,
    shuffled_trees,
    sum_by,
    within_reach,
)
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.objective import attention_of

DIRECTIONS = ("dependent→head", "head→dependent")


@dataclass(frozen=True, eq=False)
class Parents:
    """For each word and head, the parent that the head predicts, and the weight on the gold parent.

    Axes: layer, direction (as `DIRECTIONS`), head, word (numbered through all sentences). `parent` is numbered within
    the sentence; -1 if the head has no weight on any other word, like a causal head at the first word.
    """

    parent: Int16[np.ndarray, "layers 2 heads words"]
    weight: Float32[np.ndarray, "layers 2 heads words"]


def word_attention(
    attention: Float[Tensor, "batch heads time time"], batch: WordBatch
) -> Float[Tensor, "batch heads words words"]:
    """Attention from word to word; zero on the diagonal and outside the sentence.

    May overwrite `attention`.
    """
    if batch.membership is None:
        inner = slice(batch.start, batch.start + batch.word_pairs.shape[-1])
        words = attention[:, :, inner, inner]
    else:
        member = batch.membership[:, None].to(attention.dtype)
        pieces = member.sum(2).clamp(min=1)[..., None]
        # one product for all heads on the key side: their rows are concatenated
        rows = torch.bmm(attention.flatten(1, 2), member[:, 0]).unflatten(1, attention.shape[1:3])
        words = (member.mT @ rows).div_(pieces)
    return words.mul_(batch.word_pairs)


def attentions(model: nn.Module, batch: WordBatch) -> list[Tensor]:
    """`attention_of` the model's body."""
    body = getattr(model, "base_model", model)
    output = body(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True, return_dict=True
    )
    return attention_of(output, model)


@torch.inference_mode()
def parents(model: nn.Module, encoded: WordBatches, heads: Int[np.ndarray, " words"]) -> Parents:
    """The parent that every head predicts for every word; `heads`: gold parents in their sentences, negative for none.

    The parent of word i is argmax_j A_ij (dependent→head) or argmax_j A_ji (head→dependent), the first of equals.
    Memory: 12 bytes per word, layer and head.

    Raises UserError if a sentence is longer than the model allows, or the attention is missing or not a distribution.
    """
    check_sentences(model, encoded)
    device = str(next(model.parameters()).device)
    gold = torch.from_numpy(np.asarray(heads, dtype=np.int64)).to(device)
    parent = weight = None
    for number, batch in enumerate(batch.to(device) for batch in encoded.batches):
        layers = attentions(model, batch)
        if parent is None:
            shape = (len(layers), 2, layers[0].shape[1], encoded.words)
            parent = torch.empty(shape, dtype=torch.int16, device=device)
            weight = torch.empty(shape, dtype=torch.float32, device=device)
        width = batch.word_pairs.shape[-1]
        row, word, head = batch.cells // width, batch.cells % width, gold[batch.columns]
        gold_index = head.clamp(min=0)
        for layer, attention in enumerate(layers):
            if number == 0:
                _check_distribution(attention, batch, layer)
            words = word_attention(attention.float(), batch)
            for direction in (0, 1):
                largest, best = words.max(-1 - direction)
                best = best.to(torch.int16).masked_fill_(largest <= 0, -1)
                parent[layer, direction].index_copy_(1, batch.columns, best.transpose(0, 1).flatten(1)[:, batch.cells])
            for direction, gold_weight in enumerate((words[row, :, word, gold_index], words[row, :, gold_index, word])):
                gold_weight = gold_weight.masked_fill_(head[:, None] < 0, 0)
                weight[layer, direction].index_copy_(1, batch.columns, gold_weight.T)
    return Parents(parent.cpu().numpy(), weight.cpu().numpy())


def _check_distribution(attention: Tensor, batch: WordBatch, layer: int) -> None:
    sums = attention.float().sum(-1).transpose(1, 2)[batch.attention_mask.bool()]
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        value = "NaN: the model has diverged" if sums.isnan().any() else f"{float(sums.min()):.3f}"
        raise UserError(f"attention of layer {layer} should sum to 1 over the keys, but sums to {value}")


NOT_SYNTAX = ("root", "punct")  # left out of UAS, as in the literature


@dataclass(frozen=True)
class HeadScores(Measurement):
    """Each head's accuracy on each relation, and its mean weight on the gold head.

    Rows: `relation`, `layer` and `head` (0-based), `direction`, `split`, `count` (dependents with that relation),
    `accuracy` (share of them for which the gold head has the largest weight), `weight` (mean weight on the gold
    head), `reachable` (share of them that a head could find in this direction: 1, except in a causal model). `split` is
    "select" or "score", halves of the sentences drawn by `seed`, or "all": the score of a head is biased upwards on the
    sentences that it was chosen on. Relations with fewer than `min_count` dependents in the treebank are left out; one
    that does not occur in a half has `count` 0 and no accuracy there.
    """

    treebank: Treebank
    min_count: int = 100
    seed: int = 0

    version = 2  # 2: `reachable`

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        arcs = gold_arcs(self.treebank, self.min_count)
        predicted = predicted_parents(checkpoint, self.treebank, device)
        score = score_half(len(self.treebank), self.seed)[arcs.sentence]
        group, groups = 2 * arcs.relation + score, 2 * len(arcs.names)  # the halves of each relation side by side
        correct = predicted.parent[..., arcs.column] == arcs.head
        reach = within_reach(arcs, checkpoint.objective == "clm")[None, :, None]  # the same for all layers and heads
        by_group = (
            sum_by(correct, group, groups),
            sum_by(predicted.weight[..., arcs.column], group, groups),
            sum_by(reach, group, groups),
            np.bincount(group, minlength=groups)[None, None, None],
        )
        # axes: split, layer, direction, head, relation; then relation, layer, head, direction, split
        splits = [np.stack([s[..., 0::2], s[..., 1::2], s[..., 0::2] + s[..., 1::2]]) for s in by_group]
        right, weight, reachable, count = np.broadcast_arrays(*(s.transpose(4, 1, 3, 2, 0) for s in splits))
        relation, layer, head, direction, split = (axis.ravel() for axis in np.indices(right.shape))
        frame = pl.DataFrame(
            {
                "relation": pl.Series(arcs.names, dtype=pl.String).gather(relation),
                "layer": layer,
                "head": head,
                "direction": pl.Series(DIRECTIONS).gather(direction),
                "split": pl.Series(["select", "score", "all"]).gather(split),
                "count": count.ravel(),
                "accuracy": right.ravel(),
                "weight": weight.ravel(),
                "reachable": reachable.ravel(),
            }
        )
        n, shares = pl.col("count"), ("accuracy", "weight", "reachable")
        return frame.with_columns(pl.when(n > 0).then(pl.col(x) / n).alias(x) for x in shares)


SOURCES = {  # of UAS: (heads, a fixed distance, heads on shuffled trees), by what a head or distance is chosen for
    "per_relation": ("per_relation", "offset", "shuffled"),
    "single_head": ("single_head", "single_offset", "single_shuffled"),
}


@dataclass(frozen=True)
class UAS(Measurement):
    """Unlabelled attachment by attention: with the best head of each relation, and with one head for all words.

    Rows, one per sentence and source: `sentence`, `source`, `half`, `arcs`, `correct`, `reachable`; the UAS of a
    source is sum(correct) / sum(arcs). Sources, chosen on one half of the sentences and scored on the other:
    - "per_relation": the best head of each relation. Relations with fewer than `min_count` dependents, `root` and
      `punct` are left out; so are relations that do not occur in the choosing half.
    - "single_head": the best layer, head and direction for all words, as Chen et al. 2023 report it. Every word
      counts; a root has no head, so it is always wrong.

    Each has two controls, scored on the same half: "offset" and "single_offset" (the best fixed distance, chosen in the
    same way), "shuffled" and "single_shuffled" (heads chosen and scored in the same way on `shuffled_trees`).
    "per_relation_same" is chosen and scored on all sentences, hence biased upward.

    `reachable`: number of words on the side where their head, or fixed distance, can find them. It is all of them but
    roots, except in a causal model: there sum(reachable) / sum(arcs) is the highest UAS of these heads, and fewer of
    the shuffled arcs are reachable, because a relation's shuffled arcs point to either side.
    """

    treebank: Treebank
    min_count: int = 100
    seed: int = 0

    version = 4  # 4: `single_head`
    higher_is_better = True

    def headline(self, rows: pl.DataFrame) -> float | None:
        per_relation = rows.filter(source="per_relation")
        return per_relation["correct"].sum() / max(per_relation["arcs"].sum(), 1)

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        predicted = predicted_parents(checkpoint, self.treebank, device)
        causal = checkpoint.objective == "clm"
        trees = (self.treebank, shuffled_trees(self.treebank, self.seed))
        arcs_of = {
            "per_relation": [gold_arcs(t, self.min_count, NOT_SYNTAX) for t in trees],
            "single_head": [every_word(t) for t in trees],
        }
        tables = []
        for kind, (attention, offset, shuffled) in SOURCES.items():
            arcs, control = arcs_of[kind]
            # every head in either direction: by layer, head, direction
            heads, chance = (
                ((predicted.parent[..., a.column] == a.head) & (a.head >= 0)).swapaxes(1, 2).reshape(-1, len(a))
                for a in (arcs, control)
            )
            directions = np.arange(len(heads)) % 2
            # every distance: like dependent→head to the left, like head→dependent to the right
            offsets, by_offset = offset_candidates(arcs)
            tables += [
                self._score(attention, arcs, heads, directions, causal),
                self._score(offset, arcs, by_offset, (offsets > 0).astype(int), causal),
                self._score(shuffled, control, chance, directions, causal),
            ]
            if kind == "per_relation":
                tables.append(self._score("per_relation_same", arcs, heads, directions, causal, halves=False))
        return pl.concat(tables)

    def _score(
        self,
        source: str,
        arcs: Arcs,
        correct: Bool[np.ndarray, "candidates arcs"],
        direction: Int[np.ndarray, " candidates"],
        causal: bool,
        halves: bool = True,
    ) -> pl.DataFrame:
        """Choose a candidate per relation and score it: on the other half, or (`halves=False`) on the same sentences.

        `correct`: mask of the arcs that each candidate finds. `direction`: its direction, as `DIRECTIONS`.
        """
        scoring = score_half(len(self.treebank), self.seed)[arcs.sentence] if halves else np.ones(len(arcs), bool)
        choosing, all_arcs = ~scoring if halves else scoring, np.arange(len(arcs))
        best = best_candidate(correct, arcs.relation, choosing, len(arcs.names))[arcs.relation]
        scoring &= best >= 0
        masks = correct[best, all_arcs], within_reach(arcs, causal)[direction[best], all_arcs]
        counts, hits, reachable = (
            np.bincount(arcs.sentence[scoring & mask], minlength=len(self.treebank)) for mask in (True, *masks)
        )
        sentences, half = np.flatnonzero(counts), "score" if halves else "all"
        counted = {"arcs": counts[sentences], "correct": hits[sentences], "reachable": reachable[sentences]}
        return pl.DataFrame({"sentence": sentences, **counted}).select(
            "sentence", pl.lit(source).alias("source"), pl.lit(half).alias("half"), *counted
        )


@dataclass(frozen=True)
class HeadOffsets(Measurement):
    """Is a head more than position? Each head in each direction, beside the fixed distance that it predicts most often.

    Rows: `layer`, `head`, `direction`, `words`, `accuracy` (share of all words whose head it predicts, roots
    included, as in "single_head" of `UAS`), `offset` (its commonest distance: predicted parent minus word), `same`
    (share of its predictions at this distance), `elsewhere` (words whose gold head is at another distance), `beyond`
    (its accuracy there: 0 if the head is nothing but position).
    """

    treebank: Treebank

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        predicted = predicted_parents(checkpoint, self.treebank, device).parent.swapaxes(1, 2)
        words, layers, heads, directions = every_word(self.treebank), *predicted.shape[:3]
        has_head, gold = words.head >= 0, words.head - words.word
        rows = []
        for layer, head, direction in np.ndindex(layers, heads, directions):
            parent = predicted[layer, head, direction]
            distance, predicts, right = parent - words.word, parent >= 0, (parent == words.head) & has_head
            values, counts = np.unique(distance[predicts], return_counts=True)
            offset = int(values[counts.argmax()]) if len(values) else 0
            elsewhere = has_head & (gold != offset)
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "direction": DIRECTIONS[direction],
                    "words": len(words),
                    "accuracy": float(right.mean()),
                    "offset": offset,
                    "same": float(counts.max(initial=0) / max(1, predicts.sum())),
                    "elsewhere": int(elsewhere.sum()),
                    "beyond": float(right[elsewhere].mean()) if elsewhere.any() else None,
                }
            )
        return pl.DataFrame(rows)


@dataclass(frozen=True)
class WordAttention(Measurement):
    """Attention between the words of one sentence. Rows: `layer`, `head`, `query`, `key` (0-based), `weight`.

    Weight 0 on the diagonal, and in a causal model on all later words. A row sums to less than 1, because weights on
    special tokens and on the word itself are left out.
    """

    words: tuple[str, ...]

    version = 1

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        encoded = encode_words(checkpoint.tokenizer, [self.words], "the sentence")
        model = checkpoint.model(attention="eager", device=device)
        check_sentences(model, encoded)
        batch = encoded.batches[0].to(device)
        with torch.inference_mode():
            weights = [word_attention(layer.float(), batch)[0] for layer in attentions(model, batch)]
        weights = torch.stack(weights).cpu().double().numpy()
        layer, head, query, key = (axis.ravel() for axis in np.indices(weights.shape))
        return pl.DataFrame({"layer": layer, "head": head, "query": query, "key": key, "weight": weights.ravel()})


def best_heads(head_scores: pl.DataFrame, by: Sequence[str] = ("relation",)) -> pl.DataFrame:
    """The best head of each relation, per step if there are steps: chosen on one half, scored on the other.

    `by=("layer", "head")`: the best relation of each head instead.

    Rows: (`step`,) `relation`, `layer`, `head`, `direction`, `accuracy` and `weight` on the score half, `count`
    and, if present, `reachable` there. A relation that does not occur in both halves is left out.
    """
    groups = [name for name in ("step", *by) if name in head_scores.columns]
    keys = [*groups, *(name for name in ("relation", "layer", "head", "direction") if name not in by)]
    chosen = (
        head_scores.filter(pl.col("split") == "select", pl.col("count") > 0)
        .sort("accuracy", descending=True, maintain_order=True)
        .unique(groups, keep="first", maintain_order=True)
        .select(keys)
    )
    scored = head_scores.filter(pl.col("split") == "score", pl.col("count") > 0)
    order = head_scores.select(groups).unique(maintain_order=True)
    joined = chosen.join(scored, on=keys)
    columns = [name for name in ("accuracy", "weight", "count", "reachable") if name in joined.columns]
    return order.join(joined, on=groups, maintain_order="left").select(*keys, *columns)


def best_heads_and_offset(
    head_scores: pl.DataFrame,
    treebank: Treebank,
    min_count: int = 100,
    seed: int = 0,
    by: Sequence[str] = ("relation",),
) -> pl.DataFrame:
    """`best_heads` with `offset`: the accuracy of the relation's best fixed offset on the same sentences."""
    baseline = offset_baseline(treebank, min_count, seed).filter(pl.col("split") == "score")
    best = best_heads(head_scores, by).drop_nulls("accuracy")
    return best.join(baseline.select("relation", offset="accuracy"), on="relation", maintain_order="left")


_CACHE: OrderedDict[tuple, Parents] = OrderedDict()


def predicted_parents(checkpoint, treebank: Treebank, device: str) -> Parents:
    """The `parents` of a treebank; the last two results are cached, for measurements that share them."""
    encoded = encode_treebank(checkpoint.tokenizer, treebank)
    key = (checkpoint.content_hash, encoded, device)
    result = _CACHE.get(key)
    if result is None:
        model = checkpoint.model(attention="eager", device=device)
        result = _CACHE[key] = parents(model, encoded, gold_heads(treebank))
        while len(_CACHE) > 2:
            _CACHE.popitem(last=False)
    return result
