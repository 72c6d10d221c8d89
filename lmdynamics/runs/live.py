"""The log of a run while it is trained: what `log.parquet` holds, and the rows since the last save."""

import time
from pathlib import Path

import polars as pl

from lmdynamics import files
from lmdynamics.training.state import LOG_SCHEMA, Log, read_log, with_numbers

LIVE = "live.csv"
EVERY = 0.5  # seconds between two writes of live rows; a write waits for the device, so not at every step


def read_live(folder: Path) -> pl.DataFrame:
    """A run's log with the steps made since the last save; the same columns as `log.parquet`."""
    # live rows first: they are removed only after the log has them, so no step falls between the two
    try:
        lines = (folder / LIVE).read_bytes()
    except FileNotFoundError:
        lines = b""
    log = read_log(folder / "log.parquet")
    whole = lines[: lines.rfind(b"\n") + 1]  # a killed process may leave half a line
    if not whole:
        return log
    live = pl.read_csv(whole, has_header=False, schema=LOG_SCHEMA)
    last = log["step"][-1] if len(log) else -1
    return pl.concat([log, live.filter(pl.col("step") > last)], how="diagonal")


class LiveLog(Log):
    """A log that also writes each row, soon after its step, as a line of `live.csv`."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._live = path.with_name(LIVE)
        self._lines = 0  # of the rows that are not saved yet, those that are written
        self._told = 0.0
        self._begin()

    def add(self, *row) -> None:
        super().add(*row)
        if time.perf_counter() - self._told > EVERY:
            self.tell()

    def write(self) -> None:
        super().write()
        self._lines = 0
        self._begin()

    def _begin(self) -> None:
        """An empty file in the old one's place: a reader has the one or the other."""
        with files.saving(str(self._live)), files.atomic_file(self._live) as fresh:
            fresh.write_bytes(b"")

    def tell(self) -> None:
        """Write the rows that have come since the last time."""
        fresh = with_numbers(self._rows[self._lines :])
        if not fresh:
            return
        lines = [",".join("" if value is None else str(value) for value in row) for row in fresh]
        with files.saving(str(self._live)), self._live.open("ab", buffering=0) as file:
            file.write(("\n".join(lines) + "\n").encode())
        self._lines, self._told = len(self._rows), time.perf_counter()
