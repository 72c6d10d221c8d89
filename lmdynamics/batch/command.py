"""`lmdynamics batch`: notebooks in, a folder of results out."""

import signal
from collections.abc import Sequence
from pathlib import Path

from lmdynamics.batch.execute import Outcome, run_notebook
from lmdynamics.batch.plan import Job, plan
from lmdynamics.errors import UserError

INTERRUPTED = 130


def batch(
    notebooks: Sequence[Path], parameters: Sequence[str] = (), profile: str | None = None, out: Path = Path("out")
) -> int:
    """Execute notebooks one after another, each in a process of its own, and write `out/index.html` over all of them.

    `parameters` are "name=value", given to every notebook. Everything is checked before anything runs. If one notebook
    fails the others still run; on Ctrl-C those that have finished stay as they are.

    Returns 0 if all finished, 1 if one failed, 130 on Ctrl-C.

    Raises
    ------
    UserError
        For a wrong notebook, parameter, profile or folder.
    """
    jobs = plan(notebooks, parameters, profile, out)
    out = jobs[0].folder.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror}; name another folder with --out") from error
    from lmdynamics.batch.index import write_index

    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` and schedulers stop it like Ctrl-C
    try:
        outcomes = [_run_with_progress(job) for job in jobs]
    except KeyboardInterrupt:
        print(f"interrupted; what has finished is in {write_index(out)}", flush=True)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    print(f"results: {write_index(out)}", flush=True)
    return int(any(outcome.status != "finished" for outcome in outcomes))


def _run_with_progress(job: Job) -> Outcome:
    """Run one job under a progress bar in a terminal, or between two plain lines elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(soft_wrap=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("cell {task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    if not console.is_terminal:
        print(f"{job.name}: running", flush=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(job.name, total=None)
        outcome = run_notebook(job, lambda cell, cells: progress.update(task, completed=cell, total=cells))
    print(outcome, flush=True)
    return outcome
