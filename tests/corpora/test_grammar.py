"""The built-in language: its trees are trees, its numbers agree, its preferences hold."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from lmdynamics.corpora import grammar as module
from lmdynamics.corpora.grammar import RELATIONS, Grammar
from lmdynamics.corpora.lexicon import SPECIAL_TOKENS, word_list
from tests.conftest import refuses


@pytest.fixture(scope="module", params=["small", "large"])
def grammar(request):
    return Grammar(request.param)


@pytest.fixture(scope="module")
def numbers(grammar):
    """0 for the singular forms of nouns and verbs, 1 for the plural ones."""
    nouns, verbs = (word_list(grammar.size).filter(pos=pos).select("lemma", "form").rows() for pos in ("noun", "verb"))
    singular = {word for word, _ in nouns} | {form for _, form in verbs}
    return dict.fromkeys(singular, 0) | {form: 1 for _, form in nouns} | {word: 1 for word, _ in verbs}


def test_every_sentence_is_one_tree(grammar):
    for words, heads, relations in grammar.trees(2_000, 0):
        assert 4 <= len(words) <= 30
        assert len(words) == len(heads) == len(relations)
        assert heads.count(-1) == 1
        assert RELATIONS[relations[heads.index(-1)]] == "root"
        for word in range(len(words)):
            observed = set()
            while word != -1:
                assert word not in observed
                observed.add(word)
                word = heads[word]


def test_arcs_never_cross(grammar):
    for _, heads, _ in grammar.trees(500, 1):
        arcs = [(min(i, h), max(i, h)) for i, h in enumerate(heads) if h >= 0]
        assert not any(a < c < b < d for a, b in arcs for c, d in arcs)


def test_subject_and_verb_agree_unless_an_auxiliary_stands_between(grammar, numbers):
    agreeing = with_auxiliary = 0
    for sentence in grammar.treebank(2_000, 2):
        for i, relation in enumerate(sentence.relations):
            if relation != "nsubj":
                continue
            verb = sentence.heads[i]
            if any(h == verb and r == "aux" for h, r in zip(sentence.heads, sentence.relations, strict=True)):
                assert numbers[sentence.words[verb]] == 1
                with_auxiliary += 1
            else:
                assert numbers[sentence.words[verb]] == numbers[sentence.words[i]]
                agreeing += 1
    assert agreeing > 1_500
    assert with_auxiliary > 300


def test_every_relation_occurs_and_sizes_are_as_described():
    small, large = Grammar("small"), Grammar("large")
    counts = Counter(r for s in small.treebank(3_000, 3) for r in s.relations)
    assert set(counts) == set(RELATIONS)
    assert min(counts.values()) > 100
    assert (len(small.forms), len(large.forms)) == (581, 4_761)
    assert len(set(large.forms)) == len(large.forms)
    assert (small.name, large.name) == ("grammar-small", "grammar-large")


def test_words_follow_a_zipf_law(grammar):
    counts = Counter(w for words, _, _ in grammar.trees(20_000, 4) for w in words if w > 30).most_common()
    assert counts[0][1] > 20 * counts[len(counts) // 2][1]


def test_the_seed_decides(grammar):
    again = Grammar(grammar.size)
    assert grammar.treebank(50, 5).fingerprint == again.treebank(50, 5).fingerprint
    assert grammar.treebank(50, 5).fingerprint != grammar.treebank(50, 6).fingerprint


def test_blocks_and_tokenizer_agree(grammar):
    tokenizer = grammar.tokenizer()
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    for row, sentence in zip(grammar.blocks(50, 7), grammar.treebank(50, 7), strict=True):
        assert tokenizer(list(sentence.words), is_split_into_words=True)["input_ids"] == row.tolist()


@pytest.mark.parametrize("cores", [1, 2])
def test_a_corpus_of_several_parts_is_the_same_however_many_processes_draw_it(grammar, monkeypatch, cores):
    single = grammar.blocks_with_heads(100, 7)
    monkeypatch.setattr(module, "PART", 100)
    monkeypatch.setenv("LMDYNAMICS_CORES", str(cores))
    rows, heads = grammar.blocks_with_heads(250, 7)
    drawn = list(grammar.trees(250, 7))
    assert [row.tolist()[1:-1] for row in rows] == [words for words, _, _ in drawn]
    assert [row.tolist()[1:-1] for row in heads] == [gold for _, gold, _ in drawn]
    assert [b.take(range(100)).fingerprint for b in (rows, heads)] == [b.fingerprint for b in single]
    parts = [[row.tolist() for row in rows][start : start + 50] for start in (0, 100, 200)]
    assert all(a != b for a, b in pairwise([*parts, parts[0]]))  # no part draws what another has drawn


def test_pairs_differ_in_the_number_of_one_verb(grammar, numbers):
    pairs = grammar.pairs(100, 8)
    assert pairs.frame["paradigm"].n_unique() == 3
    assert len(pairs) == 300
    for good, bad in pairs.frame.select("good", "bad").iter_rows():
        different = [(a, b) for a, b in zip(good.split(), bad.split(), strict=True) if a != b]
        assert len(different) == 1
        assert {numbers[form] for form in different[0]} == {0, 1}


def test_attractors_have_the_other_number(grammar, numbers):
    rows = grammar.pairs(100, 9).frame.filter(paradigm="agreement_pp_attractor")
    for words in rows["good"].str.split(" "):
        assert numbers[words[1]] != numbers[words[4]]


def test_an_unknown_size_is_refused():
    refuses("no grammar of size 'huge'; choose one of small, large", Grammar, "huge")


def test_words_go_together():
    """In 85 of 100 draws the class is the preferred one; in the others it is any class, which may be the same."""
    classes = word_list("small")
    noun = dict(classes.filter(pos="noun").select("lemma", "class").rows())
    noun |= dict(classes.filter(pos="noun").select("form", "class").rows())
    verbs = classes.filter(pos="verb")
    expected = {form: row for row in verbs.rows(named=True) for form in (row["lemma"], row["form"])}
    adjectives = dict(classes.filter(pos="adjective").select("lemma", "class").rows())
    counts = {"nsubj": [0, 0], "obj": [0, 0], "amod": [0, 0], "object of a relative clause": [0, 0]}
    for sentence in Grammar().treebank(3_000, 11):
        words, heads, relations = sentence.words, sentence.heads, sentence.relations
        for i, (word, head, relation) in enumerate(zip(words, heads, relations, strict=True)):
            kind, fits = relation, None
            if relation == "nsubj":
                fits = noun[word] == expected[words[head]]["class"]
            elif relation == "obj":
                assert expected[words[head]]["transitive"]
                fits = noun[word] == expected[words[head]]["object_class"]
            elif relation == "amod":
                fits = noun[words[head]] == adjectives[word]
            elif relation == "acl" and any(h == i and r == "nsubj" for h, r in zip(heads, relations, strict=True)):
                assert expected[word]["transitive"]  # its object stands before the clause
                kind, fits = "object of a relative clause", noun[words[head]] == expected[word]["object_class"]
            if fits is not None:
                counts[kind][0] += fits
                counts[kind][1] += 1
    assert all(total > 300 for _, total in counts.values())
    assert {kind: round(fitting / total, 1) for kind, (fitting, total) in counts.items()} == dict.fromkeys(counts, 0.9)


def test_no_noun_has_the_same_adjective_twice():
    for sentence in Grammar().treebank(3_000, 12):
        pairs = [
            (w, h) for w, h, r in zip(sentence.words, sentence.heads, sentence.relations, strict=True) if r == "amod"
        ]
        assert len(pairs) == len(set(pairs))


def test_the_documented_sentences_are_drawn():
    text = (Path(__file__).parents[2] / "docs" / "built-in-language.md").read_text("utf-8")
    sentences = re.search(r"```text\n(.*?)\n```", text, re.DOTALL)[1].splitlines()
    assert sentences == [" ".join(sentence.words) for sentence in Grammar().treebank(30, seed=0)]
