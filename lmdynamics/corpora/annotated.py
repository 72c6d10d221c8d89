"""Sentences with gold trees as rows of token ids, and for each token the word and the relation it stands for."""

import numpy as np
import polars as pl

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.corpora.treebank import Treebank
from lmdynamics.corpora.words import tokenize_words
from lmdynamics.errors import UserError


def annotated_blocks(treebank: Treebank, tokenizer, block_size: int = 0) -> tuple[Blocks, pl.DataFrame]:
    """The sentences of `treebank`, one a row ([CLS] words [SEP]), or end to end in rows of `block_size`.

    The frame has a row for each token that belongs to a word: row, position (Int32, its place in the blocks), sentence
    and word (Int32, 0-based, of the treebank and the sentence), relation (of the word to its head), form (the word as
    it is written). All pieces of a split word carry its relation; special tokens are left out. Packed, rows are cut
    wherever they are full, as in `Blocks.packed`, also within a sentence or a word.

    Raises
    ------
    UserError
        Where `tokenize_words` does; or if the tokenizer, to be packed, does not put one special token before and one
        after a sentence, or the treebank does not fill one row.
    """
    if not len(treebank):
        raise UserError(f"{treebank.name} has no sentences; give a treebank that has some")
    ids, of_words = tokenize_words(tokenizer, [sentence.words for sentence in treebank], treebank.name)
    words = pl.DataFrame(
        [
            (number, place, relation, form)
            for number, sentence in enumerate(treebank)
            for place, (relation, form) in enumerate(zip(sentence.relations, sentence.words, strict=True))
        ],
        schema={"sentence": pl.Int32, "word": pl.Int32, "relation": pl.String, "form": pl.String},
        orient="row",
    )
    first = np.concatenate([[0], np.cumsum([len(sentence) for sentence in treebank])])
    # which of all words, counted through the treebank, each token belongs to; -1: none
    numbers = [[-1 if word < 0 else first[i] + word for word in of_word] for i, of_word in enumerate(of_words)]
    blocks, of_word = Blocks.from_rows(ids), Blocks.from_rows(numbers)
    if block_size:
        blocks, of_word = _packed(blocks, of_word, treebank, block_size)
    at = np.flatnonzero(of_word.ids >= 0)
    row = np.repeat(np.arange(len(blocks)), blocks.lengths)[at]
    places = {"row": row, "position": at - blocks.offsets[row]}
    named = pl.DataFrame(places, schema=dict.fromkeys(places, pl.Int32))
    return blocks, named.hstack(words[of_word.ids[at]])


def _packed(blocks: Blocks, of_word: Blocks, treebank: Treebank, block_size: int) -> tuple[Blocks, Blocks]:
    """Both end to end in the same rows: what `packed` cuts off around a sentence must be its special tokens."""
    edges = np.concatenate([of_word.offsets[:-1], of_word.offsets[1:] - 1])
    if (of_word.ids[edges] >= 0).any() or (of_word.ids < 0).sum() != len(edges):
        raise UserError(
            f"{treebank.name}: the tokenizer does not put one special token before and one after a sentence, "
            "as packing needs; leave the sentences one a row (block_size=0)"
        )
    if block_size < 3 or len(of_word.ids) - len(edges) < block_size - 2:
        raise UserError(
            f"{treebank.name} has {len(of_word.ids) - len(edges)} tokens, which fill no row of {block_size}; give more "
            "sentences, or a block of 3 or more"
        )
    return blocks.packed(block_size), of_word.packed(block_size)
