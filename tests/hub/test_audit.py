"""The audit finds what is planted, and nothing in a clean suite; no weights are downloaded."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmdynamics as lmd
from lmdynamics.errors import UserError
from lmdynamics.hub.audit import audit
from lmdynamics.hub.checkpoints import Pin, as_markdown
from lmdynamics.hub.client import RemoteFile
from lmdynamics.hub.faults import is_outside, listing_faults
from lmdynamics.runs.faults import Fault
from tests.conftest import refused
from tests.hub import suites
from tests.hub.server import declared
from tests.test_project import ROOT

PYTHIA = "hf://EleutherAI/pythia-14m"


def faults(address=PYTHIA, **options) -> list[Fault]:
    """What is wrong, over all trajectories; with `weights=True`, what tensors tell as well."""
    return [fault for each in audit(address, progress=False, **options) for fault in each.faults]


def found_faults(address=PYTHIA, **options) -> list[tuple[str, int | None]]:
    return [(fault.kind, fault.step) for fault in faults(address, **options)]


def test_a_clean_suite_of_154_is_passed_in_silence(hub, home, call):
    suites.history(hub)
    began = time.perf_counter()
    (clean,) = audit(PYTHIA, progress=False)
    took = time.perf_counter() - began
    assert len(clean.steps) == 154
    assert clean.faults == ()
    assert clean.bytes == 154 * len(suites.safe(suites.trajectory(0)))
    assert hub.downloads == []
    print(f"audit of 154 revisions: {took:.1f} s")  # a figure to quote; 5 s are aimed at
    status, out, _ = call("audit", PYTHIA)
    assert status == 0
    assert "examined the listings of 154 of 154 checkpoints (210 MB of weights): no fault found" in out


def test_an_audit_needs_no_torch(hub, home):
    """Which takes longer to import than 154 listings to compare."""
    suites.history(hub, steps=(0, 1, 2))
    code = f"import sys; from lmdynamics.hub.audit import report; report({PYTHIA!r}, None, False, False)"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert result.stdout.split()[-1] == "False"


def test_identical_steps(hub, home, call):
    suites.history(hub, same={(2000, 0): 1000, (3000, 0): 1000})
    assert found_faults() == [("identical", 2000)]
    status, out, _ = call("audit", PYTHIA)
    assert status == 1
    assert "steps 1,000, 2,000 and 3,000 have the same weights, to the byte" in " ".join(out.split())
    status, out, _ = call("audit", PYTHIA, "--json")
    (fault,) = json.loads(out)["audits"][0]["faults"]
    assert (status, fault["kind"], fault["step"]) == (1, "identical", 2000)


def test_a_missing_step(hub, home):
    repository = suites.history(hub)
    del repository.branches["step64"]
    assert found_faults() == [("missing step", 64)]
    assert found_faults(f"{PYTHIA}?steps=0,1,2") == []  # where only some are asked for, others are not missed
    (audited,) = audit(f"{PYTHIA}?steps=0,1,2", progress=False)
    assert (len(audited.steps), audited.listed) == (3, 153)


@pytest.mark.parametrize(
    ("left_out", "instead", "fault"),
    [
        ((), {"model.safetensors": declared(9_000_000, "ab" * 32)}, ("size", 512)),
        (("model.safetensors",), {}, ("missing weights", 512)),
        (("tokenizer.json",), {}, ("missing tokenizer", 512)),
    ],
)
def test_files_unlike_those_of_other_checkpoints(hub, home, left_out, instead, fault):
    repository = suites.history(hub)
    files = {name: file for name, file in repository.branches["step512"].files.items() if name not in left_out}
    repository.commit({**files, **instead}, branch="step512")
    assert found_faults() == [fault]


def test_a_moved_branch(hub, home):
    repository = suites.history(hub)
    lmd.open_run(f"{PYTHIA}?steps=0,512")
    assert found_faults() == []
    files = dict(repository.branches["step512"].files)
    files["README.md"] = b"new"
    repository.commit(files, branch="step512")
    assert found_faults() == [("moved", 512)]
    lmd.open_run(f"{PYTHIA}?steps=0,512&refresh=yes")
    assert found_faults() == []


def test_many_of_a_kind_are_one_line(hub, home, call):
    suites.pythia(hub)
    status, out, _ = call("audit", PYTHIA)
    assert status == 1
    assert "148 steps" in out
    assert "4, 8, 16, 32, 64, 128, … 142,000" in out
    assert len(out.splitlines()) == 6


def test_names_that_lead_out(hub, home):
    evil = {"path": "../../evil.py", "type": "file", "size": 3, "oid": "0" * 40}
    suites.history(hub, steps=(0, 1, 2))
    hub.edit(lambda entries: [*entries, evil], match="/tree/", times=2)  # of main, and of the step
    assert [kind for kind, _ in found_faults(f"{PYTHIA}?steps=0")] == ["path"]
    assert [is_outside(path) for path in ("a/b.txt", "a/../b", "/a", "a\\b", "c:x", "")] == [False, *[True] * 5]


def test_every_trajectory_is_looked_at(hub, home):
    suites.olmo2(hub)
    audits = audit("hf://allenai/OLMo-2-0425-1B", progress=False)
    assert [each.name.partition("#")[2] for each in audits] == ["stage1", "stage2-ingredient1", "stage2-ingredient2"]
    assert [fault for each in audits for fault in each.faults] == []
    with pytest.raises(UserError, match=r"no trajectory #stage3; it has #stage1, #stage2-ingredient1, #stage2-ingr"):
        audit("hf://allenai/OLMo-2-0425-1B#stage3", progress=False)


def test_sizes_count_as_equal_within_a_thousandth():
    pins = [
        Pin(step, "a/b", f"step{step}", "", files=(RemoteFile("model.safetensors", size, f"{step}", ""),))
        for step, size in enumerate([10_000_000, 10_000_000, 10_004_000, 10_050_000])
    ]
    assert [(fault.kind, fault.step) for fault in listing_faults(pins) if fault.kind == "size"] == [("size", 3)]


# What tensors tell


def downloaded(hub) -> int:
    """Bytes of files, not of listings."""
    return sum(request.sent for request in hub.requests if request.origin == "cdn" or "/resolve/" in request.target)


FEW = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 11_000, 1000))


def test_a_clean_suite_of_154_is_looked_into_in_silence_and_hardly_downloaded(hub, home, call):
    suites.history(hub)
    status, out, _ = call("audit", PYTHIA, "--weights")
    assert status == 0, out
    size = 154 * len(suites.safe(suites.trajectory(0)))
    assert "and 26 of 40 tensors of 154 checkpoints (" in out
    assert "no fault found" in out
    assert "the branch main" not in out  # which is the last step, as it should be
    assert 0 < downloaded(hub) < size / 8
    assert {request.token for request in hub.requests if request.origin == "cdn"} == {None}
    print(f"154 revisions, {size / 1e6:.0f} MB: {downloaded(hub) / 1e6:.1f} MB downloaded")  # a figure to quote


def test_a_clean_suite_of_three_shards_is_silent(hub, home):
    suites.history(hub, "me/sharded", steps=range(1000, 21_000, 1000), shards=3)
    assert found_faults("hf://me/sharded", weights=True) == []


def test_one_shard_of_another_checkpoint_is_named_from_listings(hub, home):
    suites.history(hub, "me/sharded", steps=range(1000, 6000, 1000), shards=3, same={(3000, 0): 5000})
    (fault,) = faults("hf://me/sharded")
    assert (fault.kind, fault.step, fault.said) == (
        "shard",
        3000,
        "model-00001-of-00003.safetensors is the same file at steps 3,000 and 5,000, "
        "while others of their shards differ",
    )
    assert downloaded(hub) == 0


def planted(name: str, value, at=lambda step: step == 4000):
    """The weights of some steps with one tensor that is another."""
    return lambda step, state: {**state, name: value(step, state[name])} if at(step) else state


def copied(name: str):
    """One tensor of step 3,000 is that of step 5,000."""
    return planted(name, lambda step, tensor: suites.trajectory(5000)[name], lambda step: step == 3000)


def other_start(step, state):
    return suites.trajectory(0, seed=5) if step == 0 else state


PLANTED = {
    "an embedding of another step": (
        copied("embed_in.weight"),
        ("tensor", 3000),
        "embed_in.weight is the same at steps 3,000 and 5,000, while other tensors differ",
    ),
    "a matrix of another step": (
        copied("layers.3.dense.weight"),
        ("tensor", 3000),
        "layers.3.dense.weight is the same at steps 3,000 and 5,000, while other tensors differ",
    ),
    "a tensor of another model": (
        planted("embed_in.weight", lambda step, _: suites.trajectory(step, seed=9)["embed_in.weight"]),
        ("tensor", 4000),
        "embed_in.weight jumps at step 4,000 (cosine -0.0",
    ),
    "a tensor of another size": (
        planted("embed_out.weight", lambda _, tensor: tensor * 3),
        ("tensor", 4000),
        "embed_out.weight jumps at step 4,000 (cosine 1.0",
    ),
    "another initialisation": (
        other_start,
        ("initialisation", 0),
        "step 1 does not continue step 0, which is another initialisation or model (cosine",
    ),
    "a checkpoint of another model": (
        lambda step, state: suites.trajectory(step, 7) if step == 5000 else state,
        ("far", 5000),
        "its weights differ from its neighbours' as much as another model's would",
    ),
    "a trajectory that becomes another": (
        lambda step, state: suites.trajectory(step, 7) if step >= 5000 else state,
        ("far", 5000),
        "from step 5,000 on it is another trajectory than up to step 4,000",
    ),
    "first steps that half precision explains": (
        lambda step, state: suites.trajectory(0) if step < 3 else state,
        ("equal", 1),
        "steps 0, 1 and 2 have the same values in every tensor; so early, a small learning rate",
    ),
}


@pytest.mark.parametrize(("change", "fault", "words"), PLANTED.values(), ids=PLANTED.keys())
def test_what_is_planted_in_tensors_is_found_there_alone(hub, home, change, fault, words):
    suites.history(hub, steps=FEW, change=change)
    assert found_faults(f"{PYTHIA}?steps=0:10000") == []  # listings do not show it
    (only,) = faults(f"{PYTHIA}?steps=0:10000", weights=True)
    assert (only.kind, only.step) == fault
    assert only.said.startswith(words)


def test_steps_far_apart_are_not_judged(hub, home):
    """Nothing says how much must change from the first step to the last."""
    suites.history(hub, change=other_start)
    assert found_faults(f"{PYTHIA}?steps=0,143000", weights=True) == []


def test_half_of_a_history_equal_to_the_final_model_is_reported_as_that(hub, home):
    suites.history(hub, same={(step, 0): 143_000 for step in range(1000, 72_000, 1000)})
    (fault,) = faults()
    assert (fault.kind, fault.step) == ("identical", 2000)
    assert fault.said == (
        "steps 1,000, 2,000, 3,000, 4,000, … 143,000 (72 in all) have the same weights, to the byte: those of the last "
        "step, 143,000 and of the main branch"
    )


def test_trajectories_in_one_repository_are_a_fault_and_audited_apart(hub, home, call):
    for size, steps in (("big", (1000, 2000)), ("small", (1000, 2000, 3000, 4000))):
        suites.history(hub, "me/mix", steps=steps, branch=f"{size}-step-{{}}")
    audits = audit("hf://me/mix", progress=False)
    assert [(each.name, each.steps[-1]) for each in audits] == [("me/mix#big", 2000), ("me/mix#small", 4000)]
    assert found_faults("hf://me/mix") == [("trajectories", None)]
    status, out, _ = call("audit", "hf://me/mix")
    assert status == 1
    assert "#big (2 checkpoints), #small (4 checkpoints)" in " ".join(out.split())
    assert found_faults("hf://me/mix#small") == []


def test_a_main_branch_that_is_not_the_last_step_is_reported_as_another(hub, home, call):
    repository = suites.history(hub, "me/mine", steps=(1000, 2000, 3000))
    repository.move("main", repository.branches["step2000"])
    status, out, _ = call("audit", "hf://me/mine")
    assert status == 0
    assert "the branch main has the weights of step 2,000" in out
    repository.commit({"model.safetensors": declared(2_000_000, "ab" * 32)}, branch="main")
    assert "the branch main has the weights of no listed step" in call("audit", "hf://me/mine")[1]


def test_a_step_that_an_even_spacing_leaves_out(hub, home):
    suites.history(hub, "me/mine", steps=[step for step in range(0, 11_000, 1000) if step != 6000])
    assert found_faults("hf://me/mine") == [("missing step", 6000)]


def test_a_server_that_sends_whole_files_only_is_named(hub, home):
    suites.history(hub, steps=(0, 1))
    hub.change(lambda answer: replace(answer, headers={}), "^GET (?!.*/resolve/).*safetensors", times=None)
    reported = faults(f"{PYTHIA}?steps=0,1", weights=True)
    assert {fault.kind for fault in reported} == {"unreadable"}
    assert "the server sends whole files only; fetch them, and audit them here" in reported[0].said


def test_a_header_that_is_none_is_a_fault_and_no_crash(hub, home):
    suites.history(hub, steps=FEW)
    hub.alter(lambda content: b"\xff" * len(content), "^GET (?!.*/resolve/).*safetensors", times=1)
    (fault,) = faults(f"{PYTHIA}?steps=0:10000", weights=True)
    assert fault.kind == "unreadable"
    assert "model.safetensors is not a safetensors file" in fault.said


def test_what_is_here_is_read_whole_and_nothing_downloaded(hub, home, call):
    suites.pythia(hub)
    run = lmd.open_run(f"{PYTHIA}?steps=0,1,512,143000").fetch()
    before = downloaded(hub)
    (clean,) = audit(f"{PYTHIA}?steps=0,1,512,143000", progress=False, weights=True)
    assert (clean.faults, clean.opened, clean.read) == ((), (0, 1, 512, 143_000), 0)
    assert downloaded(hub) == before
    path = (run[143_000].folder / "model.safetensors").resolve()
    broken = load_file(path)
    broken["gpt_neox.embed_in.weight"][0, 0] = torch.nan
    save_file(broken, path)
    assert found_faults(f"{PYTHIA}?steps=0,1,512,143000", weights=True) == [("not finite", 143_000)]


def test_bins_are_looked_into_where_they_are_here(hub, home, call):
    suites.multiberts(hub)
    address = "hf://google/multiberts-seed_0-step_*"
    lmd.open_run(f"{address}?steps=0,20000").fetch()
    status, out, _ = call("audit", f"{address}?steps=0,20000,40000", "--weights")
    assert status == 0
    assert "tensors of 2 checkpoints (0 B downloaded)" in out
    assert "weights not read: 1 checkpoints; .bin files must be fetched first" in out


# What is said of it later


def test_what_is_wrong_is_reported_once_when_a_suite_is_opened_and_nothing_is_asked_for_it(hub, home, capsys, call):
    suites.history(hub, "me/mine", steps=FEW, change=other_start, same={(2000, 0): 1000})
    address = "hf://me/mine"
    lmd.open_run(address)
    line = "lmdynamics: me/mine: steps 1,000 and 2,000 have the same weights, to the byte"
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert len(err.splitlines()) == 1
    lmd.open_run(address)
    assert capsys.readouterr().err == ""
    audit(address, progress=False, weights=True)
    requests = len(hub.requests)
    run = lmd.open_run(address)
    assert "step 1 does not continue step 0" in capsys.readouterr().err
    assert {"identical", "initialisation"} <= {fault.kind for fault in run.known_faults}
    assert any("does not continue step 0" in fault for fault in run.describe()["faults"])
    assert len(hub.requests) == requests
    audit(address, progress=False)  # which looks at listings only, and keeps what was found in weights
    assert "initialisation" in {fault.kind for fault in lmd.open_run(address).known_faults}
    lmd.open_run(f"{address}?steps=4000:9000")
    assert capsys.readouterr().err == ""  # of these, nothing is known


def folder_of(parent, change):
    for step in (1000, 2000, 3000, 5000):
        folder = parent / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        save_file(change(step, suites.trajectory(step)), folder / "model.safetensors")
    return parent


def test_a_folder_is_audited_as_well(tmp_path, home, call, capsys):
    folder = folder_of(tmp_path / "mine", change=copied("embed_in.weight"))
    assert call("audit", folder)[0] == 0
    status, out, _ = call("audit", folder, "--weights")
    assert status == 1
    assert "embed_in.weight is the same at steps 3,000 and 5,000" in " ".join(out.split())
    (folder / "checkpoint-2000" / "model.safetensors").write_bytes(
        (folder / "checkpoint-1000" / "model.safetensors").read_bytes()
    )
    assert {("identical", 2000), ("tensor", 3000)} <= set(found_faults(str(folder), weights=True))
    lmd.open_run(folder)
    assert "mine: steps 1,000 and 2,000 have the same weights, to the byte" in capsys.readouterr().err
    with pytest.raises(UserError, match="has no checkpoints"):
        audit(str(tmp_path / "nothing"))


def test_a_run_of_our_own_is_silent(tiny_run, call):
    status, out, _ = call("audit", "tiny", "--weights")
    assert status == 0
    assert "6 of 6 checkpoints" in out


def test_a_trace_says_which_steps_are_equal(tiny_run, capsys):
    from lmdynamics.measurements.losses import HeldOutLoss

    shutil.rmtree(tiny_run[8].folder)
    shutil.copytree(tiny_run[4].folder, tiny_run.folder / "checkpoints" / "step-000008")
    run = lmd.open_run("tiny")
    lmd.trace(run, HeldOutLoss(run.held_out()), progress=False)
    assert capsys.readouterr().err == "lmdynamics: tiny: steps 4 and 8 have the same weights, to the byte\n"


def test_the_page_of_suites_is_that_of_the_table(call):
    assert (ROOT / "data" / "SUITES.md").read_text() == as_markdown()
    status, out, _ = call("suites")
    assert status == 0
    assert "hf://google/multiberts-seed_0-step_*" in out


@pytest.mark.parametrize(
    ("address", "words"),
    [("hf://nobody/nothing", "has no such repository"), ("hf://x", "is not the address of a suite")],
)
def test_what_cannot_be_audited_is_refused_in_one_line(hub, home, call, address, words):
    assert refused(call("audit", address), words)
