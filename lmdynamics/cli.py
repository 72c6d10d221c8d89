"""The command line: `lmdynamics train|runs|batch|fetch|doctor`. Each command is a thin call into the package."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lmdynamics.errors import UserError

app = typer.Typer(
    help="Watch language models learn.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
runs_app = typer.Typer(help="List, describe and check runs on this machine.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe by name (grammar-mlm, english-mlm) or a TOML file.")],
    profile: Annotated[str, typer.Option(help="smoke (seconds), default (a laptop) or full (a GPU).")] = "default",
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and masks.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; made from the rest by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, or whatever accelerate finds by default.")] = None,
) -> None:
    """Train a recipe, or go on with a run that was stopped."""
    from lmdynamics.runs.build import train

    try:
        run = train(recipe, profile, seed, set_ or [], name=name, device=device)
    except KeyboardInterrupt as stopped:  # here, because typer would end without a word
        typer.echo(f"lmdynamics: {stopped or 'stopped'}", err=True)
        raise typer.Exit(130) from None
    last = run.log["loss"].tail(50).mean()
    typer.echo(f"{run.folder}: {len(run)} checkpoints up to step {run.steps[-1]:,}, training loss {last:.3f} nats")


@runs_app.command("list")
def list_runs() -> None:
    """Every run on this machine."""
    from rich.console import Console
    from rich.table import Table

    from lmdynamics.paths import runs_dir
    from lmdynamics.runs.run import open_run, run_names

    table = Table("run", "objective", "checkpoints", "last step", "of", "loss", title=f"Runs in {runs_dir()}")
    for name in run_names():
        run = open_run(name)
        log, whole = run.log, run.recipe.training.steps if run.recipe else None
        loss = f"{log['loss'].tail(50).mean():.3f}" if len(log) else "–"
        table.add_row(
            name, run.objective, str(len(run)), f"{run.steps[-1]:,}", "–" if whole is None else f"{whole:,}", loss
        )
    Console().print(
        table if table.row_count else f"No runs yet in {runs_dir()}; `lmdynamics train grammar-mlm` makes one."
    )


@runs_app.command()
def show(run: Annotated[str, typer.Argument(help="A run by name, or its folder.")]) -> None:
    """What a run is: recipe, versions, checkpoints."""
    import json

    from lmdynamics.runs.run import open_run

    opened = open_run(run)
    typer.echo(json.dumps({"folder": str(opened.folder), **opened.facts, "steps": opened.steps}, indent=1))


@runs_app.command()
def verify(run: Annotated[str, typer.Argument(help="A run by name, or its folder.")]) -> None:
    """Check every file of every checkpoint against its sha256."""
    from lmdynamics.progress import bar
    from lmdynamics.runs import store
    from lmdynamics.runs.run import open_run

    opened, files, faults = open_run(run), 0, []
    with bar(len(opened), f"verifying {opened.name}", unit="checkpoint") as shown:
        for checkpoint in opened:
            try:
                files += store.check_hashes(checkpoint.folder)
            except UserError as fault:
                faults.append(str(fault))
            shown.update()
    for fault in faults:
        typer.echo(f"lmdynamics: {fault}", err=True)
    if faults:
        raise typer.Exit(2)
    typer.echo(f"{opened.name}: {files} files in {len(opened)} checkpoints are whole")


@app.command()
def batch(
    notebooks: Annotated[list[Path], typer.Argument(help="Notebook files.")],
    parameters: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="A notebook parameter.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="smoke, default or full.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for executed notebooks, records, figures and index.html.")] = Path(
        "out"
    ),
) -> None:
    """Run notebooks headless, each in its own process, with records, figures and an index."""
    from lmdynamics.batch.command import batch

    raise typer.Exit(batch(notebooks, parameters or [], profile, out))


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="A source in data/sources.toml; without one, lists them.")] = None,
) -> None:
    """Download real data for which there is a licence, checked against its sha256."""
    from lmdynamics.corpora.fetch import fetch, sources

    if name is None:
        for source in sources().values():
            typer.echo(f"{source.name:<14} {source.title} ({source.licence})")
    else:
        typer.echo(str(fetch(name)))


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
        print(f"lmdynamics: {error}", file=sys.stderr)
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
