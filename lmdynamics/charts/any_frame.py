"""Any frame over training as curves: one for each value of the columns of text, with intervals where there are any."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.analysis.intervals import need_columns, need_numbers, normal_interval
from lmdynamics.analysis.onsets import Onset
from lmdynamics.charts.axes import on_step_axis, onset_sentences, step_axis, steps_of, undated
from lmdynamics.charts.lines import Line, panel
from lmdynamics.charts.theme import CONDITIONS, condition_colours, figure
from lmdynamics.errors import UserError

NOT_VALUES = {"step", "low", "high", "stderr"}


def lines(
    frame: pl.DataFrame,
    value: str | None = None,
    *,
    by: str | Sequence[str] | None = None,
    onsets: Sequence[Onset] = (),
    title: str = "",
    percent: bool = False,
) -> alt.LayerChart:
    """Curves of a column over training, on a logarithmic step axis, from a frame such as any trace.

    `frame`: step and `value` (by default the only column of fractional numbers). A band shows `low` and `high`, or 1.96
    times `stderr` on each side; these belong to the default column. `by`: columns whose values each make a curve (by
    default all columns of text). `onsets` are drawn as bands. `percent`: the values are shares.

    Raises
    ------
    UserError
        If the columns are missing or do not tell what to draw, a curve has two rows at one step, or there are more
        curves than colours.
    """
    need_columns(frame, ["step", *([value] if value else [])], "lines")
    need_numbers(frame, ["step"], "lines")
    default = _fractional(frame)
    value = value or _only_value(frame, default)
    schema = frame.schema
    for name in ("step", value):
        if not schema[name].is_numeric():
            raise UserError(f"lines: the column {name!r} holds no numbers")
    keys = [by] if isinstance(by, str) else list(by or [])
    keys = keys or [name for name, kind in schema.items() if kind in (pl.String, pl.Categorical, pl.Enum)]
    need_columns(frame, keys, "lines: by")
    if nested := [key for key in keys if schema[key].is_nested()]:
        raise UserError(f"lines: the column {nested[0]!r} holds lists; name columns of single values with by=")
    curve = pl.concat_str([pl.col(key).cast(pl.String).fill_null("–") for key in keys], separator=", ")
    # named anew: Vega would read a name such as eval.loss as a path
    columns = {"curve": curve if keys else pl.lit(value), "value": _number(value), **_bounds(frame, value, default)}
    rows = on_step_axis(frame.select("step", **columns))
    finite = rows.filter(pl.col("value").is_finite())
    if finite.is_empty():
        raise UserError(f"lines: no row has a number in {value!r}")
    if (repeated := finite.select("curve", "step").is_duplicated()).any():
        name, step = finite.filter(repeated).select("curve", "step").row(0)
        others = [key for key, kind in schema.items() if kind.is_integer() and key != "step" and key not in keys]
        hint = f", such as by={[*keys, *others]}" if others else ""
        raise UserError(f"lines: {name} has several rows at step {step}; name the columns of a curve with by={hint}")
    names = finite["curve"].unique(maintain_order=True).to_list()
    if len(names) > len(CONDITIONS):
        raise UserError(f"lines: {len(names)} curves, and only {len(CONDITIONS)} colours; filter the frame first")
    bounded = finite.drop_nulls(["low", "high"]).height if "low" in finite.columns else 0
    axis = step_axis(steps_of(finite))
    line = Line("value", value, "curve", condition_colours(names), percent=percent, points=16)
    left_out = len(rows) - len(finite)
    caption = [
        "" if bounded else "no interval",
        "band: 95 % interval" + ", where one was given" * (bounded < len(finite)) if bounded else "",
        f"{left_out} of {len(rows)} rows have no number and are left out" if left_out else "",
    ]
    ends = [finite.filter(curve=name).select("step", "value") for name in names]
    texts = [
        f"{name}: {points['value'][0]:.3g} at step {points['step'][0]:,}, {points['value'][-1]:.3g} at step "
        f"{points['step'][-1]:,}"
        for name, points in zip(names, ends, strict=True)
    ]
    description = f"Curves of {value} over training, on a logarithmic axis of steps. {'; '.join(texts)}. "
    return figure(
        panel(line.layers(finite, axis), axis, onsets=onsets),
        title or f"{value} over training",
        [caption, *undated(onsets)],
        (description + onset_sentences(onsets)).strip(),
    )


def _number(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64).fill_nan(None)


def _bounds(frame: pl.DataFrame, value: str, default: list[str]) -> dict[str, pl.Expr]:
    """Ends of the interval of `value`; of a column that is not the frame's default there is none."""
    if default and value not in default:
        return {}
    numeric = {name for name, kind in frame.schema.items() if kind.is_numeric()}
    if {"low", "high"} <= numeric:
        return {"low": _number("low"), "high": _number("high")}
    if "stderr" in numeric:
        return dict(zip(("low", "high"), normal_interval(_number(value), _number("stderr")), strict=True))
    return {}


def _fractional(frame: pl.DataFrame) -> list[str]:
    kinds = {name: kind for name, kind in frame.schema.items() if name not in NOT_VALUES}
    return [name for name, kind in kinds.items() if kind.is_float() or kind.is_decimal()]


def _only_value(frame: pl.DataFrame, candidates: list[str]) -> str:
    if len(candidates) != 1:
        numeric = [name for name, kind in frame.schema.items() if kind.is_numeric() and name not in NOT_VALUES]
        options = ", ".join(candidates or numeric)
        raise UserError(f"lines: which column holds the values? Name it with value=, one of: {options}")
    return candidates[0]
