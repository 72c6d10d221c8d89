"""Runs on disk: opened anywhere, checked when opened, refused in one line when something is wrong."""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest
import torch
import transformers as hf

from lmdynamics import files
from lmdynamics.corpora.grammar import Grammar
from lmdynamics.errors import UserError
from lmdynamics.hub.suites import open_run, run_names
from lmdynamics.runs.trained import run_name, train
from lmdynamics.training import layout
from lmdynamics.training.recipes import load_recipe
from tests.conftest import TINY, refuses


def test_a_copied_run_opens_elsewhere(tiny_run, tmp_path, monkeypatch):
    shutil.copytree(tiny_run.folder, tmp_path / "elsewhere")
    shutil.rmtree(tiny_run.folder)
    copy = open_run(tmp_path / "elsewhere")
    assert copy.steps == [0, 1, 2, 4, 8, 12]
    assert copy.recipe.training.steps == 12
    model = copy[12].model(attention="eager")
    ids = torch.tensor([copy[12].tokenizer(["the", "that"], is_split_into_words=True)["input_ids"]])
    assert len(model(ids, output_attentions=True).attentions) == 2
    assert len(copy.held_out()) == 40
    assert len(copy.treebank("grammar", 7)) == 7
    assert len(copy.pairs("grammar", 5)) == 15
    refuses("the nearest are 2, 4, 8", lambda: copy[5])


def test_missing_unknown_and_empty_runs(tiny_run, home):
    refuses(r"there is no run 'tinny'; did you mean 'tiny'\?", open_run, "tinny")
    (home / "runs" / "empty").mkdir()
    refuses("has no checkpoints", open_run, "empty")
    assert run_names() == ["tiny"]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", "cut", "its manifest says .*: the file was cut short"),
        ("model.safetensors", "lost", "is missing"),
        ("config.json", "lost", "config.json"),
    ],
)
def test_a_checkpoint_of_which_something_is_lost_is_refused_and_the_others_open(tiny_run, name, damage, message):
    path = tiny_run[8].folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-100])
    refuses(message, tiny_run[8].model)
    assert tiny_run[12].model() is not None


def test_a_changed_byte_is_found_by_verify(tiny_run):
    path = tiny_run[8].folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert layout.check_hashes(tiny_run[4].folder) == 3
    refuses("its hash is not that in the manifest", layout.check_hashes, tiny_run[8].folder)


def test_truncation_without_a_manifest_is_refused_too(tiny_run, tmp_path):
    shutil.copytree(tiny_run[12].folder, tmp_path / "run" / "checkpoint-12")
    (tmp_path / "run" / "checkpoint-12" / "manifest.json").unlink()
    path = tmp_path / "run" / "checkpoint-12" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuses("is damaged", lambda: open_run(tmp_path / "run")[12].model())


def test_a_damaged_run_json_or_log(tiny_run):
    (tiny_run.folder / "log.parquet").write_bytes(b"PAR1 not really")
    refuses("log.parquet is damaged", lambda: tiny_run.log)
    (tiny_run.folder / "run.json").write_text("{")
    refuses("run.json is damaged", lambda: open_run("tiny").recipe)


TOKENIZER = Grammar().tokenizer()


def bert() -> hf.BertForMaskedLM:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return hf.BertForMaskedLM(hf.BertConfig(vocab_size=len(TOKENIZER), **size))


def test_a_plain_folder_of_checkpoints_trained_elsewhere(tmp_path):
    for folder in ("checkpoint-500", "step1000", "step_2000"):
        bert().save_pretrained(tmp_path / folder)
        TOKENIZER.save_pretrained(tmp_path / folder)
        (tmp_path / folder / "unrelated.txt").write_text(folder)
    run = open_run(tmp_path)
    assert (run.steps, run.objective, run.recipe) == ([500, 1000, 2000], "mlm", None)
    assert run.log.is_empty()
    assert run[500].content_hash != run[1000].content_hash
    assert run[500].tokenizer.mask_token == "[MASK]"
    refuses("has no optimizer state at step 500", lambda: run[500].optimizer_state())
    refuses("has no held-out rows", run.held_out)
    for built_in in (run.treebank, run.pairs):
        refuses("set treebank to ewt .*, and pairs, if the page has it, to zorro", built_in, "grammar")
    assert repr(run) == f"Run({tmp_path.name!r}, in {str(tmp_path.parent)!r})"
    assert repr(run[1000]) == f"Checkpoint({tmp_path.name!r}, step 1,000)"


def test_a_trainer_folder_opens(tmp_path):
    """What the Hugging Face Trainer leaves behind."""
    rows = [{"input_ids": row.tolist()} for row in Grammar().blocks(32, 0)]
    options = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "dataloader_pin_memory": False}
    options |= {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    collator = hf.DataCollatorForLanguageModeling(TOKENIZER)
    hf.Trainer(
        bert(), hf.TrainingArguments(tmp_path, **options), collator, rows, processing_class=TOKENIZER
    ).train()  # fmt: skip
    run = open_run(tmp_path)
    assert run.steps == [2, 4]
    assert run[4].model().config.hidden_size == 16
    assert len(run[4].tokenizer) == len(TOKENIZER)


def test_models_are_opened_by_several_threads_at_once(tiny_run):
    steps = tiny_run.steps * 6
    with ThreadPoolExecutor(6) as threads:
        models = list(threads.map(lambda step: tiny_run[step].model(), steps))
    for step, model in zip(steps, models, strict=True):
        expected = tiny_run[step].model().state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_names_distinguish_runs():
    assert run_name(load_recipe("grammar-mlm")) == "grammar-mlm"
    assert run_name(load_recipe("grammar-mlm", "smoke", 2), ["lr=0.1"]) == "grammar-mlm-smoke-seed2-lr=0.1"
    many = [f"model.setting{i}=0.{i}" for i in range(99)]
    long = run_name(load_recipe("grammar-mlm"), many)
    assert long.startswith("grammar-mlm-model.setting0=0.0-model.setting1=0.1-")
    assert len(long) <= 200
    assert long != run_name(load_recipe("grammar-mlm"), [*many[:-1], "model.setting98=0.97"])


@pytest.mark.parametrize("write", [files.atomic_folder, files.atomic_file])
def test_interrupted_writes_leave_nothing(tmp_path, write):
    def half() -> None:
        with write(tmp_path / "step-000001") as temporary:
            (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list(tmp_path.iterdir()) == []


def at_once(work, times: int) -> list:
    """`work(i)` by eight threads; what was raised."""
    with ThreadPoolExecutor(8) as threads:
        return [error for future in [threads.submit(work, i) for i in range(times)] if (error := future.exception())]


def test_threads_write_one_file_at_once(tmp_path):
    target = tmp_path / "a.json"

    def write(number: int) -> None:
        files.write_json(target, {"number": number, "padding": "x" * 2000})
        assert len(files.read_json(target, "a file")["padding"]) == 2000

    assert at_once(write, 400) == []
    assert os.listdir(tmp_path) == ["a.json"]


def test_threads_fill_one_folder_at_once(tmp_path):
    target = tmp_path / "step-000001"

    def fill(number: int) -> None:
        with files.atomic_folder(target) as temporary:
            for name in ("one", "two"):
                (temporary / name).write_text(str(number))

    assert at_once(fill, 60) == []
    assert os.listdir(tmp_path) == ["step-000001"]
    assert (target / "one").read_text() == (target / "two").read_text()


def test_a_file_that_cannot_reach_the_disk_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refuses("could not save .*: no space left on device", files.write_json, path, {})
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_locked_while_it_is_held(tmp_path):
    folder = tmp_path / "run"
    assert not files.is_locked(folder / layout.LOCK)
    assert not folder.exists()
    with files.locked(folder / layout.LOCK):
        assert files.is_locked(folder / layout.LOCK)
    assert not files.is_locked(folder / layout.LOCK)


def test_a_full_disk_is_one_line_and_loses_nothing(home):
    """On a file system of 3 MB of its own."""
    small = home / "runs"
    small.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        many = {**TINY, "steps": 256, "per_doubling": 16}
        words = "free some space and run the same command"
        refuses(words, train, "grammar-mlm", overrides=many, name="full", progress=False)
        run = open_run("full")
        assert all(layout.check_hashes(checkpoint.folder) == 3 for checkpoint in run)
        assert len(run) > 3
        assert not list(run.folder.rglob(".*"))
        assert isinstance(run.log, pl.DataFrame)
        subprocess.run(["mount", "-o", "remount,size=60m", str(small)], check=True)
        assert train("grammar-mlm", overrides=many, name="full", progress=False).steps[-1] == 256
    finally:
        subprocess.run(["umount", str(small)], check=True)


REFUSED = {**TINY, "stages": 1.0, "trees": "/nowhere.conllu"}


def test_a_refused_training_leaves_nothing_and_the_corrected_one_trains(home):
    refuses("nowhere", train, "grammar-mlm", overrides=REFUSED, name="mine", progress=False)
    assert os.listdir(home / "runs") == []
    assert train("grammar-mlm", overrides=TINY, name="mine", progress=False).steps[-1] == 12


def test_what_lay_in_the_folder_of_a_refused_training_stays(home):
    (home / "runs" / "mine").mkdir(parents=True)
    (home / "runs" / "mine" / "notes.txt").write_text("mine")
    refuses("nowhere", train, "grammar-mlm", overrides=REFUSED, name="mine", progress=False)
    assert os.listdir(home / "runs" / "mine") == ["notes.txt"]


@pytest.mark.parametrize("name", ["tokenizer", "log.parquet", "held_out", "checkpoints"])
def test_what_a_training_would_write_over_is_refused_and_stays(home, name):
    (home / "runs" / "mine").mkdir(parents=True)
    (home / "runs" / "mine" / name).write_text("mine")
    with pytest.raises(UserError, match=f"has no run.json, but {name}, which training would overwrite"):
        train("grammar-mlm", overrides=TINY, name="mine", progress=False)
    assert (home / "runs" / "mine" / name).read_text() == "mine"


def test_a_training_that_was_killed_before_its_first_checkpoint_is_no_run(home):
    recipe = load_recipe("grammar-mlm", overrides={**TINY, "lr": 0.5})
    files.write_json(home / "runs" / "mine" / "run.json", {"format": 1, "recipe": recipe.to_dict(), "parent": None})
    run = train("grammar-mlm", overrides=TINY, name="mine", progress=False)
    assert run.recipe.training.lr == 2e-3
    with pytest.raises(UserError, match="was trained with training.lr=0.002"):  # this one is
        train("grammar-mlm", overrides={**TINY, "lr": 0.5}, name="mine", progress=False)


def test_run_json_says_how_it_was_made(tiny_run):
    facts = json.loads((tiny_run.folder / "run.json").read_text())
    assert facts["recipe"]["training"]["lr"] == 2e-3
    assert facts["versions"]["torch"]
    assert facts["parent"] is None
