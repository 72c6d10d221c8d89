"""A family of runs: the parent of each branch, the step at which it starts, and its changes."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import on_step_axis, step_axis
from lmdynamics.charts.encodings import names
from lmdynamics.charts.theme import BLUE, GREY, TEXT, VERMILION, WIDTH, figure
from lmdynamics.errors import UserError

NAME = "a family of runs"
ROW = 38  # room for a line and for what was changed, above it


def family_tree(rows: pl.DataFrame) -> alt.LayerChart:
    """A line per run from its first step to its last, connected to its parent where it branches off.

    `rows`: run (a unique label), generation (0: no branch), start, end (steps), parent (a label or null), changes
    (text, empty for none). The branches of one run are sorted by start, the last one first, so that no lines cross.
    """
    need_columns(rows, ["run", "generation", "start", "end", "parent", "changes"], NAME)
    data = _in_tree_order(rows.to_dicts())
    index_of = {row["run"]: index for index, row in enumerate(data)}
    steps = [step for row in data for step in (row["start"], row["end"])]
    ends = [
        {"run": row["run"], "row": index_of[row["run"]], "step": row[end], "generation": row["generation"]}
        for row in data
        for end in ("start", "end")
    ]
    branches = [row for row in data if row["parent"] is not None]
    axis = step_axis({*steps, *((1,) if 0 in steps else ())})
    y = names("run", list(index_of), padding=10, labelLimit=0)
    colour = alt.condition("datum.generation > 0", alt.value(VERMILION), alt.value(BLUE))
    base = alt.Chart(on_step_axis(pl.DataFrame(ends))).encode(axis, y, detail="run:N")
    layers = [base.mark_line(strokeWidth=4, strokeCap="round").encode(color=colour, tooltip=["run", "step"])]
    if branches:
        links = [{"run": row["run"], "parent": row["parent"], "step": row["start"]} for row in branches]
        labels = [{"run": row["run"], "step": row["start"], "text": _label(row)} for row in branches]
        link, label = (alt.Chart(on_step_axis(pl.DataFrame(frame))).encode(axis) for frame in (links, labels))
        text = label.mark_text(color=TEXT, align="left", baseline="bottom", dx=4, dy=-5, fontSize=11)
        layers = [
            link.mark_rule(color=GREY, strokeWidth=1.5).encode(y, alt.Y2("parent:N")),
            *layers,
            link.mark_point(color=VERMILION, filled=True, size=60, opacity=1).encode(y),
            text.encode(y, alt.Text("text:N")),
        ]
    count = f"{len(branches)} branch" + ("" if len(branches) == 1 else "es")
    starts = sorted({row["start"] for row in branches})
    branched = f"step {starts[0]:,}" if len(starts) == 1 else f"steps {starts[0]:,} to {starts[-1]:,}" if starts else ""
    leaves = "leaves" if len(branches) == 1 else "leave"
    roots = len(data) - len(branches)
    title = f"{count} {leaves} at {branched}" if branches else f"{roots} run{'s' if roots > 1 else ''}, no branches"
    sentence = "; ".join(
        f"{row['run']} leaves {row['parent']} at step {row['start']:,} ({row['changes'] or 'nothing changed'})"
        for row in branches
    )
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=ROW * len(data)),
        title,
        "dot: where a branch leaves; above it: what was changed" if branches else "",
        f"A family of runs ({len(data)}), trained to step {max(steps):,}. {sentence or 'No branches'}.",
    )


def _label(row: dict) -> str:
    return f"{row['start']:,}: {row['changes'] or 'nothing changed'}"


def _in_tree_order(rows: list[dict]) -> list[dict]:
    """The rows with each branch below its parent; UserError if they are not a tree."""
    labels = [row["run"] for row in rows]
    if not rows:
        raise UserError(f"{NAME}: the frame has no rows; give at least one run")
    if len(set(labels)) < len(labels):
        duplicate = next(name for name in labels if labels.count(name) > 1)
        raise UserError(f"{NAME}: {duplicate!r} occurs twice; give each run its own label")
    if orphan := next((row for row in rows if row["parent"] is not None and row["parent"] not in labels), None):
        raise UserError(
            f"{NAME}: {orphan['run']!r} branches off {orphan['parent']!r}, which is not among them; add its row"
        )
    children: dict[str | None, list[dict]] = {}
    for row in rows:
        children.setdefault(row["parent"], []).append(row)

    def below(name: str | None) -> list[dict]:
        branches = children.get(name, [])
        order = branches if name is None else sorted(branches, key=lambda row: -row["start"])
        return [line for row in order for line in (row, *below(row["run"]))]

    order = below(None)
    if len(order) < len(rows):
        cyclic = next(row["run"] for row in rows if row not in order)
        raise UserError(f"{NAME}: {cyclic!r} is its own ancestor; a parent comes before its branches")
    return order
