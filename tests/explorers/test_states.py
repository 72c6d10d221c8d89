"""Every explorer of a table: state, lists, slider, files; what they share is tested here, on each."""

import ast
import base64
import functools
import hashlib
import json
import re
from xml.etree import ElementTree

import nbformat
import polars as pl
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from lmdynamics import charts
from lmdynamics.errors import UserError
from lmdynamics.explorers.explorer import link_checkpoints
from lmdynamics.explorers.trajectories import TrajectoryExplorer
from tests.batch.notebooks import write_notebook
from tests.charts import interference_frames as frames
from tests.explorers.made import MAKE, offered

ELSEWHERE = {
    "checkpoint_pair": {"a": 2, "b": 4},
    "deceleration": {"curve": "large", "smoothing": "log-average", "skip_steps": 20.0, "break_step": 900.0},
    "dissent": {"curve": "260k", "group": "common", "step": 64},
    "guesses": {"sentence": "no cat sees dogs", "word": 3, "step": 4},
    "learning_times": {"counted": "after the unigram phase", "size": "large", "step": 256},
    "pairs": {"run": "b", "paradigm": "far", "pair": 11, "step": 4},
    "trajectories": {"run": "b", "measure": "loss", "step": 8},
    "zero_sum": {"run": "b", "split": "stepped", "direction": "random", "step": 8, "row": 1},
}
STALE = [
    ("checkpoint_pair", {"a": 3}, "a is 3, which does not exist .any more.; known: 0, 1"),
    ("checkpoint_pair", {"b": 5}, "b is 5"),
    ("deceleration", {"curve": "smal"}, "curve is 'smal', which does not exist"),
    ("deceleration", {"skip_steps": 7}, "skip_steps is 7"),
    ("deceleration", {"break_step": -1.0}, "a step, 0 or more"),
    ("dissent", {"group": "<b>"}, "group is '<b>'"),
    ("dissent", {"steps": 3}, "did you mean 'step'"),
    ("guesses", {"sentence": "no dog barks"}, "sentence is 'no dog barks', which does not exist"),
    ("guesses", {"word": 0}, "word is 0, which does not exist"),
    ("learning_times", {"size": "small", "step": 3}, "step is 3, which does not exist .any more.; known: 0, 1"),
    ("pairs", {"paradigm": "far", "pair": 3}, "pair is 3, which does not exist .any more.; known: -1, 8"),
    ("pairs", {"pair": 3}, "known: -1$"),
    ("pairs", {"run": "b", "step": 3}, "step is 3, which does not exist .any more.; known: 0, 1"),
    ("trajectories", {"measure": "loss", "run": "d"}, "run is 'd', which does not exist"),
    ("zero_sum", {"run": "c"}, "known: a, b"),
    ("zero_sum", {"run": "b", "batch": 1}, "batch is 1"),
    ("zero_sum", {"row": 99}, "row is 99"),
]
EACH = pytest.mark.parametrize("name", [name for name in MAKE if name != "many dissents"])  # of which one is enough


def digest(content) -> str:
    """Of what is too large to be compared in a message; Vega numbers gradients and clips from picture to picture."""
    text = re.sub(r"\b(clip|gradient_)\d+", r"\1", json.dumps(content))
    return hashlib.sha256(text.encode()).hexdigest()


def visible_parts(explorer) -> dict:
    """Everything that a reader sees of an explorer, as a page gets it."""
    lists = {entry: (control.options, control.value) for entry, control in explorer.lists.items()}
    return {"content": digest(explorer.views.content), "values": explorer.views.values, "lists": lists}


def displayed_explorer(name):
    explorer = MAKE[name]()
    assert explorer.widget is explorer.widget
    return explorer


unchanged = functools.cache(displayed_explorer)  # one of each for what must not change it


def move(explorer, place: int) -> None:
    """As a reader who moves the slider."""
    explorer.views.values = {**explorer.views.values, "at": place}


@EACH
def test_a_state_brings_back_the_same_views(name):
    before = displayed_explorer(name).restore(ELSEWHERE[name])
    state = before.state()
    assert state == ast.literal_eval(repr(state))
    assert state.keys() >= ELSEWHERE[name].keys()
    after = displayed_explorer(name)
    assert visible_parts(after) != visible_parts(before)
    assert after.restore(state) is after
    assert (after.state(), visible_parts(after)) == (state, visible_parts(before))
    unshown = MAKE[name]().restore(state)
    assert (unshown.state(), digest(unshown.moving().content())) == (state, visible_parts(before)["content"])
    assert all(table.equals(before.tables()[view]) for view, table in unshown.tables().items())


@pytest.mark.parametrize(("name", "state", "says"), STALE)
def test_a_state_that_fits_no_more_changes_nothing(name, state, says):
    explorer = unchanged(name)
    before = visible_parts(explorer), explorer.state()
    with pytest.raises(UserError, match=says) as refusal:
        explorer.restore(state)
    assert "\n" not in str(refusal.value)
    assert (visible_parts(explorer), explorer.state()) == before


@EACH
def test_the_slider_moves_state_and_data_and_redraws_nothing(name):
    explorer = displayed_explorer(name)
    content, state, tables = digest(explorer.views.content), explorer.state(), explorer.tables()
    places = list(explorer.choices(explorer.slider, explorer.now))
    assert places.index(state[explorer.slider]) == explorer.views.values["at"]
    move(explorer, 1)
    assert explorer.state() == {**state, explorer.slider: places[1]}
    assert digest(explorer.views.content) == content
    for view, table in explorer.tables().items():  # of one step, or of all of them
        assert table.equals(tables[view]) or set(table["step"]) == {places[1]}
    still = digest(charts.to_svg(explorer.moving().still()))
    assert still == digest(charts.to_svg(MAKE[name]().restore(explorer.state()).moving().still()))
    move(explorer, 2)
    assert digest(charts.to_svg(explorer.moving().still())) != still


@EACH
def test_the_page_gets_plain_json_with_words_for_every_place(name):
    explorer = MAKE[name]()
    content = explorer.moving().content()
    assert digest(json.loads(json.dumps(content, allow_nan=False))) == digest(content)
    choices = explorer.choices(explorer.slider, explorer.now)
    assert [place["name"] for place in content["places"]] == list(choices.values())
    assert all(place["said"] and place["said"] != place["name"] for place in content["places"])


@EACH
def test_the_picture_fits_on_one_screen(name):
    (still,) = MAKE[name]().stills().values()
    svg = ElementTree.fromstring(charts.to_svg(still))
    assert float(svg.get("width")) <= 960
    assert float(svg.get("height")) <= 700


@EACH
def test_views_are_saved_with_their_data_and_nothing_is_overwritten(name, tmp_path):
    explorer = displayed_explorer(name)
    explorer.saving.folder.value = str(tmp_path)
    for times in (1, 2):
        explorer.saving.save.click()
        assert explorer.saving.message.value.startswith("saved ")
        tables = explorer.tables()
        assert len(list(tmp_path.iterdir())) == times * (2 + len(tables))
    assert {f"{explorer.name}.svg", f"{explorer.name}.png"} <= {path.name for path in tmp_path.iterdir()}
    for view, table in tables.items():
        assert len(pl.read_csv(tmp_path / f"{view}.csv", infer_schema_length=None)) == len(table)


@EACH
def test_the_still_explorer_is_one_figure(name, tmp_path):
    explorer = MAKE[name]()
    explorer.show(str(tmp_path), interactive=False)
    assert [path.name for path in tmp_path.glob("*.svg")] == [f"{explorer.name}.svg"]


@pytest.mark.parametrize("name", [name for name in ELSEWHERE if MAKE[name]().pickers])
def test_only_lists_with_a_choice_are_shown_and_each_draws_anew(name):
    explorer = displayed_explorer(name)
    assert all((len(control.options) > 1) == (entry in offered(explorer)) for entry, control in explorer.lists.items())
    control = explorer.lists[offered(explorer)[0]]
    other_value = next(value for _, value in control.options if value != control.value)
    before = visible_parts(explorer)
    control.value = other_value
    assert other_value in explorer.state().values()
    assert visible_parts(explorer)["content"] != before["content"]


def test_lists_follow_one_another():
    explorer = displayed_explorer("pairs")
    assert [value for _, value in explorer.lists["pair"].options] == [-1]
    assert "pair" not in offered(explorer)
    explorer.lists["paradigm"].value = "far"
    assert "pair" in offered(explorer)
    assert [value for _, value in explorer.lists["pair"].options] == [-1, *range(8, 16)]
    explorer.lists["pair"].value = 11
    explorer.lists["paradigm"].value = "near"
    assert explorer.lists["pair"].value == explorer.state()["pair"] == -1


def test_another_run_keeps_the_place_or_its_nearest():
    few = {"few": frames.one_step().filter(pl.col("step").is_in([1, 8, 64])), "all": frames.one_step()}
    explorer = type(MAKE["zero_sum"]())(few, frames.texts, step=8)
    explorer.widget  # noqa: B018
    explorer.lists["run"].value = "all"
    assert explorer.now["step"] == 8
    move(explorer, 10)
    explorer.lists["run"].value = "few"
    assert (explorer.now["step"], explorer.views.values["at"]) == (64, 2)


def test_what_a_page_sent_before_it_had_the_views_that_are_there_now_is_put_right():
    few = {"few": frames.one_step().filter(pl.col("step").is_in([1, 8, 64])), "all": frames.one_step()}
    explorer = type(MAKE["zero_sum"]())(few, frames.texts, step=8)
    explorer.widget  # noqa: B018
    move(explorer, 30)
    assert (explorer.now["step"], explorer.views.values["at"]) == (8, 1)


def test_a_run_without_one_of_the_measures_and_another_without_any_of_its_steps():
    curves = pl.DataFrame(
        [("a", "loss", 1, 2.0), ("a", "loss", 4, 1.0), ("a", "accuracy", 4, 0.5), ("b", "loss", 2, 3.0)],
        schema=["run", "measure", "step", "value"], orient="row",
    )  # fmt: skip
    explorer = TrajectoryExplorer(curves)
    explorer.widget  # noqa: B018
    assert "<svg" in charts.to_svg(explorer.moving().still())
    with pytest.raises(UserError, match="none of these runs has a value: b"):
        explorer.restore({"run": "b", "measure": "accuracy"})
    assert explorer.state()["run"] == ""


def test_explorers_go_together_each_to_its_own_nearest():
    one, other, apart = displayed_explorer("pairs"), displayed_explorer("dissent"), displayed_explorer("trajectories")
    link_checkpoints(one, other)
    assert (one.now["step"], other.now["step"], apart.now["step"]) == (16, 16, 512)
    move(other, 3)
    assert (one.now["step"], other.now["step"]) == (4, 4)
    move(other, 11)
    assert (one.now["step"], other.now["step"]) == (16, 1024)
    move(one, 0)
    assert (one.now["step"], other.now["step"], apart.now["step"]) == (0, 0, 512)


WITHIN_IF = """\
from tests.explorers.made import MAKE, offered
from lmdynamics import charts
if True:
    MAKE["deceleration"]().show()
"""
PLAIN = "charts.show(MAKE['deceleration']().stills()['explorer_break'], 'profile')"


@pytest.mark.notebook
def test_a_notebook_executed_without_a_page_has_pictures(tmp_path):
    """An explorer within an `if` and a plain chart, both interactive, as nbclient, nbconvert and papermill run them."""
    notebook = nbformat.read(write_notebook(tmp_path / "plain.ipynb", WITHIN_IF, PLAIN, parameters=None), as_version=4)
    NotebookClient(notebook, kernel_name="python3").execute()
    outputs = [[output.data for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]
    assert [[sorted(data) for data in cell_outputs] for cell_outputs in outputs] == [
        [
            ["application/vnd.jupyter.widget-view+json", "text/plain"],
            ["image/png", "text/plain"],
            ["text/html", "text/plain"],
        ],
        [["application/vnd.vegalite.v5+json", "image/png", "text/plain"]],
    ]
    pictures = [data["image/png"] for cell_outputs in outputs for data in cell_outputs if "image/png" in data]
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    assert all(picture.replace("\n", "") in page.replace("\n", "") for picture in pictures)
