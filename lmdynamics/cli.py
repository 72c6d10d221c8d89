"""The command line: each command is a thin call."""

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lmdynamics.errors import UserError, printable, shortened
from lmdynamics.paths import SUITE

MOST = 2_000  # characters of a message

app = typer.Typer(
    help="Watch language models learn.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
DEVICE = "cpu, cuda, cuda:1, mps or xpu; by default the accelerator, if there is one."
runs_app = typer.Typer(help="List, describe and check runs on this machine.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe by name (grammar-mlm, english-mlm) or a TOML file.")],
    profile: Annotated[str, typer.Option(help="smoke (seconds), default (a laptop) or full (a GPU).")] = "default",
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and masks.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; made from the rest by default.")] = None,
    device: Annotated[str | None, typer.Option(help=DEVICE)] = None,
) -> None:
    """Train a recipe, or go on with a run that was stopped."""
    from lmdynamics.runs.trained import train

    with _stopped_by_ctrl_c():
        _trained(train(recipe, profile, seed, set_ or [], name=name, device=device))


@app.command()
def branch(
    run: Annotated[str, typer.Argument(help="A run by name, or its folder.")],
    at: Annotated[int, typer.Option(help="The step to leave it at: a checkpoint with optimizer state.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="What to change.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the branch; made from the rest by default.")] = None,
    device: Annotated[str | None, typer.Option(help=DEVICE)] = None,
) -> None:
    """Go on with a run from one of its checkpoints under changed settings; without changes it repeats itself."""
    from lmdynamics.hub.suites import open_run
    from lmdynamics.runs.family import branch_cost
    from lmdynamics.runs.trained import branch

    parent = open_run(run)
    typer.echo(f"branching {parent.name} at step {at:,}: {branch_cost(parent, at, set_ or [])}")
    with _stopped_by_ctrl_c():
        _trained(branch(parent, at, set_ or [], name=name, device=device))


@app.command()
def sweep(
    plan: Annotated[str, typer.Argument(help="A plan by name (masking, syntax, release, …) or a TOML file.")],
    profile: Annotated[str, typer.Option(help="smoke (seconds), default (a laptop) or full (a GPU).")] = "default",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0",
    only: Annotated[list[str] | None, typer.Option(help="One of the plan's conditions; may be repeated.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time; by default one per GPU or core.")] = None,
    device: Annotated[str | None, typer.Option(help=DEVICE)] = None,
) -> None:
    """Train every condition of a plan with every seed, several runs at a time."""
    from lmdynamics.runs.sweep import sweep

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {seeds!r}: give whole numbers separated by commas, such as 0,1,2") from None
    with _stopped_by_ctrl_c():
        made = sweep(plan, profile, numbers, set_ or [], only=only, workers=workers, device=device)
    for condition, seed, run, error in made.iter_rows():
        typer.echo(f"{condition:<20} seed {seed}  {run}" + (f"  FAILED: {error}" if error else ""))
    if failed := made["error"].is_not_null().sum():
        typer.echo(f"lmdynamics: {failed} of {len(made)} runs failed; the same command tries them again", err=True)
        raise typer.Exit(1)


@app.command()
def fit(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="A table, a training log, events, or a run.")],
    group: Annotated[
        str | None, typer.Option(help="Column (or several, separated by commas) that names a curve.")
    ] = None,
    step: Annotated[str | None, typer.Option(help="Column of steps; guessed, and said, by default.")] = None,
    loss: Annotated[str | None, typer.Option(help="Column of losses, or a pattern: eval/*/loss. Else guessed.")] = None,
    smoothing: Annotated[str, typer.Option(help="none, log-average (as published) or log-median.")] = "none",
    skip_steps: Annotated[float | None, typer.Option(help="Steps up to this one are left out; 100 by default.")] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples; 0 leaves intervals out.")] = 200,
    workers: Annotated[int | None, typer.Option(help="Processes at a time; by default one per core.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects, for a program to read.")] = False,
) -> None:
    """Fit loss deceleration to every curve of some files: where they break, and how sure that is."""
    from lmdynamics.experiments.reading import fit_files

    with _stopped_by_ctrl_c():
        raise typer.Exit(fit_files(files, group, step, loss, smoothing, skip_steps, resamples, workers, json))


@contextmanager
def _stopped_by_ctrl_c():
    """Says where a training stopped, which typer would not."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo(f"lmdynamics: {stopped or 'stopped'}", err=True)
        raise typer.Exit(130) from None


def _trained(run) -> None:
    from lmdynamics.analysis.intervals import steps_without_loss

    typer.echo(
        f"{run.folder}: {len(run)} checkpoints up to step {run.steps[-1]:,}, training loss {_last_loss(run.log)} nats"
    )
    if left_out := steps_without_loss(run.log):
        typer.echo(left_out)


def _last_loss(log) -> str:
    """Mean of the last 50 losses; a dash where there is none."""
    mean = log["loss"].drop_nulls().tail(50).mean()
    return "–" if mean is None else f"{mean:.3f}"


@runs_app.command("list")
def list_runs() -> None:
    """Every run on this machine, and every published suite that was opened here."""
    from rich.console import Console
    from rich.table import Table

    from lmdynamics.hub.checkpoints import known_suites
    from lmdynamics.hub.suites import open_run, run_names
    from lmdynamics.paths import runs_dir
    from lmdynamics.runs.family import family

    columns = ("run", "objective", "checkpoints", "last step", "of", "loss", "changed")
    table = Table(*columns, title=f"Runs in {runs_dir()}")
    table.columns[0].no_wrap = True
    for generation, run in family(open_run(name) for name in run_names()):
        log, whole, parent = run.log, run.recipe.training.steps if run.recipe else None, run.parent
        shown = "   " * generation + ("└ " if generation else "") + run.name
        changes = ", ".join(f"{k}={shortened(str(v))}" for k, v in parent["changes"].items()) if parent else ""
        since = f"at step {parent['step']:,}: {changes or 'nothing'}" if parent else ""
        last, of = f"{run.steps[-1]:,}", "–" if whole is None else f"{whole:,}"
        table.add_row(shown, run.objective, str(len(run)), last, of, _last_loss(log), since)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(
        table if table.row_count else f"No runs yet in {runs_dir()}; `lmdynamics train grammar-mlm` makes one."
    )
    if known := known_suites():
        published = Table("address", "checkpoints", "last step", "on this machine", title="Published suites")
        published.columns[0].no_wrap = True
        for address, pins in known.items():
            here = sum(pin.is_local for pin in pins.values())
            published.add_row(address, str(len(pins)), f"{max(pins):,}", str(here))
        console.print(published)


@runs_app.command()
def show(run: Annotated[str, typer.Argument(help="A run by name, its folder, or hf://…")]) -> None:
    """What a run is: recipe, versions, checkpoints."""
    import json

    from lmdynamics.hub.suites import open_run

    typer.echo(json.dumps(open_run(run).describe(), indent=1))


@runs_app.command()
def verify(run: Annotated[str, typer.Argument(help="A run by name, its folder, or hf://…")]) -> None:
    """Check every file of every checkpoint against its sha256."""
    from lmdynamics.hub.suites import open_run
    from lmdynamics.progress import bar

    opened, files, here, faults = open_run(run), 0, 0, []
    with bar(len(opened), f"verifying {opened.name}", unit="checkpoint") as shown:
        for checkpoint in opened:
            try:
                files += checkpoint.verify()
                here += checkpoint.is_local
            except UserError as fault:
                faults.append(str(fault))
            shown.update()
    for fault in faults:
        typer.echo(f"lmdynamics: {fault}", err=True)
    if faults:
        raise typer.Exit(2)
    if here == len(opened):
        typer.echo(f"{opened.name}: {files} files in {here} checkpoints are whole")
    else:
        typer.echo(f"{opened.name}: {files} files are whole; {here} of {len(opened)} checkpoints are on this machine")


@app.command()
def batch(
    notebooks: Annotated[list[Path] | None, typer.Argument(help="Notebook files.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A notebook parameter.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="smoke, default or full.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for executed notebooks, records, figures and index.html.")] = Path(
        "out"
    ),
    grid: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE,VALUE", help="Run with each value; several: all pairs.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="A TOML file of notebooks, parameters and grids.")] = None,
    executor: Annotated[str, typer.Option(help="local, dask://HOST:PORT, or slurm.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Items at a time; by default one per GPU or core.")] = None,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of SLURM, as submitit calls it.")
    ] = None,
    retry: Annotated[int, typer.Option(help="How often an item that failed is tried again.")] = 0,
    timeout: Annotated[float | None, typer.Option(help="Seconds an item may take.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run also what is done already.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train and measure anew, once for each code version.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and say what would run.")] = False,
) -> None:
    """Run notebooks headless, several at a time, with records, figures and an index; what is done is not run again."""
    from lmdynamics.batch.command import Options, batch
    from lmdynamics.batch.plan import plan as settle

    options = Options(executor, workers, slurm or [], retry, timeout, force, fresh, dry_run)
    jobs = settle(notebooks or [], parameters or [], profile, out, grid or [], plan)
    raise typer.Exit(batch(jobs, options))


@app.command()
def compare(
    out: Annotated[Path, typer.Argument(help="The folder of a batch.")],
    baseline: Annotated[Path, typer.Option(help="A folder of accepted results.")] = Path("tests/baselines"),
    accept: Annotated[bool, typer.Option("--accept", help="Make this batch the baseline.")] = False,
    who: Annotated[str | None, typer.Option(help="Who accepts; your user name by default.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Accept also what was computed elsewhere.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="What has no baseline fails too.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the verdicts as JUnit XML.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the verdicts as Markdown.")] = None,
) -> None:
    """What a batch's records have come to, beside accepted ones: one line, then what differs."""
    from lmdynamics.batch.regression import compare_command

    asked = {"accepting": accept, "signer": who, "yes": yes, "strict": strict}
    raise typer.Exit(compare_command(out, baseline, **asked, junit_file=junit, markdown_file=markdown))


@app.command()
def site(
    outs: Annotated[list[Path], typer.Argument(help="Folders of batches; the last is shown, the others for trends.")],
    to: Annotated[Path, typer.Option(help="Folder of the site.")] = Path("site"),
    baseline: Annotated[Path | None, typer.Option(help="A folder of accepted results to compare with.")] = None,
) -> None:
    """The executed notebooks of a batch as static pages, with an index, figures, records and trends."""
    from lmdynamics.batch.site import write_site

    typer.echo(str(write_site(outs, to, baseline)))


@app.command()
def fetch(
    name: Annotated[
        str | None,
        typer.Argument(help="A source in data/sources.toml, or a suite (hf://OWNER/NAME?steps=log:20); or nothing."),
    ] = None,
    revisions: Annotated[
        str | None, typer.Option(help="How a suite's revisions tell the step: 'x(?P<step>..)'.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before downloading a suite.")] = False,
) -> None:
    """Download real data or published checkpoints, each checked against its hash; without a name, list the data."""
    from lmdynamics.corpora.fetch import fetch, sources

    if name is not None and name.startswith(SUITE):
        with _stopped_by_ctrl_c():
            _fetch_suite(name, revisions, yes)
    elif name is None:
        for source in sources().values():
            typer.echo(f"{source.name:<14} {source.title} ({source.licence})")
    else:
        typer.echo(str(fetch(name)))


def _fetch_suite(address: str, revisions: str | None, yes: bool) -> None:
    from lmdynamics.hub.suites import open_run

    run = open_run(address, revisions=revisions)
    if run.missing():
        typer.echo(f"steps {shortened(', '.join(map(str, run.steps)), 200)}")
        typer.echo(run.cost())
        if not yes and not sys.stdin.isatty():
            raise UserError("nobody can be asked here; add --yes to download that much")
        run.fetch(confirm=None if yes else lambda _: typer.confirm("Download?"))
    typer.echo(run.cost())


@app.command()
def suites(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page data/SUITES.md.")] = False,
) -> None:
    """Published checkpoint suites that can be opened by name: sizes, licences, known faults."""
    from lmdynamics.hub.checkpoints import as_markdown, as_table

    print(as_markdown(), end="") if markdown else as_table()


@app.command()
def audit(
    address: Annotated[
        str, typer.Argument(help="A suite (hf://OWNER/NAME, perhaps with #PART and ?steps=…), a run, or a folder.")
    ],
    revisions: Annotated[str | None, typer.Option(help="How its revisions tell the step: 'x(?P<step>..)'.")] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also compare tensors, from byte ranges of files; none is downloaded.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print for a program to read.")] = False,
) -> None:
    """Compare the checkpoints of a suite or a folder without downloading them; status 1 if something is wrong."""
    from lmdynamics.hub.audit import report

    raise typer.Exit(report(address, revisions, weights, json))


@app.command()
def doctor() -> None:
    """Versions, devices, data folders, and whether widgets will work."""
    from lmdynamics.doctor import report

    raise typer.Exit(report())


def main() -> None:
    """Entry point: a person's mistakes are one line on standard error and exit status 2."""
    if "-p" in sys.argv or "--parameter" in sys.argv:
        sys.argv[1:] = _joined(sys.argv[1:])
    try:
        app()
    except UserError as error:
        print(*map(printable, f"lmdynamics: {shortened(str(error), MOST)}".split("\n")), sep="\n", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a name that is too long, a folder that cannot be written
        if error.filename is None or isinstance(error, ConnectionError):
            raise
        where = shortened(printable(str(error.filename)), 200)
        print(f"lmdynamics: {where}: {(error.strerror or 'cannot be opened').lower()}; name another", file=sys.stderr)
        sys.exit(2)


def _joined(arguments: list[str]) -> list[str]:
    """`-p name value`, as papermill writes it, becomes `-p name=value`."""
    joined: list[str] = []
    words = iter(arguments)
    for word in words:
        joined.append(word)
        if word in ("-p", "--parameter"):
            name = next(words, None)
            if name is None:
                break
            joined.append(name if "=" in name else f"{name}={next(words, '')}")
    return joined


if __name__ == "__main__":
    main()
