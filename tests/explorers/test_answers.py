"""The answers that pages open with: they say what was planted, and no more than the seeds support."""

import re

import numpy as np
import polars as pl
import pytest

from lmdynamics.charts import to_svg
from lmdynamics.experiments.findings import contrasts, differences, last_values
from lmdynamics.experiments.reference import EXPERIMENTS, reference
from lmdynamics.explorers.answers import Answer, interventions_answer, masking_answer, start_answer, syntax_answer
from lmdynamics.explorers.ladder_answers import deceleration_answer, dissent_answer, zero_sum_answer
from lmdynamics.explorers.seed_answers import seeds_answer
from lmdynamics.measurements.divergence import EARLIER, SEEDS, UNIGRAM
from lmdynamics.paths import shipped
from tests.experiments.test_reference import planted_runs

STEPS = [0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]


class Results(dict):
    """Tables in the place of reference results."""

    source = "3 runs (planted)"


def losses(ends, rates=(None,)):
    """Losses that fall to the end of each condition and seed: {condition: ends by seed}."""
    rows = [
        (condition, seed, step, rate, 5 - (5 - end) * i / (len(STEPS) - 1))
        for condition, by_seed in ends.items()
        for seed, end in enumerate(by_seed)
        for rate in rates
        for i, step in enumerate(STEPS)
    ]
    frame = pl.DataFrame(rows, ["condition", "seed", "step", "rate", "loss"], orient="row")
    return frame if rates != (None,) else frame.drop("rate")


def test_the_order_is_claimed_only_if_the_interval_excludes_one():
    uas, pairs = planted_runs([(32, 128, 256), (64, 128, 512), (32, 256, 512)])
    answer = syntax_answer(Results(uas=uas, pairs=pairs, loss=losses({"base": [2.0, 2.1, 2.2]})))
    text = str(answer)
    assert "Agreement comes later: at 10.08 times the step at which heads beat shuffled trees" in text
    assert "from step 406 [" in text, "the geometric mean of 256, 512 and 512"
    assert "3 runs (planted)" in text
    mixed = planted_runs([(32, 128, 512), (64, 512, 128), (32, 256, 512)])
    undecided = str(syntax_answer(Results(uas=mixed[0], pairs=mixed[1], loss=losses({"base": [2.0, 2.1, 2.2]}))))
    assert "Which comes first is undecided" in undecided
    alone = [frame.filter(seed=0) for frame in (uas, pairs)]
    one_seed = str(syntax_answer(Results(uas=alone[0], pairs=alone[1], loss=losses({"base": [2.0]}))))
    assert "(one seed)" in one_seed
    assert "comes later" not in one_seed


def test_runs_without_grammar_have_no_order():
    uas, pairs = planted_runs([(32, 128, 4096), (32, 128, 4096)])
    text = str(syntax_answer(Results(uas=uas, pairs=pairs, loss=losses({"base": [2.0, 2.1]}))))
    assert "above chance from no step (0 of 2 runs) on" in text
    assert "so their order is unknown" in text


def conditions(**planted):
    """UAS and pairs of several conditions: the onsets of their seeds."""
    frames = [
        [frame.with_columns(condition=pl.lit(name)) for frame in planted_runs(onsets)]
        for name, onsets in planted.items()
    ]
    return [pl.concat(parts) for parts in zip(*frames, strict=True)]


def test_interventions_are_named_and_compared_with_the_base():
    early, never = (32, 128, 256), (4096, 4096, 4096)
    uas, pairs = conditions(
        **{"base": [early] * 3, "SAS−": [never] * 3, "released": [early] * 3, "SAS+": [(8, 4096, 512)] * 3}
    )
    jitter = pl.col("correct") ^ ((pl.col("seed") == 1) & (pl.col("pair") == 0) & (pl.col("condition") == "base"))
    pairs = pairs.with_columns(correct=jitter)  # seeds that are all alike have no spread to test against
    ends = {"base": [2.0, 2.1, 2.2], "SAS−": [3.0, 3.2, 3.1], "released": [2.1, 2.0, 2.2], "SAS+": [2.5, 2.7, 2.6]}
    answer = interventions_answer(Results(uas=uas, pairs=pairs, loss=losses(ends)))
    text = str(answer)
    assert re.search(r"Suppressed throughout: agreement ends 4\d \[\d\d, \d\d\] points below the base;", text)
    assert re.search(r"loss ends 1\.00 \[\d\.\d\d, \d\.\d\d\] nats above the base", text)
    assert re.search(r"Released at 3 % of training, agreement ends \d \[.*, undecided\.", text)
    assert "corrected for these 7 comparisons" in text
    assert "SAS" not in text, "conditions go by what was done"
    svg = to_svg(answer.figure)
    assert "released at 3 %" in svg
    assert "no grammar" not in svg, "the title gives the difference and its interval, not more"
    assert re.search(r"Suppressed throughout: agreement ends 4\d \[", svg)
    assert "control" not in text, "runs without the control make no claim about it"


@pytest.mark.parametrize(("control", "concluded"), [(512, "costs more than"), (4096, "is not shown to cost more than")])
def test_the_control_of_suppression_stands_beside_it(control, concluded):
    """A penalty on shuffled trees that leaves grammar alone, or one that costs as much."""
    agreement = {"base": 256, "SAS−": 4096, "SAS− on shuffled trees": control, "SAS+": 256}
    uas, pairs = conditions(**{name: [(32, 128, onset)] * 3 for name, onset in agreement.items()})
    seed_of = pl.col("condition").replace_strict({"base": 1, "SAS− on shuffled trees": 2}, default=None)
    spread = ((pl.col("seed") == seed_of) & (pl.col("pair") == 0)).fill_null(False)
    ends = {name: [2.0, 2.1, 2.2] for name in agreement}
    pairs = pairs.with_columns(correct=pl.col("correct") ^ spread)  # seeds that are all alike cannot be tested
    answer = interventions_answer(Results(uas=uas, pairs=pairs, loss=losses(ends)))
    assert re.search(r"control, the same penalty on shuffled trees: agreement ends \d+ \[", answer.sentences[0])
    assert f"Suppression {concluded} its control (agreement" in answer.sentences[0]
    assert "on shuffled trees" in to_svg(answer.figure)


def masking_results():
    ends = {
        "constant 15 %": [2.0, 2.1, 2.2],
        "constant 30 %": [1.9, 2.0, 2.11],
        "linear 30 → 15 %": [1.8, 1.9, 2.005],
        "linear 15 → 30 %": [2.05, 2.2, 2.2],
    }
    _, pairs = conditions(**{name: [(32, 128, 512)] * 3 for name in ends})
    margin = losses(ends).select("condition", "seed", "step", paradigm=pl.lit("p"), margin=5 - pl.col("loss"))
    return Results(loss=losses(ends, (0.05, 0.15, 0.3, 0.5)), margin=margin, pairs=pairs)


def test_schedules_are_compared_seed_by_seed():
    answer = masking_answer(masking_results())
    text = str(answer)
    assert "compared with constant 15 %: constant 30 % −0.10 [" in text
    assert "; linear 30 → 15 % −0.20 [−0.21, −0.19] nats (better)" in text
    assert "linear 30 → 15 % compared with constant 30 %: −0.10 [−0.11, −0.09] nats (better)" in text, (
        "by 0.1 in every seed"
    )
    assert "corrected for these 7 comparisons" in text
    assert "loss at 50 %" in to_svg(answer.figure)


def test_one_seed_compares_no_schedules():
    alone = Results({name: frame.filter(seed=0) for name, frame in masking_results().items()})
    text = str(masking_answer(alone))
    assert text.count("(one seed: undecided)") == 7


def test_differences_and_contrasts_are_paired():
    final = last_values(
        losses({"a": [1.0, 2.0, 3.0], "b": [1.1, 2.12, 3.11]}).with_columns(value="loss", measure=pl.lit("loss"))
    )
    moved = differences(final, "a")
    assert moved["value"].to_list() == pytest.approx([0.1, 0.12, 0.11])
    (row,) = contrasts(final, [("b", "a", "loss")], {"loss": False}).iter_rows(named=True)
    assert row["difference"] == pytest.approx(0.11)
    assert row["verdict"] == "worse"
    assert 0 < row["low"] < row["high"]


def test_verdicts_are_corrected_for_all_comparisons_of_the_table():
    values = losses({"a": [1.0, 2.0, 3.0], "b": [0.9, 1.92, 2.85], "c": [1.0, 2.1, 2.9]})
    final = last_values(values.with_columns(value="loss", measure=pl.lit("loss")))
    alone = contrasts(final, [("b", "a", "loss")], {"loss": False})
    beside = contrasts(final, [("b", "a", "loss"), ("c", "a", "loss")], {"loss": False})
    assert alone["verdict"].to_list() == ["better"]
    assert beside["p"][0] == alone["p"][0]
    assert beside["p_hochberg"][0] == pytest.approx(2 * alone["p"][0])


def test_a_seed_that_only_one_condition_has_is_left_out():
    values = losses({"a": [1.0, 2.0, 3.0], "b": [1.1, 2.12]}).with_columns(value="loss", measure=pl.lit("loss"))
    final = last_values(values)
    assert differences(final, "a")["seed"].to_list() == [0, 1]
    assert differences(final, "b")["seed"].to_list() == [0, 1]
    assert contrasts(final, [("b", "a", "loss")], {"loss": False})["n"].to_list() == [2]


def test_a_verdict_needs_an_interval_without_zero():
    values = losses({"a": [1.0, 2.0, 3.0], "b": [1.1, 2.2, 3.1]}).with_columns(value="loss", measure=pl.lit("loss"))
    (row,) = contrasts(last_values(values), [("b", "a", "loss")], {"loss": False}).iter_rows(named=True)
    assert row["low"] < 0 < row["high"]
    assert row["p"] > 0.95, "the one-sided test alone would say worse"
    assert row["verdict"] == "undecided"


def test_an_answer_is_displayed_with_its_words_escaped(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda content, raw=False: shown.append(content))
    Answer(["a < b"], masking_answer(masking_results()).figure, "<script>").show()
    text, figure = shown
    assert "a &lt; b" in text["text/html"]
    assert "<script>" not in text["text/html"]
    assert text["text/markdown"] == "- a < b"
    assert "What we found" in text["text/html"]
    assert "<svg" in figure.svg


ANSWERS = {
    "syntax": [syntax_answer, start_answer],
    "interventions": [interventions_answer],
    "masking": [masking_answer],
    "ladder": [deceleration_answer, zero_sum_answer, dissent_answer],
    "seeds": [seeds_answer],
}


def test_every_experiment_has_an_answer_and_shipped_results():
    assert ANSWERS.keys() == EXPERIMENTS.keys() == {path.stem for path in shipped("reference").glob("*.json")}


@pytest.mark.parametrize(("name", "make"), [(name, make) for name, several in ANSWERS.items() for make in several])
def test_the_shipped_results_answer(name, make):
    answer = make(reference(name))
    assert len(answer.sentences) == 3
    assert all(answer.sentences)
    assert f"`lmdynamics reference {name}`" in str(answer)
    to_svg(answer.figure)


def seed_tables(onsets, peak=0.5):
    """Tables of the reference results on seeds: onsets by seed, and a divergence with a planted peak."""
    random = np.random.default_rng(0)
    dated = [("base", seed, name, step) for name, steps in onsets.items() for seed, step in enumerate(steps)]
    seeds = range(max(map(len, onsets.values())))
    curves = [("base", seed, step, "UAS", 0.1 * i) for seed in seeds for i, step in enumerate(STEPS)]
    pairs = []
    for seed in seeds[::2]:
        for i, step in enumerate(STEPS):
            for by, group, scale in (
                ("all", "all", 1), ("relation", "acl", 2), ("relation", "punct", 0.1),
                ("frequency", "at least 1 in 100", 0.5), ("frequency", "rarer than 1 in 10,000", 1.5),
            ):  # fmt: skip
                value = scale * (0.2 + peak * (step == 128) + 0.01 * random.normal())
                values = {SEEDS: value, EARLIER: 2 * scale, UNIGRAM: 3.0, "loss": 5 - 0.3 * i}
                pairs += [("base", seed, by, step, group, name, x) for name, x in values.items()]
    return Results(
        onsets=pl.DataFrame(dated, ["condition", "seed", "onset", "step"], orient="row"),
        curves=pl.DataFrame(curves, ["condition", "seed", "step", "measure", "value"], orient="row"),
        divergence=pl.DataFrame(pairs, ["condition", "seed", "by", "step", "group", "compared", "value"], orient="row"),
    )


def test_seeds_are_two_groups_where_two_were_planted_and_undecided_elsewhere():
    two = [128] * 4 + [64] * 2 + [1024] * 4 + [2048] * 2
    one = [128] * 3 + [256] * 6 + [512] * 3
    answer = seeds_answer(seed_tables({"structure": two, "capabilities": one, "beyond": [64] * 5 + [None] * 7}))
    text = str(answer)
    assert re.search(
        r"Structure: 12 seeds .* more than one normal group \(p = 0\.0\d\d, corrected\): 6 seeds at \d+ and 6 at", text
    )
    assert re.search(
        r"Capabilities: 12 seeds around step 256, .* undecided: not told from one group \(p = [01]\.\d\d, corrected\)",
        text,
    )
    assert re.search(r"would be found 4 times in 5 if they were a factor of \d+\.\d apart", text)
    assert "Beyond: 5 seeds around step 64" in text
    assert "undecided: too few seeds to test for two groups" in text
    assert "by 0.70 [0.69, 0.7" in text
    assert re.search(r"up to the peak \+0\.(49|50|51) \[", text)
    assert re.search(r"up to the peak [^;]* rises; after the peak [^;]* falls; undecided: .*while UAS rises", text)
    assert re.search(r"mean divergence is largest on acl \(0\.(39|40|41) \[", text)
    assert re.search(r"less those at least 1 in 100: \+0\.(19|20|21) \[.*\] nats \(more\)", text)
    to_svg(answer.figure)


def test_one_pair_of_seeds_is_undecided_in_everything():
    text = str(seeds_answer(seed_tables({"structure": [128, 64]})))
    assert "1 pairs" not in text
    assert "rises" not in text.replace("while UAS rises", "")
    spans = "from the first step to the last, while UAS rises, the last doubling"  # one pair has no other pairs' peak
    assert f"Changes of the divergence: undecided: {spans}." in text
    assert text.count("undecided") >= 3  # the changes, the frequencies, the onset


def test_one_sentence_is_enough_where_no_onset_is_in_two_groups():
    one = [128] * 3 + [256] * 6 + [512] * 3
    text = str(seeds_answer(seed_tables({"structure": one, "capabilities": one[::-1]})))
    place = r"around step 256 \(12 seeds, spread by a factor of 1\.6\d\)"
    pattern = (
        rf"Onsets: structure {place}; capabilities {place}\. .* undecided \(p = [01]\.\d\d, [01]\.\d\d, corrected\)\."
    )
    assert re.search(pattern, text)
    assert re.search(r"if they were apart by a factor of \d+\.\d, a factor of \d+\.\d\.", text)


def test_the_start_says_how_much_of_the_fall_comes_before_agreement():
    uas, pairs = planted_runs([(32, 128, 512), (64, 128, 512), (32, 256, 512)])
    answer = start_answer(Results(uas=uas, pairs=pairs, loss=losses({"base": [2.0, 2.1, 2.2]})))
    text = str(answer)
    assert "In 2,048 steps the loss on new text falls from 5.00 [5.00, 5.00] to 2.10 [1.85, 2.35] nats" in text
    assert "Half of this fall is over at step 128 [" in text, "the first checkpoint below the middle"
    assert "When agreement starts, 78% [78%, 78%] of the fall is over." in text, "seven ninths"
    never, pairs = planted_runs([(32, 128, 4096), (32, 128, 4096)])
    silent = str(start_answer(Results(uas=never, pairs=pairs, loss=losses({"base": [2.0, 2.1]}))))
    assert "When agreement starts" not in silent
    assert "from no step (0 of 2 runs) on" in silent
