"""Explore when tokens are learnt: click on a time, and read the tokens that are learnt then, in their context."""

from collections.abc import Mapping
from typing import Any, ClassVar

import polars as pl

from lmdynamics.analysis.checkpoint_pairs import context_of
from lmdynamics.analysis.intervals import bounded
from lmdynamics.analysis.learning_times import LOSS, TIMES
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.learning_times import learning_density
from lmdynamics.charts.moving import Moving, Place, with_slider
from lmdynamics.charts.tokens import visible
from lmdynamics.errors import UserError
from lmdynamics.experiments.learning import Learning
from lmdynamics.explorers.explorer import Explorer, State
from lmdynamics.html import html_table

LISTED = 10  # tokens of a place
BEFORE, AFTER = 7, 3  # tokens of context


class LearningTimesExplorer(Explorer):
    """Move along training, and read the tokens whose losses have fallen by half between two checkpoints.

    `results`: by name, such as where falls are counted from. The tokens are those of a size's first run; beside each
    are its times in the other runs.

    Raises
    ------
    UserError
        If there are no results, or an initial value is unknown.
    """

    name = "explorer_learning_times"
    pickers: ClassVar = {"counted": "falls are counted", "size": "size"}

    def __init__(
        self,
        results: Mapping[str, Learning],
        *,
        counted: str | None = None,
        size: str | None = None,
        step: int | None = None,
    ):
        if not results:
            raise UserError("the explorer of learning times: there are no results; measure at four checkpoints or more")
        self.results = results
        self.start(counted=counted, size=size, step=step)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "counted":
            return {name: name for name in self.results}
        chosen = self.results[now["counted"]]
        if entry == "size":
            return {name: name for name in chosen.density["size"].unique(maintain_order=True)}
        rows = chosen.density.filter(size=now["size"], account=TIMES)
        return {step: f"{step:,} → {until:,}" for step, until in rows.select("step", "until").iter_rows()}

    def default(self, entry: str, options: Mapping[Any, str]) -> Any:
        """By default, the slider is where most tokens are learnt."""
        if entry != self.slider:
            return super().default(entry, options)
        return self._density(self.now).filter(account=TIMES).sort("fall")["step"][-1]

    def _density(self, now: State) -> pl.DataFrame:
        return self.results[now["counted"]].density.filter(size=now["size"])

    @property
    def learnt(self) -> pl.DataFrame:
        """The learnt tokens of the size's first run: their time, context, and times in the other runs."""
        times = self.results[self.now["counted"]].times.filter(size=self.now["size"])
        first, *others = times.partition_by("seed", maintain_order=True)
        words = {row: rows["token"].to_list() for (row,), rows in first.group_by("row", maintain_order=True)}
        place = pl.int_range(pl.len()).over("row")
        rows = first.with_columns(place=place).drop_nulls("step")
        contexts = [
            context_of([visible(str(word)).strip() for word in words[row]], index, BEFORE, AFTER)
            for row, index in rows.select("row", "place").iter_rows()
        ]
        elsewhere = pl.concat([first.clear(), *others]).group_by("row", "position").agg(other_runs=pl.col("step"))
        rows = rows.with_columns(context=pl.Series(contexts, dtype=pl.String)).drop("place")
        return rows.join(elsewhere, on=["row", "position"], how="left", maintain_order="left")

    def moving(self) -> Moving:
        chosen = self.results[self.now["counted"]]
        options = self.choices("step", self.now)
        cursor, density = Cursor(list(options)), self._density(self.now)
        chart = learning_density(density, chosen.tests.filter(size=self.now["size"]), cursor)
        learnt = self.learnt.with_columns(pl.col("step").clip(next(iter(options)), density["until"].max() - 1e-9))
        spans = density.filter(account=TIMES).select("step", "until").rows()
        places = [
            Place(
                options[step],
                self.describe_step(step),
                _listed(learnt.filter(pl.col("step") >= step, pl.col("step") < until)),
            )
            for step, until in spans
        ]
        return with_slider(chart, cursor, self.now["step"], places, label="time")

    def tables(self) -> dict[str, pl.DataFrame]:
        """The density, and the learnt tokens of the first run."""
        return {"density": self._density(self.now), "learnt_tokens": self.learnt.drop("other_runs")}

    def describe_step(self, step: int) -> str:
        """The fall of the mean loss between two checkpoints, and that of the tokens that are learnt there."""
        rows = {row["account"]: row for row in self._density(self.now).filter(step=step).iter_rows(named=True)}
        falls = {name: bounded(rows[name], "fall", ".3f") for name in (LOSS, TIMES)}
        return (
            f"Steps {step:,} → {rows[LOSS]['until']:,}: fall of the mean loss {falls[LOSS]} nats per doubling; falls "
            f"of the tokens that are learnt then, added up: {falls[TIMES]}."
        )


def _listed(rows: pl.DataFrame) -> str:
    """The tokens of a place with the largest falls, as a table."""
    largest = rows.sort("fall", "row", "position", descending=[True, False, False]).head(LISTED)
    lines = [
        [
            row["context"],
            f"row {row['row']}",
            f"{row['start']:.2f} → {row['end'] + 0:.2f}",  # never −0.00
            f"{row['step']:,.0f} [{row['low']:,}, {row['high']:,}]",
            ", ".join("not learnt" if step is None else f"{step:,.0f}" for step in row["other_runs"] or []) or "–",
        ]
        for row in largest.iter_rows(named=True)
    ]
    if not lines:
        return "<div>No token is learnt between these checkpoints.</div>"
    shown = f"{len(rows):,} learnt between these checkpoints"
    shown += f"; the {LISTED} with the largest falls" if len(rows) > LISTED else ""
    header = ["token in its text", "", "loss (nats)", "half gone at step [95 %]", "in other runs"]
    return f"<div>Tokens: {shown}.</div>{html_table(header, lines)}"
