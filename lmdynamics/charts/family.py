"""Which run branched off which, at what step, and what was changed there."""

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import on_step_axis, step_axis
from lmdynamics.charts.encodings import names
from lmdynamics.charts.theme import BLUE, GREY, TEXT, VERMILION, WIDTH, figure
from lmdynamics.errors import UserError

WHAT = "a family of runs"
ROW = 38  # room for a line and for what was changed, above it


def family_tree(rows: pl.DataFrame) -> alt.LayerChart:
    """A line per run from its first step to its last, hanging from its parent where it leaves it.

    `rows`: run (a label, each once), generation (0: no branch), start, end (steps), parent (a label or null), changes
    (text, empty for none). Among the branches of one run, the one that leaves last stands first: no line is crossed.
    """
    need_columns(rows, ["run", "generation", "start", "end", "parent", "changes"], WHAT)
    data = _in_tree_order(rows.to_dicts())
    place = {row["run"]: index for index, row in enumerate(data)}
    steps = [step for row in data for step in (row["start"], row["end"])]
    ends = [
        {"run": row["run"], "row": place[row["run"]], "step": row[end], "generation": row["generation"]}
        for row in data
        for end in ("start", "end")
    ]
    left = [row for row in data if row["parent"] is not None]
    axis = step_axis({*steps, *((1,) if 0 in steps else ())})
    y = names("run", list(place), padding=10, labelLimit=0)
    colour = alt.condition("datum.generation > 0", alt.value(VERMILION), alt.value(BLUE))
    base = alt.Chart(on_step_axis(pl.DataFrame(ends))).encode(axis, y, detail="run:N")
    layers = [base.mark_line(strokeWidth=4, strokeCap="round").encode(color=colour, tooltip=["run", "step"])]
    if left:
        links = [{"run": row["run"], "parent": row["parent"], "step": row["start"]} for row in left]
        words = [{"run": row["run"], "step": row["start"], "text": _label(row)} for row in left]
        link, word = (alt.Chart(on_step_axis(pl.DataFrame(frame))).encode(axis) for frame in (links, words))
        text = word.mark_text(color=TEXT, align="left", baseline="bottom", dx=4, dy=-5, fontSize=11)
        layers = [
            link.mark_rule(color=GREY, strokeWidth=1.5).encode(y, alt.Y2("parent:N")),
            *layers,
            link.mark_point(color=VERMILION, filled=True, size=60, opacity=1).encode(y),
            text.encode(y, alt.Text("text:N")),
        ]
    many = f"{len(left)} branch" + ("" if len(left) == 1 else "es")
    at = sorted({row["start"] for row in left})
    when = f"step {at[0]:,}" if len(at) == 1 else f"steps {at[0]:,} to {at[-1]:,}" if at else ""
    leaves = "leaves" if len(left) == 1 else "leave"
    whole = len(data) - len(left)
    title = f"{many} {leaves} at {when}" if left else f"{whole} run{'s' if whole > 1 else ''}, no branches"
    told = "; ".join(
        f"{row['run']} leaves {row['parent']} at step {row['start']:,} ({row['changes'] or 'nothing changed'})"
        for row in left
    )
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=ROW * len(data)),
        title,
        "dot: where a branch leaves; above it: what was changed" if left else "",
        f"A family of {len(data)} run(s), trained to step {max(steps):,}. {told or 'No branches'}.",
    )


def _label(row: dict) -> str:
    return f"{row['start']:,}: {row['changes'] or 'nothing changed'}"


def _in_tree_order(rows: list[dict]) -> list[dict]:
    """Each branch below its parent; refuses what is no tree."""
    known = [row["run"] for row in rows]
    if not rows:
        raise UserError(f"{WHAT}: the frame has no rows; give at least one run")
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise UserError(f"{WHAT}: {twice!r} is there twice; give each run a label of its own")
    if lost := next((row for row in rows if row["parent"] is not None and row["parent"] not in known), None):
        raise UserError(
            f"{WHAT}: {lost['run']!r} branches off {lost['parent']!r}, which is not among them; add its row"
        )
    children: dict[str | None, list[dict]] = {}
    for row in rows:
        children.setdefault(row["parent"], []).append(row)

    def below(name: str | None) -> list[dict]:
        found = children.get(name, [])
        order = found if name is None else sorted(found, key=lambda row: -row["start"])
        return [line for row in order for line in (row, *below(row["run"]))]

    order = below(None)
    if len(order) < len(rows):
        lost = next(row["run"] for row in rows if row not in order)
        raise UserError(f"{WHAT}: {lost!r} is its own ancestor; a parent comes before its branches")
    return order
