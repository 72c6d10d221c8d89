"""An executed notebook as one HTML file that opens from disk without a network, its sliders alive without a kernel."""

import base64
import json
from html import escape
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lmdynamics.charts.moving import read, script
from lmdynamics.html import MOVING, STILL

SVG = "image/svg+xml"
_EACH = """
for (const section of document.querySelectorAll(".lmd-section")) {
  const content = section.querySelector("script[type='application/json']").textContent;
  new Promise(done => done(show(section.firstElementChild, JSON.parse(content)))).catch(console.error); // others go on
}
"""


def static_page(executed: Path) -> str:
    """The page of an executed notebook; moving views among its outputs come with their slider.

    Vega's JavaScript is on the page once, and only if there is something to move; nothing is loaded from elsewhere.

    Raises ValueError, AttributeError or KeyError if the file is not a whole notebook, as after a run that was killed
    while writing.
    """
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab")
    # the page must open without a network, so nothing is loaded from elsewhere
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = exporter.mermaid_js_url = ""
    exporter.embed_images = True
    notebook = nbformat.read(executed, as_version=4)
    # the state of widgets would load their JavaScript from elsewhere, and there is no kernel for them to talk to
    notebook.metadata.pop("widgets", None)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    moving = [_brought_to_life(cell) for cell in cells]
    for output in (output for cell in cells for output in cell.outputs if SVG in output.get("data", {})):
        output.data = NotebookNode({"text/html": _picture(output)})
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": executed.stem}})
    environment = exporter.environment
    dark = environment.loader.get_source(environment, "static/theme-dark.css")[0]
    style = f"<style>@media (prefers-color-scheme: dark) {{ {dark} :root {{ color-scheme: dark; }} }}</style>"
    head, _, rest = body.partition("</head>")
    if any(moving):
        style += f"<style>{read('moving.css')}</style>"
        before, _, after = rest.rpartition("</body>")
        rest = f'{before}<script type="module">{script(_EACH)}</script></body>{after}'
    return f"{head}{style}</head>{rest}"


def _brought_to_life(cell: NotebookNode) -> bool:
    """Put moving views in the place of each output that holds some, and of the stills that it stands for."""
    found = [output for output in cell.outputs if MOVING in output.get("data", {})]
    if not found:
        return False
    stills = [output for output in cell.outputs if output.get("metadata", {}).get("lmdynamics") == STILL["lmdynamics"]]
    for index, output in enumerate(found):
        pictures = "".join(map(_still, stills)) if index == 0 else ""
        output.data = NotebookNode({"text/html": _section(output.data[MOVING], pictures)})
    cell.outputs = [output for output in cell.outputs if output not in stills]
    return True


def _still(output: NotebookNode) -> str:
    return _picture(output) if SVG in output.data else "".join(output.data["text/html"])


def _picture(output: NotebookNode) -> str:
    """A picture with its words; nbconvert knows no words for SVG. As an image, nothing inside it can run."""
    words = output.get("metadata", {}).get(SVG, {}).get("alt", "")
    data = base64.b64encode(output.data[SVG].encode()).decode()
    return f'<img alt="{escape(words)}" src="data:{SVG};base64,{data}">'


def _section(content: dict, pictures: str) -> str:
    """Moving views; the pictures are for readers whose browser runs no scripts."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # within a script element, HTML is read only as far as its end tag: no "<" from the data may begin one
    data = data.replace("<", "\\u003c")
    return (
        f'<section class="lmd-section"><div></div><noscript>{pictures}</noscript>'
        f'<script type="application/json">{data}</script></section>'
    )
