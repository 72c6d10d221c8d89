"""A batch as a site: the executed series as pages, with what it came to beside what was accepted; no scripts but the
pages' own, nothing from elsewhere, so that any web server, or a disk, can hold it.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from lmdynamics import files
from lmdynamics.batch.baselines import read_baselines
from lmdynamics.batch.collect import FILE_NAME, gather
from lmdynamics.batch.compare import compare, summary
from lmdynamics.batch.index import write_index
from lmdynamics.batch.reports import trend
from lmdynamics.errors import UserError

KEPT = ("*.html", "*.svg", "*.png", "*.ipynb", "records.json", "outcome.json", "log.txt")
TREND = "trend.html"
MARK = ".lmdynamics-site"  # in a folder that this module has written


def write_site(outs: Sequence[Path], to: Path, baseline: Path | None = None) -> Path:
    """Copy the newest of some batches (the last of `outs`) to a folder as a site, and return its index.

    Of several batches a page shows how each record has moved. `baseline`: a folder of accepted results to compare with.

    Raises
    ------
    UserError
        If a batch has no results, or the folder holds something that is no site.
    """
    newest, to = outs[-1].expanduser().absolute(), to.expanduser().absolute()
    frame = gather(newest)
    if to == newest or to in newest.parents or newest in to.parents:
        raise UserError(f"the site {to} and the batch {newest} must not lie in each other; name another --to")
    if to.exists() and any(to.iterdir()) and not (to / MARK).exists():  # it is written anew, all of it
        raise UserError(f"{to} holds something that is no site; name an empty folder with --to")
    with files.saving(f"the site {to}"), files.atomic_folder(to) as folder:
        for item in sorted({*frame["item"]}):
            for file in (file for pattern in KEPT for file in (newest / item).glob(pattern)):
                (folder / item).mkdir(exist_ok=True)
                shutil.copy2(file, folder / item / file.name)
        frame.write_parquet(folder / FILE_NAME)
        (folder / MARK).touch()
        said = summary(compare(frame, read_baselines(baseline))) if baseline is not None else ""
        links = [("all records (Parquet)", FILE_NAME)]
        if len(outs) > 1:
            _write_trend(outs, folder / TREND, baseline)
            links.append(("over past batches", TREND))
        write_index(folder, said, links, f"Notebooks of {newest.name}")
    return to / "index.html"


def _write_trend(outs: Sequence[Path], page: Path, baseline: Path | None) -> None:
    """A chart for each record that is a number in two batches or more, over what was accepted."""
    from jinja2 import Environment

    from lmdynamics import charts

    rows = trend(outs, None if baseline is None else read_baselines(baseline)).filter(pl.col("value").is_not_null())
    drawn = []
    for (item, record), of_record in rows.group_by("item", "record", maintain_order=True):
        if of_record["batch"].n_unique() > 1:
            drawn.append((item, record, charts.to_svg(charts.record_trend(of_record))))
    template = Path(__file__).with_name("trend.html.jinja").read_text("utf-8")
    body = Environment(autoescape=True, trim_blocks=True).from_string(template).render(drawn=drawn, batches=len(outs))
    page.write_text(body, "utf-8")
