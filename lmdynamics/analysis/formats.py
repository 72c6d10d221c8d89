"""Files of loss curves, read as tables: a row is one logged record, and its cells are not converted.

TensorBoard's event files are read record by record: TensorBoard's accumulator keeps a sample by default, drops records
from before a restart, and does not report where a damaged file made it stop.
"""

import ast
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics.errors import UserError, first_line, listed, shortened
from lmdynamics.trainer_state import TRAINER_STATE, trainer_history, trainer_state_file

KNOWN = (
    f"a table (CSV, TSV, Parquet), JSON lines, a text log, Hugging Face's {TRAINER_STATE}, Lightning's metrics.csv, "
    "TensorBoard's events.out.tfevents.*, or a run"
)
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
NUMERIC = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", re.IGNORECASE)  # a cell that may be a number in some locale
COUNTED_STEPS = "The lines contain no step, so a step is the number of lines with a training loss so far."
NUMBER = r"[-+]?\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?nan|[-+]?inf"
STEP = re.compile(
    r"^[\s\d\[\]().:,/TZ-]*?\b(?P<name>s|step|steps|iter|iteration|global_step)"
    r"(?:[:=]\s*|\s+:?\s*)(?P<step>\d+)(?!\.?\d)",
    re.IGNORECASE,
)
PAIR = re.compile(rf"(?P<name>[A-Za-z][\w/]*(?: [A-Za-z][\w/]*)*)\s*[:=\s]\s*(?P<value>{NUMBER})(?![\w.])", re.I)
LLM_C_NAMES = {"trl": "train_loss", "tel": "val_loss"}  # as llm.c writes them
RECORD = re.compile(r"\{['\"].*?\}")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows in the order of the file. `name`: of a curve without another name. `source`: for messages.

    `group`: the column that distinguishes curves in this format. `sparse`: an empty cell means that nothing was logged
    at that step, so it is not a lost value.
    """

    frame: pl.DataFrame
    name: str
    source: str
    group: str | None = None
    sparse: bool = False
    notes: tuple[str, ...] = ()


def open_table(path: Path, is_selected: Callable[[str], bool]) -> Table:
    """A file or folder that holds curves as a table; of event files, only tags that `is_selected` accepts have values.

    Raises UserError if it is in no known format, or is damaged.
    """
    return _open_folder(path, is_selected) if path.is_dir() else _open_file(path, is_selected)


def frame_table(frame: pl.DataFrame, name: str = "loss", source: str = "the frame") -> Table:
    """A frame as a table. A history from Weights & Biases has separate rows for each metric."""
    return Table(frame, name, source, sparse="_step" in frame.columns)


def _open_folder(folder: Path, is_selected: Callable[[str], bool]) -> Table:
    if state := trainer_state_file(folder):
        notes = () if state.parent == folder else (f"Read from {state.relative_to(folder)}.",)
        return replace(_trainer_state(_File(state)), notes=notes)
    if files := event_files(folder):
        return _events(folder, files, is_selected)
    versions = sorted(folder.glob("**/metrics.csv"), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])
    if not versions:
        raise UserError(f"{folder} contains no loss curves; give {KNOWN}")
    table = replace(_open_file(versions[-1], is_selected), name=folder.absolute().name)
    note = f"Read from {versions[-1].relative_to(folder)}, of {len(versions)}."
    return replace(table, notes=(*table.notes, note)) if len(versions) > 1 else table


@dataclass(frozen=True)
class _File:
    """A file and its text, which is read once, when it is first needed."""

    path: Path

    @property
    def suffix(self) -> str:
        """The suffix of its name in lower case, without `.gz`."""
        return Path(self.path.name.removesuffix(".gz")).suffix.lower()

    @cached_property
    def text(self) -> str:
        path = self.path
        try:
            content = path.read_bytes()
            if path.suffix == ".gz" or content[:2] == b"\x1f\x8b":
                content = gzip.decompress(content)
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}); give {KNOWN}") from None
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} cannot be read ({error}); copy it again") from None
        if "\0" in text:
            raise UserError(f"{path} is not text (byte {text.index(chr(0))} is zero); give {KNOWN}")
        return text

    def table(self, frame: pl.DataFrame) -> Table:
        return frame_table(frame, Path(self.path.name.removesuffix(".gz")).stem, str(self.path))

    def log(self, records: Iterable[dict[str, Any]], *notes: str) -> Table:
        """Logged records: a field that is missing in a record was not logged."""
        return replace(self.table(_frame(records)), sparse=True, notes=notes)


def _open_file(path: Path, is_selected: Callable[[str], bool]) -> Table:
    if "tfevents" in path.name:
        return _events(path.parent, [path], is_selected)
    if not path.stat().st_size:
        raise UserError(f"{path} is empty; write the losses to it, or give another file")
    file = _File(path)
    # each returns None if the content of the file is not in its format
    for read in (_parquet, _one_json, _json_lines, _separated, _step_lines, _printed_records, _header_alone):
        if (table := read(file)) is not None:
            return table
    raise UserError(f"{path} holds no table and no lines with a step and a loss; give {KNOWN}")


def _separator(text: str) -> str | None:
    """The separator of a table: its first two lines have equally many cells, and the second contains a number."""
    lines = [line for line in text[:100_000].split("\n", 50) if line.strip()][:2]
    for separator in (*"\t,;", " "):
        try:
            cells = [
                line.split() if separator == " " else next(csv.reader([line], delimiter=separator)) for line in lines
            ]
        except (csv.Error, StopIteration):
            continue
        if len(cells) < 2 or len(cells[0]) != len(cells[1]) or len(cells[0]) < 2:
            continue
        known = [bool(NUMERIC.fullmatch(cell.strip())) for cell in cells[1]]
        if all(known) if separator == " " else any(known):
            return separator
    return None


def _separated(file: _File) -> Table | None:
    separator = _separator(file.text)
    return None if separator is None else file.table(_cells(file, separator))


def _header_alone(file: _File) -> Table | None:
    """A table by its file name, with too few lines to detect the separator from more than the header."""
    if file.suffix not in (".csv", ".tsv"):
        return None
    header = file.text.split("\n", 1)[0]
    return file.table(_cells(file, max("\t,;" if file.suffix == ".tsv" else ",\t;", key=header.count)))


def _cells(file: _File, separator: str) -> pl.DataFrame:
    """A table, every cell as text; lines without any cell are left out."""
    text = file.text
    if separator == " ":
        text, separator = re.sub(r"[ \t]+", "\t", re.sub(r"^[ \t]+|[ \t]+$", "", text, flags=re.MULTILINE)), "\t"
    try:
        frame = pl.read_csv(text.encode(), infer_schema=False, separator=separator)
    except pl.exceptions.NoDataError:
        raise UserError(f"{file.path} is empty; write the losses to it, or give another file") from None
    except pl.exceptions.PolarsError:
        raise UserError(f"{file.path}{_first_fault(text, separator)}; correct the file") from None
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))


def _first_fault(text: str, separator: str) -> str:
    """The fault of a table that cannot be parsed: its first line with more cells than the header."""
    try:
        lines = csv.reader(io.StringIO(text), delimiter=separator)
        width = len(next(lines))
        for cells in lines:
            if len(cells) > width:
                return f", line {lines.line_num} has {len(cells)} cells, its header {width}"
    except (csv.Error, StopIteration):
        pass
    return " is not a table, or has an unclosed quotation mark"


def _parquet(file: _File) -> Table | None:
    with file.path.open("rb") as content:
        if file.suffix != ".parquet" and content.read(4) != b"PAR1":
            return None
    try:
        return file.table(pl.read_parquet(file.path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{file.path} is not Parquet, or is damaged ({_first_line(error)}); copy it again") from None


def _one_json(file: _File) -> Table | None:
    """One list or one object, as the Trainer of Hugging Face writes its history."""
    if file.suffix == ".json":
        return _trainer_state(file)
    content = _as_json(file.text)
    is_history = isinstance(content, list) or (isinstance(content, dict) and "log_history" in content)
    return _trainer_state(file) if is_history else None


def _trainer_state(file: _File) -> Table:
    table = file.log(trainer_history(file.text, file.path))
    folder = file.path.absolute().parent
    folder = folder.parent if re.fullmatch(r"checkpoint-\d+", folder.name) else folder
    return replace(table, name=folder.name) if file.path.name == TRAINER_STATE else replace(table, name=file.path.stem)


def _json_lines(file: _File) -> Table | None:
    path, text = file.path, file.text
    if file.suffix not in JSON_LINES_SUFFIXES and not isinstance(_as_json(text.lstrip().split("\n", 1)[0]), dict):
        return None
    records: list[dict[str, Any]] = []
    notes = []
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for position, (number, line) in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if records and position == len(lines) and not text.endswith("\n"):
                notes.append(f"The last line, {number:,}, is cut short and was left out.")
                break
            raise UserError(f"{path}, line {number} is not JSON ({_first_line(error)}); correct the file") from None
        if not isinstance(record, dict):
            raise UserError(f'{path}, line {number} is not a record like {{"step": 1, "loss": 2.5}}; correct the file')
        records.append(dict(_flatten(record)))
    return file.log(records, *notes)


def _printed_records(file: _File) -> Table | None:
    """Lines that hold a dictionary with a loss, as Hugging Face's Trainer prints them.

    They contain no step: a step is the number of lines with a training loss so far.
    """
    records, count = [], 0
    for line in file.text.split("\n"):
        for text in RECORD.findall(line):
            try:
                record = ast.literal_eval(re.sub(r"\b(nan|inf)\b", "None", text))
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(record, dict) and any("loss" in str(key) for key in record):
                count += "loss" in record
                records += [] if "train_runtime" in record else [{"step": count, **record}]
    return file.log(records, COUNTED_STEPS) if records else None


def _step_lines(file: _File) -> Table | None:
    """Lines that begin with a step, followed by named numbers: `step:250/3000 val_loss:4.5`, `s:250 trl:4.5 lr:0.1`."""
    records = []
    for line in file.text.split("\n"):
        if not (start := STEP.match(line)):
            continue
        record: dict[str, Any] = {"step": int(start["step"])}
        for pair in PAIR.finditer(line, start.end()):
            name = re.sub(r"\s+", "_", pair["name"].strip())
            record.setdefault(LLM_C_NAMES.get(name, name), float(pair["value"].replace("_", "")))
        if any("loss" in name.lower() for name in record):
            records.append(record)
    return file.log(records) if records else None


def _as_json(text: str) -> Any:
    """A whole text as JSON, or None."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _flatten(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by their path: {"train": {"loss": 2}} is train/loss."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        elif not isinstance(value, list):
            yield prefix + key, value


def _frame(records: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Records with different fields as one frame; a field that is not always a number is text."""
    records = list(records)
    names = dict.fromkeys(name for record in records for name in record)
    return pl.DataFrame([_column(name, [record.get(name) for record in records]) for name in names])


def _column(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {int} and all(value is None or abs(value) < 2**63 for value in values):
        return pl.Series(name, values, pl.Int64)
    if kinds <= {int, float} and float in kinds:
        return pl.Series(name, [None if value is None else float(value) for value in values], pl.Float64)
    return pl.Series(name, [None if value is None else str(value) for value in values], pl.String)


def _first_line(error: Exception) -> str:
    return shortened(first_line(error).rstrip("."), 120)


FRAMING = 16  # bytes around each record: its length, and the checksums of both


def event_files(folder: Path) -> list[Path]:
    """Event files in a folder and below it, in order of name, which is the order of writing."""
    return sorted(path for path in folder.rglob("*tfevents*") if path.is_file() and path.suffix != ".profile-empty")


def _events(folder: Path, files: list[Path], is_selected: Callable[[str], bool]) -> Table:
    """Scalars of event files: `run` (the folder below `folder` that holds the file), `step`, a column for each tag.

    Tags that are not selected have a column without values. A damaged file adds a note.

    Raises UserError if TensorBoard is not installed, or no file contains a complete record or a scalar.
    """
    values: dict[tuple[str, str], list[tuple[float, int, float]]] = {}
    tags: dict[str, None] = {}
    notes, bytes_read = [], 0
    scalar_tags: dict[str, set[str]] = {}
    for path in files:
        relative = path.parent.relative_to(folder).as_posix()
        run = folder.absolute().name if relative == "." else relative
        file_bytes = 0
        for size, event in _records(path):
            file_bytes += size
            for value in event.summary.value:
                if (number := _scalar(value, scalar_tags.setdefault(run, set()))) is None:
                    continue
                tags.setdefault(value.tag)
                if is_selected(value.tag):
                    values.setdefault((run, value.tag), []).append((event.wall_time, event.step, number))
        bytes_read += file_bytes
        if file_bytes < (total := path.stat().st_size):
            notes.append(
                f"Warning: {path.name} is cut short, damaged or still being written: "
                f"of its {total:,} bytes the first {file_bytes:,} were read."
            )
    if not tags:
        problem = "no scalars" if bytes_read else "no complete record, so it is damaged or not an event file"
        raise UserError(f"{path if path.parent == folder else folder} holds {problem}; give a folder of event files")
    if not values:
        raise UserError(f"{folder}: none of its tags is a loss ({listed(list(tags))}); give --loss TAG")
    # a tag with the name of one of the first two columns is not a loss
    schema = dict.fromkeys(tags, pl.Float64) | {"run": pl.String, "step": pl.Int64}
    parts = [
        pl.DataFrame({"run": run, "step": [step for _, step, _ in points], tag: [number for _, _, number in points]})
        for (run, tag), events in values.items()
        for points in [sorted(events, key=lambda point: point[0])]  # by wall time: a resumed run comes after
    ]
    frame = pl.concat([pl.DataFrame(schema=schema), *parts], how="diagonal")
    group = "run" if frame["run"].n_unique() > 1 else None
    source = files[0] if len(files) == 1 else folder
    return Table(frame, frame["run"][0], str(source), group, sparse=True, notes=tuple(notes))


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """The complete records of a file from its beginning, each with its size in bytes."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        raise UserError('event files are read with TensorBoard; pip install "lmdynamics[tensorboard]"') from None
    for record in RawEventFileLoader(str(path)).Load():
        yield len(record) + FRAMING, Event.FromString(record)


def _scalar(value: Any, scalar_tags: set[str]) -> float | None:
    """A summary's number; None for histograms, images, text. Only a tag's first summary states its type."""
    from tensorboard.util.tensor_util import make_ndarray

    if value.metadata.plugin_data.plugin_name == "scalars":
        scalar_tags.add(value.tag)
    if value.WhichOneof("value") == "simple_value":
        return value.simple_value
    if value.WhichOneof("value") == "tensor" and value.tag in scalar_tags:
        return float(make_ndarray(value.tensor).item())
    return None
