"""Runs, wherever they are: a folder, one of the runs folder by its name, or a published suite, `hf://OWNER/NAME`.

    hf://EleutherAI/pythia-14m?steps=log:20         twenty of its checkpoints
    hf://google/multiberts-seed_0-step_*            one repository for each checkpoint
    hf://allenai/OLMo-2-0425-1B#stage2-ingredient1  another of its trajectories

The first opening of a suite lists what there is and writes it down in `suites/NAME/suite.json` under
`$LMDYNAMICS_HOME`: each checkpoint's commit, and of those looked at, every file with its size and hash. From then on
these commits are meant, whatever the branches come to point at, and nothing needs the network but files that are not
here yet. Those lie in the cache of the hub's own client.
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
    look,
    note_temporary,
    read_address,
    read_suite,
    remove_oldest,
    suite_folder,
)
from lmdynamics.hub.client import RemoteFile, told_bytes
from lmdynamics.hub.faults import suite_faults
from lmdynamics.paths import SUITE, exists, runs_dir
from lmdynamics.progress import bar, print_once
from lmdynamics.runs import faults
from lmdynamics.runs.folders import find_folder, other_weights
from lmdynamics.runs.revision_rules import Rule, chosen_steps, rule_for
from lmdynamics.runs.run import Checkpoint, Run, checkpoint_folders, load_tokenizer
from lmdynamics.runs.trained import open_folder


@dataclass(frozen=True)
class SuiteRun(Run):
    """A published suite as a run. It has no log, no held-out rows and no optimizer state of its own."""

    chosen: tuple[int, ...] = ()
    keep_last: int | None = None
    download: bool = False  # whether somebody has agreed to what it costs

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
        """Where each checkpoint lies, the tokens seen by then, and whether it is on this machine."""
        missing, chosen = self.missing(), [self.pins[step] for step in self.chosen]
        rows = [
            {"step": pin.step, "tokens": pin.tokens, "repository": pin.repository, "commit": pin.commit}
            | {"revision": pin.revision, "here": pin.step not in missing}
            for pin in chosen
        ]
        found = [*self.rule.faults, *(fault.said for fault in self.known_faults)]
        known = {"licence": self.rule.licence, "homepage": self.rule.homepage, "faults": found}
        return {"name": self.name, "folder": str(self.folder), **known, "checkpoints": rows}

    @property
    def rule(self) -> Rule:
        return rule_for(self.suite.repository, self.suite.revisions)

    @cached_property
    def known_faults(self) -> list[faults.Fault]:
        """What is wrong with the chosen checkpoints, from the listings at hand and from earlier audits."""
        complete = len(self.chosen) == len(self.pins)
        return suite_faults(self.name, [self.pins[step] for step in self.chosen], self.rule if complete else None)

    @cached_property
    def _folders(self) -> dict[int, Path]:
        return {step: self.pins[step].folder for step in self.chosen}

    @property
    def tokens(self) -> dict[int, int | None]:
        """Tokens seen at each step, where the suite's names or its rule tell."""
        return {step: self.pins[step].tokens for step in self.chosen}

    @cached_property
    def objective(self) -> str:
        if self.rule.objective:
            return self.rule.objective
        first = self.pins[self.chosen[0]]
        _bring(first, first.lacking(file for file in first.wanted if file.path in CONFIG))
        return super().objective

    def __getitem__(self, step: int) -> "SuiteCheckpoint":
        plain = super().__getitem__(step)
        options = {"keep_last": self.keep_last, "download": self.download}
        return SuiteCheckpoint(**vars(plain), pin=self.pins[step], suite_dir=self.folder, **options)

    def missing(self, steps: str | Sequence[int] | None = None) -> dict[int, list[RemoteFile]]:
        """The files that are not here, by step."""
        pins = [self.pins[step] for step in chosen_steps(self.steps, steps)]
        lacking = {pin.step: pin.lacking(pin.wanted) for pin in pins}
        return {step: files for step, files in lacking.items() if files}

    def cost(self, steps: str | Sequence[int] | None = None) -> str:
        """What is still to come, in words: bytes, and minutes over a line of 100 Mbit/s."""
        missing, wanted = self.missing(steps), len(chosen_steps(self.steps, steps))
        here = f"{self.name}: {wanted - len(missing)} of {wanted} checkpoints on this machine"
        if not missing:
            return here
        size = _bytes_of(missing)
        minutes = round(size * 8 / 100e6 / 60)
        return (
            f"{here}; to come: {told_bytes(size)} "
            f"({f'about {minutes:,} min' if minutes else 'less than a minute'} at 100 Mbit/s)"
        )

    def fetch(
        self,
        steps: str | Sequence[int] | None = None,
        *,
        confirm: Callable[[str], bool] | None = None,
        progress: bool | None = None,
    ) -> "SuiteRun":
        """Bring checkpoints here, one after the other, in the order of their steps; what is here is not asked for.

        `confirm`: asked with what it costs, before anything comes; None agrees. A download that was stopped goes on
        where it was stopped, within a file too.

        Raises UserError if nobody agrees, a file cannot be had or is not what its listing says, or the disk is full.
        """
        missing = self.missing(steps)
        if missing and confirm is not None and not confirm(self.cost(steps)):
            raise UserError("nothing was downloaded")
        if missing and self.keep_last is not None and len(missing) > self.keep_last:
            raise UserError(
                f"keep={self.keep_last} keeps only the last {self.keep_last} checkpoints here, and {len(missing)} are "
                "to come: measure them (each comes when it is wanted), or leave keep out"
            )
        with bar(_bytes_of(missing), self.name, progress, unit="B") as shown:
            shown.unit_scale = True
            for step, files in missing.items():
                shown.set_postfix_str(f"step {step:,}")
                _bring(self.pins[step], files, shown.update)
                if self.keep_last is not None:
                    note_temporary(self.folder, step)
        if self.keep_last is None:
            keep_for_good(self.folder, chosen_steps(self.steps, steps))
        return self


@dataclass(frozen=True)
class SuiteCheckpoint(Checkpoint):
    """One checkpoint of a published suite; its files come when they are wanted, if somebody has agreed to that."""

    pin: Pin = field(kw_only=True, repr=False)
    suite_dir: Path = field(kw_only=True)
    keep_last: int | None = None
    download: bool = False

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        self._weights()
        # where old files go, one process at a time brings and reads its own
        with nullcontext() if self.keep_last is None else FileLock(self.suite_dir / ".keep.lock"):
            if self._here(self.pin.wanted) and self.keep_last is not None:
                note_temporary(self.suite_dir, self.step)
            model = super().model(attention, device)
            if self.keep_last is not None and self.download:  # what goes must be able to come again
                remove_oldest(self.suite_dir, self.keep_last)
        return model

    @property
    def tokenizer(self):
        """The checkpoint's own, or else the one that stands in the suite for all."""
        if self.pin.tokenizer:
            self._here(self.pin.small)
            return load_tokenizer(self.folder)
        return load_tokenizer(_shared_tokenizer(self.suite_dir))

    @property
    def is_here(self) -> bool:
        return self.pin.is_here

    @property
    def recipe(self) -> None:
        return None

    @property
    def has_optimizer_state(self) -> bool:
        return False

    def optimizer_state(self) -> dict[str, Any]:
        raise UserError(f"{self.run_name} publishes no optimizer state that can be read without running its code")

    def verify(self) -> int:
        """Compare every file that is here with its listing; the number of files. Raises UserError where one differs."""
        here = [file for file in self.pin.wanted if (self.folder / file.path).exists()]
        for file in here:
            if not file.is_at(self.folder / file.path):
                raise UserError(
                    f"{self.folder / file.path} is not what {self.run_name} lists for step {self.step}; "
                    "delete it, and fetch it again"
                )
        return len(here)

    @cached_property
    def content_hash(self) -> str:
        """Known without a download: of one file of weights its sha256, of several that of their hashes in order."""
        weights = self._weights()
        joined = "\n".join(file.identity for file in weights)
        return weights[0].identity if len(weights) == 1 else hashlib.sha256(joined.encode()).hexdigest()

    def _weights(self) -> tuple[RemoteFile, ...]:
        if not self.pin.weights:
            other = other_weights([file.path for file in self.pin.files or ()], self.pin.revision)
            said = f"{self.run_name} at step {self.step:,}"
            raise UserError(
                f"{said} {other}" if other else f"{said} has no weights; `lmdynamics audit` lists what it lacks"
            )
        return self.pin.weights

    def _here(self, files: Sequence[RemoteFile]) -> bool:
        """Bring what of some files is not here, if somebody has agreed to weights; whether anything came."""
        missing = self.pin.lacking(files)
        if not self.download and any(file in self.pin.weights for file in missing):
            size = told_bytes(sum(file.bytes for file in missing))
            raise UserError(
                f"{self.run_name} is not on this machine at step {self.step} ({size}); "
                f'`lmdynamics fetch "hf://{self.run_name}?steps={self.step}"` brings it, without ?steps all of them; '
                "with ?download=yes in its address it comes when it is wanted"
            )
        _bring(self.pin, missing)
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
    branches and tags with a group `step`, where no rule in `data/suites.toml` fits. `keep_last`: how many of the
    checkpoints that come under it stay on this machine; what was fetched without it stays anyway. `download`: agree to
    whatever is needed; otherwise models that are not here are refused, and `fetch` shows what they cost.

    Raises UserError for an address that is none, a repository that is not there, closed or without checkpoints, or no
    network; the line then says which checkpoints are here.
    """
    asked = read_address(address)
    rule = rule_for(asked.repository, revisions)
    folder = suite_folder(asked, rule)
    keep_last = keep_last if keep_last is not None else asked.keep
    if keep_last is not None and keep_last < 1:
        raise UserError(f"keep={keep_last} keeps nothing; at least 1 is needed")
    # before there is a folder: a name that is mistyped leaves nothing behind
    listed = None if (folder / FILE).exists() else list_checkpoints(asked, rule).trajectory(asked.part)
    folder = paths.writable(folder)
    with FileLock(folder / ".lock"):
        suite = read_suite(folder)
        renamed = suite is not None and revisions is not None and suite.revisions != revisions
        if suite is None or asked.refresh or renamed or _mixed(suite, rule):
            suite = replace(listed or list_checkpoints(asked, rule).trajectory(asked.part), revisions=revisions)
            suite.write(folder)
        chosen = chosen_steps(list(suite.pins), steps if steps is not None else asked.steps)
        if unseen := [suite.pins[step] for step in chosen if suite.pins[step].files is None]:
            try:
                looked = {pin.step: pin for pin in look(unseen)}
            except client.Unreachable as error:
                raise client.Unreachable(f"{error}; {_here(suite.pins.values())}") from None
            suite = replace(suite, pins=suite.pins | looked)
            suite.write(folder)
    for note in suite.notes or ():
        print_once(f"{suite.name}: {note}")
    run = SuiteRun(folder, chosen=tuple(chosen), keep_last=keep_last, download=download or asked.download)
    faults.say(run.name, run.known_faults, f"hf://{run.name}")
    return run


def _mixed(suite: Suite, rule: Rule) -> bool:
    """Whether an earlier version, which read names in part only, has put several trajectories into one."""
    places = [rule.place(pin.repository, pin.revision) for pin in suite.pins.values()]
    return suite.notes is None and not rule.commit and len({place and place.part for place in places}) > 1


def _bring(pin: Pin, files: Iterable[RemoteFile], arrived: Callable[[int], object] = lambda size: None) -> None:
    """Download files; `arrived` is told of bytes as they come."""
    for file in files:
        try:
            client.download(pin.repository, pin.commit, file, arrived)
        except client.Unreachable as error:
            raise client.Unreachable(f"{error}; of step {pin.step:,} it is still to come, what is here stays") from None


def _shared_tokenizer(folder: Path) -> Path:
    """The folder of a tokenizer for checkpoints without one: of another checkpoint, or else of the main branch."""
    with FileLock(folder / ".lock"):
        suite = read_suite(folder)
        found = next((pin for pin in reversed(suite.pins.values()) if pin.tokenizer), None)
        if found is None and suite.main and suite.main.files is None:
            suite = replace(suite, main=look([suite.main])[0])
            suite.write(folder)
    if found:
        note = f"some checkpoints have no tokenizer of their own; that of step {found.step:,} is used for them"
    elif suite.main and suite.main.tokenizer:
        found, branch = suite.main, suite.main.revision
        note = f"no checkpoint has a tokenizer; that of the branch {branch} is used for all of them"
    else:
        where = "nor has its main branch" if suite.main else "and there is no main branch to take it from"
        raise UserError(f"{suite.name} has no tokenizer: no checkpoint that was looked at has one, {where}")
    print_once(f"{suite.name}: {note}")
    _bring(found, found.lacking(found.small))
    return found.folder


def _here(pins: Iterable[Pin]) -> str:
    """Which checkpoints are on this machine, in words."""
    there = [pin.step for pin in pins if pin.is_here]
    if not there:
        return "no checkpoint of it is on this machine"
    return f"on this machine are the steps {', '.join(map(str, there))}: name them with ?steps="


def _bytes_of(missing: Mapping[int, Sequence[RemoteFile]]) -> int:
    return sum(file.bytes for files in missing.values() for file in files)


def run_names() -> list[str]:
    """Runs on this machine that have a checkpoint, by name; without those of which a name alone does not say enough."""
    if not runs_dir().is_dir():
        return []
    return sorted(folder.name for folder in runs_dir().iterdir() if folder.is_dir() and _opens(folder))


def _opens(folder: Path) -> bool:
    try:
        return bool(checkpoint_folders(folder))
    except UserError:
        return False


def open_run(where: str | Path, **options: Any) -> Run:
    """Open a run by name (under the runs folder), by folder, or a published suite (`hf://OWNER/NAME?steps=log:20`).

    `FOLDER#NAME` is one of several trajectories in a folder. `options` are for suites: `steps`, `revisions`,
    `keep_last`, `download`; see `lmdynamics.hub.suites.open_suite`. For a folder, only `revisions`.

    Raises UserError where there is none, or none with a checkpoint.
    """
    if str(where).startswith(SUITE):
        return open_suite(str(where), **options)
    revisions = options.pop("revisions", None)
    if options:
        raise UserError(f"{', '.join(options)}: only for published suites (hf://OWNER/NAME); {where} is none")
    folder, part = find_folder(str(where))
    if not (exists(folder) and folder.is_dir()):
        known = [*run_names(), *known_suites()]
        hint = did_you_mean(str(where), known) if known else ""
        raise UserError(f"there is no run {shortened(str(where))!r}{hint}; `lmdynamics train RECIPE` makes one")
    return open_folder(folder, part, revisions, str(where))
