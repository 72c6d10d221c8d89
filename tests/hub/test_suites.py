"""The suites in miniature are laid out as published, and transformers opens what is in them."""

import json
import runpy
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from pickletools import genops

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load

from tests.hub import suites

MADE = {
    "EleutherAI/pythia-14m": ("step512", lambda hub: suites.pythia(hub)),
    "google/multiberts-seed_0-step_20k": ("main", lambda hub: suites.multiberts(hub)[1]),
    "allenai/OLMo-2-0425-1B": ("stage2-ingredient1-step1000-tokens3B", lambda hub: suites.olmo2(hub)),
    "stanford-crfm/alias-gpt2-small-x21": ("checkpoint-1000", lambda hub: suites.crfm(hub)),
    "angie-chen55/bert-base-seed0-ckpt-1000": ("main", lambda hub: suites.sas(hub)[1]),
}


def snapshot(hub, name: str, revision: str, folder: Path) -> Path:
    options = {"cache_dir": folder, "endpoint": hub.url, "token": False}
    return Path(snapshot_download(name, revision=revision, ignore_patterns=["*.h5", "train*"], **options))


@pytest.mark.parametrize("name", MADE)
def test_a_checkpoint_opens_in_transformers(hub, tmp_path, name):
    import transformers

    revision, publish = MADE[name]
    assert publish(hub).name == name
    folder = snapshot(hub, name, revision, tmp_path)
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, loading_info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not loading_info["missing_keys"]
    assert not loading_info["mismatched_keys"]
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
