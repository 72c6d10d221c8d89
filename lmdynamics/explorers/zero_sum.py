"""Whose loss one step moves, and which way: a checkpoint, a batch and a row of text, with every token coloured."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import altair as alt
import ipywidgets as widgets
import polars as pl
from IPython.display import display

from lmdynamics.analysis.intervals import bounded
from lmdynamics.analysis.zero_sum import large_change
from lmdynamics.charts.changes import change_histogram, interference_cursor, token_course, traded_at
from lmdynamics.charts.linked import Linked, Place
from lmdynamics.charts.tokens import ColouredTokens, visible
from lmdynamics.errors import UserError
from lmdynamics.explorers.changes import DIRECTIONS, KEYS, SPLITS, Moved, moved, start, told
from lmdynamics.explorers.checkpoints import CheckpointSlider
from lmdynamics.explorers.explorer import Explorer
from lmdynamics.explorers.live import Views
from lmdynamics.explorers.saving import SaveRow, check_among, check_start, restored
from lmdynamics.html import STILL

Texts = Mapping[tuple[str, int, int], Sequence[str]] | Callable[[str, int, int], Sequence[str]]
CURSOR = "zero_sum_step"
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

    def __init__(
        self,
        changes: pl.DataFrame | Mapping[str, pl.DataFrame],
        texts: Texts | Mapping[str, Texts],
        groups: pl.DataFrame | None = None,
        *,
        by: str = "",
        step: int | None = None,
        split: str = "held out",
        direction: str | None = None,
        batch: int | None = None,
        row: int | None = None,
    ):
        frames = {UNNAMED: changes} if isinstance(changes, pl.DataFrame) else dict(changes)
        if not frames:
            raise UserError("the zero-sum explorer: there are no runs; give the changes of one or more")
        self.runs = {str(name): moved(frame, groups) for name, frame in frames.items()}
        self.texts, self.by = texts, by
        self._switching = True  # while controls are set one after the other, nothing is drawn
        self._drawn: tuple = ()
        self._texts: dict[tuple, list[str]] = {}
        self._make_controls()
        seen = self.seen
        wanted = {
            "split": split if split in seen.options("split") else seen.options("split")[0],
            "direction": direction or seen.options("direction")[0],
            "batch": seen.options("batch")[0] if batch is None else batch,
            "step": seen.steps[-1] if step is None else step,
        }
        self._put(wanted, row)
        self._switching = False
        self._look()
        self._bind()

    @property
    def seen(self) -> Moved:
        return self.runs[self.run.value]

    @property
    def chosen(self) -> dict[str, str | int]:
        """Split, direction and batch that are looked at."""
        return {"split": self.split.value, "direction": self.direction.value, "batch": self.batch.value}

    @property
    def tokens(self) -> ColouredTokens:
        """The row that is looked at, coloured; the scale is that of all rows at this checkpoint."""
        return self._tokens_at(self.checkpoint.step)

    def _tokens_at(self, step: int) -> ColouredTokens:
        here, row = self._here(step), self.row.value
        step = f"step {step:,}" + ("" if not self.seen.doublings else f" → {here['until'][0]:,}")
        title = f"{step}, row {row}"
        of_row, marked = here.filter(pl.col("row") == row), (row, self.position.value)
        return ColouredTokens({row: self._text(row)}, of_row, most=large_change(here), title=title, marked=marked)

    def stills(self) -> dict[str, alt.TopLevelMixin]:
        seen, chosen = self.seen, self.chosen
        cursor = alt.param(name=CURSOR, value=self.checkpoint.step)
        mean = seen.table.filter(split=chosen["split"], direction=chosen["direction"])
        alone = seen.each.filter(**chosen) if len(self.batch.options) > 1 else None
        caption = f"{SPLITS.get(chosen['split'], chosen['split'])}, {DIRECTIONS.get(chosen['direction'])}"
        made = {
            "explorer_interference": interference_cursor(mean, cursor, alone, caption),
            "explorer_changes": change_histogram(seen.bins.filter(**chosen), cursor),
        }
        if seen.traded is not None:
            made["explorer_traded"] = traded_at(seen.traded.filter(**chosen), cursor, self.by)
        return {**made, "explorer_token": self._course()}

    def _course(self) -> alt.TopLevelMixin:
        token = visible(self._text(self.row.value)[self.position.value]).strip()
        return token_course(self._of_token(), token, alt.param(name=CURSOR, value=self.checkpoint.step))

    def _of_token(self) -> pl.DataFrame:
        """The token that is looked at, at every checkpoint."""
        return self.seen.changes.filter(**self.chosen, row=self.row.value, position=self.position.value)

    def show(self, output_dir: str = "", interactive: bool = True) -> None:
        """Show the explorer, or its start values as still figures and coloured text (and files, in `output_dir`)."""
        super().show(output_dir, interactive)
        if not interactive:
            display(self.tokens, metadata=STILL)
            if output_dir:
                self.tokens.save(Path(output_dir) / "explorer_tokens.html")

    def tables(self) -> dict[str, pl.DataFrame]:
        """The data behind the charts: of the course at all steps, of the others at the one that is looked at."""
        seen, chosen = self.seen, self.chosen
        mean = seen.table.filter(split=chosen["split"], direction=chosen["direction"])
        made = {"explorer_interference": mean, "explorer_changes": self._here()}
        if seen.traded is not None:
            made["explorer_traded"] = seen.traded.filter(step=self.checkpoint.step, **chosen)
        return {**made, "explorer_token": self._of_token()}

    def linked(self) -> Linked:
        steps, split, direction = self.checkpoint.steps, self.split.value, self.direction.value
        places = [
            Place(f"{step:,}", {CURSOR: step}, told(self.seen, step, split, direction), step, self._coloured(step))
            for step in steps
        ]
        return Linked("checkpoint at step", places, steps.index(self.checkpoint.step), self.stills())

    def state(self) -> dict[str, str | int]:
        text = {"row": self.row.value, "position": self.position.value}
        return {"run": self.run.value, **self.chosen, "step": self.checkpoint.step, **text}

    def restore(self, state: Mapping[str, Any]) -> "ZeroSumExplorer":
        before = self.state()
        wanted = restored(state, before)
        check_among("run", wanted["run"], list(self.runs))
        self._switching = True
        try:
            self.run.value = wanted["run"]
            self._put(wanted, wanted["row"], wanted["position"] if "position" in state else None)
        except UserError:
            self.run.value = before["run"]
            self._put(before, before["row"], before["position"])
            raise
        finally:
            self._switching = False
        self._look()
        return self

    def _make_controls(self) -> None:
        style = {"description_width": "80px"}
        narrow = {"style": style, "layout": widgets.Layout(width="250px")}
        self.run = widgets.Dropdown(options=list(self.runs), description="run", **narrow)
        self.split = widgets.Dropdown(description="text", **narrow)
        self.direction = widgets.Dropdown(description="moved by", **narrow)
        self.batch = widgets.Dropdown(description="batch", **narrow)
        self.checkpoint = CheckpointSlider([0])
        self.row = widgets.Dropdown(description="row", style=style, layout=widgets.Layout(width="520px"))
        self.position = widgets.Dropdown(description="token", **narrow)
        self.said, self.text = widgets.HTML(), widgets.HTML(layout=widgets.Layout(max_width="900px"))
        self.views, self.course = Views(self.checkpoint.clicks), Views(self.checkpoint.clicks)
        self._pickers = widgets.HBox(layout=widgets.Layout(flex_flow="wrap"))
        self.saving = SaveRow(self)
        text = widgets.HBox([self.row, self.position], layout=widgets.Layout(flex_flow="wrap"))
        shown = [self._pickers, self.checkpoint, self.said, self.views.widget]
        self.widget = widgets.VBox([*shown, text, self.text, self.course.widget, self.saving.widget])

    def _bind(self) -> None:
        for control in (self.run, self.split, self.direction, self.batch):
            control.observe(lambda _: self._switching or self._try(self._switch), names="value")
        self.checkpoint.observe(lambda _: self._switching or self._try(self._moved_to), names="step")
        self.row.observe(lambda _: self._switching or self._row_changed(), names="value")
        self.position.observe(lambda _: self._switching or self._draw_course(), names="value")

    def _try(self, move: Callable[[], None]) -> None:
        """What cannot be shown is said where the numbers stand."""
        try:
            move()
        except UserError as error:
            self.said.value, self.text.value = escape(str(error)), ""

    def _switch(self) -> None:
        """Another run, text, direction or batch: what it does not have gives way to what it has first."""
        self._switching = True
        try:
            self._offer({**self.chosen, "step": self.checkpoint.step})
        finally:
            self._switching = False
        self._look()

    def _offer(self, wanted: Mapping[str, str | int], strict: bool = False) -> None:
        """Fill the controls with what there is, and set them to what is wanted, or to the nearest or first."""
        seen, fixed = self.seen, {}
        for column, control in (("split", self.split), ("direction", self.direction), ("batch", self.batch)):
            known = seen.options(column, **fixed)
            value = wanted[column]
            if value not in known:
                if strict:
                    check_start(column, value, known)
                value = known[0]
            names = {"split": SPLITS, "direction": DIRECTIONS}.get(column, {})
            named = [(names.get(each, str(each)), each) for each in known]
            control.options, control.value = named, value
            fixed[column] = value
        steps = seen.options("step", **fixed)
        if strict:
            check_start("step", wanted["step"], steps)
        self.checkpoint.offer(steps, wanted["step"])
        self._offer_rows()
        several = ((self.run, self.runs), (self.split, self.split.options), (self.direction, self.direction.options))
        shown = [control for control, known in (*several, (self.batch, self.batch.options)) if len(known) > 1]
        self._pickers.children = shown

    def _put(self, wanted: Mapping[str, str | int], row: int | None, position: int | None = None) -> None:
        """Set the controls to what is wanted, or refuse it; without a row or a token, to the first."""
        self._offer(wanted, strict=True)
        rows = [value for _, value in self.row.options]
        if row is not None and row not in rows:
            raise UserError(f"there is no row {row} in this batch; rows: {', '.join(map(str, rows))}")
        self.row.value = rows[0] if row is None else row
        self._offer_tokens()
        positions = [value for _, value in self.position.options]
        if position is not None:
            if position not in positions:
                raise UserError(f"no token was measured at position {position} of row {self.row.value}")
            self.position.value = position

    def _offer_rows(self) -> None:
        """The rows of this batch at this checkpoint, each with the start of its text; the one looked at is kept."""
        before, known = self.row.value, self._here()["row"].unique().sort().to_list()
        options = [(f"{row}: {start(self._text(row))}", row) for row in known]
        if options != list(self.row.options):
            self.row.options = options
            self.row.value = before if before in known else known[0]
        self._offer_tokens()

    def _offer_tokens(self) -> None:
        """The tokens of this row that have a change; the place that is looked at is kept."""
        text, row, before = self._text(self.row.value), self.row.value, self.position.value
        places = self.seen.changes.filter(**self.chosen, row=row)["position"].unique().sort().to_list()
        options = [(f"{place}: {visible(text[place])}", place) for place in places]
        if options != list(self.position.options):
            self.position.options = options
            self.position.value = before if before in places else places[0]

    def _row_changed(self) -> None:
        self._switching = True
        try:
            self._offer_tokens()
        finally:
            self._switching = False
        self._draw_course()

    def _draw_course(self) -> None:
        """Another token: its own chart, and its frame in the text."""
        self._drawn = self._drawing
        self.course.redraw("explorer_token", self._course(), **{CURSOR: self.checkpoint.step})
        self._say()

    @property
    def _drawing(self) -> tuple:
        """What the charts depend on, but for the checkpoint."""
        return self.run.value, *self.chosen.values(), self.row.value, self.position.value

    def _coloured(self, step: int) -> str:
        """The row at another checkpoint, if it was measured there."""
        known = self.row.value in self._here(step)["row"]
        return self._tokens_at(step)._repr_html_() if known else ""

    def _here(self, step: int | None = None) -> pl.DataFrame:
        step = self.checkpoint.step if step is None else step
        return self.seen.tokens[*(self.chosen[key] for key in KEYS), step]

    def _text(self, row: int) -> Sequence[str]:
        run, key = self.run.value, (self.split.value, self.batch.value, row)
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

    def _look(self) -> None:
        """Another run, text, direction or batch: other charts, in the place of those before."""
        if self._drawing != self._drawn:
            self._drawn = self._drawing
            made = self.stills()
            self.course.draw({"explorer_token": made.pop("explorer_token")})
            self.views.draw(made)
        self._moved_to()

    def _moved_to(self) -> None:
        """Another checkpoint: a number goes out, and the text is coloured anew."""
        for views in (self.views, self.course):
            views.set(**{CURSOR: self.checkpoint.step})
        self._switching = True
        try:
            self._offer_rows()
        finally:
            self._switching = False
        if self._drawing != self._drawn:  # this checkpoint lacks the row that was looked at
            self._draw_course()
        self._say()

    def _say(self) -> None:
        self.said.value = escape(self.sentence)
        self.text.value = self.tokens._repr_html_()

    @property
    def sentence(self) -> str:
        """D, M and ΔL at this checkpoint in words, with what is known of their uncertainty."""
        chosen = self.chosen
        said = told(self.seen, self.checkpoint.step, chosen["split"], chosen["direction"])
        if len(self.batch.options) > 1:
            own = self.seen.each.filter(step=self.checkpoint.step, **chosen).select("interference").row(0, named=True)
            said += f" Batch {chosen['batch']} alone: D {bounded(own, 'interference', '.2f')}."
        return said if list(self.runs) == [UNNAMED] else f"{self.run.value}: {said}"
