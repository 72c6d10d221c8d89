"""What a chart's specification says: its title, its marks, the rows that a mark draws."""


def said(chart):
    text = chart.to_dict()["title"]["text"]
    return " ".join(text) if isinstance(text, list) else text


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
