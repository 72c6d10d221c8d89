"""GLUE (Wang et al. 2019): nine tasks of understanding English, from the hub or a folder laid out like it.

The labels of GLUE's own test sets are secret, so papers report on the validation sets: here those are `test`, and a
dev split to choose on is drawn from the training set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from lmdynamics.corpora.labelled import LabelledSentences, acceptability, open_labelled, same_text
from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.paths import cache_dir, writable

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """Where a task lies, which columns hold its sentences, how many labels it has, and how it is scored.

    `labels` is None where sentences are graded. The first of `metrics` is the one that tables of results show.
    """

    folder: str
    sentences: tuple[str, ...]
    labels: int | None
    metrics: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"


_MNLI = ("premise", "hypothesis")
_ENTAILMENT = ("sentence1", "sentence2")
TASKS = {
    "cola": GlueTask("cola", ("sentence",), 2, ("matthews", "accuracy")),
    "sst2": GlueTask("sst2", ("sentence",), 2),
    "mrpc": GlueTask("mrpc", _ENTAILMENT, 2, ("f1", "accuracy")),
    "qqp": GlueTask("qqp", ("question1", "question2"), 2, ("f1", "accuracy")),
    "stsb": GlueTask("stsb", _ENTAILMENT, None, ("pearson", "spearman")),
    "mnli": GlueTask("mnli", _MNLI, 3, validation="validation_matched"),
    "mnli_mm": GlueTask("mnli", _MNLI, 3, validation="validation_mismatched"),
    "qnli": GlueTask("qnli", ("question", "sentence"), 2),
    "rte": GlueTask("rte", _ENTAILMENT, 2),
    "wnli": GlueTask("wnli", _ENTAILMENT, 2),
}


def open_glue(task: str, where: str | Path = HUB) -> LabelledSentences:
    """A GLUE task by name, from the hub (the name of a data set there) or a local folder.

    A folder holds `TASK/SPLIT-00000-of-00001.parquet`, or that below `parquet/`. `mnli` is scored on the matched
    validation set, `mnli_mm` on the mismatched one. Rows with the same first sentence are one group. What is
    downloaded or converted is kept under the cache folder.

    Raises
    ------
    UserError
        If the task is unknown, the `datasets` library is missing, the files are not to be had, or hold something else.
    """
    if task not in TASKS:
        raise UserError(f"no GLUE task {task!r}{did_you_mean(task, TASKS)}")
    chosen = TASKS[task]
    parts = []
    for split, name in (("train", "train"), (chosen.validation, "test")):
        rows = _load(chosen.folder, split, where)
        if missing := {*chosen.sentences, "label"} - set(rows.columns):
            raise UserError(f"{where}: {task} has no column {min(missing)!r}; it is not GLUE's {task}")
        parts.append(rows.select(*chosen.sentences, "label").with_columns(pl.lit(name).alias("split")))
    frame = pl.concat(parts).rename(dict(zip(chosen.sentences, ("text", "second"), strict=False)))
    frame = frame.with_columns(
        pl.col("label").cast(pl.Float64 if chosen.labels is None else pl.Int64),
        same_text("text").alias("group"),
    )
    data = LabelledSentences(task, frame, metrics=chosen.metrics)
    if data.classes != chosen.labels:
        raise UserError(
            f"{where}: {task} has {data.classes} labels, GLUE's has {chosen.labels}; it is another data set"
        )
    return data


def open_task(name: str, pairs: MinimalPairs) -> LabelledSentences:
    """A downstream task by name: `acceptability` (of these pairs), a GLUE task, or whatever `open_labelled` knows."""
    if name == "acceptability":
        return replace(acceptability(pairs), name=name)
    return open_glue(name) if name in TASKS else open_labelled(name)


def _load(folder: str, split: str, where: str | Path) -> pl.DataFrame:
    """One split of a task; texts that are empty are left out (MNLI and QQP have a few)."""
    datasets = _library()
    local = Path(where).expanduser()
    cache = str(writable(cache_dir() / "glue"))
    if local.is_dir():
        files = _files(local, folder, split)
        loaded = datasets.load_dataset("parquet", data_files={split: files}, split=split, cache_dir=cache)
    else:
        options = datasets.DownloadConfig(cache_dir=f"{cache}/downloads")
        try:
            loaded = datasets.load_dataset(str(where), folder, split=split, cache_dir=cache, download_config=options)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
            first = str(problem).splitlines()[0]
            raise UserError(
                f"{where} is neither a folder nor a data set that can be had from the hub ({first}); check the name "
                "and the connection, or give a folder with TASK/SPLIT-00000-of-00001.parquet"
            ) from None
    frame = pl.from_arrow(loaded.data.table)
    texts = [name for name in frame.columns if frame[name].dtype == pl.String]
    return frame.filter(pl.all_horizontal(pl.col(texts).str.strip_chars() != "")) if texts else frame


def _files(local: Path, folder: str, split: str) -> Sequence[str]:
    for inside in (local / folder, local / "parquet" / folder):
        if files := sorted(inside.glob(f"{split}-*-of-*.parquet")):
            return [str(file) for file in files]
    raise UserError(
        f"{local} holds no {folder}/{split}-00000-of-00001.parquet; give a folder laid out as {HUB} on the hub is"
    )


def _library():
    try:
        import datasets
    except ImportError:
        raise UserError("GLUE is read with the library `datasets`; pip install lmdynamics[glue]") from None
    return datasets
