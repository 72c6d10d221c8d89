"""Recorded scalars: the headline figures of a notebook, saved for programs to read.

The last cell of a notebook calls `record` once per figure. Each call shows the figure in the notebook, as an output of
type `application/vnd.lmdynamics.record+json`, so an executed notebook contains its results. In a batch run all records
are also written to `records.json` beside the executed notebook.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lmdynamics import files
from lmdynamics.devices import computed, device_kind, forget_computed, need_device
from lmdynamics.environment import environment, repeatable
from lmdynamics.errors import UserError
from lmdynamics.html import html_table

MIME_TYPE = "application/vnd.lmdynamics.record+json"
FILE_NAME = "records.json"
WIDTHS = (44, 22, 22, 12)  # characters of a table's columns, the same in every line

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Record:
    """One headline figure.

    `value` is a number, a truth value, a word, or None for "none" (for example no onset). `low` and `high` bound its
    95 % interval. `tolerance` is the largest difference at which another run's value counts as the same. All three have
    the unit of `value`.
    """

    name: str
    value: Scalar
    tolerance: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @property
    def number(self) -> float | None:
        """The value as a float, truth values as 0 and 1; None for a word or a missing value."""
        return None if self.value is None or isinstance(self.value, str) else float(self.value)

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Name, value with its unit, interval and tolerance as text; empty if missing."""
        value = "none" if self.value is None else f"{_short(self.value)} {self.unit}".strip()
        has_interval = self.low is not None or self.high is not None
        interval = f"[{_short(self.low)}, {_short(self.high)}]" if has_interval else ""
        return self.name, value, interval, "" if self.tolerance is None else f"± {_short(self.tolerance)}"

    def __str__(self) -> str:
        name, *cells = self.cells
        return " ".join(part for part in (f"{name}:", *cells) if part)


class _Sink:
    """The records of this process; `start_records` sets the folder, once per notebook."""

    folder: Path | None = None
    device: str = "cpu"  # the device that the notebook requested
    warned: bool = False  # whether another device was reported
    records: dict[str, Record] = {}  # noqa: RUF012 -- one notebook per process, so one table per process


def start_records(output_dir: str | Path, device: str = "cpu") -> None:
    """Begin a notebook's records: `records.json` in `output_dir`, or no file if it is empty (an interactive page).

    The file also holds the `environment`: versions, device, precision, memory. The device in it is not the requested
    `device`, but the devices that traced and trained everything the notebook opens after this call.

    Raises UserError if the folder cannot be created, or `device` is not on this machine.
    """
    need_device(device)
    forget_computed()
    _Sink.records, _Sink.device, _Sink.folder, _Sink.warned = {}, device, None, False
    repeatable()
    if not str(output_dir):
        return
    folder = Path(output_dir).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {str(output_dir)!r} cannot be created: {error.strerror}; name another") from error
    _Sink.folder = folder
    _write(folder)


def record(
    name: str,
    value: object,
    *,
    tolerance: float | None = None,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
) -> None:
    """Record one headline figure. A second record of the same name replaces the first.

    Arguments as for `Record`. NumPy, torch and polars scalars become Python scalars. An interval with equal ends is
    recorded as no interval.

    Raises UserError if the value is not a scalar, is NaN or infinite, `low` is above `high`, or the tolerance is
    negative.
    """
    if not name or not isinstance(name, str):
        raise UserError(f"a record needs a name, found {name!r}")
    entry = Record(
        name,
        _scalar(name, value),
        *(_number(name, field, x) for field, x in (("tolerance", tolerance), ("low", low), ("high", high))),
        unit,
    )
    if entry.low is not None and entry.low == entry.high:
        entry = replace(entry, low=None, high=None)
    if entry.tolerance is not None and entry.tolerance < 0:
        raise UserError(f"record {name!r}: tolerance {entry.tolerance} is negative; give 0 or more")
    if entry.low is not None and entry.high is not None and entry.low > entry.high:
        raise UserError(f"record {name!r}: the interval [{entry.low}, {entry.high}] has low above high; swap them")
    _Sink.records[name] = entry
    if _Sink.folder is not None:
        _write(_Sink.folder)
    _show(entry)


def read_records(folder: Path) -> list[Record]:
    """The records in `folder/records.json`; an empty list if the notebook recorded nothing.

    Raises UserError if `record` did not write the file.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    try:
        return [Record(**row) for row in json.loads(path.read_text("utf-8"))["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a records file ({error}); run its notebook again") from error


def _write(folder: Path) -> None:
    records = [asdict(entry) for entry in _Sink.records.values()]
    files.write_json(folder / FILE_NAME, {"format": 1, "environment": environment(computed()), "records": records})


def _other_device() -> str:
    """One line if a device other than the requested one computed some of the records; otherwise empty."""
    requested = device_kind(_Sink.device)
    other_kinds = sorted({kind for kind, _, _ in computed()} - {requested})
    if not other_kinds:
        return ""
    return (
        f"device={_Sink.device} was requested, but {' and '.join(other_kinds)} computed some of the results: "
        "a run was trained there, or a measurement was made there. The records state it."
    )


def _scalar(name: str, value: object) -> Scalar:
    if hasattr(value, "item"):  # NumPy, torch, polars
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError) as error:
            raise UserError(f"record {name!r}: a single value was expected, found {type(value).__name__}") from error
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return _number(name, "value", value)


def _number(name: str, field: str, value: object) -> float | int | None:
    if hasattr(value, "item"):
        value = value.item()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"record {name!r}: {field} should be a number, found {type(value).__name__}")
    if not math.isfinite(value):
        raise UserError(f"record {name!r}: {field} is {value}; record None if there is no value")
    return value


def _short(value: Scalar) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(entry: Record) -> None:
    from IPython.core.getipython import get_ipython

    warning = "" if _Sink.warned else _other_device()
    _Sink.warned = _Sink.warned or bool(warning)
    if warning:
        print(warning)
    if get_ipython() is None:
        print(entry)
        return
    from IPython.display import display

    # each record is a separate output; together they look like one table, with its header on the first
    header = ("recorded", "value", "95 % interval", "tolerance") if len(_Sink.records) == 1 else ()
    line = html_table(header, [entry.cells], WIDTHS)
    display({MIME_TYPE: asdict(entry), "text/html": line, "text/plain": str(entry)}, raw=True)
