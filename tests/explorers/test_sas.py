"""The SAS explorer on a run of twelve steps: what it starts with, what is computed beside the page, what it refuses."""

import ast
import asyncio
import threading
from xml.etree import ElementTree

import polars as pl
import pytest

from lmdynamics import charts
from lmdynamics.errors import UserError
from lmdynamics.explorers.sas import SasExplorer
from lmdynamics.training.recipes import load_recipe
from tests.conftest import TINY, trained
from tests.explorers.test_states import digest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained once: no test here changes it."""
    return trained(load_recipe("grammar-mlm", overrides=TINY), tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run with more layers, fewer heads, and other steps."""
    shape = {"model.num_hidden_layers": 3, "model.num_attention_heads": 1, "training.steps": 20}
    recipe = load_recipe("grammar-mlm", overrides=TINY | shape)
    return trained(recipe, tmp_path_factory.mktemp("runs") / "other")


@pytest.fixture(scope="module")
def treebank(run):
    return run.treebank("grammar", 60)


def made(*runs, treebank, **options):
    explorer = SasExplorer(runs, treebank, **{"min_count": 20, "progress": False} | options)
    explorer.widget  # noqa: B018
    return explorer


@pytest.fixture
def explorer(run, treebank):
    return made(run, treebank=treebank)


@pytest.fixture(scope="module")
def unchanged(run, treebank):
    """An explorer for what must not change it."""
    return made(run, treebank=treebank)


def move(explorer, **values):
    """As a reader who moves something within the picture."""
    explorer.views.values = {**explorer.views.values, **values}


def steps_drawn(explorer):
    """The checkpoints at which the arcs of the sentence are on the page."""
    (arcs,) = (data for data in explorer.views.content["spec"]["datasets"].values() if "rise_at" in data)
    steps = explorer.measured.run.steps
    return {step for at in arcs["rise_at"] for step, rise in zip(steps, at, strict=True) if rise is not None}


def notebook(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, 60))


async def until(happened):
    while not happened():
        await asyncio.sleep(0.01)


def test_it_starts_at_the_last_checkpoint_with_the_best_head_of_the_most_frequent_relation(explorer, run):
    now, seen = explorer.now, explorer.measured
    assert now["step"] == run.steps[-1]
    assert now["relation"] == seen.relations[0]
    assert (now["layer"], now["head"], now["direction"]) == seen.best_heads[now["relation"]]
    assert now["relation"] in next(s for s in explorer.treebank if s.words == now["sentence"]).relations
    assert "root" not in seen.relations[:3]
    assert explorer.widget.children[0].children == (explorer.lists["sentence"], explorer.text)


def test_moving_within_the_picture_changes_state_and_data_and_redraws_nothing(explorer):
    content = digest(explorer.views.content)
    layer, head, direction = explorer.measured.best_heads[other := explorer.measured.relations[1]]
    move(explorer, at=2, relation=other, layer=layer, head=head, direction=direction)
    assert digest(explorer.views.content) == content
    wanted = {"step": 2, "relation": other, "layer": layer, "head": head, "direction": direction}
    assert explorer.state().items() >= wanted.items()
    svg = charts.to_svg(explorer.moving().still())
    assert f"Which heads follow {other}, step 2" in svg
    assert f"Layer {layer}, head {head}, read {direction}, at step 2" in svg


def test_words_at_a_place_are_those_of_the_traces(explorer, run):
    place = explorer.moving().places[run.steps.index(4)]
    row = explorer.measured.curve.filter(source="per_relation", step=4).row(0, named=True)
    loss = explorer.measured.losses[4]
    assert place.text == (
        f"Step 4: loss {loss:.3f} nats; heads find {row['uas']:.0%} [{row['low']:.0%}, {row['high']:.0%}] of all arcs."
    )


def test_the_picture_fits_on_one_screen(explorer):
    svg = ElementTree.fromstring(charts.to_svg(explorer.moving().still()))
    assert (float(svg.get("width")) <= 960, float(svg.get("height")) <= 700) == (True, True)


def test_a_sentence_of_one_word_and_one_of_many_are_drawn(explorer):
    explorer.restore({"sentence": ["the"]})
    assert "<svg" in charts.to_svg(explorer.moving().still())
    explorer.restore({"sentence": ["the"] * 30})  # drawn smaller, as wide as the page allows
    svg = ElementTree.fromstring(charts.to_svg(explorer.moving().still()))
    assert float(svg.get("width")) <= 960


def test_a_relation_brings_its_best_head(explorer):
    signals = {signal["name"]: signal for signal in explorer.moving().signals}
    best = {name: list(head) for name, head in explorer.measured.best_heads.items()}
    assert signals["best_heads"]["value"] == best
    for i, name in enumerate(("layer", "head", "direction")):
        follows, clicked = signals[name]["on"]
        assert (follows["events"], follows["update"]) == ({"signal": "relation"}, f"best_heads[relation][{i}]")
        assert follows["force"]  # also where the last relation had the same best head, and another was picked since
        assert clicked["update"] == f"datum.{name}"


def test_a_typed_sentence_is_shown_as_text_and_unknown_words_are_named(explorer):
    explorer.text.value = "<img/src=x> the"
    assert explorer.now["sentence"] == explorer.lists["sentence"].value == ("<img/src=x>", "the")
    svg = charts.to_svg(explorer.moving().still())
    assert "<img" not in svg
    assert "no gold tree to compare with" in svg
    assert "as in the gold tree" not in svg
    assert explorer.status.value == "not in the model&#x27;s vocabulary, each read as [UNK]: &lt;img/src=x&gt;"
    explorer.text.value = "the " * 100
    assert explorer.now["sentence"] == ("<img/src=x>", "the")
    assert "takes at most" in explorer.status.value


def test_another_run_keeps_what_it_can(run, other, treebank):
    explorer = made(run, other, treebank=treebank, step=12)
    relation = explorer.now["relation"]
    explorer.lists["run"].value = "other"
    assert (explorer.now["relation"], explorer.now["step"]) == (relation, 16)  # nearer to 12 than 8, log-wise
    assert (
        tuple(explorer.now[name] for name in ("layer", "head", "direction")) == (explorer.measured.best_heads[relation])
    )
    assert explorer.views.values["at"] == other.steps.index(16)
    (layers,) = (signal["bind"]["options"] for signal in explorer.moving().signals if signal["name"] == "layer")
    assert layers == [0, 1, 2]
    explorer.lists["run"].value = "tiny"
    assert explorer.measured.run is run
    assert explorer.status.value == ""


def test_a_run_that_cannot_be_measured_is_left_again(run, other, treebank, monkeypatch):
    explorer = made(run, other, treebank=treebank)

    def damaged(*_, **__):
        raise UserError("step 8 is <damaged>; copy it again")

    monkeypatch.setattr("lmdynamics.explorers.sas.trace_all", damaged)
    explorer.lists["run"].value = "other"
    assert explorer.now["run"] == explorer.lists["run"].value == "tiny"
    assert explorer.status.value == "step 8 is &lt;damaged&gt;; copy it again"


@pytest.mark.parametrize("cancelled", [True, False])
def test_while_a_run_is_measured_the_old_one_can_be_moved_through(run, other, treebank, monkeypatch, cancelled):
    explorer = made(run, other, treebank=treebank)
    computing, go_on, measure = explorer.computing, threading.Event(), explorer.measure

    def held(index, executor=None):
        if executor is not None:
            executor.submit(go_on.wait, 20).result()
        return measure(index, executor)

    monkeypatch.setattr(explorer, "measure", held)

    async def moved_meanwhile():
        explorer.lists["run"].value = "other"
        await until(lambda: computing.widget.layout.display != "none")
        assert computing.message.value.startswith("measuring other")
        move(explorer, at=run.steps.index(4))
        assert (explorer.now["run"], explorer.now["step"]) == ("tiny", 4)
        if cancelled:
            computing.cancel.click()
        go_on.set()
        await until(lambda: not computing.busy)

    notebook(moved_meanwhile())
    assert explorer.now["run"] == explorer.lists["run"].value == ("tiny" if cancelled else "other")
    assert explorer.now["step"] == 4
    assert explorer.views.values["at"] == explorer.measured.run.steps.index(4)


def test_a_sentence_is_seen_at_this_checkpoint_before_the_others_have_read_it(run, treebank):
    explorer, seen, go_on = made(run, treebank=treebank, step=4), [], threading.Event()
    computing, read = explorer.computing, explorer.read

    def held(index, words, executor=None, step=None):
        if executor is not None and step is None:
            executor.submit(go_on.wait, 20).result()
        return read(index, words, executor, step)

    explorer.read = held

    async def typed():
        explorer.text.value = "the the the"
        await until(lambda: explorer.now["sentence"] == ("the", "the", "the"))
        seen.append(steps_drawn(explorer))
        computing.cancel.click()
        assert explorer.status.value == "cancelled; what was computed so far is kept"
        go_on.set()
        move(explorer, at=run.steps.index(8))  # reading goes on where it is needed
        assert computing.busy
        await until(lambda: not computing.busy)
        seen.append(steps_drawn(explorer))

    notebook(typed())
    assert seen == [{4}, set(run.steps)]


def test_of_thirty_sentences_picked_in_a_second_two_are_read_and_the_last_is_shown(run, treebank):
    explorer, seen, go_on = made(run, treebank=treebank), [], threading.Event()
    picker, read = explorer.lists["sentence"], explorer.read
    sentences = [words for _, words in picker.options if words != explorer.now["sentence"]][:30]

    def held(index, words, executor=None, step=None):
        if executor is not None and words not in seen:
            seen.append(words)
            executor.submit(go_on.wait, 20).result()
        return read(index, words, executor, step)

    explorer.read = held

    async def picked():
        for words in sentences:
            picker.value = words
            await until(lambda: seen)
            await asyncio.sleep(0.01)
        go_on.set()
        await until(lambda: not explorer.computing.busy)

    notebook(picked())
    assert len(sentences) == 30
    assert seen == [sentences[0], sentences[-1]]
    assert explorer.now["sentence"] == picker.value == sentences[-1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"relation": "iobj"}, "no scores for the relation 'iobj'"),
        ({"step": 5}, "no checkpoint at step 5"),
        ({"min_count": 10**6}, "relation"),
    ],
)
def test_a_start_that_was_not_measured_is_refused(run, treebank, options, says):
    with pytest.raises(UserError, match=says):
        made(run, treebank=treebank, **options)


def test_no_run_is_refused(treebank):
    with pytest.raises(UserError, match="at least one run"):
        made(treebank=treebank)


def test_a_state_brings_back_the_same_views_and_data(run, other, treebank):
    before = made(run, other, treebank=treebank)
    before.restore({"run": "other", "step": 4, "layer": 2, "head": 0, "sentence": ["the", "the"]})
    state = before.state()
    assert state == ast.literal_eval(repr(state))
    assert (state["run"], state["step"], state["layer"], state["sentence"]) == ("other", 4, 2, ["the", "the"])
    after = made(run, other, treebank=treebank)
    content = digest(before.views.content)
    assert digest(after.views.content) != content
    assert after.restore(state).state() == state
    assert (digest(after.views.content), after.views.values) == (content, before.views.values)
    assert after.lists["sentence"].value == ("the", "the")
    unshown = SasExplorer([run, other], treebank, min_count=20, progress=False).restore(state)
    assert digest(unshown.moving().content()) == content
    assert all(table.equals(before.tables()[name]) for name, table in unshown.tables().items())
    assert made(run, run, treebank=treebank).state()["run"] == "tiny (1)"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"step": 5}, "step is 5, which does not exist"),
        ({"run": "gone"}, "run is 'gone', which does not exist .any more.; known: tiny"),
        ({"relation": "iobj"}, "relation is 'iobj'"),
        ({"layer": 7}, "layer is 7"),
        ({"direction": "up"}, "direction is 'up'"),
        ({"sentence": []}, "a list of words"),
        ({"sentence": ["the", 3]}, "a list of words"),
        ({"sentence": ["the"] * 100}, "takes at most"),
        ({"heads": 1}, "no entry 'heads'; did you mean 'head'"),
    ],
)
def test_a_state_that_fits_no_more_changes_nothing(unchanged, state, says):
    explorer = unchanged
    before = explorer.state(), digest(explorer.views.content), explorer.custom
    with pytest.raises(UserError, match=says) as refusal:
        explorer.restore({"layer": 1, **state})
    assert "\n" not in str(refusal.value)
    assert (explorer.state(), digest(explorer.views.content), explorer.custom) == before


def test_views_are_saved_with_the_data_they_show(explorer, tmp_path):
    explorer.saving.folder.value = str(tmp_path)
    explorer.saving.save.click()
    assert {path.name for path in tmp_path.iterdir()} == {
        "explorer.svg", "explorer.png", "explorer_curves.csv", "explorer_heads.csv", "explorer_arcs.csv"
    }  # fmt: skip
    now = explorer.now
    assert now["sentence"][0] in (tmp_path / "explorer.svg").read_text(encoding="utf-8")
    heads = pl.read_csv(tmp_path / "explorer_heads.csv")
    assert (set(heads["step"]), set(heads["relation"])) == ({now["step"]}, {now["relation"]})
    arcs = pl.read_csv(tmp_path / "explorer_arcs.csv")
    assert arcs["text"].to_list() == [now["sentence"][word] for word in arcs["word"]]
    assert set(arcs["step"]) == {now["step"]}
    assert set(pl.read_csv(tmp_path / "explorer_curves.csv")["curve"]) >= {"loss", "uas, per_relation"}
