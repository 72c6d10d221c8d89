"""GLUE from a folder laid out as on the hub; nothing here needs a network."""

import sys

import polars as pl
import pytest

from lmdynamics.corpora.labelled import TASKS, open_glue
from lmdynamics.errors import UserError
from lmdynamics.paths import cache_dir


def write(folder, task, rows=60, labels=None):
    """`train` and the validation set of a task, with the columns and types of the real files."""
    about = TASKS[task]
    (folder / about.folder).mkdir(parents=True, exist_ok=True)
    for split in ("train", about.validation):
        columns = {name: [f"{split} {name} {i // 2}" for i in range(rows)] for name in about.sentences}
        label = [i % about.labels for i in range(rows)] if about.labels else [i / 3 for i in range(rows)]
        frame = pl.DataFrame(columns | {"label": labels or label, "idx": range(rows)})
        frame.write_parquet(folder / about.folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_read_with_its_own_columns(tmp_path, task):
    write(tmp_path, task)
    data, about = open_glue(task, tmp_path), TASKS[task]
    assert data.classes == about.labels
    assert data.metrics == about.metrics
    assert ("second" in data.frame.columns) == (len(about.sentences) == 2)
    first = data.frame.row(0, named=True)
    assert first["text"] == f"train {about.sentences[0]} 0"
    assert first.get("second", "none") in (f"train {about.sentences[-1]} 0", "none")
    test = data.splits(dev=0.3).test
    assert test.frame["text"].to_list()[0] == f"{about.validation} {about.sentences[0]} 0"
    assert len(test) == 60


def test_rows_with_the_same_first_sentence_stay_together(tmp_path):
    write(tmp_path, "rte")
    train, dev, _ = open_glue("rte", tmp_path).splits()
    assert len(dev) > 0
    assert not set(train.frame["text"]) & set(dev.frame["text"])


def test_files_below_parquet_are_found_and_the_cache_is_ours(tmp_path):
    write(tmp_path / "parquet", "sst2")
    assert len(open_glue("sst2", str(tmp_path))) == 120
    assert any((cache_dir() / "glue").rglob("*.arrow"))


def test_rows_without_text_are_left_out(tmp_path):
    write(tmp_path, "cola")
    place = tmp_path / "cola" / "train-00000-of-00001.parquet"
    frame = pl.read_parquet(place)
    frame.with_columns(sentence=pl.when(pl.col("idx") == 3).then(pl.lit(" ")).otherwise("sentence")).write_parquet(
        place
    )
    assert len(open_glue("cola", tmp_path)) == 119


def refusal(task, where):
    with pytest.raises(UserError) as caught:
        open_glue(task, where)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_glue_is_refused(tmp_path):
    assert "no GLUE task 'colla'; did you mean 'cola'?" in refusal("colla", tmp_path)
    assert f"{tmp_path} holds no cola/train-00000-of-00001.parquet" in refusal("cola", tmp_path)
    write(tmp_path, "mnli", labels=[0, 1] * 30)
    assert "mnli has 2 labels, GLUE's has 3" in refusal("mnli", tmp_path)
    write(tmp_path, "mrpc")
    (tmp_path / "mrpc").rename(tmp_path / "qqp")
    assert "qqp has no column 'question1'" in refusal("qqp", tmp_path)


def test_hidden_labels_are_refused(tmp_path):
    write(tmp_path, "sst2", labels=[-1] * 60)
    assert "sst2 has the labels -1" in refusal("sst2", tmp_path)


def test_without_a_network_the_hub_is_refused_in_one_line():
    assert "is neither a folder nor a data set that can be had from the hub" in refusal("cola", "nobody/nothing")


def test_without_the_library_the_way_to_get_it_is_said(tmp_path, monkeypatch):
    write(tmp_path, "cola")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install lmdynamics[glue]" in refusal("cola", tmp_path)
