"""The series on published suites: the same pages, given an address instead of a recipe, on a hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmdynamics.records import read_records
from lmdynamics.runs.run import Run
from tests.hub import suites
from tests.hub.server import Hub

ROOT = Path(__file__).parents[2]
PYTHIA, MULTIBERTS = "hf://EleutherAI/pythia-14m", "hf://google/multiberts-seed_0-step_*"
OLMO2 = "hf://allenai/OLMo-2-0425-1B"

pytestmark = pytest.mark.slow


@pytest.fixture
def pairs(tmp_path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    line = '{"sentence_good": "the cat sees the dog", "sentence_bad": "the cat see the dog", "UID": "agreement"}'
    (folder / "agreement.jsonl").write_text("\n".join([line] * 20))
    return folder


@pytest.fixture
def treebank(tmp_path, tiny_run) -> Path:
    """Sentences of the built-in language as anybody's CoNLL-U file."""
    lines = []
    for sentence in tiny_run.treebank("grammar", 200):
        arcs = zip(sentence.words, sentence.heads, sentence.relations, strict=True)
        for number, (word, head, relation) in enumerate(arcs, 1):
            lines.append("\t".join([str(number), word, *["_"] * 4, str(head + 1), relation, "_", "_"]))
        lines.append("")
    (tmp_path / "made.conllu").write_text("\n".join(lines) + "\n")
    return tmp_path / "made.conllu"


@pytest.fixture
def execute(tmp_path, treebank):
    """Run a notebook at profile smoke; what it recorded."""

    def run(stem: str, *words: str) -> dict[str, float]:
        parameters = [word for each in (*words, f"treebank={treebank}") for word in ("-p", each)]
        command = [
            sys.executable,
            "-m",
            "lmdynamics.cli",
            "batch",
            str(ROOT / "notebooks" / f"{stem}.ipynb"),
            *parameters,
        ]
        environment = {name: value for name, value in os.environ.items() if name != "LMDYNAMICS_DATA"}
        result = subprocess.run(
            [*command, "--profile", "smoke", "--out", str(tmp_path / "out")],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return {record.name: record.value for record in read_records(tmp_path / "out" / stem)}

    return run


def publish(hub: Hub, run: Run, name: str) -> None:
    """A run of ours under a name of Pythia's: a branch for each checkpoint."""
    repository = hub.repository(name)
    tokenizer = {path.name: path.read_bytes() for path in (run.folder / "tokenizer").iterdir()}
    for checkpoint in run:
        saved = {file: (checkpoint.folder / file).read_bytes() for file in ("config.json", "model.safetensors")}
        repository.move("main", repository.commit({**tokenizer, **saved}, branch=f"step{checkpoint.step}"))


@pytest.mark.parametrize(("address", "publisher"), [(MULTIBERTS, suites.multiberts), (OLMO2, suites.olmo2)])
def test_syntax_in_a_suite(hub, execute, pairs, address, publisher):
    publisher(hub)
    records = execute("02_sas_emergence", f"run={address}?download=yes", f"pairs={pairs}")
    assert 0 <= records["uas"] <= 1
    assert records["structure_onset"] is None  # these models are random


def test_the_first_page_opens_a_suite(hub, execute):
    suites.pythia(hub)
    records = execute("00_start_here", f"run={PYTHIA}?download=yes")
    assert records["held_out_loss_last"] > 0
    assert "masking_rate" not in records  # nobody says how it was trained


def test_pages_on_a_ladder_take_suites_of_olmo2(hub, execute):
    """Branches that count tokens, weights in shards; two names for the same weights, so that all figures agree."""
    names = ("allenai/OLMo-2-0425-1B", "allenai/OLMo-2-1124-7B")
    for name in names:
        suites.olmo2(hub, [f"stage1-step{step}-tokens{step // 500}B" for step in range(0, 21_000, 1_000)], name)

    def figures(records: dict[str, float], pattern: str) -> list[float]:
        return [records[pattern.format(f"{name}#stage1")] for name in names]

    curves = execute("03_loss_deceleration", "plan=" + " ".join(f"hf://{n}?download=yes" for n in names))
    one, other = figures(curves, "final_loss_{}")
    assert one == other > 0
    assert curves["ladder_decelerating_after_unigram_phase"] == 0
    steps = "0,1000,2000,4000,8000,16000"
    plan = "plan=" + " ".join(f"hf://{name}?steps={steps}&download=yes" for name in names)
    zero_sum = execute("04_zero_sum_learning", plan)
    one, other = figures(zero_sum, "interference_{}")
    assert 0 < one == other < 1
    assert zero_sum["identity_error"] is None  # nobody has its optimizer state
    one, other = figures(execute("05_gradient_dissent", plan), "dissent_{}_all")
    assert -1 < one == other < 1
    shards = {path.split("/")[3] for path in hub.downloads if path.endswith("safetensors")}
    assert len(shards) > 6  # shards, each by its hash


def test_a_page_sees_in_a_suite_what_it_sees_in_the_runs_themselves(hub, execute, smoke_series):
    """A run of the ladder and its control, published under Pythia's names."""
    _, out, home = smoke_series
    runs = [Run(folder) for folder in sorted((home / "runs").glob("grammar-ladder-smoke*"))]
    assert len(runs) == 2
    for name, run in zip(("EleutherAI/pythia-14m", "EleutherAI/pythia-70m"), runs, strict=False):
        publish(hub, run, name)
    plan = "plan=" + " ".join(f"hf://EleutherAI/pythia-{size}?download=yes" for size in ("14m", "70m"))
    run_records = {record.name: record.value for record in read_records(out / "05_gradient_dissent")}
    suite_records = execute("05_gradient_dissent", plan)
    assert suite_records["dissent_EleutherAI/pythia-14m_all"] == pytest.approx(run_records["own_run_dissent"], abs=0.2)
