"""The answers of pages 03 to 05: they say what was planted in a ladder, and no more than its seeds support."""

import re

import numpy as np
import polars as pl
import pytest

from lmdynamics.charts import to_svg
from lmdynamics.corpora.tokens import group_names
from lmdynamics.experiments.findings import over_seeds
from lmdynamics.explorers.ladder_answers import deceleration_answer, dissent_answer, zero_sum_answer
from tests.explorers.test_answers import Results

SIZES = {"1M": 10**6, "2M": 2 * 10**6, "4M": 4 * 10**6}
BREAK, END = 512, 8_192
DOUBLINGS = [2**k for k in range(13)]


def planted_ladder(l_d=(5.0, 4.5, 4.05), r_d=(0.0125, 0.025, 0.05), seeds=3, jitter=0.004):
    """Curves that break at step 512 from a rate of .3, with these L_d and r_d; D is .3 before the break, then .8."""
    random = np.random.default_rng(0)
    tables = {name: [] for name in ("log", "loss", "runs", "interference", "one step", "dissent")}
    steps = np.arange(1, END + 1)
    for (size, parameters), level, rate in zip(SIZES.items(), l_d, r_d, strict=True):
        for seed in range(seeds):
            moved = level * (1 + jitter * random.normal())
            smooth = moved * (steps / BREAK) ** -0.3 * ((1 + (steps / BREAK) ** 8) / 2) ** ((0.3 - rate) / 8)
            noisy = smooth + random.normal(0, 0.02, END)
            label = {"condition": size, "seed": seed}
            tables["log"].append(pl.DataFrame({"step": steps, "loss": noisy}).with_columns(**lit(label)))
            held_out = pl.DataFrame({"step": DOUBLINGS, "loss": smooth[np.array(DOUBLINGS) - 1]})
            tables["loss"].append(held_out.with_columns(**lit(label)))
            about = {"parameters": parameters, "unigram_entropy": 8.5, "final_loss": smooth[-1], "stderr": 0.01}
            tables["runs"].append(pl.DataFrame([label | about]))
            for step in DOUBLINGS:
                d = (0.3 if step < BREAK else 0.8) + 0.01 * random.normal()
                measures = {"interference": d, "magnitude": 0.4 / parameters * 1e6, "mean_change": -0.1}
                bounded = {f"{n}{e}": x + dx for n, x in measures.items() for e, dx in bounds()}
                tables["interference"].append(pl.DataFrame([label | {"step": step, "until": 2 * step} | bounded]))
                for split, direction, value in (
                    ("held out", "update", 0.7 + 0.01 * random.normal()),
                    ("held out", "random", 0.95),
                    ("stepped", "update", 0.1),
                ):
                    row = {"step": step, "split": split, "direction": direction, "interference": value}
                    tables["one step"].append(pl.DataFrame([label | row]))
                for group in (*group_names(), "all"):
                    rare = 0.2 * (group == group_names()[-1])
                    value = -0.5 + 0.1 * np.log2(parameters / 1e6) - rare + 0.01 * random.normal()
                    row = {"dissent": value, "dissent_low": value - 0.05, "dissent_high": value + 0.05}
                    row |= {"dissent_control": -0.1, "dissent_control_low": -0.1, "dissent_control_high": -0.1}
                    row |= {"change": None if step == 1 else 0.01 * random.normal()}
                    tables["dissent"].append(pl.DataFrame([label | {"step": step, "group": group} | row], {**DISSENT}))
    return Results({name: pl.concat(frames, how="diagonal_relaxed") for name, frames in tables.items()})


DISSENT = {"condition": pl.String, "seed": pl.Int64, "step": pl.Int64, "group": pl.String}
DISSENT |= {f"{name}{end}": pl.Float64 for name in ("dissent", "dissent_control") for end in ("", "_low", "_high")}
DISSENT |= {"change": pl.Float64}


def lit(values):
    return {name: pl.lit(value) for name, value in values.items()}


def bounds():
    return (("", 0.0), ("_low", -0.01), ("_high", 0.01))


@pytest.fixture(scope="module")
def planted():
    return planted_ladder()


def test_a_ladder_as_published_is_called_so(planted):
    answer = deceleration_answer(planted)
    text = str(answer)
    assert "The loss of 9 of 9 runs decelerates" in text
    assert re.search(r"curves made without a break, decelerates in [01] of 9\.", text)
    first, second = (float(text.split(f"{symbol}: ")[1].split(" ")[0]) for symbol in ("L_d", "r_d"))
    assert first == pytest.approx(5.0, rel=0.03)
    assert second == pytest.approx(0.01, abs=0.008)
    assert re.search(r"L_d: .*\(4M\), difference −0\.9\d \[−.*\], lower in the larger model; rate", text)
    assert re.search(r"r_d: .*\(4M\), difference \+0\.0\d+ \[\+.*\], higher in the larger model\.", text)
    assert text.count("as published") == 2
    assert "at 27 of 27" not in text, "only checkpoints after the first tenth"
    assert "lower held-out loss at 12 of 12 checkpoints (3 seeds with several sizes)" in text
    kept = (pl.col("seed") == 0) | (pl.col("condition") == "1M")
    lone = {name: frame.filter(kept) for name, frame in planted.items()}
    assert "at 4 of 4 checkpoints (1 seed with several sizes)" in str(deceleration_answer(Results(lone)))
    alone = str(deceleration_answer(Results(lone)))
    assert re.search(r"\(1M\) and \d\.\d+ \(4M, one seed\), not tested", alone), "no difference that does not subtract"
    two = {name: frame.filter(kept | (pl.col("seed") == 1)) for name, frame in planted.items()}
    assert "in the larger model over the 2 seeds with both" in str(deceleration_answer(Results(two)))
    assert "3 runs (planted)" in text
    assert "Larger models" in to_svg(answer.figure)


def test_a_ladder_the_other_way_round_is_not(planted):
    turned = str(deceleration_answer(planted_ladder(l_d=(4.05, 4.5, 5.0), r_d=(0.05, 0.025, 0.0125))))
    assert turned.count("not as published") == 2
    assert "lower held-out loss at 0 of 12 checkpoints" in turned


def test_one_seed_and_one_size_compare_nothing(planted):
    one_seed = str(deceleration_answer(Results({name: frame.filter(seed=0) for name, frame in planted.items()})))
    assert "not tested" in one_seed
    assert ", one seed)" in one_seed
    assert "in the larger model" not in one_seed
    one_size = Results({name: frame.filter(condition="1M") for name, frame in planted.items()})
    text = str(deceleration_answer(one_size))
    assert "There is one size, so sizes are not compared." in text
    assert "too few to compare L_d and r_d over sizes" in text
    for answer in (zero_sum_answer, dissent_answer):
        assert "larger model" not in str(answer(one_size))


def test_interference_rises_across_the_break_as_planted(planted):
    answer = zero_sum_answer(planted)
    text = str(answer)
    assert re.search(r"those after it: 1M: 0\.3.*, difference \+0\.(50|49|51) \[\+0\.4.*\], a rise; 4M: 0\.3", text)
    assert "Over the last doubling, 4,096 to 8,192, D is 0.8" in text
    assert "In nats, a token's loss changes by 0.40 [0.40, 0.40] (1M)" in text
    assert "has D 0.70 [" in text
    assert re.search(r"difference −0\.25 \[.*\], below the control\.", text)
    assert "published, Mircea et al. 2025" in to_svg(answer.figure)


def test_without_a_located_break_nothing_is_compared_across_it(planted):
    run = {name: frame.filter(condition="1M", seed=0) for name, frame in planted.items()}
    noise = np.random.default_rng(0).normal(0, 0.02, len(run["log"]))
    run["log"] = run["log"].with_columns(loss=12 * pl.col("step") ** -0.15 + noise)
    assert "those after it: no run has a located break" in str(zero_sum_answer(Results(run)))


def test_a_rise_that_seeds_do_not_agree_on_is_undecided(planted):
    mixed = pl.when(pl.col("seed") == 0).then(1.1 - pl.col("interference")).otherwise("interference")
    changed = Results(planted | {"interference": planted["interference"].with_columns(interference=mixed)})
    text = str(zero_sum_answer(changed))
    assert "a rise" not in text
    assert re.search(r"those after it: 1M: .*\], undecided; 4M: .*\], undecided\.", text)


def test_dissent_is_compared_with_its_control_and_over_sizes(planted):
    answer = dissent_answer(planted)
    text = str(answer)
    assert "At step 4,096, the mean cosine of attraction and repulsion is −0.5" in text
    assert re.search(r"\(4M\), difference \+0\.2\d .*\], higher in the larger model; −1 would", text)
    assert "it is −0.4" in text, "0.1 less than without the control"
    assert "differ from frequent ones (at least 1 in 100) by −0.2" in text
    assert "1M" in to_svg(answer.figure)


def test_means_over_seeds_have_their_intervals_and_single_seeds_those_of_the_text():
    rows = [("1M", seed, 8, value, value - 1, value + 1) for seed, value in enumerate([1.0, 2.0, 3.0])]
    table = pl.DataFrame(rows, ["size", "seed", "step", "loss", "loss_low", "loss_high"], orient="row")
    (row,) = over_seeds(table, ["size", "step"], ["loss"]).iter_rows(named=True)
    assert (row["loss"], row["loss_low"], row["loss_high"]) == pytest.approx((2, 2 - 2.484, 2 + 2.484), abs=1e-3)
    (alone,) = over_seeds(table.head(1), ["size", "step"], ["loss"]).iter_rows(named=True)
    assert (alone["loss"], alone["loss_low"], alone["loss_high"]) == (1, 0, 2)
    without = over_seeds(table.head(1).drop("loss_low", "loss_high"), ["size", "step"], ["loss"])
    assert without.rows() == [("1M", 8, 1.0, None, None)]
    assert over_seeds(table.clear(), ["size", "step"], ["loss"]).columns == [*alone]
    mixed = over_seeds(pl.concat([table, table.head(1).with_columns(size=pl.lit("2M"))]), ["size", "step"], ["loss"])
    assert mixed.filter(size="2M")["loss_low"].to_list() == [None], "its interval would not be over seeds"


def test_the_captions_say_what_intervals_are_over(planted):
    for answer in (zero_sum_answer, dissent_answer):
        svg = to_svg(answer(planted).figure)
        assert "bands: 95 % over seeds" in svg
        assert "rows of text" not in svg
        alone = Results({name: frame.filter(seed=0) for name, frame in planted.items()})
        assert "bands: 95 % over rows of text" in to_svg(answer(alone).figure)
