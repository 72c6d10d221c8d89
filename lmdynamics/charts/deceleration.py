"""Loss curves in log-log space: their breaks, the error of other breaks, and the prediction of one power law.

Mircea et al. 2025 (arXiv 2506.05447). A fit is drawn from columns of `analysis.fits.fits_table`: with u = log(t / t_d),
log L = log L_d - c0 u - c1 f1 log(1 + exp(u / f1)), where L_d is `loss_at_break`, t_d `step_at_break`, c0
`rate_before_break`, c0 + c1 = r_d `rate_after_break`. The two power laws meet at (t_d, L_d), off the smooth curve.

`manual_break` and, optionally, `break_profile` follow a cursor over the rows of a profile, see `manual_parameters`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.deceleration import LOCATED, headline
from lmdynamics.analysis.fits import fitted_line, least_error, power_law_line
from lmdynamics.analysis.intervals import need_columns, with_interval
from lmdynamics.charts.axes import SLIDER, Cursor, log_ticks, step_axis, strips
from lmdynamics.charts.encodings import need_rows, single_row
from lmdynamics.charts.lines import colour_by, log_scale, panel
from lmdynamics.charts.text import Value
from lmdynamics.charts.theme import BLUE, GREY, HEIGHT, TEXT, VERMILION, condition_colours, figure
from lmdynamics.errors import UserError

LOSS = "loss (nats per predicted token, log scale)"
SHAPE = ["loss_at_break", "step_at_break", "rate_before_break", "rate_after_break", "f1"]
MAX_POINTS = 300  # drawn of one curve, evenly spaced in log step
CLAIMS = {"one power law": VERMILION, "one break": BLUE}
POINT = {"curve": pl.String, "x": pl.Float64, "loss": pl.Float64}
MARK = {**POINT, "low": pl.Float64, "high": pl.Float64, "verdict": pl.String}
TIPS = [alt.Tooltip("x:Q", title="step", format=",.0f"), alt.Tooltip("loss:Q", format=".4f")]
USER, BEST = VERMILION, BLUE
USER_STEP = Value("format(hand_step, ',.0f')")
COLUMNS = {  # parameters of the views, and the columns of a profile that they take
    "hand_step": "step_at_break",
    "hand_loss": "loss_at_break",
    "hand_before": "rate_before_break",
    "hand_after": "rate_after_break",
    "hand_width": "f1",
    "hand_rsle": "rsle",
}


def deceleration(points: pl.DataFrame, fits: pl.DataFrame, *, curves: Sequence[str] | None = None) -> alt.LayerChart:
    """Loss curves with one smooth break each, the two power laws it joins, and its position; both axes logarithmic.

    `points`: curve, step, loss, as fitted. `fits`: rows of `fits_table`. `curves` chooses up to 8 of them, in this
    order. The interval of the break is a band for one curve, a bar for several; a fit without a located break has no
    marks.
    """
    need_columns(points, ["curve", "step", "loss"], "deceleration: points")
    need_columns(fits, ["curve", "verdict", *SHAPE, "first_step", "last_step"], "deceleration: fits")
    names = list(dict.fromkeys(points["curve"] if curves is None else curves))
    if not names:
        raise UserError("deceleration: there is no curve to draw; give points of at least one")
    colours = condition_colours(names)
    data = pl.concat([pl.DataFrame(schema=POINT), *(_sample_points(points, name) for name in names)])
    rows = {row["curve"]: row for row in fits.iter_rows(named=True)}
    if missing := [name for name in names if name not in rows]:
        raise UserError(f"deceleration: there is no fit of {missing[0]!r}; fits: {', '.join(map(str, rows)) or 'none'}")
    fitted = [rows[name] for name in names if rows[name]["step_at_break"] is not None]
    located = [row for row in fitted if row["verdict"] in LOCATED]
    x, y = step_axis(_ends(data)), _loss_axis(data["loss"])
    colour = colour_by("curve", colours, columns=5)
    tips = ["curve:N", *TIPS]
    layers = [alt.Chart(data).mark_point(size=16, filled=True, opacity=0.35).encode(x, y, colour, tooltip=tips)]
    if fitted:
        smooth = pl.concat([verdict_line(row, points) for row in fitted])
        layers.append(alt.Chart(smooth).mark_line(strokeWidth=1.8).encode(x, y, colour))
    if located:
        marks = pl.DataFrame([_mark(row) for row in located], MARK)
        power_laws = pl.concat([_power_laws(row) for row in located])
        if (bounded := marks.drop_nulls(["low", "high"])).height:
            intervals = alt.Chart(bounded).encode(alt.X("low:Q"), alt.X2("high:Q"), colour)
            if len(names) == 1:
                layers.insert(0, intervals.mark_rect(opacity=0.12, clip=True))
            else:
                layers.append(intervals.mark_rule(strokeWidth=2.5, clip=True).encode(y))
        dashed = alt.Chart(power_laws).mark_line(strokeWidth=1.2, strokeDash=[5, 4], clip=True)
        meeting_points = alt.Chart(marks).mark_point(filled=True, size=110, opacity=1, stroke="white", strokeWidth=1)
        layers += [
            dashed.encode(x, y, colour, detail="part"),
            meeting_points.encode(x, y, colour, tooltip=[*tips, "verdict", "low", "high"]),
        ]
    lines = {"one power law" if row["verdict"] == "no break" else "one smooth break" for row in fitted}
    caption = ["dots: loss", f"line: fit with {' or '.join(sorted(lines, reverse=True))}" if fitted else ""]
    if located:
        mark = "band" if len(names) == 1 else "bar"
        caption += ["dashed: the two power laws it joins, and where they meet", f"{mark}: 95 % interval of that step"]
    reasons = [
        f"{row['curve']}: {headline(row['verdict'], row.get('caveat'))}, {row['reason']}"
        for row in map(rows.get, names)
        if row.get("reason")
    ]
    return figure(
        panel(layers, x, height=HEIGHT + 60),
        _title(names, [rows[name] for name in names]),
        [caption, _details(rows[names[0]]) if len(names) == 1 else ""],
        f"Loss against step, both logarithmic, for {', '.join(names)}. " + ". ".join(reasons) + ".",
    )


def power_law_claim(
    points: pl.DataFrame, lines: pl.DataFrame, *, curve: str, share: float | None = None
) -> alt.LayerChart:
    """The final loss predicted by one power law, fitted to the first part of a curve, and the measured final loss.

    `points`: curve, step, loss. `lines`: curve, step, loss, method: `one power law`, up to the last step, and
    `one break`, for comparison. `share`: of the steps, used to fit the power law; a dashed line marks its end.
    """
    need_columns(points, ["curve", "step", "loss"], "one power law's claim: points")
    need_columns(lines, ["curve", "step", "loss", "method"], "one power law's claim: lines")
    data = _sample_points(points, curve)
    curve_lines = lines.filter(pl.col("curve") == curve).sort("step")
    if missing := [name for name in CLAIMS if name not in curve_lines["method"]]:
        raise UserError(
            f"one power law's claim: lines has no {missing[0]!r} of {curve!r}; it needs {' and '.join(CLAIMS)}"
        )
    sampled = pl.concat([_sample_line(curve_lines.filter(pl.col("method") == name)) for name in CLAIMS])
    last, truth = data["x"][-1], data["loss"][-1]
    claimed = sampled.filter(pl.col("method") == "one power law")["loss"][-1]
    x, y = step_axis(_ends(data)), _loss_axis([*data["loss"], *sampled["loss"]])
    colour = colour_by("method", CLAIMS)
    labels = [(claimed, f"claimed: {claimed:.2f}", VERMILION), (truth, f"measured: {truth:.2f}", TEXT)]
    layers = [
        _dots(data, x, y),
        alt.Chart(sampled).mark_line(strokeWidth=2.2).encode(x, y, colour, tooltip=["method:N", *TIPS]),
    ]
    for (loss, label, hue), side in zip(sorted(labels), ("top", "bottom"), strict=True):
        end = single_row(x=last, loss=loss, label=label).encode(x, y)
        alignment = {"baseline": "middle"} if abs(math.log(claimed / truth)) > 0.06 else {"baseline": side}
        layers += [
            end.mark_point(filled=True, size=80, color=hue, opacity=1),
            end.mark_text(align="left", dx=9, fontSize=12, color=TEXT, **alignment).encode(text="label:N"),
        ]
    subject = "One power law"
    if share is not None:
        boundary = single_row(x=share * last, label=f"seen: first {100 * share:g} %").encode(x)
        text = boundary.mark_text(color=TEXT, align="right", dx=-5, fontSize=11, baseline="top")
        layers += [
            boundary.mark_rule(color=TEXT, strokeDash=[4, 3]),
            text.encode(text="label:N", y=alt.value(2)),
        ]
        subject = f"One power law through the first {100 * share:g} % of training"
    error = claimed / truth - 1
    side = "too low" if error < 0 else "too high"
    return figure(
        panel(layers, x, height=HEIGHT + 60),
        f"{subject} claims a final loss of {claimed:.2f} for {curve}, {100 * abs(error):.0f} % {side}",
        f"dots: loss of {curve}; measured final loss: {truth:.2f}",
        f"Loss of {curve} against step, both logarithmic. {subject} claims {claimed:.3f} at step {last:,.0f}; "
        f"the measured loss is {truth:.3f}.",
    )


def manual_parameters(profile: pl.DataFrame) -> list[alt.Parameter]:
    """Chart parameters with the break at the cursor's place, a row of `analysis.fits.break_profile`."""
    rows = alt.param(name="hand_rows", value=profile.select(**COLUMNS).to_dicts())
    return [rows, *(alt.param(name=name, expr=f"hand_rows[{SLIDER}].{name}") for name in COLUMNS)]


def break_profile(profile: pl.DataFrame, best_step: float, cursor: Cursor | None = None) -> alt.LayerChart:
    """The error of the fit with the break at each step: a dot at the best step, a second one at the cursor.

    `profile`: step_at_break, rsle, from `analysis.fits.break_profile`.
    """
    no_rows = "the frame has no rows; give one per step of the break"
    profile = need_rows(profile, ["step_at_break", "rsle"], "break profile", no_rows)
    rows = profile.sort("step_at_break").select(x="step_at_break", rsle="rsle")
    lowest = least_error(profile, best_step)
    close = rows.filter(pl.col("rsle") <= 1.1 * lowest)["x"]
    x = step_axis(rows["x"])
    y = (
        alt.Y("rsle:Q", title=["RMS error", "of log loss"])
        .scale(domain=[0, rows["rsle"].max() * 1.12], nice=False)
        .axis(tickCount=5)
    )
    tips = [alt.Tooltip("x:Q", title="break at step", format=",.0f"), alt.Tooltip("rsle:Q", format=".4f")]
    best = single_row(x=best_step, rsle=lowest, label=f"best: {best_step:,.0f}")
    side = {"align": "right", "dx": -11} if best_step > rows["x"].median() else {"align": "left", "dx": 11}
    label = {"dy": 14, "baseline": "top"} if lowest > 0.17 * rows["rsle"].max() else side  # clear of the axis
    layers = [
        alt.Chart(rows).mark_line(color=GREY, strokeWidth=2).encode(x, y, tooltip=tips),
        best.mark_point(color=BEST, filled=True, size=110, opacity=1).encode(x, y, tooltip=tips),
        best.mark_text(color=TEXT, fontSize=11, **label).encode(x, y, text="label:N"),
    ]
    title: str | list[str | Value] = f"The error is least with the break at step {best_step:,.0f}"
    caption = f"within a tenth of it from step {close.min():,.0f} to {close.max():,.0f}" if len(close) > 1 else ""
    if cursor is not None:
        manual = single_row().transform_calculate(x="hand_step", rsle="hand_rsle")
        layers += [
            manual.mark_rule(color=USER, strokeDash=[4, 3]).encode(x),
            manual.mark_point(color=USER, filled=True, size=110, opacity=1, shape="diamond").encode(x, y, tooltip=tips),
            strips(rows.with_columns(step="x"), x, cursor, tips[1:]),
        ]
        ratio = f"hand_rsle / {lowest!r}"
        title = [
            "A break at step ",
            USER_STEP,
            " leaves ",
            Value(f"format({ratio}, {ratio} < 1.095 ? '.2f' : '.1f')", "100.0"),
            f" times the least error, at {best_step:,.0f}",
        ]
    description = f"Error against the step of the break. Least at step {best_step:,.0f}: {lowest:.3g}; {caption}."
    return figure(panel(layers, x, height=80), title, caption, description.replace("; .", "."))


def manual_break(points: pl.DataFrame, best: Mapping[str, float], cursor: Cursor) -> alt.LayerChart:
    """One curve with a break chosen by the reader and, as a thin line, with the best break.

    `points`: step, loss of one curve. `best`: a row of `analysis.fits.break_profile`, or of `fits_table`. The chosen
    break is that of `manual_parameters`.
    """
    need_columns(points, ["step", "loss"], "manual break: points")
    name = str(points["curve"][0]) if "curve" in points.columns and len(points) else "the curve"
    data = _sample_points(points.with_columns(curve=pl.lit(name)), name)
    first, last = data["x"].min(), data["x"].max()
    low, high = min(data["loss"].min(), best["loss_at_break"]) / 1.05, data["loss"].max() * 1.05
    limits = {
        "domainMin": alt.ExprRef(f"min({low}, hand_loss / 1.05)"),
        "domainMax": alt.ExprRef(f"max({high}, hand_loss * 1.05)"),
    }
    x = step_axis(_ends(data))
    y = (
        alt.Y("loss:Q", title=["loss (nats per predicted", "token, log scale)"])
        .scale(type="log", nice=False, **limits)
        .axis(tickCount=6, format="~g")
    )
    grid = pl.DataFrame({"x": [first * (last / first) ** (i / 159) for i in range(160)]})
    rate = "(datum.x < hand_step ? hand_before : hand_after)"
    drop = "log(datum.x / hand_step) / hand_width"
    bend = f"(max({drop}, 0) + log(1 + exp(-abs({drop}))))"  # log(1 + exp(drop)), without overflow
    smooth = (
        f"hand_loss * exp(-hand_before * log(datum.x / hand_step) + hand_width * (hand_before - hand_after) * {bend})"
    )
    smooth_line = alt.Chart(grid).transform_calculate(loss=smooth).encode(x, y)
    power_laws = alt.Chart(alt.Data(values=[{"end": 0}, {"end": 1}, {"end": 2}]))
    power_laws = power_laws.transform_calculate(x=f"[{first}, hand_step, {last}][datum.end]")
    power_laws = power_laws.transform_calculate(loss=f"hand_loss * pow(datum.x / hand_step, -{rate})").encode(
        x, y, order="end:Q"
    )
    manual = single_row().transform_calculate(x="hand_step", loss="hand_loss").encode(x, y)
    fit = alt.Chart(fitted_line({**best, "curve": name}, first, last)).mark_line(color=BEST, strokeWidth=1.3, clip=True)
    best_point = single_row(x=best["step_at_break"], loss=best["loss_at_break"]).encode(x, y, tooltip=TIPS)
    layers = [
        _dots(data, x, y),
        fit.encode(x, y),
        best_point.mark_point(color=BEST, filled=True, size=70, opacity=1, clip=True),
        smooth_line.mark_line(color=USER, strokeWidth=2.2, clip=True),
        power_laws.mark_line(color=USER, strokeWidth=1.2, strokeDash=[5, 4], clip=True),
        manual.mark_point(color=USER, filled=True, size=110, shape="diamond", opacity=1, clip=True),
        strips(data.select("x", "loss", step="x").unique("x", maintain_order=True), x, cursor, TIPS[1:]),
    ]
    return figure(
        panel(layers, x, height=150),
        [
            f"{name} with a break put at step ",
            USER_STEP,
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
        f"Loss of {name} against step, both logarithmic, with the chosen break and the best break, at step "
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


def _sample_points(points: pl.DataFrame, name: str) -> pl.DataFrame:
    """One curve's points, thinned to `MAX_POINTS`."""
    rows = thinned(points.filter(pl.col("curve") == name), MAX_POINTS)
    if rows.is_empty():
        known = ", ".join(map(str, points["curve"].unique(maintain_order=True))) or "none"
        raise UserError(f"there are no points of the curve {name!r} after step 0; curves: {known}")
    return rows


def thinned(points: pl.DataFrame, max_points: int) -> pl.DataFrame:
    """Points as curve, x, loss, by step: of a curve with more points, the last of each of `max_points` log bins."""
    rows = points.select("curve", x=pl.col("step").cast(pl.Float64), loss=pl.col("loss").cast(pl.Float64))
    rows = rows.filter((pl.col("x") > 0) & pl.col("loss").is_finite() & (pl.col("loss") > 0)).sort("x")
    log_step, low, high = pl.col("x").log(), pl.col("x").min().log(), pl.col("x").max().log()
    bins = ((log_step - low) / (high - low) * (max_points - 1)).floor().over("curve")
    number = pl.int_range(pl.len()).over("curve").cast(pl.Float64)
    chosen = pl.when(pl.len().over("curve") <= max_points).then(number).otherwise(bins)
    return rows.group_by("curve", chosen.alias("bin"), maintain_order=True).last().drop("bin")


def _sample_line(rows: pl.DataFrame) -> pl.DataFrame:
    """At most `MAX_POINTS` rows of a line, with its ends, as method, x, loss."""
    rows = rows.select("method", x=pl.col("step").cast(pl.Float64), loss=pl.col("loss").cast(pl.Float64))
    indices = sorted({round(i * (len(rows) - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)})
    return rows.filter(pl.col("x") > 0) if len(rows) <= MAX_POINTS else rows[indices].filter(pl.col("x") > 0)


def _power_laws(row: Mapping) -> pl.DataFrame:
    """The two power laws of a fit, each two points: curve, x, loss, part."""
    step_at_break, loss = row["step_at_break"], row["loss_at_break"]
    sides = {"before": "first_step", "after": "last_step"}
    rows = [
        (row["curve"], step, loss * (step / step_at_break) ** -row[f"rate_{side}_break"], side)
        for side, end in sides.items()
        for step in sorted((row[end], step_at_break))
    ]
    return pl.DataFrame(rows, {**POINT, "part": pl.String}, orient="row")


def _mark(row: Mapping) -> dict:
    """The break of a fit, with its interval."""
    bounds = {"low": row.get("step_at_break_low"), "high": row.get("step_at_break_high")}
    position = {"x": row["step_at_break"], "loss": row["loss_at_break"]}
    return {"curve": row["curve"], **position, **bounds, "verdict": row["verdict"]}


def verdict_line(row: Mapping, points: pl.DataFrame) -> pl.DataFrame:
    """The curve that a verdict stands for: one smooth break, or without a break one power law."""
    if row["verdict"] != "no break":
        return fitted_line(row, row["first_step"], row["last_step"])
    used = pl.col("step").is_between(row["first_step"], row["last_step"])
    return power_law_line(points.filter(pl.col("curve") == row["curve"], used))


def _ends(data: pl.DataFrame) -> list[float]:
    return [data["x"].min(), data["x"].max()]


def _title(names: list[str], rows: list[Mapping]) -> str:
    """The title: one curve's break with its interval and rates, or how many curves decelerate, and at what steps."""
    if len(rows) == 1:
        row, caveat = rows[0], rows[0].get("caveat")
        if row["verdict"] not in LOCATED:
            return f"{names[0]}: {headline(row['verdict'], caveat)}"
        verb = "breaks at the edge," if row["verdict"] == "break at the edge" else f"{row['verdict']} at"
        rates = f"rate {row['rate_before_break']:.3g} → {row['rate_after_break']:.3g}"
        return f"{names[0]} {verb} step {with_interval(row['step_at_break'], _bounds(row), ',.0f')}: {rates}" + (
            f" ({caveat})" if caveat else ""
        )
    slower = [row for row in rows if row["verdict"] == "decelerates"]
    unlocated = sum(row["verdict"] == "break not located" for row in rows)
    suffix = f"; the break of {unlocated} is not located" if unlocated else ""
    if not slower:
        return f"None of {len(rows)} curves decelerates{' at a known step' if unlocated else ''}{suffix}"
    count = f"All {len(rows)} curves decelerate" if len(slower) == len(rows) else (
        f"{len(slower)} of {len(rows)} curves decelerate{'s' if len(slower) == 1 else ''}"
    )  # fmt: skip
    caveats = Counter(row["caveat"] for row in slower if row.get("caveat"))
    suffix += "".join(f"; {caveat} ({number} of {len(slower)})" for caveat, number in caveats.items())
    bounds = [_bounds(row) for row in slower]
    if all(bounds):
        low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
        return f"{count}, between steps {low:,.0f} and {high:,.0f} (95 % intervals){suffix}"
    steps = sorted(row["step_at_break"] for row in slower)
    when = f"fitted step {steps[0]:,.0f}" if len(steps) == 1 else f"fitted steps {steps[0]:,.0f} to {steps[-1]:,.0f}"
    return f"{count}; {when}, without intervals{suffix}"


def _bounds(row: Mapping) -> tuple[float, float] | None:
    """The interval of the step of a break, if there is one."""
    low, high = row.get("step_at_break_low"), row.get("step_at_break_high")
    return None if low is None or high is None or not low < high else (low, high)


def _details(row: Mapping) -> str:
    """Caption for one curve: L_d and r_d with their intervals and alternative fits, or why no break was located."""
    if row["verdict"] not in LOCATED:
        return row.get("reason") or ""
    parts = []
    for name, column, style in (("L_d", "loss_at_break", ".2f"), ("r_d", "rate_after_break", ".3g")):
        bounds = row.get(f"{column}_low"), row.get(f"{column}_high")
        parts.append(f"{name} {with_interval(row[column], bounds, style)}")
    return "; ".join([", ".join(parts), *(row.get("reason") or "").split("; ")[1:]]).replace("-", "−")
