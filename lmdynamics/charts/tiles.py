"""Heat maps: a grid of rows by checkpoints, and the colours of shares and of signed quantities."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from lmdynamics.charts.theme import OPPOSED, SEQUENTIAL, WIDTH

ROUND = "format(datum.value, datum.value < 1000 ? 'd' : '.2~s')"  # 1024 -> 1k


def step_tiles(
    cells: pl.DataFrame, rows: Sequence[str], row: str = "part", *, widest: int = 34, tall: int | None = None
) -> tuple[alt.Chart, dict[str, int]]:
    """A grid of `rows` (of the column `row`) by steps, without marks and colours, and its size in pixels."""
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


def text_colour(field: str = "accuracy", top: float = 1.0) -> alt.Color:
    """Colour of text on such a tile: dark on light tiles, light on dark ones, with a contrast of at least 4.5."""
    return alt.condition(f"datum.{field} > {0.435 * top}", alt.value("#000000"), alt.value("#ffffff"))


def signed_colour(field: str, title: str, limit: float) -> alt.Color:
    """Colour for a signed quantity between `-limit` and `limit`: vermilion below zero, blue above."""
    scale = alt.Scale(domain=[-limit, 0, limit], range=list(OPPOSED), clamp=True, interpolate="rgb")
    # squares, no gradient: SVG gradients on one page share a name, and a second one gets the colours of the first
    values = [round(limit * share, 2) for share in (-1, -0.5, 0, 0.5, 1)]
    legend = {"type": "symbol", "symbolType": "square", "symbolStrokeWidth": 0, "values": values, "format": "+.2f"}
    return alt.Color(f"{field}:Q", title=title, scale=scale).legend(**legend)
