"""`index.html` over a batch: what ran, how it ended, the recorded figures and the charts; one page, no scripts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lmdynamics import files
from lmdynamics.batch.execute import LOG, OUTCOME, read_outcome
from lmdynamics.records import read_records


def write_index(out: Path, said: str = "", links: Sequence[tuple[str, str]] = (), title: str = "") -> Path:
    """Write `out/index.html` over every notebook that has been run into `out`, and return its path.

    `said`: a line above the table. `links`: label and relative address of what else there is. `title`: instead of one
    that names the folder.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters |= {"duration": _duration, "scalar": _scalar}
    folders = [path.parent for path in sorted(out.glob(f"*/{OUTCOME}"))]
    entries = [_entry(out, folder) for folder in folders if read_outcome(folder) is not None]
    template = Path(__file__).with_name("index.html.jinja").read_text("utf-8")
    shown = {"entries": entries, "said": said, "links": links}
    page = environment.from_string(template).render(title=title or f"Notebooks in {out.name}", **shown)
    index = out / "index.html"
    with files.saving(str(index)), files.atomic_file(index) as temporary:
        temporary.write_text(page, "utf-8")
    return index


def _entry(out: Path, folder: Path) -> dict[str, Any]:
    outcome = read_outcome(folder)
    executed = folder / f"{outcome.notebook or outcome.name}.ipynb"
    page = executed.with_suffix(".html")
    linked = [("as a page", page), ("notebook", executed), ("records", folder / "records.json"), ("log", folder / LOG)]
    figures = [path for path in folder.iterdir() if path.suffix in (".svg", ".png")]
    figures.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))  # as they come in the notebook
    return {
        "outcome": outcome,
        "records": read_records(folder),
        "links": [(label, _link(out, path)) for label, path in linked if path.exists()],
        "figures": [(path.stem.replace("_", " "), _link(out, path)) for path in figures],
    }


def _link(out: Path, path: Path) -> str:
    return quote(path.relative_to(out).as_posix())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
