"""Recorded scalars: the headline figures of a notebook, kept where a program can read them.

The last cell of a notebook calls `record` once per figure. Each call shows the figure in the notebook, as an output of
type `application/vnd.lmdynamics.record+json`, so that an executed notebook carries its own results; in a batch run all
of them also go to `records.json` beside the executed notebook.
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

    `value` is a number, a truth value, a word, or None for "there is none" (no onset, say). `low` and `high` bound its
    95 % interval, `tolerance` is how far another run's value may lie from it and still count as the same; all three
    are in the unit of `value`.
    """

    name: str
    value: Scalar
    tolerance: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @property
    def number(self) -> float | None:
        """The value as a float, truth values as 0 and 1; None for a word, and where there is no figure."""
        return None if self.value is None or isinstance(self.value, str) else float(self.value)

    @property
    def told(self) -> tuple[str, str, str, str]:
        """Name, value with its unit, interval and tolerance as texts; empty where there is none."""
        shown = "none" if self.value is None else f"{_short(self.value)} {self.unit}".strip()
        bounded = self.low is not None or self.high is not None
        interval = f"[{_short(self.low)}, {_short(self.high)}]" if bounded else ""
        return self.name, shown, interval, "" if self.tolerance is None else f"± {_short(self.tolerance)}"

    def __str__(self) -> str:
        name, *rest = self.told
        return " ".join(part for part in (f"{name}:", *rest) if part)


class _Sink:
    """Where this process's records go: the folder is set by `start_records`, once per notebook."""

    folder: Path | None = None
    device: str = "cpu"  # what the notebook asked for
    told: bool = False  # whether it was said that something else has computed
    records: dict[str, Record] = {}  # noqa: RUF012 -- one notebook per process, so one table per process


def start_records(output_dir: str | Path, device: str = "cpu") -> None:
    """Begin a notebook's records: `records.json` in `output_dir`, or none if it is empty (a reader is at the page).

    With them goes what computed them (`environment`): versions, device, precision, memory. The device written down is
    not `device`, which is what is asked for, but what traced and trained all that the notebook opens from here on.

    Raises UserError if the folder cannot be made, or `device` is not on this machine.
    """
    need_device(device)
    forget_computed()
    _Sink.records, _Sink.device, _Sink.folder, _Sink.told = {}, device, None, False
    repeatable()
    if not str(output_dir):
        return
    folder = Path(output_dir).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {str(output_dir)!r} cannot be made: {error.strerror}; name another") from error
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
    """Keep one headline figure. A second record of the same name takes the first one's place.

    Arguments as for `Record`; NumPy, torch and polars scalars become plain ones, and two equal ends of an interval
    bound nothing: they are kept as no interval.

    Raises UserError if the value is not a scalar, is NaN or infinite, the interval is upside down, or the tolerance
    negative.
    """
    if not name or not isinstance(name, str):
        raise UserError(f"a record needs a name, found {name!r}")
    made = Record(
        name,
        _scalar(name, value),
        *(_number(name, what, x) for what, x in (("tolerance", tolerance), ("low", low), ("high", high))),
        unit,
    )
    if made.low is not None and made.low == made.high:
        made = replace(made, low=None, high=None)
    if made.tolerance is not None and made.tolerance < 0:
        raise UserError(f"record {name!r}: tolerance {made.tolerance} is negative; it is a distance")
    if made.low is not None and made.high is not None and made.low > made.high:
        raise UserError(f"record {name!r}: the interval [{made.low}, {made.high}] is upside down; swap low and high")
    _Sink.records[name] = made
    if _Sink.folder is not None:
        _write(_Sink.folder)
    _show(made)


def read_records(folder: Path) -> list[Record]:
    """The records in `folder/records.json`; an empty list if the notebook recorded nothing.

    Raises UserError if the file is not one that `record` wrote.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    try:
        return [Record(**row) for row in json.loads(path.read_text("utf-8"))["records"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold records ({error}); run its notebook again") from error


def _write(folder: Path) -> None:
    records = [asdict(made) for made in _Sink.records.values()]
    files.write_json(folder / FILE_NAME, {"format": 1, "environment": environment(computed()), "records": records})


def _other_device() -> str:
    """One line where anything but the device that was asked for has computed what is recorded; otherwise empty."""
    asked = device_kind(_Sink.device)
    others = sorted({kind for kind, _, _ in computed()} - {asked})
    if not others:
        return ""
    return (
        f"device={_Sink.device} was asked for, but {' and '.join(others)} computed some of what is recorded here: "
        "a run that was trained there, or a measurement made there. The records say so."
    )


def _scalar(name: str, value: object) -> Scalar:
    if hasattr(value, "item"):  # NumPy, torch, polars
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError) as error:
            raise UserError(f"record {name!r}: a single value is expected, found {type(value).__name__}") from error
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return _number(name, "value", value)


def _number(name: str, what: str, value: object) -> float | int | None:
    if hasattr(value, "item"):
        value = value.item()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"record {name!r}: {what} should be a number, found {type(value).__name__}")
    if not math.isfinite(value):
        raise UserError(f"record {name!r}: {what} is {value}; record None if there is no such figure")
    return value


def _short(value: Scalar) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _show(made: Record) -> None:
    from IPython.core.getipython import get_ipython

    warning = "" if _Sink.told else _other_device()
    _Sink.told = _Sink.told or bool(warning)
    if warning:
        print(warning)
    if get_ipython() is None:
        print(made)
        return
    from IPython.display import display

    # each record is an output of its own; together they make one table, with its heads on the first
    heads = ("recorded", "value", "95 % interval", "tolerance") if len(_Sink.records) == 1 else ()
    line = html_table(heads, [made.told], WIDTHS)
    display({MIME_TYPE: asdict(made), "text/html": line, "text/plain": str(made)}, raw=True)
