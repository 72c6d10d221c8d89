"""Open a run: a folder, a run by its name in the runs folder, or a published suite, `hf://OWNER/NAME`.

    hf://EleutherAI/pythia-14m?steps=log:20         twenty of its checkpoints
    hf://google/multiberts-seed_0-step_*            one repository for each checkpoint
    hf://allenai/OLMo-2-0425-1B#stage2-ingredient1  another of its trajectories

When a suite is first opened, its checkpoints are listed in `suites/NAME/suite.json` under `$LMDYNAMICS_HOME`: each
checkpoint's commit, and for those selected, every file with its size and hash. From then on these commits are used,
even if branches move, and the network is needed only to download files. Those are stored in the cache of the hub's own
client.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from lmdynamics import paths
from lmdynamics.errors import UserError, did_you_mean, shortened
from lmdynamics.hub import client
from lmdynamics.hub.checkpoints import (
    CONFIG,
    FILE,
    Pin,
    Suite,
    keep_for_good,
    known_suites,
    list_checkpoints,
    list_files,
    note_temporary,
    read_address,
    read_suite,
    remove_oldest,
    suite_folder,
)
from lmdynamics.hub.client import RemoteFile, format_bytes
from lmdynamics.hub.faults import suite_faults
from lmdynamics.paths import SUITE, exists, runs_dir
from lmdynamics.progress import bar, print_once
from lmdynamics.runs import faults
from lmdynamics.runs.folders import describe_other_format, find_folder
from lmdynamics.runs.revision_rules import Rule, rule_for, select_steps
from lmdynamics.runs.run import Checkpoint, Run, checkpoint_folders, load_tokenizer
from lmdynamics.runs.trained import open_folder


@dataclass(frozen=True, repr=False)
class SuiteRun(Run):
    """A published suite as a run. It has no log, no held-out rows and no optimizer state of its own."""

    chosen: tuple[int, ...] = ()
    keep_last: int | None = None
    download: bool = False  # whether downloads are allowed

    @property
    def name(self) -> str:
        return self.suite.name

    @cached_property
    def suite(self) -> Suite:
        return read_suite(self.folder)

    @property
    def pins(self) -> dict[int, Pin]:
        """Every checkpoint of the suite by step, not only those chosen."""
        return self.suite.pins

    def describe(self) -> dict[str, Any]:
        """Each checkpoint's commit, the tokens seen, and whether it is on this machine; licence and faults."""
        missing = self.missing()
        rows = [
            {"step": pin.step, "tokens": pin.tokens, "repository": pin.repository, "commit": pin.commit}
            | {"revision": pin.revision, "here": pin.step not in missing}
            for pin in map(self.pins.__getitem__, self.chosen)
        ]
        texts = [*self.rule.faults, *(fault.said for fault in self.known_faults)]
        facts = {"licence": self.rule.licence, "homepage": self.rule.homepage, "faults": texts}
        return {"name": self.name, "folder": str(self.folder), **facts, "checkpoints": rows}

    @property
    def rule(self) -> Rule:
        return rule_for(self.suite.repository, self.suite.revisions)

    @cached_property
    def known_faults(self) -> list[faults.Fault]:
        """Faults of the chosen checkpoints, from their listings and from earlier audits."""
        complete = len(self.chosen) == len(self.pins)
        return suite_faults(self.name, [self.pins[step] for step in self.chosen], self.rule if complete else None)

    @cached_property
    def _folders(self) -> dict[int, Path]:
        return {step: self.pins[step].folder for step in self.chosen}

    @property
    def tokens(self) -> dict[int, int | None]:
        """Tokens seen at each step, if the suite's names or its rule state them."""
        return {step: self.pins[step].tokens for step in self.chosen}

    @cached_property
    def objective(self) -> str:
        if self.rule.objective:
            return self.rule.objective
        first = self.pins[self.chosen[0]]
        _download(first, first.missing(file for file in first.needed if file.path in CONFIG))
        return super().objective

    def __getitem__(self, step: int) -> "SuiteCheckpoint":
        plain = super().__getitem__(step)
        options = {"keep_last": self.keep_last, "download": self.download}
        return SuiteCheckpoint(**vars(plain), pin=self.pins[step], suite_dir=self.folder, **options)

    def missing(self, steps: str | Sequence[int] | None = None) -> dict[int, list[RemoteFile]]:
        """The files that are not on this machine, by step."""
        pins = [self.pins[step] for step in select_steps(self.steps, steps)]
        missing = {pin.step: pin.missing(pin.needed) for pin in pins}
        return {step: files for step, files in missing.items() if files}

    def cost(self, steps: str | Sequence[int] | None = None) -> str:
        """The remaining download in words: bytes, and minutes at 100 Mbit/s."""
        missing, count = self.missing(steps), len(select_steps(self.steps, steps))
        status = f"{self.name}: {count - len(missing)} of {count} checkpoints on this machine"
        if not missing:
            return status
        size = _bytes_of(missing)
        minutes = round(size * 8 / 100e6 / 60)
        return (
            f"{status}; to download: {format_bytes(size)} "
            f"({f'about {minutes:,} min' if minutes else 'less than a minute'} at 100 Mbit/s)"
        )

    def fetch(
        self,
        steps: str | Sequence[int] | None = None,
        *,
        confirm: Callable[[str], bool] | None = None,
        progress: bool | None = None,
    ) -> "SuiteRun":
        """Download the checkpoints that are not on this machine, in the order of their steps.

        `confirm` is called with the cost before the download; without it the download starts at once. A stopped
        download resumes, within a file too.

        Raises UserError if it is not confirmed, a file is missing or differs from its listing, or the disk is full.
        """
        missing = self.missing(steps)
        if missing and confirm is not None and not confirm(self.cost(steps)):
            raise UserError("nothing was downloaded")
        if missing and self.keep_last is not None and len(missing) > self.keep_last:
            raise UserError(
                f"keep={self.keep_last} keeps only the last {self.keep_last} checkpoints here, but {len(missing)} are "
                "missing: measure them (each is downloaded when needed), or remove keep"
            )
        with bar(_bytes_of(missing), self.name, progress, unit="B") as progress_bar:
            progress_bar.unit_scale = True
            for step, files in missing.items():
                progress_bar.set_postfix_str(f"step {step:,}")
                _download(self.pins[step], files, progress_bar.update)
                if self.keep_last is not None:
                    note_temporary(self.folder, step)
        if self.keep_last is None:
            keep_for_good(self.folder, select_steps(self.steps, steps))
        return self


@dataclass(frozen=True, repr=False)
class SuiteCheckpoint(Checkpoint):
    """One checkpoint of a published suite; missing files are downloaded when needed, if `download` allows it."""

    pin: Pin = field(kw_only=True, repr=False)
    suite_dir: Path = field(kw_only=True)
    keep_last: int | None = None
    download: bool = False

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        self._weights()
        # while old files may be removed, only one process at a time downloads and reads
        with nullcontext() if self.keep_last is None else FileLock(self.suite_dir / ".keep.lock"):
            if self._fetch(self.pin.needed) and self.keep_last is not None:
                note_temporary(self.suite_dir, self.step)
            model = super().model(attention, device)
            if self.keep_last is not None and self.download:  # removed files can be downloaded again
                remove_oldest(self.suite_dir, self.keep_last)
        return model

    @property
    def tokenizer(self):
        """The checkpoint's own, or else one of the suite."""
        if self.pin.tokenizer:
            self._fetch(self.pin.small)
            return load_tokenizer(self.folder)
        return load_tokenizer(_shared_tokenizer(self.suite_dir))

    @property
    def is_local(self) -> bool:
        return self.pin.is_local

    @property
    def recipe(self) -> None:
        return None

    @property
    def has_optimizer_state(self) -> bool:
        return False

    def optimizer_state(self) -> dict[str, Any]:
        raise UserError(f"{self.run_name} publishes no optimizer state that can be read without running its code")

    def verify(self) -> int:
        """Compare the local files with their listing; return their number. Raises UserError if one differs."""
        local = [file for file in self.pin.needed if (self.folder / file.path).exists()]
        for file in local:
            if not file.matches(self.folder / file.path):
                raise UserError(
                    f"{self.folder / file.path} is not the file that {self.run_name} lists for step {self.step}; "
                    "delete it and fetch it again"
                )
        return len(local)

    @cached_property
    def content_hash(self) -> str:
        """Needs no download: the sha256 of a single file of weights, or the sha256 of the hashes of several."""
        weights = self._weights()
        joined = "\n".join(file.identity for file in weights)
        return weights[0].identity if len(weights) == 1 else hashlib.sha256(joined.encode()).hexdigest()

    def _weights(self) -> tuple[RemoteFile, ...]:
        if not self.pin.weights:
            problem = describe_other_format([file.path for file in self.pin.files or ()], self.pin.revision)
            problem = problem or "has no weights; `lmdynamics audit` lists its faults"
            raise UserError(f"{self.run_name} at step {self.step:,} {problem}")
        return self.pin.weights

    def _fetch(self, files: Sequence[RemoteFile]) -> bool:
        """Download missing files, weights only if allowed; return whether there were any."""
        missing = self.pin.missing(files)
        if not self.download and any(file in self.pin.weights for file in missing):
            size = format_bytes(sum(file.bytes for file in missing))
            raise UserError(
                f"{self.run_name} is not on this machine at step {self.step} ({size}); "
                f'`lmdynamics fetch "hf://{self.run_name}?steps={self.step}"` downloads it, without ?steps all; '
                "with ?download=yes in its address it is downloaded when needed"
            )
        _download(self.pin, missing)
        return bool(missing)


def open_suite(
    address: str,
    *,
    steps: str | Sequence[int] | None = None,
    revisions: str | None = None,
    keep_last: int | None = None,
    download: bool = False,
) -> SuiteRun:
    """Open a published suite; see the top of this module for addresses.

    `steps`: which checkpoints (`log:20`, a list, `0:10000:1000`); all by default. `revisions`: a regular expression for
    branches and tags with a group `step`, if no rule in `data/suites.toml` matches. `keep_last`: how many of the
    checkpoints that are downloaded under it stay on this machine; others stay anyway. `download`: allow all downloads;
    otherwise opening a missing model is an error, and `fetch` shows the cost.

    Raises UserError for an invalid address, a repository that is missing, closed or without checkpoints, or no network;
    the message then lists the checkpoints on this machine.
    """
    parsed = read_address(address)
    rule = rule_for(parsed.repository, revisions)
    folder = suite_folder(parsed, rule)
    keep_last = keep_last if keep_last is not None else parsed.keep
    if keep_last is not None and keep_last < 1:
        raise UserError(f"keep={keep_last} keeps nothing; at least 1 is needed")
    # before the folder is made: a mistyped name leaves no folder
    listed = None if (folder / FILE).exists() else list_checkpoints(parsed, rule).trajectory(parsed.part)
    folder = paths.writable(folder)
    with FileLock(folder / ".lock"):
        suite = read_suite(folder)
        changed = suite is not None and revisions is not None and suite.revisions != revisions
        if suite is None or parsed.refresh or changed or _is_mixed(suite, rule):
            suite = replace(listed or list_checkpoints(parsed, rule).trajectory(parsed.part), revisions=revisions)
            suite.write(folder)
        chosen = select_steps(list(suite.pins), steps if steps is not None else parsed.steps)
        if unlisted := [suite.pins[step] for step in chosen if suite.pins[step].files is None]:
            try:
                listed_pins = {pin.step: pin for pin in list_files(unlisted)}
            except client.Unreachable as error:
                raise client.Unreachable(f"{error}; {_describe_local(suite.pins.values())}") from None
            suite = replace(suite, pins=suite.pins | listed_pins)
            suite.write(folder)
    for note in suite.notes or ():
        print_once(f"{suite.name}: {note}")
    run = SuiteRun(folder, chosen=tuple(chosen), keep_last=keep_last, download=download or parsed.download)
    faults.report_faults(run.name, run.known_faults, f"hf://{run.name}")
    return run


def _is_mixed(suite: Suite, rule: Rule) -> bool:
    """Whether an earlier version, which did not match whole names, has joined several trajectories."""
    positions = [rule.parse(pin.repository, pin.revision) for pin in suite.pins.values()]
    return suite.notes is None and not rule.commit and len({position and position.part for position in positions}) > 1


def _download(pin: Pin, files: Iterable[RemoteFile], report: Callable[[int], object] = lambda size: None) -> None:
    """Download files; `report` is called with the bytes received."""
    for file in files:
        try:
            client.download(pin.repository, pin.commit, file, report)
        except client.Unreachable as error:
            raise client.Unreachable(
                f"{error}; this file belongs to step {pin.step:,}; downloaded files stay"
            ) from None


def _shared_tokenizer(folder: Path) -> Path:
    """The folder of the tokenizer for checkpoints without one: another checkpoint's, or else the main branch's."""
    with FileLock(folder / ".lock"):
        suite = read_suite(folder)
        source = next((pin for pin in reversed(suite.pins.values()) if pin.tokenizer), None)
        if source is None and suite.main and suite.main.files is None:
            suite = replace(suite, main=list_files([suite.main])[0])
            suite.write(folder)
    if source:
        note = f"some checkpoints have no tokenizer of their own; that of step {source.step:,} is used for them"
    elif suite.main and suite.main.tokenizer:
        source = suite.main
        note = f"no checkpoint has a tokenizer; that of the branch {source.revision} is used for all of them"
    else:
        main = "nor has its main branch" if suite.main else "and there is no main branch to take it from"
        raise UserError(f"{suite.name} has no tokenizer: no listed checkpoint has one, {main}")
    print_once(f"{suite.name}: {note}")
    _download(source, source.missing(source.small))
    return source.folder


def _describe_local(pins: Iterable[Pin]) -> str:
    """The checkpoints on this machine, in words."""
    steps = [pin.step for pin in pins if pin.is_local]
    if not steps:
        return "no checkpoint of it is on this machine"
    return f"on this machine are the steps {', '.join(map(str, steps))}: name them with ?steps="


def _bytes_of(missing: Mapping[int, Sequence[RemoteFile]]) -> int:
    return sum(file.bytes for files in missing.values() for file in files)


def run_names() -> list[str]:
    """Names of runs on this machine that have a checkpoint and can be opened by name alone."""
    if not runs_dir().is_dir():
        return []
    return sorted(folder.name for folder in runs_dir().iterdir() if folder.is_dir() and _opens(folder))


def _opens(folder: Path) -> bool:
    try:
        return bool(checkpoint_folders(folder))
    except UserError:
        return False


def open_run(address: str | Path, **options: Any) -> Run:
    """Open a run by name (in the runs folder), by folder, or a published suite (`hf://OWNER/NAME?steps=log:20`).

    `FOLDER#NAME` is one of several trajectories in a folder. `options` are for suites: `steps`, `revisions`,
    `keep_last`, `download`; see `lmdynamics.hub.suites.open_suite`. For a folder, only `revisions`.

    Raises UserError if there is no such run, or it has no checkpoint.
    """
    if str(address).startswith(SUITE):
        return open_suite(str(address), **options)
    revisions = options.pop("revisions", None)
    if options:
        raise UserError(f"{', '.join(options)}: only for published suites (hf://OWNER/NAME); {address} is not one")
    folder, part = find_folder(str(address))
    if not (exists(folder) and folder.is_dir()):
        known = [*run_names(), *known_suites()]
        hint = did_you_mean(str(address), known) if known else ""
        raise UserError(f"there is no run {shortened(str(address))!r}{hint}; `lmdynamics train RECIPE` makes one")
    return open_folder(folder, part, revisions, str(address))
