"""The suites in miniature are laid out as published, and transformers opens what is in them."""

import json
import runpy
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from pickletools import genops

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load

from tests.hub import suites

MADE = {
    "pythia": lambda hub: (suites.pythia(hub), "step512"),
    "polypythias": lambda hub: (suites.pythia(hub, steps=[0, 1], seed=1), "step1"),
    "multiberts": lambda hub: (suites.multiberts(hub)[1], "main"),
    "olmo2": lambda hub: (suites.olmo2(hub), "stage2-ingredient1-step1000-tokens3B"),
    "olmo": lambda hub: (suites.olmo(hub), "step1000-tokens4B"),
    "crfm": lambda hub: (suites.crfm(hub), "checkpoint-1000"),
    "sas": lambda hub: (suites.sas(hub)[1], "main"),
    "zsl": lambda hub: (suites.zsl(hub), "OLMo-14M-step512"),
}
NAMES = {
    "pythia": "EleutherAI/pythia-14m",
    "polypythias": "EleutherAI/pythia-14m-seed1",
    "multiberts": "google/multiberts-seed_0-step_20k",
    "olmo2": "allenai/OLMo-2-0425-1B",
    "olmo": "allenai/OLMo-1B-hf",
    "crfm": "stanford-crfm/alias-gpt2-small-x21",
    "sas": "angie-chen55/bert-base-seed0-ckpt-1000",
    "zsl": "mirandrom/zsl-checkpoints",
}


def snapshot(hub, name: str, revision: str, folder: Path) -> Path:
    told = {"cache_dir": folder, "endpoint": hub.url, "token": False}
    return Path(snapshot_download(name, revision=revision, ignore_patterns=["*.h5", "optim*", "train*"], **told))


@pytest.mark.parametrize("suite", MADE)
def test_a_checkpoint_opens_in_transformers(hub, tmp_path, suite):
    import transformers

    repository, revision = MADE[suite](hub)
    assert repository.name == NAMES[suite]
    folder = snapshot(hub, repository.name, revision, tmp_path)
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, told = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["mismatched_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(list(suites.SENTENCES[:1]), return_tensors="pt")
    assert tokens["input_ids"].max() < len(tokenizer) <= model.config.vocab_size
    with torch.no_grad():
        assert model(**tokens)[0].isfinite().all()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 400_000


def test_steps_differ_and_neighbours_are_near(hub):
    repository = suites.pythia(hub, steps=[0, 1, 2, 512, 142_000, 143_000])
    commits = [repository.branches[f"step{step}"] for step in (0, 1, 2, 512, 142_000, 143_000)]
    assert len({commit.files["model.safetensors"].sha256 for commit in commits}) == len(commits)
    first, *later = [load(commit.files["model.safetensors"].content) for commit in commits]
    moved = [sum((one[key].float() - first[key].float()).norm() for key in first) for one in later]
    assert moved == sorted(moved)
    assert repository.branches["main"].files == commits[-1].files


def test_seeds_differ_from_the_first_step(hub):
    one, other = (suites.pythia(hub, steps=[0], seed=seed).branches["step0"] for seed in (1, 2))
    assert one.files["model.safetensors"].sha256 != other.files["model.safetensors"].sha256


def test_a_suite_is_the_same_every_time(hub):
    made = [suites.multiberts(hub, seed=3, thousands=[20])[0].branches["main"].files for _ in range(2)]
    assert made[0] == made[1]


def test_shards_are_the_whole_model(hub):
    files = suites.olmo2(hub).branches["main"].files
    index = json.loads(files["model.safetensors.index.json"].content)
    shards = {name: load(file.content) for name, file in files.items() if name.endswith(".safetensors")}
    assert len(shards) == 2
    assert index["weight_map"] == {key: name for name, state in shards.items() for key in state}


def test_the_whole_of_a_pythia_can_be_declared(hub):
    suites.clean_suite(hub)
    api = HfApi(endpoint=hub.url, token=False)
    branches = [ref.name for ref in api.list_repo_refs("EleutherAI/pythia-14m").branches]
    assert len(branches) == 154 + 1
    hashes = {
        branch: {
            entry.path: entry.lfs.sha256
            for entry in api.list_repo_tree("EleutherAI/pythia-14m", revision=branch)
            if entry.lfs
        }
        for branch in branches
    }
    assert len({told["model.safetensors"] for told in hashes.values()}) == 154
    assert hashes["main"] == hashes["step143000"]
    assert hub.downloads == []


def test_a_declared_suite_can_have_a_step_twice(hub):
    repository = suites.clean_suite(hub, revisions=5, same={"step8": "step4"})
    at = {name: commit.files["model.safetensors"].sha256 for name, commit in repository.branches.items()}
    assert at["step8"] == at["step4"] != at["step2"]


def test_the_pickle_would_make_a_file_and_transformers_does_not_let_it(hub, tmp_path):
    from transformers import GPTNeoXForCausalLM

    marker = tmp_path / "marker"
    repository = suites.unpickling_writes(hub, marker)
    folder = snapshot(hub, repository.name, "main", tmp_path)
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        orders = [(opcode.name, argument) for opcode, argument, _ in genops(archive.read(name))]
    assert {("BINUNICODE", "touch"), ("BINUNICODE", marker.name)} <= set(orders)
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        GPTNeoXForCausalLM.from_pretrained(folder)
    assert not marker.exists()


def test_the_code_would_make_a_file_and_transformers_asks_first(hub, tmp_path, monkeypatch):
    from transformers import AutoConfig

    marker = tmp_path / "marker"
    repository = suites.importing_writes(hub, marker)
    folder = snapshot(hub, repository.name, "main", tmp_path)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(ValueError, match="custom code"):
        AutoConfig.from_pretrained(folder)
    assert not marker.exists()
    runpy.run_path(str(folder / "modeling_own.py"))
    assert marker.exists()
