"""A run is a trajectory: its checkpoints by step, its log and its recipe, wherever it was trained."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from pickle import UnpicklingError  # raised by a .bin file that holds more than tensors
from typing import Any

import polars as pl

from lmdynamics import files
from lmdynamics.corpora.minimal_pairs import MinimalPairs, open_pairs
from lmdynamics.corpora.tokens import TokenRows, annotated_rows
from lmdynamics.corpora.treebanks import Treebank, open_treebank
from lmdynamics.devices import need_device, trained_on
from lmdynamics.errors import UserError, first_line
from lmdynamics.progress import bar, print_once
from lmdynamics.runs import faults
from lmdynamics.runs.folders import check_extra, no_weights_error, read_folder, tokenizer_folder, wrapper_prefix
from lmdynamics.runs.revision_rules import nearest
from lmdynamics.training import layout
from lmdynamics.training.batches import PAIRS_SEED, TREEBANK_SEED
from lmdynamics.training.recipes import Recipe, model_class, recipe_from_dict
from lmdynamics.training.state import read_log, trainer_log

LOADING = threading.Lock()  # transformers changes torch's defaults while it loads, for all threads of the process
WEIGHTS = (layout.WEIGHTS, f"{layout.WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
HEADS = {"TokenClassification": "rts", "MaskedLM": "mlm", "PreTraining": "mlm", "CausalLM": "clm", "LMHead": "clm"}


@dataclass(frozen=True)
class Checkpoint:
    """A model at one step of its training."""

    folder: Path
    step: int
    run_name: str
    objective: str  # mlm, clm or rts

    def __repr__(self) -> str:
        return f"Checkpoint({self.run_name!r}, step {self.step:,})"

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        """The model, in evaluation mode and float32, whatever the type of its saved weights.

        `attention="eager"` is needed to read attention weights.
        """
        need_device(device)
        return _load_model(self.folder, self.objective, attention).to(device).eval()

    @property
    def tokenizer(self):
        shared = self.folder.parent.parent / "tokenizer"
        if (self.folder / "tokenizer.json").exists():
            return load_tokenizer(self.folder)
        return load_tokenizer(shared if shared.is_dir() else tokenizer_folder(self.folder, self.run_name))

    @property
    def recipe(self) -> Recipe | None:
        """The run's recipe; None if it was trained without lmdynamics."""
        return Run(self.folder.parent.parent).recipe

    @property
    def is_local(self) -> bool:
        """Whether its files are on this machine; those of a published suite may not be."""
        return True

    @property
    def has_optimizer_state(self) -> bool:
        return (self.folder / layout.TRAINING_STATE).exists()

    def optimizer_state(self) -> dict[str, Any]:
        """Optimizer tensors by `PARAMETER.exp_avg` and so on, on the CPU.

        Raises UserError if it was not saved.
        """
        if not self.has_optimizer_state:
            raise UserError(
                f"{self.run_name} has no optimizer state at step {self.step}; "
                "train it with --set checkpoints.optimizer_state=all"
            )
        from safetensors.torch import load_file

        layout.check_sizes(self.folder)
        return load_file(self.folder / layout.TRAINING_STATE)

    def verify(self) -> int:
        """Compare every file with its sha256; return the number of files. Raises UserError if one differs."""
        return layout.check_hashes(self.folder)

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the weights, shard after shard; part of the cache key of each measurement."""
        manifest = layout.check_sizes(self.folder)
        if manifest and layout.WEIGHTS in manifest["files"]:
            return manifest["files"][layout.WEIGHTS]["sha256"]
        return files.sha256(*_weights(self.folder))


def _weights(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, in order; safetensors rather than .bin."""
    for name in WEIGHTS:
        if (folder / name).exists():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    raise no_weights_error(folder)


def _shards(index: Path) -> list[Path]:
    names = sorted(set(files.read_json(index, "a checkpoint").get("weight_map", {}).values()))
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing or not names:
        raise UserError(f"{index} names {(missing or ['no files'])[0]}, not in its folder; copy that folder again")
    return [index.parent / name for name in names]


def _refuse_code(path: Path) -> None:
    """Refuse a configuration with code of its own; transformers would ask whether to run it."""
    if path.exists() and files.read_json(path, "a checkpoint").get("auto_map"):
        raise UserError(
            f"{path} requires code of its own (auto_map), which lmdynamics never runs; if transformers has this "
            "architecture, remove auto_map from that file"
        )


def _load_model(folder: Path, objective: str, attention: str):
    from safetensors import SafetensorError
    from transformers.utils import logging

    layout.check_sizes(folder)
    files = _weights(folder)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} has no config.json, so its model is unknown; copy it from another checkpoint of the run"
        )
    _refuse_code(folder / "config.json")
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # no report of unused weights at every checkpoint, such as BERT's for next sentences
    options = {
        "attn_implementation": attention,
        "dtype": "float32",  # otherwise half precision if it was saved so, like Pythia
        "use_safetensors": files[0].suffix == ".safetensors",
        "weights_only": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        with LOADING:
            model, report = model_class(objective).from_pretrained(folder, **options)
            if prefix := wrapper_prefix(report["unexpected_keys"]):
                print_once(f"{folder.parent}: its weights' names begin with {prefix} (a wrapper's), which is removed")
                renamed = {f"^{re.escape(prefix)}": ""}
                model, report = model_class(objective).from_pretrained(folder, key_mapping=renamed, **options)
    except UnpicklingError:
        raise UserError(
            f"{files[0]} holds more than weights, or is damaged; opening it could run code, so get this checkpoint as "
            "safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as broken:
        raise UserError(
            f"{files[0]} is damaged or of another model ({first_line(broken)}); copy that folder or train it again"
        ) from None
    except (ValueError, KeyError) as broken:
        raise UserError(
            f"{folder} holds no {objective} model that transformers can open: {first_line(broken)}"
        ) from None
    check_extra(report["unexpected_keys"], files[0], model)
    if missing := sorted(report["missing_keys"]):
        extra = sorted(report["unexpected_keys"])
        note = f" (its file has {extra[0]} and {len(extra) - 1} more that the model lacks)" if extra else ""
        raise UserError(
            f"{folder} has no weights for {missing[0]} and {len(missing) - 1} more of a {type(model).__name__}, which "
            f"would be random{note}; save the model with its language-model head"
        )
    return model


@lru_cache(maxsize=16)
def load_tokenizer(folder: Path):
    from transformers import AutoTokenizer

    for name in ("tokenizer_config.json", "config.json"):
        _refuse_code(folder / name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as broken:
        raise UserError(
            f"{folder} has no tokenizer that transformers can open ({first_line(broken)}); save it there"
        ) from None
    names = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((folder / name).exists() for name in names):  # then it has no vocabulary, without an error
        raise UserError(f"{folder} has no tokenizer ({', '.join(sorted(names))}); save it there")
    return tokenizer


@dataclass(frozen=True)
class Run:
    """A training run in a folder: one trained by lmdynamics, or a plain folder of Hugging Face checkpoints."""

    folder: Path
    part: str = ""  # one of several trajectories in a plain folder
    revisions: str | None = None  # regular expression for the names of its checkpoints

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, in {str(self.folder.parent)!r})"

    @property
    def name(self) -> str:
        return f"{self.folder.name}#{self.part}" if self.part else self.folder.name

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The content of `run.json`: recipe, versions, device, parent; empty for a plain folder of checkpoints."""
        path = self.folder / "run.json"
        return files.read_json(path, "a run") if path.exists() else {}

    @property
    def trained_on(self) -> str | None:
        """The kind of device that trained it, such as `cpu` or `cuda`; None if unknown."""
        return trained_on(self.facts)

    def describe(self) -> dict[str, Any]:
        """Facts about the run, as plain values."""
        return {"folder": str(self.folder), **self.facts, "steps": self.steps}

    @property
    def parent(self) -> dict[str, Any] | None:
        """The parent of a branch: `run`, `step`, `weights` (their sha256), `changes`; None if this is not a branch."""
        return self.facts.get("parent")

    def branch(self, step: int, **options: Any) -> "Run":
        """Continue training under a changed recipe: see `TrainedRun.branch`; `open_run` returns such a run."""
        if self.recipe:
            raise UserError(f"open {self.name} with lmd.open_run({str(self.folder)!r}) to branch it")
        raise self.no_recipe_error()

    def no_recipe_error(self) -> UserError:
        """The error for a branch of a run without a recipe."""
        return UserError(
            f"{self.name} was trained elsewhere and has no recipe to continue with, so it cannot be branched"
        )

    @cached_property
    def recipe(self) -> Recipe | None:
        return recipe_from_dict(self.facts["recipe"]) if self.facts else None

    @cached_property
    def _folders(self) -> dict[int, Path]:
        return read_folder(self.folder, self.part, self.revisions).steps

    @cached_property
    def known_faults(self) -> list[faults.Fault]:
        """Faults that audits found in it."""
        return faults.folder_faults(self.folder, self.part, self._folders)

    @property
    def steps(self) -> list[int]:
        return list(self._folders)

    @cached_property
    def objective(self) -> str:
        """`mlm`, `clm` or `rts`; for a plain folder, from the model's architecture.

        Raises UserError if that names no head: the objective is then unknown, and the head would be random.
        """
        if self.recipe:
            return self.recipe.objective
        path = next(iter(self._folders.values())) / "config.json"
        architecture = next(iter(files.read_json(path, "a checkpoint").get("architectures") or ["none"]))
        for head, objective in HEADS.items():
            if head in architecture:
                return objective
        raise UserError(
            f"{path} names the architecture {architecture}, which has no known language-model head; "
            "save the model as ...ForMaskedLM or ...ForCausalLM"
        )

    @property
    def log(self) -> pl.DataFrame:
        """step, loss (of that step's batch, nats per predicted token), lr, masking_rate, tokens (so far), seconds.

        `penalty`: mean attention along syntactic arcs (γ), while a syntactic regulariser of the recipe is on. For
        a folder of Hugging Face's Trainer: step, loss and lr from its `trainer_state.json`.
        """
        path = self.folder / "log.parquet"
        return read_log(path) if self.facts or path.exists() else trainer_log(self.folder)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [self[step] for step in self.steps]

    def __getitem__(self, step: int) -> Checkpoint:
        if step not in self._folders:
            raise UserError(
                f"{self.name} has no checkpoint at step {step}; the nearest are {nearest(self.steps, step)}"
            )
        return Checkpoint(self._folders[step], step, self.name, self.objective)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(self.checkpoints)

    def verify(self, progress: bool | None = None) -> tuple[int, int, list[str]]:
        """Check every file of every checkpoint: how many files, how many checkpoints are local, and the faults."""
        files, local, found = 0, 0, []
        with bar(len(self), f"verifying {self.name}", progress, unit="checkpoint") as meter:
            for checkpoint in self:
                try:
                    files += checkpoint.verify()
                    local += checkpoint.is_local
                except UserError as fault:
                    found.append(str(fault))
                meter.update()
        return files, local, found

    def held_out(self, text: Treebank | str | None = None) -> TokenRows:
        """Rows this run was not trained on: its own held-out rows, or if it has none, the sentences of `text`.

        `text`: a treebank, or an argument of `open_treebank`: a name or a CoNLL-U file.
        """
        if (self.folder / "held_out").is_dir():
            return TokenRows.load(self.folder / "held_out")
        if text is None:
            raise UserError(f"{self.name} has no held-out rows of its own; name a text to measure it on, such as ewt")
        bank = text if isinstance(text, Treebank) else open_treebank(str(text))
        return annotated_rows(bank, self[self.steps[0]].tokenizer)[0]

    def treebank(self, name: str = "grammar", sentences: int | None = None) -> Treebank:
        """Gold trees: `grammar` (new sentences of the run's own language), or a name or path for `open_treebank`.

        Raises UserError for `grammar` if the run learned no built-in language, or another version of it.
        """
        if name == "grammar":
            return self._grammar().treebank(sentences or 1_000, TREEBANK_SEED)
        bank = open_treebank(name)
        return bank.take(sentences, 0) if sentences and sentences < len(bank) else bank

    def pairs(self, name: str = "grammar", per_paradigm: int | None = None) -> MinimalPairs:
        """Minimal pairs: `grammar`, or a name or path for `open_pairs`; raises as `treebank` does."""
        if name == "grammar":
            return self._grammar().pairs(per_paradigm or 300, PAIRS_SEED)
        pairs = open_pairs(name)
        return pairs.sample(per_paradigm, 0) if per_paradigm else pairs

    def _grammar(self):
        from lmdynamics.corpora.grammar import Grammar

        if self.recipe is None or self.recipe.corpus["kind"] != "grammar":
            raise UserError(
                f"{self.name} did not learn the built-in language; set treebank to ewt or a CoNLL-U file, and pairs, "
                "if the page has it, to zorro, blimp or a path"
            )
        self.recipe.check_language(self.name, self.folder)
        return Grammar(self.recipe.corpus["size"])


def checkpoint_folders(folder: Path) -> dict[int, Path]:
    """Checkpoints of a run folder by step; see `folders.read_folder`."""
    return read_folder(folder).steps
