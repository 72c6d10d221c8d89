"""An executed notebook as an HTML page that needs no network; its sliders work without a kernel."""

import base64
import hashlib
import re
from html import escape
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode

from lmdynamics import files
from lmdynamics.charts.moving import read, script
from lmdynamics.html import MOVING, STILL, json_in_script

ASSETS = "assets"  # folder of the files that pages share
SVG = "image/svg+xml"
_NARROW = ".jp-Cell pre, .jp-OutputArea-output { overflow-x: auto; } .jp-OutputArea-output img { max-width: 100%; }"
_FOLDED = ".lmd-folded > summary { cursor: pointer; font: 0.85em sans-serif; padding: 0 0 0.4em 5.2em; opacity: 0.75; }"
_FOLDING = """{% extends "lab/index.html.j2" %}
{% block input_group %}{% if cell.metadata.get("jupyter", {}).get("source_hidden") %}
<details class="lmd-folded"><summary>Show the code</summary>{{ super() }}</details>
{% else %}{{ super() }}{% endif %}{% endblock %}"""  # a notebook's folded cells are folded on its page, too
_STYLE = re.compile(r"<style[^>]*>(.*?)</style>", re.DOTALL)
_EACH = """
for (const section of document.querySelectorAll(".lmd-section")) {
  const content = section.querySelector("script[type='application/json']").textContent;
  new Promise(done => done(show(section.firstElementChild, JSON.parse(content)))).catch(console.error); // others run
}
"""


def write_page(executed: Path) -> Path:
    """Write the HTML page of an executed notebook beside it, and return its path.

    Moving views among its outputs keep their sliders. Nothing is loaded from the network. The styles, and Vega's
    JavaScript if there is a moving view, are files in `assets` beside the notebook's folder, which all pages share.

    Raises ValueError, AttributeError or KeyError if the file is not a complete notebook, for example if its run was
    killed while writing it.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab", raw_template=_FOLDING)
    exporter.embed_images = True
    notebook = nbformat.read(executed, as_version=4)
    # widgets would load JavaScript from the network, and they need a kernel
    notebook.metadata.pop("widgets", None)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    moving = [_insert_moving_views(cell, executed.parent) for cell in cells]
    for output in (output for cell in cells for output in cell.outputs if SVG in output.get("data", {})):
        output.data = NotebookNode({"text/html": _picture(output, executed.parent)})
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": executed.stem}})
    environment = exporter.environment
    dark = environment.loader.get_source(environment, "static/theme-dark.css")[0]
    head, _, content = body.partition("</head>")
    # the template's scripts would be loaded from the network: no formula is typeset
    head = re.sub(r"<script.*?</script>", "", head, flags=re.DOTALL)
    styles = [
        *_STYLE.findall(head),
        f"@media (prefers-color-scheme: dark) {{ {dark} :root {{ color-scheme: dark; }} }}",
    ]
    assets = executed.parent.parent / ASSETS
    style = _shared(assets, "\n".join([*styles, _NARROW, _FOLDED, read("moving.css")]), "css")
    head = f'{_STYLE.sub("", head)}<link rel="stylesheet" href="../{ASSETS}/{style}">'
    if any(moving):  # no module: a browser loads none from a disk
        code = _shared(assets, f'(() => {{ "use strict";\n{script(_EACH)}\n}})();', "js")
        head += f'<script defer src="../{ASSETS}/{code}"></script>'
    page = executed.with_suffix(".html")
    files.write_text(page, f"{head}</head>{content}")
    return page


def _shared(assets: Path, text: str, kind: str) -> str:
    """The name of a file with this text in the folder of shared files; pages of other versions have their own."""
    path = assets / f"page-{hashlib.sha256(text.encode()).hexdigest()[:12]}.{kind}"
    if not path.exists():
        files.write_text(path, text)
    return path.name


def _insert_moving_views(cell: NotebookNode, folder: Path) -> bool:
    """Replace each output that holds moving views, and the cell's still pictures, by HTML; False if there is none."""
    moving = [output for output in cell.outputs if MOVING in output.get("data", {})]
    if not moving:
        return False
    stills = [output for output in cell.outputs if output.get("metadata", {}).get("lmdynamics") == STILL["lmdynamics"]]
    for index, output in enumerate(moving):
        pictures = "".join(_still(still, folder) for still in stills) if index == 0 else ""
        output.data = NotebookNode({"text/html": _section(output.data[MOVING], pictures)})
    cell.outputs = [output for output in cell.outputs if output not in stills]
    return True


def _still(output: NotebookNode, folder: Path) -> str:
    return _picture(output, folder) if SVG in output.data else "".join(output.data["text/html"])


def _picture(output: NotebookNode, folder: Path) -> str:
    """An SVG output as an image with its alternative text, which nbconvert omits. Scripts in an image do not run."""
    return f'<img alt="{escape(alternative_text(output, SVG))}" src="{picture_source(output, SVG, folder)}">'


def alternative_text(output: NotebookNode, kind: str) -> str:
    """The text that describes a picture among a cell's outputs."""
    return output.get("metadata", {}).get(kind, {}).get("alt", "")


def picture_source(output: NotebookNode, kind: str, folder: Path) -> str:
    """The address of a picture: the file in the page's folder that holds the same, or else all of it."""
    content = "".join(output.data[kind])
    if kind != SVG:
        return f"data:{kind};base64,{''.join(content.split())}"
    same = (path for path in sorted(folder.glob("*.svg")) if path.read_text("utf-8") == content)
    return next((quote(path.name) for path in same), f"data:{SVG};base64,{base64.b64encode(content.encode()).decode()}")


def _section(content: dict, pictures: str) -> str:
    """Moving views; the pictures are shown in browsers without scripts."""
    return (
        f'<section class="lmd-section"><div></div><noscript>{pictures}</noscript>'
        f'<script type="application/json">{json_in_script(content)}</script></section>'
    )
