"""How often untrained models are said to have learnt something: python benchmarks/false_onsets.py [RUNS]

Each run holds a tiny model with random weights at every checkpoint: the same model, or another draw each time; with a
checkpoint at step 0, or from step 500 on, as other trainers save them. Nothing is learnt, so that no structure onset,
no capabilities onset and no relation may appear, and no sentence may lead from a step on.
"""

import argparse
import tempfile
from pathlib import Path

import polars as pl
import torch
import transformers as hf

from lmdynamics.analysis.onsets import capabilities_onset, structure_onset
from lmdynamics.analysis.syntax import head_history, leads_from, pair_race
from lmdynamics.corpora.grammar import Grammar
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements.losses import PairAccuracy
from lmdynamics.measurements.syntax import UAS, HeadScores, best_heads_and_offset
from lmdynamics.measurements.trace import trace
from lmdynamics.runs.run import Run

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
KINDS = {
    "bert": hf.BertForMaskedLM,
    "gpt2": hf.GPT2LMHeadModel,
    "llama": hf.LlamaForCausalLM,
    "gpt-neox": hf.GPTNeoXForCausalLM,
}
LATE = (500, 1000, 1500, 2000, 2500)


def untrained_run(folder: Path, kind: str, first_step_zero: bool, redrawn: bool, seed: int) -> Run:
    """A folder of checkpoints of a model that was never trained; `redrawn`: other weights at each checkpoint."""
    tokenizer = Grammar().tokenizer()
    of_kind = KINDS[kind]
    for place, step in enumerate((0, *LATE) if first_step_zero else LATE):
        torch.manual_seed(1000 * seed + place * redrawn)
        model = of_kind(of_kind.config_class(vocab_size=len(tokenizer), **SIZE))
        model.save_pretrained(folder / f"checkpoint-{step}")
        tokenizer.save_pretrained(folder / f"checkpoint-{step}")
    return open_run(folder)


def claims(run: Run, sentences: int, min_count: int, pairs_per_paradigm: int, seed: int) -> list[str]:
    """What would be said to have been learnt, and when."""
    grammar = Grammar()
    trees, pairs = grammar.treebank(sentences, seed), grammar.pairs(pairs_per_paradigm, seed)
    uas = trace(run, UAS(trees, min_count, seed), progress=False)
    heads = trace(run, HeadScores(trees, min_count, seed), progress=False)
    judged = trace(run, PairAccuracy(pairs), progress=False)
    onsets = [structure_onset(uas), structure_onset(uas, control="offset", margin=0.0), capabilities_onset(judged)]
    said = [str(onset) for onset in onsets if onset.step is not None]
    history = head_history(best_heads_and_offset(heads, trees, min_count, seed)).drop_nulls("appears")
    said += [f"{row['relation']} appears at step {row['appears']:,}" for row in history.iter_rows(named=True)]
    for paradigm in [None, *judged["paradigm"].unique().sort()]:
        since = leads_from(pair_race(judged, paradigm))
        if since is not None and since > run.steps[0]:
            said.append(f"{paradigm or 'all pairs'}: the good sentence leads from step {since:,} on")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="?", default=50)
    parser.add_argument("--sentences", type=int, default=300)
    parser.add_argument("--min-count", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=100, help="of each paradigm")
    options = parser.parse_args()
    rows = []
    for number in range(options.runs):
        kind, start, redrawn = list(KINDS)[number % 4], bool(number // 4 % 2), bool(number // 8 % 2)
        with tempfile.TemporaryDirectory() as folder:
            run = untrained_run(Path(folder) / f"run-{number}", kind, start, redrawn, number)
            said = claims(run, options.sentences, options.min_count, options.pairs, number)
        rows.append((kind, start, redrawn, len(said)))
        print(f"{number}: {kind}, {'with' if start else 'without'} step 0, "
              f"{'redrawn' if redrawn else 'the same'}: {'; '.join(said) or 'no claim'}", flush=True)  # fmt: skip
    table = pl.DataFrame(rows, ["model", "step 0", "redrawn", "claims"], orient="row")
    print(table.group_by("step 0", "redrawn").agg(pl.len().alias("runs"), pl.col("claims").sum()).sort("step 0"))
    wrong = int((table["claims"] > 0).sum())
    print(f"{wrong} of {len(table)} untrained runs have a false onset")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
