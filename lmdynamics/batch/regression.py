"""A batch against what was accepted before: what is the same, what changed, and how each reader is told.

`compare` gives each record a verdict. A person reads it as one line and a table (`lmdynamics compare`), other systems
as JUnit XML or Markdown.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from getpass import getuser
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import polars as pl

from lmdynamics import files
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.batch.baselines import Baselines, accept, computed_elsewhere, file_name, item_key, read_baselines
from lmdynamics.batch.collect import gather
from lmdynamics.errors import UserError, printable, shortened
from lmdynamics.records import Record, Scalar

SAME, CHANGED, NEW, GONE, FAILED, NO_BASELINE = VERDICTS = "same", "changed", "new", "gone", "failed", "no baseline"
PASSING = (SAME, NEW, NO_BASELINE)
IN_JUNIT = {CHANGED: "failure", GONE: "failure", FAILED: "error", NEW: "skipped", NO_BASELINE: "skipped"}
SCHEMA = {
    **dict.fromkeys(("item", "notebook", "profile", "device", "record"), pl.String),
    **dict.fromkeys(("value", "baseline"), pl.String),  # as JSON; null where there is no such record
    **dict.fromkeys(("difference", "tolerance"), pl.Float64),
    **dict.fromkeys(("verdict", "why"), pl.String),
    "seconds": pl.Float64,  # of the whole item
}
RELATIVE = 1e-9  # how far floats without a tolerance may lie apart, as a share of their size
ABSOLUTE = 1e-12  # and near zero, where sums that cancel leave nothing but rounding
SHOWN = 3  # changes that the summary lists
MOST = 40  # rows of a table in a terminal
HEADS = ("item", "record", "verdict", "value", "baseline", "why")  # of a table in Markdown


def compare_command(
    out: Path,
    baseline: Path,
    *,
    accepting: bool = False,
    who: str | None = None,
    yes: bool = False,
    strict: bool = False,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
) -> int:
    """Print what differs between a batch in `out` and the baselines in a folder; the exit status that tells.

    `accepting` makes the batch's records the new baseline instead, signed by `who` (default: the user's name). What was
    computed elsewhere, or from other code, is listed and asked about first, unless with `yes`.

    Raises UserError if there is no batch in `out`, no baseline, or a file cannot be written; or if results of elsewhere
    are to be accepted and nobody can be asked.
    """
    frame = gather(out)
    if accepting:
        who = _person() if who is None else who
        if not (yes or _agreed(frame, who)):
            print("nothing was accepted")
            return 1
        written = accept(frame, baseline, who)
        print(f"accepted {frame['item'].n_unique()} items: {', '.join(path.name for path in written)} in {baseline}")
        return 0
    verdicts = compare(frame, read_baselines(baseline))
    if junit_file is not None:
        _write(junit_file, junit(verdicts, strict))
    if markdown_file is not None:
        _write(markdown_file, markdown(verdicts, f"{out.name} against {baseline}"))
    print(summary(verdicts))
    _print_table(verdicts.filter(pl.col("verdict") != SAME))
    return status(verdicts, strict)


def compare(frame: pl.DataFrame, baselines: Baselines) -> pl.DataFrame:
    """A verdict per record of a batch (`collect.gather`); an item that did not finish, or records nothing, has one row.

    "same": within the baseline's tolerance; without one, equal (floats to 1e-9 of their size, near zero to 1e-12).
    "changed": not so, or of another kind (a word, a truth value, none), or NaN. "new": its item has a baseline, but
    none for this record. "gone": the baseline has a record that the item no longer makes. "no baseline": for the whole
    item. "failed". `why` says it in words.

    Raises UserError if the frame is not one of records, or is empty: nothing compared is not nothing changed.
    """
    needed = ["item", "notebook", "profile", "device", "parameters", "record", "text", "unit", "status", "seconds"]
    need_columns(frame, [*needed, "error"], "comparing a batch")
    if frame.is_empty():
        raise UserError("there is nothing to compare: the batch has no items; run one first")
    verdicts = [
        {name: rows[name][0] for name in ("item", "notebook", "profile", "device", "seconds")} | verdict
        for _, rows in frame.group_by("item", maintain_order=True)
        for verdict in _of_item(rows, baselines)
    ]
    return pl.DataFrame(verdicts, schema=SCHEMA)


def status(verdicts: pl.DataFrame, strict: bool = False) -> int:
    """Exit status: 1 if anything changed, is gone or failed; `strict`: also if anything has no baseline yet."""
    passing = (SAME,) if strict else PASSING
    return int(not verdicts["verdict"].is_in(passing).all())


def summary(verdicts: pl.DataFrame) -> str:
    """One line: how many records of how many items, and what changed, the first few by name."""
    parts = []
    for verdict in VERDICTS:
        rows = verdicts.filter(pl.col("verdict") == verdict)
        if verdict != FAILED:
            rows = rows.drop_nulls("record")
        if rows.is_empty():
            continue
        said = {FAILED: f"{_count(len(rows), 'item')} failed", NO_BASELINE: f"{len(rows)} without a baseline"}
        told = f" ({_first(rows)})" if verdict in (CHANGED, GONE, FAILED) else ""
        parts.append(said.get(verdict, f"{len(rows)} {verdict}") + told)
    silent = verdicts.filter(pl.col("record").is_null(), pl.col("verdict") != FAILED)
    if len(silent):
        parts.append(f"{_count(len(silent), 'item')} without records")
    records, items = len(verdicts["record"].drop_nulls()), verdicts["item"].n_unique()
    return f"{_count(records, 'record')} in {_count(items, 'item')}: {', '.join(parts)}"


def same_value(value: Scalar, baseline: Scalar, tolerance: float | None = None) -> bool:
    """Whether a value may stand for its baseline."""
    if _kind(value) != _kind(baseline):
        return False
    if _kind(value) != "number":
        return value == baseline
    if not (math.isfinite(value) and math.isfinite(baseline)):
        return False
    whole = isinstance(value, int) and isinstance(baseline, int)
    if tolerance is None:
        return value == baseline if whole else math.isclose(value, baseline, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    # 0.65 - 0.6 is not within 0.05 until the subtraction's own rounding is allowed for
    rounding = 0.0 if whole else 4 * sys.float_info.epsilon * max(abs(value), abs(baseline))
    return abs(value - baseline) <= tolerance + rounding


def markdown(verdicts: pl.DataFrame, title: str = "") -> str:
    """The summary, a table of what is not the same, and all of it folded away; `title`: a heading above."""
    lines = [f"### {_text(title)}", ""] if title else []
    lines += [_text(summary(verdicts)), ""]
    different = verdicts.filter(pl.col("verdict") != SAME)
    if len(different):
        lines += [*_markdown_table(different), ""]
    lines += [f"<details><summary>All {len(verdicts)} rows</summary>", "", *_markdown_table(verdicts), ""]
    return "\n".join([*lines, "</details>", ""])


def junit(verdicts: pl.DataFrame, strict: bool = False) -> str:
    """JUnit XML: a test suite per item, with the item's seconds, and a test case per record.

    What changed or is gone is a failure, an item that failed an error; what has no baseline is skipped, or with
    `strict` a failure, as in `status`.
    """
    root = ET.Element("testsuites", name="lmdynamics batch")
    for (item,), rows in verdicts.group_by("item", maintain_order=True):
        seconds = rows["seconds"][0] or 0.0
        suite = ET.SubElement(root, "testsuite", name=printable(item), time=f"{seconds:.3f}")
        for row in rows.iter_rows(named=True):
            told = row["record"] if row["record"] is not None else "the notebook"
            case = ET.SubElement(suite, "testcase", classname=printable(item), name=printable(told))
            kind = IN_JUNIT.get(row["verdict"])
            if kind is not None:
                kind = "failure" if strict and kind == "skipped" else kind
                ET.SubElement(case, kind, message=printable(f"{row['verdict']}: {row['why']}"))
        _count_cases(suite)
    _count_cases(root)
    root.set("time", f"{sum(float(suite.get('time')) for suite in root):.3f}")
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _of_item(rows: pl.DataFrame, baselines: Baselines) -> Iterator[dict[str, Any]]:
    item = rows.row(0, named=True)
    if item["status"] != "finished":
        yield {"verdict": FAILED, "why": item["error"] or item["status"] or "it has no status"}
        return
    name, key = file_name(item["notebook"], item["profile"], item["device"]), item_key(item["parameters"])
    made = {row["record"]: row for row in rows.drop_nulls("record").iter_rows(named=True)}
    if len(made) < rows["record"].drop_nulls().len():
        raise UserError(f"{printable(item['item'])} has two records of one name; give each its own, and run it again")
    accepted = baselines[name].items.get(key) if name in baselines else None
    if accepted is None:
        why = f"no {name}" if name not in baselines else f"{name} has none for {key or 'the default parameters'}"
        for record in [*made] or [None]:
            value = {"record": record, "value": made[record]["text"]} if record is not None else {}
            yield value | {"verdict": NO_BASELINE, "why": why}
        return
    if not made and not accepted:
        yield {"verdict": SAME, "why": "records nothing, as before"}
    for record, row in made.items():
        yield {"record": record, "value": row["text"]} | _of_record(row, accepted.get(record))
    for record, was in accepted.items():
        if record not in made:
            why = f"was {_short(was.value)}, is not recorded any more"
            yield {"record": record, "tolerance": was.tolerance, "verdict": GONE, "why": why, "baseline": _json(was)}


def _of_record(row: dict[str, Any], was: Record | None) -> dict[str, Any]:
    if was is None:
        return {"verdict": NEW, "why": "no baseline for this record"}
    value = json.loads(row["text"])
    numbers = _kind(value) == _kind(was.value) == "number"
    difference = float(value - was.value) if numbers else None
    compared = {"baseline": _json(was), "tolerance": was.tolerance, "difference": difference}
    unit = row["unit"] or ""
    if was.unit and unit and unit != was.unit:  # 5.2 nats within 0.1 of 5.2 bits is no agreement
        return compared | {"verdict": CHANGED, "why": f"the unit {was.unit} → {unit}"}
    if same_value(value, was.value, was.tolerance):
        return compared | {"verdict": SAME, "why": ""}
    one, other = _apart(was.value, value)
    why = f"{one} → {other}" + (f" {unit}" if unit else "")
    if _kind(value) != _kind(was.value):
        why += f", a {_kind(was.value)} before" if was.value is not None else ""
    elif was.tolerance is not None and numbers:
        why += f", tolerance {was.tolerance:.4g}"
    return compared | {"verdict": CHANGED, "why": why}


def _kind(value: Scalar) -> str:
    if value is None:
        return "none"
    return "truth value" if isinstance(value, bool) else "word" if isinstance(value, str) else "number"


def _json(record: Record) -> str:
    return json.dumps(record.value, ensure_ascii=False)


def _short(value: Scalar, digits: int = 4) -> str:
    if value is None:
        return "none"
    return f"{value:.{digits}g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _apart(one: Scalar, other: Scalar) -> tuple[str, str]:
    """Both values in as few digits as tell them apart."""
    for digits in (4, 7, 17):
        texts = _short(one, digits), _short(other, digits)
        if texts[0] != texts[1]:
            break
    return texts


def _first(rows: pl.DataFrame) -> str:
    """The first few rows in words, and that there are more."""
    told = []
    for row in rows.head(SHOWN).iter_rows(named=True):
        record = f"{row['record']} " if row["record"] is not None else ""
        told.append(printable(f"{row['item']}: {record}{shortened(row['why'], 120)}"))
    return "; ".join([*told, *(["…"] if len(rows) > SHOWN else [])])


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _count_cases(element: ET.Element) -> None:
    for tag, attribute in (("testcase", "tests"), ("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        element.set(attribute, str(sum(1 for _ in element.iter(tag))))


def _markdown_table(verdicts: pl.DataFrame) -> Iterable[str]:
    yield f"| {' | '.join(HEADS)} |"
    yield "|---" * len(HEADS) + "|"
    for row in verdicts.select(HEADS).iter_rows():
        yield f"| {' | '.join(_text(cell or '') for cell in row)} |"


def _text(text: str) -> str:
    """A text that Markdown shows as it stands, also in a table's cell: nothing in it is HTML or a mark."""
    return re.sub(r"([\\`*~\[\]|])", r"\\\1", escape(printable(text), quote=False))


def _person() -> str:
    try:
        return getuser()
    except (KeyError, OSError):
        raise UserError("this user has no name here; say who accepts with --who NAME") from None


def _agreed(frame: pl.DataFrame, who: str) -> bool:
    """Whether a person wants to sign results that were computed elsewhere; True where there are none."""
    lines = computed_elsewhere(frame)
    if not lines:
        return True
    said = f"not computed here from the code as it is: {'; '.join(lines)}"
    if not sys.stdin.isatty():
        raise UserError(f"{said}. Run the batch here, or add --yes to accept it as {who} all the same")
    print(said)
    return input(f"Accept as {who}? [y/N] ").strip().lower() in ("y", "yes")


def _print_table(rows: pl.DataFrame) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if rows.is_empty():
        return
    table = Table("item", "record", "verdict", "why", box=None, pad_edge=False)
    for row in rows.head(MOST).iter_rows(named=True):
        table.add_row(*(escape(str(row[name] or "")) for name in ("item", "record", "verdict", "why")))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if len(rows) > MOST:
        print(f"and {len(rows) - MOST} more")


def _write(file: Path, text: str) -> None:
    try:
        files.write_text(file.expanduser().absolute(), text)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; name another file") from error
