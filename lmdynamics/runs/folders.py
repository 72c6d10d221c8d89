"""Checkpoints in a folder on this machine: which subfolders they are, and what is in their files.

Which they are is read by the naming rules that hold for the hub too. Of files with weights: whether they can be opened,
and which of their names a model has no place for.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from lmdynamics.errors import UserError
from lmdynamics.paths import exists, runs_dir
from lmdynamics.progress import print_once
from lmdynamics.runs.revision_rules import by_trajectory, choose_trajectory, describe_left_out, folder_rule

VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")  # one of them is enough
FORMATS = (  # of a model's weights in one file, and in shards
    ("model.safetensors", re.compile(r"model(?:-\d+-of-\d+)?\.safetensors")),
    ("pytorch_model.bin", re.compile(r"pytorch_model(?:-\d+-of-\d+)?\.bin")),
)
OPENED = ("model*.safetensors", "pytorch_model*.bin")
CALLED = re.compile(r"(?i)check-?point|ckpt|step|iter|epoch|best|last|latest|final")
# weights in other formats: whose they are, and how to make of them what can be opened
OTHERS = {
    "*_model_states.pt": (
        "DeepSpeed shards",
        "make weights of them with the script that DeepSpeed puts beside them, if you trust their authors (it "
        "unpickles): `python zero_to_fp32.py . OUT -t {name} --safe_serialization`; then add config.json and the "
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
    """What a folder holds: checkpoints of one trajectory by step, and what is left out, in words."""

    steps: dict[int, Path]
    notes: tuple[str, ...] = ()


def read_folder(folder: Path, part: str = "", revisions: str | None = None) -> Folder:
    """Checkpoints of a run: in `checkpoints/`, or beside each other in a plain folder.

    `part`: which trajectory, where there are several. `revisions`: how names tell the step, a regular expression.

    Raises UserError where there are several trajectories and none is named, or two checkpoints of one step.
    """
    inside = folder / "checkpoints"
    parent = inside if inside.is_dir() else folder
    if not parent.is_dir():
        return Folder({})
    rule = folder_rule(revisions)
    named, unread = [], []
    for path in sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")):
        place = rule.place("", path.name)
        if place is not None and (not path.name[0].isdigit() or _is_checkpoint(path)):
            named.append((place, path.name, path.name, path))
        elif CALLED.search(path.name) or _is_checkpoint(path):
            unread.append(path.name)
    if not named:
        notes = [f"not used: {describe_left_out({}, '', unread, rule)}"] * bool(unread)
        return Folder({}, tuple(notes))
    found, names = by_trajectory(named, str(parent))
    used, steps, counted = choose_trajectory(found, part, rule, str(folder))
    left_out = describe_left_out(names, next(iter(found)) if len(found) == 1 else used, unread, rule)
    notes = [f"counted on: {counted}"] * bool(counted) + [f"not used: {left_out}"] * bool(left_out)
    return Folder(steps, tuple(notes))


def find_folder(where: str) -> tuple[Path, str]:
    """The folder that is meant, perhaps one of the runs folder, and the trajectory after a `#`."""
    name, _, part = where.rpartition("#")
    for text, after in ((where, ""), (name, part)):
        for folder in (Path(text).expanduser(), runs_dir() / text):
            if text and exists(folder) and folder.is_dir():
                return folder, after
    return runs_dir() / where, ""


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder, whatever its name, holds a model."""
    patterns = ("config.json", *OPENED, *OTHERS)
    return any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in patterns)


def other_weights(paths: Iterable[str], name: str) -> str | None:
    """What a checkpoint holds in place of weights that can be opened, and the way out, in words; None if nothing.

    `paths`: its files, below it too. `name`: that of the shards' own folder, where that is the checkpoint.
    """
    paths = sorted(paths)
    for pattern, (kind, way_out) in OTHERS.items():
        if path := next((path for path in paths if fnmatch(path.rpartition("/")[2], pattern)), None):
            below = path.rpartition("/")[0].rpartition("/")[2]
            return f"holds {kind} ({path}), which cannot be opened here; {way_out.format(name=below or name)}"
    return None


def refuse_other_formats(checkpoints: Sequence[Path]) -> None:
    """Raise UserError where no checkpoint has weights that can be opened, and there are some in another format."""
    for folder in checkpoints:
        if any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in OPENED):
            return
    for folder in checkpoints[:1]:
        if other_weights(_files(folder), folder.name):
            raise without_weights(folder)


def without_weights(folder: Path) -> UserError:
    """What to say of a checkpoint without weights that can be opened."""
    if said := other_weights(_files(folder), folder.name):
        return UserError(f"{folder} {said}")
    return UserError(f"{folder} has no model.safetensors; save the model with save_pretrained (safetensors)")


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def weight_names(names: Iterable[str]) -> list[str]:
    """The files with a model's parameters: safetensors where there are any, and one file rather than shards."""
    names = sorted(names)
    for whole, kind in FORMATS:
        if found := [name for name in names if kind.fullmatch(name)]:
            return [whole] if whole in found else found
    return []


def signature(checkpoint: Path) -> tuple[str, ...]:
    """Changes when a file with weights is written anew; nothing is read for it."""
    paths = [checkpoint / name for name in weight_names(path.name for path in checkpoint.iterdir() if path.is_file())]
    return tuple(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)


def tokenizer_folder(checkpoint: Path, name: str) -> Path:
    """Where a checkpoint's tokenizer lies: with it, or else above it or with the last checkpoint that has one."""
    if _has_tokenizer(checkpoint):
        return checkpoint
    beside = sorted((path for path in checkpoint.parent.iterdir() if path.is_dir()), reverse=True)
    above = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    for folder in (above / "tokenizer", above, *beside):
        if folder.is_dir() and _has_tokenizer(folder):
            print_once(f"{name}: checkpoints without a tokenizer of their own use that of {folder}")
            return folder
    return checkpoint


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARY)


WRAPPERS = re.compile(r"((?:_orig_mod\.|module\.)+)")  # torch.compile; DataParallel and DeepSpeed
ADAPTERS = re.compile(r"\.(base_layer|lora_\w+|adapter\w*|original_module|modules_to_save|ia3_\w+)\.")
# buffers of older versions, and BERT's head for next sentences: nothing that predicts a token
HARMLESS = re.compile(r"position_ids|attn\.(masked_)?bias$|attention\.(masked_)?bias$|inv_freq|pooler|seq_relationship")


def wrapper_prefix(names: Iterable[str]) -> str | None:
    """What a wrapper put before the names of all these weights; None if they do not all begin alike with one."""
    prefixes = {found[1] if (found := WRAPPERS.match(name)) else None for name in names}
    return prefixes.pop() if len(prefixes) == 1 else None


def check_extra(names: Iterable[str], file: Path, model) -> None:
    """Refuse weights that belong to the model's body and that the model has no place for.

    Another head beside the body (a classifier, say) is not read: no token's probability depends on it.

    Raises UserError if there are adapters, or weights of further layers.
    """
    if adapters := sorted(name for name in names if ADAPTERS.search(name)):
        raise UserError(
            f"{file} holds adapters that are not merged ({adapters[0]} and {len(adapters) - 1} more), without which it "
            "is another model; merge them (PEFT: merge_and_unload) and save the whole model"
        )
    body = f"{model.base_model_prefix}."
    extra = sorted(name for name in names if name.startswith(body) and not HARMLESS.search(name))
    if extra:
        raise UserError(
            f"{file} holds {len(extra)} weights that its config.json gives no place to ({extra[0]}, …), such as those "
            "of further layers; put the config.json of this checkpoint beside it"
        )
