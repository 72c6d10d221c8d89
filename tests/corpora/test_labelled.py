"""Labelled sentences: real ones read whole, pairs taken apart, GLUE from a folder laid out as on the hub, splits."""

import sys
import zipfile
from functools import partial

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.corpora.labelled import (
    TASKS,
    LabelledSentences,
    acceptability,
    label_sentences,
    open_glue,
    open_labelled,
)
from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.errors import UserError
from tests.conftest import refuses


def labelled(n=200, per_group=1):
    """`n` sentences, labels in turn, `per_group` neighbours to a group."""
    frame = pl.DataFrame({"text": [f"s {i}" for i in range(n)], "label": [i % 2 for i in range(n)]})
    return LabelledSentences("made", frame.with_columns(group=pl.int_range(n) // per_group))


def pairs_of(rows, split_into_words=True):
    frame = pl.DataFrame(rows, schema=["good", "bad"], orient="row").with_row_index("pair")
    frame = frame.select(pl.lit("x").alias("paradigm"), pl.col("pair").cast(pl.Int64), "good", "bad")
    return MinimalPairs("made", frame, split_into_words)


@given(st.integers(60, 200), st.integers(1, 3), st.integers(0, 10))
def test_splits_divide_the_rows_and_no_group(n, per_group, seed):
    data = labelled(n, per_group)
    splits = data.splits(seed)
    assert sorted(text for part in splits for text in part.frame["text"]) == sorted(data.frame["text"])
    groups = [set(part.frame["group"]) for part in splits]
    assert sum(map(len, groups)) == len(set.union(*groups))
    repeated = data.splits(seed)
    assert [part.fingerprint for part in splits] == [part.fingerprint for part in repeated]


def test_shares_are_kept_for_every_label():
    frame = pl.DataFrame({"text": [f"s {i}" for i in range(1000)], "label": [int(i < 100) for i in range(1000)]})
    data = LabelledSentences("rare", frame.with_columns(group=pl.int_range(1000)))
    counts = [part.frame.group_by("label").len().sort("label")["len"].to_list() for part in data.splits(3)]
    assert counts == [[630, 70], [135, 15], [135, 15]]
    assert data.splits(3).test.fingerprint != data.splits(4).test.fingerprint


def test_the_source_s_own_test_split_is_kept():
    data = labelled(100)
    given_split = data.frame.with_columns(
        split=pl.when(pl.col("group") < 80).then(pl.lit("train")).otherwise(pl.lit("test"))
    )
    splits = LabelledSentences("made", given_split).splits()
    assert splits.test.frame["group"].to_list() == list(range(80, 100))
    assert [len(part) for part in splits] == [68, 12, 20]


def test_both_sentences_of_a_pair_are_one_group_and_pairs_that_share_one_too():
    pairs = pairs_of([("a b", "a c"), ("d e", "d f"), ("g h", "a c"), ("i", "j")])
    data = acceptability(pairs)
    assert data.frame.select("text", "label").rows() == [
        ("a b", 1), ("a c", 0), ("d e", 1), ("d f", 0), ("g h", 1), ("a c", 0), ("i", 1), ("j", 0)
    ]  # fmt: skip
    group = data.frame["group"].to_list()
    assert group[0] == group[1] == group[4] == group[5]
    assert group[2] == group[3]
    assert group[6] == group[7]
    assert len(set(group)) == 3
    assert data.split_into_words
    assert data.name == "acceptability of made"


def test_a_sentence_that_is_there_twice_is_one_group():
    data = label_sentences("made", ["a", "b", "a"], [0, 1, 1])
    assert data.frame["group"].to_list() == [0, 1, 0]


def test_the_fingerprint_differs_by_content_and_tokenising():
    sentences, swapped_labels = label_sentences("made", ["a", "b"], [0, 1]), label_sentences("made", ["a", "b"], [1, 0])
    split = label_sentences("made", ["a", "b"], [0, 1], split_into_words=True)
    assert len({sentences.fingerprint, swapped_labels.fingerprint, split.fingerprint}) == 3
    assert sentences.fingerprint == label_sentences("another name", ["a", "b"], [0, 1]).fingerprint


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a"], [0, 1], "1 sentences and 2 labels"),
        (["a", " "], [0, 1], "row 1 has no text"),
        (["a", None], [0, 1], "row 1 has no text"),
        (["a", "b"], [0, None], "row 1 has no label"),
        (["a", "b"], [0, 2], "has the labels 0, 2; expected 0, 1, ..."),
        (["a", "b"], [1, 1], "has the labels 1; expected"),
        (["a", "b"], [0.5, float("nan")], "expected 0, 1, ... without gaps, or grades"),
        (["a", "b"], ["good", "bad"], "has the labels bad, good"),
        ([], [], "(none)"),
    ],
)
def test_bad_sentences_and_labels_are_refused(texts, labels, message):
    message = refuses(".", label_sentences, "mine", texts, labels)
    assert message in message
    assert message.startswith("mine")


def test_a_missing_column_is_named():
    with pytest.raises(UserError, match="mine has no column 'group'"):
        LabelledSentences("mine", pl.DataFrame({"text": ["a", "b"], "label": [0, 1]}))


def test_impossible_splits_are_refused():
    refuses("made: 4 groups of sentences are too few to have every label in", lambda: labelled(4).splits())
    refuses("must be shares above 0 with a sum below 1", lambda: labelled().splits(dev=0.5, test=0.5))


def test_a_table_of_one_s_own_is_read(tmp_path):
    (tmp_path / "mine.tsv").write_text("text\tlabel\nA, b.\t1\nC.\t0\n", encoding="utf-8")
    (tmp_path / "mine.csv").write_text("label,text\n1,A b.\n0,C.\n", encoding="utf-8")
    assert open_labelled(str(tmp_path / "mine.tsv")).frame.rows() == [("A, b.", 1, 0), ("C.", 0, 1)]
    assert open_labelled(str(tmp_path / "mine.csv")).frame["label"].to_list() == [1, 0]
    (tmp_path / "bad.csv").write_text("sentence,label\nA,1\n", encoding="utf-8")
    refuses(r"bad\.csv is not a table with the columns text and label", open_labelled, str(tmp_path / "bad.csv"))


def test_an_unknown_name_is_refused():
    refuses("did you mean 'polarity'", open_labelled, "polarty")


@pytest.fixture
def sentiment(tmp_path, monkeypatch):
    """A folder of real data with a small polarity zip, and the path of that zip."""
    folder = tmp_path / "downstream" / "nltk_cc_by"
    folder.mkdir(parents=True)
    monkeypatch.setenv("LMDYNAMICS_DATA", str(tmp_path))
    return folder / "sentence_polarity.zip"


def write_zip(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"sentence_polarity/rt-polarity.{name}", content)


def test_dashes_lost_to_control_characters_come_back(sentiment):
    write_zip(sentiment, neg="bad \u0097 dull . \n", pos="good\u0092s caf\u00e9 . \n\n")
    assert open_labelled("polarity").frame.select("text", "label").rows() == [("bad — dull .", 0), ("good’s café .", 1)]


def test_a_damaged_zip_is_refused(sentiment):
    refuses("sentence_polarity.zip does not exist", open_labelled, "polarity")
    write_zip(sentiment, neg="bad\n")
    refuses(r"holds no rt-polarity\.pos; it is not the zip of polarity", open_labelled, "polarity")
    write_zip(sentiment, neg="bad\n", pos=b"caf\xe9\n")
    refuses(r"not UTF-8 \(byte 3\)", open_labelled, "polarity")
    sentiment.write_bytes(sentiment.read_bytes()[:50])
    refuses("not a complete zip file", open_labelled, "polarity")


@pytest.mark.parametrize(("name", "size"), [("polarity", 10_662), ("subjectivity", 10_000)])
def test_real_sentences_are_read_whole(real_data, name, size):
    data = open_labelled(name)
    assert (len(data), data.classes) == (size, 2)
    assert data.frame["label"].sum() == size // 2
    assert data.frame["group"].n_unique() == size
    assert data.frame["text"].str.contains(r"[\x{80}-\x{9f}]").sum() == 0


def test_a_favourable_review_is_label_1_and_so_is_a_review_of_either_kind(real_data):
    polarity, subjectivity = open_labelled("polarity").frame, open_labelled("subjectivity").frame
    assert polarity.filter(text="simplistic , silly and tedious .")["label"].to_list() == [0]
    assert subjectivity.filter(pl.col("text").str.starts_with("the movie begins in the past"))["label"].to_list() == [0]


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


def test_files_below_parquet_are_found(tmp_path):
    write(tmp_path / "parquet", "sst2")
    assert len(open_glue("sst2", str(tmp_path))) == 120


def test_rows_without_text_are_left_out(tmp_path):
    write(tmp_path, "cola")
    path = tmp_path / "cola" / "train-00000-of-00001.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(sentence=pl.when(pl.col("idx") == 3).then(pl.lit(" ")).otherwise("sentence")).write_parquet(path)
    assert len(open_glue("cola", tmp_path)) == 119


refusal = partial(refuses, ".", open_glue)


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
    assert "is neither a folder nor a data set that the hub provides" in refusal("cola", "nobody/nothing")


def test_without_the_library_its_installation_is_explained_and_a_folder_is_read(tmp_path, monkeypatch):
    write(tmp_path, "cola")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install lmdynamics[glue]" in refusal("cola", "nyu-mll/glue")
    assert len(open_glue("cola", tmp_path)) == 120
