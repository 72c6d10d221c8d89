"""One figure for every reader: live in JupyterLab, a still picture elsewhere, and a file in a headless run."""

import json
import re
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import altair as alt

from lmdynamics.charts.text import with_room
from lmdynamics.charts.theme import STILL_TEXT, TEXT, specification
from lmdynamics.errors import UserError

VEGALITE = "application/vnd.vegalite.v5+json"  # the newest that JupyterLab 4.6 draws without a kernel
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Picture:
    """A figure as PNG, in the size that it has on a page, with its description as alternative text."""

    def __init__(self, chart: alt.TopLevelMixin):
        self.png = to_png(chart, scale=2)
        self.description = str(specification(chart, validate=False).get("description", "a figure"))

    def _repr_mimebundle_(self, include=None, exclude=None):
        width = int.from_bytes(self.png[16:20], "big") // 2
        data = {"image/png": self.png, "text/plain": self.description}
        return data, {"image/png": {"alt": self.description, "width": width}}


class Still(Picture):
    """A rendered figure that any reader of notebooks shows, with its description as alternative text.

    It is a picture twice: SVG for files and for those who zoom in, and PNG because JupyterLab shows no SVG from a
    notebook that it does not trust yet, such as one that came out of a batch run.
    """

    def __init__(self, chart: alt.TopLevelMixin):
        super().__init__(chart)
        self.svg = to_svg(chart)

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = super()._repr_mimebundle_()
        metadata["image/svg+xml"] = {"alt": self.description}
        return {"image/svg+xml": self.svg, **data}, metadata


class Live(Picture):
    """A figure that JupyterLab draws without a kernel, so that a saved notebook still has it; and its picture."""

    def __init__(self, chart: alt.TopLevelMixin):
        super().__init__(chart)
        options = {"actions": False, "renderer": "svg"}  # SVG takes the text colour of the page
        schema = "https://vega.github.io/schema/vega-lite/v5.json"
        self.spec = {**specification(chart), "$schema": schema, "usermeta": {"embedOptions": options}}

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = super()._repr_mimebundle_()
        return {VEGALITE: self.spec, **data}, metadata


def show(chart: alt.TopLevelMixin, name: str, output_dir: str = "", interactive: bool = True):
    """The last expression of a notebook cell: a figure to look at; without `interactive`, also NAME.svg in a folder.

    Live figures need neither network nor kernel: JupyterLab draws them. A still is an SVG picture, written to
    `output_dir` if that is given.

    Raises
    ------
    UserError
        If `name` cannot be a file name, or the file cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"a figure's name becomes a file name: {name!r} may hold letters, digits, _ - and . only")
    if interactive:
        return Live(chart)
    still = Still(chart)
    if output_dir:
        path = Path(output_dir) / f"{name}.svg"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(still.svg, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the figure {path}: {error.strerror}; choose another output_dir") from error
    return still


def to_svg(chart: alt.TopLevelMixin) -> str:
    """The chart as SVG text, drawn by vl-convert without a browser; its description is its text for screen readers."""
    import vl_convert

    spec = _drawable(specification(chart))
    svg = vl_convert.vegalite_to_svg(_written(spec, STILL_TEXT), vl_version=_vegalite_version())
    return with_room(svg).replace("<svg ", f'<svg role="img" aria-label={quoteattr(spec.get("description", ""))} ', 1)


def to_png(chart: alt.TopLevelMixin, scale: float = 2.0) -> bytes:
    """The chart as a PNG picture on white, for readers that show no SVG."""
    import vl_convert

    # vl-convert falsifies half-transparent colours on a transparent ground: orange comes out olive
    spec = {**_drawable(specification(chart)), "background": "white"}
    return vl_convert.vegalite_to_png(_written(spec, "#444444"), vl_version=_vegalite_version(), scale=scale)


def _written(spec: dict, colour: str) -> str:
    """The specification as JSON, its text in one colour: a picture has no page to take it from."""
    return json.dumps(spec).replace(json.dumps(TEXT), json.dumps(colour))


def _drawable(part: Any) -> Any:
    """A specification with what no SVG may hold escaped: at one such character vl-convert ends the whole process."""
    if isinstance(part, dict):
        return {_drawable(name): _drawable(value) for name, value in part.items()}
    if isinstance(part, list):
        return [_drawable(value) for value in part]
    return _NOT_IN_XML.sub(lambda found: repr(found[0])[1:-1], part) if isinstance(part, str) else part


def _vegalite_version() -> str:
    """Altair's schema version as vl-convert names it: v6.4.1 -> 6.4."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
