"""`index.html` over a batch: what ran, how it ended, the recorded figures and the charts; one page, no scripts."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lmdynamics.batch.execute import LOG, OUTCOME, Outcome
from lmdynamics.batch.records import read_records


def write_index(out: Path) -> Path:
    """Write `out/index.html` over every notebook that has been run into `out`, and return its path."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters |= {"duration": _duration, "scalar": _scalar}
    entries = [_entry(out, path.parent) for path in sorted(out.glob(f"*/{OUTCOME}"))]
    template = Path(__file__).with_name("index.html.jinja").read_text("utf-8")
    page = environment.from_string(template).render(title=f"Notebooks in {out.name}", entries=entries)
    index = out / "index.html"
    temporary = out / f".index.html.{os.getpid()}"
    temporary.write_text(page, "utf-8")
    os.replace(temporary, index)
    return index


def _entry(out: Path, folder: Path) -> dict[str, Any]:
    outcome = Outcome(**json.loads((folder / OUTCOME).read_text("utf-8")))
    executed = folder / f"{outcome.name}.ipynb"
    page = _as_page(executed) if executed.exists() else None
    linked = [("as a page", page), ("notebook", executed), ("records", folder / "records.json"), ("log", folder / LOG)]
    figures = [path for path in folder.iterdir() if path.suffix in (".svg", ".png")]
    figures.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))  # as they come in the notebook
    return {
        "outcome": outcome,
        "records": read_records(folder),
        "links": [(label, _link(out, path)) for label, path in linked if path and path.exists()],
        "figures": [(path.stem.replace("_", " "), _link(out, path)) for path in figures],
    }


def _as_page(executed: Path) -> Path | None:
    """The executed notebook as HTML beside it, made once; None if it cannot be shown (a run killed while writing)."""
    page = executed.with_suffix(".html")
    if page.exists() and page.stat().st_mtime >= executed.stat().st_mtime:
        return page
    from lmdynamics.batch.page import static_page

    try:
        body = static_page(executed)
    except (ValueError, AttributeError, KeyError):
        return None
    temporary = page.with_name(f".{page.name}.{os.getpid()}")
    temporary.write_text(body, "utf-8")
    os.replace(temporary, page)
    return page


def _link(out: Path, path: Path) -> str:
    return quote(path.relative_to(out).as_posix())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
