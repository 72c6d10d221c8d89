"""Explore two checkpoints, A and B: which tokens gained or lost between them, and which heads changed relation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import polars as pl

from lmdynamics.analysis.checkpoint_pairs import changed_heads, changes_of_all_pairs, losses_by_token
from lmdynamics.analysis.intervals import need_columns, wilson
from lmdynamics.analysis.zero_sum import changes_between
from lmdynamics.charts.axes import Cursor, nearest
from lmdynamics.charts.checkpoint_pair import ORIGIN, moving_pair, origin_click
from lmdynamics.charts.moving import Moving, Place, slider, with_parameters
from lmdynamics.corpora.treebanks import Treebank
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import Explorer, State, step_options
from lmdynamics.explorers.saving import check_among, complete_state
from lmdynamics.measurements.syntax import HeadScores, best_heads_and_offset
from lmdynamics.measurements.trace import trace
from lmdynamics.runs.run import Run

SUBJECT = "the explorer of two checkpoints"


class CheckpointPair(Explorer):
    """Choose two checkpoints, A and B, and see what each token gained or lost from A to B.

    `losses`: a trace of `TokenLosses`; `texts`: the tokens of its rows, by row. `heads`: perhaps the best relation of
    each head at the same steps, from `best_heads_and_offset(by=("layer", "head"))`, for a list of the heads that
    follow another relation at B. `a` and `b` are steps: by default the last one is B, and A is near the half of it.

    Raises
    ------
    UserError
        If a column is missing, checkpoints were measured on other tokens, a row has no text, or a step is unknown.
    """

    name = "explorer_checkpoint_pair"
    slider: ClassVar = "b"
    signals: ClassVar = (ORIGIN,)

    def __init__(
        self,
        losses: pl.DataFrame,
        texts: Mapping[int, Sequence[str]] | Sequence[Sequence[str]],
        heads: pl.DataFrame | None = None,
        *,
        a: int | None = None,
        b: int | None = None,
    ):
        self.steps, tokens, _ = losses_by_token(losses)
        texts = texts if isinstance(texts, Mapping) else dict(enumerate(texts))
        if missing := sorted(set(tokens["row"]) - set(texts)):
            raise UserError(f"{SUBJECT}: row {missing[0]} has no text; add it to texts")
        self.losses, self.texts, self.heads = losses, texts, None
        if heads is not None:
            need_columns(heads, ["step", "layer", "head", "relation", "accuracy", "count", "offset"], SUBJECT)
            above = wilson(pl.col("accuracy"), pl.col("count"))[0] > pl.col("offset")
            self.heads = heads.filter(pl.col("step").is_in(self.steps)).with_columns(above=above)
        self.pairs = changes_of_all_pairs(losses)
        for step in (a, b):
            if step is not None:
                check_among("step", step, self.steps)
        self.start(origin=None if a is None else self.steps.index(a), b=b)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        options = step_options(self.steps)
        return options if entry == "b" else dict(enumerate(options.values()))

    def default(self, entry: str, options: Mapping[Any, str]) -> Any:
        if entry == ORIGIN:
            return self.steps.index(nearest(self.steps, self.steps[-1] / 2))
        return super().default(entry, options)

    @property
    def a(self) -> int:
        """The step of A."""
        return self.steps[self.now[ORIGIN]]

    def state(self) -> State:
        return {"a": self.a, "b": self.now["b"]}

    def restore(self, state: Mapping[str, Any]) -> "CheckpointPair":
        entries = complete_state(state, self.state())
        for name, step in entries.items():
            check_among(name, step, self.steps)
        self.select({ORIGIN: self.steps.index(entries["a"]), "b": entries["b"]})
        return self

    def moving(self) -> Moving:
        cursor, count = Cursor(self.steps), len(self.steps)
        chart = moving_pair(self.losses, self.texts, self.pairs, cursor, self.heads)
        bind = {"input": "range", "min": 0, "max": count - 1, "step": 1, "name": "A "}
        origin = {"name": ORIGIN, "value": self.now[ORIGIN], "bind": bind, "on": [origin_click()]}
        places = [Place(f"{step:,}", self.describe_step(step)) for step in self.steps]
        signals = [origin, *slider("B", count, cursor.place(self.now["b"]))]
        return Moving(with_parameters(chart, cursor.parameters), signals, places)

    def tables(self) -> dict[str, pl.DataFrame]:
        """The tokens with their changes from A (from_step) to B (step), the mean change, and the changed heads."""
        pair = {"from_step": self.a, "step": self.now["b"]}
        changes = changes_between(self.losses, [tuple(pair.values())]).rename({"step": "from_step", "until": "step"})
        tables = {"token_changes": changes.sort("change"), "mean_change": self.pairs.filter(**pair)}
        if self.heads is not None:
            steps = [pl.lit(step).alias(name) for name, step in pair.items()]
            tables["changed_heads"] = changed_heads(self.heads, *pair.values()).select(*steps, pl.all())
        return tables

    def describe_step(self, step: int) -> str:
        """The mean loss at a step."""
        return f"B is step {step:,}: mean loss {self.losses.filter(step=step)['loss'].mean():.3f} nats per token."


def head_relations(
    run: Run,
    treebank: Treebank,
    steps: Sequence[int],
    *,
    sentences: int = 300,
    min_count: int = 20,
    device: str = "cpu",
    progress: bool | None = None,
) -> pl.DataFrame | None:
    """The relation that each head follows best at each of the `steps`, for `CheckpointPair`.

    The relation is chosen on one half of some `sentences` of the treebank and scored on the other. None if no relation
    has `min_count` dependents there.
    """
    sample = treebank.take(sentences, 0) if len(treebank) > sentences else treebank
    counts = Counter(
        name for sentence in sample for name, head in zip(sentence.relations, sentence.heads, strict=True) if head >= 0
    )
    if max(counts.values(), default=0) < min_count:
        return None
    scores = trace(run, HeadScores(sample, min_count), steps=steps, device=device, progress=progress)
    return best_heads_and_offset(scores, sample, min_count, by=("layer", "head"))
