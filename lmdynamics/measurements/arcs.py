"""Gold arcs as arrays, the halves they are split into, and the controls: fixed offsets and shuffled arcs."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from lmdynamics.corpora.gold import Sentence, Treebank
from lmdynamics.errors import UserError


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
            rows.append(
                {
                    "relation": name,
                    "offset": int(offsets[best[number]]) if best[number] >= 0 else None,
                    "split": split,
                    "count": int(scored.sum()),
                    "accuracy": float(correct[best[number], scored].mean()) if known else None,
                }
            )
    schema = {
        "relation": pl.String,
        "offset": pl.Int64,
        "split": pl.String,
        "count": pl.Int64,
        "accuracy": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema)


def offset_candidates(arcs: Arcs) -> tuple[Int[np.ndarray, " candidates"], Bool[np.ndarray, "candidates arcs"]]:
    """Every distance that occurs, and which arcs it is right about."""
    distance = arcs.head - arcs.word
    offsets = np.unique(distance)
    return offsets, distance == offsets[:, None]
