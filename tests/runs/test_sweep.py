"""Sweeps: every condition with every seed, once; a failed or stopped run leaves the others complete."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lmdynamics.errors import UserError
from lmdynamics.hub.suites import open_run, run_names
from lmdynamics.runs import sweep as module
from lmdynamics.runs.sweep import Condition, Plan, plan_names, read_plan, sweep
from lmdynamics.training import layout
from lmdynamics.training.recipes import PROFILES, load_recipe
from tests.conftest import TINY, refused, refuses
from tests.runs.trainings import command


@pytest.fixture
def never(monkeypatch):
    """Plans that make no sense are refused before anything is trained."""

    def trained(*_):
        raise AssertionError("trained")

    monkeypatch.setattr(module, "_execute", trained)


def jobs(plan: Plan, profile: str = "default", **overrides):
    return {c.name: module._job(plan, c, profile, 0, overrides) for c in plan.conditions}


def plan_file(folder: Path, text: str) -> Path:
    file = folder / "plan.toml"
    file.write_text(text)
    return file


# plans --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", plan_names())
def test_every_plan_loads_in_every_profile(name, profile):
    plan = read_plan(name)
    planned = jobs(plan, profile)
    assert plan.title
    assert len({job.run for job in planned.values()}) == len(plan.conditions)
    recipe = load_recipe(plan.recipe, profile)
    assert all(0 <= job.at < recipe.training.steps for job in planned.values())
    assert all(
        job.parent in {candidate.run for candidate in planned.values()} for job in planned.values() if job.parent
    )


def test_the_base_condition_is_the_recipe_itself():
    assert jobs(read_plan("syntax"))["base"].run == "grammar-mlm"
    assert jobs(read_plan("syntax"))["released"].run == "grammar-mlm-stages=1.0@128-stages=none"


@pytest.mark.parametrize(
    ("at", "keep", "step"),
    [
        (0.07, {}, 287),  # 280 of 4,000; 256 and 287 are checkpoints
        (0.016, {}, 64),
        (0, {}, 0),
        (0.99, {}, 3649),  # never the last, where nothing is left to do
        (300, {}, 287),
        (1e6, {}, 3649),
        (0.07, {"optimizer_state": "doublings"}, 256),
        (0.5, {"per_doubling": 1}, 2048),
        (96, {"per_doubling": 1}, 64),  # as near to 128
    ],
)
def test_steps_near_a_share(at, keep, step):
    assert module._step_near(load_recipe("grammar-mlm", overrides=keep), at) == step


def test_without_optimizer_state_there_are_no_branches():
    with pytest.raises(UserError, match="saves no optimizer state, so it cannot be branched; set optimizer_state=all"):
        module._step_near(load_recipe("grammar-mlm", overrides={"optimizer_state": "none"}), 0.5)


def test_dotted_settings_may_be_written_as_toml_has_them(tmp_path):
    file = plan_file(tmp_path, 'recipe = "grammar-mlm"\n[conditions.a]\nset.training.lr = 0.5\nset.seed = 3\n')
    (condition,) = read_plan(str(file)).conditions
    assert condition.set == {"training.lr": 0.5, "seed": 3}


GOOD = 'recipe = "grammar-mlm"\n[conditions.a]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe = ", "is not a plan"),
        ("[conditions.a]", "has no 'recipe'; a plan names a recipe and its conditions"),
        ('recipe = "grammar-mlm"', "has no 'conditions'"),
        ("recipe = 5\n[conditions.a]", "a plan names a recipe .in quotes. and its conditions"),
        ('recipe = "grammar-mlm"\nconditions = 5', "a plan names a recipe .in quotes. and its conditions"),
        ('recipe = "grammar-mlm"\n[conditions]', "a plan names a recipe .in quotes. and its conditions"),
        ('recipe = "grammar-mlm"\nconditions.a = 5', r"condition 'a' is 5; write \[conditions.NAME\]"),
        (GOOD + "set = 5", r"condition 'a' is .*; write \[conditions.NAME\] and set.KEY = VALUE"),
        (GOOD + "masking = 0.3", "condition 'a' has no setting 'masking'; the settings are set, of and at"),
        (GOOD + 'of = "a"\nat = 5', "condition 'a' is a branch; name another condition"),
        (GOOD + 'of = "b"\nat = 5', "condition 'a' is a branch; name another condition"),
        (GOOD + "at = 5", "condition 'a' is a branch; name another condition"),
        (GOOD + '[conditions.b]\nof = "a"', "condition 'b' is a branch; .* and a step"),
        (GOOD + '[conditions.b]\nof = "a"\nat = -1', "condition 'b' has at = -1; give a step, or a share"),
        (GOOD + '[conditions.b]\nof = "a"\nat = "soon"', "condition 'b' has at = 'soon'; give a step, or a share"),
        (GOOD + '[conditions.b]\nof = "a"\nat = true', "condition 'b' has at = True; give a step, or a share"),
        (GOOD + '[conditions.b]\nof = "a"\nat = 9\n[conditions.c]\nof = "b"\nat = 9', "'c' is a branch of a branch"),
        (GOOD + 'of = "b"\nat = 9\n[conditions.b]\nof = "a"\nat = 9', "'a' is a branch of a branch"),
        ('recipe = "gramar-mlm"\n[conditions.a]', "no recipe 'gramar-mlm'; did you mean 'grammar-mlm'"),
        (GOOD + "set.lrr = 5", "no setting 'lrr' to override"),
        (GOOD + "set.masking = 15", "15 per cent is 0.15"),
        (GOOD + '[conditions.b]\nof = "a"\nat = 9\nset.hidden_size = 32', "cannot change model.hidden_size"),
        (GOOD + '[conditions.b]\nof = "a"\nat = 0.5\nset.steps = 99', "training ends at step 99, so at step 2048"),
        (GOOD + "[conditions.b]", "'a', seed 0, and 'b', seed 0, are the same run, grammar-mlm"),
    ],
)
def test_bad_plans_are_one_clear_line(tmp_path, never, text, message):
    refuses(message, sweep, str(plan_file(tmp_path, text)))


def test_bad_calls_are_one_clear_line(call, never, tmp_path):
    assert refused(call("sweep", "maskin"), "no plan 'maskin'", "did you mean 'masking'")
    assert refused(call("sweep", "masking", "--only", "constant"), "no condition 'constant'", "did you mean 'constant")
    assert refused(call("sweep", "masking", "--seeds", "0;1"), "--seeds '0;1': give whole numbers separated by commas")
    assert refused(call("sweep", "masking", "--seeds", "0,0"), "are the same run")
    assert refused(call("sweep", "masking", "--seeds=-1"), "seed is -1")
    assert refused(call("sweep", "masking", "--profile", "huge"), "no profile 'huge'")
    assert refused(call("sweep", "masking", "--set", "masking=0.3"), "are the same run")
    assert refused(call("sweep", "masking", "--workers", "0"), "workers is 0; at least 1 is needed")
    (tmp_path / "latin.toml").write_bytes("title = 'é'".encode("latin-1"))
    assert refused(call("sweep", tmp_path / "latin.toml"), "is not a plan")


def test_only_some_conditions_and_what_they_branch_from(monkeypatch):
    executed = []
    monkeypatch.setattr(module, "_execute", lambda jobs, *_: executed.extend(jobs) or {})
    table = sweep("syntax", only=["released"], seeds=(0, 2))
    assert [(job.condition, job.seed) for job in executed] == [
        ("SAS−", 0),
        ("released", 0),
        ("SAS−", 2),
        ("released", 2),
    ]
    assert table["run"].to_list() == [
        "grammar-mlm-stages=1.0@128-stages=none",
        "grammar-mlm-seed2-stages=1.0@128-stages=none",
    ]
    assert table["error"].is_null().all()


# training -----------------------------------------------------------------------------------------------------------

PLAN = """
recipe = "grammar-mlm"
[conditions.whole]
[conditions.more]
set.masking = 0.4
[conditions.branch]
of = "more"
at = 0.3
set.masking = 0.15
"""


def started(run: str) -> float:
    return (open_run(run).folder / "run.json").stat().st_mtime


@pytest.mark.slow
def test_conditions_by_seeds_once(tmp_path, home, monkeypatch):
    plan = str(plan_file(tmp_path, PLAN))
    table = sweep(plan, seeds=(0, 1), overrides=TINY, progress=False)
    assert table.select("condition", "seed").rows() == [(c, s) for s in (0, 1) for c in ("whole", "more", "branch")]
    assert table["error"].is_null().all()
    runs = [open_run(name) for name in table["run"]]
    assert [run.steps[-1] for run in runs] == [12] * 6
    assert [run.recipe.seed for run in runs] == [0, 0, 0, 1, 1, 1]
    for parent, branch in ((runs[1], runs[2]), (runs[4], runs[5])):
        assert (branch.parent["run"], branch.parent["step"]) == (parent.name, 4)
        assert branch.log["masking_rate"].to_list() == [0.4] * 4 + [0.15] * 8
        assert started(branch.name) >= (parent[12].folder / "manifest.json").stat().st_mtime
    before = {file: file.stat().st_mtime_ns for file in home.rglob("runs/*/**/*") if file.name != "run.lock"}
    monkeypatch.delattr(module.jobs, "Process")  # what is there needs no process
    assert sweep(plan, seeds=(0, 1), overrides=TINY, progress=False).equals(table)
    assert {file: file.stat().st_mtime_ns for file in home.rglob("runs/*/**/*") if file.name != "run.lock"} == before


def begun(home: Path, plan: Path, *arguments: str) -> subprocess.Popen:
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    return command(home, "sweep", str(plan), "--workers", "2", *arguments, **both)


@pytest.mark.slow
def test_a_failed_run_leaves_the_others_complete(tmp_path, home):
    """One condition needs a treebank that is not there; another run's folder is taken by something else."""
    failing = '[conditions.treeless]\nset = { stages = 1.0, trees = "/nowhere.conllu" }\n'
    failing += '[conditions.released]\nof = "treeless"\nat = 4\nset.stages = []\n'
    occupied = next(
        job.run for name, job in jobs(read_plan(str(plan_file(tmp_path, PLAN))), **TINY).items() if name == "more"
    )
    (home / "runs" / occupied).mkdir(parents=True)
    (home / "runs" / occupied / "run.json").write_text("{")
    process = begun(home, plan_file(tmp_path, PLAN + failing))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "lmdynamics: 4 of 5 runs failed; the same command tries them again"
    assert "Traceback" not in err
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "FAILED" not in lines["whole"]
    assert "nowhere.conllu" in lines["treeless"].partition("FAILED: ")[2]
    assert "failed: " in lines["released"].partition("FAILED: its parent ")[2]
    assert "is damaged" in lines["more"].partition("FAILED: ")[2]
    (name,) = run_names()
    assert open_run(name).steps[-1] == 12
    assert sorted(folder.name for folder in (home / "runs").iterdir()) == sorted([name, occupied])


LONG = ("--set", "steps=800")


def saved(home: Path) -> dict[str, int]:
    return {
        run.name: max([*layout.step_folders(run / "checkpoints"), *layout.step_folders(run / "resume")], default=0)
        for run in (home / "runs").glob("*")
    }


def test_each_worker_has_one_of_the_gpus_that_this_process_may_use(tmp_path, home, monkeypatch):
    """A batch gives its items a GPU each; what an item sweeps must not move to another."""
    gpus = []

    class Process:
        status = None

        def __init__(self, *_, gpu, **options):
            gpus.append(gpu)
            if len(gpus) == len(expected):
                begun.set()

        def receive(self) -> tuple[None, None]:
            assert begun.wait(60)  # one that ends at once leaves nothing to do for the others
            return None, None

        def send(self, _) -> None: ...
        def close(self) -> None: ...
        def wait(self) -> None: ...

    monkeypatch.setattr(module.jobs, "Process", Process)
    monkeypatch.setattr("lmdynamics.devices._count", lambda kind: 2)
    cases = [("4,7", None, "cuda", ["4", "7"]), ("5", 2, "cuda", ["5", "5"]), ("4,7", None, "cuda:1", ["7"])]
    for visible, workers, device, expected in cases:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        begun = threading.Event()
        sweep("masking", "smoke", workers=workers, device=device, progress=False)
        assert sorted(gpus) == expected
        gpus.clear()
    expected, begun = [""], threading.Event()
    sweep("masking", "smoke", workers=1, device="cpu", progress=False)
    assert gpus == expected


def workers(process: subprocess.Popen) -> list[int]:
    """Processes that it has started to train in."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and "lmdynamics.jobs._serve" in (entry / "cmdline").read_text():
                pids.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return pids


def wait_until(holds, process: subprocess.Popen) -> None:
    while not holds():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
def test_ctrl_c_saves_everything_and_the_same_command_resumes(tmp_path, home):
    three = PLAN.partition("[conditions.branch]")[0] + "[conditions.third]\nset.lr = 0.01\n"
    process = begun(home, plan_file(tmp_path, three), *LONG)
    wait_until(lambda: len([step for step in saved(home).values() if step > 64]) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert (
        err.strip().splitlines()[-1] == "lmdynamics: stopped; the trained steps are saved, and the same command resumes"
    )
    assert "Traceback" not in err
    stopped = saved(home)
    assert len(stopped) == 2  # the third has not been begun
    assert all(64 < step < 800 for step in stopped.values())
    for name, step in stopped.items():
        folder = layout.step_folder(home / "runs" / name / "resume", step)
        assert (folder / layout.TRAINING_STATE).exists()
        assert layout.check_hashes(folder) == 3
    process = begun(home, tmp_path / "plan.toml", *LONG)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert list(saved(home).values()) == [800] * 3
    assert all(open_run(home / "runs" / name).log["step"].to_list() == list(range(800)) for name in saved(home))


@pytest.mark.slow
def test_ctrl_c_while_workers_start_is_not_lost(tmp_path, home):
    process = begun(home, plan_file(tmp_path, PLAN), *LONG)
    wait_until(lambda: len(workers(process)) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "the same command resumes" in err
    assert "Traceback" not in err
    assert all(step < 800 for step in saved(home).values())


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_behind(tmp_path, home):
    process = begun(home, plan_file(tmp_path, PLAN), *LONG)
    wait_until(lambda: len([step for step in saved(home).values() if step > 64]) == 2, process)
    training = workers(process)
    process.kill()
    process.communicate(timeout=200)
    while any(Path(f"/proc/{worker}").exists() for worker in training):
        time.sleep(0.02)
    for name, step in saved(home).items():
        assert 64 < step < 800
        run = home / "runs" / name  # at a doubling, the kept checkpoint is what training goes on from
        last = {**layout.step_folders(run / "checkpoints"), **layout.step_folders(run / "resume")}[step]
        assert layout.check_hashes(last) == 3


@pytest.mark.slow
def test_a_killed_process_takes_only_its_own_run_with_it(tmp_path, home):
    process = begun(home, plan_file(tmp_path, PLAN), *LONG)
    wait_until(lambda: any(step > 64 for step in saved(home).values()), process)  # none of the two has finished
    os.kill(workers(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "Traceback" not in err
    failed = [line for line in out.splitlines() if "FAILED" in line]
    assert failed
    assert all("its process was killed, perhaps because memory ran out" in line for line in failed)
    finished = [line for line in out.splitlines() if "FAILED" not in line]
    assert {line.split()[0] for line in finished} in ({"whole"}, {"more", "branch"})
    assert all(saved(home)[line.split()[3]] == 800 for line in finished)


def test_a_condition_made_in_python():
    plan = Plan("grammar-mlm", (Condition("a", {"masking": 0.3}), Condition("b", {"lr": 0.01}, parent="a", at=512)))
    assert [job.run for job in jobs(plan).values()] == [
        "grammar-mlm-masking=0.3",
        "grammar-mlm-masking=0.3@512-lr=0.01",
    ]
    assert json.loads(json.dumps(plan.conditions[1].set)) == {"lr": 0.01}
