"""`lmdynamics fit --atlas`: sources, names, the control, and what the page holds of every curve."""

import json
import re
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.analysis.deceleration import LOCATED, VERDICTS
from lmdynamics.analysis.fits import fit_curves, fits_table, null_curves
from lmdynamics.analysis.null_fits import fit_null_curves, verdict_counts
from lmdynamics.charts.atlas import COLOURS, MAX_POINTS, atlas_page
from lmdynamics.charts.deceleration import thinned
from lmdynamics.experiments.atlas import find_sources, read_sources
from lmdynamics.experiments.reading import read_curves
from tests.analysis.frames import BREAK, C0, noisy, spaced
from tests.conftest import refused, refuses

STEPS = spaced(60)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \u202e"
PLANTED = {f"breaks {k}": noisy(STEPS, 0.01, k) for k in range(3)} | {
    f"straight {k}": noisy(STEPS, 0.01, k + 9, c1=0.0) for k in range(3)
}


def write(path, curves):
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        pl.DataFrame({"model": [k] * len(v), "step": STEPS[: len(v)].astype(int), "loss": v}) for k, v in curves.items()
    ]
    pl.concat(parts).write_csv(path)
    return path


def content(page):
    """What the page's script reads, and the text around it."""
    (embedded,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    return json.loads(embedded)["curves"]


@pytest.fixture
def folder(tmp_path):
    """Planted curves, a curve that is too short, one with an evil name, and files that hold none."""
    write(tmp_path / "in" / "a" / "planted.csv", PLANTED)
    write(tmp_path / "in" / "b" / "more.csv", {EVIL: PLANTED["breaks 0"], "short": STEPS[:5] / 100})
    (tmp_path / "in" / "b" / "notes.txt").write_text("no <b>numbers</b> here")
    (tmp_path / "in" / "b" / "torn.jsonl").write_bytes(b'{"step": 1, "loss"\xff')
    (tmp_path / "in" / "LICENSE").write_text("not tried, as it has no suffix of data")
    return tmp_path / "in"


def test_the_page_agrees_with_the_fits_and_names_what_is_left_out(call, folder, tmp_path):
    path = tmp_path / "atlas.html"
    status, out, err = call("fit", folder, "--atlas", path, "--resamples", "40", "--workers", "1")
    assert status == 0
    assert f"{path}: 8 curves" in out
    assert "left out: b/notes.txt holds no table and no lines with a step and a loss\n" in err
    assert "left out: b/torn.jsonl is not UTF-8 text" in err
    assert "LICENSE" not in err
    page = path.read_text("utf-8")
    curves = {curve["name"]: curve for curve in content(page)}
    frame = read_curves(folder / "a" / "planted.csv").frame
    table = fits_table(fit_curves(frame, resamples=40, workers=1, progress=False))
    for row in table.iter_rows(named=True):
        curve = curves[f"a/planted.csv: {row['curve']}"]
        assert (curve["verdict"], curve["caveat"], curve["reason"]) == (row["verdict"], row["caveat"], row["reason"])
        assert ("step" in curve) == (row["verdict"] in LOCATED)
        if "step" in curve:
            for name, column in (("step", "step_at_break"), ("loss", "loss_at_break"), ("rate", "rate_after_break")):
                assert curve[name] == pytest.approx([row[f"{column}{end}"] for end in ("", "_low", "_high")], rel=1e-3)
    assert {curves[f"a/planted.csv: {name}"]["verdict"] for name in PLANTED if "breaks" in name} == {"decelerates"}
    assert {curves[f"a/planted.csv: {name}"]["verdict"] for name in PLANTED if "straight" in name} == {"no break"}
    low, high = curves["a/planted.csv: breaks 0"]["step"][1:]
    assert low < BREAK < high
    short = curves["b/more.csv: short"]
    assert (short["verdict"], "step" in short, "line" in short) == ("not fitted", False, False)
    assert "5 points are left of 5" in short["reason"]
    for text in (
        "8 loss curves",
        "4 of 7 fitted curves decelerate",
        "Smoothing: none. Steps up to 100 were skipped. 95 % intervals are from 40 resamples",
        "1 curve could not be fitted",
        "2 files could not be read",
        "b/notes.txt: b/notes.txt holds no table",
        "Columns: step &#x27;step&#x27; (detected)",
    ):
        assert text in page, text


def test_lines_are_those_that_fit_plot_draws(call, tmp_path):
    write(tmp_path / "planted.csv", {name: PLANTED[name] for name in ("breaks 0", "straight 0")})
    call("fit", tmp_path / "planted.csv", "--atlas", tmp_path / "a.html", "--resamples", "0", "--workers", "1")
    broken_curve, straight = content((tmp_path / "a.html").read_text())
    steps = np.geomspace(broken_curve["from"], broken_curve["to"], len(broken_curve["line"]))
    (fit,) = fit_curves(
        read_curves(tmp_path / "planted.csv").frame.filter(pl.col("curve") == "breaks 0"), resamples=0, progress=False
    ).values()
    assert broken_curve["line"] == pytest.approx(fit.predict(steps), rel=1e-3)
    assert straight["line"] == pytest.approx([20 * straight[end] ** -C0 for end in ("from", "to")], rel=0.03)


def test_a_name_stays_text(call, folder, tmp_path):
    call("fit", folder / "b" / "more.csv", "--atlas", tmp_path / "a.html", "--resamples", "0", "--workers", "1")
    page = (tmp_path / "a.html").read_text("utf-8")
    assert content(page)[0]["name"] == EVIL.replace("\u202e", "\\u202e")
    assert "alert(1)</script>" not in page
    assert "onerror=alert" not in re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert page.count("</script>") == 2
    assert not re.search(r"(src|href)=|https?:|@import|url\(|fetch\(", re.sub(r'"name":".*?",', "", page))


def test_folders_are_searched_and_each_file_is_read_once(folder, tmp_path, monkeypatch):
    write(folder / ".hidden" / "no.csv", PLANTED)
    write(folder / "c" / "run" / "inner.csv", PLANTED)
    (folder / "c" / "run" / "trainer_state.json").write_text('{"log_history": []}')
    (folder / "c" / "linked").symlink_to(folder / "a")
    names = ["a/planted.csv", "b/more.csv", "b/notes.txt", "b/torn.jsonl", "c/run"]
    assert list(find_sources([str(folder)])) == names
    assert sorted(find_sources([str(folder / "a"), str(folder), str(folder / "b" / "more.csv")])) == names
    monkeypatch.chdir(folder)
    assert find_sources(["a/planted.csv"]) == {"planted.csv": folder / "a" / "planted.csv"}
    assert list(find_sources(["a", "some-run"])) == ["planted.csv", "some-run"]
    (empty := tmp_path / "empty").mkdir()
    assert list(find_sources([str(empty)])) == ["empty"]
    refuses("^empty contains no loss curves", read_sources, {"empty": empty})
    refuses("^none of 2 files could be read; the first: empty ", read_sources, {"empty": empty, "other": empty})


def test_event_files_below_a_folder_are_one_source(tmp_path):
    for name in ("events.out.tfevents.1", "x/events.out.tfevents.2", "x/table.csv"):
        (tmp_path / "logs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "logs" / name).touch()
    assert list(find_sources([str(tmp_path / "logs")])) == ["logs", "logs/x/table.csv"]


def test_curves_of_several_files_have_names_of_their_own(tmp_path):
    for name in ("one.csv", "two.csv"):
        write(tmp_path / name, PLANTED)
        pl.DataFrame({"step": STEPS.astype(int), "loss": PLANTED["breaks 0"]}).write_csv(tmp_path / f"only_{name}")
    names = read_sources(find_sources([str(tmp_path)])).frame["curve"].unique(maintain_order=True).to_list()
    expected = [f"{file}: {curve}" for file in ("one.csv", "two.csv") for curve in PLANTED]
    assert sorted(names) == sorted([*expected, "only_one.csv", "only_two.csv"])
    (tmp_path / "alone").mkdir()
    (tmp_path / "one.csv").rename(tmp_path / "alone" / "one.csv")
    (tmp_path / "alone" / "notes.txt").write_text("no numbers")
    alone = read_sources(find_sources([str(tmp_path / "alone")]))  # one file with curves: nothing to tell apart
    assert (alone.frame["curve"].unique(maintain_order=True).to_list(), len(alone.unread)) == (list(PLANTED), 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--json",), "leave out --json"),
        (("--laws", "--plot", "a.svg"), "leave out --plot and --laws"),
        (("--share", "0.5"), "leave out --share"),
        (("--resamples", "-1"), "--resamples is -1"),
    ],
)
def test_options_that_an_atlas_does_not_use_are_refused(call, folder, tmp_path, options, words):
    assert refused(call("fit", folder, "--atlas", tmp_path / "a.html", *options), words)
    assert not (tmp_path / "a.html").exists()


def test_an_atlas_is_a_page_of_a_file_that_can_be_read(call, folder, tmp_path):
    assert refused(call("fit", folder, "--atlas", tmp_path / "a.svg"), "'a.svg' does not end in .html")
    assert refused_last(
        call("fit", folder / "b" / "notes.txt", "--atlas", tmp_path / "a.html"), "notes.txt holds no table"
    )


def refused_last(result, *words):
    status, out, err = result
    return refused((status, out, err.strip().splitlines()[-1]), *words)


def test_curves_that_cannot_be_fitted_are_a_page_too(call, tmp_path):
    write(tmp_path / "short.csv", dict.fromkeys("ab", PLANTED["breaks 0"][:7]))
    status, out, _ = call("fit", tmp_path / "short.csv", "--atlas", tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert status == 1
    assert "not fitted                2 curves      0 null curves (control)" in out
    assert "No curve could be fitted." in page
    assert [len(curve["x"]) for curve in content(page)] == [7, 7]


# the control, and counts --------------------------------------------------------------------------------------------


def test_counts_are_of_fits_and_of_null_fits():
    parts = [pl.DataFrame({"curve": [name] * 60, "step": STEPS.astype(int), "loss": PLANTED[name]}) for name in PLANTED]
    frame = pl.concat([*parts, parts[0].head(5).with_columns(curve=pl.lit("short"))])
    fits = fits_table(fit_curves(frame, resamples=20, progress=False))
    null_fits = fit_null_curves(frame, resamples=20)
    assert list(null_fits) == list(PLANTED), "a curve that is too short has no null curve"
    nulls = fits_table(null_fits)
    counts = verdict_counts(fits, nulls)
    assert counts["verdict"].to_list() == [*VERDICTS, "not fitted"] == list(COLOURS)
    for name, table in (("curves", fits), ("null_curves", nulls)):
        assert dict(zip(counts["verdict"], counts[name], strict=True)) == {
            verdict: Counter(table["verdict"])[verdict] for verdict in counts["verdict"]
        }
        shares = counts.filter(pl.col("verdict") != "not fitted")
        assert shares[f"{name}_share"].sum() == pytest.approx(1)
        assert (shares[f"{name}_low"] <= shares[f"{name}_share"] + 1e-12).all()
        assert (shares[f"{name}_high"] >= shares[f"{name}_share"] - 1e-12).all()
        assert counts[f"{name}_share"][-1] is None
    assert counts["null_curves"][0] == 0, "a curve without a break decelerates"
    half = counts.row(0, named=True)  # 3 of 6, by Wilson's formula
    assert [half["curves_low"], half["curves_high"]] == pytest.approx([0.1876, 0.8124], abs=1e-3)


def test_null_curves_are_the_same_in_parts():
    steps = spaced(20)
    names = [f"curve {k}" for k in range(11)]  # more than one part
    frame = pl.concat(
        pl.DataFrame({"curve": [name] * len(steps), "step": steps, "loss": noisy(steps, 0.01, k)})
        for k, name in enumerate(names)
    )
    assert fit_null_curves(frame, resamples=0) == fit_curves(null_curves(frame), resamples=0, progress=False)
    assert fit_null_curves(frame.head(5)) == {}


def test_without_a_fit_there_is_no_share():
    counts = verdict_counts(fits_table({}), fits_table({}))
    assert counts["curves"].sum() == counts["null_curves"].sum() == 0
    assert counts["curves_share"].null_count() == counts["null_curves_high"].null_count() == len(counts)


def test_a_share_within_that_of_the_control_is_not_called_more_than_chance():
    rows = {
        name: pl.DataFrame({"verdict": ["decelerates"] * k + ["no break"] * (40 - k)})
        for name, k in (("some", 2), ("most", 30))
    }
    prepared = {"smoothing": "none", "skip_steps": 100, "resamples": 0}
    points = pl.DataFrame(schema={"curve": pl.String, "step": pl.Int64, "loss": pl.Float64})
    for name, text in (("some", True), ("most", False)):
        counts = verdict_counts(rows[name], rows["some"])
        page = atlas_page(points, fits_table({}), counts, preparation=prepared)
        assert ("this is not shown to be more than chance gives" in page) is text


# points ---------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=300, unique=True), st.integers(2, 90))
def test_thinning_keeps_the_last_point_of_each_bin_of_log_step(steps, most):
    steps = sorted(steps)
    points = pl.DataFrame({"curve": ["a"] * len(steps) + ["b"], "step": [*steps, 3], "loss": [1.0] * (len(steps) + 1)})
    kept = thinned(points, most).filter(pl.col("curve") == "a")["x"].to_list()
    positive = [step for step in steps if step > 0]
    if len(positive) <= most:
        assert kept == positive
        return
    low, high = np.log(positive[0]), np.log(positive[-1])
    bins = {int((np.log(step) - low) / (high - low) * (most - 1) + 1e-12): step for step in positive}
    assert len(kept) <= most
    assert kept[-1] == positive[-1]
    assert abs(len(kept) - len(bins)) <= 1  # a point on the border of two bins may be in either


def test_1500_curves_are_a_small_page():
    frame = pl.DataFrame({"curve": ["a"] * len(STEPS), "step": STEPS, "loss": PLANTED["breaks 0"]})
    (fit,) = fit_curves(frame, resamples=20, progress=False).values()
    names = [f"records/track/2025-01-01_name-of-the-change/{k:036d}.log" for k in range(1_500)]
    steps = np.geomspace(101, 6e4, 300).round()
    points = pl.concat(pl.DataFrame({"curve": [name] * 300, "step": steps, "loss": steps**-0.1}) for name in names)
    fits = fits_table(dict.fromkeys(names, fit))
    prepared = {"smoothing": "none", "skip_steps": 100, "resamples": 20}
    page = atlas_page(points, fits, verdict_counts(fits, fits), preparation=prepared)
    assert len(page.encode()) < 4_000_000
    curves = content(page)
    assert len(curves) == 1_500
    assert max(len(curve["x"]) for curve in curves) <= MAX_POINTS
    assert all(float(f"{value:.4g}") == value for value in curves[0]["y"])
