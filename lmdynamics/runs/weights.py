"""Names of weights in a file that a model has no place for: which of them matter, and what is to be done."""

import re
from collections.abc import Iterable
from pathlib import Path

from lmdynamics.errors import UserError

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

    Raises
    ------
    UserError
        If there are adapters, or weights of further layers.
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
