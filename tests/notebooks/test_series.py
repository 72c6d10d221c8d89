"""The series, headless at profile smoke, through the same command that a person types."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from papermill import inspect_notebook

from lmdynamics.records import MIME_TYPE, read_records
from tests.batch.notebooks import write_notebook

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

pytestmark = pytest.mark.notebook


def lmdynamics(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, without real corpora: pages show more where there are some."""
    code = "from lmdynamics.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "LMDYNAMICS_DATA"}
    environment["LMDYNAMICS_HOME"] = str(home)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


COMMON = ["profile", "seed", "device", "interactive", "output_dir"]
MEASURED = ["sentences", "longest", "min_count", "pairs_per_paradigm", "margin", "relation", "at_most"]
PARAMETERS = {
    "00_start_here": ["run", "treebank", "sentence", "hide", *COMMON],
    "01_masking_schedules": [
        "runs",
        "plan",
        "baseline",
        "schedule",
        "seeds",
        "steps",
        "profile",
        "pairs",
        "pairs_per_paradigm",
        "probes",
        "frozen",
        "seed",
        "device",
        "interactive",
        "output_dir",
    ],
    "02_sas_emergence": ["run", "also", "treebank", "pairs", *COMMON, *MEASURED],
    "02_sas_interventions": [
        "runs",
        "plan",
        "baseline",
        "also",
        "seeds",
        "steps",
        "profile",
        "sentences",
        "min_count",
        "pairs_per_paradigm",
        "seed",
        "device",
        "interactive",
        "output_dir",
    ],
    "04_zero_sum_learning": [
        "plan",
        "seeds",
        "steps",
        "profile",
        "treebank",
        "sentences",
        "size",
        "batches",
        "share",
        "examples",
        "seed",
        "device",
        "interactive",
        "output_dir",
    ],
    "05_gradient_dissent": [
        "plan",
        "seeds",
        "steps",
        "profile",
        "treebank",
        "sentences",
        "seed",
        "device",
        "interactive",
        "output_dir",
    ],
    "06_seeds": ["run", "other", "steps", "treebank", "sentences", *COMMON],
    "03_loss_deceleration": [
        "plan",
        "treebank",
        "seeds",
        "steps",
        "profile",
        "curves",
        "smoothing",
        "skip_steps",
        "share",
        "seed",
        "device",
        "interactive",
        "output_dir",
    ],
}


@pytest.fixture(scope="module")
def series(smoke_series):
    """The series' result and its folder."""
    return smoke_series[:2]


def test_the_series_finishes(series):
    result, out = series
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == f"results: {out / 'index.html'}"


def test_the_records_are_the_accepted_ones(series, tmp_path):
    baselines = ROOT / "tests" / "baselines"
    result = lmdynamics("compare", series[1], "--baseline", baselines, "--strict", home=tmp_path)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", ["00_start_here", "02_sas_emergence"])
def test_marked_cells_print_the_same_again(smoke_series, tmp_path, name):
    """nbval runs the executed page once more, on runs and traces that are there, and compares the marked cells."""
    _, out, home = smoke_series
    executed = (out / name / f"{name}.ipynb").read_text("utf-8")
    assert executed.count("# NBVAL_CHECK_OUTPUT") >= 2
    assert executed.count(str(out / name)) >= 1
    page = tmp_path / f"{name}.ipynb"
    page.write_text(executed.replace(str(out / name), str(tmp_path / "again")), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    environment = os.environ | {"LMDYNAMICS_HOME": str(home), "OMP_NUM_THREADS": "1", "LMDYNAMICS_BATCH": "1"}
    result = subprocess.run([*command, page], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert read_records(tmp_path / "again") == read_records(out / name)


def test_the_first_page_needs_no_treebank(smoke_series, tmp_path):
    """A run's own held-out text is enough: one example sentence, and no relations of heads."""
    page = next(path for path in NOTEBOOKS if path.stem == "00_start_here")
    out, home = tmp_path / "out", smoke_series[2]
    result = lmdynamics("batch", page, "-p", "treebank=none", "--profile", "smoke", "--out", out, home=home)
    assert result.returncode == 0, result.stdout + result.stderr
    executed = (out / page.stem / page.name).read_text("utf-8")
    assert "sentences: 1, at" in executed
    assert "the dogs that the farmer sees often sleep" in executed
    alike = {record.name: record.value for record in read_records(smoke_series[1] / page.stem)}
    assert {record.name: record.value for record in read_records(out / page.stem)}["held_out_loss_last"] == (
        alike["held_out_loss_last"]
    )


def test_interventions_of_another_plan_are_compared_without_the_claims_about_others(smoke_series, tmp_path):
    page = next(path for path in NOTEBOOKS if path.stem == "02_sas_interventions")
    out, home = tmp_path / "out", smoke_series[2]
    words = [word for each in ("plan=strength", "baseline=λ = 0", "also=") for word in ("-p", each)]
    result = lmdynamics("batch", page, *words, "--profile", "smoke", "--out", out, home=home)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the runs of this plan are not those that the claims compare" in (out / page.stem / page.name).read_text()
    assert "UAS_·_λ_=_1" in {record.name for record in read_records(out / page.stem)}


@EACH
def test_headline_figures_are_recorded(series, path):
    records = read_records(series[1] / path.stem)
    assert records
    for record in records:
        assert record.name
        assert record.value is None or isinstance(record.value, (bool, int, float, str))
        if record.low is not None and record.high is not None and record.value is not None:
            assert record.low <= record.high


@EACH
def test_the_executed_notebook_carries_its_records_and_no_errors(series, path):
    folder = series[1] / path.stem
    executed = nbformat.read(folder / path.name, as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    carried = [output.data[MIME_TYPE]["name"] for output in outputs if MIME_TYPE in output.get("data", {})]
    assert carried == [record.name for record in read_records(folder)]


@EACH
def test_a_headless_notebook_has_no_widgets_and_no_warnings(series, path):
    executed = nbformat.read(series[1] / path.stem / path.name, as_version=4)
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [kind for output in outputs for kind in output.get("data", {}) if "widget" in kind] == []
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


@EACH
def test_figures_are_svg(series, path):
    figures = sorted((series[1] / path.stem).glob("*.svg"))
    assert figures
    for figure in figures:
        assert ElementTree.parse(figure).getroot().tag.endswith("svg")


@EACH
def test_the_index_shows_the_notebook(series, path):
    index, records = ((series[1] / name).read_text("utf-8") for name in ("index.html", "records.html"))
    assert f'href="{path.stem}/{path.stem}.html"' in index
    card = index[: index.index(f'href="{path.stem}/{path.stem}.html"')].count("<img ")
    (source,) = re.findall(r'<img src="([^"]+)" alt="\w', index)[card : card + 1]  # the figure of this card
    assert source.startswith((f"{path.stem}/", "data:image/svg+xml;base64,"))
    for record in read_records(series[1] / path.stem):
        assert record.name.replace("_", " ") in records
    for figure in (series[1] / path.stem).glob("*.svg"):
        assert f"{path.stem}/{figure.name}" in records
    for link in re.findall(r'(?:href|src)="([^"#]+)', index + records):
        assert link.startswith("data:") or (series[1] / link).exists(), link[:100]


@EACH
def test_a_notebook_leaves_nothing_beside_itself(series, path):
    assert {item.name for item in path.parent.iterdir()} - {".ipynb_checkpoints"} == {p.name for p in NOTEBOOKS}


def test_an_unknown_parameter_stops_everything_before_it_starts(tmp_path):
    result = lmdynamics("batch", *NOTEBOOKS, "-p", "sed", "1", "--out", tmp_path / "out", home=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"lmdynamics: \S+\.ipynb has no parameter 'sed'; did you mean 'seed'\?\n", result.stderr)
    assert not (tmp_path / "out").exists()


def test_a_failing_notebook_names_its_cell(tmp_path):
    failing = write_notebook(tmp_path / "failing.ipynb", "seed", "open('/nowhere/at/all')")
    result = lmdynamics("batch", failing, "-p", "seed", "3", "--out", tmp_path / "out", home=tmp_path)
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if "failed" in line]
    assert line == (
        "failing: cell 4 (`open('/nowhere/at/all')`) failed: "
        "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'"
    )
    assert result.stderr == ""
    assert json.loads((tmp_path / "out" / "failing" / "outcome.json").read_text())["parameters"]["seed"] == 3


def test_the_commands_in_the_documents_exist():
    documents = [path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    commands = {
        word for text in documents for word in re.findall(r"`?lmdynamics (train|runs|batch|fetch|doctor|\w+)\b", text)
    }
    helped = lmdynamics("--help", home=ROOT).stdout
    assert {"train", "runs", "batch", "fetch", "doctor"} <= commands
    assert [
        word for word in commands & set(re.findall(r"`lmdynamics (\w+)", "".join(documents))) if word not in helped
    ] == []
    targets = {
        word for text in documents for word in re.findall(r"\bmake (series|test|lab|lint|format|setup|bench)\b", text)
    }
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


@pytest.fixture(scope="module")
def twice(smoke_series, tmp_path_factory) -> tuple[dict[str, str], Path]:
    """What went wrong on each page as its cells ran twice, on runs and traces that are there; the records' folder."""
    folder = tmp_path_factory.mktemp("twice")
    environment = {name: value for name, value in os.environ.items() if name != "LMDYNAMICS_DATA"}
    environment |= {"LMDYNAMICS_HOME": str(smoke_series[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.notebooks.twice", str(folder), *map(str, NOTEBOOKS)]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout), folder


@EACH
def test_every_cell_can_be_run_twice(smoke_series, twice, path):
    """As a reader does who goes back."""
    errors, folder = twice
    assert errors[path.stem] == ""
    assert read_records(folder / path.stem) == read_records(smoke_series[1] / path.stem)


@EACH
def test_the_parameters_are_exactly_these(path):
    assert list(inspect_notebook(str(path))) == PARAMETERS[path.stem]


@EACH
def test_a_reading_group_can_use_it(path):
    """A question before the figures, exercises with folded answers, an hour's plan, and slides."""
    cells = nbformat.read(path, as_version=4).cells
    text = [cell.source for cell in cells if cell.cell_type == "markdown"]
    first, *later = [source for source in text if "**Predict before you look.**" in source]
    assert first == cells[0].source, "above the answer, which is the next cell"
    assert cells[1].metadata["tags"] == ["answer"]
    assert all(source.index("**Predict") < source.index("<details><summary>What w") for source in later)
    (group,) = [source for source in text if source.startswith("## For a reading group")]
    assert "\n> **Takeaway.** " in group
    exercises = re.findall(r"^\d\. ", group, re.MULTILINE)
    assert len(exercises) >= 3
    assert group.count("<details>") == group.count("</details>") == len(exercises)
    plan = re.search(r"\*\*A plan for 60 minutes:\*\* (.*)\.\n", group)[1]
    assert sum(int(part.split()[0]) for part in plan.split(" · ")) == 60
    kinds = [cell.metadata["slideshow"]["slide_type"] for cell in cells]
    assert kinds[0] == "slide"
    assert set(kinds) <= {"slide", "subslide", "skip", "-"}


def test_slides_show_headings_and_leave_set_up_out(tmp_path):
    command = [sys.executable, "-m", "nbconvert", "--to", "slides", "--output-dir", tmp_path, NOTEBOOKS[-1]]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (page,) = tmp_path.glob("*.slides.html")
    html = page.read_text("utf-8")
    cells = nbformat.read(NOTEBOOKS[-1], as_version=4).cells
    slides = sum(cell.metadata["slideshow"]["slide_type"] in ("slide", "subslide") for cell in cells)
    assert slides <= html.count("<section") <= 2 * slides
    assert "start_records(output_dir)" not in re.sub(r"<[^>]+>", "", html)
