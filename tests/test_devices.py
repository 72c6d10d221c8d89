"""Which device computed is part of what is kept: traces, runs, records, items of a batch."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest
import torch

from lmdynamics import records
from lmdynamics.batch import command
from lmdynamics.batch.collect import gather
from lmdynamics.batch.executors import Local
from lmdynamics.batch.plan import plan
from lmdynamics.devices import available_devices, default_device, device_kind, matmul_precision, need_device
from lmdynamics.errors import UserError
from lmdynamics.hub.suites import open_run
from lmdynamics.jobs import CORES, GPUS
from lmdynamics.measurements.per_token_gradients import max_elements
from lmdynamics.measurements.trace import Measurement, trace
from lmdynamics.runs.background import training_of
from lmdynamics.runs.run import Run
from lmdynamics.runs.sweep import Condition, Plan, _job, sweep
from lmdynamics.runs.trained import name_on, train
from lmdynamics.training import loop
from tests.batch.notebooks import PARAMETERS, write_notebook
from tests.conftest import TINY, refused

MISSING = "device 'cuda' is not on this machine: torch .* finds cpu; choose one"
DEVICE = PARAMETERS + 'device: str = "cpu"  # where to compute\n'


@dataclass(frozen=True)
class Counted(Measurement):
    """Where it was called, which it remembers."""

    called: ClassVar[list[tuple[int, str]]] = []

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        self.called.append((checkpoint.step, device))
        return pl.DataFrame({"where": [device]})


@pytest.fixture(autouse=True)
def _forget():
    Counted.called.clear()


@contextmanager
def with_gpu() -> Iterator[None]:
    """Inside the block this machine says that it has one GPU of NVIDIA's; nothing can compute on it."""
    answers = {"is_available": True, "device_count": 1, "get_device_name": "NVIDIA H100", "max_memory_allocated": 0}
    with pytest.MonkeyPatch.context() as patched:
        for name, answer in answers.items():
            patched.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
        patched.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
        yield


@pytest.fixture
def gpu():
    with with_gpu():
        yield


@pytest.fixture
def trained_at_once(tiny_run, monkeypatch):
    """Training takes no time, whatever device is asked for: its checkpoints are there already."""

    def pretrain(recipe, folder, **_) -> None:
        shutil.copytree(tiny_run.folder / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)

    monkeypatch.setattr(loop, "pretrain", pretrain)


# names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "kind"),
    [("cpu", "cpu"), ("cuda", "cuda"), ("cuda:1", "cuda"), ("mps", "mps"), ("mps:0", "mps"), ("xpu:3", "xpu")],
)
def test_results_depend_on_the_kind_of_device(device, kind):
    assert device_kind(device) == kind


@pytest.mark.parametrize("device", ["gpu", "GPU", "CUDA", "", "cuda:x", "cuda:-1", "meta", "0", "cpu cuda"])
def test_nonsense_is_refused_in_one_line(device):
    choices = "choose cpu, cuda, mps, xpu, or one with its number: cuda:1"
    with pytest.raises(UserError, match=f"^unknown device '{device}'; {choices}"):
        device_kind(device)


def test_a_device_that_is_missing_is_named_beside_those_that_are_there(gpu):
    assert need_device("cuda:0") == "cuda"
    assert available_devices() == ["cpu", "cuda:0"]
    for device in ("cuda:7", "mps", "xpu"):
        with pytest.raises(UserError, match=f"device '{device}' is not on this machine: torch .* finds cpu, cuda:0;"):
            need_device(device)


def test_the_default_is_the_accelerator_unless_accelerate_is_set_otherwise(gpu, monkeypatch):
    assert default_device() == "cuda"
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:0")
    assert default_device() == "cuda:0"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert default_device() == "cpu"


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps", "xpu"])
def test_work_is_cut_up_for_every_device(device):
    assert max_elements(torch.device(device)) == (2**21 if device == "cpu" else 2**27)


def test_a_precision_below_float32_has_a_name():
    assert matmul_precision("cpu") == matmul_precision("cuda") == "float32"
    torch.set_float32_matmul_precision("high")
    try:
        assert matmul_precision("cuda") == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


# traces --------------------------------------------------------------------------------------------------------------


def test_a_trace_of_one_device_is_not_used_for_another(tiny_run, gpu):
    assert trace(tiny_run, Counted(), steps=[4], progress=False)["where"].to_list() == ["cpu"]
    assert trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False)["where"].to_list() == ["cuda"]
    assert Counted.called == [(4, "cpu"), (4, "cuda")]
    for device in ("cpu", "cuda:0"):  # now both are kept
        traced = trace(tiny_run, Counted(), steps=[4], device=device, progress=False)
        assert traced["where"].to_list() == [device_kind(device)]
    assert len(Counted.called) == 2


def test_a_trace_of_one_precision_is_not_used_for_another(tiny_run, gpu):
    trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False)
    torch.set_float32_matmul_precision("high")
    try:
        trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False)
    finally:
        torch.set_float32_matmul_precision("highest")
    trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False)
    assert len(Counted.called) == 2


def test_a_missing_device_is_reported_before_anything_is_measured(tiny_run):
    trace(tiny_run, Counted(), steps=[4], progress=False)
    with pytest.raises(UserError, match=MISSING):
        trace(tiny_run, Counted(), device="cuda", progress=False)
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        trace(tiny_run, Counted(), steps=[4], device="gpu", progress=False)
    assert Counted.called == [(4, "cpu")]
    with pytest.raises(UserError, match=MISSING):
        tiny_run[4].model(device="cuda")


def test_what_was_computed_on_a_gpu_can_be_read_without_one(tiny_run):
    with with_gpu():
        traced = trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False)
    assert trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False).equals(traced)
    assert len(Counted.called) == 1


def test_traces_of_earlier_versions_are_the_cpus_where_there_was_nothing_else(tiny_run, home, request):
    trace(tiny_run, Counted(), steps=[4], progress=False)
    (path,) = (home / "cache" / "traces").rglob("*.parquet")
    stored = pl.read_parquet_metadata(path)
    frame = pl.read_parquet(path, memory_map=False)
    frame.write_parquet(path, metadata={name: stored[name] for name in ("polars", "checksum")})
    trace(tiny_run, Counted(), steps=[4], progress=False)
    assert len(Counted.called) == 1
    request.getfixturevalue("gpu")  # it may have been this one's
    trace(tiny_run, Counted(), steps=[4], progress=False)
    assert len(Counted.called) == 2


def test_what_a_step_of_training_depends_on_is_in_the_key(tiny_run):
    """Two runs have the same weights at a step, but another learning rate from there on."""

    class Reads(Counted):
        reads_training = True

    changed = tiny_run.branch(4, lr=1e-4, progress=False)
    assert changed[4].content_hash == tiny_run[4].content_hash
    for run in (tiny_run, changed):
        for measurement in (Counted(), Reads()):
            trace(run, measurement, steps=[4], progress=False)
    assert len(Counted.called) == 3  # that which reads the weights alone is shared


# runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_of_one_device_is_not_used_for_another(trained_at_once, gpu):
    on_cpu = train("grammar-mlm", "smoke", overrides=TINY, device="cpu", progress=False)
    on_gpu = train("grammar-mlm", "smoke", overrides=TINY, device="cuda", progress=False)
    assert (on_cpu.trained_on, on_gpu.trained_on, on_gpu.facts["device"]) == ("cpu", "cuda", "NVIDIA H100")
    assert on_gpu.name == f"{on_cpu.name}-cuda"
    for device, run in (("cpu", on_cpu), ("cuda", on_gpu), ("cuda:0", on_gpu), (None, on_cpu)):
        assert train("grammar-mlm", "smoke", overrides=TINY, device=device, progress=False).folder == run.folder


@pytest.mark.parametrize("requested", ["cpu", "cuda"])
def test_a_name_of_another_devices_run_is_refused(trained_at_once, gpu, requested):
    other_device = {"cpu": "cuda", "cuda": "cpu"}[requested]
    train("grammar-mlm", overrides=TINY, name="mine", device=other_device, progress=False)
    message = f"mine was trained on {other_device}, now {requested} is requested; give this run another --name"
    with pytest.raises(UserError, match=message):
        train("grammar-mlm", overrides=TINY, name="mine", device=requested, progress=False)
    with pytest.raises(UserError, match=message):
        training_of("grammar-mlm", overrides=TINY, name="mine", device=requested)


def test_a_default_name_of_another_devices_run_is_left_to_that_run(trained_at_once, gpu):
    run = train("grammar-mlm", overrides=TINY, progress=False)  # on the accelerator, as nothing else was asked for
    assert run.trained_on == "cuda"
    assert name_on("cuda", run.name) == run.name
    assert name_on("cpu", run.name) == f"{run.name}-cpu"


def test_a_run_resumes_on_the_device_where_it_began(trained_at_once, gpu):
    run = train("grammar-mlm", overrides=TINY, name="mine", device="cpu", progress=False)
    shutil.rmtree(run[12].folder)
    assert train("grammar-mlm", overrides=TINY, name="mine", progress=False).trained_on == "cpu"


def test_a_missing_device_is_reported_before_anything_is_trained(home, call):
    for act in (
        lambda: train("grammar-mlm", overrides=TINY, device="cuda", progress=False),
        lambda: training_of("grammar-mlm", overrides=TINY, device="cuda"),
        lambda: sweep("masking", "smoke", overrides=TINY, device="cuda", progress=False),
    ):
        with pytest.raises(UserError, match=MISSING):
            act()
    assert not (home / "runs").exists()
    assert refused(call("train", "grammar-mlm", "--device", "cuda:7"), "device 'cuda:7' is not on this machine")
    assert refused(call("train", "grammar-mlm", "--device", "gpu"), "unknown device 'gpu'; choose cpu, cuda")
    assert refused(call("sweep", "masking", "--device", "mps"), "device 'mps' is not on this machine")
    assert not (home / "runs").exists()


def test_a_branch_is_trained_where_its_parent_was_and_says_so(tiny_run, call):
    branched = tiny_run.branch(4, lr=1e-4, progress=False)
    assert branched.parent["device_kind"] == branched.trained_on == "cpu"
    with pytest.raises(UserError, match=MISSING):
        tiny_run.branch(4, lr=1e-3, device="cuda", progress=False)
    assert refused(call("branch", "tiny", "--at", "4", "--device", "cuda"), "device 'cuda' is not on this machine")


def test_runs_of_earlier_versions_are_the_cpus_where_they_were(tiny_run, gpu):
    path = tiny_run.folder / "run.json"
    facts = json.loads(path.read_text())
    assert facts.pop("device_kind") == "cpu"
    path.write_text(json.dumps(facts))
    assert Run(tiny_run.folder).trained_on == "cpu"
    path.write_text(json.dumps({**facts, "device": "NVIDIA H100"}))  # what a CPU's run said where there was a GPU
    assert Run(tiny_run.folder).trained_on is None
    with pytest.raises(UserError, match="tiny was trained on a device of unknown kind, now cuda is requested"):
        train("grammar-mlm", overrides=TINY, name="tiny", device="cuda", progress=False)
    assert train("grammar-mlm", overrides=TINY, name="tiny", progress=False).folder == tiny_run.folder


@pytest.mark.parametrize(("device", "end"), [(None, ""), ("cpu", ""), ("cuda", "-cuda"), ("cuda:1", "-cuda")])
def test_the_runs_of_a_sweep_are_named_by_device_and_branches_by_their_parent(device, end):
    plan = Plan("grammar-mlm", (Condition("whole", {"lr": 1e-3}), Condition("branch", {"lr": 1e-4}, "whole", 64)))
    trained, branched = (_job(plan, condition, "default", 0, {}, device) for condition in plan.conditions)
    assert trained.run == f"grammar-mlm-lr=0.001{end}"
    assert branched.run == f"grammar-mlm-lr=0.001{end}@64-lr=0.0001"


# records -------------------------------------------------------------------------------------------------------------


def environment_of(folder) -> dict:
    return json.loads((folder / "records.json").read_text())["environment"]


def test_records_name_what_has_computed_and_not_what_was_asked_for(tiny_run, tmp_path, gpu, capsys):
    records.start_records(tmp_path, "cuda")
    assert environment_of(tmp_path)["device"] == "cpu"  # nothing has computed on a GPU yet
    trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False)
    records.record("x", 1)
    facts = environment_of(tmp_path)
    assert (facts["device"], facts["device_name"], facts["deterministic"]) == ("cuda", "NVIDIA H100", False)
    assert capsys.readouterr().out == "x: 1\n"
    open_run("tiny")  # a CPU's
    records.record("y", 2)
    assert environment_of(tmp_path)["device"] == "cpu+cuda"
    records.record("z", 3)
    warning = "device=cuda was requested, but cpu computed some of the results: a run was trained there"
    printed = capsys.readouterr().out
    assert printed.count(warning) == 1
    assert printed.endswith("y: 2\nz: 3\n")


def test_frames_that_were_kept_count_in_the_records(tiny_run, tmp_path, gpu):
    trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False)
    records.start_records(tmp_path, "cpu")
    trace(tiny_run, Counted(), steps=[4], device="cuda", progress=False)
    records.record("x", 1)
    assert environment_of(tmp_path)["device"] == "cuda"


def test_a_page_is_not_begun_for_a_device_that_is_missing(tmp_path):
    with pytest.raises(UserError, match=MISSING):
        records.start_records(tmp_path / "new", "cuda")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        records.start_records(tmp_path / "new", "gpu")
    assert not (tmp_path / "new").exists()


# batches -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "n.ipynb", "1", parameters=DEVICE)


def test_items_of_different_devices_have_folders_of_their_own(notebook, tmp_path):
    grid = plan([notebook], out=tmp_path / "out", grid=["device=cpu,cuda"])
    assert [job.name for job in grid] == ["n--device=cpu", "n--device=cuda"]
    (on_cpu,), (on_gpu,) = (plan([notebook], [f"device={d}"], out=tmp_path / "out") for d in ("cpu", "cuda"))
    assert (on_cpu.name, on_gpu.name) == ("n", "n--device=cuda")
    assert len({job.key for job in (*grid, on_cpu, on_gpu)}) == 2


def test_a_batch_is_not_begun_for_a_device_that_is_missing(notebook, tmp_path, call):
    out = tmp_path / "out"
    for device, message in {"cuda": "not on this", "cuda:7": "not on this", "gpu": "unknown device 'gpu'"}.items():
        assert refused(call("batch", notebook, "-p", "device", device, "--out", out), message)
        assert refused(call("batch", notebook, "--grid", f"device=cpu,{device}", "--out", out), message)
    assert not out.exists()


def test_a_gpu_by_number_is_seen_by_its_item(monkeypatch, notebook, tmp_path):
    monkeypatch.setenv(GPUS, "0,1")
    devices = []
    monkeypatch.setattr("lmdynamics.batch.executors.run_on_worker", lambda job, options, slot: devices.append(slot))
    with Local(1, gpu=True) as local:
        for device in ("cuda", "cuda:1"):
            (job,) = plan([notebook], [f"device={device}"], out=tmp_path / "out")
            local.submit(job).result()
    assert [slot.get(GPUS) for slot in devices] == ["0", None]
    assert all(CORES in slot for slot in devices)


def test_a_fresh_home_keeps_what_no_version_has_made(home, tmp_path):
    (home / "my_suites.toml").write_text('[mine]\nrepository = "me/.*"\n')
    (home / "suites" / "me--model").mkdir(parents=True)
    (home / "suites" / "me--model" / "suite.json").write_text('{"pinned": 1}')
    (home / "fetched" / "ewt").mkdir(parents=True)
    (home / "runs" / "old").mkdir(parents=True)
    fresh = Path(command._fresh_home(tmp_path / "out")["LMDYNAMICS_HOME"])
    result = {str(path.relative_to(fresh)) for path in fresh.rglob("*") if path.is_file() or path.is_symlink()}
    assert result == {"my_suites.toml", "suites/me--model/suite.json", "fetched"}
    assert (fresh / "fetched" / "ewt").is_dir()
    (home / "my_suites.toml").write_text('[other]\nrepository = "you/.*"\n')
    command._fresh_home(tmp_path / "out")  # a second batch in that folder has what there is now
    assert "other" in (fresh / "my_suites.toml").read_text()


def test_two_batches_in_one_folder_keep_their_records_apart(notebook, tmp_path):
    from tests.batch.made import write_item

    for name, device in (("n", "cpu"), ("n--device=cuda", "cuda")):
        write_item(tmp_path / "out", name, {"x": 1}, parameters={"device": device}, environment={"device": device})
    assert gather(tmp_path / "out")["device"].to_list() == ["cpu", "cuda"]
