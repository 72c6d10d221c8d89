"""Tokens a second of the pretraining loop against `transformers.Trainer` with `DataCollatorForLanguageModeling`.

Same model, data, batch size, optimizer and dtype, on the CPU, in turns within one process so that a busy machine falls
on both. Sentence by sentence (the built-in language); packed in blocks of 64; and packed with the thousands of word
forms of real text, where logits at predicted positions alone save most. Prints the ratio of each pair of turns
and their median; tokens are counted without padding.

    python benchmarks/training.py [--steps 150] [--rounds 5]
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
from transformers.utils import logging

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.training import loop
from lmdynamics.training.batches import Corpus, open_corpus
from lmdynamics.training.recipes import load_recipe

BLOCK = 64


class Rows(Dataset):
    def __init__(self, blocks: TokenRows):
        self.rows = [{"input_ids": row.tolist()} for row in blocks]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        return self.rows[i]


def packed(corpus: Corpus) -> Corpus:
    """The same sentences end to end, cut into blocks."""
    ids = corpus.train.ids
    return Corpus(
        corpus.tokenizer, TokenRows.from_rows(ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)), corpus.held_out
    )


def ours(recipe, corpus: Corpus, folder: Path) -> float:
    """Tokens a second of the loop, from after its first checkpoint to the last step."""
    loop.open_corpus = lambda _: corpus
    loop.pretrain(recipe, folder, device="cpu", progress=False)
    from lmdynamics.training.state import read_log

    log = read_log(folder / "log.parquet")
    warm = len(log) // 5
    return (log["tokens"][-1] - log["tokens"][warm]) / (log["seconds"][-1] - log["seconds"][warm])


class Clock(Trainer):
    """The Trainer, noting time and tokens of each step."""

    def training_step(self, model, inputs, *rest):
        self.marks.append((time.perf_counter(), int(inputs["attention_mask"].sum())))
        return super().training_step(model, inputs, *rest)


def theirs(recipe, corpus: Corpus, rows: Rows, folder: Path) -> float:
    t = recipe.training
    torch.manual_seed(0)
    model = loop.build_model(recipe, corpus)
    arguments = TrainingArguments(
        folder,
        max_steps=t.steps,
        per_device_train_batch_size=t.batch_size,
        learning_rate=t.lr,
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        adam_beta2=t.beta2,
        optim="adamw_torch_fused",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    collator = DataCollatorForLanguageModeling(corpus.tokenizer, mlm_probability=recipe.schedule(0))
    trainer = Clock(model, arguments, collator, rows, processing_class=corpus.tokenizer)
    trainer.marks = []
    trainer.train()
    marks = trainer.marks[len(trainer.marks) // 5 :]
    return sum(tokens for _, tokens in marks[:-1]) / (marks[-1][0] - marks[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    changes = {"steps": options.steps, "corpus.sentences": 64 * options.steps, "model.max_position_embeddings": BLOCK}
    changes |= {"checkpoints.per_doubling": 1, "optimizer_state": "none"}
    recipe = load_recipe("grammar-mlm", overrides=changes)
    sentences = open_corpus(recipe)
    many_words = open_corpus(load_recipe("grammar-mlm", overrides={**changes, "corpus.size": "large"}))
    cases = {
        "sentence by sentence": sentences,
        f"packed in blocks of {BLOCK}": packed(sentences),
        f"packed, a vocabulary of {len(many_words.tokenizer):,}": packed(many_words),
    }
    for what, corpus in cases.items():
        rows, ratios, pace = Rows(corpus.train), [], ([], [])
        if len(corpus.train) < 64:
            raise SystemExit("use more steps: there is not one batch of packed blocks")
        for turn in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                mine, other = ours(recipe, corpus, Path(folder)), theirs(recipe, corpus, rows, Path(folder))
            pace[0].append(mine)
            pace[1].append(other)
            ratios.append(mine / other)
            print(f"  round {turn + 1}: {mine:8,.0f} against {other:8,.0f} tokens/s, ratio {mine / other:.2f}")
        middle = [statistics.median(p) for p in pace]
        print(
            f"{what}: {middle[0]:,.0f} against {middle[1]:,.0f} tokens/s; "
            f"ratio {statistics.median(ratios):.2f} (median of {len(ratios)}; {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
