"""Tokens a second of `Masker` against `transformers.DataCollatorForLanguageModeling`: at least three times.

The same rows, as a data set gives them (dicts of lists), in the same batches, in turns within one process so that a
busy machine falls on both. Sentence by sentence (the built-in language, padded), and packed (blocks of 64). Prints the
ratio of each pair of turns and their median; tokens are counted without padding.

    python benchmarks/masking.py [--batches 100] [--rounds 9]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import count

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling
from transformers.utils import logging

from lmdynamics.corpora.grammar import Grammar
from lmdynamics.training.batches import mix, pad
from lmdynamics.training.masking import Masker, Schedule, parse_schedule

BATCH, BLOCK = 64, 64


def masking(tokenizer, schedule: Schedule, steps: int) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """What a training does with each of its batches, in the shape that the Trainer's collator gives."""
    masker, numbers = Masker.for_tokenizer(tokenizer), count()

    def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
        step = next(numbers)
        ids, padded = pad([np.asarray(row["input_ids"]) for row in rows], tokenizer.pad_token_id)
        generator = torch.Generator().manual_seed(mix(0, step))
        corrupted, selected = masker(ids, schedule(step / steps), generator, 1.0, padded)
        mask = torch.ones_like(ids) if padded is None else (~padded).long()
        return {"input_ids": corrupted, "attention_mask": mask, "labels": ids.masked_fill(~selected, -100)}

    return collate


def tokens_per_second(collator, batches: list[list[dict]]) -> float:
    began, tokens = time.perf_counter(), 0
    for rows in batches:
        tokens += int(collator([dict(row) for row in rows])["attention_mask"].sum())
    return tokens / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    logging.set_verbosity_error()
    grammar, wanted = Grammar(), options.batches * BATCH
    tokenizer, schedule = grammar.tokenizer(), parse_schedule("linear-0.3-0.15")
    sentences = grammar.blocks(wanted * 8, 0)
    packed = sentences.ids[: wanted * BLOCK].reshape(-1, BLOCK)
    kinds = {"sentence by sentence": sentences, f"packed in blocks of {BLOCK}": packed}
    for what, blocks in kinds.items():
        rows = [{"input_ids": blocks[i].tolist()} for i in range(wanted)]
        batches = [rows[i : i + BATCH] for i in range(0, wanted, BATCH)]
        pace, ratios = ([], []), []
        for turn in range(options.rounds + 1):
            ours = masking(tokenizer, schedule, options.batches)
            theirs = DataCollatorForLanguageModeling(tokenizer, mlm_probability=schedule(0.5))
            mine, other = tokens_per_second(ours, batches), tokens_per_second(theirs, batches)
            if not turn:
                continue  # warm-up
            pace[0].append(mine)
            pace[1].append(other)
            ratios.append(mine / other)
            print(f"  round {turn}: {mine:10,.0f} against {other:10,.0f} tokens/s, ratio {mine / other:.2f}")
        middle = [statistics.median(p) for p in pace]
        print(
            f"{what}: {middle[0]:,.0f} against {middle[1]:,.0f} tokens/s; "
            f"ratio {statistics.median(ratios):.2f} (median of {len(ratios)}; {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
