"""One of each explorer that looks at a table."""

import functools

import polars as pl

from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.experiments.learning import Learning, learning_from
from lmdynamics.explorers.checkpoint_pair import CheckpointPair
from lmdynamics.explorers.deceleration import DecelerationExplorer
from lmdynamics.explorers.dissent import DissentExplorer
from lmdynamics.explorers.guesses import GuessExplorer
from lmdynamics.explorers.learning_times import LearningTimesExplorer
from lmdynamics.explorers.pairs import PairExplorer
from lmdynamics.explorers.trajectories import TrajectoryExplorer
from lmdynamics.explorers.zero_sum import ZeroSumExplorer
from tests.analysis.frames import pairs_trace, sigmoids, token_curves
from tests.charts import interference_frames as frames
from tests.charts.losses import points
from tests.charts.test_small_multiples import curves

STEPS = [0, 1, 2, 4, 8, 16]
JUDGED = {
    name: pairs_trace({"near": [0.5, 0.5, 0.6, 0.8, 0.9, 1.0], "far": 0.6}, pairs=8, steps=STEPS, seed=seed)
    for seed, name in enumerate("ab")
}
PAIRS = MinimalPairs(
    "some pairs",
    JUDGED["a"]
    .select("paradigm", "pair")
    .unique(maintain_order=True)
    .with_columns(good=pl.format("dog {} sleeps", "pair"), bad=pl.format("dog {} sleep", "pair")),
    True,
)
RUNS = {"a": frames.one_step(), "b": frames.one_step(batches=1)}


def offered(explorer):
    """The entries whose lists a reader sees."""
    explorer.widget  # noqa: B018
    return [entry for entry, control in explorer.lists.items() if control.layout.display != "none"]


def sizes() -> pl.DataFrame:
    """Dissent of four curves."""
    first_curve, *_ = frames.dissent().partition_by("curve", maintain_order=True)
    return pl.concat([first_curve.with_columns(curve=pl.lit(f"0.{i}M seed 0")) for i in range(1, 5)])


SENTENCES = {("the", "dogs", "near", "the", "house", "sleep", "."): 5, ("no", "cat", "sees", "dogs"): 2}


def guesses(sentences=SENTENCES, steps=STEPS) -> pl.DataFrame:
    """Of two sentences: the right word climbs from a sixth rank to the first; the first word has no guesses."""
    rows = []
    for k, step in enumerate(steps):
        for number, words in enumerate(sentences):
            for word in range(1, len(words)):
                right_rank = 6 - k if word % 2 else 6 - k // 2
                for rank in range(1, 6):
                    right = rank == right_rank
                    guess = words[word] if right else f"{words[word]}-{rank}"
                    own = (right_rank, 0.6 / right_rank / (6 - k))
                    rows.append((step, number, word, 1, rank, guess, 0.6 / rank / (6 - k), right, *own))
    columns = ["step", "sentence", "word", "pieces", "rank", "guess", "probability", "right", "right_rank"]
    return pl.DataFrame(rows, schema=[*columns, "right_probability"], orient="row")


TEXT = [["[CLS]", "the", "big", "dogs", "near", "the", "house", "sleep", "[SEP]"]] * 8


def token_losses(steps=STEPS, rows=8) -> pl.DataFrame:
    """Of three tokens in each row: the first is learnt, the second forgotten, the third stays as it is."""
    table = [
        (step, row, position, 5 + position, 4.0 + slope * k + 0.05 * row * k)
        for k, step in enumerate(steps)
        for row in range(rows)
        for position, slope in ((2, -0.6), (5, 0.3), (7, 0.0))
    ]
    return pl.DataFrame(table, ["step", "row", "position", "token", "loss"], orient="row")


def relations_of_heads(steps=STEPS) -> pl.DataFrame:
    """Of four heads: one changes its relation at step 4, one at every step."""
    table = [
        (step, layer, head, RELATIONS[layer, head](k, step), 0.2 + 0.1 * k, 100, 0.4)
        for k, step in enumerate(steps)
        for layer, head in RELATIONS
    ]
    return pl.DataFrame(table, ["step", "layer", "head", "relation", "accuracy", "count", "offset"], orient="row")


RELATIONS = {
    (0, 0): lambda k, step: "det",
    (0, 1): lambda k, step: "nsubj" if step >= 4 else "punct",
    (1, 0): lambda k, step: ["det", "obj"][k % 2],
    (1, 1): lambda k, step: "amod",
}


WORDS = ["the", "<b>dog</b>", "Ġruns", "near", "&amp;", "house"]


def ladder_tokens() -> pl.DataFrame:
    """The table `tokens` of two runs of one size and one of another: the token at position p falls at step 32, 64, …"""
    times = [32 * 2 ** (token % 6) for token in range(48)]
    parts = []
    for size, seed in (("small", 0), ("small", 1), ("large", 0)):
        losses = sigmoids(times, [0.8] * 48, [5.0 - 0.1 * (token // 6) for token in range(48)], noise=0.1, seed=seed)
        words = pl.col("token").replace_strict(range(6), WORDS, return_dtype=pl.String).alias("text")
        keys = pl.lit(size).alias("condition"), pl.lit(seed, pl.Int64).alias("seed")
        trace = token_curves(losses, per_row=6, words=6)
        parts.append(trace.select(*keys, pl.exclude("token"), words))
    return pl.concat(parts)


@functools.cache
def learning_results() -> dict[str, Learning]:
    """Falls counted from the start, and from step 16 on."""
    return learning_from(ladder_tokens(), pl.DataFrame({"size": ["small", "small", "large"], "ends": [12, 16, 16]}))


MAKE = {
    "checkpoint_pair": lambda: CheckpointPair(token_losses(), TEXT, relations_of_heads()),
    "deceleration": lambda: DecelerationExplorer(points(), curve="small"),
    "dissent": lambda: DissentExplorer(frames.dissent()),
    "many dissents": lambda: DissentExplorer(sizes(), published={"410M": -0.36, "14M, at the end": -0.95}),
    "guesses": lambda: GuessExplorer(guesses(), SENTENCES),
    "learning_times": lambda: LearningTimesExplorer(learning_results()),
    "pairs": lambda: PairExplorer(JUDGED, PAIRS),
    "trajectories": lambda: TrajectoryExplorer(curves(runs=("a", "b"))),
    "zero_sum": lambda: ZeroSumExplorer(RUNS, frames.texts),
}
