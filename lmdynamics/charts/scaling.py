"""Loss curves against model size: the break, the rate after it, the parts of each gain, and early predictions.

Mircea et al. 2025 (arXiv 2506.05447); computed by `analysis.fits`.
"""

import math
from collections.abc import Iterable

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import log_ticks
from lmdynamics.charts.conditions import capital, count
from lmdynamics.charts.encodings import head, interval, need_rows, numbers, rule_at, single_row
from lmdynamics.charts.lines import colour_by, log_scale
from lmdynamics.charts.text import wrapped
from lmdynamics.charts.theme import BLUE, GREEN, GREY, HEIGHT, ORANGE, TEXT, VERMILION, WIDTH, figure
from lmdynamics.errors import UserError

PANELS = {  # a quantity: (title of its axis, its name, words if it falls and if it rises)
    "loss_at_break": ("loss at the break, L_d (nats)", "loss at the break", "lower", "higher"),
    "rate_after_break": ("rate after the break, r_d", "fall after it", "slower", "faster"),
    "final_loss": ("final loss (nats)", "final loss", "lower", "higher"),
}
PARTS = {"L_d": BLUE, "r_d": ORANGE, "t_d": GREEN, "not explained": GREY}
METHODS = {"one break": BLUE, "one power law": VERMILION, "last loss seen": GREY}
CLOSE = 2.0  # percent: the largest error of a good early prediction


def size_trends(
    rows: pl.DataFrame, laws: pl.DataFrame, published: pl.DataFrame | None = None, title: str = ""
) -> alt.HConcatChart:
    """L_d, r_d and the final loss against the number of parameters, each with its power law; all axes logarithmic.

    `rows`, one per curve: size, parameters, loss_at_break, rate_after_break, final_loss, and perhaps 95 % intervals in
    columns that end in `_low` and `_high`. `laws`: rows of `analysis.fits.power_laws`. `published`: parameters and the
    three quantities, drawn in grey. Values that are not positive are left out, and counted in the caption. `title`: by
    default what the power laws say.
    """
    context = "trends over sizes"
    rows = need_rows(
        rows, ["size", "parameters", *PANELS], context, "the frame has no rows; fit curves of some sizes first"
    )
    need_columns(laws, ["quantity", "a", "exponent", "low", "high"], f"{context}: laws")
    if published is not None:
        need_columns(published, ["parameters", *PANELS], f"{context}: published")
    law = {row["quantity"]: row for row in laws.iter_rows(named=True)}
    sizes = [*rows["parameters"], *(published["parameters"] if published is not None else [])]
    panels = [_panel(rows, quantity, law.get(quantity), published, sizes) for quantity in PANELS]
    left_out = sum(missing for _, missing, _ in panels)
    findings = [text for _, _, text in panels if text]
    caption = [
        "dots: curves, with 95 % intervals as far as the panel reaches",
        "line: fitted power of size",
        "grey: published" if published is not None else "",
        f"{count(left_out, 'value')} missing or not above 0 left out" if left_out else "",
    ]
    return figure(
        alt.hconcat(*(panel for panel, _, _ in panels), spacing=78, bounds="flush"),
        title
        or (f"Larger models: {', '.join(findings)}" if findings else "Too few sizes or seeds to test what size does"),
        [caption],
        f"Against the number of parameters, {count(rows['size'].n_unique(), 'size')}: "
        + "; ".join(f"{PANELS[name][1]}, {_exponent(law.get(name))}" for name in PANELS)
        + ".",
    )


def gain_parts(parts: pl.DataFrame) -> alt.TopLevelMixin:
    """The contribution of each part of the fit to the gain from one size to the next, as stacked bars.

    `parts`: smaller, larger, part, gain (log loss), rows of `analysis.fits.split_gains`; with a column `source`, a
    panel for each.
    """
    no_rows = "the frame has no rows; give fits of two sizes or more"
    rows = need_rows(parts, ["smaller", "larger", "part", "gain"], "parts of a gain", no_rows)
    rows = rows.with_columns(pair=pl.format("{} → {}", "smaller", "larger"))
    if unknown := [part for part in rows["part"].unique() if part not in PARTS]:
        raise UserError(f"parts of a gain: there is no part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    order = {name: i for i, name in enumerate(PARTS)}
    rows = rows.with_columns(order=pl.col("part").replace_strict(order))
    y = alt.Y("pair:N", title=None, sort=None).axis(labelLimit=200, ticks=False, domain=False)
    x = alt.X("sum(gain):Q", title="gain in log loss from the smaller to the larger model").axis(tickCount=6)
    key = alt.Legend(orient="bottom", symbolType="square")
    colour = alt.Color("part:N", title=None, legend=key).scale(domain=list(PARTS), range=list(PARTS.values()))
    tips = ["pair:N", "part:N", *numbers(".4f", "gain")]
    data = alt.Chart(rows)
    bars = data.mark_bar(height=16).encode(x.stack("zero"), y, colour, order="order:O", tooltip=tips)
    zero = data.mark_rule(color=TEXT).encode(x=alt.datum(0))  # of the same data: a facet needs that
    total = data.mark_tick(color=TEXT, thickness=2.5, size=24).encode(
        x, y, tooltip=["pair:N", *numbers(".4f", "sum(gain)")]
    )
    chart = alt.layer(bars, zero, total).properties(width=WIDTH, height=alt.Step(30))
    sources = rows["source"].unique(maintain_order=True).to_list() if "source" in rows.columns else [None]
    texts = [_shares(rows if source is None else rows.filter(pl.col("source") == source)) for source in sources]
    if len(sources) > 1:
        panel = alt.Row(
            "source:N", title=None, sort=sources, header=alt.Header(orient="top", labelAnchor="start", labelFontSize=13)
        )
        chart = chart.facet(row=panel).resolve_scale(y="independent")
    caption = [f"{source}: {text[0].lower()}{text[1:]}" for source, text in zip(sources[1:], texts[1:], strict=True)]
    return figure(
        chart,
        f"{sources[0]}: {texts[0]}" if len(sources) > 1 else capital(texts[0]),
        [*caption, "mark: gain measured, the sum of the parts"],
        "Parts of the gain in log loss with size. " + " ".join(_sentences(rows)),
    )


def early_prediction(rows: pl.DataFrame) -> alt.LayerChart:
    """The error of the final loss predicted from the first part of training, for each method.

    `rows`: curve, share, method, error (log of predicted / measured), from `analysis.fits.predict_early`. Lines are
    means over curves.
    """
    no_rows = "no curve could be predicted; log more often, or take larger shares"
    columns, finite = ["curve", "share", "method", "error"], pl.col("error").is_finite()
    rows = need_rows(rows, columns, "early prediction", no_rows, finite)
    methods = [name for name in METHODS if name in rows["method"]]
    rows = rows.filter(pl.col("method").is_in(methods)).select(
        "curve", "method", x=100 * pl.col("share"), off=100 * (pl.col("error").exp() - 1)
    )
    means = rows.group_by("method", "x", maintain_order=True).agg(pl.col("off").mean(), curves=pl.len())
    colour = colour_by("method", {name: METHODS[name] for name in methods}, legend=True)
    shares = rows["x"].unique().sort().to_list()
    x = (
        alt.X("x:Q", title="share of training seen (%)")
        .axis(values=shares, grid=False)
        .scale(domain=[0, shares[-1] * 1.05], nice=False)
    )
    y = alt.Y("off:Q", title="error of the predicted final loss (%)").axis(
        tickCount=7, labelExpr="datum.value == 0 ? '0' : format(datum.value, '+,~r')"
    )
    tips = ["method:N", alt.Tooltip("x:Q", title="share (%)"), alt.Tooltip("off:Q", title="error (%)", format="+.2f")]
    layers = [
        single_row(off=-CLOSE, to=CLOSE).mark_rect(color=GREY, opacity=0.15).encode(alt.Y("off:Q"), alt.Y2("to:Q")),
        rule_at(y, 0, strokeDash=[6, 4]),
        alt.Chart(means).mark_line(strokeWidth=2.2).encode(x, y, colour, tooltip=[*tips, "curves:Q"]),
        alt.Chart(rows).mark_point(filled=True, size=40, opacity=0.7).encode(x, y, colour, tooltip=["curve:N", *tips]),
    ]
    errors = rows.group_by("method", "x").agg(pl.col("off").abs().max())
    worst = {(method, share): error for method, share, error in errors.iter_rows()}
    title = _prediction_title(worst, methods, shares, rows["curve"].n_unique())
    return figure(
        alt.layer(*layers).properties(width=WIDTH, height=HEIGHT),
        title,
        f"line: mean over curves; dots: curves; band: within {CLOSE:g} %",
        f"Error of the final loss as predicted early. {title}.",
    )


def _panel(rows, quantity: str, law: dict | None, published, sizes: Iterable[float]) -> tuple[alt.LayerChart, int, str]:
    """One quantity against size; the number of values that could not be drawn; the law in words."""
    title, name, falling, rising = PANELS[quantity]
    bounds = [f"{quantity}_low", f"{quantity}_high"]
    interval_columns = [pl.col(bound) if bound in rows.columns else pl.lit(None, pl.Float64) for bound in bounds]
    seed = ["seed"] if "seed" in rows.columns else []
    data = rows.select(
        "size", *seed, x="parameters", y=quantity, low=interval_columns[0], high=interval_columns[1]
    ).with_columns(pl.col("x", "y", "low", "high").cast(pl.Float64))
    shown = data.filter(pl.col("y").is_finite() & (pl.col("y") > 0))
    points = None
    if published is not None:
        points = published.select(x="parameters", y=quantity).cast(pl.Float64).filter(pl.col("y") > 0)
    ys = [*shown["y"], *(points["y"] if points is not None else [])] or [1.0]
    floor, top = min(ys) / 1.5, max(ys) * 1.5
    inside = [*ys, *(v for v in (*shown["low"].drop_nulls(), *shown["high"].drop_nulls()) if floor <= v <= top)]
    low, high = min(inside) / 1.04, max(inside) * 1.04
    x_low, x_high = min(sizes) / 1.5, max(sizes) * 1.5
    size_ticks = {"values": _size_ticks(x_low, x_high), "labelExpr": "replace(format(datum.value, '~s'), 'G', 'B')"}
    x = alt.X("x:Q", title="parameters", scale=log_scale(x_low, x_high), axis=alt.Axis(grid=False, **size_ticks))
    y = alt.Y("y:Q", title=title, scale=log_scale(low, high))
    y = y.axis(values=log_ticks(low, high / 1.03, 5), format="~g")
    tips = ["size:N", *(f"{name}:N" for name in seed), alt.Tooltip("x:Q", title="parameters", format=",.0f")]
    tips.append(alt.Tooltip("y:Q", title=name, format=".4g"))
    layers = []
    if points is not None and len(points):
        layers.append(alt.Chart(points).mark_point(filled=True, color=GREY, size=55, opacity=0.8).encode(x, y))
    clipped = shown.with_columns(pl.col("low").clip(low), pl.col("high").clip(upper_bound=high))
    layers += interval(clipped, y, x, color=BLUE, strokeWidth=1.5, opacity=0.6)
    if law and law["exponent"] is not None and len(shown):
        line = pl.DataFrame({"x": [shown["x"].min(), shown["x"].max()]})
        line = line.with_columns(y=law["a"] * pl.col("x") ** law["exponent"])
        layers.append(alt.Chart(line).mark_line(color=BLUE, strokeWidth=1.8, clip=True).encode(x, y))
    layers.append(alt.Chart(shown).mark_point(filled=True, color=BLUE, size=60, opacity=0.9).encode(x, y, tooltip=tips))
    if not law or law["exponent"] is None:
        finding = f"{name} not known"
    elif law["low"] is None:
        finding = ""
    elif law["low"] <= 0 <= law["high"]:
        finding = f"{name}: undecided over {law['sizes']} sizes"
    else:
        finding = f"{falling if law['exponent'] < 0 else rising} {name}"
    title = head(wrapped(_exponent(law), 240), frame="group", offset=8)
    return alt.layer(*layers).properties(width=180, height=200, title=title), len(data) - len(shown), finding


def _size_ticks(low: float, high: float) -> list[float]:
    """1, 3, 10 … million parameters, or powers of ten if the axis spans a factor of 100 or more."""
    sizes = (1, 3) if high / low < 100 else (1,)
    ticks = [m * 10.0**e for e in range(13) for m in sizes if low <= m * 10.0**e <= high]
    return ticks if len(ticks) > 1 else log_ticks(low, high, 4)


def _exponent(law: dict | None) -> str:
    if not law or law["exponent"] is None:
        return "too few curves for a power law"
    if law["low"] is None:
        return f"exponent {law['exponent']:.2f}, too few sizes for an interval".replace("-", "−")
    return f"exponent {law['exponent']:.2f} [{law['low']:.2f}, {law['high']:.2f}]".replace("-", "−")


def _shares(rows: pl.DataFrame) -> str:
    """The sums of the parts from the smallest to the largest model, in words."""
    sums = {part: rows.filter(pl.col("part") == part)["gain"].sum() for part in PARTS}
    total = sum(sums.values())
    parts = ", ".join(
        f"{gain:.2f} {part if part == 'not explained' else 'from ' + part}"
        for part, gain in sums.items()
        if abs(gain) >= 0.005
    )
    verb = "falls" if total > 0 else "rises"
    text = f"from {rows['smaller'][0]} to {rows['larger'][-1]} log loss {verb} by {abs(total):.2f}: {parts}"
    return text.replace("-", "−")


def _sentences(rows: pl.DataFrame) -> list[str]:
    key = ["source", "pair"] if "source" in rows.columns else ["pair"]
    return [
        f"{', '.join(map(str, name))}: "
        + ", ".join(f"{row['part']} {row['gain']:+.3f}" for row in part.iter_rows(named=True))
        + "."
        for name, part in rows.group_by(key, maintain_order=True)
    ]


def _prediction_title(worst: dict, methods: list[str], shares: list[float], curves: int) -> str:
    """The share of training from which the fit with one break is close for every curve, and its control's error."""
    fit, control = "one break", "last loss seen"
    if fit not in methods:
        raise UserError(f"early prediction: there are no rows of the method {fit!r}; methods: {', '.join(methods)}")
    close = [
        share
        for share in shares
        if all(worst.get((fit, later), math.inf) <= CLOSE for later in shares if later >= share)
    ]
    scope = "the curve" if curves == 1 else f"all {curves} curves"
    share = close[0] if close else shares[-1]
    note = f"; the {control} is off by up to {worst[control, share]:.1f} %" if (control, share) in worst else ""
    if close:
        note = f"{note} there" if note else ""
        return f"From {share:g} % of training on, one break is within {CLOSE:g} % of the final loss for {scope}{note}"
    if (fit, share) not in worst:
        return f"One break cannot be fitted to the first {share:g} % of training{note}"
    return f"Even from {share:g} % of training, one break is off by up to {worst[fit, share]:.1f} %{note}"
