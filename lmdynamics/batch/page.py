"""An executed notebook as one HTML file that opens from disk without a network, its sliders alive without a kernel."""

import base64
import hashlib
import json
from html import escape
from importlib import metadata
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lmdynamics import files
from lmdynamics.html import LINKED, STILL
from lmdynamics.paths import cache_dir, writable

SVG = "image/svg+xml"


def static_page(executed: Path) -> str:
    """The page of an executed notebook; linked views among its outputs come with a slider that moves them.

    Vega's JavaScript is on the page once, and only if there is something to move; nothing is loaded from elsewhere.

    Raises
    ------
    ValueError, AttributeError, KeyError
        If the file is not a whole notebook, as after a run that was killed while writing.
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
        style += f"<style>{_own('linked.css')}</style>"
        before, _, after = rest.rpartition("</body>")
        rest = f"{before}{_scripts()}</body>{after}"
    return f"{head}{style}</head>{rest}"


def _brought_to_life(cell: NotebookNode) -> bool:
    """Put a slider and its views in the place of each output that holds some, and of the stills that it stands for."""
    found = [output for output in cell.outputs if LINKED in output.get("data", {})]
    if not found:
        return False
    stills = [output for output in cell.outputs if output.get("metadata", {}).get("lmdynamics") == STILL["lmdynamics"]]
    for index, output in enumerate(found):
        pictures = "".join(map(_still, stills)) if index == 0 else ""
        output.data = NotebookNode({"text/html": _section(output.data[LINKED], pictures)})
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
    """One slider with its views; the pictures are for readers whose browser runs no scripts."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # within a script element, HTML is read only as far as its end tag: no "<" from the data may begin one
    data = data.replace("<", "\\u003c")
    views = "".join('<div class="lmd-view"></div>' for _ in content["views"])
    last = len(content["places"]) - 1
    return (
        f'<section class="lmd-linked"><div class="lmd-controls" hidden><label>{escape(content["label"])} '
        f'<input type="range" min="0" max="{last}" step="1" value="{int(content["start"])}"></label>'
        '<output aria-hidden="true"></output><button type="button">play</button></div><p role="status"></p>'
        f'<div class="lmd-views">{views}</div><div class="lmd-under"></div><noscript>{pictures}</noscript>'
        f'<script type="application/json">{data}</script></section>'
    )


def _scripts() -> str:
    """Vega and what moves the views, made once for all pages: it takes longer than the page itself."""
    own = _own("linked.js")
    made_of = [own, *(metadata.version(name) for name in ("altair", "vl-convert-python"))]
    bundle = writable(cache_dir() / "pages") / f"{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}.js"
    if not bundle.exists():
        import altair as alt
        import vl_convert

        version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
        with files.atomic_file(bundle) as temporary:
            temporary.write_text(vl_convert.javascript_bundle(own, vl_version=version), "utf-8")
    return f'<script type="module">{bundle.read_text("utf-8")}</script>'


def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")
