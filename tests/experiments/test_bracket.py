"""An onset from few checkpoints is where a full trace has it; what was not measured is reported."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lmdynamics as lmd
from lmdynamics.analysis.onsets import first_run
from lmdynamics.errors import UserError
from lmdynamics.experiments.bracket import Rule, bracket_onset, capabilities_rule, next_place, structure_rule
from lmdynamics.measurements.losses import PairAccuracy
from lmdynamics.measurements.syntax import UAS
from lmdynamics.measurements.trace import Measurement, trace
from tests.hub import suites

K = 3
PYTHIA = "hf://EleutherAI/pythia-14m"


def search(risen: list[bool], at_most: int) -> tuple[list[int], dict[int, bool]]:
    """The places that are measured, in order, and what was found there."""
    seen: dict[int, bool] = {}
    while len(seen) < at_most and (place := next_place(seen, len(risen), K)) is not None:
        assert place not in seen
        seen[place] = risen[place]
    return list(seen), seen


@given(st.integers(8, 400), st.data())
@settings(deadline=None)
def test_a_curve_that_rises_once_is_dated_between_neighbours(count, data):
    onset = data.draw(st.integers(1, count - K))
    order, seen = search([place >= onset for place in range(count)], at_most=count)
    assert seen[onset - 1] is False
    assert all(seen[place] for place in range(onset, onset + K))
    assert len(order) <= 2 + int(np.ceil(np.log2(count))) + K - 1


@given(st.lists(st.booleans(), min_size=4, max_size=60))
@settings(deadline=None)
def test_whatever_the_curve_the_search_ends_at_a_rise_that_lasts(risen):
    risen[0] = False
    _, seen = search(risen, at_most=len(risen))
    lasts = [p for p in range(1, len(risen)) if all(seen.get(q, False) for q in range(p, p + K))]
    starts = [p for p in lasts if not seen.get(p - 1, True)]
    exists, _ = first_run(np.array([risen]), K)
    assert bool(starts) == bool(exists[0])
    assert all(all(risen[p : p + K]) for p in starts)


@dataclass(frozen=True)
class Planted(Measurement):
    """A gap that is known at each step."""

    onset: int
    falls: int = 10**9  # step of a fall
    again: int = 10**9  # step of a second rise

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        high = self.onset <= checkpoint.step < self.falls or checkpoint.step >= self.again
        return pl.DataFrame({"gap": [0.05 + 0.3 * high]})


RULE = Rule("planted", lambda rows: rows["gap"][0])


def test_planted_onsets_of_154_revisions(hub):
    """20 of 20 between the same neighbours as by a full trace, with 12 checkpoints; none is downloaded to be chosen."""
    suites.pythia(hub, suites.PYTHIA_STEPS)
    run = lmd.open_run(PYTHIA)
    assert len(run) == 154
    for onset in np.random.default_rng(0).choice(run.steps[1 : -K + 1], 20, replace=False):
        found = bracket_onset(run, Planted(int(onset)), RULE, cache=False)
        assert (found.before, found.step, found.between) == (run.steps[run.steps.index(onset) - 1], onset, 0)
        assert len(found.gaps) <= 12
    assert not hub.downloads


def test_a_first_rise_that_was_not_seen_is_not_excluded(hub):
    suites.pythia(hub, suites.PYTHIA_STEPS)
    run = lmd.open_run(PYTHIA)
    twice = Planted(2_000, falls=6_000, again=90_000)
    assert trace(run, twice, cache=False).filter(pl.col("gap") > 0.3)["step"][0] == 2_000
    found = bracket_onset(run, twice, RULE, cache=False)
    assert (found.before, found.step) == (89_000, 90_000)
    assert any(a < 2_000 and b > 5_000 for a, b, _ in found.unseen)
    assert "not excluded: an earlier rise that falls again" in str(found)
    never = bracket_onset(run, Planted(2_000, falls=6_000), RULE, at_most=6, cache=False)
    assert never.step is None
    assert "no onset up to step 143,000, where the gap to the control is +0.050" in str(never)
    assert "not excluded: a rise that falls again" in str(never)


def test_a_run_without_step_0_that_is_above_from_the_start_is_not_dated(hub):
    suites.pythia(hub, [512, *range(1_000, 20_000, 1_000)])
    found = bracket_onset(lmd.open_run(PYTHIA), Planted(1), RULE, cache=False)
    assert (found.before, found.step, len(found.gaps)) == (None, 512, 1)
    assert "onset at or before step 512" in str(found)


def test_a_limit_that_is_reached_is_said(hub):
    suites.pythia(hub, suites.PYTHIA_STEPS)
    found = bracket_onset(lmd.open_run(PYTHIA), Planted(70_000), RULE, at_most=5, cache=False)
    assert found.between > 0
    assert f"with {found.between} checkpoints between them (5 of 154 checkpoints measured" in str(found)
    run = lmd.open_run(PYTHIA)
    full = bracket_onset(run, Planted(70_000), RULE, cache=False)
    short = bracket_onset(run, Planted(70_000), RULE, at_most=len(full.gaps) - 1, cache=False)
    assert (short.before, short.step) == (full.before, full.step) == (69_000, 70_000)
    assert (full.unchecked, len(short.unchecked)) == ([], 1)
    assert "not excluded: a fall right after it" not in str(full)
    assert f"a fall right after it, at steps that were not measured: {short.unchecked[0]:,}" in str(short)
    with pytest.raises(UserError, match="at_most is 3; at least 4"):
        bracket_onset(lmd.open_run(PYTHIA), Planted(70_000), RULE, at_most=3)


def test_the_rules_are_those_of_the_full_trace(tiny_run):
    """The gap at each step, and so its neighbours, from a run of the built-in language."""
    trees, pairs = tiny_run.treebank("grammar", 100), tiny_run.pairs("grammar", 20)
    measured = ((UAS(trees, 20), structure_rule(margin=0.01)), (PairAccuracy(pairs), capabilities_rule(0.01)))
    for measurement, rule in measured:
        rows = trace(tiny_run, measurement)
        gaps = np.array([[rule.gap(rows.filter(step=step)) for step in tiny_run.steps]])
        exists, first = first_run(gaps - np.maximum(gaps[:, :1], 0) > 0.01, K)
        found = bracket_onset(tiny_run, measurement, rule, at_most=len(tiny_run.steps))
        assert (found.step is not None) == exists[0]
        if exists[0]:
            assert found.step >= tiny_run.steps[first[0]], "an earlier rise is found, or reported as not excluded"


def test_the_command_downloads_what_it_measures(hub, call, tmp_path):
    suites.pythia(hub, suites.PYTHIA_STEPS)
    sentences = ["the cat sees the dog", "they have seen the world"] * 60
    lines = [
        "".join(f"{i}\t{word}\t_\t_\t_\t_\t{(i + 1) % 6}\tdep\t_\t_\n" for i, word in enumerate(text.split(), 1))
        for text in sentences
    ]
    (tmp_path / "trees.conllu").write_text("\n".join(lines))
    status, out, err = call("onset", PYTHIA, "--treebank", str(tmp_path / "trees.conllu"), "--at-most", "6")
    assert (status, "add --yes" in err) == (2, True)
    assert not [path for path in hub.downloads if path.endswith("safetensors")]
    status, out, err = call("onset", PYTHIA, "--treebank", str(tmp_path / "trees.conllu"), "--at-most", "6", "--yes")
    assert status == 0, err
    assert "all 154 checkpoints:" in out
    assert "structure (per_relation against shuffled): " in out
    assert "6 of 154 checkpoints measured" in out
    assert "downloaded " in out
    assert len({path for path in hub.downloads if path.endswith("safetensors")}) <= 6
