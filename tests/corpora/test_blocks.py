"""Blocks: ragged rows of token ids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.corpora.blocks import Blocks

ragged = st.lists(st.lists(st.integers(0, 50_000), max_size=8), max_size=12)


@given(ragged)
def test_rows_come_back_as_they_were_given(rows):
    blocks = Blocks.from_rows(rows)
    assert [row.tolist() for row in blocks] == rows
    assert len(blocks) == len(rows)
    assert blocks.lengths.tolist() == [len(row) for row in rows]
    assert blocks.ids.dtype == np.int32


@given(ragged, ragged)
def test_the_fingerprint_tells_contents_apart(rows, others):
    same = Blocks.from_rows(rows).fingerprint == Blocks.from_rows(others).fingerprint
    assert same == (rows == others)


def test_the_same_ids_cut_otherwise_have_another_fingerprint():
    assert Blocks.from_rows([[1, 2], [3]]).fingerprint != Blocks.from_rows([[1], [2, 3]]).fingerprint


def test_saved_blocks_open_memory_mapped(tmp_path):
    blocks = Blocks.from_rows([[2, 7, 3], [2, 3], [2, 8, 9, 3]])
    blocks.save(tmp_path / "rows")
    opened = Blocks.load(tmp_path / "rows")
    assert isinstance(opened.ids, np.memmap)
    assert opened.fingerprint == blocks.fingerprint
    assert opened[2].tolist() == [2, 8, 9, 3]


def test_take_keeps_the_order_asked_for():
    taken = Blocks.from_rows([[0], [1, 1], [2]]).take([2, 0])
    assert [row.tolist() for row in taken] == [[2], [0]]


def test_a_memory_mapped_row_cannot_be_written(tmp_path):
    Blocks.from_rows([[1, 2]]).save(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        Blocks.load(tmp_path)[0][0] = 5


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
    packed = Blocks.from_rows(rows).packed(block_size)
    assert [row.tolist() for row in packed] == expected
    assert packed.ids.dtype == np.int32
    assert (packed.lengths == block_size).all()


@given(framed, st.integers(3, 12))
def test_packing_again_changes_nothing(rows, block_size):
    packed = Blocks.from_rows(rows).packed(block_size)
    if len(packed):
        assert packed.packed(block_size).fingerprint == packed.fingerprint


def test_memory_mapped_rows_are_packed_too(tmp_path):
    blocks = Blocks.from_rows([[2, 7, 8, 3], [2, 9, 3]])
    blocks.save(tmp_path)
    assert [row.tolist() for row in Blocks.load(tmp_path).packed(3)] == [[2, 7, 3], [2, 8, 3], [2, 9, 3]]


def test_what_makes_no_blocks_is_refused_and_too_little_text_makes_none():
    blocks = Blocks.from_rows([[2, 7, 8, 3]])
    with pytest.raises(ValueError, match="1 rows make no blocks of 2: give rows, and a block of 3 or more"):
        blocks.packed(2)
    with pytest.raises(ValueError, match="0 rows make no blocks of 8"):
        Blocks.from_rows([]).packed(8)
    assert len(blocks.packed(8)) == 0
    assert blocks.packed(8).lengths.tolist() == []
