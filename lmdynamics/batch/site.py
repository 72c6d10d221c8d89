"""A batch as web pages, which load nothing from the network, so that they open from any web server or a disk.

`index.html` has a card for every item, `records.html` their records and times; a site also compares the executed
series with accepted results.
"""

import json
import re
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import polars as pl

from lmdynamics import files
from lmdynamics.analysis.intervals import need_columns
from lmdynamics.batch.baselines import Baselines, file_name, item_key, read_baselines
from lmdynamics.batch.cards import Card, opening, read_card, words
from lmdynamics.batch.collect import FILE_NAME, gather
from lmdynamics.batch.documents import search_script, title_of, write_documents
from lmdynamics.batch.execute import LOG, OUTCOME, read_outcome
from lmdynamics.batch.page import ASSETS
from lmdynamics.batch.regression import compare, summary
from lmdynamics.errors import UserError
from lmdynamics.records import read_records

COPIED_FILES = ("*.html", "*.css", "*.js", "*.svg", "*.png", "*.ipynb", "records.json", "outcome.json", "log.txt")
HERE = Path(__file__).parent
RECORDS_PAGE, TREND_PAGE = "records.html", "trend.html"
MARKER = ".lmdynamics-site"  # in a folder that this module has written
TREND = ("batch", "ended", "item", "record", "value", "low", "high", "tolerance", "unit")


def write_index(
    out: Path, note: str = "", links: Sequence[tuple[str, str]] = (), title: str = "", lead: str = ""
) -> Path:
    """Write `out/index.html`, a card for every item in `out`, and `out/records.html`; return the path of the index.

    `note`: a line above the cards. `links`: labels and relative addresses of other files. `title`: the default names
    the folder; like `lead`, a paragraph below it, it is HTML.
    """
    folders = [path.parent for path in sorted(out.glob(f"*/{OUTCOME}"))]
    entries = [_entry(out, folder) for folder in folders if read_outcome(folder) is not None]
    title = title or escape(f"Notebooks in {out.name}")
    links = [("records and times", RECORDS_PAGE), *links]
    _render("records.html.jinja", out / RECORDS_PAGE, entries=entries, title=title)
    return _render(
        "index.html.jinja", out / "index.html", entries=entries, note=note, links=links, title=title, lead=lead
    )


def _render(template: str, page: Path, **variables: Any) -> Path:
    """Write a page from one of the templates in this module's folder."""
    style = (HERE / "style.css").read_text("utf-8")
    files.write_text(page, _template(template).render(style=style, **variables))
    return page


def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    environment.filters |= {"duration": _duration, "scalar": _scalar, "words": words}
    return environment.get_template(name)


def write_site(outs: Sequence[Path], site: Path, baseline: Path | None = None, docs: Path | None = None) -> Path:
    """Copy the newest of some batches (the last of `outs`) to a folder as a site with a search, and return its index.

    For several batches a page shows the trend of each record. `baseline`: a folder of accepted results to compare with.
    `docs`: a Markdown file, which becomes a part of the site, with all files that it links to.

    Raises UserError if a batch has no results, or the folder holds files that are not a site.
    """
    newest, site = outs[-1].expanduser().absolute(), site.expanduser().absolute()
    frame = gather(newest)
    if site == newest or site in newest.parents or newest in site.parents:
        raise UserError(f"the site {site} and the batch {newest} must not contain each other; name another --to")
    if site.exists() and any(site.iterdir()) and not (site / MARKER).exists():  # all of it is overwritten
        raise UserError(f"{site} holds files that are not a site; name an empty folder with --to")
    with files.saving(f"the site {site}"), files.atomic_folder(site) as folder:
        for item in (ASSETS, *sorted({*frame["item"]})):
            for file in (file for pattern in COPIED_FILES for file in (newest / item).glob(pattern)):
                (folder / item).mkdir(exist_ok=True)
                shutil.copy2(file, folder / item / file.name)
        frame.write_parquet(folder / FILE_NAME)
        (folder / MARKER).touch()
        note = summary(compare(frame, read_baselines(baseline))) if baseline is not None else ""
        links = [("all records (Parquet)", FILE_NAME)]
        if len(outs) > 1:
            _write_trend(outs, folder / TREND_PAGE, baseline)
            links.append(("over past batches", TREND_PAGE))
        title, lead = opening(docs.read_text("utf-8")) if docs is not None else ("", "")
        write_index(folder, note, links, title or escape(f"Notebooks of {newest.name}"), lead)
        _join(folder, docs)
    return site / "index.html"


def _join(folder: Path, docs: Path | None) -> None:
    """Add documents to a site, and navigation and search to each of its pages; executed notebooks lose their outputs,
    which are on their pages and would be most of the site."""
    executed = [path for path in sorted(folder.glob("*/*.ipynb")) if path.with_suffix(".html").exists()]
    notebooks = {path.stem: f"{path.parent.name}/{path.stem}.html" for path in executed}
    contents = write_documents(docs, folder, notebooks) if docs is not None else {}
    for address, content in contents.items():
        title = f"{title_of(content)} · lmdynamics"
        _render("base.html.jinja", folder / address, title=title, content=content)
    own = sorted(path.name for path in folder.glob("*.html"))
    pages = [*own, *contents, *(f"{path.parent.name}/{path.stem}.html" for path in executed)]
    texts = {address: (folder / address).read_text("utf-8") for address in pages}
    for path in folder.glob(f"{ASSETS}/*"):  # left by pages of an earlier version
        if not any(path.name in text for text in texts.values()):
            path.unlink()
    style = f"<style>{(HERE / 'nav.css').read_text('utf-8')}</style></head>"
    for address, text in texts.items():
        nav = _template("nav.html.jinja").render(root="../" * address.count("/"), contents=contents)
        text = re.sub(r"<body[^>]*>", lambda match, nav=nav: match[0] + nav, text, count=1)
        files.write_text(folder / address, text.replace("</head>", style, 1))
    searched = {address: text for address, text in texts.items() if "/" in address}
    files.write_text(folder / ASSETS / "search.js", search_script(searched))
    for path in executed:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, path)


def trend(outs: Sequence[Path], baselines: Baselines | None = None) -> pl.DataFrame:
    """Each finished record of several batches, by the time its item ended, from their `records.parquet`.

    batch (the folder), ended (local time), item, record, value, low, high, tolerance, unit; with `baselines` also
    baseline and its tolerance in place of the record's own.

    Raises UserError if no batch is named, or one has no such file or a broken one.
    """
    if not outs:
        raise UserError("no batch named, so there is no trend; name the --out of each")
    names = [out.name for out in outs]
    labels = names if len(set(names)) == len(names) else [str(out) for out in outs]
    frame = pl.concat([_records(out, label) for out, label in zip(outs, labels, strict=True)], how="vertical_relaxed")
    columns = list(TREND)
    if baselines is not None:
        rows = frame.select("notebook", "profile", "device", "parameters", "record").iter_rows()
        accepted = [_accepted(baselines, *row) for row in rows]
        schema = {"baseline": pl.Float64, "tolerance": pl.Float64}
        frame = frame.with_columns(pl.DataFrame(accepted, schema, orient="row").get_columns())
        columns.append("baseline")
    return frame.select(columns).sort("ended", "item", maintain_order=True)


def _entry(out: Path, folder: Path) -> dict[str, Any]:
    outcome = read_outcome(folder)
    executed = folder / f"{outcome.notebook or outcome.name}.ipynb"
    page = executed.with_suffix(".html")
    linked = {"as a page": page, "notebook": executed, "records": folder / "records.json", "log": folder / LOG}
    links = {label: _link(out, path) for label, path in linked.items() if path.exists()}
    figures = [path for path in folder.iterdir() if path.suffix in (".svg", ".png")]
    figures.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))  # in the order of the notebook
    card = read_card(executed) or Card(escape(outcome.name))
    source, text = card.figure or ("", "")
    return {
        "outcome": outcome,
        "card": card,
        "page": links.get("as a page"),
        "log": links.get("log"),
        "figure": source and (source if source.startswith("data:") else f"{_link(out, folder)}/{source}", text),
        "computed_on": _computed_on(folder),
        "records": read_records(folder),
        "links": list(links.items()),
        "figures": [(words(path.stem), _link(out, path)) for path in figures],
    }


def _computed_on(folder: Path) -> str:
    """The device, precision and torch of an item's records; "" if it has none."""
    try:
        environment = json.loads((folder / "records.json").read_text("utf-8"))["environment"]
        return f"{environment['device_name']}, {environment['dtype']}, torch {environment['torch']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _link(out: Path, path: Path) -> str:
    return quote(path.relative_to(out).as_posix())


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_trend(outs: Sequence[Path], page: Path, baseline: Path | None) -> None:
    """Write a chart for each record that is a number in two or more batches, with its accepted value."""
    from lmdynamics import charts

    rows = trend(outs, None if baseline is None else read_baselines(baseline)).filter(pl.col("value").is_not_null())
    figures = []
    for (item, record), values in rows.group_by("item", "record", maintain_order=True):
        if values["batch"].n_unique() > 1:
            figures.append((item, record, charts.to_svg(charts.record_trend(values))))
    _render("trend.html.jinja", page, figures=figures, title=f"Records over {len(outs)} batches")


def _records(out: Path, label: str) -> pl.DataFrame:
    path = out / FILE_NAME
    if not path.is_file():
        raise UserError(f"{out} has no {FILE_NAME}; name the --out of a batch that was collected")
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} is not a Parquet file; delete it and collect the batch again") from error
    needed = [name for name in TREND if name != "batch"]
    keys = ["status", "notebook", "profile", "device", "parameters"]
    need_columns(frame, [*needed, *keys], str(path))
    finished = frame.filter(pl.col("status") == "finished", pl.col("record").is_not_null())
    ended = pl.col("ended").str.slice(0, 19).str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False)
    return finished.select(pl.lit(label).alias("batch"), *needed, *keys).with_columns(ended=ended)


def _accepted(
    baselines: Baselines, notebook: str, profile: str | None, device: str, parameters: str, record: str
) -> tuple[float | None, float | None]:
    """The accepted number and its tolerance; None for a string, or if nothing was accepted."""
    baseline = baselines.get(file_name(notebook, profile, device))
    accepted = baseline.items.get(item_key(parameters), {}).get(record) if baseline else None
    return (None, None) if accepted is None or accepted.number is None else (accepted.number, accepted.tolerance)
