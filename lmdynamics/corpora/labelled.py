"""Sentences with a label each, to fine-tune on: sentiment, subjectivity, acceptability, GLUE, tables of one's own.

Polarity and subjectivity: Pang and Lee 2005, 2004. Acceptability is derived from minimal pairs; as in CoLA, good is 1.
GLUE (Wang et al. 2019) comes from the hub or a folder with the same layout. The labels of its test sets are not
public, so papers report on the validation sets: here those are `test`, and a dev split comes from the training set.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from lmdynamics.corpora.fetch import locate
from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.paths import cache_dir, writable

# each label's file in the zip, label 0 first
ZIPS = {
    "polarity": ("sentence_polarity.zip", ("rt-polarity.neg", "rt-polarity.pos")),
    "subjectivity": ("subjectivity.zip", ("plot.tok.gt9.5000", "quote.tok.gt9.5000")),
}
# dashes and quotes of Windows-1252 that the source kept as control characters when it became UTF-8
_CONTROLS = {code: bytes([code]).decode("cp1252", "ignore") or " " for code in range(0x80, 0xA0)}


class Splits(NamedTuple):
    train: "LabelledSentences"
    dev: "LabelledSentences"
    test: "LabelledSentences"


@dataclass(frozen=True, eq=False)
class LabelledSentences:
    """One row per example: `text`, `label`, `group`, and for some tasks `second` (text) and `split`.

    `label` is 0, 1, ... (Int64), or a grade (Float64). Rows with the same `group` are always in the same split.
    `second` is the second sentence of a task on sentence pairs. `split` is `train` or `test` where the source has
    these splits. `split_into_words` is that of `MinimalPairs`. `metrics` are the task's usual ones, the main one first.

    Raises UserError if a column is missing or has a null, a text is empty, or the labels are not 0, 1, ... or finite
    grades.
    """

    name: str
    frame: pl.DataFrame
    split_into_words: bool = False
    metrics: tuple[str, ...] = ("accuracy",)

    def __post_init__(self):
        needed = ["text", "label", "group", *({"second", "split"} & set(self.frame.columns))]
        if missing := [name for name in needed if name not in self.frame.columns]:
            raise UserError(f"{self.name} has no column {missing[0]!r}; labelled sentences need text, label and group")
        for name in needed:
            empty = pl.col(name).is_null()
            if name in ("text", "second"):
                empty |= pl.col(name).str.strip_chars() == ""
            if len(rows := self.frame.select(empty.arg_true()).to_series()):
                raise UserError(f"{self.name}: row {rows[0]} has no {name}; leave such rows out")
        labels = self.frame["label"]
        if labels.dtype.is_float():
            wrong = not labels.is_finite().all()
        else:
            wrong = not labels.dtype.is_integer() or labels.unique().sort().to_list() != list(range(labels.n_unique()))
        if wrong or labels.n_unique() < 2:
            shown = ", ".join(map(str, labels.unique().sort().head(5)))
            raise UserError(
                f"{self.name} has the labels {shown or '(none)'}; expected 0, 1, ... without gaps, or grades"
            )

    @property
    def classes(self) -> int | None:
        """Number of labels; None if they are grades."""
        return None if self.frame["label"].dtype.is_float() else self.frame["label"].n_unique()

    @cached_property
    def fingerprint(self) -> str:
        """Content hash (16 hex digits): part of the cache key of every measurement made on these sentences."""
        digest = hashlib.sha256(json.dumps([self.split_into_words, self.metrics, self.frame.columns]).encode())
        for row in self.frame.iter_rows():
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        kind = "grades" if self.classes is None else f"{self.classes} labels"
        return f"LabelledSentences({self.name!r}, {len(self):,} examples, {kind})"

    def splits(self, seed: int = 0, dev: float = 0.15, test: float = 0.15) -> Splits:
        """Train, dev and test, drawn by `seed`: whole groups, stratified by label.

        If the source has a test split, it is used, and dev is drawn from the other rows.

        Raises UserError if a share is not between 0 and 1, or there are too few groups for every label to be in every
        split.
        """
        if not (0 < dev < 1 and 0 < test < 1 and dev + test < 1):
            raise UserError(f"dev {dev:g} and test {test:g} must be shares above 0 with a sum below 1")
        has_test = "split" in self.frame.columns
        frame = self.frame.with_row_index("_row")
        rows = frame.filter(split="train") if has_test else frame
        shares = [(1.0, "train"), (dev, "dev")] if has_test else [(1.0, "train"), (dev + test, "test"), (dev, "dev")]
        split = pl.lit("train")
        for share, name in shares[1:]:
            split = pl.when(pl.col("_at") < share).then(pl.lit(name)).otherwise(split)
        groups = _shuffled_within_strata(rows, seed).with_columns(split.alias("_split"))
        rows = rows.join(groups.select("group", "_split"), on="group", how="left", maintain_order="left")
        if has_test:
            rows = pl.concat([rows, frame.filter(split="test").with_columns(pl.lit("test").alias("_split"))])
        parts = []
        for name in Splits._fields:
            part = rows.filter(_split=name).sort("_row").drop("_row", "_split")
            if part.is_empty() or (self.classes or 0) > part["label"].n_unique():
                raise UserError(
                    f"{self.name}: {groups.height:,} groups of sentences are too few to have every label in {name}; "
                    "give more sentences, or larger shares"
                )
            parts.append(replace(self, name=f"{self.name} {name}", frame=part))
        return Splits(*parts)


def _shuffled_within_strata(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """One row per group: `_at`, its rank from 0 to 1 in a random order of the groups with the same labels."""
    label = pl.col("label") if frame["label"].dtype.is_integer() else pl.lit(0)
    groups = frame.group_by("group", maintain_order=True).agg(label.unique().sort().alias("_labels"))
    draw = pl.Series("_draw", np.random.default_rng(seed).random(len(groups)))
    rank = (pl.col("_draw").rank("ordinal") - 0.5) / pl.len()
    return groups.with_columns(draw).with_columns(rank.over("_labels").alias("_at"))


def label_sentences(
    name: str, texts: Sequence[str], labels: Sequence[int] | Sequence[float], split_into_words: bool = False
) -> LabelledSentences:
    """Sentences and their labels; equal sentences are one group."""
    if len(texts) != len(labels):
        raise UserError(f"{name}: {len(texts)} sentences and {len(labels)} labels; give one label for each")
    frame = pl.DataFrame({"text": texts, "label": labels}, schema_overrides={"text": pl.String})
    return LabelledSentences(name, frame.with_columns(text_ids("text").alias("group")), split_into_words)


def text_ids(column: str) -> pl.Expr:
    """A number for each distinct text."""
    return (pl.col(column).rank("dense") - 1).cast(pl.Int64)


def acceptability(pairs: MinimalPairs) -> LabelledSentences:
    """The sentences of minimal pairs one by one: label 1 if good, 0 if bad.

    Both sentences of a pair are one group, and so are pairs that share a sentence: one of the two in training reveals
    the label of the other. Half of the examples are good, so the majority baseline is one half.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    texts = pl.concat([pairs.frame["good"], pairs.frame["bad"]])
    number = texts.rank("dense").to_numpy().astype(np.int64) - 1
    good, bad = np.split(number, 2)
    links = coo_array((np.ones(len(good)), (good, bad)), shape=(len(number), len(number)))
    group = connected_components(links, directed=False)[1][number]
    order = np.arange(len(number)).reshape(2, -1).T.ravel()  # the good sentence of a pair, then its bad one
    frame = pl.DataFrame({"text": texts, "label": np.repeat([1, 0], len(pairs)), "group": group.astype(np.int64)})[
        order
    ]
    return LabelledSentences(f"acceptability of {pairs.name}", frame, pairs.split_into_words)


def open_labelled(name: str) -> LabelledSentences:
    """Labelled sentences by name (`polarity`, `subjectivity`) or a CSV or TSV file with the columns text and label.

    polarity: 10,662 sentences of film reviews, 1 if the review is favourable. subjectivity: 10,000 sentences on
    films, 1 if from a review, 0 if from a summary of the plot. Both are lower case, words and punctuation apart.

    Raises UserError if it is neither a known name nor a file, or is not on this machine, or does not parse.
    """
    if name in ZIPS:
        return _read_zip(name, locate("sentiment") / ZIPS[name][0], ZIPS[name][1])
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"no labelled sentences {name!r}: neither a known name nor a file{did_you_mean(name, ZIPS)}")
    try:
        frame = pl.read_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
        return label_sentences(path.stem, frame["text"].cast(pl.String).to_list(), frame["label"].to_list())
    except pl.exceptions.PolarsError as problem:
        first = str(problem).splitlines()[0]
        raise UserError(f"{path} is not a table with the columns text and label ({first}); correct it") from None


def _read_zip(name: str, path: Path, members: Sequence[str]) -> LabelledSentences:
    texts, labels = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {Path(entry).name: entry for entry in archive.namelist()}
            for label, member in enumerate(members):
                if member not in entries:
                    raise UserError(f"{path} holds no {member}; it is not the zip of {name}: fetch sentiment again")
                lines = archive.read(entries[member]).decode("utf-8").translate(_CONTROLS).split("\n")
                sentences = [line.strip() for line in lines if line.strip()]
                texts += sentences
                labels += [label] * len(sentences)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run `lmdynamics fetch sentiment`") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}/{member} is not UTF-8 (byte {error.start}); fetch sentiment again") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise UserError(f"{path} is not a complete zip file ({error}); fetch sentiment again") from None
    return label_sentences(name, texts, labels)


HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """A task's folder, the columns of its sentences, its number of labels, and its metrics.

    `labels` is None where sentences are graded. Tables of results show the first of `metrics`.
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


def open_glue(task: str, source: str | Path = HUB) -> LabelledSentences:
    """A GLUE task by name, from the hub (the name of a data set there) or a local folder.

    A folder holds `TASK/SPLIT-00000-of-00001.parquet`, or that below `parquet/`. `mnli` is scored on the matched
    validation set, `mnli_mm` on the mismatched one. Rows with the same first sentence are one group. Downloads are
    kept under the cache folder.

    Raises UserError if the task is unknown, the `datasets` library is needed and missing, the files cannot be loaded,
    or they hold something else.
    """
    if task not in TASKS:
        raise UserError(f"no GLUE task {task!r}{did_you_mean(task, TASKS)}")
    glue_task = TASKS[task]
    parts = []
    for split, name in (("train", "train"), (glue_task.validation, "test")):
        rows = _load(glue_task.folder, split, source)
        if missing := {*glue_task.sentences, "label"} - set(rows.columns):
            raise UserError(f"{source}: {task} has no column {min(missing)!r}; it is not GLUE's {task}")
        parts.append(rows.select(*glue_task.sentences, "label").with_columns(pl.lit(name).alias("split")))
    frame = pl.concat(parts).rename(dict(zip(glue_task.sentences, ("text", "second"), strict=False)))
    frame = frame.with_columns(
        pl.col("label").cast(pl.Float64 if glue_task.labels is None else pl.Int64),
        text_ids("text").alias("group"),
    )
    data = LabelledSentences(task, frame, metrics=glue_task.metrics)
    if data.classes != glue_task.labels:
        raise UserError(
            f"{source}: {task} has {data.classes} labels, GLUE's has {glue_task.labels}; it is another data set"
        )
    return data


def open_task(name: str, pairs: MinimalPairs) -> LabelledSentences:
    """A downstream task by name: `acceptability` (of these pairs), a GLUE task, or a name for `open_labelled`."""
    if name == "acceptability":
        return replace(acceptability(pairs), name=name)
    return open_glue(name) if name in TASKS else open_labelled(name)


def _load(folder: str, split: str, source: str | Path) -> pl.DataFrame:
    """One split of a task; texts that are empty are left out (MNLI and QQP have a few)."""
    local = Path(source).expanduser()
    frame = pl.read_parquet(_files(local, folder, split)) if local.is_dir() else _from_hub(folder, split, str(source))
    text_columns = [name for name in frame.columns if frame[name].dtype == pl.String]
    return frame.filter(pl.all_horizontal(pl.col(text_columns).str.strip_chars() != "")) if text_columns else frame


def _from_hub(folder: str, split: str, source: str) -> pl.DataFrame:
    try:
        import datasets
    except ImportError:
        raise UserError("GLUE needs the library `datasets`; pip install lmdynamics[glue]") from None
    cache = str(writable(cache_dir() / "glue"))
    options = datasets.DownloadConfig(cache_dir=f"{cache}/downloads")
    try:
        loaded = datasets.load_dataset(source, folder, split=split, cache_dir=cache, download_config=options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as problem:
        first = str(problem).splitlines()[0]
        raise UserError(
            f"{source} is neither a folder nor a data set that the hub provides ({first}); check the name "
            "and the connection, or give a folder with TASK/SPLIT-00000-of-00001.parquet"
        ) from None
    return pl.from_arrow(loaded.data.table)


def _files(local: Path, folder: str, split: str) -> Sequence[str]:
    for candidate in (local / folder, local / "parquet" / folder):
        if files := sorted(candidate.glob(f"{split}-*-of-*.parquet")):
            return [str(file) for file in files]
    raise UserError(
        f"{local} holds no {folder}/{split}-00000-of-00001.parquet; give a folder with the layout of {HUB} on the hub"
    )
