"""The project's own files: they agree with each other and keep its rules."""

import ast
import re
import signal
import subprocess
import sys
import tomllib
import zipfile
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import nbformat
import polars as pl
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted((ROOT / "lmdynamics").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BIN = Path(sys.executable).parent
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


def declared() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    return [Requirement(line) for line in lines if not line.startswith("lmdynamics")]


def pinned() -> dict[str, Version]:
    return {canonicalize_name(line.partition("==")[0]): Version(line.partition("==")[2]) for line in LOCK}


def test_the_lock_pins_every_dependency_within_its_bounds():
    pins = pinned()
    assert {
        r.name: str(pins.get(canonicalize_name(r.name))) for r in declared() if canonicalize_name(r.name) not in pins
    } == {}
    assert [str(r) for r in declared() if pins[canonicalize_name(r.name)] not in r.specifier] == []


def test_the_lock_holds_exact_public_versions_only():
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)] == []
    assert "torch==2.13.0" in LOCK
    assert sorted(pinned()) == sorted({canonicalize_name(line.partition("==")[0]) for line in LOCK})


def test_no_module_imports_itself_by_way_of_others():
    graph = grimp.build_graph("lmdynamics", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > 500
    TopologicalSorter(imports).prepare()  # raises CycleError


def test_conda_users_get_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert from_pip == {"pip": ["-r requirements.lock", "-e ."]}


def imported(module: Path) -> set[str]:
    """Top-level names that a module imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.partition(".")[0] for name in names} - {"", "lmdynamics", *sys.stdlib_module_names}


def test_what_the_package_imports_is_declared():
    providers = packages_distributions()
    extras = PROJECT["optional-dependencies"]
    extra_lines = [line for extra in ("cluster", "glue", "tensorboard") for line in extras[extra]]
    for_users = [*PROJECT["dependencies"], *extra_lines]
    declared = {canonicalize_name(Requirement(line).name) for line in for_users}
    undeclared = {
        name: str(module.relative_to(ROOT))
        for module in MODULES
        for name in imported(module)
        if not declared & {canonicalize_name(provider) for provider in providers.get(name, [name])}
    }
    assert undeclared == {}


def test_imports_follow_the_layers():
    command = [BIN / "lint-imports", "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_every_layer_is_in_the_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layer_names = {name for layer in contract["layers"] for name in re.findall(r"lmdynamics\.(\w+)", layer)}
    present = {
        path.stem for path in (ROOT / "lmdynamics").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert present - {"__init__"} - layer_names == set()


def test_modules_stay_small():
    assert [str(path.relative_to(ROOT)) for path in MODULES if len(path.read_text().splitlines()) > 400] == []


# split, so that this file does not find itself
UNSAFE = ["trust_remote" + "_code", "weights_only" + "=False", "allow_pickle" + "=True", "import " + "pickle"]
PIPES = {"import " + "pickle": ["lmdynamics/jobs.py"]}  # which reads what its own processes say, and no file


@pytest.mark.parametrize("text", [*UNSAFE, "torch" + ".load("])
def test_nothing_is_unpickled_and_no_remote_code_runs(text):
    files = [*MODULES, *NOTEBOOKS, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in files if text in path.read_text()] == PIPES.get(text, [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_can_be_read_in_one_sitting(path):
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 30
    assert path.stat().st_size <= 40_000
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_literals_one_per_line_each_with_its_reason(path):
    (cell,) = [
        cell for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", [])
    ]
    lines = cell.source.splitlines()
    statements = ast.parse(cell.source).body
    assert len(lines) == len(statements)
    for line, statement in zip(lines, statements, strict=True):
        assert isinstance(statement, ast.AnnAssign), line
        ast.literal_eval(statement.value)
        assert re.search(r"  # \w", line), f"no reason beside: {line}"


def test_published_figures_say_where_they_come_from():
    folder = ROOT / "data" / "published"
    readme = (folder / "README.md").read_text()
    tables = sorted(folder.glob("*.csv"))
    assert tables
    for table in tables:
        assert f"`{table.name}`" in readme
        frame = pl.read_csv(table)
        assert len(frame) > 0
        assert frame.null_count().sum_horizontal().item() == 0


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    arxiv = [identifier["value"] for paper in citation["references"] for identifier in paper.get("identifiers", [])]
    assert {"arXiv:2305.15096", "arXiv:2309.07311", "arXiv:2506.05447"} <= set(arxiv)


def test_the_wheel_carries_what_the_package_reads(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [path for name in ("recipes", "sweeps", "published") for path in (ROOT / "data" / name).iterdir()]
    for path in (*shipped, ROOT / "data" / "sources.toml"):
        assert f"lmdynamics/shipped/{path.relative_to(ROOT / 'data').as_posix()}" in names
    assert "lmdynamics/batch/index.html.jinja" in names
    assert {name.partition("/")[0] for name in names} == {"lmdynamics", f"lmdynamics-{PROJECT['version']}.dist-info"}
    sizes = {info.filename: info.file_size for info in zipfile.ZipFile(wheel).infolist()}
    reference = sum(size for name, size in sizes.items() if name.startswith("lmdynamics/shipped/reference/"))
    assert sum(sizes.values()) - reference < 2_000_000
    assert 0 < reference < 2_000_000


def test_make_says_when_python_is_too_old(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    for python, message in ((old, "is Python 3.9.2"), (tmp_path / "none", "was not found")):
        command = ["make", "--no-print-directory", "setup", f"PYTHON={python}"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 2
        assert result.stdout.startswith("lmdynamics needs Python 3.11 or newer; ")
        assert message in result.stdout
    assert not (tmp_path / ".venv").exists()


def test_hooks_download_nothing():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert {hook["language"] for hook in hooks[0]["hooks"]} == {"system"}


def test_the_workflow_runs_pinned_actions_and_may_write_only_where_it_publishes():
    (path,) = (ROOT / ".github" / "workflows").glob("*.yml")
    workflow = yaml.safe_load(path.read_text())
    jobs = workflow["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    uses = [step["uses"] for step in steps if "uses" in step]
    assert [action for action in uses if not re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action)] == []
    assert workflow["permissions"] == {"contents": "read"}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert jobs["publish"]["permissions"] == {"pages": "write", "id-token": "write"}
    targets = [step["run"].removeprefix("make ") for step in steps if step.get("run", "").startswith("make ")]
    assert targets == ["lint", "test", "site"]
    planned = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr


def test_the_command_line_answers_at_once():
    heavy = ("torch", "transformers", "altair", "polars", "papermill", "rich.progress")
    code = f"import sys, lmdynamics.cli; print(*(name for name in {heavy} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_jsonschema_does_not_compile_its_grammar_of_uris():
    code = "import lmdynamics, altair, sys; print(sys.modules['rfc3987_syntax'], 'lark' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["None", "False"]


def test_ctrl_c_can_be_tested_under_nohup():
    """Processes started under nohup ignore SIGINT, and hand that on."""
    started = "import signal; print(signal.getsignal(signal.SIGINT) == signal.default_int_handler)"
    code = f"import subprocess, sys, tests.conftest; subprocess.run([sys.executable, '-c', {started!r}])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert result.stdout.strip() == "True", result.stderr
