"""Every block of README and docs runs by itself, as it is written: on tiny models, without a network.

What is long is made small (recipes, treebanks), what needs a network or a cluster is stood in for, and notebooks are
planned but not executed; each command goes through the real command line.
"""

import glob
import re
import shlex
import shutil
import subprocess
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import typer

import lmdynamics as lmd
from lmdynamics.batch import command
from lmdynamics.corpora import fetch
from lmdynamics.explorers import sas
from lmdynamics.hub.suites import run_names
from lmdynamics.runs import sweep, trained
from lmdynamics.runs.run import Run
from lmdynamics.training import recipes
from tests.batch.made import write_item
from tests.conftest import NOTEBOOKS, TINY
from tests.hub import suites

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
TEXT = "\n".join(path.read_text("utf-8") for path in DOCUMENTS)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
PYTHON = [code for kind, code in BLOCKS if kind == "python"]
SHELL = [code for kind, code in BLOCKS if kind == ""]
(PLAN,) = (code for kind, code in BLOCKS if kind == "toml")
LAST = 520  # steps of `grammar-mlm`: the examples look at step 512


_trained: dict[str, Path] = {}


@pytest.fixture
def small(monkeypatch, home, tmp_path_factory):
    """Recipes of tiny models: `grammar-mlm` with 520 steps, whatever else there is with twelve."""
    read = recipes.load_recipe

    def load(name, profile="default", seed=0, overrides=()):
        overrides_read = recipes.parse_overrides(overrides)
        base = {key: value for key, value in TINY.items() if "corpus." not in key or name == "grammar-mlm"}
        run = read(name, profile, seed, {**base, **overrides_read})
        steps = LAST if name == "grammar-mlm" and not overrides_read else 12
        return replace(run, training=replace(run.training, steps=steps))

    monkeypatch.setattr(trained, "load_recipe", load)
    if not _trained:  # once for all blocks
        with monkeypatch.context() as patched:
            patched.setenv("LMDYNAMICS_HOME", str(tmp_path_factory.mktemp("trained")))
            _trained["grammar-mlm"] = lmd.train("grammar-mlm", progress=False).folder
    shutil.copytree(_trained["grammar-mlm"], home / "runs" / "grammar-mlm")
    original = Run.treebank
    monkeypatch.setattr(Run, "treebank", lambda self, name="grammar", sentences=300: original(self, name, sentences))


@pytest.fixture
def place(tmp_path, monkeypatch, hub, home) -> Path:
    """A folder as a reader has it, with nothing that only a network or a cluster could give."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMDYNAMICS_DATA", raising=False)
    monkeypatch.setenv("LMDYNAMICS_CORES", "1")
    for name in ("notebooks", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "nightly.toml").write_text(PLAN)
    step = pl.int_range(100, 4000, 100, eager=True).cast(pl.Float64)
    columns = {"step": step, "loss": 20 * step**-0.3, "eval/a/loss": 10 * step**-0.2, "model": ["m"] * len(step)}
    pl.DataFrame(columns).write_csv("losses.csv")
    write_item(tmp_path / "out" / "nightly", "00_start_here", {"held_out_loss_last": 4.9})
    suites.pythia(hub)

    def download(source, folder, **_):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "some.txt").write_text("The cat saw the dog that the children had fed.\n\n" * 400)
        return folder

    monkeypatch.setattr(fetch, "download", download)
    monkeypatch.setattr(sweep, "_execute", lambda jobs, *_: {})
    monkeypatch.setattr(command, "_run", lambda jobs, address, options: [])
    monkeypatch.setattr(command, "open_executor", open_executor)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(typer, "confirm", lambda requested: True)
    return tmp_path


@contextmanager
def open_executor(address, workers, flags, folder, gpu=False):
    """None of its own, but what a cluster would be asked for has to make sense."""
    assert re.fullmatch(r"local|slurm|dask://[\w.]+:\d+", address)
    assert not flags or address == "slurm"
    yield nullcontext()


def commands(block: str) -> list[list[str]]:
    """The words of each command, with stars expanded, comments and what a shell redirects left out."""
    lines = block.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    split = [words[: words.index(">")] if ">" in words else words for words in split if words]
    return [
        [name for word in words for name in (sorted(glob.glob(word)) if word == "notebooks/*.ipynb" else [word])]
        for words in split
    ]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(len(SHELL)), ids=lambda block: SHELL[block].split("\n")[0][:40])
def test_every_block_of_commands_runs_by_itself(call, small, place, block):
    blocks = commands(SHELL[block])
    assert blocks
    for words in blocks:
        if words[0] == "make":
            result = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True)
            assert result.returncode == 0, result.stderr
            continue
        assert words[0] == "lmdynamics"
        status, out, err = call(*words[1:])
        finds = words[1] in ("compare", "audit")  # most records, and most steps of the suite in miniature, are lacking
        assert status == int(finds), (words, out, err)
        assert out, words


@pytest.mark.slow
@pytest.mark.parametrize("block", range(len(PYTHON)), ids=lambda block: PYTHON[block].strip().split("\n")[-1][:40])
def test_every_block_of_python_runs_by_itself(small, place, capsys, block):
    sentences = "1\tcats\t_\t_\t_\t_\t0\troot\t_\t_\n\n" * 3
    (place / "own.conllu").write_text(sentences)
    exec(PYTHON[block].replace('"ewt"', '"own.conllu"'), scope := {})
    assert scope["lmd"] is lmd
    if "grammar-mlm" in PYTHON[block]:
        second = ["grammar-mlm-seed1"] * ("seed=1" in PYTHON[block])
        assert run_names() == ["grammar-mlm", *second]
        assert scope["run"].steps[-1] == LAST
    if "heads" in scope:
        assert isinstance(scope["heads"], sas.SasExplorer)


def test_the_plan_of_the_docs_is_of_all_notebooks(place):
    from lmdynamics.batch.plan import plan

    assert len(plan(plan_file=place / "nightly.toml", out=place / "out")) == 6 * len(NOTEBOOKS)


def test_the_readme_is_short():
    assert len(DOCUMENTS[0].read_text("utf-8").split()) <= 900


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_to_files(path):
    links = [link for link in re.findall(r"\]\(([^)#]+)", path.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_links_to_every_page_of_the_docs():
    linked = set(re.findall(r"\]\(docs/([^)]+)\)", DOCUMENTS[0].read_text("utf-8")))
    pages = {link for link in linked if not link.startswith("pictures/")}
    assert pages == {path.name for path in DOCUMENTS[1:]}
