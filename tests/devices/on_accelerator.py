"""Everything that computes, on a logical accelerator and on the CPU: the same numbers, and no tensor out of place.

Not collected with the other tests: `test_accelerator` runs it in a process of its own.
"""

import json
import os
import shutil
from pathlib import Path

from lmdynamics.training import layout
from tests.devices.accelerator import accelerator, computed, register

register()

import polars as pl  # noqa: E402 -- all below is imported after the device is known
import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lmdynamics import devices, records  # noqa: E402
from lmdynamics.corpora.labelled import LabelledSentences  # noqa: E402
from lmdynamics.errors import UserError  # noqa: E402
from lmdynamics.measurements import optimizer_step, syntax  # noqa: E402
from lmdynamics.measurements.complexity import FisherTrace, IntrinsicDimension, WeightNorm  # noqa: E402
from lmdynamics.measurements.dissent import Dissent  # noqa: E402
from lmdynamics.measurements.gradients import GroupOpposition, Opposition  # noqa: E402
from lmdynamics.measurements.guesses import Guesses  # noqa: E402
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy, Predictions, TokenLosses  # noqa: E402
from lmdynamics.measurements.optimizer_step import Coefficients, OneStep  # noqa: E402
from lmdynamics.measurements.precursors import AttentionDistance, Repetition, StateCosine  # noqa: E402
from lmdynamics.measurements.probes import FineTuning  # noqa: E402
from lmdynamics.measurements.syntax import UAS, HeadOffsets, HeadScores, WordAttention  # noqa: E402
from lmdynamics.measurements.trace import trace  # noqa: E402
from lmdynamics.runs.trained import train  # noqa: E402
from lmdynamics.training.objective import Links  # noqa: E402
from tests.conftest import TINY  # noqa: E402
from tests.measurements.support import every_measurement  # noqa: E402

SIX = {**TINY, "training.steps": 6, "checkpoints.per_doubling": 1}
OBJECTIVES = {
    "mlm": {},
    "clm": {"objective": "clm", "model.model_type": "llama"},
    "rts": {"objective": "rts"},
    "regularizer": {"regularizer.stages": [[0, 0.5]]},
    "regularizer, trees aside": {"regularizer.stages": [[0, 0.5]], "regularizer.trees": "trees.conllu"},
}
MOST = 1e-4  # relative; other sums of float32, in another order


def keep(label: str, difference: float, functions: set[str]) -> None:
    """Write the largest difference into the report."""
    if path := os.environ.get("LARGEST_DIFFERENCES"):
        line = {"what": label, "difference": difference, "functions": sorted(functions)}
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


def largest(first: pl.DataFrame, second: pl.DataFrame) -> float:
    """The largest difference of two frames' numbers, relative to the largest of the column; all else must be equal."""
    assert first.schema == second.schema
    largest_difference = 0.0
    for a, b in zip(first, second, strict=True):
        if a.name == "identity_error":  # what rounding leaves of 0
            assert max(a.max() or 0, b.max() or 0) < 1e-5
            continue
        if not a.dtype.is_float():
            assert a.equals(b), a.name
            continue
        assert a.is_null().equals(b.is_null()), a.name
        largest_difference = max(
            largest_difference, float((a - b).abs().max() or 0) / max(float(a.abs().max() or 0), 1e-12)
        )
    return largest_difference


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of each objective, trained on the CPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("LMDYNAMICS_HOME", str(tmp_path_factory.mktemp("trained")))
        return {
            name: train("grammar-mlm", overrides={**TINY, **OBJECTIVES[name]}, name=name, device="cpu", progress=False)
            for name in ("mlm", "clm", "rts")
        }


def measurements(run) -> list:
    blocks, bank = run.held_out(), run.treebank("grammar", 60)
    texts = [" ".join(sentence.words) for sentence in bank]
    labels = LabelledSentences(
        "halves", pl.DataFrame({"text": texts, "label": [i % 2 for i in range(60)], "group": range(60)})
    )
    groups = tuple("odd" if token % 2 else "even" for token in range(len(run[0].tokenizer)))
    learn = {"trials": 1, "learning_rates": (1e-3,), "steps": 2}
    gradients = {"batches": 1, "batch_size": 4, "rows": 2}
    return [
        HeadScores(bank, min_count=4), UAS(bank, min_count=4), HeadOffsets(bank),
        WordAttention(next(iter(bank)).words),
        PairAccuracy(run.pairs("grammar", 10)), Guesses((next(iter(bank)).words,)),
        HeldOutLoss(blocks), TokenLosses(blocks), Dissent(blocks),
        IntrinsicDimension(bank), IntrinsicDimension(blocks), WeightNorm(), FisherTrace(blocks, examples=8),
        Repetition(blocks), StateCosine(blocks), AttentionDistance(blocks, run[0]),
        Opposition(blocks, examples=8), GroupOpposition(blocks, groups), FineTuning(labels, **learn, frozen=False),
        FineTuning(labels, **learn, frozen=True), OneStep(blocks, batches=1, batch_size=4, held_out=4),
        Coefficients(blocks, **gradients), Coefficients(blocks, **gradients, precision="float32"),
        Coefficients(blocks, **gradients, precision="float32", share=0.5),
    ]  # fmt: skip


def write_conllu(bank, path: Path) -> None:
    columns = "{}\t{}\t_\t_\t_\t_\t{}\t{}\t_\t_"
    texts = []
    for sentence in bank:
        rows = enumerate(zip(sentence.words, sentence.heads, sentence.relations, strict=True), 1)
        texts.append("\n".join(columns.format(i, word, head + 1, name) for i, (word, head, name) in rows))
    path.write_text("\n\n".join(texts) + "\n\n")


@pytest.mark.parametrize("float64", [True, False], ids=["float64", "no float64"])
@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_every_measurement_agrees_with_the_cpu(trained, objective, float64):
    run = trained[objective]
    assert {type(each) for each in measurements(run)} == every_measurement()
    for measurement in measurements(run):
        computed.clear()
        syntax._CACHE.clear()  # which measurements share
        with accelerator(float64) as device:
            if isinstance(measurement, Coefficients) and measurement.precision == "float64" and not float64:
                with pytest.raises(UserError, match="accel has no float64; set precision to float32"):
                    measurement(run[8], device)
                continue
            on_accelerator = measurement(run[8], device)
        difference = largest(measurement(run[8]), on_accelerator)
        keep(f"{type(measurement).__name__}, {objective}", difference, set(computed))
        assert computed, f"{type(measurement).__name__} computed nothing there"
        assert difference < MOST, type(measurement).__name__


def test_token_losses_of_random_token_substitution_agree(trained):
    run = trained["rts"]
    measurement = TokenLosses(run.held_out())
    with accelerator() as device:
        on_accelerator = measurement(run[8], device)
    assert largest(measurement(run[8]), on_accelerator) < MOST


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_agrees_with_the_cpu(objective, trained, tmp_path, monkeypatch):
    overrides = {**SIX, **OBJECTIVES[objective]}
    monkeypatch.chdir(tmp_path)
    write_conllu(trained["mlm"].treebank("grammar", 40), Path("trees.conllu"))
    on_cpu = train("grammar-mlm", overrides=overrides, name="here", device="cpu", progress=False)
    computed.clear()
    with accelerator(float64=False) as device:
        on_accelerator = train("grammar-mlm", overrides=overrides, name="there", device=device, progress=False)
    assert (on_accelerator.trained_on, on_accelerator.facts["device"]) == ("accel", "a logical accelerator")
    assert {"aten._fused_adamw_.default", "aten.embedding_dense_backward.default"} <= computed
    columns = ["step", "loss", "lr", "masking_rate", "tokens", "penalty"]
    assert on_accelerator.log["penalty"].is_null().all() == ("regularizer" not in objective)
    difference = largest(on_cpu.log.select(columns), on_accelerator.log.select(columns))
    for step in (0, 1, 6):
        for name in (layout.WEIGHTS, layout.TRAINING_STATE):
            a, b = (load_file(run[step].folder / name) for run in (on_cpu, on_accelerator))
            assert a.keys() == b.keys()
            for key in a:
                # Adam divides by a root of nearly nothing: where a gradient is mere rounding, its step is any
                size = float(a[key].abs().max())
                difference = max(difference, float((a[key] - b[key]).abs().max()) / max(size, 1e-3))
    keep(f"training, {objective}", difference, set(computed))
    assert difference < 1e-3


def test_a_branch_repeats_its_parent_and_a_resumed_run_the_whole():
    with accelerator() as device:
        uninterrupted = train("grammar-mlm", overrides=SIX, name="whole", device=device, progress=False)
        branch = uninterrupted.branch(2, name="again", progress=False)
        stopped = train("grammar-mlm", overrides=SIX, name="stopped", device=device, progress=False)
        for step in (4, 6):
            for at in stopped.folder.glob(f"*/step-{step:06d}"):
                shutil.rmtree(at)
        resumed = train("grammar-mlm", overrides=SIX, name="stopped", progress=False)
    assert (branch.trained_on, branch.parent["device_kind"], resumed.trained_on) == ("accel", "accel", "accel")
    expected = load_file(uninterrupted[6].folder / layout.WEIGHTS)
    for run in (branch, resumed):
        weights = load_file(run[6].folder / layout.WEIGHTS)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_branch_on_another_device_has_a_name_of_its_own():
    parent = train("grammar-mlm", overrides=SIX, name="parent", device="cpu", progress=False)
    on_cpu = parent.branch(2, progress=False)
    with accelerator() as device:
        on_it = parent.branch(2, device=device, progress=False)
    assert (on_cpu.name, on_cpu.trained_on) == ("parent@2", "cpu")
    assert (on_it.name, on_it.trained_on, on_it.parent["device_kind"]) == ("parent@2-accel", "accel", "cpu")


def test_a_run_of_one_device_is_not_opened_for_another():
    on_cpu = train("grammar-mlm", overrides=SIX, device="cpu", progress=False)
    with pytest.raises(UserError, match="device 'accel' is not on this machine"):
        train("grammar-mlm", overrides=SIX, device="accel", progress=False)
    with accelerator() as device:
        with pytest.raises(UserError, match="was trained on cpu, now accel is requested; give this run another --name"):
            train("grammar-mlm", overrides=SIX, name=on_cpu.name, device=device, progress=False)
        on_accelerator = train("grammar-mlm", overrides=SIX, device=device, progress=False)
    assert (on_accelerator.name, on_accelerator.trained_on) == (f"{on_cpu.name}-accel", "accel")
    assert train("grammar-mlm", overrides=SIX, progress=False).name == on_cpu.name  # any device will do
    assert (
        train("grammar-mlm", overrides=SIX, device="accel", progress=False).name == on_accelerator.name
    )  # is complete


def test_a_trace_of_one_device_is_not_returned_for_another(trained):
    run = trained["mlm"]
    measurement = TokenLosses(run.held_out())
    on_cpu = trace(run, measurement, steps=[8], progress=False)
    with pytest.raises(UserError, match="device 'accel' is not on this machine"):
        trace(run, measurement, steps=[8], device="accel", progress=False)
    with accelerator() as device:
        computed.clear()
        on_accelerator = trace(run, measurement, steps=[8], device=device, progress=False)
        assert "aten.embedding.default" in computed
        assert largest(on_cpu, on_accelerator) < MOST
        computed.clear()
        assert trace(run, measurement, steps=[8], device=f"{device}:0", progress=False).equals(on_accelerator)
        assert not computed  # kept, and of the same kind
    assert trace(run, measurement, steps=[8], progress=False).equals(on_cpu)


def test_records_name_what_has_computed(trained, tmp_path):
    with accelerator() as device:
        records.start_records(tmp_path, device)
        trace(trained["mlm"], HeldOutLoss(trained["mlm"].held_out()), steps=[8], device=device, progress=False)
        records.record("x", 1)
    environment = json.loads((tmp_path / "records.json").read_text())["environment"]
    assert (environment["device"], environment["device_name"], environment["dtype"]) == (
        "accel",
        "a logical accelerator",
        "float32",
    )


def test_devices_are_not_mixed():
    with accelerator() as device:
        on_it, on_cpu = torch.ones(3, device=device), torch.ones(3)
        table = torch.ones(5, 3, device=device)
        mixed = [
            lambda: on_it + on_cpu,
            lambda: on_cpu * on_it,
            lambda: torch.cat([on_it, on_cpu]),
            lambda: table[torch.tensor([0, 1])],
            lambda: F.embedding(torch.tensor([0, 1]), table),
            lambda: table @ on_cpu,
            lambda: on_it.add_(on_cpu),
            lambda: torch.where(on_cpu > 0, on_it, on_it),
        ]
        for each in mixed:
            with pytest.raises(RuntimeError, match="expected all tensors on one device, found accel and cpu"):
                each()
        assert (on_it + torch.tensor(1.0)).tolist() == [2, 2, 2]  # a single number, as on a GPU
        assert (on_it.cpu() + on_cpu).tolist() == [2, 2, 2]


def test_a_planted_mix_up_in_a_measurement_is_caught(trained, monkeypatch):
    run, original = trained["mlm"], Predictions.to

    def gold_left_behind(batch, device):
        moved = original(batch, device)
        return Predictions(moved.ids, moved.attention_mask, moved.selected, batch.gold)

    measurement = HeldOutLoss(run.held_out())
    monkeypatch.setattr(Predictions, "to", gold_left_behind)
    assert measurement(run[8])["loss"][0] > 0  # on a CPU nobody would notice
    with accelerator() as device, pytest.raises(RuntimeError, match="expected all tensors on one device"):
        measurement(run[8], device)


def test_a_planted_mix_up_in_the_optimizer_is_caught(trained, monkeypatch):
    """Its step counts on the CPU, where they were put on every machine without CUDA."""
    original = optimizer_step.load_state

    def counts_left_behind(folder, model, optimizer):
        original(folder, model, optimizer)
        for state in optimizer.state.values():
            state["step"] = state["step"].cpu()

    measurement = OneStep(trained["mlm"].held_out(), batches=1, batch_size=4, held_out=4)
    monkeypatch.setattr(optimizer_step, "load_state", counts_left_behind)
    assert len(measurement(trained["mlm"][8]))
    with accelerator() as device, pytest.raises(RuntimeError, match="_fused_adamw_.*expected all tensors on one"):
        measurement(trained["mlm"][8], device)


def test_a_planted_mix_up_in_training_is_caught(monkeypatch):
    """The syntactic arcs of a batch stay on the CPU."""
    monkeypatch.setattr(Links, "to", lambda links, device: links)
    overrides = {**SIX, **OBJECTIVES["regularizer"]}
    train("grammar-mlm", overrides=overrides, name="here", device="cpu", progress=False)
    with accelerator() as device, pytest.raises(RuntimeError, match="expected all tensors on one device"):
        train("grammar-mlm", overrides=overrides, name="there", device=device, progress=False)


def test_it_is_there_inside_the_block_only():
    assert devices.available_devices() == ["cpu"]
    with accelerator() as device:
        assert devices.available_devices() == ["cpu", "accel:0"]
        assert devices.default_device() == device
        with pytest.raises(UserError, match="device 'accel:3' is not on this machine: .* finds cpu, accel:0"):
            devices.need_device("accel:3")
