"""Treebanks: what is read from CoNLL-U, what is left out, and bad files in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.corpora.treebanks import Sentence, Treebank, open_treebank, read_conllu
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


def refusal(path):
    message = refuses(".", read_conllu, path)
    assert str(path) in message
    return message


def test_ranges_and_empty_nodes_are_left_out_and_heads_stay_right(conllu):
    (sentence,) = read_conllu(conllu(GOOD))
    assert sentence == Sentence(("I", "ca", "n't"), (1, -1, 1), ("nsubj", "root", "advmod"))


def test_subtypes_are_kept_when_asked_for(conllu):
    (sentence,) = read_conllu(conllu(GOOD), subtypes=True)
    assert sentence.relations[0] == "nsubj:pass"


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("ending", ["", "\n", "\n\n\n"])
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(conllu, end, ending):
    text = (GOOD + "\n\n\n" + GOOD + ending).replace("\n", end)
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
    "gap in the ids": (row(1, "a", 0) + "\n" + row(3, "b", 1), "expected 2, got 3"),
    "the same id twice": (row(1, "a", 0) + "\n" + row(1, "b", 1), "expected 2, got 1"),
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


@pytest.mark.parametrize(("name", "expected"), [("", "holds no *.conllu files"), ("nowhere.conllu", "does not exist")])
def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path, name, expected):
    assert expected in refusal(tmp_path / name)


def test_an_unknown_name_is_answered_with_a_near_one():
    refuses("did you mean 'childes'", open_treebank, "child")


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
    sample = bank.take(10, seed=3)
    numbers = [int(sentence.words[0]) for sentence in sample]
    assert len(set(numbers)) == 10
    assert numbers == sorted(numbers)
    assert sample.fingerprint == bank.take(10, seed=3).fingerprint != bank.take(10, seed=4).fingerprint


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
