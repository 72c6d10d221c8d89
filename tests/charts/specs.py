"""What a chart's specification says: its title, its marks, the rows that a mark draws; what every figure must hold."""

from html import escape

from lmdynamics import charts
from lmdynamics.charts.moving import Place, with_slider


def spec_and_svg(chart):
    """Specification and SVG of a figure; asserts that it has a title and a description, and nothing undefined."""
    spec, svg = chart.to_dict(), charts.to_svg(chart)
    title = spec["title"]["text"]
    first = title[0] if isinstance(title, list) else title
    assert first
    assert isinstance(first, dict) or escape(first, quote=False) in svg  # an expression follows a parameter
    assert len(spec["description"]) > 60
    assert spec["config"]["background"] == "transparent"
    assert "NaN" not in svg
    assert "undefined" not in svg
    return spec, svg


def at_step(chart, cursor, step, **signals):
    """A figure that follows a cursor, as it stands at a step and at the values of further signals."""
    parameters = [{"name": name, "value": value} for name, value in signals.items()]
    return with_slider(chart, cursor, step, [Place(str(each)) for each in cursor.steps], *parameters).still()


def title_text(chart):
    return " ".join(chart.to_dict()["title"]["text"])


def mark_layers(spec, kind, data=None):
    """All layers of one kind of mark, in nested charts too, each with the data that it draws."""
    if isinstance(spec, list):
        return [hit for value in spec for hit in mark_layers(value, kind, data)]
    if not isinstance(spec, dict):
        return []
    data = spec.get("data", data)
    mark = spec.get("mark")
    layers = [{**spec, "data": data}] if (mark.get("type") if isinstance(mark, dict) else mark) == kind else []
    return layers + [hit for value in spec.values() for hit in mark_layers(value, kind, data)]


def rows_of(spec, layer):
    """The rows of a layer of `mark_layers`."""
    return layer["data"]["values"] if "values" in layer["data"] else spec["datasets"][layer["data"]["name"]]
