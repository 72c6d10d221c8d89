"""Small tidy frames of the shapes that charts take."""

import numpy as np
import polars as pl

from tests.analysis.frames import STEPS, sigmoid

WORDS = ["the", "old", "dog", "near", "the", "red", "houses", "that", "she", "saw", "sleeps"]
HEADS = [2, 2, 10, 6, 6, 6, 2, 9, 9, 6, -1]
RELATIONS = ["det", "amod", "nsubj", "case", "det", "amod", "nmod", "mark", "nsubj", "acl", "root"]
DIRECTIONS = ["dependent→head", "head→dependent"]


def head_scores(steps=STEPS, layers=3, heads=4):
    """Every head, both directions; head 1-2 is the best for nsubj, 0-3 for det."""
    best = {"nsubj": (1, 2), "det": (0, 3)}
    rows = []
    for step in steps:
        for relation, chosen in best.items():
            for layer, head in np.ndindex(layers, heads):
                for direction in DIRECTIONS:
                    top = 0.9 if (layer, head) == chosen and direction == DIRECTIONS[0] else 0.3
                    accuracy = float(sigmoid(step, 0.15, top, 250))
                    for split, count in (("select", 210), ("score", 190), ("all", 400)):
                        rows.append((step, relation, layer, head, direction, split, count, accuracy, accuracy / 2))
    columns = ["step", "relation", "layer", "head", "direction", "split", "count", "accuracy", "weight"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def best_heads(steps=STEPS):
    """The best head of each relation at each step, with the offset baseline."""
    scores = head_scores(steps).filter(pl.col("split") == "score").sort("accuracy", descending=True)
    best = scores.group_by("step", "relation", maintain_order=True).first().drop("split")
    return best.with_columns(offset=pl.lit(0.4)).sort("step")


def attention(steps=STEPS, words=WORDS, heads=HEADS):
    """Word attention of one head that finds the gold head from step 200 on, and looks at the next word before."""
    n = len(words)
    rows = []
    for step in steps:
        for query in range(n):
            target = heads[query] if step > 200 and heads[query] >= 0 else (query + 1) % n
            rows += [
                (step, 1, 2, query, key, 0.0 if key == query else 0.6 if key == target else 0.02) for key in range(n)
            ]
    return pl.DataFrame(rows, schema=["step", "layer", "head", "query", "key", "weight"], orient="row")
