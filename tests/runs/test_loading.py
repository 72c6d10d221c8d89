"""Formats of a checkpoint's weights: one file or shards, safetensors or tensors in a .bin; its code is never run."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from lmdynamics.corpora.grammar import Grammar
from lmdynamics.hub.suites import open_run
from lmdynamics.training import layout
from lmdynamics.training.state import load_state, save_state
from tests.conftest import refuses

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
IDS = torch.arange(5, 25)[None]


def saved(folder: Path, kind: str = "BertForMaskedLM", dtype: torch.dtype = torch.float32, **options) -> Path:
    """A checkpoint at step 512 of a plain folder, with its tokenizer."""
    tokenizer, of_kind = Grammar().tokenizer(), getattr(hf, kind)
    torch.manual_seed(0)
    model = of_kind(of_kind.config_class(vocab_size=len(tokenizer), **SIZE)).to(dtype)
    model.save_pretrained(folder / "step-000512", **options)
    tokenizer.save_pretrained(folder / "step-000512")
    return folder / "step-000512"


def as_bin(checkpoint: Path) -> Path:
    """The same weights as PyTorch's own file."""
    torch.save(load_file(checkpoint / layout.WEIGHTS), checkpoint / "pytorch_model.bin")
    (checkpoint / layout.WEIGHTS).unlink()
    return checkpoint


def logits(checkpoint: Path) -> torch.Tensor:
    with torch.no_grad():
        return open_run(checkpoint.parent)[512].model()(input_ids=IDS).logits


def refusal(checkpoint: Path) -> str:
    return refuses(".", lambda: open_run(checkpoint.parent)[512].model())


def test_shards_open_as_one_file_does(tmp_path):
    unsharded, shards = saved(tmp_path / "whole"), saved(tmp_path / "shards", max_shard_size="20KB")
    parts = sorted(shards.glob("model-*.safetensors"))
    assert len(parts) > 2
    assert not (shards / layout.WEIGHTS).exists()
    assert torch.equal(logits(shards), logits(unsharded))
    content = b"".join(part.read_bytes() for part in parts)
    assert open_run(shards.parent)[512].content_hash == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("wrong", ["lost", "outside", "empty"])
def test_an_index_of_what_is_not_there_is_refused(tmp_path, wrong):
    shards = saved(tmp_path / "shards", max_shard_size="20KB")
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = sorted(set(index["weight_map"].values()))[0]
    if wrong == "lost":
        (shards / name).unlink()
    elif wrong == "outside":
        shutil.move(shards / name, shards.parent / name)
        index["weight_map"] = {key: file.replace(name, f"../{name}") for key, file in index["weight_map"].items()}
    else:
        index["weight_map"] = {}
    path.write_text(json.dumps(index))
    description = {"lost": name, "outside": f"../{name}", "empty": "no files"}[wrong]
    assert f"index.json names {description}" in refusal(shards)
    refuses("index.json names", lambda: open_run(shards.parent)[512].content_hash)


def test_a_bin_of_tensors_opens(tmp_path):
    expected = logits(saved(tmp_path / "whole"))
    checkpoint = as_bin(saved(tmp_path / "bin"))
    assert torch.equal(logits(checkpoint), expected)
    content = (checkpoint / "pytorch_model.bin").read_bytes()
    assert open_run(checkpoint.parent)[512].content_hash == hashlib.sha256(content).hexdigest()


def test_safetensors_are_preferred_to_a_bin(tmp_path):
    checkpoint = saved(tmp_path / "both")
    expected = logits(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"not read")
    assert torch.equal(logits(checkpoint), expected)


class Runs:
    """What a pickle can hide: a call, here to make a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_bin_that_would_run_code_is_refused_and_runs_nothing(tmp_path, legacy):
    checkpoint, mark = as_bin(saved(tmp_path / "bin")), tmp_path / "ran"
    content = {"bert.embeddings.word_embeddings.weight": Runs(mark)}
    torch.save(content, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert "pytorch_model.bin holds more than weights" in refusal(checkpoint)
    assert not mark.exists()


def test_a_bin_cut_short_is_refused(tmp_path):
    checkpoint = as_bin(saved(tmp_path / "bin"))
    path = checkpoint / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "pytorch_model.bin is damaged" in refusal(checkpoint)


@pytest.mark.parametrize("model_type", ["bert", "of-their-own"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(tmp_path, monkeypatch, name, model_type):
    checkpoint, mark = saved(tmp_path / "run"), tmp_path / "ran"
    (checkpoint / "own.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    settings = json.loads((checkpoint / name).read_text())
    settings["auto_map"] = dict.fromkeys(["AutoConfig", "AutoModelForMaskedLM"], "own.Own")
    settings["auto_map"]["AutoTokenizer"] = [None, "own.Own"]
    settings |= {"model_type": model_type} if name == "config.json" else {"tokenizer_class": "Own"}
    (checkpoint / name).write_text(json.dumps(settings))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    refuses(f"{name} requires code of its own .auto_map.", lambda: open_run(checkpoint.parent)[512].tokenizer)
    if name == "config.json":
        assert "requires code of its own" in refusal(checkpoint)
    assert not mark.exists()


def test_weights_of_another_shape_are_refused(tmp_path):
    checkpoint = saved(tmp_path / "run")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"intermediate_size": 24}))
    assert "is damaged or of another model" in refusal(checkpoint)


def test_a_model_without_its_head_is_refused(tmp_path):
    checkpoint = saved(tmp_path / "run", "BertModel")
    assert "names the architecture BertModel, which has no known language-model head" in refusal(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    assert "has no weights for cls.predictions.bias and 5 more of a BertForMaskedLM, which would be random" in refusal(
        checkpoint
    )


def test_a_checkpoint_for_two_objectives_opens_as_a_masked_model(tmp_path, caplog):
    checkpoint = saved(tmp_path / "run", "BertForPreTraining")
    assert open_run(checkpoint.parent).objective == "mlm"
    torch.manual_seed(0)
    pretraining_model = hf.BertForPreTraining.from_pretrained(checkpoint).eval()
    caplog.clear()
    with torch.no_grad():
        assert torch.equal(logits(checkpoint), pretraining_model(input_ids=IDS).prediction_logits)
    assert not caplog.records


def test_half_precision_is_opened_in_full(tmp_path):
    checkpoint = saved(tmp_path / "run", "GPTNeoXForCausalLM", torch.float16)
    model = open_run(checkpoint.parent)[512].model()
    stored = load_file(checkpoint / layout.WEIGHTS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.get_input_embeddings().weight, stored["gpt_neox.embed_in.weight"].float())


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path):
    checkpoint = saved(tmp_path / "run")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
    refuses("has no tokenizer", lambda: open_run(checkpoint.parent)[512].tokenizer)


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "GPTNeoXForCausalLM"])
def test_weights_saved_here_come_back_under_their_names(tmp_path, kind):
    """GPT-NeoX's head is published under a name that is not the model's own."""
    of_kind = getattr(hf, kind)
    first, second = (of_kind(of_kind.config_class(vocab_size=30, **SIZE)) for _ in range(2))
    optimizer = torch.optim.AdamW(first.parameters())
    sum(parameter.sum() for parameter in first.parameters()).backward()
    optimizer.step()
    save_state(tmp_path / "step-000001", first, optimizer, 1, with_optimizer=True)
    load_state(tmp_path / "step-000001", second, torch.optim.AdamW(second.parameters()))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


KINDS = ["BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "GPTNeoXForCausalLM"]


def rename(checkpoint: Path, change) -> None:
    """Write the checkpoint's weights again, as `change` makes them."""
    save_file(change(load_file(checkpoint / layout.WEIGHTS)), checkpoint / layout.WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrappers_prefix_is_left_out_and_reported(tmp_path, capsys, kind, prefix):
    expected = logits(saved(tmp_path / "whole", kind))
    checkpoint = saved(tmp_path / "wrapped", kind)
    rename(checkpoint, lambda weights: {prefix + name: value for name, value in weights.items()})
    assert torch.equal(logits(checkpoint), expected)
    logits(checkpoint)
    messages = capsys.readouterr().err.splitlines()
    assert [line for line in messages if "wrapped" in line] == [
        f"lmdynamics: {tmp_path / 'wrapped'}: its weights' names begin with {prefix} (a wrapper's), which is removed"
    ]


def test_a_prefix_of_some_weights_only_is_refused(tmp_path):
    checkpoint = saved(tmp_path / "run")
    first = "bert.embeddings.LayerNorm.bias"
    rename(checkpoint, lambda weights: {("module." if k == first else "x.") + k: v for k, v in weights.items()})
    assert "would be random (its file has module.bert.embeddings.LayerNorm.bias and 41 more that the model lacks)" in (
        refusal(checkpoint)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_more_layers_than_the_configuration_has_are_refused(tmp_path, kind):
    checkpoint = saved(tmp_path / "run", kind)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "n_layer": 1}))
    assert re.search(r"holds \d+ weights that its config.json does not describe", refusal(checkpoint))


@pytest.mark.parametrize("renamed", [False, True], ids=["lora beside", "base_layer"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_that_are_not_merged_are_refused(tmp_path, kind, renamed):
    def adapt(weights: dict) -> dict:
        (name, *_) = (n for n in weights if re.search(r"(query|c_attn|q_proj|query_key_value)\.weight$", n))
        stem = name.removesuffix(".weight")
        added = {f"{stem}.lora_A.default.weight": torch.zeros(4, 16)}
        base = {f"{stem}.base_layer.weight": weights.pop(name)} if renamed else {}
        return {**weights, **base, **added}

    checkpoint = saved(tmp_path / "run", kind)
    rename(checkpoint, adapt)
    assert "holds adapters that are not merged" in refusal(checkpoint)


def test_another_head_beside_the_model_changes_nothing(tmp_path):
    expected = logits(saved(tmp_path / "whole"))
    checkpoint = saved(tmp_path / "run")
    rename(checkpoint, lambda weights: {**weights, "score.weight": torch.zeros(3, 16)})
    assert torch.equal(logits(checkpoint), expected)
