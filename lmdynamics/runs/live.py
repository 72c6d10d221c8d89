"""The log of a run while it is trained: what `log.parquet` holds, and the rows since the last save."""

import time
from io import BytesIO
from pathlib import Path

import polars as pl

from lmdynamics import files
from lmdynamics.training.state import LOG_SCHEMA, Log, numbers

LIVE = "live.csv"
EVERY = 0.5  # seconds between two writes of live rows; a write waits for the device, so not at every step


def read_live(folder: Path) -> pl.DataFrame:
    """A run's log with the steps made since the last save; the same columns as `log.parquet`."""
    # live rows first: they are removed only after the log has them, so no step falls between the two
    lines, saved = _bytes(folder / LIVE), _bytes(folder / "log.parquet")
    # from memory: polars opens a path more than once, and a save may put another file there in between
    log = pl.read_parquet(BytesIO(saved)) if saved else pl.DataFrame(schema=LOG_SCHEMA)
    whole = lines[: lines.rfind(b"\n") + 1]  # a killed process may leave half a line
    if not whole:
        return log
    live = pl.read_csv(whole, has_header=False, schema=LOG_SCHEMA)
    last = log["step"][-1] if len(log) else -1
    return pl.concat([log, live.filter(pl.col("step") > last)], how="diagonal")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


class LiveLog(Log):
    """A log that also writes each row, soon after its step, as a line of `live.csv`."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._live = path.with_name(LIVE)
        self._fresh: list[tuple] = []
        self._told = 0.0
        self._begin()

    def add(self, step, loss, lr, masking_rate, tokens, seconds, penalty=None) -> None:
        super().add(step, loss, lr, masking_rate, tokens, seconds, penalty)
        self._fresh.append((step, loss, lr, masking_rate, self.tokens, seconds, penalty))
        if time.perf_counter() - self._told > EVERY:
            self.tell()

    def write(self) -> None:
        super().write()
        self._fresh = []
        self._begin()

    def _begin(self) -> None:
        """An empty file in the old one's place: a reader has the one or the other."""
        with files.saving(str(self._live)), files.atomic_file(self._live) as fresh:
            fresh.write_bytes(b"")

    def tell(self) -> None:
        """Write the rows that have come since the last time."""
        if not self._fresh:
            return
        losses, penalties = (numbers([row[place] for row in self._fresh]) for place in (1, -1))
        lines = [
            ",".join("" if v is None else str(v) for v in (step, loss, *given, penalty))
            for (step, _, *given, _), loss, penalty in zip(self._fresh, losses, penalties, strict=True)
        ]
        with files.saving(str(self._live)), self._live.open("ab", buffering=0) as file:
            file.write(("\n".join(lines) + "\n").encode())
        self._fresh, self._told = [], time.perf_counter()
