"""An executed notebook as one HTML file that needs no network; its sliders work without a kernel."""

import base64
from html import escape
from pathlib import Path
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode

from lmdynamics.charts.moving import read, script
from lmdynamics.html import MOVING, STILL, json_in_script

SVG = "image/svg+xml"
_EACH = """
for (const section of document.querySelectorAll(".lmd-section")) {
  const content = section.querySelector("script[type='application/json']").textContent;
  new Promise(done => done(show(section.firstElementChild, JSON.parse(content)))).catch(console.error); // others run
}
"""


def static_page(executed: Path) -> str:
    """The HTML page of an executed notebook; moving views among its outputs keep their sliders.

    Vega's JavaScript is on the page once, and only if there is a moving view; nothing is loaded from the network.

    Raises ValueError, AttributeError or KeyError if the file is not a complete notebook, for example if its run was
    killed while writing it.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab")
    # the page must open without a network
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = exporter.mermaid_js_url = ""
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
    style = f"<style>@media (prefers-color-scheme: dark) {{ {dark} :root {{ color-scheme: dark; }} }}</style>"
    head, _, content = body.partition("</head>")
    if any(moving):
        style += f"<style>{read('moving.css')}</style>"
        before, _, after = content.rpartition("</body>")
        content = f'{before}<script type="module">{script(_EACH)}</script></body>{after}'
    return f"{head}{style}</head>{content}"


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
