"""Figures for every reader: live in JupyterLab, still pictures elsewhere, and files of pictures and tables."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import altair as alt
import polars as pl

from lmdynamics.charts.deceleration import deceleration
from lmdynamics.charts.moving import script
from lmdynamics.charts.text import with_room
from lmdynamics.charts.theme import CONDITIONS, STILL_TEXT, TEXT, Chart, specification
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.files import atomic_file
from lmdynamics.html import json_in_script

KINDS = ("svg", "png", "csv")  # file types of a saved view
VEGALITE = "application/vnd.vegalite.v5+json"  # the newest that JupyterLab 4.6 draws without a kernel
FIGURE_TYPES = (".html", ".svg", ".png")
_DRAW = """
const { figure, spec } = Object.fromEntries(["figure", "spec"].map(id => [id, document.getElementById(id)]));
vegaEmbed(figure, JSON.parse(spec.textContent), { actions: false, renderer: "svg" });
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>:root {{ color-scheme: light dark; }} body {{ font-family: sans-serif; margin: 2em; }}</style></head>
<body><div id="figure"></div>
<script type="application/json" id="spec">{spec}</script>
<script type="module">{script}</script></body>
</html>
"""
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Picture:
    """A figure as PNG, in its size on a page, with its description as alternative text."""

    def __init__(self, chart: Chart):
        self.png = to_png(chart, scale=2)
        self.description = str(specification(chart, validate=False).get("description", "a figure"))

    def _repr_mimebundle_(self, include=None, exclude=None):
        width = int.from_bytes(self.png[16:20], "big") // 2
        data = {"image/png": self.png, "text/plain": self.description}
        return data, {"image/png": {"alt": self.description, "width": width}}


class Still(Picture):
    """A rendered figure that every notebook viewer shows, with its description as alternative text.

    It has two pictures: SVG for files and for zooming in, and PNG because JupyterLab shows no SVG from an untrusted
    notebook, such as one from a batch run.
    """

    def __init__(self, chart: Chart):
        super().__init__(chart)
        self.svg = to_svg(chart, labels=False)

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = super()._repr_mimebundle_()
        metadata["image/svg+xml"] = {"alt": self.description}
        return {"image/svg+xml": self.svg, **data}, metadata


class Live(Picture):
    """A figure that JupyterLab draws without a kernel, so that a saved notebook still shows it; and its picture."""

    def __init__(self, chart: Chart):
        super().__init__(chart)
        options = {"actions": False, "renderer": "svg"}  # SVG takes the text colour of the page
        schema = "https://vega.github.io/schema/vega-lite/v5.json"
        self.spec = {**specification(chart), "$schema": schema, "usermeta": {"embedOptions": options}}

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = super()._repr_mimebundle_()
        return {VEGALITE: self.spec, **data}, metadata


def show(chart: Chart, name: str, output_dir: str = "", interactive: bool = True):
    """A figure for display, as a notebook cell's last expression; without `interactive`, also NAME.svg in a folder.

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


def save(
    views: Mapping[str, Chart],
    tables: Mapping[str, pl.DataFrame],
    folder: str | Path,
    kinds: Sequence[str] = KINDS,
) -> list[Path]:
    """Write each view as NAME.svg and NAME.png, each table as NAME.csv, and return the paths.

    Nothing is overwritten: if a name is taken, all files of this call get the same number, NAME-2.svg. Files are
    written atomically.

    Raises
    ------
    UserError
        If a kind is not known, no folder is named, or a file cannot be written.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"a view is not saved as {unknown[0]!r}{did_you_mean(unknown[0], KINDS)}")
    if not str(folder).strip():
        raise UserError("no folder to save to; name one, such as out")
    folder = Path(str(folder).strip()).expanduser().absolute()
    make: dict[str, Callable[[str], bytes]] = {
        "svg": lambda name: to_svg(views[name]).encode(),
        "png": lambda name: to_png(views[name]),
        "csv": lambda name: tables[name].write_csv().encode(),
    }
    files = [(name, kind) for kind in kinds for name in (tables if kind == "csv" else views)]
    contents = {(name, kind): make[kind](name) for name, kind in files}  # before any is written: all or none
    number, paths = 1, _paths(folder, files, "")
    while any(path.exists() for path in paths):
        number += 1
        paths = _paths(folder, files, f"-{number}")
    for path, content in zip(paths, contents.values(), strict=True):
        try:
            with atomic_file(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:  # a full disk, or a file with the folder's name: another folder helps
            raise UserError(f"cannot write {path}: {error.strerror}; name another folder") from error
    return paths


def save_figure(chart: Chart, path: str | Path) -> Path:
    """Write a figure as an HTML page with tooltips, which needs no network, or as a picture: NAME.html, .svg or .png.

    Raises
    ------
    UserError
        If the name ends in something else, or the file cannot be written.
    """
    path = Path(path).expanduser()
    need_figure_type(path)
    make = {".html": to_html, ".svg": to_svg, ".png": to_png}[path.suffix.lower()]
    content = make(chart)
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error
    return path


def save_fits(path: Path, points: pl.DataFrame, fits: pl.DataFrame) -> str:
    """Write a figure of fitted curves, as many as there are colours; gives a sentence about it."""
    fitted = fits.filter(fits["verdict"] != "not fitted")["curve"].to_list()
    shown = fitted[: len(CONDITIONS)]
    path = save_figure(deceleration(points, fits, curves=shown), path)
    left_out = {"not fitted": len(fits) - len(fitted), "further curves": len(fitted) - len(shown)}
    rest = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    return f"{path}: {len(shown)} of {len(fits):,} curves{f' ({rest})' if rest else ''}"


def need_figure_type(path: Path) -> None:
    """Raise UserError unless a figure can be written to a file of this name."""
    if path.suffix.lower() not in FIGURE_TYPES:
        raise UserError(f"cannot write a figure as {path.name!r}; end the name in {', '.join(FIGURE_TYPES)}")


def to_html(chart: Chart) -> str:
    """The chart as a page of its own, with tooltips; it needs no network."""
    spec = _drawable(specification(chart))
    title = str(spec.get("description", "a figure")).partition(". ")[0]  # of the browser's tab
    return _PAGE.format(title=escape(title), spec=json_in_script(spec), script=script(_DRAW))


def to_svg(chart: Chart, labels: bool = True) -> str:
    """The chart as SVG text, drawn by vl-convert without a browser; its description is its text for screen readers.

    `labels`: also of single marks. They are of no use where a page shows the SVG as an image, and half of its size.
    """
    import vl_convert

    spec = _drawable(specification(chart))
    if not labels:
        spec["config"] = spec.get("config", {}) | {"aria": False}
    svg = vl_convert.vegalite_to_svg(_json_text(spec, STILL_TEXT), vl_version=_vegalite_version())
    return with_room(svg).replace("<svg ", f'<svg role="img" aria-label={quoteattr(spec.get("description", ""))} ', 1)


def to_png(chart: Chart, scale: float = 2.0) -> bytes:
    """The chart as a PNG picture on white, for readers that show no SVG."""
    import vl_convert

    # vl-convert draws half-transparent colours wrong on a transparent background: orange becomes olive
    spec = {**_drawable(specification(chart)), "background": "white"}
    return vl_convert.vegalite_to_png(_json_text(spec, "#444444"), vl_version=_vegalite_version(), scale=scale)


def _json_text(spec: dict, colour: str) -> str:
    """The specification as JSON, its text in one colour: a picture has no page to take it from."""
    return json.dumps(spec).replace(json.dumps(TEXT), json.dumps(colour))


def _drawable(part: Any) -> Any:
    """A specification without what a picture cannot hold: NaN, and characters at which vl-convert ends the process."""
    if isinstance(part, dict):
        return {_drawable(name): _drawable(value) for name, value in part.items()}
    if isinstance(part, list):
        return [_drawable(value) for value in part]
    if isinstance(part, float) and not math.isfinite(part):  # JSON has no such number
        return None
    return _NOT_IN_XML.sub(lambda match: repr(match[0])[1:-1], part) if isinstance(part, str) else part


def _vegalite_version() -> str:
    """Altair's schema version as vl-convert names it: v6.4.1 -> 6.4."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def _paths(folder: Path, files: Sequence[tuple[str, str]], number: str) -> list[Path]:
    return [folder / f"{name}{number}.{kind}" for name, kind in files]
