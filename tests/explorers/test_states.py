"""Every explorer of a table: its state brings back the same pictures, its views are saved, its page has all places."""

import ast

import polars as pl
import pytest

from lmdynamics.errors import UserError
from lmdynamics.explorers.deceleration import DecelerationExplorer
from lmdynamics.explorers.dissent import DissentExplorer
from tests.charts import interference_frames as frames
from tests.charts.losses import points
from tests.explorers.made import MAKE

ELSEWHERE = {
    "deceleration": {"curve": "large", "smoothing": "log-average", "skip_steps": 20.0, "break_step": 900.0},
    "dissent": {"curve": "260k", "group": "common", "step": 64},
    "pairs": {"run": "b", "paradigm": "far", "pair": 11, "step": 4},
    "trajectories": {"run": "b", "measure": "loss", "step": 8},
    "zero_sum": {"run": "b", "split": "stepped", "direction": "random", "step": 8, "row": 1},
}
STALE = [
    ("deceleration", {"curve": "smal"}, "curve is 'smal', which is not there"),
    ("deceleration", {"skip_steps": 7}, "skip_steps is 7"),
    ("deceleration", {"break_step": -1.0}, "a step, 0 or more"),
    ("deceleration", {"smoothing": "spline"}, "smoothing is 'spline'"),
    ("dissent", {"group": "<b>"}, "group is '<b>'"),
    ("dissent", {"step": 3}, "step is 3, which is not there .any more.; there are: 0, 1"),
    ("dissent", {"steps": 3}, "did you mean 'step'"),
    ("pairs", {"paradigm": "farr"}, "paradigm is 'farr'"),
    ("pairs", {"paradigm": "far", "pair": 3}, "pair is 3, which is not there .any more.; there are: -1, 8"),
    ("pairs", {"pair": 3}, "there are: -1$"),
    ("pairs", {"run": "b", "step": 3}, "step is 3"),
    ("pairs", {"run": "c"}, "there are: a, b"),
    ("zero_sum", {"run": "c"}, "there are: a, b"),
    ("zero_sum", {"run": "b", "batch": 1}, "no batch 1"),
    ("zero_sum", {"step": 3}, "step 3 was not measured"),
    ("zero_sum", {"row": 99}, "no row 99"),
]
EACH = pytest.mark.parametrize("name", MAKE)


def seen(explorer) -> dict:
    """Everything that a reader sees of an explorer."""
    drawn = {name: chart.to_dict() for name, chart in explorer.stills().items()}
    parameters = [view._params for view in explorer.views.widget.children]
    return {"drawn": drawn, "parameters": parameters, "said": explorer.said.value}


@EACH
def test_a_state_brings_back_the_same_pictures(name):
    before = MAKE[name]().restore(ELSEWHERE[name])
    state = before.state()
    assert state == ast.literal_eval(repr(state))
    assert state.keys() >= ELSEWHERE[name].keys()
    after = MAKE[name]()
    assert seen(after) != seen(before)
    assert after.restore(state) is after
    assert after.state() == state
    assert seen(after) == seen(before)
    if name == "zero_sum":
        assert after.text.value == before.text.value


@EACH
def test_a_fresh_explorer_restored_to_its_own_state_stays_as_it_is(name):
    explorer = MAKE[name]()
    before = seen(explorer)
    assert seen(explorer.restore(explorer.state())) == before


@pytest.mark.parametrize(("name", "state", "says"), STALE)
def test_a_state_that_fits_no_more_changes_nothing(name, state, says):
    explorer = MAKE[name]()
    before = seen(explorer), explorer.state()
    with pytest.raises(UserError, match=says) as refusal:
        explorer.restore(state)
    assert "\n" not in str(refusal.value)
    assert (seen(explorer), explorer.state()) == before


@EACH
def test_views_are_saved_with_their_data(name, tmp_path):
    explorer = MAKE[name]()
    explorer.saving.folder.value = str(tmp_path)
    explorer.saving.save.click()
    assert explorer.saving.said.value.startswith("saved ")
    kinds = {view: sorted(path.suffix for path in tmp_path.glob(f"{view}.*")) for view in explorer.stills()}
    assert all(found == [".csv", ".png", ".svg"] for found in kinds.values())
    for view, table in explorer.tables().items():
        assert len(pl.read_csv(tmp_path / f"{view}.csv", infer_schema_length=None)) == len(table)


@EACH
def test_a_page_gets_every_place_and_the_same_start(name):
    explorer = MAKE[name]()
    linked = explorer.linked()
    slider = explorer.place if name == "deceleration" else explorer.checkpoint.slider
    assert [place.name for place in linked.places] == [label for label, _ in slider.options]
    start = linked.places[linked.start]
    assert start.name == slider.label
    for view in explorer.views.widget.children:
        assert view._params.items() <= {key: float(value) for key, value in start.values.items()}.items()
    assert all(place.said for place in linked.places)


def test_what_cannot_be_fitted_cannot_be_saved_but_has_a_state(tmp_path):
    few = pl.DataFrame({"curve": "few", "step": [1.0, 2.0], "loss": [2.0, 1.0]})
    explorer = DecelerationExplorer(pl.concat([points().select(few.columns).cast(few.schema), few]), curve="few")
    explorer.saving.folder.value = str(tmp_path)
    explorer.saving.save.click()
    assert not list(tmp_path.iterdir())
    assert "\n" not in explorer.saving.said.value
    assert explorer.restore(explorer.state()).state()["curve"] == "few"


def test_dissent_in_words_is_all_of_few_and_the_ends_of_many():
    explorer = DissentExplorer(frames.dissent())
    assert explorer.linked().places[-1].said.count(" to ") == 1
    explorer.restore({"curve": "17k", "group": "rare"})
    said = explorer.linked().places[-1].said
    assert said.startswith("Step 1,024: dissent ")
    assert said.endswith("(17k, rare).")
    assert len(said) < 80
