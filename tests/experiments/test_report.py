"""`lmdynamics fit`: an object or a row per curve; mistakes in one line; exit status."""

import json
import math

import numpy as np
import polars as pl
import pytest

from lmdynamics.analysis.deceleration import Deceleration, fit_deceleration
from lmdynamics.experiments.reading import to_json
from tests.analysis.frames import broken, noisy, spaced
from tests.conftest import refused

STEPS = spaced(60)
FIELDS = {"group", "rate_before_break", *Deceleration.__dataclass_fields__}


@pytest.fixture
def table(tmp_path):
    """Write curves (name to losses) as a long CSV."""

    def write(curves, name="some.csv", **renamed):
        parts = [
            pl.DataFrame({"model": [k] * len(v), "step": STEPS[: len(v)].astype(int), "loss": v})
            for k, v in curves.items()
        ]
        path = tmp_path / name
        pl.concat(parts).rename(renamed).write_csv(path)
        return path

    return write


TWO = {"small": noisy(STEPS, 0.01, 0), "large": noisy(STEPS, 0.01, 1, d=6_000.0)}


def strict(text):
    def none(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=none)


# objects ------------------------------------------------------------------------------------------------------------


def test_json_is_an_object_per_curve_with_every_field_of_its_fit(call, table):
    status, out, err = call("fit", table(TWO), "--json", "--resamples", "20")
    assert status == 0
    first, second = strict(out)
    assert (first["group"], second["group"]) == ("small", "large")
    assert set(first) == set(second) == FIELDS
    expected = fit_deceleration(STEPS, TWO["small"], resamples=20).to_dict()
    assert {name: first[name] for name in expected} == strict(json.dumps(expected))
    assert first["rate_before_break"] == first["c0"]
    assert set(first["intervals"]) == {"loss_at_break", "step_at_break", "rate_before_break", "rate_after_break"}
    assert "Columns: step 'step' (detected), loss 'loss' (detected), group 'model' (detected)" in err


def test_a_curve_without_a_fit_has_the_same_fields(call, table):
    status, out, _ = call("fit", table({**TWO, "short": broken(STEPS)[:9]}), "--json", "--resamples", "0")
    assert status == 0
    fitted, _, short = strict(out)
    assert set(short) == set(fitted) == FIELDS
    assert (short["verdict"], short["step_at_break"], short["intervals"]) == ("not fitted", None, {})
    assert "a break needs at least 12" in short["reason"]
    assert fitted["intervals"] == {}


def test_numbers_that_json_does_not_know_are_null():
    fits = fit_deceleration(STEPS, TWO["small"], resamples=0)
    spoilt = Deceleration(
        **{**{name: getattr(fits, name) for name in Deceleration.__dataclass_fields__}, "b": math.inf},
    )
    assert to_json("a", spoilt)["b"] is None
    strict(json.dumps(to_json("a", spoilt), allow_nan=False))


# tables -------------------------------------------------------------------------------------------------------------


def test_the_table_names_each_curve_with_its_numbers_and_why(call, table):
    status, out, err = call("fit", table({**TWO, "short": broken(STEPS)[:9]}), "--resamples", "20")
    assert status == 0
    fits = fit_deceleration(STEPS, TWO["small"], resamples=20)
    (row,) = [line for line in out.splitlines() if line.startswith("│ small")]
    low, high = fits.intervals["loss_at_break"]
    assert f"{fits.loss_at_break:.3f} [{low:.3f}, {high:.3f}]" in row
    assert f"{fits.rsle:.4f}" in row
    assert f"small: {fits.reason}" in out
    assert "short: 9 points are left" in out
    assert "3 curves: 2 decelerates, 1 not fitted." in out
    assert "Columns:" in err
    assert "Columns:" not in out


def test_many_curves_are_cut_and_counted(call, table):
    many = {f"short {i}": broken(STEPS)[:9] for i in range(69)} | {"one": TWO["small"], "two": TWO["large"]}
    status, out, _ = call("fit", table(many), "--resamples", "0", "--workers", "1")
    assert status == 0
    assert "… and 11 more; --json prints them all" in out
    assert "71 curves: 2 decelerates, 69 not fitted." in out
    assert "Not fitted, 69 of them: 9 points are left" in out


def test_a_jump_in_scale_is_the_verdict_and_no_number_stands_beside_it(call, tmp_path):
    steps = np.arange(10, 5_001, 10)
    loss = noisy(steps.astype(float), 0.01, 0) * np.where(steps <= 2_000, 8, 1)
    pl.DataFrame({"step": steps, "loss": loss}).write_csv(tmp_path / "scaled.csv")
    status, out, _ = call("fit", tmp_path / "scaled.csv")
    assert status == 0
    assert "decelerates" not in out
    (row,) = [line for line in out.splitlines() if line.startswith("│ scaled")]
    assert "jump in scale" in row
    assert row.count("–") == 4
    assert "scaled: the loss falls by a factor of 8" in out
    assert "between steps 2,000 and 2,010 and stays there" in out
    (fits,) = strict(call("fit", tmp_path / "scaled.csv", "--json")[1])
    assert (fits["verdict"], fits["intervals"]) == ("jump in scale", {})
    assert (fits["jumps"][0]["before"], fits["jumps"][0]["after"]) == (2_000, 2_010)


def test_steps_that_are_left_out_by_default_are_said(call, tmp_path):
    steps = np.arange(50, 20_001, 50)
    pl.DataFrame({"step": steps, "loss": noisy(steps.astype(float), 0.01, 0)}).write_csv(tmp_path / "run.csv")
    note = "steps up to 100 are left out; --skip-steps 0 includes them"
    assert note in call("fit", tmp_path / "run.csv", "--resamples", "0")[2]
    for option in ("0", "100"):
        assert "left out" not in call("fit", tmp_path / "run.csv", "--resamples", "0", "--skip-steps", option)[2]


def test_most_rows_are_not_left_out_unless_somebody_says_so(call, tmp_path):
    path = tmp_path / "console.log"
    steps = np.arange(1, 136.0)
    path.write_text("".join(f"{{'loss': {x:.4f}, 'epoch': 0.1}}\n" for x in noisy(25 * steps, 0.005, 0)))
    result = without_notes(call("fit", path))
    assert refused((*result[:2], result[2].splitlines()[-1]), "100 of 135 rows have steps up to 100", "--skip-steps 0")
    status, out, err = call("fit", path, "--skip-steps", "0", "--resamples", "0", "--json")
    assert (status, strict(out)[0]["points"]) == (0, 135)
    assert "The lines contain no step" in err
    assert strict(call("fit", path, "--skip-steps", "100", "--resamples", "0", "--json")[1])[0]["points"] == 35


def test_names_are_shown_as_they_are_and_move_no_cursor(call, table):
    names = ["[red]a[/red]", "[/]", "x\x1b[31my", "a\nb", "é–λ"]
    path = table(dict.fromkeys(names, TWO["small"]))
    status, out, _ = call("fit", path, "--resamples", "0")
    assert status == 0
    for printed in ("[red]a[/red]", "[/]", "x\\x1b[31my", "a\\nb", "é–λ"):
        assert f"│ {printed} " in out
        assert f"\n{printed}: at step" in out
    assert not any(c != "\n" and not c.isprintable() for c in out)
    assert [fits["group"] for fits in strict(call("fit", path, "--json", "--resamples", "0")[1])] == names


def test_a_long_name_leaves_room_for_the_numbers(call, table):
    _, out, _ = call("fit", table({"long " * 50: TWO["small"], **TWO}), "--resamples", "20")
    fits = fit_deceleration(STEPS, TWO["large"], resamples=20)
    assert f"{fits.loss_at_break:.3f} [" in out
    assert "RSLE" in out


# files and options --------------------------------------------------------------------------------------------------


def test_curves_of_several_files_are_called_by_both(call, table):
    one, other = table({"a": TWO["small"], "b": TWO["large"]}, "one.csv"), table({"a": TWO["large"]}, "other.csv")
    status, out, err = call("fit", one, other, "--json", "--resamples", "0")
    assert status == 0
    fits = {each["group"]: each for each in strict(out)}
    assert list(fits) == [f"{one}: a", f"{one}: b", f"{other}: other"]
    assert fits[f"{one}: b"]["step_at_break"] == fits[f"{other}: other"]["step_at_break"]
    assert f"{one}: Columns:" in err
    assert f"{other}: Columns:" in err
    assert refused(without_notes(call("fit", one, one)), "two files have a curve called")


def test_columns_are_those_given(call, tmp_path):
    path = tmp_path / "wide.csv"
    columns = {"when": STEPS.astype(int), "step": range(len(STEPS)), "x/a": TWO["small"], "x/b": TWO["large"]}
    pl.DataFrame({**columns, "loss": 9.0, "half": np.arange(len(STEPS)) % 2}).write_csv(path)
    command = ("fit", path, "--json", "--resamples", "0", "--step", "when")
    fits = strict(call(*command, "--loss", "x/*")[1])
    assert [each["group"] for each in fits] == ["a", "b"]
    expected = fit_deceleration(STEPS, TWO["small"], resamples=0)
    assert fits[0]["step_at_break"] == pytest.approx(expected.step_at_break)
    halves = strict(call(*command, "--loss", "x/a", "--group", "half")[1])
    assert [(each["group"], each["points"]) for each in halves] == [("0", 30), ("1", 30)]


def test_smoothing_and_skipped_steps_are_those_asked_for(call, table):
    (fits,) = strict(
        call("fit", table({"a": TWO["small"]}), "--json", "--resamples", "0", "--skip-steps", "900",
             "--smoothing", "log-median")[1]
    )  # fmt: skip
    expected = fit_deceleration(STEPS, TWO["small"], smoothing="log-median", skip_steps=900, resamples=0)
    assert (fits["first_step"], fits["points"], fits["rsle"]) == (expected.first_step, expected.points, expected.rsle)


def test_a_run_is_fitted_by_name(call, tiny_run):
    log = pl.DataFrame({"step": STEPS.astype(int), "loss": TWO["small"]})
    log.write_parquet(tiny_run.folder / "log.parquet")
    status, out, err = call("fit", "tiny", "--json", "--resamples", "0")
    assert status == 0
    assert [(fits["group"], fits["points"]) for fits in strict(out)] == [("tiny", len(STEPS))]
    assert "tiny: Columns: step 'step'" in err


@pytest.mark.parametrize("curves", [{"a": TWO["small"]}, TWO], ids=["one curve", "two"])
def test_options_that_make_no_sense_are_one_line(call, table, curves):
    command = "fit", table(curves), "--loss", "loss", "--step", "step", "--group", "model"
    assert refused(without_notes(call(*command, "--smoothing", "log-mean")), "did you mean 'log-median'")
    assert refused(without_notes(call(*command, "--workers", "0")), "workers is 0; at least 1 is needed")
    assert refused(without_notes(call(*command, "--resamples", "-1")), "--resamples is -1")
    assert refused(call("fit", command[1], "--group", "modle"), "--group: no column 'modle'; did you mean 'model'?")
    assert call("fit", command[1], "--skip-steps", "few")[0] == call("fit")[0] == 2


def without_notes(result):
    """Without notes on what was read."""
    status, out, err = result
    return status, out, "\n".join(line for line in err.splitlines() if "Columns:" not in line)


# what cannot be fitted ----------------------------------------------------------------------------------------------


def test_one_curve_with_too_few_points_is_a_mistake_and_several_are_a_result(call, table):
    short = {name: broken(STEPS)[:9] for name in ("a", "b")}
    assert refused(without_notes(call("fit", table({"a": short["a"]}))), "9 points are left of 9 after step 100")
    status, out, _ = call("fit", table(short), "--json")
    assert status == 1
    assert [fits["verdict"] for fits in strict(out)] == ["not fitted"] * 2
    status, out, _ = call("fit", table(short))
    assert status == 1
    assert "2 curves: 2 not fitted." in out


@pytest.mark.parametrize("flag", [(), ("--json",)], ids=["table", "json"])
def test_a_bad_file_among_good_ones_is_named_in_one_line(call, table, tmp_path, flag):
    (tmp_path / "ragged.csv").write_text("step,loss\n1,2,3\n")
    result = without_notes(call("fit", table(TWO), tmp_path / "ragged.csv", *flag))
    assert refused(result, str(tmp_path / "ragged.csv"), "line 2 has 3 cells, its header 2")
    assert result[1] == ""


# figures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["html", "svg"])
def test_the_curves_and_their_breaks_are_drawn_to_a_file(call, table, tmp_path, suffix):
    path = tmp_path / f"fits.{suffix}"
    status, _, err = call("fit", table(TWO), "--resamples", "0", "--plot", path)
    assert status == 0
    assert f"{path}: 2 of 2 curves\n" in err
    text = path.read_text()
    assert all(name in text for name in TWO)
    assert "the two power laws" in text


def test_of_many_curves_the_first_that_were_fitted_are_drawn(call, table, tmp_path):
    short = {"short": broken(STEPS)[:9], "early": broken(STEPS)[:2]}
    many = short | {f"size {k}": noisy(STEPS, 0.01, k) for k in range(9)}
    status, _, err = call("fit", table(many), "--resamples", "0", "--plot", tmp_path / "fits.svg")
    assert status == 0
    assert "8 of 11 curves (2 not fitted, 1 further curves)" in err
    svg = (tmp_path / "fits.svg").read_text()
    assert "size 7" in svg
    assert "size 8" not in svg
    assert "short" not in svg


def test_a_plot_of_another_kind_is_refused_before_anything_is_fitted(call, table, tmp_path):
    result = call("fit", table(TWO), "--plot", tmp_path / "fits.pdf")
    assert refused(result, "fits.pdf", "end the name in .html, .svg, .png")
