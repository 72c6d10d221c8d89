"""One page over hundreds of loss curves: a table, all curves in one figure, and each by itself; it needs no network.

`atlas.js` draws and filters what is computed here and in `analysis`. A colour never stands alone: each verdict is also
written as a word, and curves that were not fitted are dashed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import polars as pl

from lmdynamics.analysis.deceleration import LOCATED
from lmdynamics.analysis.fits import describe_fits
from lmdynamics.charts.deceleration import thinned, verdict_line
from lmdynamics.charts.moving import read, short
from lmdynamics.charts.theme import BLUE, BROWN, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from lmdynamics.errors import printable
from lmdynamics.html import html_table, json_in_script

MAX_POINTS = 80  # drawn of one curve
COLOURS = {
    "decelerates": BLUE,
    "accelerates": VERMILION,
    "break at the edge": GREEN,
    "break not located": ORANGE,
    "sudden drop": SKY,
    "sudden rise": PURPLE,
    "jump in scale": BROWN,
    "no break": GREY,
    "not fitted": GREY,
}
NUMBERS = {"step": "step_at_break", "loss": "loss_at_break", "rate": "rate_after_break"}
TEXTS = {"step": "t_d", "loss": "L_d", "rate": "r_d"}


def atlas_page(
    points: pl.DataFrame,
    fits: pl.DataFrame,
    counts: pl.DataFrame,
    *,
    preparation: Mapping[str, Any],
    notes: Sequence[tuple[str, str]] = (),
    unread: Sequence[tuple[str, str]] = (),
) -> str:
    """The page, as HTML.

    `points`: curve, step, loss, as fitted. `fits`: `fits_table`. `counts`: of verdicts among the curves and among null
    curves, the control (`analysis.null_fits.verdict_counts`). `preparation`: smoothing, skip_steps, resamples. `notes`
    on how each source was read, and sources that are left out, `unread`, with reasons: pairs of texts.
    """
    content = {"curves": _curves(points, fits), "colours": COLOURS, "maxPoints": MAX_POINTS}
    failed = fits.filter(pl.col("verdict") == "not fitted")
    parts = [
        f"<h1>{_count(len(fits), 'loss curve')}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in (*_findings(fits, counts), _preparation(preparation))),
        _counts_table(counts),
        _folded(f"{_count(len(failed), 'curve')} could not be fitted", _reasons(failed["reason"])),
        _folded(f"{_count(len(unread), 'file')} could not be read", [f"{name}: {text}" for name, text in unread]),
        _folded("How the files were read", [f"{name}: {text}" for name, text in notes]),
    ]
    title = f"{_count(len(fits), 'loss curve')}: where they break"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{read('atlas.css')}</style></head>\n<body><main>{''.join(parts)}\n{read('atlas.html')}</main>\n"
        f'<script type="application/json" id="content">{json_in_script(content)}</script>\n'
        f"<script>{read('atlas.js')}</script></body></html>\n"
    )


def _curves(points: pl.DataFrame, fits: pl.DataFrame) -> list[dict[str, Any]]:
    """What the page shows of each curve, with thinned points and a line for its fit; numbers to four digits."""
    drawn = thinned(points, MAX_POINTS).partition_by("curve", as_dict=True)
    every = points.partition_by("curve", as_dict=True)
    texts = describe_fits(fits).iter_rows(named=True)
    curves = []
    for row, text in zip(fits.iter_rows(named=True), texts, strict=True):
        key, curve = (row["curve"],), {"name": printable(row["curve"]), "verdict": row["verdict"]}
        curve |= {"caveat": row["caveat"], "reason": printable(row["reason"]), "points": row["points"]}
        if row["verdict"] in LOCATED:
            for name, column in NUMBERS.items():
                curve[name] = [row[column], row[f"{column}_low"], row[f"{column}_high"]]
                curve[f"{name}Text"] = text[TEXTS[name]]
            curve["before"] = row["rate_before_break"]
        if (shown := drawn.get(key)) is not None:
            curve |= {"x": shown["x"].to_list(), "y": shown["loss"].to_list()}
        if row["verdict"] != "not fitted":
            line = verdict_line(row, every[key])["loss"].to_list()
            line = line if len(line) == 2 else line[::3]  # both ends are among every third of its 160 points
            curve |= {"from": row["first_step"], "to": row["last_step"], "line": line}
        curves.append({name: short(value) for name, value in curve.items()})
    return curves


def _findings(fits: pl.DataFrame, counts: pl.DataFrame) -> list[str]:
    """How many curves decelerate, beside the control, and what their caveats are."""
    row = counts.row(by_predicate=pl.col("verdict") == "decelerates", named=True)
    fitted, nulls = (counts[name].sum() - counts[name][-1] for name in ("curves", "null_curves"))
    if not fitted:
        return ["No curve could be fitted."]
    sentences = [
        f"{row['curves']:,} of {fitted:,} fitted curves decelerate: {_share(row, 'curves')}. Control: of "
        f"{_count(nulls, 'null curve')}, {row['null_curves']:,} are called decelerating: {_share(row, 'null_curves')}. "
        "A null curve is a curve's own power law with its noise, and without a break. “No break” means that none is "
        "shown: a curve with few points, or with much noise, may have one."
    ]
    if row["curves_low"] is not None and row["null_curves_high"] is not None:
        overlap = row["curves_low"] <= row["null_curves_high"]
        sentences[0] += " The two intervals overlap: this is not shown to be more than chance gives." if overlap else ""
    caveats = Counter(fits.filter(pl.col("verdict") != "not fitted", pl.col("caveat") != "")["caveat"])
    if caveats:
        (caveat, number), every = caveats.most_common(1)[0], caveats.total()
        sentences.append(
            f"{every:,} of the {fitted:,} verdicts have a caveat, for {number:,} of them “{caveat}”: "
            "then one break describes the curve incompletely."
        )
    return sentences


def _preparation(options: Mapping[str, Any]) -> str:
    smoothing, resamples = options["smoothing"], options["resamples"]
    intervals = (
        f"95 % intervals are from {resamples:,} resamples (block bootstrap); a number without brackets has none."
        if resamples
        else "There were no resamples, so no number of a curve has an interval."
    )
    return (
        f"Each curve was fitted with one smooth break. Smoothing: {smoothing}. Steps up to {options['skip_steps']:g} "
        f"were skipped. {intervals} The same was done with the null curves. L_d, t_d and r_d are missing where no "
        f"break is located. Figures show at most {MAX_POINTS} points of a curve, evenly in log step, to four digits; "
        "fits used all of them."
    )


def _counts_table(counts: pl.DataFrame) -> str:
    rows = [
        (
            row["verdict"],
            f"{row['curves']:,}",
            _share(row, "curves"),
            f"{row['null_curves']:,}",
            _share(row, "null_curves"),
        )
        for row in counts.iter_rows(named=True)
        if row["curves"] or row["null_curves"]
    ]
    header = ("verdict", "curves", "share of the fitted", "null curves (control)", "share")
    note = "Shares have 95 % intervals (Wilson), as if the curves were independent: related runs are not."
    return f"<div class=wide>{html_table(header, rows)}</div><p class=small>{note}</p>"


def _share(row: Mapping[str, Any], name: str) -> str:
    share, low, high = (row[f"{name}_{end}"] for end in ("share", "low", "high"))
    return "–" if share is None else f"{share:.1%} [{low:.1%}, {high:.1%}]"


def _reasons(reasons: Iterable[str]) -> list[str]:
    return [f"{number:,}: {printable(reason)}" for reason, number in Counter(reasons).most_common()]


def _folded(summary: str, items: Iterable[str]) -> str:
    """A list that opens with a click; nothing if it is empty."""
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<details><summary>{escape(summary)}</summary><ul>{lines}</ul></details>" if lines else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
