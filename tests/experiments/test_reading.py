"""Loss curves from files: what is read, what is left out and reported, and what is refused."""

import gzip
import json
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lmdynamics.analysis.reading import REASONS
from lmdynamics.experiments.reading import read_curves
from tests.conftest import refuses

PLAIN = [("some", 0, 4.0), ("some", 10, 3.0), ("some", 20, 2.5)]


@pytest.fixture
def write(tmp_path):
    def write(content, name="some.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(source, **options):
    message = refuses(".", read_curves, source, **options)
    assert len(message) < 700
    return message


def notes_of(curves):
    return " ".join(curves.notes)


def counts(curves):
    return dict(curves.bad_rows.group_by("reason").agg(pl.col("rows").sum()).iter_rows())


def rows_of(frame):
    return frame.select("step", "loss").rows()


# Formats


def test_a_csv_is_one_curve_called_after_its_file(write):
    curves = read_curves(write("step,lr,loss\n0,1,4.0\n10,1,3.0\n20,1,2.5\n"))
    assert curves.frame.rows() == PLAIN
    assert curves.frame.schema == {"curve": pl.String, "step": pl.Int64, "loss": pl.Float64}
    assert curves.bad_rows.schema == {"curve": pl.String, "reason": pl.String, "rows": pl.Int64}
    assert curves.bad_rows.is_empty()
    assert curves.notes == ("Columns: step 'step' (detected), loss 'loss' (detected); choose with --step, --loss.",)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_separators_line_ends_blanks_and_a_byte_order_mark_do_not_matter(write, separator, end):
    lines = ["Step, Loss ", "0,4.0", " 10 ,3e0", "", "20,+2.5", ""]
    text = "\ufeff" + end.join(line.replace(",", separator) for line in lines)
    assert read_curves(write(text)).frame.rows() == PLAIN
    assert read_curves(write(text, "some.tsv")).frame.rows() == PLAIN
    assert read_curves(write(gzip.compress(text.encode()), "some.csv.gz")).frame.rows() == PLAIN


def test_frames_are_read_as_they_are():
    frame = pl.DataFrame({"step": [0, 10, 20], "loss": [4.0, 3.0, 2.5]})
    assert rows_of(read_curves(frame).frame) == rows_of(read_curves(frame.cast(pl.Float32)).frame) == rows_of(frame)


def test_json_lines_are_read_with_fields_inside_fields_and_nan(write):
    lines = [
        {"step": 0, "train": {"loss": 4.0}, "tags": ["a"]},
        {"step": 5, "val": {"loss": 3.9}},
        {"step": 10, "train": {"loss": float("nan")}},
        {"step": 20, "train": {"loss": 2.5}},
    ]
    curves = read_curves(write("\n".join(map(json.dumps, lines)) + "\n", "some.jsonl"))
    assert curves.frame.rows() == [PLAIN[0], PLAIN[2]]
    assert counts(curves) == {"not a number": 1}
    assert "Other columns that look like losses, not used: val/loss." in curves.notes
    assert read_curves(write("\n".join(map(json.dumps, lines)), "some.ndjson"), loss="val/loss").frame["step"][0] == 5


def test_the_last_line_of_a_log_may_be_cut_short_but_no_other(write):
    text = '{"step": 0, "loss": 4.0}\n{"step": 10, "lo'
    curves = read_curves(write(text, "some.jsonl"))
    assert curves.frame.rows() == PLAIN[:1]
    assert "The last line, 2, is cut short and was left out." in curves.notes
    assert "line 2 is not JSON" in refusal(write(text + '\n{"step": 20, "loss": 2.5}\n', "some.jsonl"))


HISTORY = [
    {"epoch": 0.1, "learning_rate": 1e-4, "loss": 4.0, "step": 10},
    {"epoch": 0.1, "eval_loss": 3.9, "eval_runtime": 1.0, "step": 10},
    {"epoch": 0.2, "learning_rate": 1e-4, "loss": 3.0, "step": 20},
    {"epoch": 0.2, "train_loss": 3.5, "train_runtime": 9.0, "step": 20},
]


@pytest.mark.parametrize("place", ["", "checkpoint-20/"])
def test_a_trainer_state_is_read_from_the_file_or_a_folder_that_holds_it(write, tmp_path, place):
    path = write(json.dumps({"log_history": HISTORY}), f"opt/{place}trainer_state.json")
    write(json.dumps({"log_history": HISTORY[:1]}), "opt/checkpoint-3/trainer_state.json")
    for source in (path, path.parent, tmp_path / "opt"):
        curves = read_curves(source)
        assert curves.frame.rows() == [("opt", 10, 4.0), ("opt", 20, 3.0)]
        assert curves.bad_rows.is_empty()
        assert "train_loss" not in notes_of(curves)
    assert read_curves(path, loss="eval_loss").frame.rows() == [("opt", 10, 3.9)]
    if place:
        assert "Read from checkpoint-20/trainer_state.json." in read_curves(tmp_path / "opt").notes


def test_a_run_is_read_by_name_by_folder_and_as_it_is(tiny_run, tmp_path):
    expected = [("tiny", *row) for row in tiny_run.log.select("step", "loss").iter_rows()]
    assert expected
    for source in ("tiny", tiny_run.folder, str(tiny_run.folder), tiny_run):
        assert read_curves(source).frame.rows() == expected
    assert read_curves("tiny", step="tokens").frame["step"].to_list() == tiny_run.log["tokens"].to_list()
    assert "did you mean 'tiny'" in refusal("tinny")


# TensorBoard


def events(folder, values, tag="train/loss", **options):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_histogram("weights", np.arange(3.0), 0, bins="auto")
        writer.add_text("note", "no loss", 0)
        for step, loss in values:
            writer.add_scalar(tag, loss, step, **options)
    return max(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("new_style", [False, True], ids=["simple values", "tensors"])
def test_event_files_are_read_whole(tmp_path, new_style):
    values = [(step, 2.0 + 1 / 2 ** (step % 8)) for step in range(12_000 if not new_style else 100)]
    file = events(tmp_path / "one", values, new_style=new_style)
    for source in (file, tmp_path / "one"):
        curves = read_curves(source)
        assert rows_of(curves.frame) == values  # more than the 10,000 that are kept by default
        assert curves.names == ["one"]


def test_each_sub_folder_is_a_curve_whatever_else_lies_there(tmp_path):
    events(tmp_path / "a", [(0, 4.0), (1, 3.0)])
    events(tmp_path / "deep" / "b", [(0, 5.0), (1, 4.0)])
    events(tmp_path / "c", [(0, 0.5)], tag="accuracy")
    (tmp_path / "notes.txt").write_text("something else")
    curves = read_curves(tmp_path)
    assert curves.frame.rows() == [("a", 0, 4.0), ("a", 1, 3.0), ("deep/b", 0, 5.0), ("deep/b", 1, 4.0)]
    assert read_curves(tmp_path, loss="accuracy").names == ["c"]
    assert "none of its tags is a loss (train/loss, accuracy); give --loss TAG" in refusal(tmp_path, loss="los")


def test_tags_by_pattern_are_curves_of_each_run(tmp_path):
    for run in ("a", "b"):
        events(tmp_path / run, [(0, 4.0)], tag="eval/c4/loss")
        events(tmp_path / run, [(0, 5.0)], tag="eval/pile/loss")
    curves = read_curves(tmp_path, loss="eval/*/loss")
    assert sorted(curves.names) == ["a / c4", "a / pile", "b / c4", "b / pile"]


def test_validation_sets_that_log_the_same_step_in_rows_of_their_own_are_curves(write):
    sets = [{"step": step, f"eval_{name}_loss": 4.0 - step} for step in (1, 2, 3) for name in ("c4", "pile", "wiki")]
    curves = read_curves(write(json.dumps({"log_history": sets}), "run/trainer_state.json"))
    assert curves.names == ["c4", "pile", "wiki"]
    assert len(curves.frame) == 9
    assert curves.bad_rows.is_empty()


@pytest.mark.parametrize("damage", ["cut short", "overwritten"])
def test_of_a_damaged_event_file_what_is_whole_is_read_and_reported(tmp_path, damage):
    file = events(tmp_path / "run", [(step, 4.0) for step in range(100)])
    content = file.read_bytes()
    half = len(content) // 2
    file.write_bytes(content[:half] + (b"" if damage == "cut short" else b"\xff" * 8 + content[half + 8 :]))
    curves = read_curves(tmp_path / "run")
    assert 20 < len(curves.frame) < 80
    assert "is cut short, damaged or still being written" in notes_of(curves)


@pytest.mark.parametrize("content", [b"", b"\x18\0\0", b"rubbish" * 100], ids=["empty", "a few bytes", "rubbish"])
def test_an_event_file_without_a_whole_record_is_refused(write, content):
    path = write(content, "run/events.out.tfevents.1.host")
    assert "holds no complete record, so it is damaged or not an event file" in refusal(path)
    assert "holds no complete record" in refusal(path.parent)


def test_without_tensorboard_it_is_reported_how_to_get_it(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    path = write(b"any", "events.out.tfevents.1.host")
    assert 'pip install "lmdynamics[tensorboard]"' in refusal(path)


# Weights & Biases


def export(minimum="3.0"):
    runs = ["small - v2", "large"]
    header = ",".join(f'"{run} - train/loss{end}"' for run in runs for end in ("", "__MIN", "__MAX"))
    return f'"Step",{header}\n"10","3.0","{minimum}","3.0","","",""\n"20","2.5","2.5","2.5","2.0","2.0","2.0"\n'


def test_each_column_of_an_export_is_a_curve_called_after_its_run(write):
    curves = read_curves(write(export()))
    assert curves.frame.rows() == [("small - v2", 10, 3.0), ("small - v2", 20, 2.5), ("large", 20, 2.0)]
    assert curves.bad_rows.is_empty()
    assert "loss '* - train/loss' (detected)" in notes_of(curves)
    assert "sampled" not in notes_of(curves)
    for options in ("train/loss", "* - train/loss"):
        assert read_curves(write(export()), loss=options).frame.equals(curves.frame)


def test_an_export_whose_points_are_ranges_is_warned_of(write):
    assert "__MIN and __MAX differ from the value" in notes_of(read_curves(write(export(minimum="2.9"))))


@pytest.mark.parametrize(("rows", "every", "warned"), [(500, 20, True), (501, 20, False), (500, 1, False)])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_history_of_a_round_number_of_rows_is_warned_of(tmp_path, rows, every, warned, suffix):
    steps = pl.Series("_step", np.arange(rows) * every)
    table = pl.DataFrame({"_step": steps, "train/loss": 3.0, "eval/loss": [2.0] + [None] * (rows - 1)})
    table.write_csv(tmp_path / "h.csv") if suffix == "csv" else table.write_parquet(tmp_path / "h.parquet")
    curves = read_curves(tmp_path / f"h.{suffix}")
    assert ("looks sampled (a curve has exactly 500 points over 9,980 steps)" in notes_of(curves)) == warned
    assert read_curves(tmp_path / f"h.{suffix}", loss="eval/loss").bad_rows.is_empty()


# Guesses


@pytest.mark.parametrize("step", ["step", "_step", "Global Step", "train/global_step", "ITER", "iteration", "tokens"])
@pytest.mark.parametrize(
    "loss", ["loss", "Train/Loss", "val_loss", "lm loss", "train/CrossEntropyLoss", "nll", "Value"]
)
def test_usual_names_are_known(step, loss):
    frame = pl.DataFrame({"epoch": [0.0, 0.5], step: [1, 2], "lr": [0.1, 0.1], loss: [3.0, 2.0]})
    assert rows_of(read_curves(frame).frame) == [(1, 3.0), (2, 2.0)]


@pytest.mark.parametrize(
    "columns",
    [
        {"val_loss": 3.0, "loss": 2.0, "loss_scale": 1024.0, "grad_norm": 1.0},
        {"14M": [5.0, 4.0], "37M": [4.0, 3.0], "loss": 2.0},  # no wide table, where a loss is named
        {"val_loss": 3.0, "train_lm_loss": 2.0},  # one of training before one of validation
        {"eval_loss": 3.0, "train/nll_mean": 2.0},
        {"test_loss": 3.0, "loss_train_avg": 2.0},
    ],
)
def test_the_best_known_loss_is_taken_and_the_others_are_named(columns):
    curves, first = read_curves(pl.DataFrame({"step": [1, 2], **columns})), next(iter(columns))
    assert curves.frame["loss"].to_list() == [2.0, 2.0]
    assert "named like a loss" not in notes_of(curves)
    assert (f"Other columns that look like losses, not used: {first}." in curves.notes) == ("loss" in first)


def test_the_same_metric_of_several_runs_is_a_curve_each():
    frame = pl.DataFrame({"step": [1, 2], "run_adam_loss": [3.0, None], "run_sgd_loss": [4.0, 3.5]})
    curves = read_curves(frame)
    assert curves.frame.rows() == [("adam", 1, 3.0), ("sgd", 1, 4.0), ("sgd", 2, 3.5)]
    assert curves.bad_rows.is_empty()
    assert "loss 'run_*_loss' (detected)" in notes_of(curves)


def test_a_wide_table_is_a_curve_per_column_and_says_so(write):
    curves = read_curves(write("step,14M,37M\n0,5.0,4.5\n10,4.0,3.5\n20,,3.0\n30,nan,2.9\n"))
    assert curves.names == ["14M", "37M"]
    assert curves.frame.filter(curve="14M").rows() == [("14M", 0, 5.0), ("14M", 10, 4.0)]
    assert rows_of(curves.frame.filter(curve="37M")) == [(0, 4.5), (10, 3.5), (20, 3.0), (30, 2.9)]
    assert counts(curves) == {"not a number": 1}  # an empty cell was not logged, NaN was
    assert "No column is named like a loss; each of these is read as a curve of losses: 14M, 37M." in curves.notes


OTHER_COLUMNS = (
    *("lr", "learning_rate", "train/learning_rate", "tokens", "grad_norm", "epoch", "time", "seconds", "total_steps"),
    *("accuracy", "eval/accuracy", "train_runtime", "samples_per_second", "perplexity", "", "Unnamed: 0", "seed"),
    *("weight_decay", "batch_size", "gpu/memory", "loss_scale", "a__MIN", "uas"),
)


@pytest.mark.parametrize("other", OTHER_COLUMNS)
def test_what_is_known_to_be_no_loss_is_no_curve_of_a_wide_table(other):
    frame = pl.DataFrame({other: [0.0, 0.5], "step": [1, 2], "lr=0.1": [5.0, 4.0], "run b": ["4.0", "3.0"]})
    assert read_curves(frame.drop(other)).names == ["lr=0.1", "run b"]
    assert read_curves(frame).names == ["lr=0.1", "run b"]
    assert "no column looks like a loss" in refusal(frame.drop("run b"))


@pytest.mark.parametrize(
    "odd",
    [[0.0, 1.0], [-1.0, 1.0], ["high", "low"], [True, False]],
    ids=["zero", "negative", "text", "flags"],
)
def test_a_table_with_columns_of_another_kind_is_not_taken_for_a_wide_one(odd):
    frame = pl.DataFrame({"step": [1, 2], "14M": [5.0, 4.0], "37M": [4.0, 3.0], "odd": odd})
    assert "no column looks like a loss among 14M, 37M, odd; give --loss COLUMN" in refusal(frame)
    assert read_curves(frame, loss="*M").names == ["14", "37"]


@pytest.mark.parametrize(
    ("columns", "options", "names"),
    [
        ({"seed": [0, 0, 1, 1], "14M": [5.0, 4.0, 5.1, 4.1], "37M": 3.0}, {}, "0 / 14M, 0 / 37M, 1 / 14M, 1 / 37M"),
        (
            {"step": [1, 1, 2, 2, 3, 3, 4, 4], "corpus": ["b", "a"] * 4, "loss": 3.0},
            {},
            "b, a",
        ),
        (
            {"model": ["b", "b", "a", "a"], "loss/x": 3.0, "loss/y": 9.0},
            {"group": "model", "loss": "loss/*"},
            "b / x, b / y, a / x, a / y",
        ),
    ],
    ids=["wide, of several seeds", "a column of any name", "group and pattern"],
)
def test_a_curve_is_named_by_all_that_distinguishes_it(columns, options, names):
    frame = pl.DataFrame({"step": [1, 2, 1, 2]} | columns)
    assert ", ".join(read_curves(frame, **options).names) == names


LONG = pl.DataFrame(
    {"model": ["b", "a"] * 4, "seed": [0, 0, 1, 1] * 2, "step": [1] * 4 + [2] * 4, "loss": np.linspace(4, 3, 8)}
)


def test_curves_stand_in_order_of_first_appearance_and_are_distinguished_by_what_makes_steps_unique():
    curves = read_curves(LONG)
    assert curves.names == ["b / 0", "a / 0", "b / 1", "a / 1"]
    assert "group 'model, seed' (detected)" in notes_of(curves)
    for options in ("model,seed", " model, seed", ["model", "seed"], ("model", "seed")):
        assert read_curves(LONG, group=options).frame.equals(curves.frame)
    assert read_curves(LONG.filter(pl.col("seed") == 0)).names == ["b", "a"]
    assert read_curves(LONG.filter(pl.col("seed") == 0), group=["seed", "model"]).names == ["0 / b", "0 / a"]


def test_curves_that_cannot_be_distinguished_are_refused_and_candidates_named():
    frame = pl.DataFrame({"step": [1, 2] * 6, "loss": 3.0, "width": [1, 1, 2, 2] * 3, "note": ["x"] * 12})
    message = refusal(frame)
    assert "83% of the rows have a step that their curve already has, the same step up to 6 times" in message
    assert "give --group COLUMN (candidates: width)" in message
    assert "give --group model,COLUMN (candidates: seed)" in refusal(LONG, group="model")
    assert "no column distinguishes them" in refusal(frame.select("step", "loss"))


# Rows that cannot be used


def test_every_bad_row_is_counted_by_its_reason_and_reported(write):
    rows = [
        *["1,4.0", "2,", "3,oops", "4,nan", "5,inf", "6,0", "7,-1", ",3.0", "x,3.0", "1.5,3.0", "inf,3.0"],
        *["8,3.0", "9,2.9", "8,2.8", "9.0,2.7", "10,2.6", "12,2.5", "11", "14,2.4", "15,2.3", "16,2.2", "17,2.1"],
    ]
    curves = read_curves(write("step,loss\n" + "\n".join(rows)))
    expected = [(1, 4.0), (8, 2.8), (9, 2.7), (10, 2.6), (12, 2.5), (14, 2.4), (15, 2.3), (16, 2.2), (17, 2.1)]
    assert rows_of(curves.frame) == expected
    assert counts(curves) == {"not a number": 5, "not positive": 2, "no step": 4, "same step again": 2}
    assert curves.notes[1:] == (
        "4 of 22 rows have no whole number as step and were left out.",
        "5 of 22 rows have no number as loss and were left out.",
        "2 of 22 rows have a loss of 0 or less and were left out.",
        "2 of 22 rows have a step that the curve repeats later and were left out: the later row is used.",
        "Steps go back at 1 place (a restart, or rows out of order); they were sorted.",
    )
    assert set(counts(curves)) <= set(REASONS)


def test_one_row_is_reported_in_the_singular_and_a_curve_without_rows_is_named():
    frame = pl.DataFrame({"model": ["a"] * 3 + ["b", None], "step": [1, 2, 3, 1, 1], "loss": [4.0, 3.0, 2.0, -1, 1]})
    curves = read_curves(frame, group="model")
    assert curves.names == ["a"]
    assert curves.bad_rows.rows() == [("b", "not positive", 1), ("", "no curve name", 1)]
    assert "1 of 5 rows has a loss of 0 or less and was left out." in curves.notes
    assert "Left out, without a usable row: b." in curves.notes


def test_rows_of_another_loss_are_not_lost_values_of_this_one():
    """As loggers write that give training and validation rows of their own."""
    frame = pl.DataFrame(
        {"step": [1, 2, 2, 3, 4], "train_loss": [4.0, 3.0, None, None, 2.0], "val_loss": [None, None, 3.5, None, None]}
    )
    curves = read_curves(frame)
    assert rows_of(curves.frame) == [(1, 4.0), (2, 3.0), (4, 2.0)]
    assert counts(curves) == {"not a number": 1}  # step 3, where neither was logged
    both = frame.with_columns(val_loss=pl.lit(3.5))
    assert counts(read_curves(both)) == {"not a number": 2}


@st.composite
def logs(draw):
    """Curves by name: for each, one loss per step."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    steps = st.lists(st.integers(0, 10**12), min_size=8, max_size=30, unique=True)
    return [(name, step, draw(st.floats(1e-3, 20))) for name in names for step in sorted(draw(steps))]


@given(logs(), st.data())
def test_shuffled_repeated_and_spoilt_rows_are_repaired_to_the_same_frame(log, data):
    good = pl.DataFrame(log, ["model", "step", "loss"], orient="row")
    names = good["model"].unique(maintain_order=True).to_list()
    first = [next(row for row in log if row[0] == name) for name in names]
    later = data.draw(st.permutations([row for row in log if row not in first]))
    repeated_rows = data.draw(st.lists(st.sampled_from(log), max_size=len(log) // 8, unique=True))
    earlier = [(name, step, loss + 1) for name, step, loss in repeated_rows]
    spoilt = [(names[0], 5, value) for value in data.draw(st.lists(st.sampled_from([0.0, -1.0, float("nan")])))]
    # a curve's first row first, so that curves appear in the same order; what is logged again stands after
    rows = [*((*row[:2], row[2] + 1) for row in first), *earlier, *spoilt, *first, *later]
    frame = pl.DataFrame(rows, ["model", "step", "loss"], orient="row")
    usable = frame.filter(pl.col("loss").is_finite() & (pl.col("loss") > 0))
    repaired = (
        usable.select("model", back=(pl.col("step").diff() < 0).over("model"))
        .group_by("model")
        .agg(pl.col("back").mean())
    )
    assume((repaired["back"] > 0.2).all() and len(usable) > len(rows) / 2)  # rows out of order, and no run resumed
    curves = read_curves(frame, group="model")
    assert curves.frame.rows() == [row for name in names for row in sorted(r for r in log if r[0] == name)]
    assert len(curves.frame) + curves.bad_rows["rows"].sum() == len(rows)
    assert counts(curves).get("same step again", 0) == len(first) + len(repeated_rows)


# Resumed runs


def resumed(*parts):
    """The log of a run that was begun (again) at each of some steps: (first, last, every, loss)."""
    rows = [(step, loss) for first, last, every, loss in parts for step in range(first, last + 1, every)]
    return pl.DataFrame(rows, ["step", "loss"], orient="row")


@pytest.mark.parametrize(
    ("parts", "used", "replaced"),
    [
        ([(0, 1_000, 10, 5.0), (505, 1_500, 10, 4.0)], [(0, 500, 10, 5.0), (505, 1_500, 10, 4.0)], (50, 0)),
        ([(0, 1_000, 10, 5.0), (500, 700, 10, 4.0)], [(0, 490, 10, 5.0), (500, 700, 10, 4.0)], (30, 21)),
        (
            [(0, 1_000, 10, 5.0), (500, 900, 10, 4.0), (300, 600, 10, 3.0)],
            [(0, 290, 10, 5.0), (300, 600, 10, 3.0)],
            None,
        ),
        ([(500, 1_000, 10, 4.0), (0, 490, 10, 5.0)], [(0, 490, 10, 5.0), (500, 1_000, 10, 4.0)], (0, 0)),
    ],
    ids=["between its own steps, too", "where it has not come as far", "two restarts", "only in the wrong order"],
)
def test_a_resumed_run_replaces_what_an_earlier_one_has_from_there_on(parts, used, replaced):
    curves = read_curves(resumed(*parts))
    assert rows_of(curves.frame) == resumed(*used).rows()
    before, repeated = (counts(curves).get(reason, 0) for reason in ("before a restart", "same step again"))
    assert replaced in (None, (before, repeated))
    note = f"{before} of {len(resumed(*parts))} rows were replaced by a later run, which resumed from an earlier step."
    assert (note in curves.notes) == (before > 0)


@pytest.mark.parametrize("column", ["Wall time", "_timestamp"])
def test_wall_time_decides_which_run_is_later(column):
    first, later = resumed((0, 1_000, 10, 5.0)), resumed((505, 700, 10, 4.0))
    frame = pl.concat([later.with_columns(pl.lit(9e9).alias(column)), first.with_columns(pl.lit(1e9).alias(column))])
    curves = read_curves(frame)
    assert rows_of(curves.frame) == resumed((0, 500, 10, 5.0), (505, 700, 10, 4.0)).rows()


def test_event_files_are_ordered_by_wall_time_and_not_by_name(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for name, steps, loss, clock in (("z", range(10), 5.0, 1e9), ("a", range(4, 8), 4.0, 2e9)):
        with SummaryWriter(str(tmp_path / "run"), filename_suffix=f".{name}") as writer:
            for step in steps:
                writer.add_scalar("train/loss", loss, step, walltime=clock + step)
    files = sorted((tmp_path / "run").glob("events*"))
    for file in files:
        file.rename(file.with_name(f"events.out.tfevents.{file.suffix}"))
    assert rows_of(read_curves(tmp_path / "run").frame) == [(step, 5.0 if step < 4 else 4.0) for step in range(8)]


# Numbers as people write them


def test_thousands_separated_by_commas_are_numbers(write):
    steps = range(100, 3_000, 100)
    table = "step,loss\n" + "".join(f'"{step:,}",{9 - step / 1e3}\n' for step in steps)
    curves = read_curves(write(table))
    assert curves.frame["step"].to_list() == [*steps]
    assert curves.bad_rows.is_empty()
    assert "Column 'step': '1,000' is read as 1000." in curves.notes


@pytest.mark.parametrize("thousands", ["", "."])
def test_decimal_commas_and_thousands_separated_by_points_are_numbers(write, thousands):
    steps = range(200, 3_000, 200)
    lines = [f"{step:,}".replace(",", thousands) + f";{9 - step / 1e4:.4f}".replace(".", ",") for step in steps]
    curves = read_curves(write("\ufeffSchritt;Verlust\n" + "\n".join(lines) + "\n"))
    assert rows_of(curves.frame) == [(step, pytest.approx(9 - step / 1e4)) for step in steps]
    assert "Column 'Verlust': '8,9800' is read as 8.9800." in notes_of(curves)
    assert ("Column 'Schritt': '1.000' is read as 1000." in curves.notes) == bool(thousands)


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("step;loss\n250;95e-1\n500;94e-1\n1.000;93e-1\n", [(250, 9.5), (500, 9.4), (1_000, 9.3)]),
        ("step,loss\n1,3.125\n2,3\n3,2.750\n", [(1, 3.125), (2, 3.0), (3, 2.75)]),
    ],
)
def test_a_point_separates_thousands_of_steps_and_decimals_of_losses(write, table, rows):
    assert rows_of(read_curves(write(table)).frame) == rows


def test_steps_that_can_be_read_in_two_ways_are_refused_with_an_example(write):
    table = "step,loss\n" + "".join(f'"{step:,}",2.0\n' for step in range(1_000, 5_000, 500))
    message = refusal(write(table))
    assert "column 'step' holds no numbers (its first value is '1,000')" in message


# Files told by what they hold

SOURCE = (
    "import torch\nclass Model:\n    loss = 0\n    return loss  # step:1 val_loss:9\nstep = 3  # loss 9\n" + "=" * 80
)
TEXTS = {
    "steps of a total": ("step:{s}/3350 train_loss:{x} val_loss:9.5 train_time:{s}s step_avg:182.95ms", "train_loss"),
    "validation alone": ("step:{s}/3350 val_loss:{x} train_time:{s}s", "val_loss"),
    "llm.c": ("s:{s} tel:9.5\ns:{s} trl:{x} lr:0.000002 norm:15.24", "train_loss"),
    "nanoGPT": ("iter {s}: loss {x}, time 150.2ms, mfu 12.00%", "loss"),
    "nanoGPT, both": ("step {s}: train loss {x}, val loss 9.5", "train_loss"),
    "with a date": ("[2025-11-28 10:00:{s:02}] step {s} | loss {x} | lr 1e-3", "loss"),
}


@pytest.mark.parametrize("name", ["speed.txt", "main.log", "log"])
@pytest.mark.parametrize(("line", "loss"), TEXTS.values(), ids=TEXTS.keys())
def test_a_text_log_is_read_and_the_source_before_it_is_not(write, name, line, loss):
    expected = [(step, 9 - step / 1e3) for step in range(0, 500, 25)]
    lines = [line.format(s=step, x=x) for step, x in expected]
    curves = read_curves(write("\n".join([SOURCE, *lines]) + "\n", name))
    assert rows_of(curves.frame) == expected
    assert f"loss '{loss}' (detected)" in notes_of(curves)
    assert curves.bad_rows.is_empty()


def test_what_the_trainer_prints_is_read_and_its_lines_are_counted(write):
    lines = [f"{{'loss': '{4 - i / 10}', 'grad_norm': 1.2, 'epoch': 0.0{i}}}" for i in range(8)]
    lines[4:4] = ["{'eval_loss': 3.5, 'epoch': 0.04}", "Saving model checkpoint to out/checkpoint-500"]
    lines.append("{'train_runtime': 9.0, 'train_loss': 3.6, 'epoch': 1.0}")
    curves = read_curves(write("\n".join(lines), "console.log"))
    assert rows_of(curves.frame) == [(i + 1, pytest.approx(4 - i / 10)) for i in range(8)]
    assert "The lines contain no step" in notes_of(curves)
    assert rows_of(read_curves(write("\n".join(lines), "console.log"), loss="eval_loss").frame) == [(4, 3.5)]


ROWS = [(0, 4.0), (10, 3.0), (20, 2.5)]


@pytest.mark.parametrize("name", ["some.txt", "some.log", "some", "some.jsonl.bak", "some.dat"])
@pytest.mark.parametrize("kind", ["csv", "blanks", "aligned", "json lines", "parquet", "gzip", "trainer state"])
def test_a_file_is_read_by_its_content_whatever_its_name(write, tmp_path, name, kind):
    csv = "step,loss\n0,4.0\n10,3.0\n20,2.5\n"
    pl.DataFrame(ROWS, ["step", "loss"], orient="row").write_parquet(tmp_path / "p")
    content = {
        "csv": csv,
        "blanks": csv.replace(",", " "),
        "aligned": " step   loss\n    0   4.0\n   10   3.0\n   20   2.5\n",
        "json lines": "".join(json.dumps({"step": s, "loss": x}) + "\n" for s, x in ROWS),
        "parquet": (tmp_path / "p").read_bytes(),
        "gzip": gzip.compress(csv.encode()),
        "trainer state": json.dumps({"log_history": [{"step": s, "loss": x} for s, x in ROWS]}),
    }[kind]
    assert rows_of(read_curves(write(content, name)).frame) == ROWS


LIGHTNING = "epoch,step,train_loss_step,train_loss_epoch,val_loss\n\n" + "".join(
    f"0,{step},{3.7 - step / 1e5},,\n" + (f"0,{step},,,3.8\n" if step % 100 == 90 else "")
    for step in range(35_000, 36_000, 10)
)


def test_lightnings_metrics_give_the_training_loss_and_say_where_they_start(write, tmp_path):
    path = write(LIGHTNING, "logs/version_0/metrics.csv")
    for source in (path, path.parent):
        curves = read_curves(source)
        assert len(curves.frame) == 100
        assert rows_of(curves.frame)[0] == (35_000, pytest.approx(3.35))
        assert curves.bad_rows.is_empty()
        assert "loss 'train_loss_step' (detected)" in notes_of(curves)
        assert "The curve starts at step 35,000: earlier steps are not in this file." in curves.notes
    assert len(read_curves(path, loss="val_loss").frame) == 10
    write(LIGHTNING.replace("3.8", "3.9"), "logs/version_10/metrics.csv")
    write(LIGHTNING, "logs/version_9/metrics.csv")
    assert "Read from version_10/metrics.csv, of 3." in read_curves(tmp_path / "logs").notes


def test_a_folder_of_the_trainer_is_a_run_with_a_log(write, tmp_path):
    from lmdynamics.runs.run import Run

    write(json.dumps({"log_history": HISTORY}), "opt/checkpoint-20/trainer_state.json")
    log = Run(tmp_path / "opt").log
    assert log.select("step", "loss", "lr").rows() == [(10, 4.0, 1e-4), (20, 3.0, 1e-4)]
    assert log.schema == Run(tmp_path / "nothing").log.schema
    assert read_curves(Run(tmp_path / "opt")).frame.rows() == [("opt", 10, 4.0), ("opt", 20, 3.0)]


# What is refused

MALFORMED = {
    "empty": ("some.csv", "", "some.csv is empty"),
    "blank lines": ("some.csv", "\n\n", "some.csv is empty"),
    "header only": ("some.csv", "step,loss\n", "has no rows"),
    "binary": ("some.csv", bytes(range(256)) * 20, "is not UTF-8 text (byte 128)"),
    "zeros": ("some.csv", bytes(200), "is not text (byte 0 is zero)"),
    "not UTF-8": ("some.csv", b"step,loss\n1,2.0\n2,\xff\n", "is not UTF-8 text (byte 18)"),
    "UTF-16": ("some.csv", "step,loss\n1,2.0\n".encode("utf-16"), "is not UTF-8 text"),
    "ragged": ("some.csv", "step,loss\n1,2.0\n2,2.0,7\n", "line 3 has 3 cells, its header 2"),
    "open quotation": ("some.csv", 'step,loss\n1,"2.0\n2,2.0\n', "unclosed quotation mark"),
    "all losses NaN": ("some.csv", "step,loss\n1,nan\n2,nan\n", "no row can be used (not a number: 2)"),
    "a small rest": (
        "some.csv",
        "step,loss\n1,2.0\n2,1.9\n" + "".join(f"{i} k,1.8\n" for i in range(3, 8)),
        "only 2 of 7 rows could be used: 5 have no whole number as step and would be left out, the first '3 k'; "
        "correct the file, or give --step COLUMN",
    ),
    "no loss": ("some.csv", "step,accuracy\n1,0.5\n", "no column looks like a loss among accuracy; give --loss COLUMN"),
    "loss is text": ("some.csv", "step,loss\n1,high\n2,low\n", "'loss' holds no numbers (its first value is 'high')"),
    "loss is empty": ("some.csv", "step,loss\n1,\n2,\n", "column 'loss' is empty"),
    "no step": ("some.csv", "when,loss\n1,2.0\n", "no column looks like a step among when, loss; give --step COLUMN"),
    "steps are text": (
        "some.csv",
        "step,loss\nfirst,2.0\n",
        "'step' holds no numbers (its first value is 'first'); give --step",
    ),
    "broken": ("trainer_state.json", '{"log_history": [', "is not JSON, or is cut short"),
    "no log_history": ("trainer_state.json", '{"epoch": 1}', "has no log_history"),
    "empty log_history": ("trainer_state.json", '{"log_history": []}', "has no rows"),
    "log_history without loss": ("t.json", '{"log_history": [{"step": 1, "lr": 1}]}', "no column looks like a loss"),
    "log_history of numbers": ("trainer_state.json", '{"log_history": [1, 2]}', "has no log_history"),
    "deep": ("trainer_state.json", "[" * 100_000, "is not JSON"),
    "broken lines": ("log.jsonl", "step 1 loss 2\n", "line 1 is not JSON"),
    "lines of numbers": ("log.jsonl", "1\n2\n", "line 1 is not a record"),
    "blank lines of JSON": ("log.jsonl", "\n\n", "has no rows"),
    "cut gzip": ("log.jsonl.gz", gzip.compress(b'{"step": 1}\n' * 99)[:-12], "cannot be read"),
    "no gzip": ("log.csv.gz", "step,loss\n1,2\n", "cannot be read"),
    "cut parquet": ("log.parquet", b"PAR1" + bytes(100), "is not Parquet, or is damaged"),
    "prose": (
        "log.docx",
        "At step 3 all was well.\n",
        "holds no table and no lines with a step and a loss; give a table",
    ),
    "source alone": ("log", "def f():\n    return loss  # step:1 val_loss:9\n", "holds no table and no lines"),
}


@pytest.mark.parametrize(("name", "content", "expected"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_is_refused_in_one_line(write, name, content, expected):
    path = write(content, name)
    message = refusal(path)
    assert expected in message
    assert str(path) in message


def test_what_is_not_there_and_a_folder_of_other_things_are_refused(tmp_path, write):
    assert "nowhere.csv is not a file, folder or run; give a table" in refusal(tmp_path / "nowhere.csv")
    assert "is not a file, folder or run" in refusal("nowhere")
    write("hello", "other/readme.txt")
    assert "contains no loss curves; give a table" in refusal(tmp_path / "other")


def test_unknown_columns_are_answered_with_near_ones(write):
    path = write("step,model,train_loss\n1,a,2.0\n2,a,2.0\n")
    assert "no column 'train_los'; did you mean 'train_loss'?" in refusal(path, loss="train_los")
    assert "--step: no column 'steps'; did you mean 'step'?" in refusal(path, step="steps")
    assert "--group: no column 'modle'; did you mean 'model'?" in refusal(path, group="modle")
    assert "no column of numbers matches 'eval/*'; known: model, train_loss" in refusal(path, loss="eval/*")
    assert "column 'model' holds no numbers (its first value is 'a'); give --loss" in refusal(path, loss="model")


@pytest.mark.parametrize("options", [{"step": "loss", "loss": "loss"}, {"group": "loss", "loss": "loss"}])
def test_one_column_is_not_taken_for_two_things(options):
    frame = pl.DataFrame({"step": [1, 2], "loss": 2.0})
    assert "column 'loss' cannot be two of step, loss and group" in refusal(frame, **options)
    assert read_curves(frame, loss="loss", group=[]).names == ["loss"]


def test_dates_are_no_steps():
    frame = pl.DataFrame({"step": [1, 2], "loss": 2.0}).with_columns(pl.from_epoch("step").alias("when"))
    assert "column 'when' holds no numbers" in refusal(frame, step="when")


# Real trajectories


def test_smoothed_curves_of_five_models_are_distinguished_unasked(real_data):
    curves = read_curves(real_data / "trajectories" / "zsl" / "smoothed_loss.csv")
    assert curves.names == ["14M", "37M", "144M", "285M", "OLMo-1B"]
    assert len(curves.frame) == 2850
    assert curves.bad_rows.is_empty()


def test_validation_sets_of_a_wide_history_are_curves(real_data):
    files = sorted((real_data / "trajectories" / "olmo-ladder").glob("*.csv"))
    assert len(files) == 5
    for file in files:
        curves = read_curves(file, loss="eval/*-validation/CrossEntropyLoss")
        assert curves.names == read_curves(file).names
        assert len(curves.names) == 11
        assert curves.names[0] == "c4_en"
        (curve,) = read_curves(file, loss="eval/c4_en-validation/CrossEntropyLoss").frame.partition_by("curve")
        assert rows_of(curve) == rows_of(curves.frame.filter(pl.col("curve") == "c4_en"))


def test_each_schedule_is_a_curve(real_data):
    files = sorted((real_data / "trajectories" / "multi-power-law").glob("*.csv"))
    for file in files:
        curves = read_curves(file)
        assert curves.names == [file.stem]
        assert len(curves.frame) == len(pl.read_csv(file))


def test_1507_runs_are_read_without_a_loss(real_data):
    file = real_data / "trajectories" / "modded-nanogpt" / "val_loss_all_runs.csv"
    curves = read_curves(file)
    assert len(curves.names) == 1507
    expected = pl.read_csv(file).select(pl.col("path").alias("curve"), "step", loss="val_loss")
    assert curves.frame.sort("curve", "step").equals(expected.sort("curve", "step"))


def test_a_table_of_scores_is_read_by_three_columns(real_data):
    file = real_data / "trajectories" / "pythia" / "zero_shot_by_step.csv"
    curves = read_curves(file, loss="value", group=["model", "task", "metric"])
    assert len(curves.names) == 224
    assert counts(curves) == {"not positive": 175}
    assert len(curves.frame) + 175 == len(pl.read_csv(file)) == 6048
    assert "give --group model,COLUMN (candidates: metric, task)" in refusal(file, group="model", loss="value")


def test_rows_of_a_metric_that_is_no_loss_are_left_out_or_refused(tmp_path):
    rows = [
        (step, metric, value) for step in range(1, 30) for metric, value in (("loss", 5 / step), ("acc", step / 30))
    ]
    long = pl.DataFrame(rows, ["step", "metric", "value"], orient="row")
    long.write_csv(tmp_path / "both.csv")
    curves = read_curves(tmp_path / "both.csv")
    assert curves.frame["loss"].to_list() == [5 / step for step in range(1, 30)]
    assert "29 rows are no losses (acc) and are left out." in " ".join(curves.notes)
    long.filter(metric="acc").write_csv(tmp_path / "acc.csv")
    assert "no metric is a loss (acc); give --loss to read one as a loss" in refusal(tmp_path / "acc.csv")
    assert read_curves(tmp_path / "acc.csv", loss="value").frame["loss"][0] == 1 / 30
