"""The audit finds what is planted, and nothing in a clean suite; no weights are downloaded."""

import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmdynamics as lmd
from lmdynamics.errors import UserError
from lmdynamics.runs.audit import audit, faults_of, leads_out, weights_audit
from lmdynamics.runs.catalogue import as_markdown
from lmdynamics.runs.hub import RemoteFile
from lmdynamics.runs.pins import Pin
from tests.hub import suites
from tests.hub.server import declared
from tests.test_project import ROOT

PYTHIA = "hf://EleutherAI/pythia-14m"


def found(address=PYTHIA) -> list[tuple[str, int | None]]:
    return [(fault.kind, fault.step) for each in audit(address, progress=False) for fault in each.faults]


def test_a_clean_suite_of_154_is_passed_in_silence(hub, home, call):
    suites.clean_suite(hub)
    began = time.perf_counter()
    (clean,) = audit(PYTHIA, progress=False)
    took = time.perf_counter() - began
    assert len(clean.steps) == 154
    assert clean.faults == ()
    assert clean.bytes == 154 * 28_143_880
    assert hub.downloads == []
    print(f"audit of 154 revisions: {took:.1f} s")  # a figure to quote; 5 s are aimed at
    status, out, _ = call("audit", PYTHIA)
    assert status == 0
    assert "looked at the listings of 154 of 154 checkpoints, 4.33 GB of weights: no fault found" in out


def test_an_audit_needs_no_torch(hub, home):
    """Which takes longer to import than 154 listings to compare."""
    suites.clean_suite(hub, revisions=3)
    code = f"import sys; from lmdynamics.runs.audit import report; report({PYTHIA!r}, None, False, False)"
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert told.stdout.split()[-1] == "False"


def test_identical_steps(hub, home, call):
    suites.clean_suite(hub, same={"step2000": "step1000", "step3000": "step1000"})
    assert found() == [("identical", 2000)]
    status, out, _ = call("audit", PYTHIA)
    assert status == 1
    assert "steps 1,000, 2,000, 3,000 have the same weights, to the byte" in " ".join(out.split())
    status, out, _ = call("audit", PYTHIA, "--json")
    (fault,) = json.loads(out)["audits"][0]["faults"]
    assert (status, fault["kind"], fault["step"]) == (1, "identical", 2000)


def test_a_missing_step(hub, home):
    repository = suites.clean_suite(hub)
    del repository.branches["step64"]
    assert found() == [("missing step", 64)]
    assert found(f"{PYTHIA}?steps=0,1,2") == []  # where only some are asked for, others are not missed
    (some,) = audit(f"{PYTHIA}?steps=0,1,2", progress=False)
    assert (len(some.steps), some.listed) == (3, 153)


def test_a_file_of_another_size(hub, home):
    repository = suites.clean_suite(hub)
    files = dict(repository.branches["step512"].files)
    files["model.safetensors"] = declared(9_000_000, "ab" * 32)
    repository.commit(files, branch="step512")
    assert found() == [("size", 512)]


def test_a_moved_branch(hub, home):
    repository = suites.clean_suite(hub)
    lmd.open_run(f"{PYTHIA}?steps=0,512")
    assert found() == []
    files = dict(repository.branches["step512"].files)
    files["README.md"] = b"new"
    repository.commit(files, branch="step512")
    assert found() == [("moved", 512)]
    lmd.open_run(f"{PYTHIA}?steps=0,512&refresh=yes")
    assert found() == []


def test_many_of_a_kind_are_one_line(hub, home, call):
    suites.pythia(hub)
    status, out, _ = call("audit", PYTHIA)
    assert status == 1
    assert "148 steps" in out
    assert "4, 8, 16, 32, 64, 128, … 142,000" in out
    assert len(out.splitlines()) == 6


def test_missing_weights_and_tokenizers(hub, home):
    repository = suites.clean_suite(hub)
    files = dict(repository.branches["step4"].files)
    weightless = {name: file for name, file in files.items() if name not in ("model.safetensors", "pytorch_model.bin")}
    repository.commit(weightless, branch="step4")
    repository.commit({name: file for name, file in files.items() if name != "tokenizer.json"}, branch="step8")
    assert sorted(found()) == [("missing tokenizer", 8), ("missing weights", 4)]


def test_names_that_lead_out(hub, home):
    evil = {"path": "../../evil.py", "type": "file", "size": 3, "oid": "0" * 40}
    suites.clean_suite(hub, revisions=3)
    hub.edit(lambda entries: [*entries, evil], match="/tree/", times=1)
    assert [kind for kind, _ in found(f"{PYTHIA}?steps=0")] == ["path"]
    assert [leads_out(path) for path in ("a/b.txt", "a/../b", "/a", "a\\b", "c:x", "")] == [False, *[True] * 5]


def test_every_trajectory_is_looked_at(hub, home):
    suites.olmo2(hub)
    audits = audit("hf://allenai/OLMo-2-0425-1B", progress=False)
    assert [each.name.partition("#")[2] for each in audits] == ["stage1", "stage2-ingredient1", "stage2-ingredient2"]
    assert [fault for each in audits for fault in each.faults] == []
    with pytest.raises(UserError, match=r"no trajectory #stage3; it has #stage1, #stage2-ingredient1, #stage2-ingr"):
        audit("hf://allenai/OLMo-2-0425-1B#stage3", progress=False)
    suites.pythia(hub)
    with pytest.raises(UserError, match="no trajectory #x; it has one without a name"):
        audit(f"{PYTHIA}#x", progress=False)


def test_sizes_count_as_equal_within_a_thousandth():
    pins = [
        Pin(step, "a/b", f"step{step}", "", files=(RemoteFile("model.safetensors", size, f"{step}", ""),))
        for step, size in enumerate([10_000_000, 10_000_000, 10_004_000, 10_050_000])
    ]
    assert [(fault.kind, fault.step) for fault in faults_of(pins) if fault.kind == "size"] == [("size", 3)]


def test_what_is_here_is_looked_into(hub, home, call):
    suites.pythia(hub)
    run = lmd.open_run(f"{PYTHIA}?steps=0,1,512,143000").fetch()
    clean = weights_audit(run, progress=False)
    assert (clean.faults, len(clean.steps), clean.listed) == ((), 4, 4)
    status, out, _ = call("audit", f"{PYTHIA}?steps=0,1,2,512,1000,143000", "--weights")
    assert status == 0
    assert "looked into the weights of 4 of 6 checkpoints" in out
    assert "not on this machine: 2 of 6" in out
    paths = {step: (run[step].folder / "model.safetensors").resolve() for step in run.steps}
    equal, broken = load_file(paths[0]), load_file(paths[143_000])
    save_file(equal, paths[1])
    broken["gpt_neox.embed_in.weight"][0, 0] = torch.nan
    save_file(broken, paths[143_000])
    torch.manual_seed(0)
    save_file({name: torch.randn_like(tensor) for name, tensor in equal.items()}, paths[512])
    assert [(fault.kind, fault.step) for fault in weights_audit(run, progress=False).faults] == [
        ("equal", 1),
        ("far", 512),
        ("not finite", 143_000),
    ]


def test_the_page_of_suites_is_that_of_the_table(call):
    assert (ROOT / "data" / "SUITES.md").read_text() == as_markdown()
    status, out, _ = call("suites")
    assert status == 0
    assert "hf://google/multiberts-seed_0-step_*" in out


@pytest.mark.parametrize("words", [("hf://nobody/nothing",), ("hf://x",)])
def test_what_cannot_be_audited_is_refused_in_one_line(hub, home, call, words):
    status, out, err = call("audit", *words)
    assert status == 2
    assert out == ""
    assert err.startswith("lmdynamics: ")
    assert len(err.splitlines()) == 1
