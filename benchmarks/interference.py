"""First-order interference against the method as published: T backward passes, each forming one token's gradient.

The published way (Mircea et al. 2025, arXiv 2506.05447): for each of a batch's T predicted tokens, one backward pass
through the batch, the whole gradient g_i, p_i = g_i u; then C_g, C_ug, C_uG, D, M and |ΔL| from the running sums.
Ours, on the same model and batch: D, M and |ΔL| from one forward-mode pass (at least 50 times faster), C_g exactly (at
least 2) and from a sample of tokens (within 2 %, at least 10). In turns within one process, so that a busy machine
falls on all; peak memory, over that of the loaded model, each in a process of its own. Then cost against size.

    python benchmarks/interference.py [--rounds 3] [--share 0.3] [--draws 50] [--threads 1]
"""

import argparse
import multiprocessing
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lmdynamics.corpora.grammar import Grammar
from lmdynamics.measurements.losses import Predictions
from lmdynamics.measurements.optimizer_step import coefficients
from lmdynamics.measurements.per_token_gradients import Tape, directional_derivative

BLOCK = 64


def case(width: int = 128, layers: int = 4, rows: int = 8, seed: int = 0) -> tuple[Tape, dict[str, torch.Tensor]]:
    """A random Llama-style model on the large built-in language, `rows` of 64 tokens, and a random update."""
    grammar = Grammar("large")
    config = LlamaConfig(
        vocab_size=len(grammar.forms), hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=3 * width, max_position_embeddings=BLOCK, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.from_numpy(np.stack(list(grammar.blocks(rows * 8, seed).packed(BLOCK).take(range(rows))))).long()
    selected = torch.ones_like(ids, dtype=torch.bool)
    selected[:, -1] = False
    update = {name: 1e-3 * torch.randn_like(p) for name, p in model.named_parameters()}
    return Tape(model, Predictions(ids, None, selected, ids.roll(-1, 1)[selected])), update


def as_published(tape: Tape, update: dict[str, torch.Tensor], tokens: int = 0) -> dict[str, float]:
    """One backward pass a token; all of them, or the first `tokens`."""
    parameters, u = list(tape.model.parameters()), list(update.values())
    net = [torch.zeros_like(p) for p in parameters]
    size = [torch.zeros_like(p) for p in parameters]
    changes = []
    fresh = Tape(tape.model, tape.batch)
    for loss in fresh.losses[: tokens or None]:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        change = 0.0
        for g, along, total, absolute in zip(gradients, u, net, size, strict=True):
            p = g * along
            change += float(p.sum())
            total += p
            absolute += p.abs()
        changes.append(change)
    by_token, by_parameter = np.abs(changes).sum(), sum(float(total.abs().sum()) for total in net)
    whole = sum(float(absolute.sum()) for absolute in size)
    return {
        "C_g": by_parameter / whole,
        "C_ug": by_token / whole,
        "C_uG": abs(sum(changes)) / by_parameter,
        "interference": 1 - abs(sum(changes)) / by_token,
    }


def forward_mode(tape: Tape, update: dict[str, torch.Tensor]) -> dict[str, float]:
    """D, M and |ΔL| at first order: one pass."""
    change = directional_derivative(tape.model, update, tape.batch).double()
    magnitude, mean_change = float(change.abs().mean()), float(change.mean())
    return {"interference": 1 - abs(mean_change) / magnitude, "magnitude": magnitude, "mean_change": mean_change}


def ours(tape: Tape, update: dict[str, torch.Tensor], share: float = 1.0, seed: int = 0) -> dict[str, float]:
    fresh = Tape(tape.model, tape.batch)
    return coefficients(fresh, update, share, seed).row(0, named=True)


def clock(act) -> tuple[float, dict[str, float]]:
    began = time.perf_counter()
    found = act()
    return time.perf_counter() - began, found


def memory(method: str, share: float, threads: int) -> float:
    """MB that a method takes at its peak, over what the process had when model and batch were there."""
    torch.set_num_threads(threads)
    tape, update = case()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _peak()
    {
        "as published": lambda: as_published(tape, update, 4),
        "forward mode": lambda: forward_mode(tape, update),
        "exact": lambda: ours(tape, update),
        "sampled": lambda: ours(tape, update, share),
    }[method]()
    return _peak() - before


def _peak() -> float:
    """The largest this process has been in memory, MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def compare(options: argparse.Namespace) -> None:
    tape, update = case()
    parameters = sum(p.numel() for p in tape.model.parameters())
    print(f"{parameters:,} parameters, d = 128, 4 layers; {len(tape.losses)} predicted tokens in 8 rows of {BLOCK}")
    methods = {
        "as published": lambda: as_published(tape, update),
        "forward mode": lambda: forward_mode(tape, update),
        "exact": lambda: ours(tape, update),
        "sampled": lambda: ours(tape, update, options.share),
    }
    for name in ("forward mode", "exact", "sampled"):
        methods[name]()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    found: dict[str, dict[str, float]] = {}
    for turn in range(options.rounds):
        for name, act in methods.items():
            took, found[name] = clock(act)
            seconds[name].append(took)
        print(f"  round {turn + 1}: " + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items()))
    for name, least in (("forward mode", 50), ("exact", 2), ("sampled", 10)):
        ratios = [a / b for a, b in zip(seconds["as published"], seconds[name], strict=True)]
        print(
            f"{name}: {statistics.median(ratios):.1f} times as fast (wanted: {least}; "
            f"{min(ratios):.1f} to {max(ratios):.1f})"
        )
    truth = found["as published"]
    for name in ("C_g", "C_ug", "C_uG", "interference"):
        print(f"{name}: as published {truth[name]:.6f}, exact off by {found['exact'][name] / truth[name] - 1:+.1e}")
    off, z = [], []
    for seed in range(options.draws):
        row = ours(tape, update, options.share, seed)
        off.append(row["C_g"] / truth["C_g"] - 1)
        z.append(abs(row["C_g"] - truth["C_g"]) / row["C_g_stderr"])
    print(
        f"C_g from {options.share:.0%} of the tokens, {options.draws} draws: off by "
        f"{np.sqrt(np.mean(np.square(off))):.2%} (root mean square), {np.max(np.abs(off)):.2%} at most; within 2 % in "
        f"{np.mean(np.abs(off) < 0.02):.0%}; within 1.96 standard errors in {np.mean(np.array(z) < 1.96):.0%}"
    )
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as apart:
        for name in methods:
            print(f"peak memory, {name}: {apart.submit(memory, name, options.share, options.threads).result():.0f} MB")


def scaling(options: argparse.Namespace) -> None:
    """Seconds against parameters and tokens; the published way timed on 8 tokens and scaled to all."""
    rows, heads = [], ("parameters", "tokens", "as published", "forward mode", "exact", "sampled")
    print("".join(f"{head:>16}" for head in heads))
    for width, layers in ((32, 4), (64, 4), (128, 4), (256, 4)):
        for batch in (4, 8, 16):
            tape, update = case(width, layers, batch)
            n, parameters = len(tape.losses), sum(p.numel() for p in tape.model.parameters())
            forward_mode(tape, update)
            times = (
                clock(lambda t=tape, u=update: as_published(t, u, 8))[0] * n / 8,
                clock(lambda t=tape, u=update: forward_mode(t, u))[0],
                clock(lambda t=tape, u=update: ours(t, u))[0],
                clock(lambda t=tape, u=update: ours(t, u, options.share))[0],
            )
            rows.append((parameters, n, *times))
            print(f"{parameters:>16,}{n:>16,}" + "".join(f"{took:>14.3f} s" for took in times))
    table = np.log(np.array(rows, float))
    design = np.column_stack([np.ones(len(table)), table[:, 0], table[:, 1]])
    for name, column in zip(heads[2:], table[:, 2:].T, strict=True):
        fit, residual, *_ = np.linalg.lstsq(design, column, rcond=None)
        error = np.sqrt(residual[0] / (len(table) - 3) * np.diag(np.linalg.inv(design.T @ design)))
        print(
            f"{name}: seconds ∝ parameters^{fit[1]:.2f} (± {1.96 * error[1]:.2f}) × "
            f"tokens^{fit[2]:.2f} (± {1.96 * error[2]:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compare(options)
    scaling(options)


if __name__ == "__main__":
    main()
