"""A batch as a person follows it: what is planned, and a live table of what runs; plain lines outside a terminal."""

import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table as RichTable

from lmdynamics.batch.execute import Outcome
from lmdynamics.batch.parameters import NOT_SETTINGS
from lmdynamics.batch.plan import Job
from lmdynamics.errors import shortened

SHOWN = 30  # lines of a live table; further items are counted


def planned(jobs: Sequence[Job], todo: Sequence[Job]) -> None:
    """Every item with its parameters, and which are done already."""
    console = _console()
    waiting = {job.name for job in todo}
    table = RichTable("item", "parameters", "", box=None, pad_edge=False)
    for job in jobs:
        shown = {name: value for name, value in job.parameters.items() if name not in NOT_SETTINGS}
        told = ", ".join(f"{name}={shortened(str(value))}" for name, value in shown.items())
        table.add_row(job.name, escape(told), "to do" if job.name in waiting else "done already")
    if console.is_terminal or len(jobs) <= SHOWN:
        console.print(table)
    console.print(f"{len(jobs)} items, {len(jobs) - len(todo)} done already, {len(todo)} to do")


class Table:
    """The items of a batch while they run. In a terminal a live table, elsewhere a line as each begins and ends."""

    def __init__(self, jobs: Sequence[Job]):
        self.console = _console()
        self.state: dict[str, str] = {job.name: "waits" for job in jobs}
        self.began: dict[str, float] = {}
        live = self.console.is_terminal and bool(jobs)
        self.live = Live(console=self.console, refresh_per_second=4, transient=True) if live else None

    def __enter__(self) -> "Table":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_) -> None:
        if self.live is not None:
            self.live.stop()

    def look(self, progress: Mapping[str, tuple[int, int] | None]) -> None:
        """Which cell each item that has not ended is at."""
        for name, at in progress.items():
            if at is None:
                continue
            if name not in self.began:
                self.began[name] = time.monotonic()
                if self.live is None:
                    self.says(f"{name}: running")
            self.state[name] = f"cell {at[0]} of {at[1]}"
        if self.live is not None:
            self.live.update(self._drawn())

    def ended(self, outcome: Outcome) -> None:
        self.state.pop(outcome.name, None)
        self.says(str(outcome))

    def says(self, line: str) -> None:
        self.console.print(line, markup=False)

    def _drawn(self) -> RichTable:
        table = RichTable("item", "", "time", box=None, pad_edge=False)
        running = [name for name in self.state if name in self.began]
        waiting = [name for name in self.state if name not in self.began]
        for name in [*running, *waiting][:SHOWN]:
            since = f"{time.monotonic() - self.began[name]:.0f} s" if name in self.began else ""
            table.add_row(name, self.state[name], since)
        if len(self.state) > SHOWN:
            table.add_row(f"and {len(self.state) - SHOWN} more", "", "")
        return table


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
