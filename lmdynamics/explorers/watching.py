"""The chart of a model that `Watch` measures, renewed while the cell that trains it runs."""

import time
from collections.abc import Mapping

import altair as alt
from IPython.display import DisplayHandle

from lmdynamics.charts.live_training import Rows, live_rows, live_training
from lmdynamics.charts.show import Picture
from lmdynamics.errors import UserError
from lmdynamics.explorers.live import show_live
from lmdynamics.explorers.training import measured_rows
from lmdynamics.measurements.watch import Watch

INTERVAL = 1.0  # seconds between two updates of the page


def show_watch(watch: Watch, steps: int | None = None) -> None:
    """Show the training loss, the learning rate and the headline of each measurement, renewed about once a second.

    Call it before the training begins, in the same cell or an earlier one. `steps`: how long the training is; Trainer
    tells it when it begins. A saved notebook keeps a picture of the end.
    """
    if steps is not None and steps < 1:
        raise UserError(f"steps is {steps}; give the number of updates of the training, at least 1")
    watch.steps = steps or watch.steps
    watch.followers.append(Following(watch).update)


class Following:
    """The chart of a watch. It appears when the first checkpoint is measured, and so in the output of the cell that
    trains."""

    def __init__(self, watch: Watch):
        self.watch = watch
        self._chart: alt.JupyterChart | None = None
        self._still: DisplayHandle | None = None
        self._sent = 0.0

    def update(self) -> None:
        """Send what is new, at most once a second; at the end draw everything anew."""
        if self._chart is None:
            alt.JupyterChart.enable_offline()
            self._chart = alt.JupyterChart(self.picture(), embed_options={"actions": False})
            (self._still,) = show_live(self._chart, [self.picture()])
        elif self.watch.ended:
            self._chart.spec = self.picture().to_dict(validate=False)
            if self._still is not None:  # None: not in a notebook
                self._still.update(Picture(self.picture()))
        elif time.perf_counter() - self._sent > INTERVAL:
            rows = [
                {"namespace": "data", "name": name, "value": rows}
                for name, rows in self._rows().items()
                if name != "measured" or self.watch.headlines  # without a headline, the chart has no such data
            ]
            line = {"namespace": "signal", "name": "status", "value": self._line()}
            # not by a parameter: a page ignores it as long as the kernel, which trains, has not received the page's own
            self._chart._py_to_js_updates = [{**update, "scope": []} for update in [*rows, line]]
        else:
            return
        self._sent = time.perf_counter()

    def picture(self) -> alt.TopLevelMixin:
        """The chart with all rows so far, and a panel for each measurement with a headline."""
        known = {name for _, name, _ in self.watch.headlines}
        names = [name for name in self.watch.measurements if name in known]
        steps = self.watch.steps or max(self.watch.now, 1_000)
        return live_training(steps, self._rows(), names, False, self.watch.folder.name, self._line())

    def _rows(self) -> Mapping[str, Rows]:
        return live_rows(self.watch.rows, measured_rows(self.watch.headlines))

    def _line(self) -> str:
        watch, losses = self.watch, self.watch.rows.drop_nulls("loss")
        loss = f", loss {losses['loss'][-1]:.3f}" if len(losses) else ""
        of = f" of {watch.steps:,}" if watch.steps else ""
        return f"{'complete' if watch.ended else 'training'} at step {watch.now:,}{of}{loss}"
