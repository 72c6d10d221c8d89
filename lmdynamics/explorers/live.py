"""A chart in a notebook that follows named values: moving a slider sends a number, not a new chart."""

import altair as alt


class LiveChart:
    """An Altair chart as a widget, whose parameters hold what Python says they hold.

    `JupyterChart` reports a chart's own start values back to Python each time a page draws it, late echoes of a
    moving slider too; here Python's value wins, so that a reloaded page and a second view show the present state.
    """

    def __init__(self, chart: alt.TopLevelMixin, **values: float):
        alt.JupyterChart.enable_offline()
        self.values = {name: float(value) for name, value in values.items()}
        self.widget = alt.JupyterChart(chart, embed_options={"actions": False})
        # `_params` is what travels between page and Python; `params`, its public face, cannot be set from an observer
        self.widget.observe(lambda _: self._send(), names="_params")
        self._send()

    def set(self, **values: float) -> None:
        """Give parameters new values; what is drawn follows."""
        self.values |= {name: float(value) for name, value in values.items()}
        self._send()

    def redraw(self, chart: alt.TopLevelMixin) -> None:
        """Put another chart with the same parameters in this one's place. Slower than `set`: for rare changes.

        The specification goes out unvalidated, because charts are tested and validation is most of the wait.
        """
        self.widget.spec = chart.to_dict(validate=False)

    def _send(self) -> None:
        wanted = {**self.widget._params, **self.values}
        if wanted != self.widget._params:
            self.widget._params = wanted
