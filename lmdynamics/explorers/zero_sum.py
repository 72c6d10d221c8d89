"""Explore the changes of tokens' losses in one step: a checkpoint, a batch and a row of text, every token coloured."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
from IPython.display import display

from lmdynamics.analysis.intervals import bounded
from lmdynamics.analysis.zero_sum import large_change
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.moving import Moving, Place, in_column, in_row, with_slider
from lmdynamics.charts.tokens import ColouredTokens, visible
from lmdynamics.charts.trades import change_histogram, interference_cursor, token_course, traded_at
from lmdynamics.errors import UserError
from lmdynamics.explorers.changes import DIRECTIONS, KEYS, SPLITS, RunChanges, describe_step, preview, run_changes
from lmdynamics.explorers.explorer import Explorer, State, step_options
from lmdynamics.html import STILL

Texts = Mapping[tuple[str, int, int], Sequence[str]] | Callable[[str, int, int], Sequence[str]]
UNNAMED = "the run"


class ZeroSumExplorer(Explorer):
    """Choose a checkpoint, a batch and a row of text, and see which tokens' losses fell and which rose.

    `changes`: a trace of `OneStep`, or a frame of `analysis.zero_sum.doublings`; of several runs, a mapping by name.
    `texts`: the tokens of a row, as strings, by split, batch and row (of doublings: split "held out", batch 0); for
    several runs with different tokens, a mapping of such by run. `groups`: row, position, group or token, group, as for
    `analysis.zero_sum.traded`, for bars of losses that fell and rose; `by`: what the groups are. `step`, `split`,
    `direction`, `batch` and `row` are the initial selection: by default the last step, held-out text, the update, the
    first batch and row.

    All numbers are computed when a run is first selected; moving the slider computes nothing.

    Raises
    ------
    UserError
        If a column is missing, there are no changes, an initial value is unknown, or a row has no text.
    """

    name = "explorer_zero_sum"
    pickers: ClassVar = {
        "run": "run",
        "split": "text",
        "direction": "moved by",
        "batch": "batch",
        "row": "row",
        "position": "token",
    }

    def __init__(
        self,
        changes: pl.DataFrame | Mapping[str, pl.DataFrame],
        texts: Texts | Mapping[str, Texts],
        groups: pl.DataFrame | None = None,
        *,
        by: str = "",
        step: int | None = None,
        split: str | None = None,
        direction: str | None = None,
        batch: int | None = None,
        row: int | None = None,
    ):
        frames = {UNNAMED: changes} if isinstance(changes, pl.DataFrame) else dict(changes)
        if not frames:
            raise UserError("the zero-sum explorer: there are no runs; give the changes of one or more")
        self.runs = {str(name): run_changes(frame, groups) for name, frame in frames.items()}
        self.texts, self.by = texts, by
        self._texts: dict[tuple, list[str]] = {}
        self.start(run=None, split=split, direction=direction, batch=batch, row=row, position=None, step=step)

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "run":
            return {name: name for name in self.runs}
        run = self.runs[now["run"]]
        chosen = {key: now[key] for key in ("split", "direction", "batch") if key in now and key != entry}
        if entry in ("split", "direction", "batch"):
            options = run.options(entry, **chosen)
            options.sort(key=lambda value: value != "held out")  # held-out text first
            return {value: {**SPLITS, **DIRECTIONS}.get(value, str(value)) for value in options}
        if entry == "step":
            return step_options(run.options("step", **chosen))
        rows = run.changes.filter(**chosen)
        if entry == "row":
            return {row: f"{row}: {preview(self._text(now, row))}" for row in rows["row"].unique().sort()}
        text, positions = self._text(now, now["row"]), rows.filter(row=now["row"])["position"].unique().sort()
        return {position: f"{position}: {visible(text[position])}" for position in positions}

    @property
    def current(self) -> RunChanges:
        return self.runs[self.now["run"]]

    @property
    def chosen(self) -> dict[str, str | int]:
        """The selected split, direction and batch."""
        return {key: self.now[key] for key in ("split", "direction", "batch")}

    def tokens_at(self, step: int) -> ColouredTokens | None:
        """The selected row, coloured, if it was measured at the step; the colour scale is that of all rows."""
        tokens, row = self._changes_at(step), self.now["row"]
        row_changes = tokens.filter(pl.col("row") == row)
        if row_changes.is_empty():
            return None
        title = f"step {step:,}" + ("" if not self.current.doublings else f" → {tokens['until'][0]:,}") + f", row {row}"
        marked = (row, self.now["position"])
        return ColouredTokens(
            {row: self._text(self.now, row)}, row_changes, limit=large_change(tokens), title=title, marked=marked
        )

    def moving(self) -> Moving:
        run, chosen, steps = self.current, self.chosen, list(self.choices("step", self.now))
        cursor = Cursor(steps)
        mean = run.table.filter(split=chosen["split"], direction=chosen["direction"])
        batch = run.by_batch.filter(**chosen) if self.several_batches else None
        caption = f"{SPLITS.get(chosen['split'], chosen['split'])}, {DIRECTIONS.get(chosen['direction'])}"
        token = visible(self._text(self.now, self.now["row"])[self.now["position"]]).strip()
        left = [interference_cursor(mean, cursor, batch, caption), token_course(self._token_rows(), token, cursor)]
        right = [change_histogram(run.bins.filter(**chosen), cursor)]
        if run.traded is not None:
            right.append(traded_at(run.traded.filter(**chosen), cursor, self.by))
        chart = in_row(in_column(*left), in_column(*right))
        places = [Place(f"{step:,}", self.describe_step(step), self._coloured_html(step)) for step in steps]
        return with_slider(chart, cursor, self.now["step"], places)

    @property
    def several_batches(self) -> bool:
        return len(self.choices("batch", self.now)) > 1

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """Show the explorer, or its current state as a still figure and coloured text (and files, in `output_dir`)."""
        super().show(output_dir, interactive)
        tokens = None if interactive else self.tokens_at(self.now["step"])
        if tokens is not None:
            display(tokens, metadata=STILL)
            if output_dir:
                tokens.save(Path(output_dir) / "explorer_tokens.html")

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data of the charts: of curves over training at all steps, of the others at the selected step."""
        run, chosen, step = self.current, self.chosen, self.now["step"]
        mean = run.table.filter(split=chosen["split"], direction=chosen["direction"])
        tables = {"explorer_interference": mean, "explorer_changes": self._changes_at(step)}
        if run.traded is not None:
            tables["explorer_traded"] = run.traded.filter(step=step, **chosen)
        return {**tables, "explorer_token": self._token_rows()}

    def describe_step(self, step: int) -> str:
        """D, M and ΔL at a checkpoint in words, with their uncertainty."""
        chosen = self.chosen
        text = describe_step(self.current, step, chosen["split"], chosen["direction"])
        if self.several_batches:
            batch = self.current.by_batch.filter(step=step, **chosen).select("interference").row(0, named=True)
            text += f" Batch {chosen['batch']} alone: D {bounded(batch, 'interference', '.2f')}."
        return text if list(self.runs) == [UNNAMED] else f"{self.now['run']}: {text}"

    def _token_rows(self) -> pl.DataFrame:
        """The selected token, at every checkpoint."""
        return self.current.changes.filter(**self.chosen, row=self.now["row"], position=self.now["position"])

    def _coloured_html(self, step: int) -> str:
        tokens = self.tokens_at(step)
        return "This row was not measured here." if tokens is None else tokens._repr_html_()

    def _changes_at(self, step: int) -> pl.DataFrame:
        return self.current.tokens[*(self.chosen[key] for key in KEYS), step]

    def _text(self, now: State, row: int) -> Sequence[str]:
        run, key = now["run"], (now["split"], now["batch"], row)
        if (run, *key) not in self._texts:
            texts = self.texts
            if isinstance(texts, Mapping) and run in texts:
                texts = texts[run]
            try:
                self._texts[run, *key] = list(texts(*key) if callable(texts) else texts[key])
            except (KeyError, IndexError) as error:
                raise UserError(
                    f"there is no text of split {key[0]!r}, batch {key[1]}, row {key[2]}; add it to texts"
                ) from error
        return self._texts[run, *key]
