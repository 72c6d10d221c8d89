"""Checkpoints in a folder on this machine: which subfolders they are, and which weights their files hold.

Subfolders are recognised by the same revision rules as revisions on the hub. Files with weights are checked for formats
that cannot be opened, and for parameters that the model lacks.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lmdynamics.errors import UserError
from lmdynamics.paths import exists, runs_dir
from lmdynamics.progress import print_once
from lmdynamics.runs.revision_rules import choose_trajectory, describe_unused, folder_rule, group_checkpoints

VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")  # one is enough
FORMATS = (  # of a model's weights in one file, and in shards
    ("model.safetensors", re.compile(r"model(?:-\d+-of-\d+)?\.safetensors")),
    ("pytorch_model.bin", re.compile(r"pytorch_model(?:-\d+-of-\d+)?\.bin")),
)
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
CHECKPOINT_NAME = re.compile(r"(?i)check-?point|ckpt|step|iter|epoch|best|last|latest|final")
# weights in other formats: what they are, and how to convert them
OTHER_FORMATS = {
    "*_model_states.pt": (
        "DeepSpeed shards",
        "if you trust their authors, convert them with the script that DeepSpeed saves with them (it unpickles): "
        "`python zero_to_fp32.py . OUT -t {name} --safe_serialization`; then add config.json and the "
        "tokenizer",
    ),
    "model_optim_rng.pt": ("Megatron shards", "convert them with Megatron's own tools"),
    "*.distcp": ("shards of torch.distributed", "merge them with `accelerate merge-weights FOLDER OUT`"),
    "adapter_model.*": ("an adapter without its model", "merge it: peft's merge_and_unload(), then save_pretrained"),
    "tf_model.h5": ("TensorFlow weights", "save them as safetensors with a transformers release that reads them"),
    "flax_model.msgpack": ("Flax weights", "save them as safetensors with a transformers release that reads them"),
    "consolidated*.pth": (
        "plain PyTorch files",
        "convert them with the script of their authors",
    ),
    "*.ckpt": ("Lightning files", "load the model with its own code, then save_pretrained"),
}


@dataclass(frozen=True)
class Folder:
    """The checkpoints of one trajectory in a folder, by step; `notes` describe what is not used."""

    steps: dict[int, Path]
    notes: tuple[str, ...] = ()


def read_folder(folder: Path, part: str = "", revisions: str | None = None) -> Folder:
    """Checkpoints of a run, in `checkpoints/` or directly in the folder.

    `part`: which of several trajectories. `revisions`: a regular expression that matches names and their step.

    Raises UserError if there are several trajectories and none is named, or two checkpoints of one step.
    """
    inside = folder / "checkpoints"
    parent = inside if inside.is_dir() else folder
    if not parent.is_dir():
        return Folder({})
    rule = folder_rule(revisions)
    checkpoints, unread = [], []
    for path in sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")):
        position = rule.parse("", path.name)
        if position is not None and (not path.name[0].isdigit() or _is_checkpoint(path)):
            checkpoints.append((position, path.name, path.name, path))
        elif CHECKPOINT_NAME.search(path.name) or _is_checkpoint(path):
            unread.append(path.name)
    if not checkpoints:
        notes = [f"not used: {describe_unused({}, '', unread, rule)}"] * bool(unread)
        return Folder({}, tuple(notes))
    trajectories, names = group_checkpoints(checkpoints, str(parent))
    used, steps, renumbered = choose_trajectory(trajectories, part, rule, str(folder))
    unused = describe_unused(names, next(iter(trajectories)) if len(trajectories) == 1 else used, unread, rule)
    notes = [f"renumbered: {renumbered}"] * bool(renumbered) + [f"not used: {unused}"] * bool(unused)
    return Folder(steps, tuple(notes))


def find_folder(address: str) -> tuple[Path, str]:
    """The folder of a run, given by its path or its name in the runs folder, and the trajectory after a `#`."""
    name, _, part = address.rpartition("#")
    for text, trajectory in ((address, ""), (name, part)):
        for folder in (Path(text).expanduser(), runs_dir() / text):
            if text and exists(folder) and folder.is_dir():
                return folder, trajectory
    return runs_dir() / address, ""


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder, whatever its name, holds a model."""
    patterns = ("config.json", *WEIGHT_FILES, *OTHER_FORMATS)
    return any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in patterns)


def describe_other_format(paths: Iterable[str], name: str) -> str | None:
    """Which other format a checkpoint's weights have, and how to convert them, in words; None if there are none.

    `paths`: its files, also in subfolders. `name`: the shards' folder, if that is the checkpoint itself.
    """
    paths = sorted(paths)
    for pattern, (kind, remedy) in OTHER_FORMATS.items():
        if path := next((path for path in paths if fnmatch(path.rpartition("/")[2], pattern)), None):
            subfolder = path.rpartition("/")[0].rpartition("/")[2]
            return f"holds {kind} ({path}), which cannot be opened here; {remedy.format(name=subfolder or name)}"
    return None


def refuse_other_formats(checkpoints: Sequence[Path]) -> None:
    """Raise UserError if no checkpoint has weights that can be opened, and the first has some in another format."""
    for folder in checkpoints:
        if any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in WEIGHT_FILES):
            return
    for folder in checkpoints[:1]:
        if describe_other_format(_files(folder), folder.name):
            raise no_weights_error(folder)


def no_weights_error(folder: Path) -> UserError:
    """The error for a checkpoint without weights that can be opened."""
    if description := describe_other_format(_files(folder), folder.name):
        return UserError(f"{folder} {description}")
    return UserError(f"{folder} has no model.safetensors; save the model with save_pretrained (safetensors)")


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def weight_names(names: Iterable[str]) -> list[str]:
    """The files with a model's parameters: safetensors rather than .bin, and one file rather than shards."""
    names = sorted(names)
    for single, pattern in FORMATS:
        if matches := [name for name in names if pattern.fullmatch(name)]:
            return [single] if single in matches else matches
    return []


def signature(checkpoint: Path) -> tuple[str, ...]:
    """Changes when a file with weights is written again; needs no reading."""
    paths = [checkpoint / name for name in weight_names(path.name for path in checkpoint.iterdir() if path.is_file())]
    return tuple(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)


def tokenizer_folder(checkpoint: Path, name: str) -> Path:
    """The folder of a checkpoint's tokenizer: its own, or else one above it, or the last checkpoint's that has one."""
    if _has_tokenizer(checkpoint):
        return checkpoint
    siblings = sorted((path for path in checkpoint.parent.iterdir() if path.is_dir()), reverse=True)
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    for folder in (run / "tokenizer", run, *siblings):
        if folder.is_dir() and _has_tokenizer(folder):
            print_once(f"{name}: checkpoints without a tokenizer of their own use that of {folder}")
            return folder
    return checkpoint


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARY)


WRAPPERS = re.compile(r"((?:_orig_mod\.|module\.)+)")  # torch.compile; DataParallel and DeepSpeed
ADAPTERS = re.compile(r"\.(base_layer|lora_\w+|adapter\w*|original_module|modules_to_save|ia3_\w+)\.")
# buffers of older versions, and BERT's head for next sentences: no prediction depends on them
IGNORED = re.compile(r"position_ids|attn\.(masked_)?bias$|attention\.(masked_)?bias$|inv_freq|pooler|seq_relationship")


def wrapper_prefix(names: Iterable[str]) -> str | None:
    """The prefix that a wrapper added to all these names; None if they do not all have the same."""
    prefixes = {match[1] if (match := WRAPPERS.match(name)) else None for name in names}
    return prefixes.pop() if len(prefixes) == 1 else None


def check_extra(names: Iterable[str], file: Path, model) -> None:
    """Refuse weights of the model's body that its configuration does not have.

    Other heads (for example a classifier) are ignored: no token's probability depends on them.

    Raises UserError if there are adapters, or weights of further layers.
    """
    if adapters := sorted(name for name in names if ADAPTERS.search(name)):
        raise UserError(
            f"{file} holds adapters that are not merged ({adapters[0]} and {len(adapters) - 1} more), without which it "
            "is another model; merge them (PEFT: merge_and_unload) and save the whole model"
        )
    body = f"{model.base_model_prefix}."
    extra = sorted(name for name in names if name.startswith(body) and not IGNORED.search(name))
    if extra:
        raise UserError(
            f"{file} holds {len(extra)} weights that its config.json does not describe ({extra[0]}, …), such as those "
            "of further layers; copy the config.json of this checkpoint into its folder"
        )
