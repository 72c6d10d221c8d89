import json
import re
from pathlib import Path

import nbformat
import pytest

from lmdynamics.batch.execute import run_notebook
from lmdynamics.batch.parameters import notebook_parameters
from lmdynamics.batch.plan import plan
from lmdynamics.errors import UserError
from tests.batch.notebooks import PARAMETERS, write_notebook
from tests.conftest import refused, refuses
from tests.test_project import ROOT


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "one.ipynb", "print(seed)")


def values(notebook, *parameters, profile=None):
    (job,) = plan([notebook], parameters, profile, notebook.parent / "out")
    return job.parameters


def test_a_batch_run_is_headless_and_knows_its_folder(notebook):
    (job,) = plan([notebook], [], None, notebook.parent / "out")
    assert job.folder == notebook.parent / "out" / "one"
    assert job.executed == job.folder / "one.ipynb"
    assert job.parameters == {"interactive": False, "output_dir": str(job.folder)}
    assert not (notebook.parent / "out").exists()


def test_what_a_notebook_does_not_have_is_not_passed(tmp_path):
    bare = write_notebook(tmp_path / "bare.ipynb", "1", parameters=None)
    assert values(bare, profile="smoke") == {}


def test_relative_paths_become_absolute(notebook, monkeypatch):
    monkeypatch.chdir(notebook.parent)
    (job,) = plan([Path("one.ipynb")], [], None, Path("out"))
    assert job.notebook == notebook
    assert job.parameters["output_dir"] == str(notebook.parent / "out" / "one")


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("run=other", "run", "other"),
        ("run=7", "run", "7"),
        ("run=", "run", ""),
        ("run=a=b", "run", "a=b"),
        ("seed=3", "seed", 3),
        ("seed=-3", "seed", -3),
        ("rate=0.3", "rate", 0.3),
        ("rate=1e-3", "rate", 0.001),
        ("rate=1", "rate", 1.0),
        ("interactive=true", "interactive", True),
        ("interactive=No", "interactive", False),
        ("sizes=[3]", "sizes", [3]),
        ("sizes=[]", "sizes", []),
    ],
)
def test_values_take_the_type_of_the_parameter(notebook, text, name, value):
    parsed = values(notebook, text)[name]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeed=1", r"one.ipynb has no parameter 'seeed'; did you mean 'seed'\?"),
        ("zzz=1", "has no parameter 'zzz'; known: interactive, output_dir, "),
        ("seed=x", r"seed=x is not a whole number \(its default is 0\)"),
        ("seed=1.5", "is not a whole number"),
        ("seed=True", "is not a whole number"),
        ("seed=", "is not a whole number"),
        ("rate=fast", "is not a number"),
        ("interactive=maybe", "is not true or false"),
        ("sizes=3", r"is not a list\[int\]"),
        ("sizes=['a']", r"is not a list\[int\]"),
        ("seed", "not of the form"),
        ("=1", "not of the form"),
        ("__import__('os')=1", "not of the form"),
    ],
)
def test_a_wrong_parameter_is_refused(notebook, text, message):
    refuses(message, values, notebook, text)


def test_a_parameter_given_twice_is_refused(notebook):
    refuses("set twice", values, notebook, "seed=1", "seed=2")


def test_an_untyped_parameter_takes_the_type_of_its_default(tmp_path):
    untyped = write_notebook(tmp_path / "untyped.ipynb", "1", parameters="n = 3\nname = 'x'\nf = None")
    assert values(untyped, "n=4", "name=5", "f=6") == {"n": 4, "name": "5", "f": "6"}
    refuses("n=many is not a whole number", values, untyped, "n=many")


def test_the_named_value_wins_over_the_automatic_one(notebook):
    assert values(notebook, "profile=full", "interactive=true", profile="smoke")["profile"] == "full"
    assert values(notebook, "interactive=true")["interactive"] is True


def test_a_suite_has_not_learnt_the_built_in_language(home):
    syntax, curves = (ROOT / "notebooks" / f"{name}.ipynb" for name in ("02_sas_emergence", "03_loss_deceleration"))
    suite = "hf://EleutherAI/pythia-14m"
    refuses("so set treebank and pairs .treebank: where gold trees come from: gra", plan, [syntax], [f"run={suite}"])
    with pytest.raises(UserError, match=f"{suite} did not learn the built-in language, so set pairs "):
        plan([syntax], [f"run={suite}", "treebank=ewt"])
    refuses("so set treebank ", plan, [curves], [f"plan={suite} {suite}"])
    assert len(plan([syntax], [f"run={suite}", "treebank=ewt", "pairs=zorro"])) == 1


def test_a_folder_of_checkpoints_has_not_learnt_it_either(tiny_run, tmp_path, monkeypatch):
    syntax = ROOT / "notebooks" / "02_sas_emergence.ipynb"
    (tmp_path / "mine" / "checkpoint-500").mkdir(parents=True)
    refuses("so set treebank and pairs .treebank: where gold", plan, [syntax], [f"run={tmp_path / 'mine'}"])
    assert len(plan([syntax], [f"run={tmp_path / 'mine'}", "treebank=ewt", "pairs=zorro"])) == 1
    assert len(plan([syntax], [f"run={tiny_run.folder}"])) == 1
    monkeypatch.chdir(tmp_path)
    refuses("so set treebank and pairs", plan, [syntax], ["run=mine#big"])
    for name in ("grammar-mlm", "masking"):  # of a recipe and of a plan
        Path(name).mkdir()
    assert len(plan([syntax], ["run=grammar-mlm"])) == 1
    assert len(plan([syntax.with_name("01_masking_schedules.ipynb")], ["plan=masking"])) == 1


def test_what_a_notebook_has_anyway_is_not_given(notebook):
    """So that an item of a grid over seeds is held against the same baseline as the notebook run by itself."""
    out = notebook.parent / "out"
    (item,) = plan([notebook], [], "smoke", out)
    first, second = plan([notebook], ["interactive=false"], "smoke", out, grid=["seed=0,1"])
    assert {**first.parameters, "output_dir": ""} == {**item.parameters, "output_dir": ""}
    assert first.key == item.key
    assert first.name == "one--seed=0"
    assert second.parameters["seed"] == 1


@pytest.mark.parametrize("line", ["a: str | None = None", 'a: str = "x=y"', "a, b = 1, 2\nc: x.Y = 3"])
def test_a_parameter_that_papermill_would_miss_is_refused(tmp_path, line):
    notebook = write_notebook(tmp_path / "lost.ipynb", "1", parameters=f"seed: int = 0  # fine\n{line}")
    refuses("papermill cannot read parameter '[ac]'", notebook_parameters, notebook)


def test_a_parameters_cell_that_does_not_parse_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not parse"):
        notebook_parameters(write_notebook(tmp_path / "broken.ipynb", parameters="seed: int = ("))


def test_every_notebook_must_have_the_parameter(notebook, tmp_path):
    other = write_notebook(tmp_path / "other.ipynb", "1", parameters="seed: int = 0  # s")
    refuses(r"other\.ipynb has no parameter 'rate'", plan, [notebook, other], ["rate=.1"], None, tmp_path / "out")


def test_wrong_files_are_named(tmp_path, notebook):
    text = tmp_path / "text.ipynb"
    text.write_text("not JSON")
    other = tmp_path / "x.json"
    other.write_text("[1, 2]")
    out = tmp_path / "out"
    refuses(r"no notebook .*onee\.ipynb; did you mean 'one\.ipynb'\?", plan, [tmp_path / "onee.ipynb"], [], None, out)
    refuses("there are no notebooks in", plan, [tmp_path / "nowhere" / "one.ipynb"], [], None, out)
    refuses("is not a Jupyter notebook", plan, [text], [], None, out)
    refuses("is not a Jupyter notebook", plan, [other], [], None, out)
    refuses("no notebook named", plan, [], [], None, out)
    refuses("is a file; --out takes a folder", plan, [notebook], [], None, text)
    refuses("no profile 'smok'; did you mean 'smoke'", plan, [notebook], [], "smok", out)


def test_two_notebooks_of_one_name_do_not_share_a_folder(notebook, tmp_path):
    (tmp_path / "below").mkdir()
    twin = write_notebook(tmp_path / "below" / "one.ipynb")
    refuses("would both write to", plan, [notebook, twin], [], None, tmp_path / "out")


def test_an_executed_notebook_is_not_written_over_itself(tmp_path):
    (tmp_path / "out" / "one").mkdir(parents=True)
    executed = write_notebook(tmp_path / "out" / "one" / "one.ipynb")
    refuses("name another folder with --out", plan, [executed], [], None, tmp_path / "out")


def test_a_notebook_of_a_later_format_is_refused_in_one_line(tmp_path):
    later = tmp_path / "later.ipynb"
    later.write_text('{"nbformat": 9, "nbformat_minor": 0, "cells": [], "metadata": {}}')
    refuses(".", plan, [later], [], None, tmp_path / "out")
    assert nbformat.current_nbformat == 4


BOUNDED = """\
seeds: int = 1  # runs; at least 1
share: float = 0.1  # of training, between 0 and 1
below: float = 0.0  # between -2.5 and 0
profile: str = "default"  # smoke, default or full
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seeds=0", "seeds=0 is out of range; it should be at least 1"),
        ("share=1.01", "share=1.01 is out of range; it should be between 0 and 1"),
        ("share=nan", "share=nan is not a number"),
        ("below=-3", "should be between -2.5 and 0"),
        ("profile=smok", "there is no such profile; did you mean 'smoke'"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path, text, says):
    bounded = write_notebook(tmp_path / "bounded.ipynb", "1", parameters=BOUNDED)
    for fine in ("seeds=1", "share=1", "share=0", "below=-2.5", "profile=smoke"):
        plan([bounded], [fine], out=tmp_path / "out")
    refuses(re.escape(says), plan, [bounded], [text], out=tmp_path / "out")
    refuses(re.escape(says), plan, [bounded], grid=[text], out=tmp_path / "out")


def test_a_grid_is_every_combination_and_names_its_items(notebook):
    jobs = plan([notebook], ["run=x"], "smoke", notebook.parent / "out", grid=["seed=0,1", "rate=0.1,0.2,0.3"])
    assert len(jobs) == 6
    assert {(job.parameters.get("seed", 0), job.parameters["rate"]) for job in jobs} == {
        (seed, rate) for seed in (0, 1) for rate in (0.1, 0.2, 0.3)
    }
    assert {job.parameters["run"] for job in jobs} == {"x"}
    assert jobs[0].name == "one--rate=0.1--seed=0"
    assert len({job.key for job in jobs}) == 6
    lists = plan([notebook], grid=["sizes=[1,4];[3]"], out=notebook.parent / "out")
    assert [job.parameters["sizes"] for job in lists] == [[1, 4], [3]]
    items = plan([notebook], grid=["run=../a/b,../a_b"], out=notebook.parent / "out")
    assert len({job.name for job in items}) == 2
    assert all(job.folder.parent == notebook.parent / "out" for job in items)


@pytest.mark.parametrize(
    ("grid", "parameters", "says"),
    [
        (["seed"], [], "not of the form `--grid name=value,value`"),
        (["sed=1,2"], [], "did you mean 'seed'"),
        (["seed=1,x"], [], "seed=x is not a whole number"),
        (["seed=1,1"], [], "has the same value of seed twice"),
        (["seed=1,2"], ["seed=3"], "set with -p and with --grid"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(notebook, grid, parameters, says):
    refuses(re.escape(says), plan, [notebook], parameters, out=notebook.parent / "out", grid=grid)


def test_a_plan_file_names_notebooks_beside_it(notebook, tmp_path):
    write_notebook(tmp_path / "two.ipynb", "2")
    file = tmp_path / "nightly.toml"
    file.write_text(
        '[[entry]]\nnotebooks = ["*.ipynb"]\nparameters = { run = "r" }\n'
        'grid = { seed = [0, 1], profile = ["smoke"] }\n'
        '[[entry]]\nnotebooks = ["one.ipynb"]\ngrid = { rate = [1] }\n'
    )
    jobs = plan(plan_file=file, parameters=["run=other"], out=tmp_path / "out")
    assert [job.name for job in jobs] == [
        *(f"{name}--profile=smoke--seed={seed}" for name in ("one", "two") for seed in (0, 1)),
        "one--rate=1.0",
    ]
    assert {job.parameters["run"] for job in jobs} == {"other"}  # what is typed goes over what is written
    assert jobs[-1].parameters["rate"] == 1.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x =", "is not a plan"),
        ("x = 1", "tables [[entry]]"),
        ("[[entry]]\nnotebook = ['one.ipynb']", "no setting 'notebook'; did you mean 'notebooks'"),
        ("[[entry]]\nnotebooks = 'one.ipynb'", "a list of paths"),
        ("[[entry]]\nnotebooks = ['none*.ipynb']", "no notebook matches 'none*.ipynb'"),
        ("[[entry]]\nnotebooks = ['one.ipynb']\ngrid = { seed = 1 }", "the grid's seed should be a list"),
        ("[[entry]]\nnotebooks = ['one.ipynb']\ngrid = { seed = ['x'] }", "seed=x is not a whole number"),
        ("[[entry]]\nnotebooks = ['one.ipynb']\nparameters = { sed = 1 }", "did you mean 'seed'"),
        ("[[entry]]\nnotebooks = ['one.ipynb', 'one.ipynb']", "would both write to"),
    ],
)
def test_a_plan_file_that_makes_no_sense_is_refused(notebook, tmp_path, text, says):
    file = tmp_path / "plan.toml"
    file.write_text(text)
    refuses(re.escape(says), plan, plan_file=file, out=tmp_path / "out")


R = {"name": "ir", "display_name": "R", "language": "R"}


def own_notebook(path, kernel: dict, *, language: str | None = None, tagged: bool = False):
    """A notebook of a person's own, with what it says of its kernel and language."""
    write_notebook(path, "1 + 1", parameters=PARAMETERS if tagged else None)
    content = json.loads(path.read_text())
    content["metadata"] = ({"kernelspec": kernel} if kernel else {}) | (
        {"language_info": {"name": language}} if language else {}
    )
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize(
    ("kernel", "language", "message"),
    [
        (R, None, "own.ipynb is in r (kernel 'ir'); a batch runs Python"),
        ({"name": "ir", "display_name": "R"}, "R", "own.ipynb is in r (kernel 'ir')"),
        (
            {"name": "ir", "display_name": "R"},
            None,
            "own.ipynb asks for the kernel 'ir' and does not name its language",
        ),
        ({}, "julia", "own.ipynb is in julia"),
    ],
)
def test_a_notebook_in_another_language_is_refused_before_anything_runs(
    call, tmp_path, tagged, kernel, language, message
):
    path = own_notebook(tmp_path / "own.ipynb", kernel, language=language, tagged=tagged)
    assert refused(call("batch", path, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kernel", "tagged", "messages"),
    [
        ({"name": "mine", "language": "python", "display_name": "x"}, True, ["asks for the kernel 'mine', but runs"]),
        ({}, True, ["names no kernel, so it runs with the Python of lmdynamics"]),
        ({"name": "python3", "display_name": "Python 3"}, False, ["no cell is tagged `parameters`"]),
        ({}, False, ["no cell is tagged `parameters`", "names no kernel"]),
        ({"name": "python3", "display_name": "Python 3"}, True, []),
    ],
)
def test_how_a_notebook_of_ones_own_will_run_is_printed_first(call, tmp_path, kernel, tagged, messages):
    path = own_notebook(tmp_path / "own.ipynb", kernel, tagged=tagged)
    status, out, err = call("batch", path, "--out", tmp_path / "out", "--dry-run")
    assert status == 0
    assert "1 to do" in out
    for line, words in zip(err.splitlines(), messages, strict=True):
        assert line.startswith("lmdynamics: own.ipynb: ")
        assert words in line
    if tagged:
        (job,) = plan([path], ["seed=3"], "smoke", tmp_path / "out")
        assert (job.parameters["seed"], job.parameters["profile"]) == (3, "smoke")
    else:
        result = call("batch", path, "-p", "seed=3", "--out", tmp_path / "out")
        assert refused(result, "own.ipynb has no cell tagged `parameters`, so 'seed' cannot be set")


@pytest.mark.slow
def test_a_notebook_that_names_no_kernel_runs(tmp_path):
    path = own_notebook(tmp_path / "own.ipynb", {}, tagged=True)
    (job,) = plan([path], ["seed=3"], out=tmp_path / "out")
    assert run_notebook(job).status == "finished"


def test_a_parameter_of_ten_thousand_characters_is_one_item(call, tmp_path):
    path = write_notebook(tmp_path / "own.ipynb", "1", parameters=PARAMETERS)
    status, out, err = call("batch", path, "-p", "run=" + "x" * 10_000, "--out", tmp_path / "out", "--dry-run")
    assert (status, err) == (0, "")
    assert len(out) < 1_000
    assert refused(call("batch", path, "-p", "rate=" + "x" * 10_000), "own.ipynb: rate=xxx", "is not a number")
    assert refused(call("runs", "show", "x" * 10_000), "there is no run")
    assert refused(call("train", "x" * 10_000), "ile name too long")
    assert refused(call("audit", "hf://own/" + "x" * 10_000), "is not the address of a suite")
    assert max(len(line) for line in call("sweep", "x" * 10_000)[2].splitlines()) < 500
