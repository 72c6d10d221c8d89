"""Whose loss one step moves, and which way: a checkpoint, a batch and a row of text, with every token coloured."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
from IPython.display import display

from lmdynamics.analysis.intervals import bounded
from lmdynamics.analysis.zero_sum import large_change
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.moving import Moving, Place, above, beside, moved
from lmdynamics.charts.tokens import ColouredTokens, visible
from lmdynamics.charts.trades import change_histogram, interference_cursor, token_course, traded_at
from lmdynamics.errors import UserError
from lmdynamics.explorers.changes import DIRECTIONS, KEYS, SPLITS, RunChanges, run_changes, start, told
from lmdynamics.explorers.explorer import Explorer, State, numbered
from lmdynamics.html import STILL

Texts = Mapping[tuple[str, int, int], Sequence[str]] | Callable[[str, int, int], Sequence[str]]
UNNAMED = "the run"


class ZeroSumExplorer(Explorer):
    """Pick a checkpoint, a batch and a row of text, and see whose loss fell and whose rose.

    `changes`: a trace of `OneStep`, or a frame of `analysis.zero_sum.doublings`; of several runs, a mapping by name.
    `texts`: the tokens of a row, as strings, by split, batch and row (of doublings: split "held out", batch 0); with
    several runs that read different tokens, a mapping of such by run. `groups`: row, position, group or token, group,
    as `analysis.zero_sum.traded` takes them, for bars of who traded with whom; `by`: what they are. `step`, `split`,
    `direction`, `batch` and `row` choose where to start: by default the last step, held-out text, the update, the first
    batch and row.

    All numbers are worked out when a run is first looked at; moving only looks up.

    Raises
    ------
    UserError
        If a column is missing, there are no changes, a start value is not among those there are, or a row has no text.
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
        seen = self.runs[now["run"]]
        chosen = {key: now[key] for key in ("split", "direction", "batch") if key in now and key != entry}
        if entry in ("split", "direction", "batch"):
            known = seen.options(entry, **chosen)
            known.sort(key=lambda each: each != "held out")  # where there is some, it is what one asks of
            return {each: {**SPLITS, **DIRECTIONS}.get(each, str(each)) for each in known}
        if entry == "step":
            return numbered(seen.options("step", **chosen))
        rows = seen.changes.filter(**chosen)
        if entry == "row":
            return {row: f"{row}: {start(self._text(now, row))}" for row in rows["row"].unique().sort()}
        text, at = self._text(now, now["row"]), rows.filter(row=now["row"])["position"].unique().sort()
        return {place: f"{place}: {visible(text[place])}" for place in at}

    @property
    def seen(self) -> RunChanges:
        return self.runs[self.now["run"]]

    @property
    def chosen(self) -> dict[str, str | int]:
        """Split, direction and batch that are looked at."""
        return {key: self.now[key] for key in ("split", "direction", "batch")}

    def tokens_at(self, step: int) -> ColouredTokens | None:
        """The row that is looked at, coloured, if it was measured there; the scale is that of all rows."""
        here, row = self._here(step), self.now["row"]
        of_row = here.filter(pl.col("row") == row)
        if of_row.is_empty():
            return None
        title = f"step {step:,}" + ("" if not self.seen.doublings else f" → {here['until'][0]:,}") + f", row {row}"
        marked = (row, self.now["position"])
        return ColouredTokens(
            {row: self._text(self.now, row)}, of_row, most=large_change(here), title=title, marked=marked
        )

    def moving(self) -> Moving:
        seen, chosen, steps = self.seen, self.chosen, list(self.choices("step", self.now))
        cursor = Cursor(steps)
        mean = seen.table.filter(split=chosen["split"], direction=chosen["direction"])
        alone = seen.each.filter(**chosen) if self.several_batches else None
        caption = f"{SPLITS.get(chosen['split'], chosen['split'])}, {DIRECTIONS.get(chosen['direction'])}"
        token = visible(self._text(self.now, self.now["row"])[self.now["position"]]).strip()
        left = [interference_cursor(mean, cursor, alone, caption), token_course(self._of_token(), token, cursor)]
        right = [change_histogram(seen.bins.filter(**chosen), cursor)]
        if seen.traded is not None:
            right.append(traded_at(seen.traded.filter(**chosen), cursor, self.by))
        chart = beside(above(*left), above(*right))
        places = [Place(f"{step:,}", self.sentence(step), self._coloured(step)) for step in steps]
        return moved(chart, cursor, self.now["step"], places)

    @property
    def several_batches(self) -> bool:
        return len(self.choices("batch", self.now)) > 1

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """Show the explorer, or its start values as a still figure and coloured text (and files, in `output_dir`)."""
        super().show(output_dir, interactive)
        tokens = None if interactive else self.tokens_at(self.now["step"])
        if tokens is not None:
            display(tokens, metadata=STILL)
            if output_dir:
                tokens.save(Path(output_dir) / "explorer_tokens.html")

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind the charts: of the course at all steps, of the others at the one that is looked at."""
        seen, chosen, step = self.seen, self.chosen, self.now["step"]
        mean = seen.table.filter(split=chosen["split"], direction=chosen["direction"])
        made = {"explorer_interference": mean, "explorer_changes": self._here(step)}
        if seen.traded is not None:
            made["explorer_traded"] = seen.traded.filter(step=step, **chosen)
        return {**made, "explorer_token": self._of_token()}

    def sentence(self, step: int) -> str:
        """D, M and ΔL at a checkpoint in words, with what is known of their uncertainty."""
        chosen = self.chosen
        said = told(self.seen, step, chosen["split"], chosen["direction"])
        if self.several_batches:
            own = self.seen.each.filter(step=step, **chosen).select("interference").row(0, named=True)
            said += f" Batch {chosen['batch']} alone: D {bounded(own, 'interference', '.2f')}."
        return said if list(self.runs) == [UNNAMED] else f"{self.now['run']}: {said}"

    def _of_token(self) -> pl.DataFrame:
        """The token that is looked at, at every checkpoint."""
        return self.seen.changes.filter(**self.chosen, row=self.now["row"], position=self.now["position"])

    def _coloured(self, step: int) -> str:
        tokens = self.tokens_at(step)
        return "This row was not measured here." if tokens is None else tokens._repr_html_()

    def _here(self, step: int) -> pl.DataFrame:
        return self.seen.tokens[*(self.chosen[key] for key in KEYS), step]

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
                    f"there is no text of split {key[0]!r}, batch {key[1]}, row {key[2]}; give it"
                ) from error
        return self._texts[run, *key]
