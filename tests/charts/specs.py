"""What a chart's specification says: its title, its marks, the rows that a mark draws; what every figure must hold."""

from html import escape

from lmdynamics import charts
from lmdynamics.charts.moving import Place, with_slider


def drawn(chart):
    """Specification and SVG of a figure, after a look at what each must have: title, description, nothing undefined."""
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
    found = [{"name": name, "value": value} for name, value in signals.items()]
    return with_slider(chart, cursor, step, [Place(str(each)) for each in cursor.steps], *found).still()


def said(chart):
    return " ".join(chart.to_dict()["title"]["text"])


def found(spec, kind, data=None):
    """All layers of one kind of mark, in nested charts too, each with the data that it draws."""
    if isinstance(spec, list):
        return [hit for value in spec for hit in found(value, kind, data)]
    if not isinstance(spec, dict):
        return []
    data = spec.get("data", data)
    mark = spec.get("mark")
    here = [{**spec, "data": data}] if (mark.get("type") if isinstance(mark, dict) else mark) == kind else []
    return here + [hit for value in spec.values() for hit in found(value, kind, data)]


def rows_of(spec, layer):
    """The rows of a layer of `found`."""
    return layer["data"]["values"] if "values" in layer["data"] else spec["datasets"][layer["data"]["name"]]
