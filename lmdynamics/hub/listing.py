"""What is on this machine: runs, and the published suites that were opened here."""

import sys

from lmdynamics.errors import shortened
from lmdynamics.hub.checkpoints import known_suites
from lmdynamics.hub.suites import open_run, run_names
from lmdynamics.paths import runs_dir
from lmdynamics.runs.family import family


def last_loss(log) -> str:
    """Mean of the last 50 losses; a dash if there are none."""
    mean = log["loss"].drop_nulls().tail(50).mean()
    return "–" if mean is None else f"{mean:.3f}"


def print_runs() -> None:
    """Print two tables: runs with their branches, and published suites."""
    from rich.console import Console
    from rich.table import Table

    columns = ("run", "objective", "checkpoints", "last step", "of", "loss", "changed")
    table = Table(*columns, title=f"Runs in {runs_dir()}")
    table.columns[0].no_wrap = True
    for generation, run in family(open_run(name) for name in run_names()):
        log, total_steps, parent = run.log, run.recipe.training.steps if run.recipe else None, run.parent
        label = "   " * generation + ("└ " if generation else "") + run.name
        settings = ", ".join(f"{k}={shortened(str(v))}" for k, v in parent["changes"].items()) if parent else ""
        branch_point = f"at step {parent['step']:,}: {settings or 'nothing'}" if parent else ""
        last_step, total = f"{run.steps[-1]:,}", "–" if total_steps is None else f"{total_steps:,}"
        table.add_row(label, run.objective, str(len(run)), last_step, total, last_loss(log), branch_point)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(
        table if table.row_count else f"No runs yet in {runs_dir()}; `lmdynamics train grammar-mlm` trains one."
    )
    if suites := known_suites():
        published = Table("address", "checkpoints", "last step", "on this machine", title="Published suites")
        published.columns[0].no_wrap = True
        for address, checkpoints in suites.items():
            local = sum(pin.is_local for pin in checkpoints.values())
            published.add_row(address, str(len(checkpoints)), f"{max(checkpoints):,}", str(local))
        console.print(published)
