"""The printed progress of a batch: its plan, and a live table of running items; plain lines outside a terminal."""

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table as RichTable

from lmdynamics.batch.execute import Outcome
from lmdynamics.batch.parameters import DISPLAY_PARAMETERS
from lmdynamics.batch.plan import Job
from lmdynamics.errors import shortened

MAX_ROWS = 30  # of a live table; further items are counted


def print_plan(jobs: Sequence[Job], todo: Sequence[Job]) -> None:
    """Print every item with its parameters, and which are done already."""
    console = _console()
    waiting = {job.name for job in todo}
    table = RichTable("item", "parameters", "", box=None, pad_edge=False)
    for job in jobs:
        parameters = {name: value for name, value in job.parameters.items() if name not in DISPLAY_PARAMETERS}
        settings = ", ".join(f"{name}={shortened(str(value))}" for name, value in parameters.items())
        table.add_row(job.name, escape(settings), "to do" if job.name in waiting else "done already")
    if console.is_terminal or len(jobs) <= MAX_ROWS:
        console.print(table)
    console.print(f"{len(jobs)} items, {len(jobs) - len(todo)} done already, {len(todo)} to do")


class Table:
    """The items of a batch while they run. In a terminal a live table, elsewhere a line when each starts and ends."""

    def __init__(self, jobs: Sequence[Job]):
        self.console = _console()
        self.state: dict[str, str] = {job.name: "waits" for job in jobs}
        self.started: dict[str, float] = {}
        live = self.console.is_terminal and bool(jobs)
        self.live = Live(console=self.console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> "Table":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, progress: Mapping[str, tuple[int, int] | None]) -> None:
        """Show the progress of running items: the current cell, and how many there are; None before the first."""
        for name, cells in progress.items():
            if cells is None:
                continue
            if name not in self.started:
                self.started[name] = time.monotonic()
                if self.live is None:
                    self.print(f"{name}: running")
            self.state[name] = f"cell {cells[0]} of {cells[1]}"
        if self.live is not None:
            self.live.update(self._table())

    def finish(self, outcome: Outcome) -> None:
        self.state.pop(outcome.name, None)
        self.print(str(outcome))

    def print(self, line: str) -> None:
        self.console.print(line, markup=False)

    def _table(self) -> RichTable:
        table = RichTable("item", "", "time", box=None, pad_edge=False)
        running = [name for name in self.state if name in self.started]
        waiting = [name for name in self.state if name not in self.started]
        for name in [*running, *waiting][:MAX_ROWS]:
            elapsed = f"{time.monotonic() - self.started[name]:.0f} s" if name in self.started else ""
            table.add_row(name, self.state[name], elapsed)
        if len(self.state) > MAX_ROWS:
            table.add_row(f"and {len(self.state) - MAX_ROWS} more", "", "")
        return table


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
