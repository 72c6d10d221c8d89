"""The published suites that are known by name, for a person to choose from: `data/suites.toml` as a table or a page."""

from lmdynamics.hub.client import told_bytes
from lmdynamics.runs.naming import Rule, rules

HEAD = """# Published checkpoint suites

What `hf://` addresses know by name; any other repository opens too, if its revisions look like steps or a regular
expression says how (`lmdynamics.open_run(address, revisions=...)`). Sizes are rounded, of one checkpoint's weights. Run
`lmdynamics audit ADDRESS` before trusting a trajectory: it compares hashes over all checkpoints and downloads none;
with `--weights`, a few values of each too.

This page is `lmdynamics suites --markdown`, made of `data/suites.toml`.
"""


def as_markdown() -> str:
    """The page `data/SUITES.md`."""
    return HEAD + "".join(_section(rule) for rule in rules() if rule.title)


def _section(rule: Rule) -> str:
    steps = rule.expected_steps()
    told = f"{len(steps)} steps from {steps[0]:,} to {steps[-1]:,}" if steps else "see `lmdynamics audit`"
    lines = [
        f"- Address: `{rule.example}`",
        f"- Checkpoints: {told}, {'a repository' if rule.by_repository else 'a branch'} each",
        f"- Size of one: {_sizes(rule)}",
        f"- Licence: {rule.licence}",
        f"- Home: {rule.homepage}",
        *(f"- Known: {fault}" for fault in rule.faults),
    ]
    return f"\n## {rule.title}\n\n" + "\n".join(lines) + "\n"


def as_table() -> None:
    """Print them in short."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("suite", "address", "one checkpoint", "licence", "known", show_lines=True)
    table.columns[1].no_wrap = True
    for rule in filter(lambda rule: rule.title, rules()):
        cells = (rule.title, rule.example, _sizes(rule), rule.licence, "\n".join(rule.faults))
        table.add_row(*map(escape, cells))
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(table)


def _sizes(rule: Rule) -> str:
    return ", ".join(f"{name} {told_bytes(megabytes * 1e6)}" for name, megabytes in rule.sizes.items()) or "not known"
