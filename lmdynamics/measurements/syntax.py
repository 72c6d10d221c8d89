"""How well attention heads follow dependency relations.

Definitions: Clark et al. 2019; Chen et al. 2023 (arXiv 2309.07311). Attention to a word is the sum over its pieces,
attention from it the mean over its pieces; then the diagonal is zeroed and special tokens' rows and columns dropped,
without renormalising. A head of a causal model sees only what stands to the left, so `dependent→head` can only find
heads that precede, `head→dependent` only heads that follow. Accuracy counts all arcs nonetheless, as for other models;
`reachable` says how many of them could be found at all.
"""

from collections import OrderedDict
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
    gold_arcs,
    gold_heads,
    offset_baseline,
    offset_candidates,
    score_half,
    shuffled,
    sum_by,
    within_reach,
)
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.objective import attention_of

DIRECTIONS = ("dependent→head", "head→dependent")


@dataclass(frozen=True, eq=False)
class Parents:
    """For each word and head, the word that the head would make its parent, and the weight on the gold parent.

    Axes: layer, direction (as `DIRECTIONS`), head, word (counted through all sentences). `parent` counts within the
    sentence; -1 where the head gives no weight to any other word, as a causal head has nothing left of the first.
    """

    parent: Int16[np.ndarray, "layers 2 heads words"]
    weight: Float32[np.ndarray, "layers 2 heads words"]


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


def attentions(model: nn.Module, batch: WordBatch) -> list[Tensor]:
    """`attention_of` the model's body alone."""
    body = getattr(model, "base_model", model)
    output = body(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_attentions=True, return_dict=True
    )
    return attention_of(output, model)


@torch.inference_mode()
def parents(model: nn.Module, encoded: WordBatches, heads: Int[np.ndarray, " words"]) -> Parents:
    """What every head predicts for every word; `heads` is the gold parent within its sentence, negative for none.

    The parent of word i is argmax_j A_ij (dependent→head) or argmax_j A_ji (head→dependent), the first of equals.
    Memory: 12 bytes per word, layer and head.

    Raises UserError if a sentence is longer than the model allows, or the attention is missing or no distribution.
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


def _check_distribution(attention: Tensor, batch: WordBatch, layer: int) -> None:
    sums = attention.float().sum(-1).transpose(1, 2)[batch.attention_mask.bool()]
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        found = "NaN: the model has diverged" if sums.isnan().any() else f"{float(sums.min()):.3f}"
        raise UserError(f"attention of layer {layer} should sum to 1 over the tokens looked at, but sums to {found}")


NOT_SYNTAX = ("root", "punct")  # left out of UAS, as in the literature


@dataclass(frozen=True)
class HeadScores(Measurement):
    """How often each head is right about each relation, and how much weight it puts on the gold head.

    Rows: `relation`, `layer` and `head` (0-based), `direction`, `split`, `count` (dependents with that relation),
    `accuracy` (share of them for which the gold head has the largest weight), `weight` (mean weight on the gold
    head), `reachable` (share of them that any head could find in this direction: 1, but in a causal model). `split`
    is "select" or "score", halves of the sentences drawn by `seed`, or "all": a head chosen on the sentences it is
    scored on looks better than it is. Relations with fewer than `min_count` dependents in the whole treebank are left
    out; one that a half lacks has `count` 0 and no accuracy there.
    """

    treebank: Treebank
    min_count: int = 100
    seed: int = 0

    version = 2  # 2: `reachable`

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        arcs = gold_arcs(self.treebank, self.min_count)
        predicted = predictions(checkpoint, self.treebank, device)
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


@dataclass(frozen=True)
class UAS(Measurement):
    """Unlabelled attachment by attention: every relation is followed by its own best head.

    Rows, one per sentence and source: `sentence`, `source`, `half`, `arcs`, `correct`, `reachable`; the UAS of a
    source is sum(correct) / sum(arcs). Sources: "attention" (heads chosen on one half of the sentences, scored on the
    other), "attention_same" (chosen and scored on all sentences, hence biased upward), and two controls scored on the
    same half: "offset" (the best fixed distance per relation, chosen likewise) and "shuffled" (heads chosen and scored
    likewise on trees whose words are dealt anew within each sentence). Relations with fewer than `min_count`
    dependents, `root` and `punct` do not count; nor does, but for "attention_same", one that the choosing half lacks.

    `reachable`: how many of the arcs lie on the side to which their relation's head looks, or its fixed distance. It
    is all of them, but in a causal model, where sum(reachable) / sum(arcs) is the most that these heads could find;
    fewer of the shuffled arcs, which lead either way.
    """

    treebank: Treebank
    min_count: int = 100
    seed: int = 0

    version = 3  # 3: `reachable`
    higher_is_better = True

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        predicted = predictions(checkpoint, self.treebank, device)
        causal = checkpoint.objective == "clm"
        trees = (self.treebank, shuffled(self.treebank, self.seed))
        arcs, control = (gold_arcs(t, self.min_count, NOT_SYNTAX) for t in trees)
        # every head in either direction: by layer, head, direction
        heads, chance = (
            (predicted.parent[..., a.column] == a.head).swapaxes(1, 2).reshape(-1, len(a)) for a in (arcs, control)
        )
        directions = np.arange(len(heads)) % 2
        # every distance: to the left it is what dependent→head can follow, to the right what head→dependent can
        offsets, by_offset = offset_candidates(arcs)
        return pl.concat(
            [
                self._score("attention", arcs, heads, directions, causal),
                self._score("attention_same", arcs, heads, directions, causal, apart=False),
                self._score("offset", arcs, by_offset, (offsets > 0).astype(int), causal),
                self._score("shuffled", control, chance, directions, causal),
            ]
        )

    def _score(
        self,
        source: str,
        arcs: Arcs,
        correct: Bool[np.ndarray, "candidates arcs"],
        direction: Int[np.ndarray, " candidates"],
        causal: bool,
        apart: bool = True,
    ) -> pl.DataFrame:
        """Choose a candidate per relation and score it: on the other half, or (`apart=False`) on the same sentences.

        `correct`: which arcs each candidate finds. `direction`: in which it reads, as `DIRECTIONS`.
        """
        scoring = score_half(len(self.treebank), self.seed)[arcs.sentence] if apart else np.ones(len(arcs), bool)
        choosing, every = ~scoring if apart else scoring, np.arange(len(arcs))
        best = best_candidate(correct, arcs.relation, choosing, len(arcs.names))[arcs.relation]
        scoring &= best >= 0
        found = correct[best, every], within_reach(arcs, causal)[direction[best], every]
        counts, hits, reachable = (
            np.bincount(arcs.sentence[scoring & which], minlength=len(self.treebank)) for which in (True, *found)
        )
        there, half = np.flatnonzero(counts), "score" if apart else "all"
        counted = {"arcs": counts[there], "correct": hits[there], "reachable": reachable[there]}
        return pl.DataFrame({"sentence": there, **counted}).select(
            "sentence", pl.lit(source).alias("source"), pl.lit(half).alias("half"), *counted
        )


@dataclass(frozen=True)
class WordAttention(Measurement):
    """Attention between the words of one sentence. Rows: `layer`, `head`, `query`, `key` (0-based), `weight`.

    Weight 0 on the diagonal, and in a causal model on all words that follow; the rest of a row sums to less than 1, by
    what falls on special tokens and the word itself.
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


def best_heads(head_scores: pl.DataFrame) -> pl.DataFrame:
    """The head that follows each relation best, per step if there are steps: chosen on one half, scored on the other.

    Rows: (`step`,) `relation`, `layer`, `head`, `direction`, `accuracy` and `weight` on the score half, `count`
    and, if given, `reachable` there. A relation that either half lacks is left out.
    """
    by = [name for name in ("step", "relation") if name in head_scores.columns]
    which = [*by, "layer", "head", "direction"]
    chosen = (
        head_scores.filter(pl.col("split") == "select", pl.col("count") > 0)
        .sort("accuracy", descending=True, maintain_order=True)
        .unique(by, keep="first", maintain_order=True)
        .select(which)
    )
    scored = head_scores.filter(pl.col("split") == "score", pl.col("count") > 0)
    order = head_scores.select(by).unique(maintain_order=True)
    found = chosen.join(scored, on=which)
    shown = [name for name in ("accuracy", "weight", "count", "reachable") if name in found.columns]
    return order.join(found, on=by, maintain_order="left").select(*which, *shown)


def best_heads_and_offset(
    head_scores: pl.DataFrame, treebank: Treebank, min_count: int = 100, seed: int = 0
) -> pl.DataFrame:
    """`best_heads` with `offset` beside each: how far the relation's best fixed offset gets on the same sentences."""
    baseline = offset_baseline(treebank, min_count, seed).filter(pl.col("split") == "score")
    best = best_heads(head_scores).drop_nulls("accuracy")
    return best.join(baseline.select("relation", offset="accuracy"), on="relation", maintain_order="left")


_RECENT: OrderedDict[tuple, Parents] = OrderedDict()


def predictions(checkpoint, treebank: Treebank, device: str) -> Parents:
    """What every head predicts on a treebank; the last two answers are kept, for measurements that share them."""
    encoded = encode_treebank(checkpoint.tokenizer, treebank)
    key = (checkpoint.content_hash, encoded, device)
    found = _RECENT.get(key)
    if found is None:
        model = checkpoint.model(attention="eager", device=device)
        found = _RECENT[key] = parents(model, encoded, gold_heads(treebank))
        while len(_RECENT) > 2:
            _RECENT.popitem(last=False)
    return found
