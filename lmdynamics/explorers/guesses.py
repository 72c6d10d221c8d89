"""Explore what a model guesses: choose a sentence, click on a word to hide it, and move through the checkpoints."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import cached_property
from typing import Any, ClassVar

import ipywidgets as widgets
import polars as pl

from lmdynamics.analysis.intervals import need_columns
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.guesses import COLUMNS, moving_guesses, word_click
from lmdynamics.charts.moving import Moving, Place, picker, with_slider
from lmdynamics.errors import UserError
from lmdynamics.explorers.computing import Computing
from lmdynamics.explorers.explorer import Explorer, State, sentence_box, step_options
from lmdynamics.explorers.saving import complete_state
from lmdynamics.measurements.guesses import Guesses, last_word
from lmdynamics.measurements.inputs import unknown_words
from lmdynamics.measurements.trace import trace
from lmdynamics.runs.run import Run


class GuessExplorer(Explorer):
    """Hide a word of a sentence and see the best guesses for it at each checkpoint.

    `guesses`: a trace of `Guesses` on the keys of `sentences`; these are the sentences (tuples of words), each with the
    word (0-based) to hide first. With `run`, the run that was traced, readers can enter sentences of their own, which
    are read at the same steps on `device`. `step`, `sentence` (its words, joined by spaces) and `word` are the initial
    selection: by default the last step and the first sentence.

    Raises
    ------
    UserError
        If a column is missing, there are no rows, or an initial value is unknown.
    """

    name = "explorer_guesses"
    signals: ClassVar = ("sentence", "word")

    def __init__(
        self,
        guesses: pl.DataFrame,
        sentences: Mapping[Sequence[str], int],
        run: Run | None = None,
        *,
        device: str = "cpu",
        step: int | None = None,
        sentence: str | None = None,
        word: int | None = None,
    ):
        need_columns(guesses, COLUMNS, "the explorer of guesses")
        if guesses.is_empty():
            raise UserError("the explorer of guesses: the frame has no rows; trace Guesses on some sentences first")
        self.run, self.device = run, device
        self.steps = guesses["step"].unique().sort().to_list()
        self.first_hidden = {tuple(words): hidden for words, hidden in sentences.items()}
        self.guesses = guesses
        self.start(sentence=sentence, word=word, step=step)

    @property
    def texts(self) -> list[str]:
        """The sentences, in the order of their numbers in the table."""
        return [" ".join(words) for words in self.first_hidden]

    def choices(self, entry: str, now: State) -> Mapping[Any, str]:
        if entry == "step":
            return step_options(self.steps)
        if entry == "sentence":
            return {text: text for text in self.texts}
        number = self.texts.index(now["sentence"])
        words, first = list(self.first_hidden.items())[number]
        guessed = self.guesses.filter(sentence=number)["word"].unique().to_list()
        return {word: words[word] for word in sorted(guessed, key=lambda word: (word != first, word))}

    @property
    def rows(self) -> pl.DataFrame:
        """The guesses for the hidden word, at every step."""
        return self.guesses.filter(sentence=self.texts.index(self.now["sentence"]), word=self.now["word"])

    def moving(self) -> Moving:
        causal = self.run is not None and self.run.objective == "clm"
        cursor, now = Cursor(self.steps), self.now
        chart = moving_guesses(self.guesses, list(self.first_hidden), cursor, causal)
        first = [next(iter(self.choices("word", {"sentence": text}))) for text in self.texts]
        # forced: otherwise Vega skips a word whose number is that of the previous sentence's
        update = "first_hidden[indexof(sentence_texts, sentence)]"
        follows = {"events": {"signal": "sentence"}, "update": update, "force": True}
        signals = [
            picker("sentence", "sentence", self.texts, now["sentence"]),
            {"name": "word", "value": now["word"], "on": [follows, word_click()]},
            {"name": "first_hidden", "value": first},
        ]
        places = [Place(f"{step:,}", self.describe_step(step)) for step in self.steps]
        return with_slider(chart, cursor, now["step"], places, *signals)

    def tables(self) -> dict[str, pl.DataFrame]:
        """The guesses for the hidden word at the selected step, and its own rank and probability at all steps."""
        course = self.rows.filter(rank=1).select("step", "right_rank", "right_probability")
        return {"guesses": self.rows.filter(step=self.now["step"]), "hidden_word": course}

    def describe_step(self, step: int) -> str:
        """How many of the words of all sentences are the best guess at a step, or among the listed ones."""
        rows = self.guesses.filter(step=step)
        words, listed = rows.filter(rank=1), rows["rank"].max()
        first, among = ((words["right_rank"] <= rank).sum() for rank in (1, listed))
        return (
            f"Step {step:,}: of the {len(words)} words of these {len(self.texts)} sentences, each hidden in turn, "
            f"{first} are the best guess and {among} are among the best {listed}."
        )

    # the page: a sentence of the reader's own is read in the background

    def read(self, words: tuple[str, ...], executor: Executor | None = None) -> pl.DataFrame:
        """The guesses for each word of another sentence, at the same steps."""
        if self.run is None:
            raise UserError("this explorer has no run to read a sentence with; give it one: GuessExplorer(..., run)")
        options = {"steps": self.steps, "executor": executor, "device": self.device, "progress": False}
        best = int(self.guesses["rank"].max())
        return trace(self.run, Guesses((words,), best), **options)

    def add(self, words: tuple[str, ...], guesses: pl.DataFrame) -> None:
        """Add a sentence and what was guessed for it (`read`), to be chosen like the others."""
        numbered = guesses.with_columns(sentence=pl.lit(len(self.first_hidden), pl.Int64))
        self.guesses = pl.concat([self.guesses, numbered])
        self.first_hidden[words] = last_word(words)

    def restore(self, state: Mapping[str, Any]) -> "GuessExplorer":
        entries = complete_state(state, self.state())
        words = tuple(entries["sentence"].split())
        if self.run is not None and words and words not in self.first_hidden:
            self.add(words, self.read(words))
        return super().restore(state if "sentence" not in state else {**state, "sentence": " ".join(words)})

    @cached_property
    def computing(self) -> Computing:
        return Computing()

    @cached_property
    def text(self) -> widgets.Text:
        return sentence_box(self._on_sentence, "your own")

    @cached_property
    def widget(self) -> widgets.Widget:
        own = [self.text] if self.run is not None else []
        return widgets.VBox([*own, self.status, self.computing.widget, self.views, self.saving.widget])

    def update_lists(self) -> None:
        """There are none: the list of sentences is in the picture."""

    def _on_sentence(self, words: tuple[str, ...]) -> None:
        def show(guesses: pl.DataFrame | None) -> None:
            if guesses is not None:
                self.add(words, guesses)
            self.select({**self.now, "sentence": " ".join(words), "word": None})
            tokenizer = self.run[self.steps[-1]].tokenizer
            unknown = ", ".join(unknown_words(tokenizer, words))
            self.show_message(
                unknown and f"not in the model's vocabulary, each read as {tokenizer.unk_token}: {unknown}"
            )

        if words in self.first_hidden:
            self.computing.abort()
            show(None)
        elif words:
            self.computing.begin(
                lambda executor: self.read(words, executor), show, self.show_message, "reading the sentence"
            )
