"""Guesses for hidden words, and the sentences to hide them in; `test_architectures` has the naive loop."""

import polars as pl
import pytest

from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.corpora.treebanks import Sentence, Treebank
from lmdynamics.measurements.guesses import Guesses, example_sentences, last_word
from lmdynamics.measurements.inputs import unknown_words
from lmdynamics.runs.trained import train
from tests.conftest import TINY, refuses


def tree(text: str, root: int = 1) -> Sentence:
    words = tuple(text.split())
    heads = tuple(-1 if i == root else root for i in range(len(words)))
    return Sentence(words, heads, tuple("root" if head < 0 else "dep" for head in heads))


@pytest.fixture
def sentences(tiny_run) -> tuple[tuple[str, ...], ...]:
    return tuple(sentence.words for sentence in tiny_run.treebank("grammar", 5))


def test_every_word_has_five_guesses_in_order(tiny_checkpoint, sentences):
    frame = Guesses(sentences)(tiny_checkpoint)
    assert frame.select("sentence", "word").unique().height == sum(map(len, sentences))
    for _, part in frame.group_by("sentence", "word"):
        assert part["rank"].to_list() == [1, 2, 3, 4, 5]
        assert part["probability"].is_sorted(descending=True)
        assert part["right"].to_list() == [rank == part["right_rank"][0] for rank in range(1, 6)]


def test_other_sentences_and_long_ones_change_nothing(tiny_checkpoint, sentences, monkeypatch):
    frame = Guesses(sentences)(tiny_checkpoint)
    alone = Guesses(sentences[3:4])(tiny_checkpoint)
    columns = [name for name in frame.columns if name != "sentence"]
    assert alone.select(columns).equals(frame.filter(sentence=3).select(columns))
    monkeypatch.setattr("lmdynamics.measurements.guesses.MAX_TOKENS", 20)  # a word or two a batch
    small = Guesses(sentences)(tiny_checkpoint)
    exact = [name for name in columns if "probability" not in name]
    assert small.select(exact).equals(frame.select(exact))


def test_what_cannot_be_guessed_is_refused(home):
    refuses("no sentence", Guesses(()), _checkpoint("mlm"))
    refuses("no sentence", Guesses(((),)), _checkpoint("mlm"))
    refuses("guesses no words", Guesses((("the",),)), _checkpoint("rts"))


def _checkpoint(objective: str):
    return train("grammar-mlm", overrides={**TINY, "objective": objective}, name=objective, progress=False)[12]


def test_examples_are_short_whole_and_distinct(tiny_run):
    tokenizer, trees = tiny_run[0].tokenizer, tiny_run.treebank("grammar", 200)
    examples = example_sentences(trees, tokenizer)
    assert len(examples) == 12
    for words, hidden in examples.items():
        assert 5 <= len(words) <= 11
        assert next(sentence for sentence in trees if sentence.words == words).heads[hidden] == -1
    assert unknown_words(tokenizer, [word for words in examples for word in words]) == []


def test_without_a_treebank_there_is_one_example(tiny_run):
    tokenizer = tiny_run[0].tokenizer
    ((words, hidden),) = example_sentences(None, tokenizer).items()
    assert words[hidden] == "sleep"
    assert list(example_sentences(None, tokenizer, own="a dog sleeps")) == [("a", "dog", "sleeps")]


def test_half_of_the_examples_have_a_noun_of_the_other_number(tiny_run):
    pairs = tiny_run.pairs("grammar", 40)
    examples = example_sentences(tiny_run.treebank("grammar", 200), tiny_run[0].tokenizer, pairs)
    of_pairs = dict(pairs.frame.select("good", "bad").iter_rows())
    paradigm = dict(pairs.frame.select("good", "paradigm").iter_rows())
    right = [words for words in examples if " ".join(words) in of_pairs]
    assert list(examples)[:6] == right[:6]
    assert {paradigm[" ".join(words)] for words in right} == set(pairs.paradigms)
    for words in right[:6]:
        bad = of_pairs[" ".join(words)].split()
        assert [i for i, word in enumerate(words) if word != bad[i]] == [examples[words]]


def test_sentences_of_known_words_without_names_come_first(tiny_run):
    whole = next(words for words in (s.words for s in tiny_run.treebank("grammar", 50)) if 5 < len(words) < 11)
    name = (*whole[:-2], whole[-2].title(), ".")
    bank = Treebank("some", (tree("qq ww ee rr tt"), tree(" ".join(name)), tree(" ".join(whole)), tree("a b")))
    assert list(example_sentences(bank, tiny_run[0].tokenizer)) == [whole, ("qq", "ww", "ee", "rr", "tt"), name]
    assert list(example_sentences(bank, tiny_run[0].tokenizer, count=1)) == [whole]


def test_a_sentence_of_ones_own_is_the_first_and_any_of_its_words_can_be_hidden(tiny_run):
    bank, tokenizer = Treebank("some", (tree("the dogs see the cat ."),)), tiny_run[0].tokenizer
    own = ("my", "dog", "sleeps", ".")
    assert next(iter(example_sentences(bank, tokenizer, own="my dog sleeps .").items())) == (own, 2)
    assert example_sentences(bank, tokenizer, own="my dog sleeps .", hide=0)[own] == 0
    assert example_sentences(bank, tokenizer, hide=4) == {("the", "dogs", "see", "the", "cat", "."): 4}
    refuses("has words 0 to 3, so hide cannot be 4", example_sentences, bank, tokenizer, own="my dog sleeps .", hide=4)
    assert last_word([".", "."]) == 0


def test_pairs_that_differ_in_length_are_left_out(tiny_run):
    frame = pl.DataFrame({"paradigm": ["x"], "pair": [0], "good": ["a b c d e"], "bad": ["a b c d e f"]})
    bank = Treebank("some", (tree("the dogs see the cat ."),))
    examples = example_sentences(bank, tiny_run[0].tokenizer, MinimalPairs("one", frame, True))
    assert list(examples) == [("the", "dogs", "see", "the", "cat", ".")]
