"""Heat maps: a grid of rows by checkpoints, and the colours of shares and of quantities with a sign."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.charts.theme import OPPOSED, SEQUENTIAL, WIDTH

ROUND = "format(datum.value, datum.value < 1000 ? 'd' : '.2~s')"  # 1024 -> 1k


def step_tiles(
    cells: pl.DataFrame, rows: Sequence[str], row: str = "part", *, widest: int = 34, tall: int | None = None
) -> tuple[alt.Chart, dict[str, int]]:
    """A grid of `rows` (of the column `row`) by steps, and its size in pixels; without marks and colours yet."""
    steps = cells["step"].unique().sort().to_list()
    width = max(10, min(widest, WIDTH // len(steps)))
    labelled = steps[:: max(1, -(-len(steps) // 14))]
    base = alt.Chart(cells).encode(
        alt.X("step:O", title="checkpoint (training step; log-spaced)").axis(
            values=labelled, labelAngle=0, labelExpr=ROUND, domain=False, ticks=False
        ),
        alt.Y(f"{row}:N", title=None, sort=list(rows)).axis(domain=False, ticks=False, labelLimit=240),
    )
    return base, {"width": width * len(steps), "height": (tall or (24 if len(rows) <= 16 else 15)) * len(rows)}


def accuracy_colour(offset: int = 18, title: str = "accuracy", field: str = "accuracy", top: float = 1.0) -> alt.Color:
    """Colour for a share between 0 and `top`, the same scale in every figure; `offset`: pixels from chart to legend."""
    scale = alt.Scale(scheme=SEQUENTIAL, domain=[0, top])
    return alt.Color(f"{field}:Q", title=title, scale=scale).legend(format="%", gradientLength=100, offset=offset)


def ink(field: str = "accuracy", top: float = 1.0) -> alt.Color:
    """Text on such a colour: dark on the light end, light on the dark end, with a contrast of 4.5 at least."""
    return alt.condition(f"datum.{field} > {0.435 * top}", alt.value("#000000"), alt.value("#ffffff"))


def opposed(field: str, title: str, most: float) -> alt.Color:
    """Colour for a quantity with a sign: vermilion below zero, blue above, the same reach on both sides."""
    scale = alt.Scale(domain=[-most, 0, most], range=list(OPPOSED), clamp=True, interpolate="rgb")
    # squares: a page's SVG gradients share their names, so that a second one is drawn in the colours of the first
    values = [round(most * share, 2) for share in (-1, -0.5, 0, 0.5, 1)]
    legend = {"type": "symbol", "symbolType": "square", "symbolStrokeWidth": 0, "values": values, "format": "+.2f"}
    return alt.Color(f"{field}:Q", title=title, scale=scale).legend(**legend)
