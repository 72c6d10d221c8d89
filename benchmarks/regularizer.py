"""What a step with the syntactic penalty costs: at most twice one with the same attention and no penalty.

The grammar-mlm recipe's model and batches on the CPU: forward pass, backward pass, clipping, update. Three ways in
turns within one process, so that a busy machine falls on all: `eager` attention with the penalty (which must see it),
`eager` without, and `sdpa`, by which steps without penalty are trained. Prints ratios of turns, median and spread.

    python benchmarks/regularizer.py [--steps 40] [--rounds 9]
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch.nn.utils import clip_grad_norm_

from lmdynamics.training.batches import Batch, Batches, open_corpus
from lmdynamics.training.loop import SummedLoss, build_model, build_optimizer
from lmdynamics.training.masking import Masker
from lmdynamics.training.objective import logits_at, set_attention
from lmdynamics.training.recipes import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    recipe = load_recipe("grammar-mlm", overrides={"corpus.sentences": 64 * options.steps, "stages": 1.0})
    corpus = open_corpus(recipe)
    masker, r = Masker.for_tokenizer(corpus.tokenizer), recipe.regularizer
    for form in ("max", "uniform"):
        batches = Batches(
            corpus.train, recipe.training.batch_size, 0, corpus.tokenizer.pad_token_id, masker, recipe.schedule,
            options.steps, trees=corpus.trees, regularizer=r,
        )  # fmt: skip
        model = build_model(recipe, corpus).train()
        optimizer, summed_loss = build_optimizer(recipe, model), SummedLoss(model, form)

        def plain(batch: Batch, model=model) -> torch.Tensor:
            logits = logits_at(model, batch.ids, batch.attention_mask, batch.selected)
            return torch.nn.functional.cross_entropy(logits, batch.targets[batch.selected])

        def penalised(batch: Batch, summed_loss=summed_loss) -> torch.Tensor:
            loss, penalty = summed_loss(batch)
            return loss / batch.selected.sum() + penalty / batch.links.arcs

        def seconds(loss, attention: str, model=model, optimizer=optimizer, batches=batches) -> float:
            """The batches, links and all, are made within the time, as they are in training."""
            set_attention(model, attention)
            source = batches if loss is penalised else replace(batches, trees=None)
            began = time.perf_counter()
            for step in range(options.steps):
                loss(source[step]).backward()
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            return time.perf_counter() - began

        rounds = []
        for turn in range(options.rounds + 1):
            ways = ((penalised, "eager"), (plain, "eager"), (plain, "sdpa"))
            times = [seconds(loss, attention) / options.steps for loss, attention in ways]
            if not turn:
                continue  # warm-up
            rounds.append(times)
            on, off, fast = (1e3 * t for t in times)
            print(
                f"  round {turn}: {on:6.1f} ms with penalty, {off:6.1f} eager, {fast:6.1f} sdpa; ratio {on / off:.2f}"
            )
        for name, other in (("eager", 1), ("sdpa", 2)):
            ratios = [times[0] / times[other] for times in rounds]
            print(
                f"penalty ({form}) against {name} without: ratio {statistics.median(ratios):.2f} "
                f"(median of {len(ratios)}; {min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
