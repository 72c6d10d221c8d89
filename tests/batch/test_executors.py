"""Where items are executed (local processes, a dask cluster, a stand-in for SLURM), and with which settings."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest

from lmdynamics.batch import cache_key
from lmdynamics.batch.command import Options, batch
from lmdynamics.batch.execute import Outcome, is_done, read_outcome, run_notebook
from lmdynamics.batch.executors import Local, open_executor
from lmdynamics.batch.plan import Job, plan
from lmdynamics.errors import UserError
from lmdynamics.records import read_records
from tests.batch import stub_kernel_process
from tests.batch.notebooks import write_notebook

RECORDING = """\
from pathlib import Path
from lmdynamics.records import record, start_records
start_records(output_dir)
with Path(output_dir).parent.joinpath("ran.txt").open("a") as log:  # one line each time that it runs to its end
    log.write(f"{seed}\\n")
record("doubled", 2 * seed)
"""
TOLD = """\
import os
from lmdynamics.records import record, start_records
start_records(output_dir)
for name in ("OMP_NUM_THREADS", "LMDYNAMICS_CORES", "CUDA_VISIBLE_DEVICES"):
    record(name, os.environ.get(name))
"""


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "one.ipynb", RECORDING)


@pytest.fixture
def stub(monkeypatch):
    """Items are executed without papermill and without a kernel: what is tested is who runs when."""
    monkeypatch.setattr("lmdynamics.batch.execute.kernel_process", stub_kernel_process)


def doubled(out: Path) -> dict[str, int]:
    folders = sorted(path.parent for path in out.glob("*/outcome.json"))
    return {path.name: read_records(path)[0].value for path in folders}


WANTED = {f"one--seed={seed}": 2 * seed for seed in range(4)}
GRID = ["seed=0,1,2,3"]
STUB = pytest.mark.usefixtures("stub")


@STUB
def test_a_grid_runs_each_item_once_and_a_second_batch_none(notebook, capsys):
    out = notebook.parent / "out"
    assert batch(plan([notebook], out=out, grid=GRID), Options(workers=2)) == 0
    assert doubled(out) == WANTED
    assert "4 items, 0 done already, 4 to do" in capsys.readouterr().out
    assert batch(plan([notebook], out=out, grid=["seed=0,1,2,3,4"]), Options(workers=2)) == 0
    assert "5 items, 4 done already, 1 to do" in capsys.readouterr().out
    assert sorted((out / "ran.txt").read_text().split()) == ["0", "1", "2", "3", "4"]
    assert batch(plan([notebook], out=out, grid=GRID), Options(workers=2, force=True)) == 0
    assert len((out / "ran.txt").read_text().split()) == 9


def test_a_dry_run_writes_nothing(notebook, capsys):
    assert batch(plan([notebook], out=notebook.parent / "out", grid=GRID), Options(dry_run=True)) == 0
    assert "one--seed=3" in capsys.readouterr().out
    assert not (notebook.parent / "out").exists()


@STUB
def test_each_item_knows_its_share_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LMDYNAMICS_CORES", "6")
    notebook = write_notebook(tmp_path / "told.ipynb", TOLD)
    (job,) = plan([notebook], out=tmp_path / "out")
    with Local(workers=2) as local:
        assert local.submit(job).result().status == "finished"
    values = {record.name: record.value for record in read_records(job.folder)}
    assert (values["OMP_NUM_THREADS"], values["LMDYNAMICS_CORES"]) == ("1", "3")


@STUB
@pytest.mark.parametrize("max_jobs", [1, 2, None])
def test_no_more_items_are_submitted_than_max_jobs_allows(notebook, monkeypatch, max_jobs):
    running, running_counts = [], []

    class Counted:
        def __init__(self, job):
            self.job, self.looks = job, 0
            running.append(self)
            running_counts.append(len(running))

        def done(self):
            self.looks += 1
            if self.looks == 2:
                running.remove(self)
            return self.looks >= 2

        def result(self):
            return run_notebook(self.job)

    class Elsewhere:
        def submit(self, job, **options):
            return Counted(job)

    elsewhere = Elsewhere()
    elsewhere.max_jobs = max_jobs
    monkeypatch.setattr("lmdynamics.batch.command.open_executor", lambda *_: nullcontext(elsewhere))
    assert batch(plan([notebook], out=notebook.parent / "out", grid=["seed=0,1,2"])) == 0
    assert max(running_counts) == (max_jobs or 3)


@STUB
def test_results_of_warm_runs_do_not_count_as_fresh(notebook, capsys):
    out = notebook.parent / "out"
    assert batch(plan([notebook], out=out, grid=["seed=0,1"])) == 0
    assert batch(plan([notebook], out=out, grid=["seed=0,1"]), Options(fresh=True, dry_run=True)) == 0
    assert "2 items, 0 done already, 2 to do" in capsys.readouterr().out


def test_each_item_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    gpus = []

    def noted(job, environment, **options):
        gpus.append(environment["CUDA_VISIBLE_DEVICES"])
        time.sleep(0.2)

    monkeypatch.setattr("lmdynamics.batch.executors.run_notebook", noted)
    with Local(gpu=True) as local:
        assert local.max_jobs == 2
        for future in [local.submit(Job(Path("n.ipynb"), Path("out"), {})) for _ in range(2)]:
            future.result()
    assert sorted(gpus) == ["4", "7"]


@STUB
def test_what_fails_is_tried_again_and_counted(tmp_path, capsys):
    third_time = """\
from pathlib import Path
file = Path(output_dir).parent / "tries"
tries = int(file.read_text()) if file.exists() else 0
file.write_text(str(tries + 1))
assert tries == 2, "not yet"
"""
    notebook = write_notebook(tmp_path / "stubborn.ipynb", third_time)
    assert batch(plan([notebook], out=tmp_path / "out"), Options(retry=1)) == 1
    assert read_outcome(tmp_path / "out" / "stubborn").attempts == 2
    assert batch(plan([notebook], out=tmp_path / "out"), Options(retry=1)) == 0
    assert capsys.readouterr().out.count("trying again (1 of 1)") == 1


def test_what_takes_too_long_is_stopped_with_its_kernel(tmp_path):
    notebook = write_notebook(
        tmp_path / "slow.ipynb", "import os", "print(os.getpid(), flush=True)", "import time\ntime.sleep(600)"
    )
    assert batch(plan([notebook], out=tmp_path / "out"), Options(timeout=12)) == 1
    outcome = read_outcome(tmp_path / "out" / "slow")
    assert outcome.error == "stopped: it took longer than 12 s"
    assert outcome.cell == 5
    kernel = next(line for line in (tmp_path / "out" / "slow" / "log.txt").read_text().splitlines() if line.isdigit())
    assert ends(int(kernel))


def ends(pid: int, seconds: float = 30) -> bool:
    """Whether a process is gone within some time, or waits only to be noticed by its parent."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


@contextmanager
def dask_cluster(folder: Path, workers: int = 3):
    """A scheduler and workers as processes of their own; gives its address and the workers."""
    environment = os.environ | {"DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False"}
    environment |= {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "30s"}
    file = folder / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    started = [
        subprocess.Popen(
            [*command, "--no-dashboard", "--scheduler-file", str(file)], env=environment, stderr=subprocess.DEVNULL
        )
    ]
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (file.exists() and file.read_text().endswith("}")):
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        words = f"-m distributed.cli.dask_worker {address} --nthreads 1 --no-dashboard --no-nanny"
        worker = [sys.executable, *words.split()]
        folders = [["--local-directory", str(folder / f"worker-{i}")] for i in range(workers)]
        started += [
            subprocess.Popen([*worker, *options], env=environment, stderr=subprocess.DEVNULL) for options in folders
        ]
        yield address.removeprefix("tcp://"), started[1:]
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_records_and_survives_the_loss_of_a_worker(notebook, tmp_path):
    tell = 'import os\nPath(output_dir, "home.txt").write_text(os.environ["LMDYNAMICS_HOME"])'
    slow = write_notebook(tmp_path / "slow.ipynb", "import time\ntime.sleep(4)", RECORDING, tell)
    out, environment = tmp_path / "out", os.environ | {"LMDYNAMICS_HOME": str(tmp_path / "home")}
    with dask_cluster(tmp_path) as (address, workers):
        command = [sys.executable, "-m", "lmdynamics.cli", "batch", str(slow), "--grid", GRID[0], "--out", str(out)]
        command += ["--executor", f"dask://{address}"]
        running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        until = time.monotonic() + 60
        while time.monotonic() < until and len(list(out.glob("*/progress.json"))) < 3:
            time.sleep(0.1)
        workers[0].kill()
        printed = running.communicate(timeout=120)[0]
    assert running.returncode == 0, printed
    assert doubled(out) == {name.replace("one", "slow"): value for name, value in WANTED.items()}
    assert {path.read_text() for path in out.glob("*/home.txt")} == {str(tmp_path / "home")}
    assert sorted((out / "ran.txt").read_text().split()) == ["0", "1", "2", "3"]


CONFIGURATION = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_res
SelectTypeParameters=CR_CPU
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


@contextmanager
def slurm_cluster(folder: Path):
    """SLURM's controller and one node on loopback, everything in a folder; skips where it cannot be started."""
    if os.getuid() or any(shutil.which(name) is None for name in ("munged", "slurmctld", "slurmd")):
        pytest.skip("needs SLURM and root (apt install slurm-wlm munge)")
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    ports = dict(zip(("controller", "daemon"), free_ports(2), strict=True))
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=socket.gethostname(), **ports))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    commands = [["munged", "--force", "--foreground", f"--socket={folder}/munge.sock", *files]]
    commands += [["slurmctld", "-D"], ["slurmd", "-D"]]
    started = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("w")
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            log.close()
            time.sleep(1)
        until, states = time.monotonic() + 30, ""
        while time.monotonic() < until and "idle" not in states:
            time.sleep(0.5)
            states = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True).stdout
        if "idle" not in states:
            pytest.skip(f"SLURM does not start here: {(folder / 'slurmd.out').read_text()[-200:]}")
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.slow
def test_slurm_itself_gives_the_same_records(notebook, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lmdynamics.cli", "batch", str(notebook), "--grid", GRID[0], "--out", str(out)]
    with slurm_cluster(tmp_path / "slurm") as environment:  # no srun: it would look for its settings in /etc
        slurm = ["--executor", "slurm", "--slurm", "timeout_min=5", "--slurm", "slurm_use_srun=false"]
        result = subprocess.run([*command, *slurm], env=environment, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    assert doubled(out) == WANTED
    assert sorted((out / "ran.txt").read_text().split()) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_a_job_that_slurm_drops_before_it_begins_is_no_reason_to_wait(notebook, tmp_path):
    """There is no accounting here, so nothing tells of it but the queue."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "lmdynamics.cli", "batch", str(notebook), "--out", str(out), "--executor", "slurm"]
    with slurm_cluster(tmp_path / "slurm") as environment:

        def slurm(*words: str) -> str:
            return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()

        slurm("scontrol", "update", f"nodename={socket.gethostname()}", "state=drain", "reason=test")
        running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        until, job = time.monotonic() + 60, ""
        while time.monotonic() < until and not job:
            time.sleep(0.1)
            job = slurm("squeue", "--noheader", "--format=%A")
        slurm("scancel", job)
        printed = running.communicate(timeout=120)[0]
    assert running.returncode == 1, printed
    assert f"its worker was lost (RuntimeError: SLURM no longer has job {job}, " in read_outcome(out / "one").error


@pytest.mark.slow
def test_slurms_stand_in_gives_the_same_records(notebook):
    out = notebook.parent / "out"
    options = Options(executor="slurm-local", slurm=["timeout_min=5"])
    assert batch(plan([notebook], out=out, grid=GRID), options) == 0
    assert doubled(out) == WANTED


@STUB
def test_an_item_of_two_batches_runs_once(notebook):
    """As when a batch's client was killed and its workers went on."""
    (job,) = plan([notebook], ["seed=3"], out=notebook.parent / "out")
    with Local(workers=2) as local:
        outcomes = [future.result() for future in [local.submit(job), local.submit(job)]]
    assert [outcome.status for outcome in outcomes] == ["finished", "finished"]
    assert (notebook.parent / "out" / "ran.txt").read_text() == "3\n"


@STUB
def test_a_fresh_batch_has_a_data_folder_for_each_version_of_the_code(tmp_path, monkeypatch):
    source = """\
import os
from lmdynamics.records import record, start_records
start_records(output_dir)
record("home", os.environ["LMDYNAMICS_HOME"])
record("data", os.environ["LMDYNAMICS_DATA"])
"""
    monkeypatch.delenv("LMDYNAMICS_DATA", raising=False)
    notebook, homes = write_notebook(tmp_path / "told.ipynb", source), []
    for version in ("one", "one", "two"):
        monkeypatch.setattr("lmdynamics.batch.cache_key._package", lambda version=version: [version])
        assert batch(plan([notebook], out=tmp_path / "out"), Options(fresh=True, force=True)) == 0
        home, data = (record.value for record in read_records(tmp_path / "out" / "told"))
        assert data == os.path.join(os.environ["LMDYNAMICS_HOME"], "fetched")  # corpora need not be fetched anew
        homes.append(home)
    assert homes[0] == homes[1] != homes[2]
    assert all(Path(home).parent == tmp_path / "out" for home in homes)


def test_a_change_of_notebook_parameters_or_package_makes_an_item_new(notebook, monkeypatch):
    out = notebook.parent / "out"

    def key(*parameters, folder=out):
        (job,) = plan([notebook], parameters, out=folder)
        return job.key

    first = key("seed=1")
    assert key("seed=1", folder=out / "elsewhere") == first
    assert key("seed=2") != first
    source = notebook.read_text()
    notebook.write_text(
        source.replace('"outputs": []', '"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]')
    )
    assert key("seed=1") == first
    notebook.write_text(source.replace("2 * seed", "3 * seed"))
    assert key("seed=1") != first
    notebook.write_text(source)
    data = notebook.parent / "a-run"  # what the parameter `run` names
    data.mkdir()
    (data / "run.json").write_text("{}")
    with_run = key("seed=1")
    assert with_run != first
    (data / "run.json").write_text('{"seed": 1}')
    assert key("seed=1") != with_run
    monkeypatch.setattr("lmdynamics.batch.cache_key._package", lambda: ["another version"])
    assert key("seed=2") != first


def test_every_file_that_the_package_ships_is_part_of_the_key(tmp_path, monkeypatch):
    """Not only its Python: a page's script, style sheet and templates are on every page."""
    shutil.copytree(Path(cache_key.__file__).parents[1], tmp_path / "lmdynamics")
    monkeypatch.setattr(cache_key, "__file__", str(tmp_path / "lmdynamics" / "batch" / "cache_key.py"))

    def version() -> str:
        cache_key._package.cache_clear()
        return cache_key.code_version()

    versions = {version()}
    data_files = [path for path in (tmp_path / "lmdynamics").rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert {"moving.js", "moving.css", "index.html.jinja"} <= {path.name for path in data_files}
    for number, path in enumerate([*data_files, tmp_path / "lmdynamics" / "cli.py"], 2):
        path.write_text(path.read_text() + "\n")
        versions.add(version())
        assert len(versions) == number, path.name
    (tmp_path / "lmdynamics" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "lmdynamics" / "__pycache__" / "more.pyc").write_bytes(b"")
    (tmp_path / "lmdynamics" / "cli.py~").write_text("")
    assert version() in versions
    cache_key._package.cache_clear()


@STUB
def test_a_finished_item_of_another_key_is_not_done(notebook):
    (job,) = plan([notebook], out=notebook.parent / "out")
    assert not is_done(job)
    assert run_notebook(job).status == "finished"
    assert is_done(job)
    outcome = json.loads((job.folder / "outcome.json").read_text())
    (job.folder / "outcome.json").write_text(json.dumps({**outcome, "key": "older"}))
    assert not is_done(job)
    (job.folder / "outcome.json").write_text('{"name": "one", "sta')  # a disk that was full
    assert not is_done(job)


@pytest.mark.parametrize(
    ("executor", "workers", "flags", "says"),
    [
        ("cluster", None, {}, "there is no executor 'cluster'; known: local, dask://HOST:PORT, slurm"),
        ("local", 0, {}, "--workers is 0"),
        ("local", None, {"slurm_partition": "gpu"}, "--slurm is for --executor slurm"),
        ("dask://127.0.0.1:9", None, {}, "no dask scheduler answers at 127.0.0.1:9"),
        ("slurm-local", None, {"no_such_thing": "1"}, "cannot be used with these settings"),
    ],
)
def test_what_cannot_execute_is_reported_in_one_line(tmp_path, monkeypatch, executor, workers, flags, says):
    monkeypatch.setattr("lmdynamics.batch.executors.SCHEDULER_TIMEOUT", 1)
    with pytest.raises(UserError, match=says) as refusal, open_executor(executor, workers, flags, tmp_path):
        pass
    assert "\n" not in str(refusal.value)


def test_an_outcome_in_words():
    common = {"name": "one", "seconds": 3.4, "parameters": {}}
    assert str(Outcome(status="finished", **common)) == "one: finished after 3 s"
    failed = Outcome(status="failed", cell=3, source="x", error="E: no", **common)
    assert str(failed) == "one: cell 3 (`x`) failed: E: no"
