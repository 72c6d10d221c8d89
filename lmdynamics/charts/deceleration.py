"""Loss curves in log-log space: where they break, what another break would cost, what one power law would claim.

Mircea et al. 2025 (arXiv 2506.05447). A fit is drawn from columns of `analysis.fits.fits_table`: with u = log(t / t_d),
log L = log L_d - c0 u - c1 f1 log(1 + exp(u / f1)), where L_d is `loss_at_break`, t_d `step_at_break`, c0
`rate_before_break`, c0 + c1 = r_d `rate_after_break`. The two power laws meet at (t_d, L_d), off the smooth curve.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.deceleration import LOCATED, headline
from lmdynamics.analysis.fits import fitted_line
from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.charts.axes import log_ticks, step_axis
from lmdynamics.charts.theme import BLUE, GREY, HEIGHT, TEXT, VERMILION, WIDTH, condition_colours, figure
from lmdynamics.errors import UserError

LOSS = "loss (nats per predicted token, log scale)"
SHAPE = ["loss_at_break", "step_at_break", "rate_before_break", "rate_after_break", "f1"]
MOST_POINTS = 300  # of a curve that are drawn, evenly spaced in log step
CLAIMS = {"one power law": VERMILION, "one break": BLUE}
POINT = {"curve": pl.String, "x": pl.Float64, "loss": pl.Float64}
MARK = {**POINT, "low": pl.Float64, "high": pl.Float64, "verdict": pl.String}
STEP_TIP = alt.Tooltip("x:Q", title="step", format=",.0f")
LOSS_TIP = alt.Tooltip("loss:Q", format=".4f")


def deceleration(points: pl.DataFrame, fits: pl.DataFrame, *, curves: Sequence[str] | None = None) -> alt.LayerChart:
    """Loss curves with one smooth break each, the two power laws it joins, and where it lies; both axes logarithmic.

    `points`: curve, step, loss, as fitted. `fits`: rows of `fits_table`. `curves` chooses up to 8 of them, in this
    order. The interval of the break is a band for one curve, a bar for several; a fit without a break that was located
    has no marks.

    Raises
    ------
    UserError
        If a column or a curve's fit is missing, there is nothing to draw, or there are more than 8 curves.
    """
    need_columns(points, ["curve", "step", "loss"], "deceleration: points")
    need_columns(fits, ["curve", "verdict", *SHAPE, "first_step", "last_step"], "deceleration: fits")
    names = list(dict.fromkeys(points["curve"] if curves is None else curves))
    if not names:
        raise UserError("deceleration: there is no curve to draw; give points of at least one")
    colours = condition_colours(names)
    data = pl.concat([pl.DataFrame(schema=POINT), *(thinned(points, name) for name in names)])
    rows = {row["curve"]: row for row in fits.iter_rows(named=True)}
    if missing := [name for name in names if name not in rows]:
        raise UserError(f"deceleration: there is no fit of {missing[0]!r}; fits: {', '.join(map(str, rows)) or 'none'}")
    fitted = [rows[name] for name in names if rows[name]["step_at_break"] is not None]
    broken = [row for row in fitted if row["verdict"] in LOCATED]
    x, y = step_axis(step_ends(data)), loss_axis(data["loss"])
    key = alt.Legend(orient="bottom", columns=5, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1)
    colour = alt.Color("curve:N", title=None, legend=key if len(names) > 1 else None).scale(
        domain=names, range=list(colours.values())
    )
    tips = ["curve:N", STEP_TIP, LOSS_TIP]
    layers = [alt.Chart(data).mark_point(size=16, filled=True, opacity=0.35).encode(x, y, colour, tooltip=tips)]
    if fitted:
        smooth = pl.concat([fitted_line(row, row["first_step"], row["last_step"]) for row in fitted])
        layers.append(alt.Chart(smooth).mark_line(strokeWidth=1.8).encode(x, y, colour))
    if broken:
        marks = pl.DataFrame([_mark(row) for row in broken], MARK)
        sharp = pl.concat([_sharp(row) for row in broken])
        base = alt.Chart(marks).encode(x, y, colour, tooltip=[*tips, "verdict", "low", "high"])
        if (bounded := marks.drop_nulls(["low", "high"])).height:
            low, high = alt.X("low:Q"), alt.X2("high:Q")
            reach = alt.Chart(bounded).encode(low, high, colour)
            band = reach.mark_rect(opacity=0.12, clip=True)
            layers.insert(0, band) if len(names) == 1 else layers.append(
                reach.mark_rule(strokeWidth=2.5, clip=True).encode(y)
            )
        layers += [
            alt.Chart(sharp)
            .mark_line(strokeWidth=1.2, strokeDash=[5, 4], clip=True)
            .encode(x, y, colour, detail="part"),
            base.mark_point(filled=True, size=110, opacity=1, stroke="white", strokeWidth=1),
        ]
    caption = ["dots: loss", "line: fit with one smooth break" if fitted else ""]
    if broken:
        where = "band" if len(names) == 1 else "bar"
        caption += ["dashed: the two power laws it joins, and where they meet", f"{where}: 95 % interval of that step"]
    reasons = [
        f"{row['curve']}: {headline(row['verdict'], row.get('caveat'))}, {row['reason']}"
        for row in map(rows.get, names)
        if row.get("reason")
    ]
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT + 60),
        _found(names, [rows[name] for name in names]),
        ["; ".join(filter(None, caption)), _told(rows[names[0]]) if len(names) == 1 else ""],
        f"Loss against step, both logarithmic, for {', '.join(names)}. " + ". ".join(reasons) + ".",
    )


def power_law_claim(
    points: pl.DataFrame, lines: pl.DataFrame, *, curve: str, share: float | None = None
) -> alt.LayerChart:
    """What one power law, fitted to the first part of a curve, claims of its end, beside what it came to.

    `points`: curve, step, loss. `lines`: curve, step, loss, method, where `one power law` runs to the end, and
    `one break` is the fit to compare it with. `share`: of the steps, that the power law saw; a dashed line marks it.

    Raises
    ------
    UserError
        If a column, the curve or one of the two methods is missing.
    """
    need_columns(points, ["curve", "step", "loss"], "one power law's claim: points")
    need_columns(lines, ["curve", "step", "loss", "method"], "one power law's claim: lines")
    data = thinned(points, curve)
    made = lines.filter(pl.col("curve") == curve).sort("step")
    if missing := [name for name in CLAIMS if name not in made["method"]]:
        raise UserError(
            f"one power law's claim: lines has no {missing[0]!r} of {curve!r}; it needs {' and '.join(CLAIMS)}"
        )
    drawn = pl.concat([_thinned_line(made.filter(pl.col("method") == name)) for name in CLAIMS])
    last, truth = data["x"][-1], data["loss"][-1]
    claimed = drawn.filter(pl.col("method") == "one power law")["loss"][-1]
    x, y = step_axis(step_ends(data)), loss_axis([*data["loss"], *drawn["loss"]])
    key = alt.Legend(orient="bottom", symbolType="stroke", symbolStrokeWidth=3)
    colour = alt.Color("method:N", title=None, legend=key).scale(domain=list(CLAIMS), range=list(CLAIMS.values()))
    told = [(claimed, f"claimed: {claimed:.2f}", VERMILION), (truth, f"came to: {truth:.2f}", TEXT)]
    layers = [
        alt.Chart(data)
        .mark_point(size=16, filled=True, color=GREY, opacity=0.45)
        .encode(x, y, tooltip=[STEP_TIP, LOSS_TIP]),
        alt.Chart(drawn).mark_line(strokeWidth=2.2).encode(x, y, colour, tooltip=["method:N", STEP_TIP, LOSS_TIP]),
    ]
    for (loss, label, hue), side in zip(sorted(told), ("top", "bottom"), strict=True):
        one = alt.Chart(alt.Data(values=[{"x": last, "loss": loss, "label": label}]))
        apart = {"baseline": "middle"} if abs(math.log(claimed / truth)) > 0.06 else {"baseline": side}
        layers += [
            one.mark_point(filled=True, size=80, color=hue, opacity=1).encode(x, y),
            one.mark_text(align="left", dx=9, fontSize=12, color=TEXT, **apart).encode(x, y, text="label:N"),
        ]
    through = "One power law"
    if share is not None:
        seen = alt.Chart(alt.Data(values=[{"x": share * last, "label": f"seen: first {100 * share:g} %"}]))
        layers += [
            seen.mark_rule(color=TEXT, strokeDash=[4, 3]).encode(x),
            seen.mark_text(color=TEXT, align="right", dx=-5, fontSize=11, baseline="top").encode(
                x, text="label:N", y=alt.value(2)
            ),
        ]
        through = f"One power law through the first {100 * share:g} % of training"
    off = claimed / truth - 1
    side = "too low" if off < 0 else "too high"
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT + 60),
        f"{through} claims a final loss of {claimed:.2f} for {curve}, {100 * abs(off):.0f} % {side}",
        f"dots: loss of {curve}; it came to {truth:.2f}",
        f"Loss of {curve} against step, both logarithmic. {through} claims {claimed:.3f} at step {last:,.0f}; "
        f"the loss came to {truth:.3f}.",
    )


def loss_axis(losses: Iterable[float], room: float = 1.08, title: str = LOSS) -> alt.Y:
    """The logarithmic axis of a field `loss`, with few ticks that can be read."""
    losses = list(losses)
    low, high = min(losses) / room, max(losses) * 1.08
    return (
        alt.Y("loss:Q", title=title)
        .scale(type="log", domain=[low, high], nice=False)
        .axis(values=log_ticks(low, high), format="~g")
    )


def thinned(points: pl.DataFrame, name: str) -> pl.DataFrame:
    """One curve's points as curve, x, loss: the last of each of `MOST_POINTS` bins of log step."""
    rows = points.filter(pl.col("curve") == name).select(
        "curve", x=pl.col("step").cast(pl.Float64), loss=pl.col("loss").cast(pl.Float64)
    )
    rows = rows.filter((pl.col("x") > 0) & pl.col("loss").is_finite() & (pl.col("loss") > 0)).sort("x")
    if rows.is_empty():
        have = ", ".join(map(str, points["curve"].unique(maintain_order=True))) or "none"
        raise UserError(f"there are no points of the curve {name!r} after step 0; curves: {have}")
    if len(rows) <= MOST_POINTS:
        return rows
    place = pl.col("x").log()
    bins = ((place - place.min()) / (place.max() - place.min()) * (MOST_POINTS - 1)).floor()
    return rows.group_by(bins.alias("bin"), maintain_order=True).last().drop("bin")


def _thinned_line(rows: pl.DataFrame) -> pl.DataFrame:
    """At most `MOST_POINTS` rows of a line, as method, x, loss, its ends among them."""
    rows = rows.select("method", x=pl.col("step").cast(pl.Float64), loss=pl.col("loss").cast(pl.Float64))
    kept = sorted({round(i * (len(rows) - 1) / (MOST_POINTS - 1)) for i in range(MOST_POINTS)})
    return rows.filter(pl.col("x") > 0) if len(rows) <= MOST_POINTS else rows[kept].filter(pl.col("x") > 0)


def _sharp(row: Mapping) -> pl.DataFrame:
    """The two power laws of a fit, each two points: curve, x, loss, part."""
    at, loss = row["step_at_break"], row["loss_at_break"]
    ends = [
        ("before", row["first_step"], row["rate_before_break"]),
        ("after", row["last_step"], row["rate_after_break"]),
    ]
    rows = [
        (row["curve"], step, loss * (step / at) ** -rate, part)
        for part, end, rate in ends
        for step in sorted((end, at))
    ]
    return pl.DataFrame(rows, {**POINT, "part": pl.String}, orient="row")


def _mark(row: Mapping) -> dict:
    """Where a fit breaks, with its interval."""
    bounds = {"low": row.get("step_at_break_low"), "high": row.get("step_at_break_high")}
    return {
        "curve": row["curve"],
        "x": row["step_at_break"],
        "loss": row["loss_at_break"],
        **bounds,
        "verdict": row["verdict"],
    }


def step_ends(data: pl.DataFrame) -> list[float]:
    return [data["x"].min(), data["x"].max()]


def _found(names: list[str], rows: list[Mapping]) -> str:
    """The title: one curve's break with its interval and rates, or how many decelerate, and where they may break."""
    if len(rows) == 1:
        row, doubt = rows[0], rows[0].get("caveat")
        if row["verdict"] not in LOCATED:
            return f"{names[0]}: {headline(row['verdict'], doubt)}"
        verb = "breaks at the edge," if row["verdict"] == "break at the edge" else f"{row['verdict']} at"
        rates = f"rate {row['rate_before_break']:.3g} → {row['rate_after_break']:.3g}"
        return f"{names[0]} {verb} step {with_interval(row['step_at_break'], _bounds(row), ',.0f')}: {rates}" + (
            f" ({doubt})" if doubt else ""
        )
    slower = [row for row in rows if row["verdict"] == "decelerates"]
    lost = sum(row["verdict"] == "break not located" for row in rows)
    also = f"; the break of {lost} is not located" if lost else ""
    if not slower:
        return f"None of {len(rows)} curves decelerates{' at a known step' if lost else ''}{also}"
    count = f"All {len(rows)} curves decelerate" if len(slower) == len(rows) else (
        f"{len(slower)} of {len(rows)} curves decelerate{'s' if len(slower) == 1 else ''}"
    )  # fmt: skip
    doubts = Counter(row["caveat"] for row in slower if row.get("caveat"))
    also += "".join(f"; {doubt} ({number} of {len(slower)})" for doubt, number in doubts.items())
    bounds = [_bounds(row) for row in slower]
    if all(bounds):
        low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
        return f"{count}, between steps {low:,.0f} and {high:,.0f} (95 % intervals){also}"
    steps = sorted(row["step_at_break"] for row in slower)
    where = f"fitted step {steps[0]:,.0f}" if len(steps) == 1 else f"fitted steps {steps[0]:,.0f} to {steps[-1]:,.0f}"
    return f"{count}; {where}, without intervals{also}"


def _bounds(row: Mapping) -> tuple[float, float] | None:
    """The interval of the step of a break, if there is one."""
    low, high = row.get("step_at_break_low"), row.get("step_at_break_high")
    return None if low is None or high is None or not low < high else (low, high)


def _told(row: Mapping) -> str:
    """What one curve's title leaves unsaid: L_d and r_d with their intervals, what else would fit; or why no break."""
    if row["verdict"] not in LOCATED:
        return row.get("reason") or ""
    parts = []
    for name, column, style in (("L_d", "loss_at_break", ".2f"), ("r_d", "rate_after_break", ".3g")):
        bounds = row.get(f"{column}_low"), row.get(f"{column}_high")
        parts.append(f"{name} {with_interval(row[column], bounds, style)}")
    return "; ".join([", ".join(parts), *(row.get("reason") or "").split("; ")[1:]]).replace("-", "−")
