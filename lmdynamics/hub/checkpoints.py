"""Which checkpoints an address means, and where each of them lies: names first, then the files at a pinned commit.

And the suites that are known by name (`data/suites.toml`) as a table or a page for a person to choose from; and which
checkpoints stay on this machine where an address says `keep=N`.
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
from lmdynamics.hub.client import RemoteFile, told_bytes
from lmdynamics.runs.folders import VOCABULARY, signature, weight_names
from lmdynamics.runs.revision_rules import Rule, by_trajectory, choose_trajectory, describe_left_out, rule_for, rules
from lmdynamics.training import layout

FILE = "suite.json"
LISTERS = 12  # trees asked for at a time
SHOWN = 12  # names of a long list that are told
LONGEST = 96  # characters of an owner or a name on the hub
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
DEFAULT_BRANCHES = ("main", "master")  # not named like checkpoints, and nobody wonders why


@dataclass(frozen=True)
class Address:
    """What `hf://…` says. `steps`: see `revision_rules.chosen_steps`."""

    repository: str
    part: str = ""
    steps: str = ""
    keep: int | None = None
    download: bool = False
    refresh: bool = False


@dataclass(frozen=True)
class Pin:
    """Where one checkpoint lies: a commit never changes. `files` is None until somebody has looked."""

    step: int
    repository: str
    revision: str
    commit: str
    tokens: int | None = None
    files: tuple[RemoteFile, ...] | None = None

    @property
    def folder(self) -> Path:
        """Where the hub's client puts this commit's files."""
        return client.cache() / f"models--{self.repository.replace('/', '--')}" / "snapshots" / self.commit

    @property
    def weights(self) -> tuple[RemoteFile, ...]:
        """The files with the model's parameters: safetensors where there are any, and one file rather than shards."""
        files = {file.path: file for file in self.files or ()}
        return tuple(files[name] for name in weight_names(files))

    @property
    def signature(self) -> tuple[str, ...]:
        """Changes when its weights do."""
        return tuple(file.identity for file in self.weights)

    @property
    def tokenizer(self) -> tuple[RemoteFile, ...]:
        """The tokenizer's files; none if they do not make one."""
        found = tuple(file for file in self.files or () if file.path in TOKENIZER)
        return found if any(file.path in VOCABULARY for file in found) else ()

    @property
    def small(self) -> tuple[RemoteFile, ...]:
        """Configuration and tokenizer, which make one together."""
        return (*(file for file in self.files or () if file.path in CONFIG), *self.tokenizer)

    @property
    def wanted(self) -> tuple[RemoteFile, ...]:
        """What is brought here: weights and their index, configuration and tokenizer, and nothing else."""
        indices = {f"{re.sub(r'-[0-9]+-of-[0-9]+', '', file.path)}.index.json" for file in self.weights}
        return (*self.small, *(file for file in self.files or () if file.path in indices), *self.weights)

    @property
    def is_here(self) -> bool:
        """Whether all that is wanted of it is on this machine."""
        return bool(self.weights) and not self.lacking(self.wanted)

    def lacking(self, files: Iterable[RemoteFile]) -> list[RemoteFile]:
        """Those of some files that are not here."""
        return [file for file in files if not (self.folder / file.path).is_file()]


@dataclass(frozen=True)
class FolderPin(Pin):
    """A checkpoint that lies in a folder, for comparing it as those on the hub are."""

    at: Path = field(default_factory=Path)

    @property
    def folder(self) -> Path:
        return self.at

    @property
    def signature(self) -> tuple[str, ...]:
        return signature(self.at)


def folder_pin(step: int, at: Path, hashed: bool = False) -> FolderPin:
    """`hashed`: with the sha256 of its weights, as its manifest says or read now."""
    manifest = at / layout.MANIFEST
    said = files.read_json(manifest, "a checkpoint")["files"] if hashed and manifest.exists() else {}
    listed = []
    for path in sorted(path for path in at.iterdir() if path.is_file()):
        facts, digest = path.stat(), said.get(path.name, {}).get("sha256")
        if digest is None and hashed and path.suffix in (".safetensors", ".bin"):
            digest = files.sha256(path)
        listed.append(RemoteFile(path.name, facts.st_size, digest, f"{path.name} {facts.st_size} {facts.st_mtime_ns}"))
    return FolderPin(step, str(at.parent), at.name, "", files=tuple(listed), at=at)


YES, NO = ("yes", "true", "1"), ("no", "false", "0")


def read_address(text: str) -> Address:
    """Raises UserError for what is no address of a suite."""
    match = _ADDRESS.fullmatch(text)
    if match is None or max(map(len, match["repository"].split("/"))) > LONGEST:
        raise UserError(
            f"{shortened(text)!r} is not the address of a suite: hf://OWNER/NAME, then perhaps #PART, then perhaps "
            "?steps=log:20&keep=3&download=yes"
        )
    options = dict(parse_qsl(match["options"] or "", keep_blank_values=True))
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise UserError(f"{text}: there is no option {unknown[0]!r}{did_you_mean(unknown[0], OPTIONS)}")
    if not options.get("keep", "1").isdigit():
        raise UserError(f"{text}: keep={options['keep']} is not a number of checkpoints")
    flags = {name: options.get(name, "no").lower() for name in ("download", "refresh")}
    if wrong := [name for name, value in flags.items() if value not in YES + NO]:
        said = f"{text}: {wrong[0]}={options[wrong[0]]} is neither yes nor no"
        raise UserError(said + ("; #PART comes before the options" if "#" in options[wrong[0]] else ""))
    flags = {name: value in YES for name, value in flags.items()}
    keep = int(options["keep"]) if "keep" in options else None
    return Address(match["repository"], match["part"] or "", options.get("steps", ""), keep, **flags)


@dataclass(frozen=True)
class Suite:
    """One trajectory of published checkpoints, each at its commit, as `suite.json` keeps it on this machine.

    `main`: the main branch, if there is one. `notes`: what its names leave to be said; None before there were notes.
    `revisions`: the expression that was given.
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
    """What is known of a suite; None before it was opened here."""
    if not (folder / FILE).exists():
        return None
    fields = files.read_json(folder / FILE, "a suite")
    pins = {pin.step: pin for pin in map(_pin, fields["checkpoints"])}
    main = _pin(fields["main"]) if fields.get("main") else None
    return Suite(fields["repository"], fields["part"], pins, main, fields.get("notes"), fields.get("revisions"))


def _pin(fields: Mapping[str, Any]) -> Pin:
    listed = fields["files"]
    return Pin(**{**fields, "files": None if listed is None else tuple(RemoteFile(**file) for file in listed)})


def pinned(address: str) -> list[tuple[int, str]]:
    """Step and commit of every checkpoint that an address means since it was first opened here; empty before that."""
    asked = read_address(address)
    suite = read_suite(suite_folder(asked, rule_for(asked.repository)))
    return [(pin.step, pin.commit) for pin in suite.pins.values()] if suite else []


def suite_folder(asked: Address, rule: Rule) -> Path:
    """Where what is known of a suite lies on this machine."""
    name = asked.repository.replace("/", "--").replace("*", "+")
    part = (asked.part or rule.part).replace("/", "--")
    return paths.home() / "suites" / (f"{name}--{part}" if part else name)


def known_suites() -> dict[str, dict[int, Pin]]:
    """The suites that were opened here: address and checkpoints of each."""
    suites = [read_suite(path.parent) for path in sorted((paths.home() / "suites").glob(f"*/{FILE}"))]
    return {f"hf://{suite.name}": suite.pins for suite in suites if suite}


@dataclass(frozen=True)
class Listing:
    """What names say of a repository: checkpoints by trajectory and step, their names, names that tell no step, and
    the commit of the main branch, if there is one."""

    repository: str
    rule: Rule
    trajectories: dict[str, dict[int, Pin]]
    names: dict[str, list[str]]
    unread: list[str]
    main: Pin | None

    def trajectory(self, asked: str) -> Suite:
        """The one that is meant; see `revision_rules.choose_trajectory`."""
        part, pins, counted = choose_trajectory(self.trajectories, asked, self.rule, f"hf://{self.repository}")
        moved = {step: pin if pin.step == step else replace(pin, step=step, tokens=None) for step, pin in pins.items()}
        used = part or next(iter(self.trajectories)) if len(self.trajectories) == 1 else part
        left_out = describe_left_out(self.names, used, self.unread, self.rule)
        notes = [f"counted on: {counted}"] * bool(counted) + [f"not used: {left_out}"] * bool(left_out)
        return Suite(self.repository, part, moved, self.main, tuple(notes))


def list_checkpoints(asked: Address, rule: Rule) -> Listing:
    """Every checkpoint of a repository, or of those that a pattern fits.

    Raises UserError where there is none, or two of one step.
    """
    repository, main = asked.repository, None
    if rule.by_repository:
        names = client.repositories(repository) if "*" in repository else [repository]
        if not names:
            raise UserError(f"no repository on the hub fits {repository}; check the part before the star")
        places = {name: place for name in names if (place := rule.place(name)) is not None}
        with ThreadPoolExecutor(LISTERS) as threads:
            commits = list(threads.map(_only_commit, places))
        found = [(name, places[name], name, "main", commit) for name, commit in zip(places, commits, strict=True)]
        unread = sorted(set(names) - set(places))
    else:
        refs = client.references(repository)
        names = list(refs)
        found = [
            (revision, place, repository, revision, commit)
            for revision, at in sorted(refs.items(), key=lambda item: (len(item[0]), item[0]))
            for commit, title in (client.commits(repository, revision) if rule.has_commits_on(revision) else [(at, "")])
            if (place := rule.place(repository, revision, title)) is not None
        ]
        unread = sorted(set(names) - {revision for revision, *_ in found} - set(DEFAULT_BRANCHES))
        if default := next((name for name in DEFAULT_BRANCHES if name in refs), None):
            main = Pin(-1, repository, default, refs[default])
    if not found:
        raise UserError(
            f"{repository}: nothing there is named like a checkpoint ({', '.join(sorted(names)[:SHOWN])}"
            f"{', …' * (len(names) > SHOWN)}); say how with --revisions (revisions= in Python), a regular expression "
            r"such as 'ckpt-(?P<step>\d+)', or with a rule in my_suites.toml"
        )
    checkpoints = [
        (place, name, commit, Pin(place.step, repository, revision, commit, place.tokens))
        for name, place, repository, revision, commit in found
    ]
    trajectories, called = by_trajectory(checkpoints, f"hf://{asked.repository}")
    return Listing(asked.repository, rule, trajectories, called, unread, main)


def _only_commit(repository: str) -> str:
    """The commit of a repository that is one checkpoint: of its main branch, or of the only one it has."""
    refs = client.references(repository)
    for name in (*DEFAULT_BRANCHES, *(refs if len(refs) == 1 else ())):
        if name in refs:
            return refs[name]
    raise UserError(
        f"{repository} has no main branch but {', '.join(sorted(refs)[:SHOWN]) or 'none at all'}, so which of them is "
        f"the checkpoint is unknown; open it as hf://{repository} with revisions= (--revisions)"
    )


def look(pins: Sequence[Pin]) -> list[Pin]:
    """The same with their files: several listings at a time, nothing is downloaded."""
    with ThreadPoolExecutor(LISTERS) as threads:
        trees = threads.map(lambda pin: tuple(client.tree(pin.repository, pin.commit)), pins)
        return [replace(pin, files=tree) for pin, tree in zip(pins, trees, strict=True)]


FETCHED = "fetched.json"  # steps whose weights came under a `keep`, the oldest first: the others stay


def note_temporary(suite: Path, step: int) -> None:
    """Record that a checkpoint's weights may be removed later (`keep=N`); the newest is removed last."""
    with FileLock(suite / ".lock"):
        steps = [known for known in _fetched(suite) if known != step]
        files.write_json(suite / FETCHED, [*steps, step])


def keep_for_good(suite: Path, steps: Sequence[int]) -> None:
    """Record that these checkpoints' weights stay, though they were fetched to be removed later."""
    with FileLock(suite / ".lock"):
        if set(steps) & set(known := _fetched(suite)):
            files.write_json(suite / FETCHED, [step for step in known if step not in steps])


def _fetched(suite: Path) -> list[int]:
    return files.read_json(suite / FETCHED, "a suite") if (suite / FETCHED).exists() else []


def remove_oldest(suite: Path, keep: int) -> None:
    """Take away the weights of all but the last `keep` checkpoints that were brought here; others' files stay."""
    from huggingface_hub import scan_cache_dir

    with FileLock(suite / ".lock"):
        steps, known = _fetched(suite), read_suite(suite)
        old = {known.pins[step].commit for step in steps[:-keep] if known and step in known.pins}
        if old:
            cached = scan_cache_dir(client.cache())
            present = {revision.commit_hash for repo in cached.repos for revision in repo.revisions}
            cached.delete_revisions(*sorted(old & present)).execute()
            files.write_json(suite / FETCHED, steps[-keep:])


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
