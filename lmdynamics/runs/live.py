"""The log of a run while it is trained: `log.parquet`, and the rows since the last save."""

import time
from pathlib import Path

import polars as pl

from lmdynamics import files
from lmdynamics.training.state import LOG_SCHEMA, Log, read_log, with_numbers

LIVE = "live.csv"
WRITE_INTERVAL = 0.5  # seconds between two writes of live rows; not at every step, since a write waits for the device


def read_live(folder: Path) -> pl.DataFrame:
    """A run's log with the steps made since the last save; the same columns as `log.parquet`."""
    # live rows first: they are removed only after the log has them, so no step is missed
    try:
        lines = (folder / LIVE).read_bytes()
    except FileNotFoundError:
        lines = b""
    log = read_log(folder / "log.parquet")
    complete = lines[: lines.rfind(b"\n") + 1]  # a killed process may leave half a line
    if not complete:
        return log
    live = pl.read_csv(complete, has_header=False, schema=LOG_SCHEMA)
    last = log["step"][-1] if len(log) else -1
    return pl.concat([log, live.filter(pl.col("step") > last)], how="diagonal")


class LiveLog(Log):
    """A log that also writes each row, soon after its step, as a line of `live.csv`."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._live = path.with_name(LIVE)
        self._lines = 0  # how many of the unsaved rows are written
        self._written = 0.0
        self._clear()

    def add(self, *row) -> None:
        super().add(*row)
        if time.perf_counter() - self._written > WRITE_INTERVAL:
            self.flush()

    def write(self) -> None:
        super().write()
        self._lines = 0
        self._clear()

    def _clear(self) -> None:
        """Replace the file by an empty one, in one step for readers."""
        with files.saving(str(self._live)), files.atomic_file(self._live) as temporary:
            temporary.write_bytes(b"")

    def flush(self) -> None:
        """Write the rows since the last write."""
        rows = with_numbers(self._rows[self._lines :])
        if not rows:
            return
        lines = [",".join("" if value is None else str(value) for value in row) for row in rows]
        with files.saving(str(self._live)), self._live.open("ab", buffering=0) as file:
            file.write(("\n".join(lines) + "\n").encode())
        self._lines, self._written = len(self._rows), time.perf_counter()
