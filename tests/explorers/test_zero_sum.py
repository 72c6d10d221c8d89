"""The zero-sum explorer: what it starts with, that moving only looks up, what the sentence says, what it refuses."""

import polars as pl
import pytest

from lmdynamics.analysis.gradients import over_batches
from lmdynamics.analysis.zero_sum import interference_table
from lmdynamics.errors import UserError
from lmdynamics.explorers import changes as moves
from lmdynamics.explorers.zero_sum import ZeroSumExplorer
from tests.charts import interference_frames as frames

GROUPS = pl.DataFrame(
    {"token": range(40), "group": [frames.GROUPS[i // 10] for i in range(40)]}, schema_overrides={"token": pl.Int32}
)


def doubled(rows: int = 3):
    one = frames.one_step(rows=rows).filter(split="held out", direction="update", batch=0)
    return one.drop("split", "direction", "batch", "first_order").with_columns(until=2 * pl.col("step"))


@pytest.fixture
def explorer():
    return ZeroSumExplorer(frames.one_step(), frames.texts, GROUPS)


def views(explorer):
    return [*explorer.views.widget.children, *explorer.course.widget.children]


def test_it_starts_at_the_last_step_on_held_out_text_with_the_update(explorer):
    assert explorer.chosen == {"split": "held out", "direction": "update", "batch": 0}
    assert explorer.checkpoint.slider.value == frames.STEPS[-1]
    assert explorer.row.value == 0
    assert len(views(explorer)) == 4
    assert "cat" in explorer.text.value


def test_moving_to_a_checkpoint_sends_a_number_and_computes_nothing(explorer, monkeypatch):
    for name in ("over_batches", "each_batch", "traded", "change_bins"):
        monkeypatch.setattr(moves, name, None)
    specs = [view.spec for view in views(explorer)]
    before = explorer.text.value
    explorer.checkpoint.slider.value = 64
    assert all(view.spec is spec for view, spec in zip(views(explorer), specs, strict=True))
    assert [view._params for view in views(explorer)] == [{"zero_sum_step": 64.0}] * 4
    assert explorer.text.value != before
    assert explorer.said.value.startswith("Step 64, held-out text")


def test_a_token_is_followed_through_all_checkpoints(explorer):
    others = [view.spec for view in views(explorer)[:3]]
    explorer.position.value = 4
    spec = views(explorer)[3].spec
    assert [view.spec for view in views(explorer)[:3]] == others
    rows = frames.one_step().filter(split="held out", direction="update", batch=0, row=0, position=4).sort("step")
    drawn = {row["step"]: row["change"] for rows in spec["datasets"].values() for row in rows if "change" in row}
    assert drawn == dict(rows.select("step", "change").iter_rows())
    assert "“on”" in str(spec["title"])
    assert explorer.tables()["explorer_token"].sort("step").equals(rows)
    explorer.row.value = 1  # the same place in another row
    assert explorer.position.value == 4
    assert views(explorer)[3].spec != spec


def test_each_view_is_sent_only_parameters_that_it_has(explorer):
    for view in views(explorer):
        assert set(view._params) == {param["name"] for param in view.spec["params"] if "select" not in param}


def test_the_sentence_has_the_numbers_of_over_batches(explorer):
    explorer.checkpoint.slider.value = 64
    row = over_batches(frames.one_step()).row(
        by_predicate=(pl.col("step") == 64) & (pl.col("split") == "held out") & (pl.col("direction") == "update"),
        named=True,
    )
    said = explorer.sentence
    assert f"D {row['interference']:.2f} [" in said
    assert f"M {row['magnitude']:.3g} [" in said
    assert f"{row['mean_change']:+.3g}".replace("-", "−") in said
    assert "(over 2 batches)" in said
    assert "Batch 0 alone: D" in said


def test_the_sentence_claims_no_move_that_the_interval_does_not_show():
    table = over_batches(frames.one_step()).filter(split="held out", direction="random")
    unclear = table.filter((pl.col("mean_change_low") < 0) & (pl.col("mean_change_high") > 0))["step"][0]
    explorer = ZeroSumExplorer(frames.one_step(), frames.texts, direction="random", step=unclear)
    assert "Whether the loss moved at all is not clear." in explorer.sentence
    one = ZeroSumExplorer(frames.one_step(batches=1), frames.texts, step=2)
    assert "[" not in one.sentence
    assert "(over one batch). The loss fell" in one.sentence
    still = frames.one_step(steps=(4,)).with_columns(change=pl.lit(0.0))
    with pytest.raises(UserError, match="nothing changed"):
        ZeroSumExplorer(still, frames.texts)
    here = pl.col("step") == 8
    partly = frames.one_step().with_columns(change=pl.when(here).then(0.0).otherwise("change"))
    assert "D undefined" in ZeroSumExplorer(partly, frames.texts, step=8).sentence


def test_another_batch_or_text_redraws_and_keeps_checkpoint_and_row(explorer):
    explorer.checkpoint.slider.value, explorer.row.value = 64, 2
    specs = [view.spec for view in views(explorer)]
    explorer.batch.value = 1
    explorer.split.value = "stepped"
    assert (explorer.checkpoint.slider.value, explorer.row.value) == (64, 2)
    assert all(view.spec is not spec for view, spec in zip(views(explorer), specs, strict=True))
    assert "s12" in explorer.text.value
    assert "the batch stepped on" in explorer.said.value


def test_the_row_is_coloured_by_its_own_changes(explorer):
    explorer.checkpoint.slider.value, explorer.row.value = 16, 1
    own = frames.one_step().filter(step=16, split="held out", direction="update", batch=0, row=1)
    shown = explorer.tokens.rows[1]
    assert [change["change"] for _, change in shown[1:]] == own["change"].to_list()
    assert shown[0] == ("h01", None)


def test_runs_are_switched_and_keep_the_checkpoint_they_have():
    early = frames.one_step().filter(pl.col("step") <= 64)
    explorer = ZeroSumExplorer({"long": frames.one_step(), "short": early}, frames.texts, step=1024)
    explorer.run.value = "short"
    assert explorer.checkpoint.slider.value == 64
    assert explorer.said.value.startswith("short: Step 64")
    explorer.run.value = "long"
    assert explorer.checkpoint.slider.value == 64


def test_texts_may_be_mappings_and_differ_between_runs():
    keys = [(split, batch, row) for split in ("stepped", "held out") for batch in range(2) for row in range(3)]
    mine, theirs = ({key: [f"{name}!", *frames.WORDS] for key in keys} for name in ("mine", "theirs"))
    runs = {"a": frames.one_step(), "b": frames.one_step()}
    explorer = ZeroSumExplorer(runs, {"a": mine, "b": theirs})
    assert "mine!" in explorer.text.value
    explorer.run.value = "b"
    assert "theirs!" in explorer.text.value
    assert "theirs!" in explorer.row.options[0][0]


def test_doublings_have_intervals_over_rows_and_no_batch_to_pick():
    explorer = ZeroSumExplorer(doubled(8), frames.texts, GROUPS)
    row = interference_table(doubled(8)).filter(step=1024).row(0, named=True)
    assert f"D {row['interference']:.2f} [{row['interference_low']:.2f}, " in explorer.sentence
    assert "Step 1,024 → 2,048, held-out text, a doubling of training" in explorer.sentence
    assert "(over 8 rows of text)" in explorer.sentence
    assert explorer._pickers.children == ()


def test_doublings_of_a_few_rows_have_no_interval():
    explorer = ZeroSumExplorer(doubled(), frames.texts, GROUPS)
    assert "(over 3 rows of text, too few for an interval)" in explorer.sentence
    assert "[" not in explorer.sentence


def test_names_and_tokens_are_text_never_html():
    bad = "<img src=x onerror=alert(1)>"
    explorer = ZeroSumExplorer({bad: frames.one_step(), "b": frames.one_step()}, lambda *_: [bad] * 13)
    for html in (explorer.said.value, explorer.text.value):
        assert "<img" not in html
        assert "&lt;img" in html


def test_a_text_that_is_missing_later_is_said_and_the_next_one_is_shown():
    some = {("held out", 0, row): frames.texts("held out", 0, row) for row in range(3)}
    explorer = ZeroSumExplorer(frames.one_step(), some)
    explorer.split.value = "stepped"
    assert "there is no text of split &#x27;stepped&#x27;, batch 0, row 0" in explorer.said.value
    assert explorer.text.value == ""
    explorer.split.value = "held out"
    assert "cat" in explorer.text.value


def test_the_still_explorer_is_four_figures_and_a_page(explorer, tmp_path):
    explorer.show(str(tmp_path), interactive=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "explorer_interference.svg", "explorer_changes.svg", "explorer_traded.svg", "explorer_token.svg",
        "explorer_tokens.html",
    }  # fmt: skip
    assert "undefined" not in (tmp_path / "explorer_changes.svg").read_text(encoding="utf-8")
    assert "explorer_traded" not in ZeroSumExplorer(frames.one_step(), frames.texts).stills()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        (frames.one_step().drop("change"), {}, "needs the columns"),
        (frames.one_step().drop("first_order"), {}, "first_order not among them"),
        (frames.one_step().clear(), {}, "there are no changes"),
        ({}, {}, "there are no runs"),
        (frames.one_step(), {"step": 3}, "step 3 was not measured; measured: 1, 2, 4"),
        (frames.one_step(), {"batch": 9}, "there is no batch 9; known: 0, 1"),
        (frames.one_step(), {"direction": "updat"}, "did you mean 'update'"),
        (frames.one_step(), {"row": 7}, "no row 7 in this batch; rows: 0, 1, 2"),
    ],
)
def test_what_cannot_be_explored_is_said(changes, options, said):
    with pytest.raises(UserError, match=said):
        ZeroSumExplorer(changes, frames.texts, **options)


def test_a_row_without_text_is_refused_at_the_start():
    with pytest.raises(UserError, match="there is no text of split 'held out', batch 0, row 0"):
        ZeroSumExplorer(frames.one_step(), {})
