"""A run is a trajectory: its checkpoints by step, its log, its recipe. Nothing downstream knows where it came from."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.corpora.minimal_pairs import MinimalPairs, open_pairs
from lmdynamics.corpora.treebank import Treebank, open_treebank
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.paths import runs_dir
from lmdynamics.runs import store
from lmdynamics.training.batches import PAIRS_SEED, TREEBANK_SEED
from lmdynamics.training.recipes import Recipe, model_class, recipe_from_dict
from lmdynamics.training.state import read_log

LOADING = threading.Lock()  # transformers changes torch's defaults while it loads, for all threads of the process


@dataclass(frozen=True)
class Checkpoint:
    """A model at one step of its training."""

    folder: Path
    step: int
    run_name: str
    objective: str  # mlm, clm or rts

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        """The model, in evaluation mode; `attention="eager"` where attention weights are to be read."""
        return _load_model(self.folder, self.objective, attention).to(device).eval()

    @property
    def tokenizer(self):
        own, shared = self.folder, self.folder.parent.parent / "tokenizer"
        return _load_tokenizer(shared if shared.is_dir() and not (own / "tokenizer.json").exists() else own)

    @property
    def recipe(self) -> Recipe | None:
        """What the run was trained by; None if it was trained elsewhere."""
        return Run(self.folder.parent.parent).recipe

    @property
    def has_optimizer_state(self) -> bool:
        return (self.folder / store.TRAINING_STATE).exists()

    def optimizer_state(self) -> dict[str, Any]:
        """Optimizer tensors by `PARAMETER.exp_avg` and so on, on the CPU.

        Raises UserError where none was kept.
        """
        if not self.has_optimizer_state:
            raise UserError(
                f"{self.run_name} keeps no optimizer state at step {self.step}; "
                "train it with --set checkpoints.optimizer_state=all"
            )
        from safetensors.torch import load_file

        store.check_sizes(self.folder)
        return load_file(self.folder / store.TRAINING_STATE)

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the weights: part of the cache key of everything measured here."""
        manifest = store.check_sizes(self.folder)
        if manifest:
            return manifest["files"][store.WEIGHTS]["sha256"]
        return store.sha256(_weights(self.folder))


def _weights(folder: Path) -> Path:
    if (folder / store.WEIGHTS).exists():
        return folder / store.WEIGHTS
    raise UserError(f"{folder} has no {store.WEIGHTS}; save the model with save_pretrained (safetensors)")


def _load_model(folder: Path, objective: str, attention: str):
    from safetensors import SafetensorError
    from transformers.utils import logging

    store.check_sizes(folder)
    _weights(folder)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} has no config.json, so its model is unknown; copy it from another checkpoint of the run"
        )
    logging.disable_progress_bar()
    options = {"attn_implementation": attention, "use_safetensors": True, "local_files_only": True}
    try:
        with LOADING:
            return model_class(objective).from_pretrained(folder, **options)
    except SafetensorError as broken:
        raise UserError(
            f"{folder / store.WEIGHTS} is damaged ({broken}); copy that folder anew or train it again"
        ) from None
    except (ValueError, KeyError) as broken:
        raise UserError(f"{folder} holds no {objective} model that transformers can open: {broken}") from None


@lru_cache(maxsize=16)
def _load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as broken:
        first = str(broken).splitlines()[0]
        raise UserError(f"{folder} has no tokenizer that transformers can open ({first}); save it there") from None


@dataclass(frozen=True)
class Run:
    """A training run in a folder: one of ours, or a plain folder of Hugging Face checkpoints."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `run.json` says: recipe, versions, device, parent; empty for a plain folder of checkpoints."""
        path = self.folder / "run.json"
        return store.read_json(path, "a run") if path.exists() else {}

    @property
    def parent(self) -> dict[str, Any] | None:
        """What this run is a branch of: `run`, `step`, `weights` (their sha256), `changes`; None if of nothing."""
        return self.facts.get("parent")

    def branch(
        self, step: int, *, name: str | None = None, device: str | None = None, progress=None, **changes
    ) -> "Run":
        """Go on from `step` under a changed recipe: `run.branch(512, masking=0.3)`; see `lmdynamics.runs.branch`.

        Dotted settings go in as `**{"regularizer.form": "uniform"}`. Without changes, the parent again, bit for bit.
        """
        from lmdynamics.runs.branch import branch

        return branch(self, step, changes, name=name, device=device, progress=progress)

    @cached_property
    def recipe(self) -> Recipe | None:
        return recipe_from_dict(self.facts["recipe"]) if self.facts else None

    @cached_property
    def _folders(self) -> dict[int, Path]:
        return checkpoint_folders(self.folder)

    @property
    def steps(self) -> list[int]:
        return list(self._folders)

    @cached_property
    def objective(self) -> str:
        """`mlm`, `clm` or `rts`; for a plain folder, read off the model's architecture."""
        if self.recipe:
            return self.recipe.objective
        config = store.read_json(next(iter(self._folders.values())) / "config.json", "a checkpoint")
        architecture = next(iter(config.get("architectures") or [""]))
        if "TokenClassification" in architecture:
            return "rts"
        return "mlm" if "MaskedLM" in architecture or "PreTraining" in architecture else "clm"

    @property
    def log(self) -> pl.DataFrame:
        """step, loss (of that step's batch, nats per predicted token), lr, masking_rate, tokens (so far), seconds.

        `penalty`: mean attention along syntactic arcs (γ), where the recipe has a syntactic regulariser that is on.
        """
        return read_log(self.folder / "log.parquet")

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [self[step] for step in self.steps]

    def __getitem__(self, step: int) -> Checkpoint:
        if step not in self._folders:
            nearest = sorted(sorted(self.steps, key=lambda s: abs(s - step))[:3])
            raise UserError(
                f"{self.name} has no checkpoint at step {step}; the nearest are {', '.join(map(str, nearest))}"
            )
        return Checkpoint(self._folders[step], step, self.name, self.objective)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def held_out(self) -> Blocks:
        """Rows this run was not trained on."""
        if not (self.folder / "held_out").is_dir():
            raise UserError(f"{self.name} has no held-out rows of its own; pass some (Blocks) to the measurement")
        return Blocks.load(self.folder / "held_out")

    def treebank(self, name: str = "grammar", sentences: int | None = None) -> Treebank:
        """Gold trees: `grammar` (the language this run learnt, new sentences), or whatever `open_treebank` knows."""
        if name == "grammar":
            return self._grammar().treebank(sentences or 1_000, TREEBANK_SEED)
        bank = open_treebank(name)
        return bank.take(sentences, 0) if sentences and sentences < len(bank) else bank

    def pairs(self, name: str = "grammar", per_paradigm: int | None = None) -> MinimalPairs:
        """Minimal pairs: `grammar`, or whatever `open_pairs` knows."""
        if name == "grammar":
            return self._grammar().pairs(per_paradigm or 300, PAIRS_SEED)
        pairs = open_pairs(name)
        return pairs.sample(per_paradigm, 0) if per_paradigm else pairs

    def _grammar(self):
        from lmdynamics.corpora.grammar import Grammar

        if self.recipe is None or self.recipe.corpus["kind"] != "grammar":
            raise UserError(
                f"{self.name} did not learn the built-in language; choose another treebank, for example ewt"
            )
        return Grammar(self.recipe.corpus["size"])


def checkpoint_folders(folder: Path) -> dict[int, Path]:
    """Checkpoints of a run folder by step: in `checkpoints/`, or beside each other in a plain folder."""
    inside = folder / "checkpoints"
    return store.step_folders(inside if inside.is_dir() else folder)


def run_names() -> list[str]:
    """Runs on this machine that have a checkpoint, by name."""
    if not runs_dir().is_dir():
        return []
    return sorted(folder.name for folder in runs_dir().iterdir() if folder.is_dir() and checkpoint_folders(folder))


def open_run(where: str | Path) -> Run:
    """Open a run by name (under the runs folder) or by folder.

    Raises UserError where there is none, or none with a checkpoint.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir() and not Path(where).is_absolute():
        folder = runs_dir() / where
    if not folder.is_dir():
        known = run_names()
        hint = did_you_mean(str(where), known) if known else ""
        raise UserError(f"there is no run {str(where)!r}{hint}; `lmdynamics train RECIPE` makes one")
    run = Run(folder.resolve())
    if not run.steps:
        raise UserError(
            f"{folder} has no checkpoints (step-000512/, checkpoint-500/ ...); is training still at step 0?"
        )
    return run
