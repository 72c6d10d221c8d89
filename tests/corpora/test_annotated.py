"""Treebanks as rows of tokens: ids against the corpus they come from, words against a loop over pieces."""

import polars as pl
import pytest
from tokenizers import normalizers

from lmdynamics.corpora.blocks import annotated_blocks
from lmdynamics.corpora.grammar import Grammar
from lmdynamics.corpora.treebank import Sentence, Treebank, open_treebank
from lmdynamics.errors import UserError
from tests.measurements.conftest import random_treebank, wordpiece

SCHEMA = {
    "row": pl.Int32,
    "position": pl.Int32,
    "sentence": pl.Int32,
    "word": pl.Int32,
    "relation": pl.String,
    "form": pl.String,
}


def loop(treebank, tokenizer, block_size):
    """Rows of ids, and the annotated tokens, piece by piece."""
    rows, tokens, stream = [], [], []
    for number, sentence in enumerate(treebank):
        for place, (form, relation) in enumerate(zip(sentence.words, sentence.relations, strict=True)):
            pieces = tokenizer([form], is_split_into_words=True, add_special_tokens=False)["input_ids"]
            stream += [(piece, (number, place, relation, form)) for piece in pieces]
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
    blocks, frame = annotated_blocks(treebank, tokenizer, block_size)
    rows, tokens = loop(treebank, tokenizer, block_size)
    assert [row.tolist() for row in blocks] == rows
    assert frame.rows() == tokens
    assert dict(frame.schema) == SCHEMA


def test_pieces_of_a_split_word_carry_its_relation():
    treebank = Treebank("one", (Sentence(("the", "unbelievable", "dog"), (2, 2, -1), ("det", "amod", "root")),))
    blocks, frame = annotated_blocks(treebank, wordpiece())
    assert len(blocks[0]) == 7
    assert frame["position"].to_list() == [1, 2, 3, 4, 5]
    assert frame["word"].to_list() == [0, 1, 1, 1, 2]
    assert frame["relation"].to_list() == ["det", "amod", "amod", "amod", "root"]
    assert frame["form"].to_list()[1:4] == ["unbelievable"] * 3


@pytest.mark.parametrize("size", ["small", "large"])
def test_packed_trees_of_the_built_in_language_are_its_packed_text(size):
    grammar = Grammar(size)
    blocks, frame = annotated_blocks(grammar.treebank(300, 5), grammar.tokenizer(), 64)
    assert blocks.fingerprint == grammar.blocks(300, 5).packed(64).fingerprint
    assert len(frame) == len(blocks) * 62
    ids = [blocks[row][position] for row, position in frame.select("row", "position").iter_rows()]
    assert [grammar.forms[i] for i in ids] == frame["form"].to_list()
    whole, _ = annotated_blocks(grammar.treebank(300, 5), grammar.tokenizer())
    assert whole.fingerprint == grammar.blocks(300, 5).fingerprint


def test_without_special_tokens_every_token_is_a_word_and_nothing_can_be_packed():
    treebank, tokenizer = random_treebank(20, seed=2), wordpiece(special=False)
    blocks, frame = annotated_blocks(treebank, tokenizer)
    assert len(frame) == len(blocks.ids)
    with pytest.raises(UserError, match="does not put one special token before and one after a sentence"):
        annotated_blocks(treebank, tokenizer, 16)


def test_what_cannot_be_annotated_is_refused():
    with pytest.raises(UserError, match="empty has no sentences"):
        annotated_blocks(Treebank("empty", ()), wordpiece())
    lost = Treebank("lost", (Sentence(("dog", "\u200b"), (-1, 0), ("root", "dep")),))
    tokenizer = Grammar("small").tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(UserError, match="lost: the tokenizer makes nothing of "):
        annotated_blocks(lost, tokenizer)
    few = random_treebank(1, seed=0)
    for block_size in (2, 500):
        with pytest.raises(UserError, match=f"which fill no row of {block_size}"):
            annotated_blocks(few, wordpiece(), block_size)


def test_a_real_treebank_is_annotated_whole(real_data):
    treebank = open_treebank("ewt")
    _, frame = annotated_blocks(treebank, wordpiece())
    words = frame.unique(["sentence", "word"], maintain_order=True)
    assert words["form"].to_list() == [word for sentence in treebank for word in sentence.words]
    assert words["relation"].to_list() == [relation for sentence in treebank for relation in sentence.relations]
