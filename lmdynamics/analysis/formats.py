"""Files that hold loss curves, as tables: a row is what was logged at once, its cells still as they were written."""

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

from lmdynamics.analysis.events import event_files, read_events
from lmdynamics.errors import UserError, shortened
from lmdynamics.trainer_state import TRAINER_STATE, trainer_history, trainer_state_file

KNOWN = (
    f"a table (CSV, TSV, Parquet), JSON lines, a text log, Hugging Face's {TRAINER_STATE}, Lightning's metrics.csv, "
    "TensorBoard's events.out.tfevents.*, or a run"
)
LINES = (".jsonl", ".ndjson")
NUMERIC = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", re.IGNORECASE)  # a cell that may be a number in some country
COUNTED = "The lines name no step, so those with a training loss are counted: a step here is one such line."
NUMBER = r"[-+]?\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?nan|[-+]?inf"
STEP = re.compile(
    r"^[\s\d\[\]().:,/TZ-]*?\b(?P<name>s|step|steps|iter|iteration|global_step)"
    r"(?:[:=]\s*|\s+:?\s*)(?P<step>\d+)(?!\.?\d)",
    re.IGNORECASE,
)
PAIR = re.compile(rf"(?P<name>[A-Za-z][\w/]*(?: [A-Za-z][\w/]*)*)\s*[:=\s]\s*(?P<value>{NUMBER})(?![\w.])", re.I)
SHORT = {"trl": "train_loss", "tel": "val_loss"}  # as llm.c writes them
RECORD = re.compile(r"\{['\"].*?\}")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows in the order of the file. `name` is for a curve that has no other, `source` for messages.

    `group`: the column that the format itself tells curves apart by. `sparse`: a cell is empty where nothing was
    logged at that step, so an empty cell is no lost value.
    """

    frame: pl.DataFrame
    name: str
    source: str
    group: str | None = None
    sparse: bool = False
    notes: tuple[str, ...] = ()


def open_table(where: str | Path | pl.DataFrame, wanted: Callable[[str], bool]) -> Table:
    """Whatever holds curves as a table; of event files, only the tags that are `wanted` come with their values.

    Raises UserError if there is nothing there, it is in no known format, or it is damaged.
    """
    if isinstance(where, pl.DataFrame):
        return Table(where, "loss", "the frame", sparse=_is_history(where))
    path = Path(where).expanduser()
    if path.is_dir():
        return _open_folder(path, wanted)
    if path.is_file():
        return _open_file(path, wanted)
    raise UserError(f"{where} is no file or folder; give {KNOWN}")


def _open_folder(folder: Path, wanted: Callable[[str], bool]) -> Table:
    if state := trainer_state_file(folder):
        own = state.parent == folder
        return replace(
            _trainer_state(state, _text(state)), notes=() if own else (f"Read from {state.relative_to(folder)}.",)
        )
    versions = sorted(folder.glob("**/metrics.csv"), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])
    if versions and not event_files(folder):
        where = f"Read from {versions[-1].relative_to(folder)}, of {len(versions)}."
        found = replace(_open_file(versions[-1], wanted), name=folder.absolute().name)
        return replace(found, notes=(*found.notes, where)) if len(versions) > 1 else found
    if files := event_files(folder):
        return _events(folder, files, wanted)
    raise UserError(f"{folder} holds nothing that curves are read from; give {KNOWN}")


@dataclass(frozen=True)
class _File:
    """A file, and what its content looks like: looked at once, and only if a format asks."""

    path: Path
    suffix: str
    stem: str

    @cached_property
    def text(self) -> str:
        return _text(self.path)

    @cached_property
    def whole(self) -> Any:
        """The whole text as JSON, or None."""
        return _one_json(self.text)

    @cached_property
    def separator(self) -> str | None:
        return _separator(self.text)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        return _step_lines(self.text)

    @cached_property
    def printed(self) -> list[dict[str, Any]]:
        return _printed_records(self.text)

    def table(self, frame: pl.DataFrame, sparse: bool | None = None, notes: tuple[str, ...] = ()) -> Table:
        return Table(frame, self.stem, str(self.path), None, _is_history(frame) if sparse is None else sparse, notes)


def _is_parquet(file: _File) -> bool:
    with file.path.open("rb") as content:
        return file.suffix == ".parquet" or content.read(4) == b"PAR1"


def _is_one_json(file: _File) -> bool:
    history = isinstance(file.whole, dict) and "log_history" in file.whole
    return file.suffix == ".json" or isinstance(file.whole, list) or history


def _is_json_lines(file: _File) -> bool:
    return file.suffix in LINES or isinstance(_one_json(file.text.lstrip().split("\n", 1)[0]), dict)


def _header_separator(file: _File) -> str:
    """Of a table with too few lines to tell."""
    header = file.text.split("\n", 1)[0]
    return max("\t,;" if file.suffix == ".tsv" else ",\t;", key=header.count)


# of each format: whether a file is of it, by what the file holds, and what reads it; tried in this order
FORMATS: tuple[tuple[Callable[[_File], Any], Callable[[_File], Table]], ...] = (
    (_is_parquet, lambda file: file.table(_parquet(file.path))),
    (_is_one_json, lambda file: _trainer_state(file.path, file.text)),
    (_is_json_lines, lambda file: file.table(*_json_lines(file.path, file.text))),
    (lambda file: file.separator, lambda file: file.table(_separated(file.path, file.text, file.separator))),
    (lambda file: file.steps, lambda file: file.table(_frame(file.steps), True)),
    (lambda file: file.printed, lambda file: file.table(_frame(file.printed), True, (COUNTED,))),
    (
        lambda file: file.suffix in (".csv", ".tsv"),
        lambda file: file.table(_separated(file.path, file.text, _header_separator(file))),
    ),
)


def _open_file(path: Path, wanted: Callable[[str], bool]) -> Table:
    if "tfevents" in path.name:
        return _events(path.parent, [path], wanted)
    if not path.stat().st_size:
        raise UserError(f"{path} is empty; write the losses to it, or give another file")
    name = Path(path.name.removesuffix(".gz"))
    file = _File(path, name.suffix.lower(), name.stem)
    for is_of_it, read in FORMATS:
        if is_of_it(file):
            return read(file)
    raise UserError(f"{path} holds no table and no lines with a step and a loss; give {KNOWN}")


def _separator(text: str) -> str | None:
    """What separates the cells of a table: its first two lines have as many, and the second holds a number."""
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


def _is_history(frame: pl.DataFrame) -> bool:
    """Whether it is a history from Weights & Biases, in which each metric has rows of its own."""
    return "_step" in frame.columns


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz" or content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); give {KNOWN}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it anew") from None
    if "\0" in text:
        raise UserError(f"{path} is no text (byte {text.index(chr(0))} is zero); give {KNOWN}")
    return text


def _separated(path: Path, text: str, separator: str) -> pl.DataFrame:
    """A table, every cell as text; lines without any cell are left out."""
    if separator == " ":
        text, separator = re.sub(r"[ \t]+", "\t", re.sub(r"^[ \t]+|[ \t]+$", "", text, flags=re.MULTILINE)), "\t"
    try:
        frame = pl.read_csv(text.encode(), infer_schema=False, separator=separator)
    except pl.exceptions.NoDataError:
        raise UserError(f"{path} is empty; write the losses to it, or give another file") from None
    except pl.exceptions.PolarsError:
        raise UserError(f"{path}{_fault(text, separator)}; correct the file") from None
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))


def _fault(text: str, separator: str) -> str:
    """Where a table that does not parse goes wrong: its first line with more cells than the header."""
    try:
        lines = csv.reader(io.StringIO(text), delimiter=separator)
        width = len(next(lines))
        for cells in lines:
            if len(cells) > width:
                return f", line {lines.line_num} has {len(cells)} cells, its header {width}"
    except (csv.Error, StopIteration):
        pass
    return " is no table of cells, or has a quotation mark that is never closed"


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} is no Parquet file, or damaged ({_first_line(error)}); copy it anew") from None


def _trainer_state(path: Path, text: str) -> Table:
    records = trainer_history(text, path)
    folder = path.absolute().parent
    name = (folder.parent if _checkpoint(folder) else folder).name if path.name == TRAINER_STATE else path.stem
    return Table(_frame(records), name, str(path), sparse=True)


def _json_lines(path: Path, text: str) -> tuple[pl.DataFrame, bool, tuple[str, ...]]:
    records: list[dict[str, Any]] = []
    notes: tuple[str, ...] = ()
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for at, (number, line) in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if records and at == len(lines) and not text.endswith("\n"):
                notes = (f"The last line, {number:,}, is cut short and was left out.",)
                break
            raise UserError(f"{path}, line {number} is no JSON ({_first_line(error)}); correct the file") from None
        if not isinstance(record, dict):
            raise UserError(f'{path}, line {number} is no record such as {{"step": 1, "loss": 2.5}}; correct the file')
        records.append(dict(_flat(record)))
    return _frame(records), True, notes


def _printed_records(text: str) -> list[dict[str, Any]]:
    """Lines that hold a dictionary with a loss, as Hugging Face's Trainer prints them.

    They name no step: those with the training loss are counted, and a step is such a line.
    """
    records, count = [], 0
    for line in text.split("\n"):
        for found in RECORD.findall(line):
            try:
                record = ast.literal_eval(re.sub(r"\b(nan|inf)\b", "None", found))
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(record, dict) and any("loss" in str(key) for key in record):
                count += "loss" in record
                records.append({"step": count, **record} if "train_runtime" not in record else {})
    return [record for record in records if record]


def _step_lines(text: str) -> list[dict[str, Any]]:
    """Lines that begin with a step and name their numbers: `step:250/3000 val_loss:4.5`, `s:250 trl:4.5 lr:0.1`."""
    records = []
    for line in text.split("\n"):
        if not (start := STEP.match(line)):
            continue
        record: dict[str, Any] = {"step": int(start["step"])}
        for pair in PAIR.finditer(line, start.end()):
            name = re.sub(r"\s+", "_", pair["name"].strip())
            record.setdefault(SHORT.get(name, name), float(pair["value"].replace("_", "")))
        if any("loss" in name.lower() for name in record):
            records.append(record)
    return records


def _one_json(text: str) -> Any:
    """A whole text as JSON, or None."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _flat(record: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by their path: {"train": {"loss": 2}} is train/loss."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}/")
        elif not isinstance(value, list):
            yield above + key, value


def _frame(records: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Records with fields of their own as one frame; a field that is not always a number is text."""
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


def _events(folder: Path, files: list[Path], wanted: Callable[[str], bool]) -> Table:
    frame, notes = read_events(folder, files, wanted)
    group = "run" if frame["run"].n_unique() > 1 else None
    name = frame["run"][0] if len(frame) else folder.absolute().name
    return Table(frame, name, str(files[0] if len(files) == 1 else folder), group, sparse=True, notes=notes)


def _first_line(error: Exception) -> str:
    return shortened(str(error).splitlines()[0].rstrip("."), 120)


def _checkpoint(folder: Path) -> re.Match[str] | None:
    return re.fullmatch(r"checkpoint-(\d+)", folder.name)
