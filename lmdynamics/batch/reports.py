"""What a batch came to, for those who read it elsewhere: Markdown, JUnit XML, and figures over many batches."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from xml.etree import ElementTree as ET

import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.batch.baselines import Baselines, file_name, item_key
from lmdynamics.batch.collect import FILE_NAME
from lmdynamics.batch.compare import CHANGED, FAILED, GONE, NEW, NO_BASELINE, SAME, summary
from lmdynamics.errors import UserError, printable

HEADS = ("item", "record", "verdict", "value", "baseline", "why")
TREND = ("batch", "ended", "item", "record", "value", "low", "high", "tolerance", "unit")


def markdown(verdicts: pl.DataFrame, title: str = "") -> str:
    """The summary, a table of what is not the same, and all of it folded away; `title`: a heading above."""
    lines = [f"### {_text(title)}", ""] if title else []
    lines += [_text(summary(verdicts)), ""]
    different = verdicts.filter(pl.col("verdict") != SAME)
    if len(different):
        lines += [*_table(different), ""]
    lines += [f"<details><summary>All {len(verdicts)} rows</summary>", "", *_table(verdicts), "", "</details>", ""]
    return "\n".join(lines)


def junit(verdicts: pl.DataFrame, strict: bool = False, name: str = "lmdynamics batch") -> str:
    """JUnit XML: a test suite per item, with the item's seconds, and a test case per record.

    What changed or is gone is a failure, an item that failed an error; what has no baseline is skipped, or with
    `strict` a failure, as in `compare.status`.
    """
    root = ET.Element("testsuites", name=printable(name))
    for (item,), rows in verdicts.group_by("item", maintain_order=True):
        seconds = rows["seconds"][0] or 0.0
        suite = ET.SubElement(root, "testsuite", name=printable(item), time=f"{seconds:.3f}")
        for row in rows.iter_rows(named=True):
            told = row["record"] if row["record"] is not None else "the notebook"
            case = ET.SubElement(suite, "testcase", classname=printable(item), name=printable(told))
            if (kind := _outcome(row["verdict"], strict)) is not None:
                ET.SubElement(case, kind, message=printable(f"{row['verdict']}: {row['why']}"))
        _count_cases(suite)
    _count_cases(root)
    root.set("time", f"{sum(float(suite.get('time')) for suite in root):.3f}")
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def trend(outs: Sequence[Path], baselines: Baselines | None = None) -> pl.DataFrame:
    """Each finished record of several batches, by the time its item ended, from their `records.parquet`.

    batch (the folder), ended (local time), item, record, value, low, high, tolerance, unit; with `baselines` also
    baseline and its tolerance in place of the record's own.

    Raises
    ------
    UserError
        If no batch is named, or one has no such file or another one.
    """
    if not outs:
        raise UserError("no batch named, so there is no trend; name the --out of each")
    names = [out.name for out in outs]
    labels = names if len(set(names)) == len(names) else [str(out) for out in outs]
    frame = pl.concat([_past(out, label) for out, label in zip(outs, labels, strict=True)], how="vertical_relaxed")
    columns = list(TREND)
    if baselines is not None:
        rows = frame.select("notebook", "profile", "device", "parameters", "record").iter_rows()
        found = [_accepted(baselines, *row) for row in rows]
        frame = frame.with_columns(
            baseline=pl.Series([value for value, _ in found], dtype=pl.Float64),
            tolerance=pl.Series([tolerance for _, tolerance in found], dtype=pl.Float64),
        )
        columns.append("baseline")
    return frame.select(columns).sort("ended", "item", maintain_order=True)


def _past(out: Path, label: str) -> pl.DataFrame:
    path = out / FILE_NAME
    if not path.is_file():
        raise UserError(f"{out} has no {FILE_NAME}; name the --out of a batch that was collected")
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} is not a Parquet file; delete it and collect the batch again") from error
    needed = [name for name in TREND if name != "batch"]
    others = ["status", "notebook", "profile", "device", "parameters"]
    need_columns(frame, [*needed, *others], str(path))
    finished = frame.filter(pl.col("status") == "finished", pl.col("record").is_not_null())
    ended = pl.col("ended").str.slice(0, 19).str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False)
    return finished.select(pl.lit(label).alias("batch"), *needed, *others).with_columns(ended=ended)


def _accepted(
    baselines: Baselines, notebook: str, profile: str | None, device: str, parameters: str, record: str
) -> tuple[float | None, float | None]:
    """The accepted number and its tolerance; none for a word, and where nothing was accepted."""
    baseline = baselines.get(file_name(notebook, profile, device))
    found = baseline.items.get(item_key(parameters), {}).get(record) if baseline else None
    if found is None or found.value is None or isinstance(found.value, str):
        return None, None
    return float(found.value), found.tolerance


def _outcome(verdict: str, strict: bool) -> str | None:
    if verdict in (NEW, NO_BASELINE):
        return "failure" if strict else "skipped"
    return {CHANGED: "failure", GONE: "failure", FAILED: "error"}.get(verdict)


def _count_cases(element: ET.Element) -> None:
    for tag, attribute in (("testcase", "tests"), ("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        element.set(attribute, str(sum(1 for _ in element.iter(tag))))


def _table(verdicts: pl.DataFrame) -> Iterable[str]:
    yield f"| {' | '.join(HEADS)} |"
    yield "|---" * len(HEADS) + "|"
    for row in verdicts.select(HEADS).iter_rows():
        yield f"| {' | '.join(_text(cell or '') for cell in row)} |"


def _text(text: str) -> str:
    """A text that Markdown shows as it stands, also in a table's cell: nothing in it is HTML or a mark."""
    return re.sub(r"([\\`*~\[\]|])", r"\\\1", escape(printable(text), quote=False))
