"""The built-in language: its trees are trees, its numbers agree, its preferences hold."""

from collections import Counter
from itertools import pairwise

import pytest

from lmdynamics.corpora import grammar as module
from lmdynamics.corpora.grammar import RELATIONS, SPECIAL_TOKENS, Grammar
from tests.conftest import refuses


@pytest.fixture(scope="module", params=["small", "large"])
def grammar(request):
    return Grammar(request.param)


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


def test_subject_and_verb_agree_unless_an_auxiliary_stands_between(grammar):
    agreeing = with_auxiliary = 0
    for sentence in grammar.treebank(2_000, 2):
        for i, relation in enumerate(sentence.relations):
            if relation != "nsubj":
                continue
            verb = sentence.heads[i]
            plural = grammar.forms[grammar.forms.index(sentence.words[i]) - 1] + "s" == sentence.words[i]
            if any(h == verb and r == "aux" for h, r in zip(sentence.heads, sentence.relations, strict=True)):
                assert sentence.words[verb].endswith("en")
                with_auxiliary += 1
            else:
                assert sentence.words[verb].endswith("en" if plural else "es")
                agreeing += 1
    assert agreeing > 1_500
    assert with_auxiliary > 300


def test_every_relation_occurs_and_sizes_are_as_described():
    small, large = Grammar("small"), Grammar("large")
    counts = Counter(r for s in small.treebank(3_000, 3) for r in s.relations)
    assert set(counts) == set(RELATIONS)
    assert min(counts.values()) > 100
    assert 560 <= len(small.forms) <= 600
    assert 4_000 <= len(large.forms) <= 6_000
    assert len(set(large.forms)) == len(large.forms)


def test_words_follow_a_zipf_law(grammar):
    counts = Counter(w for words, _, _ in grammar.trees(20_000, 4) for w in words if w > 30).most_common()
    assert counts[0][1] > 20 * counts[len(counts) // 2][1]


def test_the_seed_decides(grammar):
    assert grammar.treebank(50, 5).fingerprint == Grammar(grammar.size).treebank(50, 5).fingerprint
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


def test_pairs_differ_in_the_number_of_one_verb(grammar):
    pairs = grammar.pairs(100, 8)
    assert pairs.frame["paradigm"].n_unique() == 3
    assert len(pairs) == 300
    for good, bad in pairs.frame.select("good", "bad").iter_rows():
        different = [(a, b) for a, b in zip(good.split(), bad.split(), strict=True) if a != b]
        assert len(different) == 1
        assert {form[-2:] for form in different[0]} == {"es", "en"}


def test_attractors_have_the_other_number(grammar):
    rows = grammar.pairs(100, 9).frame.filter(paradigm="agreement_pp_attractor")
    forms = set(grammar.forms)
    for words in rows["good"].str.split(" "):
        subject, attractor = (words[i].endswith("s") and words[i][:-1] in forms for i in (1, 4))
        assert subject != attractor


def test_an_unknown_size_is_refused():
    refuses("no grammar of size 'huge'; choose one of small, large", Grammar, "huge")
