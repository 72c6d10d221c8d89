"""The zero-sum explorer: what it starts with, its words and colours against the frames, what it refuses."""

import polars as pl
import pytest

from lmdynamics.analysis.gradients import over_batches
from lmdynamics.analysis.zero_sum import interference_table
from lmdynamics.errors import UserError
from lmdynamics.explorers import changes as moves
from lmdynamics.explorers.zero_sum import ZeroSumExplorer
from tests.charts import interference_frames as frames
from tests.charts.specs import mark_layers, rows_of
from tests.explorers.made import offered

GROUPS = pl.DataFrame(
    {"token": range(40), "group": [frames.GROUPS[i // 10] for i in range(40)]}, schema_overrides={"token": pl.Int32}
)
HELD_OUT = {"split": "held out", "direction": "update", "batch": 0}


def doubled(rows: int = 3):
    changes = frames.one_step(rows=rows).filter(**HELD_OUT)
    return changes.drop("split", "direction", "batch", "first_order").with_columns(until=2 * pl.col("step"))


@pytest.fixture
def explorer():
    return ZeroSumExplorer(frames.one_step(), frames.texts, GROUPS)


def place(explorer, step):
    return explorer.moving().places[list(explorer.choices("step", explorer.now)).index(step)]


def sentence(explorer):
    return place(explorer, explorer.now["step"]).text


def test_it_starts_at_the_last_step_on_held_out_text_with_the_update(explorer):
    assert explorer.state() == {"run": "the run", **HELD_OUT, "row": 0, "position": 1, "step": frames.STEPS[-1]}
    assert "cat" in place(explorer, 1024).details
    assert list(explorer.tables()) == [
        "explorer_interference", "explorer_changes", "explorer_traded", "explorer_token"
    ]  # fmt: skip
    assert "explorer_traded" not in ZeroSumExplorer(frames.one_step(), frames.texts).tables()


def test_numbers_are_worked_out_once(explorer, monkeypatch):
    explorer.moving()
    for name in ("over_batches", "each_batch", "traded", "change_bins"):
        monkeypatch.setattr(moves, name, None)
    explorer.restore({"split": "stepped", "batch": 1, "step": 64, "row": 2}).moving()


def test_a_token_is_followed_through_all_checkpoints(explorer):
    explorer.restore({"position": 4})
    rows = frames.one_step().filter(**HELD_OUT, row=0, position=4).sort("step")
    assert explorer.tables()["explorer_token"].sort("step").equals(rows)
    spec = explorer.moving().chart.to_dict()
    course = spec["hconcat"][0]["vconcat"][1]
    assert "“on”" in str(course["title"])
    changes = {row["step"]: row["change"] for rule in mark_layers(course["vconcat"][1], "rule")
             for row in rows_of(spec, rule) if "change" in row}  # fmt: skip
    assert changes == dict(rows.select("step", "change").iter_rows())
    assert explorer.restore({"row": 1}).now["position"] == 4  # the same place in another row


def test_the_sentence_has_the_numbers_of_over_batches(explorer):
    row = over_batches(frames.one_step()).filter(step=64, split="held out", direction="update").row(0, named=True)
    text = place(explorer, 64).text
    assert text.startswith("Step 64, held-out text")
    assert f"D {row['interference']:.2f} [" in text
    assert f"M {row['magnitude']:.3g} [" in text
    assert f"{row['mean_change']:+.3g}".replace("-", "−") in text
    assert "(over 2 batches)" in text
    assert "Batch 0 alone: D" in text


def test_the_sentence_claims_no_move_that_the_interval_does_not_show():
    table = over_batches(frames.one_step()).filter(split="held out", direction="random")
    unclear = table.filter((pl.col("mean_change_low") < 0) & (pl.col("mean_change_high") > 0))["step"][0]
    explorer = ZeroSumExplorer(frames.one_step(), frames.texts, direction="random", step=unclear)
    assert "Whether the loss moved at all is not clear." in sentence(explorer)
    one_batch = ZeroSumExplorer(frames.one_step(batches=1), frames.texts, step=2)
    assert "[" not in sentence(one_batch)
    assert "(over one batch). The loss fell" in sentence(one_batch)
    at_step_8 = pl.col("step") == 8
    partly = frames.one_step().with_columns(change=pl.when(at_step_8).then(0.0).otherwise("change"))
    assert "D undefined" in sentence(ZeroSumExplorer(partly, frames.texts, step=8))


def test_the_row_is_coloured_by_its_own_changes(explorer):
    explorer.restore({"row": 1})
    row_changes = frames.one_step().filter(**HELD_OUT, step=16, row=1)
    tokens = explorer.tokens_at(16)
    assert [change["change"] for _, change in tokens.rows[1][1:]] == row_changes["change"].to_list()
    assert tokens.rows[1][0] == ("h01", None)
    assert place(explorer, 16).details == tokens._repr_html_()
    explorer.restore({"split": "stepped", "batch": 1, "row": 2})
    assert "s12" in place(explorer, 16).details
    assert "the batch stepped on" in place(explorer, 16).text


def test_texts_may_be_mappings_and_differ_between_runs():
    keys = [(split, batch, row) for split in ("stepped", "held out") for batch in range(2) for row in range(3)]
    mine, theirs = ({key: [f"{name}!", *frames.WORDS] for key in keys} for name in ("mine", "theirs"))
    explorer = ZeroSumExplorer({"a": frames.one_step(), "b": frames.one_step()}, {"a": mine, "b": theirs})
    explorer.widget  # noqa: B018
    assert "mine!" in place(explorer, 1).details
    explorer.lists["run"].value = "b"
    assert sentence(explorer).startswith("b: Step 1,024")
    assert "theirs!" in place(explorer, 1).details
    assert "theirs!" in explorer.lists["row"].options[0][0]


def test_doublings_have_intervals_over_rows_and_no_batch_to_pick():
    explorer = ZeroSumExplorer(doubled(8), frames.texts, GROUPS)
    row = interference_table(doubled(8)).filter(step=1024).row(0, named=True)
    assert f"D {row['interference']:.2f} [{row['interference_low']:.2f}, " in sentence(explorer)
    assert "Step 1,024 → 2,048, held-out text, a doubling of training" in sentence(explorer)
    assert "(over 8 rows of text)" in sentence(explorer)
    assert offered(explorer) == ["row", "position"]


def test_doublings_of_a_few_rows_have_no_interval():
    text = sentence(ZeroSumExplorer(doubled(), frames.texts, GROUPS))
    assert "(over 3 rows of text, too few for an interval)" in text
    assert "[" not in text


def test_tokens_are_text_never_html():
    bad = "<img src=x onerror=alert(1)>"
    html = ZeroSumExplorer(frames.one_step(), lambda *_: [bad] * 13).moving().places[0].details
    assert "<img" not in html
    assert "&lt;img" in html


def test_the_still_explorer_has_a_page_of_coloured_text(explorer, tmp_path):
    explorer.show(str(tmp_path), interactive=False)
    assert {path.name for path in tmp_path.iterdir()} == {"explorer_zero_sum.svg", "explorer_tokens.html"}
    assert "undefined" not in (tmp_path / "explorer_zero_sum.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (frames.one_step().drop("change"), {}, "needs the columns"),
        (frames.one_step().drop("first_order"), {}, "first_order not among them"),
        (frames.one_step().clear(), {}, "there are no changes"),
        ({}, {}, "there are no runs"),
        (frames.one_step(), {"step": 3}, "step 3 was not measured; measured: 1, 2, 4"),
        (frames.one_step(), {"batch": 9}, "there is no batch 9; known: 0, 1"),
        (frames.one_step(), {"direction": "updat"}, "did you mean 'update'"),
        (frames.one_step(), {"row": 7}, "there is no row 7; known: 0, 1, 2"),
    ],
)
def test_what_cannot_be_explored_is_reported(changes, options, message):
    with pytest.raises(UserError, match=message):
        ZeroSumExplorer(changes, frames.texts, **options)


def test_where_nothing_changed_there_is_nothing_to_explore():
    still = frames.one_step(steps=(4,)).with_columns(change=pl.lit(0.0))
    with pytest.raises(UserError, match="nothing changed"):
        ZeroSumExplorer(still, frames.texts).moving()


def test_a_row_without_text_is_refused_at_the_start():
    with pytest.raises(UserError, match="there is no text of split 'held out', batch 0, row 0"):
        ZeroSumExplorer(frames.one_step(), {})


def test_a_text_that_is_missing_later_is_reported_and_the_next_one_is_shown():
    first_texts = {("held out", 0, row): frames.texts("held out", 0, row) for row in range(3)}
    explorer = ZeroSumExplorer(frames.one_step(), first_texts)
    explorer.widget  # noqa: B018
    explorer.lists["split"].value = "stepped"
    assert explorer.status.value == "there is no text of split &#x27;stepped&#x27;, batch 0, row 0; add it to texts"
    assert explorer.now["split"] == explorer.lists["split"].value == "held out"
    explorer.lists["row"].value = 1
    assert explorer.now["row"] == 1
