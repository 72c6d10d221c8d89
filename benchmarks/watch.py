"""What watching costs: the same training with and without `Watch`, in turn, and the share that `Watch` itself reports.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/watch.py [PAIRS] [STEPS]

A masked model of the built-in language learns with transformers' Trainer; UAS of 500 trees and the held-out loss of 500
sentences are measured. `max_share` is 5 %.
"""

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers as hf

import lmdynamics as lmd
from lmdynamics.measurements.losses import HeldOutLoss
from lmdynamics.measurements.syntax import UAS

GRAMMAR = lmd.Grammar("small")
SIZE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}


def train(steps: int, folder: Path, watch: lmd.Watch | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Seconds of a training, and its last weights."""
    tokenizer, rows = GRAMMAR.tokenizer(), [{"input_ids": row.tolist()} for row in GRAMMAR.blocks(20_000, seed=0)]
    hf.set_seed(0)
    model = hf.BertForMaskedLM(hf.BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZE))
    arguments = hf.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=64, learning_rate=1e-3, use_cpu=True, report_to=[],
        save_strategy="no", logging_steps=50, disable_tqdm=True,
    )  # fmt: skip
    collator = hf.DataCollatorForLanguageModeling(tokenizer)
    callbacks = [] if watch is None else [watch]
    trainer = hf.Trainer(
        model, arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer, callbacks=callbacks
    )
    trainer.remove_callback(hf.PrinterCallback)
    begin = time.perf_counter()
    trainer.train()
    return time.perf_counter() - begin, model.state_dict()


def main(pairs: int = 2, steps: int = 1_500) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    measurements = [UAS(GRAMMAR.treebank(500, seed=1), 50), HeldOutLoss(GRAMMAR.blocks(500, seed=2))]
    ratios = []
    for pair in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            watch = lmd.Watch(measurements, Path(folder) / "run", per_doubling=8)
            order = (None, watch) if pair % 2 else (watch, None)
            timed = {bool(which): train(steps, Path(folder) / "trainer", which) for which in order}
        (with_watch, watched), (without, alone) = timed[True], timed[False]
        same = all(torch.equal(watched[name], alone[name]) for name in alone)
        ratios.append(with_watch / without)
        print(
            f"{without:.0f} s without, {with_watch:.0f} s with: ratio {ratios[-1]:.3f}; it says {watch.share:.1%}; "
            f"{len(watch.saved)} checkpoints, {len(watch.left_out)} left out; weights {'equal' if same else 'DIFFER'}",
            flush=True,
        )
    spread = f", {min(ratios):.3f} to {max(ratios):.3f}" if len(ratios) > 1 else " (one pair: no spread)"
    print(f"median ratio {statistics.median(ratios):.3f}{spread}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
