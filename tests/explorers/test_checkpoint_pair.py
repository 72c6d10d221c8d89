"""The explorer of two checkpoints: its defaults, state, tables and title."""

import polars as pl
import pytest

from lmdynamics.corpora.treebanks import Treebank
from lmdynamics.explorers.checkpoint_pair import CheckpointPair, head_relations
from tests.conftest import refuses
from tests.explorers.made import TEXT, relations_of_heads, token_losses


def test_b_is_the_last_checkpoint_and_a_half_of_it():
    explorer = CheckpointPair(token_losses(), TEXT)
    assert explorer.state() == {"a": 8, "b": 16}
    assert CheckpointPair(token_losses(), TEXT, a=16, b=0).state() == {"a": 16, "b": 0}  # either order
    refuses("step is 3", CheckpointPair, token_losses(), TEXT, a=3)
    refuses("row 7 has no text", CheckpointPair, token_losses(), TEXT[:7])
    refuses("accuracy not among them", CheckpointPair, token_losses(), TEXT, relations_of_heads().drop("accuracy"))


def test_tables_have_each_token_and_head_between_a_and_b():
    tables = CheckpointPair(token_losses(), TEXT, relations_of_heads(), a=2, b=16).tables()
    changes = tables["token_changes"]
    assert changes["change"].is_sorted()
    assert changes.row(0, named=True) | {"loss": 0, "change": 0} == {
        "from_step": 2, "step": 16, "row": 0, "position": 2, "token": 7, "loss": 0, "change": 0
    }  # fmt: skip
    assert changes["change"][0] == pytest.approx(-0.6 * 3)
    assert tables["mean_change"]["change"][0] == pytest.approx(changes["change"].mean())
    heads = tables["changed_heads"]
    assert heads.select("from_step", "step", "layer", "head", "relation_before", "relation").rows() == [
        (2, 16, 0, 1, "punct", "nsubj"), (2, 16, 1, 0, "det", "obj")
    ]  # fmt: skip
    assert "changed_heads" not in CheckpointPair(token_losses(), TEXT).tables()


def test_the_page_moves_a_without_python():
    explorer = CheckpointPair(token_losses(), TEXT)
    explorer.widget  # noqa: B018
    content = explorer.views.content
    explorer.views.values = {"at": 4, "origin": 1}
    assert (explorer.state(), explorer.views.content) == ({"a": 1, "b": 8}, content)
    explorer.views.values = {"at": 4, "origin": 99}  # sent by other views
    assert explorer.views.values == {"at": 4, "origin": 1}


def test_relations_of_heads_are_scored_on_unseen_sentences(tiny_run):
    bank = tiny_run.treebank("grammar", 120)
    heads = head_relations(tiny_run, bank, [0, 12], sentences=80, progress=False)
    assert heads["step"].unique().to_list() == [0, 12]
    assert heads.select("step", "layer", "head").is_duplicated().sum() == 0
    assert len(heads) == 2 * 2 * 2
    assert heads["offset"].is_between(0, 1).all()
    assert (heads["count"] < 80).all()
    few = Treebank("few", bank.sentences[:1])
    assert head_relations(tiny_run, few, [0, 12]) is None


def test_one_row_of_text_has_no_interval():
    losses = token_losses().filter(pl.col("row") < 1)
    title = str(CheckpointPair(losses, TEXT).moving().chart.spec["vconcat"][0]["title"])
    assert "fewer than 6 rows of text" in title
