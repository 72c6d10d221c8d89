"""The explorer on a run of twelve steps: what it starts with, what a control changes, what it refuses."""

import ast
import asyncio
import json
import threading

import polars as pl
import pytest

from lmdynamics.errors import UserError
from lmdynamics.explorers.sas import SasExplorer
from lmdynamics.training.recipes import load_recipe
from tests.conftest import TINY, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained once: no test here changes it."""
    return trained(load_recipe("grammar-mlm", overrides=TINY), tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def treebank(run):
    return run.treebank("grammar", 60)


@pytest.fixture
def explorer(run, treebank):
    return SasExplorer(run, treebank, min_count=20, progress=False)


def control(box, kind, description):
    found = [box] if getattr(box, "description", None) == description and type(box).__name__ == kind else []
    return found + [hit for child in getattr(box, "children", ()) for hit in control(child, kind, description)]


def views(box):
    found = [box] if type(box).__name__ == "JupyterChart" else []
    return found + [hit for child in getattr(box, "children", ()) for hit in views(child)]


def test_it_starts_at_the_last_checkpoint_with_the_best_head_of_the_most_frequent_relation(explorer, run):
    state, seen = explorer.now, explorer.measured
    assert state.step == run.steps[-1]
    assert state.relation == seen.relations[0]
    assert (state.layer, state.head, state.direction) == seen.best_head(state.relation)
    assert state.relation in next(s for s in explorer.treebank if s.words == state.words).relations
    assert "root" not in seen.relations[:3]


def test_stills_are_three_pictures_and_files(explorer, tmp_path, capsys):
    explorer.show(str(tmp_path), interactive=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "explorer_arcs.svg",
        "explorer_curves.svg",
        "explorer_heads.svg",
    ]
    assert explorer.now.words[0] in (tmp_path / "explorer_arcs.svg").read_text(encoding="utf-8")


def test_moving_the_slider_moves_every_view_and_redraws_none(explorer):
    box = explorer.widget
    curves, heads, arcs = views(box)
    specs = [view.spec for view in (curves, heads, arcs)]
    control(box, "SelectionSlider", "checkpoint")[0].value = 4
    assert [view.params.sas_step for view in (curves, heads, arcs)] == [4.0, 4.0, 4.0]
    assert all(view.spec is spec for view, spec in zip((curves, heads, arcs), specs, strict=True))


def test_a_relation_brings_its_best_head_and_redraws_map_and_arcs(explorer):
    box = explorer.widget
    _, heads, arcs = views(box)
    other = explorer.measured.relations[1]
    control(box, "Dropdown", "relation")[0].value = other
    best = explorer.measured.best_head(other)
    assert (explorer.now.layer, explorer.now.head, explorer.now.direction) == best
    assert control(box, "Dropdown", "head")[0].value == best[1]
    assert (heads.params.chosen_layer, heads.params.chosen_head) == best[:2]
    assert heads.spec["title"]["text"] == [f"Which heads follow {other}"]
    assert f"layer {best[0]}, head {best[1]}" in json.dumps(arcs.spec)


def test_another_head_moves_the_mark_without_redrawing_the_map(explorer):
    box = explorer.widget
    _, heads, arcs = views(box)
    before = heads.spec, arcs.spec
    control(box, "Dropdown", "head")[0].value = 1 - explorer.now.head
    assert heads.spec is before[0]
    assert heads.params.chosen_head == explorer.now.head
    assert arcs.spec is not before[1]


def test_a_typed_sentence_is_shown_as_text_and_unknown_words_are_named(explorer):
    box = explorer.widget
    text = control(box, "Text", "or")[0]
    text.value = "<img/src=x> the"
    arcs = views(box)[2]
    assert explorer.now.words == ("<img/src=x>", "the")
    assert control(box, "Dropdown", "sentence")[0].value == explorer.now.words
    assert "no gold tree to compare with" in json.dumps(arcs.spec)
    assert "as in the gold tree" not in json.dumps(arcs.spec)
    status = control(box, "HTML", "")[0]
    assert status.value == "not in the model&#x27;s vocabulary, each read as [UNK]: &lt;img/src=x&gt;"


def test_a_sentence_too_long_for_the_model_changes_nothing_but_the_message(explorer):
    box = explorer.widget
    before = explorer.now.words
    control(box, "Text", "or")[0].value = "the " * 100
    assert explorer.now.words == before
    assert "takes at most" in control(box, "HTML", "")[0].value


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A run with more layers, fewer heads, and other steps."""
    shape = {"model.num_hidden_layers": 3, "model.num_attention_heads": 1, "training.steps": 20}
    recipe = load_recipe("grammar-mlm", overrides=TINY | shape)
    return trained(recipe, tmp_path_factory.mktemp("runs") / "other")


def test_another_run_keeps_what_it_can(run, other, treebank):
    explorer = SasExplorer([run, other], treebank, min_count=20, step=12, progress=False)
    box = explorer.widget
    curves, heads, arcs = views(box)
    relation = explorer.now.relation
    control(box, "Dropdown", "run")[0].value = 1
    state = explorer.now
    assert (state.relation, state.step) == (relation, 16)  # 16 is nearer to 12 than 8, log-wise
    assert (state.layer, state.head, state.direction) == explorer.measured.best_head(relation)
    assert control(box, "Dropdown", "layer")[0].options == (0, 1, 2)
    assert control(box, "SelectionSlider", "checkpoint")[0].value == 16
    assert [view.params.sas_step for view in (curves, heads, arcs)] == [16.0] * 3
    assert heads.params.chosen_layer == state.layer
    control(box, "Dropdown", "run")[0].value = 0
    assert explorer.measured.run is run
    assert control(box, "HTML", "")[0].value == ""


def test_a_run_that_cannot_be_measured_is_left_again(run, other, treebank, monkeypatch):
    explorer = SasExplorer([run, other], treebank, min_count=20, progress=False)
    box = explorer.widget

    def damaged(*_, **__):
        raise UserError("step 8 is <damaged>; copy it anew")

    monkeypatch.setattr("lmdynamics.explorers.sas.trace_all", damaged)
    control(box, "Dropdown", "run")[0].value = 1
    assert explorer.now.run == 0
    assert control(box, "Dropdown", "run")[0].value == 0
    assert control(box, "HTML", "")[0].value == "step 8 is &lt;damaged&gt;; copy it anew"


@pytest.mark.parametrize("cancelled", [True, False])
def test_while_a_run_is_measured_the_old_one_can_be_moved_through(run, other, treebank, monkeypatch, cancelled):
    explorer = SasExplorer([run, other], treebank, min_count=20, progress=False)
    box, go_on, measure = explorer.widget, threading.Event(), explorer.measure
    picker, slider = control(box, "Dropdown", "run")[0], control(box, "SelectionSlider", "checkpoint")[0]
    monkeypatch.setattr(explorer, "knows", lambda *_: False)

    def held(index, executor=None):
        if executor is not None:
            executor.submit(go_on.wait, 20).result()
        return measure(index, executor)

    monkeypatch.setattr(explorer, "measure", held)
    computing = explorer.controls.computing

    async def notebook():
        picker.value = 1
        while computing.widget.layout.display == "none":
            await asyncio.sleep(0.01)
        assert computing.said.value.startswith("measuring other")
        slider.value = 4
        assert (explorer.now.run, explorer.now.step) == (0, 4)
        if cancelled:
            computing.cancel.click()
        go_on.set()
        while computing.busy:
            await asyncio.sleep(0.01)

    asyncio.run(notebook())
    assert (explorer.now.run, picker.value) == ((0, 0) if cancelled else (1, 1))
    assert slider.value == 4
    assert views(box)[0].params.sas_step == 4.0


def test_a_sentence_is_seen_at_this_checkpoint_before_the_others_have_read_it(run, treebank):
    explorer = SasExplorer(run, treebank, min_count=20, progress=False, step=4)
    box, computing, seen = explorer.widget, explorer.controls.computing, []
    arcs, go_on, read = views(box)[2], threading.Event(), explorer.read

    def held(index, words, executor=None, step=None):
        if executor is not None and step is None:
            executor.submit(go_on.wait, 20).result()
        return read(index, words, executor, step)

    explorer.read = held

    def steps_drawn():
        return {row["step"] for rows in arcs.spec["datasets"].values() for row in rows if "verdict" in row}

    async def notebook():
        control(box, "Text", "or")[0].value = "the the the"
        while explorer.now.words != ("the", "the", "the"):
            await asyncio.sleep(0.01)
        seen.append(steps_drawn())
        computing.cancel.click()
        assert explorer.controls.status.value == "cancelled; what was computed so far is kept"
        go_on.set()
        control(box, "SelectionSlider", "checkpoint")[0].value = 8  # reading goes on where it is needed
        assert computing.busy
        while computing.busy:
            await asyncio.sleep(0.01)
        seen.append(steps_drawn())

    asyncio.run(asyncio.wait_for(notebook(), 60))
    assert seen == [{4}, set(run.steps)]


def test_of_thirty_sentences_picked_in_a_second_two_are_read_and_the_last_is_shown(run, treebank):
    explorer = SasExplorer(run, treebank, min_count=20, progress=False)
    box, computing, read, seen = explorer.widget, explorer.controls.computing, explorer.read, []
    picker = control(box, "Dropdown", "sentence")[0]
    sentences = [words for _, words in picker.options if words != explorer.now.words][:30]
    go_on = threading.Event()

    def held(index, words, executor=None, step=None):
        if executor is not None and words not in seen:
            seen.append(words)
            executor.submit(go_on.wait, 20).result()
        return read(index, words, executor, step)

    explorer.read = held

    async def notebook():
        for words in sentences:
            picker.value = words
            while not seen:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
        go_on.set()
        while computing.busy:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(notebook(), 60))
    assert len(sentences) == 30
    assert seen == [sentences[0], sentences[-1]]
    assert explorer.now.words == picker.value == sentences[-1]


def test_a_click_picks_a_head_and_a_checkpoint(explorer):
    box = explorer.widget
    curves, heads, arcs = views(box)
    clicked = {"layer": [0], "head": [1], "direction": ["head→dependent"]}
    heads._vl_selections = {"pick": {"value": clicked, "store": []}}
    assert (explorer.now.layer, explorer.now.head, explorer.now.direction) == (0, 1, "head→dependent")
    assert heads._vl_selections["pick"]["value"] is None
    for jump in ("jump_0", "jump_1"):
        explorer.now.step = 12
        curves._vl_selections = {**curves._vl_selections, jump: {"value": {"x": [2.2]}, "store": []}}
        assert [view.params.sas_step for view in (curves, heads, arcs)] == [2.0] * 3


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
        SasExplorer(run, treebank, **{"min_count": 20, "progress": False} | options)


def test_no_run_is_refused(treebank):
    with pytest.raises(UserError, match="at least one run"):
        SasExplorer([], treebank)


def pictures(explorer):
    return {name: chart.to_dict() for name, chart in explorer.stills().items()}


def elsewhere(run, treebank, shown):
    """An explorer that has been moved, by its controls (`shown`) or before it was ever shown."""
    explorer = SasExplorer(run, treebank, min_count=20, progress=False)
    state = {"step": 4, "relation": explorer.measured.relations[1], "layer": 1, "head": 0, "sentence": ["the", "the"]}
    if shown:
        explorer.show()
    return explorer.restore(state)


@pytest.mark.parametrize("shown", [False, True])
def test_a_state_brings_back_the_same_pictures_and_data(run, treebank, shown):
    before = elsewhere(run, treebank, not shown)
    state = before.state()
    assert state == ast.literal_eval(repr(state))
    after = SasExplorer(run, treebank, min_count=20, progress=False)
    assert pictures(after) != pictures(before)
    if shown:
        after.show()
    assert after.restore(state).state() == state
    assert pictures(after) == pictures(before)
    assert all(table.equals(before.tables()[name]) for name, table in after.tables().items())
    for one, other in zip(views(after.widget), views(before.widget), strict=True):
        assert one._params == other._params
        assert one.spec["datasets"] == other.spec["datasets"]
    assert control(after.widget, "SelectionSlider", "checkpoint")[0].value == 4
    assert control(after.widget, "Dropdown", "sentence")[0].value == ("the", "the")


def test_a_state_names_its_run(run, other, treebank):
    explorer = SasExplorer([run, other], treebank, min_count=20, progress=False)
    explorer.show()
    explorer.restore({"run": "other", "step": 16, "layer": 2, "head": 0})
    state = explorer.state()
    assert (state["run"], state["step"], state["layer"]) == ("other", 16, 2)
    fresh = SasExplorer([run, other], treebank, min_count=20, progress=False).restore(state)
    assert pictures(fresh) == pictures(explorer)
    assert SasExplorer([run, run], treebank, min_count=20, progress=False).state()["run"] == "tiny (1)"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"step": 5}, "step is 5, which is not there"),
        ({"run": "gone"}, "run is 'gone', which is not there .any more.; there are: tiny"),
        ({"relation": "iobj"}, "relation is 'iobj'"),
        ({"layer": 7}, "layer is 7"),
        ({"direction": "up"}, "direction is 'up'"),
        ({"sentence": []}, "a list of words"),
        ({"sentence": ["the", 3]}, "a list of words"),
        ({"sentence": ["the"] * 100}, "takes at most"),
        ({"heads": 1}, "no entry 'heads'; did you mean 'head'"),
    ],
)
def test_a_state_that_fits_no_more_changes_nothing(explorer, state, says):
    before = explorer.state()
    with pytest.raises(UserError, match=says) as refusal:
        explorer.restore({"layer": 1, **state})
    assert "\n" not in str(refusal.value)
    assert explorer.state() == before


def test_views_are_saved_with_the_data_they_show(explorer, tmp_path):
    saving = explorer.controls.saving
    saving.folder.value = str(tmp_path)
    saving.save.click()
    assert len(list(tmp_path.iterdir())) == 9
    heads = pl.read_csv(tmp_path / "explorer_heads.csv")
    assert set(heads["step"]) == {explorer.now.step}
    assert set(heads["relation"]) == {explorer.now.relation}
    arcs = pl.read_csv(tmp_path / "explorer_arcs.csv")
    assert arcs["text"].to_list() == [explorer.now.words[word] for word in arcs["word"]]
    assert set(pl.read_csv(tmp_path / "explorer_curves.csv")["curve"]) >= {"loss", "uas, attention"}


def test_a_page_gets_every_checkpoint_and_the_same_start(explorer, run):
    linked = explorer.linked()
    assert [place.values["sas_step"] for place in linked.places] == run.steps
    assert linked.places[linked.start].values["sas_step"] == explorer.now.step
    assert linked.views.keys() == explorer.stills().keys()
    rows = explorer.measured.scores.filter(step=4, relation=explorer.now.relation, split="all").to_dicts()
    best = max(rows, key=lambda row: row["accuracy"])
    assert f"layer {best['layer']}, head {best['head']} " in linked.places[run.steps.index(4)].said
