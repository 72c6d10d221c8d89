"""Sentences given word by word as tokens, and the word that each token belongs to, for any fast tokenizer.

A sentence is read as running text: its words with a space between them. A tokenizer that cuts words given one by one
just so (WordPiece; byte-level BPE with add_prefix_space=True) gets the words. Any other (byte-level BPE as RoBERTa,
GPT-2, Pythia and OLMo-2 are published) would glue them together, so it gets the text, and a token belongs to the word
in which it lies.
"""

from collections.abc import Sequence

import numpy as np

from lmdynamics.errors import UserError


def tokenize_words(tokenizer, sentences: Sequence[Sequence[str]], name: str) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of each sentence, and the number of the word that each token belongs to, -1 for special tokens.

    Raises
    ------
    UserError
        If the tokenizer makes nothing of a word, makes one token of two words, or does not say where its tokens lie.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"a {type(tokenizer).__name__} does not say which word a token belongs to; "
            "save the tokenizer as a fast one (tokenizer.json)"
        )
    options = {"return_attention_mask": False, "verbose": False}
    if takes_words(tokenizer):
        encoded = tokenizer([list(words) for words in sentences], is_split_into_words=True, **options)
        of_words = [[-1 if word is None else word for word in encoded.word_ids(i)] for i in range(len(sentences))]
    else:
        texts = [" ".join(words) for words in sentences]
        encoded = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True, **options)
        each = zip(sentences, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        of_words = [_words_at(words, spans, special, name) for words, spans, special in each]
    for words, of_word in zip(sentences, of_words, strict=True):
        if lost := sorted(set(range(len(words))) - set(of_word)):
            raise UserError(
                f"{name}: the tokenizer makes nothing of {words[lost[0]]!r} in {_quote(words)}; "
                "leave the sentence out or use the tokenizer the model was trained with"
            )
    return encoded["input_ids"], of_words


def takes_words(tokenizer) -> bool:
    """Whether words given one by one become the same tokens as the same words in running text."""
    words = ["the", "cat", "and", "the", "dog"]
    return tokenizer(words, is_split_into_words=True)["input_ids"] == tokenizer(" ".join(words))["input_ids"]


def special_around(tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text and after it, perhaps none."""
    encoded = tokenizer("the cat", return_special_tokens_mask=True)
    ids, own = encoded["input_ids"], np.flatnonzero(np.array(encoded["special_tokens_mask"]) == 0)
    return ids[: own[0]], ids[own[-1] + 1 :]


def _words_at(words: Sequence[str], spans: Sequence[tuple[int, int]], special: Sequence[int], name: str) -> list[int]:
    """The word in which each token lies, from its first to its last character that is no space.

    A space stands in front of a word and belongs to it; so does a token of nothing else.
    """
    text = " ".join(words)
    at = np.repeat(np.arange(len(words)), [len(word) + (i > 0) for i, word in enumerate(words)])
    found = []
    for (start, end), added in zip(spans, special, strict=True):
        inside = [place for place in range(start, end) if not text[place].isspace()]
        first, last = (inside[0], inside[-1]) if inside else (min(start, len(text) - 1),) * 2
        if not added and at[first] != at[last]:
            raise UserError(
                f"{name}: the tokenizer makes one token of {text[start:end].strip()!r} in {_quote(words)}, which are "
                "several words; leave the sentence out"
            )
        found.append(-1 if added else int(at[first]))
    return found


def _quote(words: Sequence[str]) -> str:
    text = " ".join(words)
    return repr(text if len(text) <= 60 else text[:57] + "...")
