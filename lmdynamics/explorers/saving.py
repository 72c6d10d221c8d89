"""What explorers leave behind: pictures and data in a folder, and a page's views that move without a kernel."""

from collections.abc import Mapping

import altair as alt
from IPython.display import display

from lmdynamics import charts
from lmdynamics.charts.linked import STILL, Linked


def show_still(stills: Mapping[str, alt.TopLevelMixin], linked: Linked | None, output_dir: str = "") -> None:
    """An explorer in a headless run: its views as still figures (and files), and as views that a page can move."""
    for name, chart in stills.items():
        display(charts.show(chart, name, output_dir, interactive=False), metadata=STILL if linked else {})
    if linked is not None:
        display(linked)
