"""A batch compared with accepted baselines: a verdict per record, and reports of the verdicts.

`lmdynamics compare` prints a summary line and a table; for other systems there are JUnit XML and Markdown.
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
from lmdynamics.batch.baselines import Baselines, accept, environment_differences, file_name, item_key, read_baselines
from lmdynamics.batch.collect import gather
from lmdynamics.errors import UserError, printable, shortened
from lmdynamics.records import Record, Scalar

SAME, CHANGED, NEW, MISSING, FAILED, NO_BASELINE = VERDICTS = "same", "changed", "new", "gone", "failed", "no baseline"
PASSING = (SAME, NEW, NO_BASELINE)
JUNIT_TAGS = {CHANGED: "failure", MISSING: "failure", FAILED: "error", NEW: "skipped", NO_BASELINE: "skipped"}
SCHEMA = {
    **dict.fromkeys(("item", "notebook", "profile", "device", "record"), pl.String),
    **dict.fromkeys(("value", "baseline"), pl.String),  # as JSON; null if there is no such record
    **dict.fromkeys(("difference", "tolerance"), pl.Float64),
    **dict.fromkeys(("verdict", "why"), pl.String),
    "seconds": pl.Float64,  # of the whole item
}
RELATIVE = 1e-9  # largest relative difference of floats without a tolerance
ABSOLUTE = 1e-12  # and absolute, for sums that cancel to rounding errors
MAX_LISTED = 3  # changes in the summary
MAX_TABLE_ROWS = 40  # in a terminal
MARKDOWN_COLUMNS = ("item", "record", "verdict", "value", "baseline", "why")


def compare_command(
    out: Path,
    baseline: Path,
    *,
    accepting: bool = False,
    signer: str | None = None,
    yes: bool = False,
    strict: bool = False,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
) -> int:
    """Print what differs between a batch in `out` and the baselines in a folder; return the exit status.

    `accepting` makes the batch's records the new baseline instead, signed by `signer` (default: the user's name).
    Results of another machine or other code are listed and need a confirmation first, unless with `yes`.

    Raises UserError if there is no batch in `out`, no baseline, or a file cannot be written; or if a
    confirmation is needed and there is no terminal.
    """
    frame = gather(out)
    if accepting:
        signer = _user_name() if signer is None else signer
        if not (yes or _confirmed(frame, signer)):
            print("nothing was accepted")
            return 1
        written = accept(frame, baseline, signer)
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
    "changed": not the same by this rule, of another kind (string, boolean, none), or NaN. "new": its item has a
    baseline, but none for this record. "gone": the baseline has a record that the item lacks. "no baseline": for the
    whole item. "failed". `why` is the reason in words.

    Raises UserError if the frame does not hold records, or is empty.
    """
    needed = ["item", "notebook", "profile", "device", "parameters", "record", "text", "unit", "status", "seconds"]
    need_columns(frame, [*needed, "error"], "comparing a batch")
    if frame.is_empty():
        raise UserError("there is nothing to compare: the batch has no items; run one first")
    verdicts = [
        {name: rows[name][0] for name in ("item", "notebook", "profile", "device", "seconds")} | verdict
        for _, rows in frame.group_by("item", maintain_order=True)
        for verdict in _item_verdicts(rows, baselines)
    ]
    return pl.DataFrame(verdicts, schema=SCHEMA)


def status(verdicts: pl.DataFrame, strict: bool = False) -> int:
    """Exit status: 1 if anything changed, is missing or failed; `strict`: also if anything has no baseline yet."""
    passing = (SAME,) if strict else PASSING
    return int(not verdicts["verdict"].is_in(passing).all())


def summary(verdicts: pl.DataFrame) -> str:
    """One line: how many records of how many items have each verdict, and the first few changes."""
    parts = []
    for verdict in VERDICTS:
        rows = verdicts.filter(pl.col("verdict") == verdict)
        if verdict != FAILED:
            rows = rows.drop_nulls("record")
        if rows.is_empty():
            continue
        labels = {FAILED: f"{_count(len(rows), 'item')} failed", NO_BASELINE: f"{len(rows)} without a baseline"}
        changes = f" ({_describe_first(rows)})" if verdict in (CHANGED, MISSING, FAILED) else ""
        parts.append(labels.get(verdict, f"{len(rows)} {verdict}") + changes)
    empty = verdicts.filter(pl.col("record").is_null(), pl.col("verdict") != FAILED)
    if len(empty):
        parts.append(f"{_count(len(empty), 'item')} without records")
    records, items = len(verdicts["record"].drop_nulls()), verdicts["item"].n_unique()
    return f"{_count(records, 'record')} in {_count(items, 'item')}: {', '.join(parts)}"


def same_value(value: Scalar, baseline: Scalar, tolerance: float | None = None) -> bool:
    """Whether a value equals its baseline, within the tolerance if there is one."""
    if _kind(value) != _kind(baseline):
        return False
    if _kind(value) != "number":
        return value == baseline
    if not (math.isfinite(value) and math.isfinite(baseline)):
        return False
    integers = isinstance(value, int) and isinstance(baseline, int)
    if tolerance is None:
        return value == baseline if integers else math.isclose(value, baseline, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    # 0.65 - 0.6 is within 0.05 only with an allowance for the rounding of the subtraction
    rounding = 0.0 if integers else 4 * sys.float_info.epsilon * max(abs(value), abs(baseline))
    return abs(value - baseline) <= tolerance + rounding


def markdown(verdicts: pl.DataFrame, title: str = "") -> str:
    """The summary, a table of what is not the same, and a folded table of all; `title`: a heading above."""
    lines = [f"### {_text(title)}", ""] if title else []
    lines += [_text(summary(verdicts)), ""]
    different = verdicts.filter(pl.col("verdict") != SAME)
    if len(different):
        lines += [*_markdown_table(different), ""]
    lines += [f"<details><summary>All {len(verdicts)} rows</summary>", "", *_markdown_table(verdicts), ""]
    return "\n".join([*lines, "</details>", ""])


def junit(verdicts: pl.DataFrame, strict: bool = False) -> str:
    """JUnit XML: a test suite per item, with the item's seconds, and a test case per record.

    A record that changed or is missing is a failure, an item that failed an error; what has no baseline is skipped, or
    with `strict` a failure, as in `status`.
    """
    root = ET.Element("testsuites", name="lmdynamics batch")
    for (item,), rows in verdicts.group_by("item", maintain_order=True):
        seconds = rows["seconds"][0] or 0.0
        suite = ET.SubElement(root, "testsuite", name=printable(item), time=f"{seconds:.3f}")
        for row in rows.iter_rows(named=True):
            name = row["record"] if row["record"] is not None else "the notebook"
            case = ET.SubElement(suite, "testcase", classname=printable(item), name=printable(name))
            kind = JUNIT_TAGS.get(row["verdict"])
            if kind is not None:
                kind = "failure" if strict and kind == "skipped" else kind
                ET.SubElement(case, kind, message=printable(f"{row['verdict']}: {row['why']}"))
        _count_cases(suite)
    _count_cases(root)
    root.set("time", f"{sum(float(suite.get('time')) for suite in root):.3f}")
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _item_verdicts(rows: pl.DataFrame, baselines: Baselines) -> Iterator[dict[str, Any]]:
    item = rows.row(0, named=True)
    if item["status"] != "finished":
        yield {"verdict": FAILED, "why": item["error"] or item["status"] or "it has no status"}
        return
    name, key = file_name(item["notebook"], item["profile"], item["device"]), item_key(item["parameters"])
    records = {row["record"]: row for row in rows.drop_nulls("record").iter_rows(named=True)}
    if len(records) < rows["record"].drop_nulls().len():
        raise UserError(f"{printable(item['item'])} has two records of the same name; rename one and run it again")
    accepted = baselines[name].items.get(key) if name in baselines else None
    if accepted is None:
        why = f"no {name}" if name not in baselines else f"{name} has none for {key or 'the default parameters'}"
        for record in [*records] or [None]:
            value = {"record": record, "value": records[record]["text"]} if record is not None else {}
            yield value | {"verdict": NO_BASELINE, "why": why}
        return
    if not records and not accepted:
        yield {"verdict": SAME, "why": "records nothing, as before"}
    for record, row in records.items():
        yield {"record": record, "value": row["text"]} | _record_verdict(row, accepted.get(record))
    for name, record in accepted.items():
        if name not in records:
            why = f"was {_short(record.value)}, is not recorded any more"
            fields = {"record": name, "tolerance": record.tolerance, "baseline": _json(record)}
            yield fields | {"verdict": MISSING, "why": why}


def _record_verdict(row: dict[str, Any], baseline: Record | None) -> dict[str, Any]:
    if baseline is None:
        return {"verdict": NEW, "why": "no baseline for this record"}
    value = json.loads(row["text"])
    numbers = _kind(value) == _kind(baseline.value) == "number"
    difference = float(value - baseline.value) if numbers else None
    compared = {"baseline": _json(baseline), "tolerance": baseline.tolerance, "difference": difference}
    unit = row["unit"] or ""
    if baseline.unit and unit and unit != baseline.unit:  # 5.2 nats do not equal 5.2 bits
        return compared | {"verdict": CHANGED, "why": f"the unit {baseline.unit} → {unit}"}
    if same_value(value, baseline.value, baseline.tolerance):
        return compared | {"verdict": SAME, "why": ""}
    before, after = _distinct_texts(baseline.value, value)
    why = f"{before} → {after}" + (f" {unit}" if unit else "")
    if _kind(value) != _kind(baseline.value):
        why += f", a {_kind(baseline.value)} before" if baseline.value is not None else ""
    elif baseline.tolerance is not None and numbers:
        why += f", tolerance {baseline.tolerance:.4g}"
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


def _distinct_texts(one: Scalar, other: Scalar) -> tuple[str, str]:
    """Both values with as few digits as distinguish them."""
    for digits in (4, 7, 17):
        texts = _short(one, digits), _short(other, digits)
        if texts[0] != texts[1]:
            break
    return texts


def _describe_first(rows: pl.DataFrame) -> str:
    """The first few rows in words, and "…" if there are more."""
    texts = []
    for row in rows.head(MAX_LISTED).iter_rows(named=True):
        record = f"{row['record']} " if row["record"] is not None else ""
        texts.append(printable(f"{row['item']}: {record}{shortened(row['why'], 120)}"))
    return "; ".join([*texts, *(["…"] if len(rows) > MAX_LISTED else [])])


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _count_cases(element: ET.Element) -> None:
    for tag, attribute in (("testcase", "tests"), ("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        element.set(attribute, str(sum(1 for _ in element.iter(tag))))


def _markdown_table(verdicts: pl.DataFrame) -> Iterable[str]:
    yield f"| {' | '.join(MARKDOWN_COLUMNS)} |"
    yield "|---" * len(MARKDOWN_COLUMNS) + "|"
    for row in verdicts.select(MARKDOWN_COLUMNS).iter_rows():
        yield f"| {' | '.join(_text(cell or '') for cell in row)} |"


def _text(text: str) -> str:
    """A text with all HTML and Markdown syntax escaped, also for a table's cell."""
    return re.sub(r"([\\`*~\[\]|])", r"\\\1", escape(printable(text), quote=False))


def _user_name() -> str:
    try:
        return getuser()
    except (KeyError, OSError):
        raise UserError("the system has no name for this user; name who accepts with --who NAME") from None


def _confirmed(frame: pl.DataFrame, signer: str) -> bool:
    """Ask whether to accept results of another machine or other code; True if there are none."""
    lines = environment_differences(frame)
    if not lines:
        return True
    message = f"not computed here with the current code: {'; '.join(lines)}"
    if not sys.stdin.isatty():
        raise UserError(f"{message}. Run the batch here, or add --yes to accept it anyway as {signer}")
    print(message)
    return input(f"Accept as {signer}? [y/N] ").strip().lower() in ("y", "yes")


def _print_table(rows: pl.DataFrame) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if rows.is_empty():
        return
    table = Table("item", "record", "verdict", "why", box=None, pad_edge=False)
    for row in rows.head(MAX_TABLE_ROWS).iter_rows(named=True):
        table.add_row(*(escape(str(row[name] or "")) for name in ("item", "record", "verdict", "why")))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if len(rows) > MAX_TABLE_ROWS:
        print(f"and {len(rows) - MAX_TABLE_ROWS} more")


def _write(file: Path, text: str) -> None:
    try:
        files.write_text(file.expanduser().absolute(), text)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}; name another file") from error
