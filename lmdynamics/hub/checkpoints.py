"""The checkpoints of an address, and where each is stored: first from names, then the files at a pinned commit.

Also: the known suites (`data/suites.toml`) as a table or a page; and which checkpoints stay on this machine under
`keep=N`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from filelock import FileLock

from lmdynamics import files, paths
from lmdynamics.errors import UserError, did_you_mean, shortened
from lmdynamics.hub import client
from lmdynamics.hub.client import RemoteFile, format_bytes
from lmdynamics.runs.folders import VOCABULARY, signature, weight_names
from lmdynamics.runs.revision_rules import Rule, choose_trajectory, describe_unused, group_checkpoints, rule_for, rules
from lmdynamics.training import layout

FILE = "suite.json"
REQUESTS = 12  # listings requested at a time
MAX_LISTED = 12  # names of a long list
MAX_NAME_LENGTH = 96  # characters of an owner or a name on the hub
OPTIONS = ("steps", "keep", "download", "refresh")
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.*-]+)(?:#(?P<part>[\w./+-]+))?(?:\?(?P<options>.*))?")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
CONFIG = ("config.json", "generation_config.json")
DEFAULT_BRANCHES = ("main", "master")  # not named like checkpoints, which needs no note


@dataclass(frozen=True)
class Address:
    """A parsed `hf://…` address. `steps`: see `revision_rules.select_steps`."""

    repository: str
    part: str = ""
    steps: str = ""
    keep: int | None = None
    download: bool = False
    refresh: bool = False


@dataclass(frozen=True)
class Pin:
    """The commit of one checkpoint, whose content never changes. `files` is None until they are listed."""

    step: int
    repository: str
    revision: str
    commit: str
    tokens: int | None = None
    files: tuple[RemoteFile, ...] | None = None

    @property
    def folder(self) -> Path:
        """The folder of this commit's files in the cache of the hub's client."""
        return client.cache() / f"models--{self.repository.replace('/', '--')}" / "snapshots" / self.commit

    @property
    def weights(self) -> tuple[RemoteFile, ...]:
        """The files with the model's parameters: safetensors rather than .bin, and one file rather than shards."""
        files = {file.path: file for file in self.files or ()}
        return tuple(files[name] for name in weight_names(files))

    @property
    def signature(self) -> tuple[str, ...]:
        """Changes when the weights change."""
        return tuple(file.identity for file in self.weights)

    @property
    def tokenizer(self) -> tuple[RemoteFile, ...]:
        """The tokenizer's files; none if they have no vocabulary."""
        present = tuple(file for file in self.files or () if file.path in TOKENIZER)
        return present if any(file.path in VOCABULARY for file in present) else ()

    @property
    def small(self) -> tuple[RemoteFile, ...]:
        """The files of configuration and tokenizer."""
        return (*(file for file in self.files or () if file.path in CONFIG), *self.tokenizer)

    @property
    def needed(self) -> tuple[RemoteFile, ...]:
        """The files to download: weights and their index, configuration and tokenizer."""
        indices = {f"{re.sub(r'-[0-9]+-of-[0-9]+', '', file.path)}.index.json" for file in self.weights}
        return (*self.small, *(file for file in self.files or () if file.path in indices), *self.weights)

    @property
    def is_local(self) -> bool:
        """Whether all needed files are on this machine."""
        return bool(self.weights) and not self.missing(self.needed)

    def missing(self, files: Iterable[RemoteFile]) -> list[RemoteFile]:
        """Those of `files` that are not on this machine."""
        return [file for file in files if not (self.folder / file.path).is_file()]


@dataclass(frozen=True)
class FolderPin(Pin):
    """A checkpoint in a folder, for comparison like those on the hub."""

    path: Path = field(default_factory=Path)

    @property
    def folder(self) -> Path:
        return self.path

    @property
    def signature(self) -> tuple[str, ...]:
        return signature(self.path)


def folder_pin(step: int, folder: Path, hashed: bool = False) -> FolderPin:
    """`hashed`: with the sha256 of its weights, from its manifest or computed now."""
    manifest = folder / layout.MANIFEST
    hashes = files.read_json(manifest, "a checkpoint")["files"] if hashed and manifest.exists() else {}
    listed = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        facts, digest = path.stat(), hashes.get(path.name, {}).get("sha256")
        if digest is None and hashed and path.suffix in (".safetensors", ".bin"):
            digest = files.sha256(path)
        listed.append(RemoteFile(path.name, facts.st_size, digest, f"{path.name} {facts.st_size} {facts.st_mtime_ns}"))
    return FolderPin(step, str(folder.parent), folder.name, "", files=tuple(listed), path=folder)


YES, NO = ("yes", "true", "1"), ("no", "false", "0")


def read_address(text: str) -> Address:
    """Raises UserError if the text is not the address of a suite."""
    match = _ADDRESS.fullmatch(text)
    if match is None or max(map(len, match["repository"].split("/"))) > MAX_NAME_LENGTH:
        raise UserError(
            f"{shortened(text)!r} is not the address of a suite: hf://OWNER/NAME, with optional #PART, with optional "
            "?steps=log:20&keep=3&download=yes"
        )
    options = dict(parse_qsl(match["options"] or "", keep_blank_values=True))
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise UserError(f"{text}: there is no option {unknown[0]!r}{did_you_mean(unknown[0], OPTIONS)}")
    if not options.get("keep", "1").isdigit():
        raise UserError(f"{text}: keep={options['keep']} is not a number of checkpoints")
    flags = {name: options.get(name, "no").lower() for name in ("download", "refresh")}
    if wrong := [name for name, value in flags.items() if value not in YES + NO]:
        message = f"{text}: {wrong[0]}={options[wrong[0]]} is neither yes nor no"
        raise UserError(message + ("; #PART comes before the options" if "#" in options[wrong[0]] else ""))
    flags = {name: value in YES for name, value in flags.items()}
    keep = int(options["keep"]) if "keep" in options else None
    return Address(match["repository"], match["part"] or "", options.get("steps", ""), keep, **flags)


@dataclass(frozen=True)
class Suite:
    """One trajectory of published checkpoints, each at its commit, as saved in `suite.json`.

    `main`: the main branch, if there is one. `notes`: remarks on its names; None in files of earlier versions.
    `revisions`: the user's regular expression.
    """

    repository: str
    part: str
    pins: dict[int, Pin]
    main: Pin | None = None
    notes: tuple[str, ...] | None = ()
    revisions: str | None = None

    @property
    def name(self) -> str:
        return f"{self.repository}#{self.part}" if self.part else self.repository

    def write(self, folder: Path) -> None:
        fields = asdict(self)
        checkpoints = list(fields.pop("pins").values())
        files.write_json(folder / FILE, {"format": 1, "name": self.name, **fields, "checkpoints": checkpoints})


def read_suite(folder: Path) -> Suite | None:
    """The saved facts of a suite; None before it is first opened."""
    if not (folder / FILE).exists():
        return None
    fields = files.read_json(folder / FILE, "a suite")
    pins = {pin.step: pin for pin in map(_pin, fields["checkpoints"])}
    main = _pin(fields["main"]) if fields.get("main") else None
    return Suite(fields["repository"], fields["part"], pins, main, fields.get("notes"), fields.get("revisions"))


def _pin(fields: Mapping[str, Any]) -> Pin:
    listed = fields["files"]
    return Pin(**{**fields, "files": None if listed is None else tuple(RemoteFile(**file) for file in listed)})


def pinned_commits(address: str) -> list[tuple[int, str]]:
    """Step and commit of every checkpoint, as pinned when the suite was first opened; empty before that."""
    parsed = read_address(address)
    suite = read_suite(suite_folder(parsed, rule_for(parsed.repository)))
    return [(pin.step, pin.commit) for pin in suite.pins.values()] if suite else []


def suite_folder(address: Address, rule: Rule) -> Path:
    """The folder of a suite's `suite.json`."""
    name = address.repository.replace("/", "--").replace("*", "+")
    part = (address.part or rule.part).replace("/", "--")
    return paths.home() / "suites" / (f"{name}--{part}" if part else name)


def known_suites() -> dict[str, dict[int, Pin]]:
    """The suites that were opened on this machine: address and checkpoints of each."""
    suites = [read_suite(path.parent) for path in sorted((paths.home() / "suites").glob(f"*/{FILE}"))]
    return {f"hf://{suite.name}": suite.pins for suite in suites if suite}


@dataclass(frozen=True)
class Listing:
    """The checkpoints of a repository by trajectory and step, their names, names without a step (`unread`), and the
    commit of the main branch, if there is one."""

    repository: str
    rule: Rule
    trajectories: dict[str, dict[int, Pin]]
    names: dict[str, list[str]]
    unread: list[str]
    main: Pin | None

    def trajectory(self, name: str) -> Suite:
        """One trajectory; see `revision_rules.choose_trajectory`."""
        part, pins, renumbered = choose_trajectory(self.trajectories, name, self.rule, f"hf://{self.repository}")
        pins = {step: pin if pin.step == step else replace(pin, step=step, tokens=None) for step, pin in pins.items()}
        used = part or next(iter(self.trajectories)) if len(self.trajectories) == 1 else part
        unused = describe_unused(self.names, used, self.unread, self.rule)
        notes = [f"renumbered: {renumbered}"] * bool(renumbered) + [f"not used: {unused}"] * bool(unused)
        return Suite(self.repository, part, pins, self.main, tuple(notes))


def list_checkpoints(address: Address, rule: Rule) -> Listing:
    """Every checkpoint of a repository, or of all that match a pattern.

    Raises UserError if there is none, or two of one step.
    """
    repository, main = address.repository, None
    if rule.by_repository:
        names = client.repositories(repository) if "*" in repository else [repository]
        if not names:
            raise UserError(f"no repository on the hub matches {repository}; check the part before the star")
        positions = {name: position for name in names if (position := rule.parse(name)) is not None}
        with ThreadPoolExecutor(REQUESTS) as threads:
            commits = list(threads.map(_only_commit, positions))
        rows = [(name, positions[name], name, "main", commit) for name, commit in zip(positions, commits, strict=True)]
        unread = sorted(set(names) - set(positions))
    else:
        refs = client.references(repository)
        names = list(refs)
        rows = [
            (revision, position, repository, revision, commit)
            for revision, tip in sorted(refs.items(), key=lambda item: (len(item[0]), item[0]))
            for commit, title in (
                client.commits(repository, revision) if rule.has_commits_on(revision) else [(tip, "")]
            )
            if (position := rule.parse(repository, revision, title)) is not None
        ]
        unread = sorted(set(names) - {revision for revision, *_ in rows} - set(DEFAULT_BRANCHES))
        if default := next((name for name in DEFAULT_BRANCHES if name in refs), None):
            main = Pin(-1, repository, default, refs[default])
    if not rows:
        raise UserError(
            f"{repository}: nothing is named like a checkpoint ({', '.join(sorted(names)[:MAX_LISTED])}"
            f"{', …' * (len(names) > MAX_LISTED)}); set --revisions (revisions= in Python) to a regular expression "
            r"such as 'ckpt-(?P<step>\d+)', or add a rule to my_suites.toml"
        )
    checkpoints = [
        (position, name, commit, Pin(position.step, repository, revision, commit, position.tokens))
        for name, position, repository, revision, commit in rows
    ]
    trajectories, revisions = group_checkpoints(checkpoints, f"hf://{address.repository}")
    return Listing(address.repository, rule, trajectories, revisions, unread, main)


def _only_commit(repository: str) -> str:
    """The commit of a repository that is one checkpoint: of its main or its only branch."""
    refs = client.references(repository)
    for name in (*DEFAULT_BRANCHES, *(refs if len(refs) == 1 else ())):
        if name in refs:
            return refs[name]
    raise UserError(
        f"{repository} has no main branch but {', '.join(sorted(refs)[:MAX_LISTED]) or 'none at all'}, so its "
        f"checkpoint is unknown; open it as hf://{repository} with revisions= (--revisions)"
    )


def list_files(pins: Sequence[Pin]) -> list[Pin]:
    """The same pins with their files, listed in parallel without a download."""
    with ThreadPoolExecutor(REQUESTS) as threads:
        trees = threads.map(lambda pin: tuple(client.tree(pin.repository, pin.commit)), pins)
        return [replace(pin, files=tree) for pin, tree in zip(pins, trees, strict=True)]


TEMPORARY_STEPS = "fetched.json"  # steps whose weights were downloaded under `keep=N`, the oldest first


def note_temporary(suite: Path, step: int) -> None:
    """Record that a checkpoint's weights may be removed later (`keep=N`); the newest is removed last."""
    with FileLock(suite / ".lock"):
        steps = [known for known in _temporary_steps(suite) if known != step]
        files.write_json(suite / TEMPORARY_STEPS, [*steps, step])


def keep_for_good(suite: Path, steps: Sequence[int]) -> None:
    """Record that these checkpoints' weights stay, even if they were temporary."""
    with FileLock(suite / ".lock"):
        if set(steps) & set(known := _temporary_steps(suite)):
            files.write_json(suite / TEMPORARY_STEPS, [step for step in known if step not in steps])


def _temporary_steps(suite: Path) -> list[int]:
    return files.read_json(suite / TEMPORARY_STEPS, "a suite") if (suite / TEMPORARY_STEPS).exists() else []


def remove_oldest(suite: Path, keep: int) -> None:
    """Remove the weights of all temporary checkpoints but the last `keep`."""
    from huggingface_hub import scan_cache_dir

    with FileLock(suite / ".lock"):
        steps, known = _temporary_steps(suite), read_suite(suite)
        old = {known.pins[step].commit for step in steps[:-keep] if known and step in known.pins}
        if old:
            cached = scan_cache_dir(client.cache())
            present = {revision.commit_hash for repo in cached.repos for revision in repo.revisions}
            cached.delete_revisions(*sorted(old & present)).execute()
            files.write_json(suite / TEMPORARY_STEPS, steps[-keep:])


PAGE_HEADER = """# Published checkpoint suites

Suites that `hf://` addresses know by name. Any other repository opens too, if its revisions look like steps or match a
regular expression (`lmdynamics.open_run(address, revisions=...)`). Sizes are rounded, of one checkpoint's weights. Run
`lmdynamics audit ADDRESS` before trusting a trajectory: it compares hashes over all checkpoints without a download;
with `--weights` it also compares a few values of each.

This page is the output of `lmdynamics suites --markdown`, from `data/suites.toml`.
"""


def as_markdown() -> str:
    """The page `data/SUITES.md`."""
    return PAGE_HEADER + "".join(_section(rule) for rule in rules() if rule.title)


def _section(rule: Rule) -> str:
    steps = rule.expected_steps()
    steps_text = f"{len(steps)} steps from {steps[0]:,} to {steps[-1]:,}" if steps else "see `lmdynamics audit`"
    lines = [
        f"- Address: `{rule.example}`",
        f"- Checkpoints: {steps_text}, {'a repository' if rule.by_repository else 'a branch'} each",
        f"- Size of one: {_sizes(rule)}",
        f"- Licence: {rule.licence}",
        f"- Home: {rule.homepage}",
        *(f"- Known: {fault}" for fault in rule.faults),
    ]
    return f"\n## {rule.title}\n\n" + "\n".join(lines) + "\n"


def as_table() -> None:
    """Print the known suites as a table."""
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
    return ", ".join(f"{name} {format_bytes(megabytes * 1e6)}" for name, megabytes in rule.sizes.items()) or "not known"
