"""Gold sentences: CoNLL-U, BLiMP and Zorro: what is read, what is left out, and bad files in one line."""

import json
import zipfile

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.corpora.gold import (
    MinimalPairs,
    Sentence,
    Treebank,
    open_pairs,
    open_treebank,
    read_blimp,
    read_conllu,
    read_zorro,
)
from tests.conftest import refuses


def row(word_id, form, head, relation="dep"):
    return "\t".join([str(word_id), form, "_", "_", "_", "_", str(head), relation, "_", "_"])


GOOD = "\n".join(
    [
        "# sent_id = s1",
        "# text = I can't",
        row(1, "I", 2, "nsubj:pass"),
        row("2-3", "can't", "_", "_"),
        row(2, "ca", 0, "root"),
        row(3, "n't", 2, "advmod"),
        row("3.1", "go", "_", "_"),
    ]
)


@pytest.fixture
def conllu(tmp_path):
    def write(content, name="some.conllu"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path, read=read_conllu):
    message = refuses(".", read, path)
    assert str(path) in message
    return message


def test_ranges_and_empty_nodes_are_left_out_and_heads_stay_right(conllu):
    (sentence,) = read_conllu(conllu(GOOD))
    assert sentence == Sentence(("I", "ca", "n't"), (1, -1, 1), ("nsubj", "root", "advmod"))


def test_subtypes_are_kept_when_asked_for(conllu):
    (sentence,) = read_conllu(conllu(GOOD), subtypes=True)
    assert sentence.relations[0] == "nsubj:pass"


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("after", ["", "\n", "\n\n\n"])
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(conllu, end, after):
    text = (GOOD + "\n\n\n" + GOOD + after).replace("\n", end)
    bank = read_conllu(conllu(b"\xef\xbb\xbf" + text.encode()))
    assert len(bank) == 2
    assert bank.sentences[0] == bank.sentences[1]


@pytest.mark.parametrize(
    ("words", "heads"),
    [(("10 000", "a\u2028b"), (1, -1)), (("Yes", "no"), (-1, -1))],
    ids=["a space and a rare line separator", "two roots"],
)
def test_odd_words_and_several_roots_are_kept(conllu, words, heads):
    (sentence,) = read_conllu(conllu("\n".join(row(i + 1, words[i], heads[i] + 1) for i in range(2))))
    assert (sentence.words, sentence.heads) == (words, heads)


def test_comments_alone_hold_no_sentence(conllu):
    assert len(read_conllu(conllu("# newdoc\n\n" + GOOD + "\n\n# the end\n"))) == 1


def test_a_folder_is_read_in_order_of_name(conllu, tmp_path):
    conllu(row(1, "second", 0, "root"), "b.conllu")
    conllu(row(1, "first", 0, "root"), "a.conllu")
    conllu("no CoNLL-U", "readme.txt")
    assert [sentence.words for sentence in read_conllu(tmp_path)] == [("first",), ("second",)]


BAD = {
    "missing column": ("1\tYes\t_\t_\t_\t_\t0\troot\t_", "line 1 has 9 tab-separated columns"),
    "head out of range": (row(1, "Yes", 0) + "\n" + row(2, "no", 3), "word 2 (no) has head 3 in 2 words"),
    "head is no number": (row(1, "Yes", "x"), "word 1 (Yes) has head 'x', which is not a whole number"),
    "head is missing": (row(1, "Yes", "_"), "head '_', which is not a whole number"),
    "head is negative": (row(1, "Yes", -1), "head '-1', which is not a whole number"),
    "no root": (row(1, "a", 2) + "\n" + row(2, "b", 1), "no root"),
    "cycle": (
        "# sent_id = s7\n" + "\n".join([row(1, "a", 0), row(2, "b", 3), row(3, "c", 2)]),
        "line 1 (sent_id s7): the heads make a cycle: b -> c -> b",
    ),
    "its own head": (row(1, "a", 0) + "\n" + row(2, "b", 2), "cycle: b -> b"),
    "gap in the ids": (row(1, "a", 0) + "\n" + row(3, "b", 1), "where 2 should be there is 3"),
    "the same id twice": (row(1, "a", 0) + "\n" + row(1, "b", 1), "where 2 should be there is 1"),
    "id is no id": (row("one", "a", 0), "'one' is not a valid ID"),
    "empty form": (row(1, "", 0), "word 1 has no form"),
    "no relation": (row(1, "a", 0, "_"), "word 1 has no relation"),
    "only a range": (row("1-2", "can't", "_", "_"), "no words"),
}


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD.keys())
def test_what_is_not_a_tree_is_refused_in_one_line(conllu, text, expected):
    assert expected in refusal(conllu(text))


def test_one_bad_sentence_means_nothing_is_read_and_its_line_is_named(conllu):
    message = refusal(conllu(GOOD + "\n\n" + row(1, "a", 5)))
    assert "sentence at line 9:" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "holds no sentences"),
        ("\n \n", "holds no sentences"),
        ("# only a comment\n", "holds no sentences"),
        (b"1\t\xff\xfe", "not UTF-8 (byte 2)"),
        (row(1, "_", 0) + "\n" + row(2, "_", 1), "without its text"),
    ],
)
def test_a_file_without_sentences_is_refused(conllu, content, expected):
    assert expected in refusal(conllu(content))


@pytest.mark.parametrize(
    ("name", "read", "expected"),
    [
        ("", read_conllu, "holds no *.conllu files"),
        ("nowhere.conllu", read_conllu, "does not exist"),
        ("", read_blimp, "holds no *.jsonl files"),
        ("nowhere.zip", read_blimp, "does not exist"),
        ("", read_zorro, "holds no *.txt files of Zorro"),
    ],
)
def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path, name, read, expected):
    assert expected in refusal(tmp_path / name, read)


@pytest.mark.parametrize(("read", "name", "near"), [(open_treebank, "child", "childes"), (open_pairs, "blip", "blimp")])
def test_an_unknown_name_is_answered_with_a_near_one(read, name, near):
    refuses(f"did you mean '{near}'", read, name)


@st.composite
def trees(draw):
    """Random trees as 0-based heads: each word but the root hangs on one already in the tree."""
    order = draw(st.permutations(range(draw(st.integers(1, 12)))))
    heads = [-1] * len(order)
    for i, word in enumerate(order[1:], start=1):
        heads[word] = order[draw(st.integers(0, i - 1))]
    return heads


@given(trees())
def test_every_tree_is_read_back(tmp_path_factory, heads):
    path = tmp_path_factory.mktemp("trees") / "t.conllu"
    path.write_text("\n".join(row(i + 1, f"w{i}", head + 1) for i, head in enumerate(heads)), encoding="utf-8")
    assert read_conllu(path).sentences[0].heads == tuple(heads)


def bank_of(n, name="numbers"):
    return Treebank(name, tuple(Sentence((str(i),), (-1,), ("root",)) for i in range(n)))


def test_take_is_a_subset_in_order_and_the_same_for_the_same_seed():
    bank = bank_of(50)
    taken = bank.take(10, seed=3)
    numbers = [int(sentence.words[0]) for sentence in taken]
    assert len(set(numbers)) == 10
    assert numbers == sorted(numbers)
    assert taken.fingerprint == bank.take(10, seed=3).fingerprint != bank.take(10, seed=4).fingerprint


def test_take_of_more_than_there_are_is_all_and_of_none_is_refused():
    assert bank_of(5).take(9) == bank_of(5)
    with pytest.raises(ValueError, match="cannot take 0 sentences"):
        bank_of(5).take(0)


def test_the_fingerprint_is_of_the_trees_and_not_of_the_name():
    assert bank_of(5).fingerprint == bank_of(5, "another name").fingerprint
    one, other = (Treebank("x", (Sentence(words, (-1, 0), ("root", "dep")),)) for words in (("ab", "c"), ("a", "bc")))
    assert one.fingerprint != other.fingerprint


def test_a_path_is_opened(conllu):
    assert len(open_treebank(str(conllu(GOOD)))) == 1


@pytest.mark.parametrize(
    ("name", "sentences", "words"),
    [
        ("ewt", 2001, 25147),
        ("ewt-test", 2077, 25094),
        ("childes", 36737, 226470),
        ("atis", 5432, 61879),
        ("pud", 1000, 21180),
    ],
)
def test_real_treebanks_are_read_whole(real_data, name, sentences, words):
    bank = open_treebank(name)
    assert (len(bank), sum(len(sentence) for sentence in bank)) == (sentences, words)
    assert all(sentence.heads.count(-1) == 1 for sentence in bank)
    assert all(":" not in relation for sentence in bank for relation in sentence.relations)
    assert bank.name == name


def test_real_training_sentences_are_read_from_a_path(real_data):
    bank = read_conllu(real_data / "treebanks" / "UD_English-EWT" / "en_ewt-ud-train.rebuilt.conllu")
    assert len(bank) == 12544


def test_heads_agree_with_the_library_s_own_tree(real_data):
    """An independent reading of EWT dev: the library's own nested trees."""
    import conllu as library

    path = real_data / "treebanks" / "UD_English-EWT" / "en_ewt-ud-dev.conllu"
    bank = read_conllu(path, subtypes=True)

    def arcs(node, head):
        yield node.token["id"] - 1, (head, node.token["deprel"])
        for child in node.children:
            yield from arcs(child, node.token["id"] - 1)

    for sentence, tokens in zip(bank, library.parse(path.read_text(encoding="utf-8")), strict=True):
        words = tokens.filter(id=lambda i: isinstance(i, int))
        expected = dict(arcs(words.to_tree(), -1))
        assert sentence.words == tuple(word["form"] for word in words)
        assert list(zip(sentence.heads, sentence.relations, strict=True)) == [expected[i] for i in range(len(sentence))]


PAIRS = [("agreement", "Cats sleep.", "Cats sleeps."), ("agreement", "A cat sleeps.", "A cat sleep.")]


def jsonl(pairs):
    rows = ({"sentence_good": good, "sentence_bad": bad, "UID": uid, "pairID": "0"} for uid, good, bad in pairs)
    return "".join(json.dumps(row) + "\n" for row in rows)


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


@pytest.mark.parametrize("damage", ["cut", "a flipped byte"])
def test_a_damaged_zip_is_refused(blimp_zip, damage):
    content = bytearray(blimp_zip.read_bytes())
    content[content.index(b"I saw her")] ^= 1
    blimp_zip.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    assert "not a whole zip file" in refusal(blimp_zip, read_blimp)


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


def test_the_fingerprint_tells_content_and_tokenising_apart():
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
