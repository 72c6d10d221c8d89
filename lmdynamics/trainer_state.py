"""The log of Hugging Face's Trainer: finding it and reading it."""

import json
import re
from pathlib import Path
from typing import Any

from lmdynamics.errors import UserError, shortened

TRAINER_STATE = "trainer_state.json"


def trainer_state_file(folder: Path) -> Path | None:
    """Hugging Face's `trainer_state.json` of a folder: in it, or in its newest checkpoint."""
    if (folder / TRAINER_STATE).is_file():
        return folder / TRAINER_STATE
    steps = {
        int(match[1]): path
        for path in (*folder.glob(f"checkpoint-*/{TRAINER_STATE}"), *folder.glob(f"checkpoints/*/{TRAINER_STATE}"))
        if (match := re.fullmatch(r"\D*(\d+)", path.parent.name))
    }
    return steps[max(steps)] if steps else None


def trainer_history(text: str, path: Path) -> list[dict[str, Any]]:
    """The records of a `trainer_state.json`, without the summary's train_loss, which is a mean over the run.

    Raises UserError if it is not JSON, or contains no list of records.
    """
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON, or is cut short ({shortened(str(error), 120)}); copy it again") from None
    history = state.get("log_history") if isinstance(state, dict) else state
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        raise UserError(
            f"{path} has no log_history, a list of records; give a {TRAINER_STATE}, or JSON lines named .jsonl"
        )
    return [
        {key: record[key] for key in record if key != "train_loss" or "train_runtime" not in record}
        for record in history
    ]
