"""Loss curves in log-log space: where they break, what another break would cost, what one power law would claim.

Mircea et al. 2025 (arXiv 2506.05447). A fit is drawn from columns of `analysis.fits.fits_table`: with u = log(t / t_d),
log L = log L_d - c0 u - c1 f1 log(1 + exp(u / f1)), where L_d is `loss_at_break`, t_d `step_at_break`, c0
`rate_before_break`, c0 + c1 = r_d `rate_after_break`. The two power laws meet at (t_d, L_d), off the smooth curve.

`broken_by_hand` follows a cursor over the rows of a profile, `break_profile` can; `hand_parameters` holds the row.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.deceleration import LOCATED, headline
from lmdynamics.analysis.fits import fitted_line, least_error
from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.charts.axes import AT, Cursor, log_ticks, step_axis, strips
from lmdynamics.charts.encodings import need_rows, one
from lmdynamics.charts.lines import colour_by, log_scale, panel
from lmdynamics.charts.text import Value
from lmdynamics.charts.theme import BLUE, GREY, HEIGHT, TEXT, VERMILION, condition_colours, figure
from lmdynamics.errors import UserError

LOSS = "loss (nats per predicted token, log scale)"
SHAPE = ["loss_at_break", "step_at_break", "rate_before_break", "rate_after_break", "f1"]
MOST_POINTS = 300  # of a curve that are drawn, evenly spaced in log step
CLAIMS = {"one power law": VERMILION, "one break": BLUE}
POINT = {"curve": pl.String, "x": pl.Float64, "loss": pl.Float64}
MARK = {**POINT, "low": pl.Float64, "high": pl.Float64, "verdict": pl.String}
TIPS = [alt.Tooltip("x:Q", title="step", format=",.0f"), alt.Tooltip("loss:Q", format=".4f")]
HAND, BEST = VERMILION, BLUE
HAND_STEP = Value("format(hand_step, ',.0f')")
COLUMNS = {  # parameters of the views, and the columns of a profile that they take
    "hand_step": "step_at_break",
    "hand_loss": "loss_at_break",
    "hand_before": "rate_before_break",
    "hand_after": "rate_after_break",
    "hand_width": "f1",
    "hand_rsle": "rsle",
}


def deceleration(points: pl.DataFrame, fits: pl.DataFrame, *, curves: Sequence[str] | None = None) -> alt.LayerChart:
    """Loss curves with one smooth break each, the two power laws it joins, and where it lies; both axes logarithmic.

    `points`: curve, step, loss, as fitted. `fits`: rows of `fits_table`. `curves` chooses up to 8 of them, in this
    order. The interval of the break is a band for one curve, a bar for several; a fit without a break that was located
    has no marks.
    """
    need_columns(points, ["curve", "step", "loss"], "deceleration: points")
    need_columns(fits, ["curve", "verdict", *SHAPE, "first_step", "last_step"], "deceleration: fits")
    names = list(dict.fromkeys(points["curve"] if curves is None else curves))
    if not names:
        raise UserError("deceleration: there is no curve to draw; give points of at least one")
    colours = condition_colours(names)
    data = pl.concat([pl.DataFrame(schema=POINT), *(_thinned(points, name) for name in names)])
    rows = {row["curve"]: row for row in fits.iter_rows(named=True)}
    if missing := [name for name in names if name not in rows]:
        raise UserError(f"deceleration: there is no fit of {missing[0]!r}; fits: {', '.join(map(str, rows)) or 'none'}")
    fitted = [rows[name] for name in names if rows[name]["step_at_break"] is not None]
    broken = [row for row in fitted if row["verdict"] in LOCATED]
    x, y = step_axis(_ends(data)), _loss_axis(data["loss"])
    colour = colour_by("curve", colours, columns=5)
    tips = ["curve:N", *TIPS]
    layers = [alt.Chart(data).mark_point(size=16, filled=True, opacity=0.35).encode(x, y, colour, tooltip=tips)]
    if fitted:
        smooth = pl.concat([fitted_line(row, row["first_step"], row["last_step"]) for row in fitted])
        layers.append(alt.Chart(smooth).mark_line(strokeWidth=1.8).encode(x, y, colour))
    if broken:
        marks = pl.DataFrame([_mark(row) for row in broken], MARK)
        sharp = pl.concat([_sharp(row) for row in broken])
        if (bounded := marks.drop_nulls(["low", "high"])).height:
            reach = alt.Chart(bounded).encode(alt.X("low:Q"), alt.X2("high:Q"), colour)
            if len(names) == 1:
                layers.insert(0, reach.mark_rect(opacity=0.12, clip=True))
            else:
                layers.append(reach.mark_rule(strokeWidth=2.5, clip=True).encode(y))
        dashed = alt.Chart(sharp).mark_line(strokeWidth=1.2, strokeDash=[5, 4], clip=True)
        meet = alt.Chart(marks).mark_point(filled=True, size=110, opacity=1, stroke="white", strokeWidth=1)
        layers += [
            dashed.encode(x, y, colour, detail="part"),
            meet.encode(x, y, colour, tooltip=[*tips, "verdict", "low", "high"]),
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
        panel(layers, x, height=HEIGHT + 60),
        _found(names, [rows[name] for name in names]),
        [caption, _told(rows[names[0]]) if len(names) == 1 else ""],
        f"Loss against step, both logarithmic, for {', '.join(names)}. " + ". ".join(reasons) + ".",
    )


def power_law_claim(
    points: pl.DataFrame, lines: pl.DataFrame, *, curve: str, share: float | None = None
) -> alt.LayerChart:
    """What one power law, fitted to the first part of a curve, claims of its end, beside what it came to.

    `points`: curve, step, loss. `lines`: curve, step, loss, method, where `one power law` runs to the end, and
    `one break` is the fit to compare it with. `share`: of the steps, that the power law saw; a dashed line marks it.
    """
    need_columns(points, ["curve", "step", "loss"], "one power law's claim: points")
    need_columns(lines, ["curve", "step", "loss", "method"], "one power law's claim: lines")
    data = _thinned(points, curve)
    made = lines.filter(pl.col("curve") == curve).sort("step")
    if missing := [name for name in CLAIMS if name not in made["method"]]:
        raise UserError(
            f"one power law's claim: lines has no {missing[0]!r} of {curve!r}; it needs {' and '.join(CLAIMS)}"
        )
    drawn = pl.concat([_thinned_line(made.filter(pl.col("method") == name)) for name in CLAIMS])
    last, truth = data["x"][-1], data["loss"][-1]
    claimed = drawn.filter(pl.col("method") == "one power law")["loss"][-1]
    x, y = step_axis(_ends(data)), _loss_axis([*data["loss"], *drawn["loss"]])
    colour = colour_by("method", CLAIMS)
    told = [(claimed, f"claimed: {claimed:.2f}", VERMILION), (truth, f"came to: {truth:.2f}", TEXT)]
    layers = [
        _dots(data, x, y),
        alt.Chart(drawn).mark_line(strokeWidth=2.2).encode(x, y, colour, tooltip=["method:N", *TIPS]),
    ]
    for (loss, label, hue), side in zip(sorted(told), ("top", "bottom"), strict=True):
        end = one(x=last, loss=loss, label=label).encode(x, y)
        apart = {"baseline": "middle"} if abs(math.log(claimed / truth)) > 0.06 else {"baseline": side}
        layers += [
            end.mark_point(filled=True, size=80, color=hue, opacity=1),
            end.mark_text(align="left", dx=9, fontSize=12, color=TEXT, **apart).encode(text="label:N"),
        ]
    through = "One power law"
    if share is not None:
        seen = one(x=share * last, label=f"seen: first {100 * share:g} %").encode(x)
        text = seen.mark_text(color=TEXT, align="right", dx=-5, fontSize=11, baseline="top")
        layers += [
            seen.mark_rule(color=TEXT, strokeDash=[4, 3]),
            text.encode(text="label:N", y=alt.value(2)),
        ]
        through = f"One power law through the first {100 * share:g} % of training"
    off = claimed / truth - 1
    side = "too low" if off < 0 else "too high"
    return figure(
        panel(layers, x, height=HEIGHT + 60),
        f"{through} claims a final loss of {claimed:.2f} for {curve}, {100 * abs(off):.0f} % {side}",
        f"dots: loss of {curve}; it came to {truth:.2f}",
        f"Loss of {curve} against step, both logarithmic. {through} claims {claimed:.3f} at step {last:,.0f}; "
        f"the loss came to {truth:.3f}.",
    )


def hand_parameters(profile: pl.DataFrame) -> list[alt.Parameter]:
    """The numbers of the break at the cursor's place, a row of `analysis.fits.break_profile`."""
    rows = alt.param(name="hand_rows", value=profile.select(**COLUMNS).to_dicts())
    return [rows, *(alt.param(name=name, expr=f"hand_rows[{AT}].{name}") for name in COLUMNS)]


def break_profile(profile: pl.DataFrame, best_step: float, cursor: Cursor | None = None) -> alt.LayerChart:
    """The error that is left with the break put at each step: a dot at the best, a second at the cursor.

    `profile`: step_at_break, rsle, as `analysis.fits.break_profile` gives them.
    """
    otherwise = "the frame has no rows; give one per step at which a break was put"
    profile = need_rows(profile, ["step_at_break", "rsle"], "break profile", otherwise)
    rows = profile.sort("step_at_break").select(x="step_at_break", rsle="rsle")
    least = least_error(profile, best_step)
    near = rows.filter(pl.col("rsle") <= 1.1 * least)["x"]
    x = step_axis(rows["x"])
    y = (
        alt.Y("rsle:Q", title=["RMS error", "of log loss"])
        .scale(domain=[0, rows["rsle"].max() * 1.12], nice=False)
        .axis(tickCount=5)
    )
    tips = [alt.Tooltip("x:Q", title="break at step", format=",.0f"), alt.Tooltip("rsle:Q", format=".4f")]
    best = one(x=best_step, rsle=least, label=f"best: {best_step:,.0f}")
    beside = {"align": "right", "dx": -11} if best_step > rows["x"].median() else {"align": "left", "dx": 11}
    label = {"dy": 14, "baseline": "top"} if least > 0.17 * rows["rsle"].max() else beside  # clear of the axis
    layers = [
        alt.Chart(rows).mark_line(color=GREY, strokeWidth=2).encode(x, y, tooltip=tips),
        best.mark_point(color=BEST, filled=True, size=110, opacity=1).encode(x, y, tooltip=tips),
        best.mark_text(color=TEXT, fontSize=11, **label).encode(x, y, text="label:N"),
    ]
    shown: str | list[str | Value] = f"The error is least with the break at step {best_step:,.0f}"
    within = f"within a tenth of it from step {near.min():,.0f} to {near.max():,.0f}" if len(near) > 1 else ""
    if cursor is not None:
        at = one().transform_calculate(x="hand_step", rsle="hand_rsle")
        layers += [
            at.mark_rule(color=HAND, strokeDash=[4, 3]).encode(x),
            at.mark_point(color=HAND, filled=True, size=110, opacity=1, shape="diamond").encode(x, y, tooltip=tips),
            strips(rows.with_columns(step="x"), x, cursor, tips[1:]),
        ]
        times = f"hand_rsle / {least!r}"
        shown = [
            "A break at step ",
            HAND_STEP,
            " leaves ",
            Value(f"format({times}, {times} < 1.095 ? '.2f' : '.1f')", "100.0"),
            f" times the least error, at {best_step:,.0f}",
        ]
    said = f"Error against the step of the break. Least at step {best_step:,.0f}: {least:.3g}; {within}."
    return figure(panel(layers, x, height=80), shown, within, said.replace("; .", "."))


def broken_by_hand(points: pl.DataFrame, best: Mapping[str, float], cursor: Cursor) -> alt.LayerChart:
    """One curve with a break that was put somewhere by hand, and, thin, with the best one.

    `points`: step, loss of one curve. `best`: a row of `analysis.fits.break_profile`, or of `fits_table`. The break is
    that of `hand_parameters`.
    """
    need_columns(points, ["step", "loss"], "break by hand: points")
    name = str(points["curve"][0]) if "curve" in points.columns and len(points) else "the curve"
    data = _thinned(points.with_columns(curve=pl.lit(name)), name)
    first, last = data["x"].min(), data["x"].max()
    low, high = min(data["loss"].min(), best["loss_at_break"]) / 1.05, data["loss"].max() * 1.05
    reach = {
        "domainMin": alt.ExprRef(f"min({low}, hand_loss / 1.05)"),
        "domainMax": alt.ExprRef(f"max({high}, hand_loss * 1.05)"),
    }
    x = step_axis(_ends(data))
    y = (
        alt.Y("loss:Q", title=["loss (nats per predicted", "token, log scale)"])
        .scale(type="log", nice=False, **reach)
        .axis(tickCount=6, format="~g")
    )
    grid = pl.DataFrame({"x": [first * (last / first) ** (i / 159) for i in range(160)]})
    rate = "(datum.x < hand_step ? hand_before : hand_after)"
    drop = "log(datum.x / hand_step) / hand_width"
    bend = f"(max({drop}, 0) + log(1 + exp(-abs({drop}))))"  # log(1 + exp(drop)), without overflow
    smooth = (
        f"hand_loss * exp(-hand_before * log(datum.x / hand_step) + hand_width * (hand_before - hand_after) * {bend})"
    )
    by_hand = alt.Chart(grid).transform_calculate(loss=smooth).encode(x, y)
    pieces = alt.Chart(alt.Data(values=[{"end": 0}, {"end": 1}, {"end": 2}]))
    pieces = pieces.transform_calculate(x=f"[{first}, hand_step, {last}][datum.end]")
    pieces = pieces.transform_calculate(loss=f"hand_loss * pow(datum.x / hand_step, -{rate})").encode(
        x, y, order="end:Q"
    )
    at = one().transform_calculate(x="hand_step", loss="hand_loss").encode(x, y)
    fit = alt.Chart(fitted_line({**best, "curve": name}, first, last)).mark_line(color=BEST, strokeWidth=1.3, clip=True)
    meet = one(x=best["step_at_break"], loss=best["loss_at_break"]).encode(x, y, tooltip=TIPS)
    layers = [
        _dots(data, x, y),
        fit.encode(x, y),
        meet.mark_point(color=BEST, filled=True, size=70, opacity=1, clip=True),
        by_hand.mark_line(color=HAND, strokeWidth=2.2, clip=True),
        pieces.mark_line(color=HAND, strokeWidth=1.2, strokeDash=[5, 4], clip=True),
        at.mark_point(color=HAND, filled=True, size=110, shape="diamond", opacity=1, clip=True),
        strips(data.select("x", "loss", step="x").unique("x", maintain_order=True), x, cursor, TIPS[1:]),
    ]
    return figure(
        panel(layers, x, height=150),
        [
            f"{name} with a break put at step ",
            HAND_STEP,
            ": rate ",
            Value("format(hand_before, '.3r')", "−0.0111"),
            " → ",
            Value("format(hand_after, '.3r')", "−0.0111"),
        ],
        [
            "orange: the curve with this break, dashed: the two power laws it joins",
            f"blue: the best break, step {best['step_at_break']:,.0f}, rate "
            f"{best['rate_before_break']:.3g} → {best['rate_after_break']:.3g}",
        ],
        f"Loss of {name} against step, both logarithmic, with a break put by hand and the best break, at step "
        f"{best['step_at_break']:,.0f}, loss {best['loss_at_break']:.3f}.",
    )


def _dots(data: pl.DataFrame, x: alt.X, y: alt.Y) -> alt.Chart:
    dots = alt.Chart(data).mark_point(size=16, filled=True, color=GREY, opacity=0.45)
    return dots.encode(x, y, tooltip=TIPS)


def _loss_axis(losses: Iterable[float]) -> alt.Y:
    """The logarithmic axis of a field `loss`, with few ticks that can be read."""
    losses = list(losses)
    low, high = min(losses) / 1.08, max(losses) * 1.08
    return alt.Y("loss:Q", title=LOSS, scale=log_scale(low, high)).axis(values=log_ticks(low, high), format="~g")


def _thinned(points: pl.DataFrame, name: str) -> pl.DataFrame:
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
    sides = {"before": "first_step", "after": "last_step"}
    rows = [
        (row["curve"], step, loss * (step / at) ** -row[f"rate_{side}_break"], side)
        for side, end in sides.items()
        for step in sorted((row[end], at))
    ]
    return pl.DataFrame(rows, {**POINT, "part": pl.String}, orient="row")


def _mark(row: Mapping) -> dict:
    """Where a fit breaks, with its interval."""
    bounds = {"low": row.get("step_at_break_low"), "high": row.get("step_at_break_high")}
    at = {"x": row["step_at_break"], "loss": row["loss_at_break"]}
    return {"curve": row["curve"], **at, **bounds, "verdict": row["verdict"]}


def _ends(data: pl.DataFrame) -> list[float]:
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
