"""The chart of a watched training: its rows, its line and its panels while a loop trains, and at the end."""

import altair as alt
import pytest

import lmdynamics as lmd
from lmdynamics.errors import UserError
from lmdynamics.explorers import watching
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy
from lmdynamics.measurements.syntax import UAS
from tests.measurements.test_watch import GRAMMAR, HELD_OUT, TREES, with_a_loop, with_trainer


@pytest.fixture
def charts(monkeypatch) -> list[alt.JupyterChart]:
    """Every chart that is shown."""
    shown = []
    monkeypatch.setattr(watching, "show_live", lambda chart, stills: [shown.append(chart)])
    return shown


def measured(spec) -> dict[tuple[str, int], float]:
    """The points of the measurements that a chart contains, wherever it holds them."""
    if isinstance(spec, list):
        return {point: value for part in spec for point, value in measured(part).items()}
    if not isinstance(spec, dict):
        return {}
    if spec.get("name") == "measured":
        return {(row["name"], row["step"]): row["value"] for row in spec["values"]}
    return measured(list(spec.values()))


def test_the_chart_follows_a_loop_to_its_end(charts, monkeypatch, tmp_path):
    monkeypatch.setattr(watching, "INTERVAL", 0.0)
    measurements = [HeldOutLoss(HELD_OUT), UAS(TREES, 10), PairAccuracy(GRAMMAR.pairs(5, seed=1))]
    watch = lmd.Watch(measurements, tmp_path / "run", max_share=1.0)
    lmd.show_watch(watch, steps=25)
    assert charts == []  # nothing is measured yet
    updates = []
    watch.followers.append(lambda: updates.append(charts[0]._py_to_js_updates))
    with_a_loop(watch)
    (chart,), run = charts, lmd.open_run(tmp_path / "run")
    lines = [update["value"] for sent in updates if sent for update in sent if update["name"] == "status"]
    assert lines[-1].startswith("training at step 20 of 25, loss ")
    spec = chart.spec if isinstance(chart.spec, dict) else chart.spec.to_dict()
    (status,) = (param["value"] for param in spec["params"] if param["name"] == "status")
    assert status == f"complete at step 20 of 20, loss {run.log['loss'][-1]:.3f}"
    values = measured(spec)
    assert set(values) == {(name, step) for name in ("HeldOutLoss", "UAS", "PairAccuracy") for step in run.steps}
    losses = lmd.trace(run, HeldOutLoss(HELD_OUT))
    assert {step: values["HeldOutLoss", step] for step in run.steps} == dict(losses.select("step", "loss").iter_rows())
    uas = lmd.trace(run, UAS(TREES, 10)).filter(source="per_relation", step=20)
    assert values["UAS", 20] == uas["correct"].sum() / uas["arcs"].sum()


def test_a_trainer_says_how_long_it_will_train(charts, tmp_path):
    watch = lmd.Watch([HeldOutLoss(HELD_OUT)], tmp_path / "run", max_share=1.0)
    lmd.show_watch(watch)
    with_trainer("mlm", tmp_path, watch)
    assert watch.steps == 20
    assert "complete at step 20 of 20, loss " in str(charts[0].spec)


def test_a_length_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="steps is 0; give the number of updates"):
        lmd.show_watch(lmd.Watch([], tmp_path / "run"), steps=0)
