"""The explorer of guesses: its choices and tables, and sentences of the reader's own."""

import pytest

from lmdynamics.explorers.guesses import GuessExplorer
from lmdynamics.measurements.guesses import Guesses, example_sentences
from lmdynamics.measurements.trace import trace
from tests.conftest import refuses
from tests.explorers.made import SENTENCES, guesses


@pytest.fixture
def explorer(tiny_run) -> GuessExplorer:
    examples = example_sentences(tiny_run.treebank("grammar", 60), tiny_run[0].tokenizer, count=3)
    table = trace(tiny_run, Guesses(tuple(examples)), steps=[0, 4, 12], progress=False)
    return GuessExplorer(table, examples, tiny_run)


def test_it_opens_at_the_end_with_the_word_to_hide_first():
    explorer = GuessExplorer(guesses(), SENTENCES)
    assert explorer.state() == {"sentence": "the dogs near the house sleep .", "word": 5, "step": 16}
    assert list(explorer.choices("word", explorer.now)) == [5, 1, 2, 3, 4, 6]  # nothing precedes word 0
    refuses("no word 0", GuessExplorer, guesses(), SENTENCES, word=0)
    refuses("has no rows", GuessExplorer, guesses().clear(), SENTENCES)


def test_tables_have_the_hidden_word():
    tables = GuessExplorer(guesses(), SENTENCES, step=4, word=1).tables()
    assert tables["guesses"]["rank"].to_list() == [1, 2, 3, 4, 5]
    assert tables["guesses"].filter("right")["guess"].to_list() == ["dogs"]
    assert tables["hidden_word"]["right_rank"].to_list() == [6, 5, 4, 3, 2, 1]


def test_a_place_counts_the_words_of_all_sentences():
    explorer = GuessExplorer(guesses(), SENTENCES)
    assert explorer.describe_step(16) == (
        "Step 16: of the 9 words of these 2 sentences, each hidden in turn, 5 are the best guess and 9 are among the "
        "best 5."
    )
    assert "0 are the best guess and 0 are among" in explorer.describe_step(0)


def test_a_sentence_of_ones_own_is_read_added_and_chosen(explorer):
    first = next(iter(explorer.first_hidden))
    explorer.widget  # noqa: B018
    explorer.text.value = "  ".join(first[1:])
    own = " ".join(first[1:])
    assert explorer.state() == {"sentence": own, "word": len(first) - 3, "step": 12}
    assert explorer.status.value == ""
    assert explorer.rows["step"].unique().to_list() == [0, 4, 12]
    explorer.text.value = " ".join(first)  # is there already
    assert (explorer.now["sentence"], len(explorer.texts)) == (" ".join(first), 4)


def test_unknown_words_are_named_in_one_line(explorer):
    explorer.widget  # noqa: B018
    explorer.text.value = "<b>xyzzy</b> plugh ."
    line = explorer.status.value
    assert line == "not in the model&#x27;s vocabulary, each read as [UNK]: &lt;b&gt;xyzzy&lt;/b&gt;, plugh"


def test_a_sentence_that_is_too_long_is_refused_and_nothing_changes(explorer):
    explorer.widget  # noqa: B018
    before = explorer.state()
    explorer.text.value = " ".join(["."] * 600)
    assert "the model takes at most" in explorer.status.value
    assert (explorer.state(), len(explorer.texts)) == (before, 3)


def test_a_state_with_an_own_sentence_reads_it(explorer, tiny_run):
    own = " ".join(explorer.texts[0].split()[1:])
    state = {"sentence": own, "word": 1, "step": 4}
    assert explorer.restore(state).state() == state
    table, sentences = explorer.guesses.filter(sentence=0), list(explorer.first_hidden.items())[:1]
    without = GuessExplorer(table, dict(sentences))
    refuses("does not exist", without.restore, state)
    refuses("no run", without.read, ("the",))


def test_a_causal_model_sees_only_what_precedes_the_gap(tiny_run):
    class Causal:
        objective = "clm"

    titles = [GuessExplorer(guesses(), SENTENCES, run).moving().chart.spec for run in (None, Causal())]
    both, left = (str(spec["vconcat"][0]["title"]) for spec in titles)
    assert "from left to right" in left
    assert "from left to right" not in both
