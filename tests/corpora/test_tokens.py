"""TokenRows: ragged rows of token ids, the words they come from, and groups of their tokens."""

from collections import Counter
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from lmdynamics.corpora.grammar import Grammar
from lmdynamics.corpora.tokens import TokenRows, annotated_rows, frequency_groups, group_names, position_groups
from lmdynamics.corpora.treebanks import Sentence, Treebank, open_treebank
from tests.conftest import refuses
from tests.measurements.conftest import random_treebank, wordpiece

ragged = st.lists(st.lists(st.integers(0, 50_000), max_size=8), max_size=12)


@given(ragged)
def test_rows_come_back_as_they_were_given(rows):
    blocks = TokenRows.from_rows(rows)
    assert [row.tolist() for row in blocks] == rows
    assert len(blocks) == len(rows)
    assert blocks.lengths.tolist() == [len(row) for row in rows]
    assert blocks.ids.dtype == np.int32


@given(ragged, ragged)
def test_the_fingerprint_differs_by_content(rows, other_rows):
    equal_fingerprints = TokenRows.from_rows(rows).fingerprint == TokenRows.from_rows(other_rows).fingerprint
    assert equal_fingerprints == (rows == other_rows)


def test_the_same_ids_cut_otherwise_have_another_fingerprint():
    assert TokenRows.from_rows([[1, 2], [3]]).fingerprint != TokenRows.from_rows([[1], [2, 3]]).fingerprint


def test_saved_blocks_open_memory_mapped(tmp_path):
    blocks = TokenRows.from_rows([[2, 7, 3], [2, 3], [2, 8, 9, 3]])
    blocks.save(tmp_path / "rows")
    opened = TokenRows.load(tmp_path / "rows")
    assert isinstance(opened.ids, np.memmap)
    assert opened.fingerprint == blocks.fingerprint
    assert opened[2].tolist() == [2, 8, 9, 3]


def test_take_keeps_the_order_asked_for():
    sample = TokenRows.from_rows([[0], [1, 1], [2]]).take([2, 0])
    assert [row.tolist() for row in sample] == [[2], [0]]


def test_a_memory_mapped_row_cannot_be_written(tmp_path):
    TokenRows.from_rows([[1, 2]]).save(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        TokenRows.load(tmp_path)[0][0] = 5


framed = st.lists(
    st.lists(st.integers(5, 50_000), max_size=8).map(lambda inner: [2, *inner, 3]), min_size=1, max_size=12
)


@given(framed, st.integers(3, 12))
def test_packed_rows_equal_a_loop_over_tokens(rows, block_size):
    expected, inner = [], []
    for row in rows:
        for token in row[1:-1]:
            inner.append(token)
            if len(inner) == block_size - 2:
                expected.append([2, *inner, 3])
                inner = []
    packed = TokenRows.from_rows(rows).packed(block_size)
    assert [row.tolist() for row in packed] == expected
    assert packed.ids.dtype == np.int32
    assert (packed.lengths == block_size).all()


def test_memory_mapped_rows_are_packed_too(tmp_path):
    blocks = TokenRows.from_rows([[2, 7, 8, 3], [2, 9, 3]])
    blocks.save(tmp_path)
    assert [row.tolist() for row in TokenRows.load(tmp_path).packed(3)] == [[2, 7, 3], [2, 8, 3], [2, 9, 3]]


def test_what_makes_no_blocks_is_refused_and_too_little_text_makes_none():
    blocks = TokenRows.from_rows([[2, 7, 8, 3]])
    with pytest.raises(ValueError, match="1 rows make no blocks of 2: give rows, and a block of 3 or more"):
        blocks.packed(2)
    with pytest.raises(ValueError, match="0 rows make no blocks of 8"):
        TokenRows.from_rows([]).packed(8)
    assert len(blocks.packed(8)) == 0
    assert blocks.packed(8).lengths.tolist() == []


SCHEMA = dict.fromkeys(("row", "position", "sentence", "word"), pl.Int32) | {"relation": pl.String, "form": pl.String}


def loop(treebank, tokenizer, block_size):
    """Rows of ids, and the annotated tokens, piece by piece."""
    rows, tokens, stream = [], [], []
    for number, sentence in enumerate(treebank):
        for index, (form, relation) in enumerate(zip(sentence.words, sentence.relations, strict=True)):
            pieces = tokenizer([form], is_split_into_words=True, add_special_tokens=False)["input_ids"]
            stream += [(piece, (number, index, relation, form)) for piece in pieces]
        if not block_size:
            rows.append(stream)
            stream = []
        while block_size and len(stream) >= block_size - 2:
            rows.append(stream[: block_size - 2])
            stream = stream[block_size - 2 :]
    for number, row in enumerate(rows):
        tokens += [(number, position, *word) for position, (_, word) in enumerate(row, start=1)]
    return [[2, *(piece for piece, _ in row), 3] for row in rows], tokens


@pytest.mark.parametrize("block_size", [0, 3, 8, 16])
def test_equals_a_loop_over_pieces(block_size):
    treebank, tokenizer = random_treebank(40, seed=1), wordpiece()
    blocks, frame = annotated_rows(treebank, tokenizer, block_size)
    rows, tokens = loop(treebank, tokenizer, block_size)
    assert [row.tolist() for row in blocks] == rows
    assert frame.rows() == tokens
    assert dict(frame.schema) == SCHEMA


@pytest.mark.parametrize("size", ["small", "large"])
def test_packed_trees_of_the_built_in_language_are_its_packed_text(size):
    grammar = Grammar(size)
    blocks, frame = annotated_rows(grammar.treebank(300, 5), grammar.tokenizer(), 64)
    assert blocks.fingerprint == grammar.blocks(300, 5).packed(64).fingerprint
    assert len(frame) == len(blocks) * 62
    ids = [blocks[row][position] for row, position in frame.select("row", "position").iter_rows()]
    assert [grammar.forms[i] for i in ids] == frame["form"].to_list()
    unpacked, _ = annotated_rows(grammar.treebank(300, 5), grammar.tokenizer())
    assert unpacked.fingerprint == grammar.blocks(300, 5).fingerprint


def test_without_special_tokens_every_token_is_a_word_and_nothing_can_be_packed():
    treebank, tokenizer = random_treebank(20, seed=2), wordpiece(special=False)
    blocks, frame = annotated_rows(treebank, tokenizer)
    assert len(frame) == len(blocks.ids)
    refuses("does not put one special token before and one after a sentence", annotated_rows, treebank, tokenizer, 16)


def test_what_cannot_be_annotated_is_refused():
    refuses("empty has no sentences", annotated_rows, Treebank("empty", ()), wordpiece())
    treebank = Treebank("lost", (Sentence(("dog", "\u200b"), (-1, 0), ("root", "dep")),))
    tokenizer = Grammar("small").tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    refuses("lost: the tokenizer gives no token for ", annotated_rows, treebank, tokenizer)
    few = random_treebank(1, seed=0)
    for block_size in (2, 500):
        refuses(f"which fill no row of {block_size}", annotated_rows, few, wordpiece(), block_size)


def test_a_real_treebank_is_annotated_whole(real_data):
    treebank = open_treebank("ewt")
    _, frame = annotated_rows(treebank, wordpiece())
    words = frame.unique(["sentence", "word"], maintain_order=True)
    assert words["form"].to_list() == [word for sentence in treebank for word in sentence.words]
    assert words["relation"].to_list() == [relation for sentence in treebank for relation in sentence.relations]


rows = st.lists(st.lists(st.integers(0, 19), max_size=30), min_size=1, max_size=10).filter(any)
rising = st.sets(st.integers(2, 60), min_size=1, max_size=4).map(sorted)


@given(rows, rising)
def test_equals_a_loop_over_tokens(texts, bins):
    counts = Counter(token for text in texts for token in text)
    total = counts.total()
    expected = []
    for token in range(20):
        group = sum(Fraction(counts[token], total) < Fraction(1, n) for n in bins)
        expected.append((token, counts[token], group_names(bins)[group]))
    groups = frequency_groups(TokenRows.from_rows(texts), 20, bins)
    assert groups.rows() == expected
    assert dict(groups.schema) == {"token": pl.Int32, "count": pl.Int64, "group": pl.Enum(group_names(bins))}


def test_names_state_frequencies_and_the_unseen_are_with_the_rarest():
    blocks = TokenRows.from_rows([[1] * 9_899, [2] * 100, [3]])
    groups = frequency_groups(blocks, 6)
    assert groups["group"].to_list() == [
        "rarer than 1 in 10,000",
        "at least 1 in 100",
        "at least 1 in 100",  # exactly 1 in 100
        "1 in 1,000–10,000",  # exactly 1 in 10,000
        "rarer than 1 in 10,000",
        "rarer than 1 in 10,000",
    ]


def test_what_makes_no_groups_is_refused():
    blocks = TokenRows.from_rows([[1, 7]])
    refuses("token 7 is in the rows, but the vocabulary has 5 tokens", frequency_groups, blocks, 5)
    refuses("no rows to count tokens in", frequency_groups, TokenRows.from_rows([]), 5)
    for bins in ([], [1, 10], [10, 5], [10, 10]):
        refuses("frequency bins must increase, from 2 upwards", frequency_groups, blocks, 8, bins)


def test_positions_are_grouped_by_how_much_stands_before_them():
    groups = position_groups(TokenRows.from_rows([[2] * 10, [3], [4] * 3]))
    assert groups["row"].to_list() == [0] * 10 + [1] + [2] * 3
    assert groups["position"].to_list() == [*range(10), 0, 0, 1, 2]
    assert groups["group"].to_list()[:10] == ["0", "1", "2–3", "2–3", "4–7", "4–7", "4–7", "4–7", "8–15", "8–15"]
    assert groups.sort("group", "position")["position"].is_sorted()
    refuses("no rows with positions", position_groups, TokenRows.from_rows([]))


@given(st.integers(1, 200))
def test_every_position_has_a_group_that_holds_it(n):
    for position, group in position_groups(TokenRows.from_rows([[1] * n])).select("position", "group").iter_rows():
        low, _, high = group.partition("–")
        assert int(low) <= position <= int(high or low)
