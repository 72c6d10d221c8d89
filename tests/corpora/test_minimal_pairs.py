"""Minimal pairs: what is read from BLiMP and Zorro, and bad files in one line."""

import json
import zipfile

import polars as pl
import pytest

from lmdynamics.corpora.minimal_pairs import MinimalPairs, open_pairs, read_blimp, read_zorro
from tests.conftest import refuses

PAIRS = [("agreement", "Cats sleep.", "Cats sleeps."), ("agreement", "A cat sleeps.", "A cat sleep.")]


def jsonl(pairs):
    rows = ({"sentence_good": good, "sentence_bad": bad, "UID": uid, "pairID": "0"} for uid, good, bad in pairs)
    return "".join(json.dumps(row) + "\n" for row in rows)


def refusal(path, read):
    message = refuses(".", read, path)
    assert str(path) in message
    return message


@pytest.fixture
def blimp_zip(tmp_path):
    path = tmp_path / "BLiMP.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/b.jsonl", jsonl([("case", "I saw her.", "I saw she.")]))
        archive.writestr("data/a.jsonl", jsonl(PAIRS))
        archive.writestr("__MACOSX/data/._a.jsonl", b"\x00\x05\x16")
        archive.writestr("data/readme.txt", "not pairs")
    return path


def test_blimp_s_zip_is_read_in_order_of_name_without_unpacking(blimp_zip, tmp_path):
    pairs = read_blimp(blimp_zip)
    assert pairs.frame.rows() == [
        ("agreement", 0, "Cats sleep.", "Cats sleeps."),
        ("agreement", 1, "A cat sleeps.", "A cat sleep."),
        ("case", 2, "I saw her.", "I saw she."),
    ]
    assert not pairs.split_into_words
    assert list(tmp_path.iterdir()) == [blimp_zip]


def test_zip_folder_of_the_zip_and_unpacked_folder_are_the_same(blimp_zip, tmp_path):
    unpacked = tmp_path / "unpacked" / "data"
    unpacked.mkdir(parents=True)
    (unpacked / "a.jsonl").write_text(jsonl(PAIRS), encoding="utf-8")
    (unpacked / "b.jsonl").write_text(jsonl([("case", "I saw her.", "I saw she.")]), encoding="utf-8")
    prints = {read_blimp(path).fingerprint for path in (blimp_zip, unpacked, unpacked.parent)}
    only_the_zip = tmp_path / "with_zip"
    only_the_zip.mkdir()
    blimp_zip.rename(only_the_zip / "BLiMP.zip")
    assert prints == {read_blimp(only_the_zip).fingerprint}


def test_zorro_has_wrong_before_right(tmp_path):
    (tmp_path / "agreement.txt").write_text("the cats sleeps .\nthe cats sleep .\n", encoding="utf-8")
    pairs = read_zorro(tmp_path)
    assert pairs.frame.rows() == [("agreement", 0, "the cats sleep .", "the cats sleeps .")]
    assert pairs.split_into_words


@pytest.mark.parametrize(
    "line",
    [
        *["not json", "[1, 2]", '{"UID": "x", "sentence_good": "y"}', "{"],
        '{"UID": "x", "sentence_good": 5, "sentence_bad": "y"}',
    ],
)
def test_a_bad_line_of_blimp_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(jsonl(PAIRS) + line + "\n", encoding="utf-8")
    assert "a.jsonl, line 3 is not a BLiMP pair" in refusal(tmp_path, read_blimp)


@pytest.mark.parametrize(
    ("name", "read", "expected"),
    [
        ("", read_blimp, "holds no *.jsonl files"),
        ("nowhere.zip", read_blimp, "does not exist"),
        ("", read_zorro, "holds no *.txt files of Zorro"),
    ],
)
def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path, name, read, expected):
    assert expected in refusal(tmp_path / name, read)


def test_an_unknown_name_is_answered_with_a_near_one():
    refuses("did you mean 'blimp'", open_pairs, "blip")


@pytest.mark.parametrize("damage", ["cut", "a flipped byte"])
def test_a_damaged_zip_is_refused(blimp_zip, damage):
    content = bytearray(blimp_zip.read_bytes())
    content[content.index(b"I saw her")] ^= 1
    blimp_zip.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    assert "not a complete zip file" in refusal(blimp_zip, read_blimp)


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    assert "it is not BLiMP's zip" in refusal(tmp_path / "other.zip", read_blimp)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\nb\nc\n", "the number of lines, 3, is odd"),
        ("a\n\nb\nc\n", "line 2 is empty"),
        ("", "holds no pairs"),
        ("caf\xe9\ncaf\n", "is not UTF-8 (byte 3)"),
    ],
)
def test_a_bad_file_of_zorro_is_refused(tmp_path, content, expected):
    (tmp_path / "x.txt").write_bytes(content.encode("latin-1"))
    assert expected in refusal(tmp_path, read_zorro)


def pairs_of(counts):
    rows = [(name, name, "bad") for name, count in counts.items() for _ in range(count)]
    frame = pl.DataFrame(rows, schema=["paradigm", "good", "bad"], orient="row").with_row_index("pair")
    frame = frame.select("paradigm", pl.col("pair").cast(pl.Int64), "good", "bad")
    return MinimalPairs("made", frame, split_into_words=False)


def test_a_sample_takes_at_most_so_many_of_each_paradigm():
    pairs = pairs_of({"a": 10, "b": 2, "c": 7})
    sample = pairs.sample(3, seed=1)
    counts = dict(sample.frame.group_by("paradigm").len().iter_rows())
    assert counts == {"a": 3, "b": 2, "c": 3}
    assert sample.frame["pair"].is_sorted()
    assert sample.frame.join(pairs.frame, on=pairs.frame.columns, how="anti").is_empty()
    assert sample.fingerprint == pairs.sample(3, seed=1).fingerprint != pairs.sample(3, seed=2).fingerprint
    with pytest.raises(ValueError, match="cannot sample 0 pairs"):
        pairs.sample(0)


def test_the_fingerprint_differs_by_content_and_tokenising():
    one = pairs_of({"a": 2})
    split = MinimalPairs("made", one.frame, split_into_words=True)
    swapped = MinimalPairs("made", one.frame.rename({"good": "bad", "bad": "good"}).select(one.frame.columns), False)
    assert len({one.fingerprint, split.fingerprint, swapped.fingerprint}) == 3


def test_a_path_is_opened_as_what_it_holds(blimp_zip, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "x.txt").write_text("bad\ngood\n", encoding="utf-8")
    assert open_pairs(str(blimp_zip)).paradigms == ["agreement", "case"]
    assert (open_pairs(str(folder)).name, len(open_pairs(str(folder)))) == ("mine", 1)


@pytest.mark.parametrize(("name", "paradigms", "each"), [("blimp", 67, 1000), ("zorro", 23, 2000)])
def test_real_pairs_are_read_whole(real_data, name, paradigms, each):
    pairs = open_pairs(name)
    counts = pairs.frame.group_by("paradigm").len()["len"]
    assert (len(counts), set(counts)) == (paradigms, {each})
    assert pairs.frame["pair"].n_unique() == len(pairs)
    assert pairs.frame.null_count().sum_horizontal().item() == 0


def test_zorro_s_right_sentence_is_the_good_one(real_data):
    good = open_pairs("zorro").frame.filter(pl.col("paradigm") == "agreement_subject_verb-across_relative_clause")[
        "good"
    ]
    assert good[0] == "the book that i like is poor ."
