"""The state that a run resumes from: model, optimizer and log. A state is saved completely or not at all.

Data order, masks and dropout are functions of seed and step, so the step number completes the state.
"""

import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lmdynamics import files
from lmdynamics.errors import UserError
from lmdynamics.trainer_state import trainer_history, trainer_state_file
from lmdynamics.training import layout

LOG_SCHEMA = {
    "step": pl.Int64,
    "loss": pl.Float64,
    "lr": pl.Float64,
    "masking_rate": pl.Float64,
    "tokens": pl.Int64,
    "seconds": pl.Float64,
    "penalty": pl.Float64,
}


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `PARAMETER.exp_avg` and so on, copied to the CPU."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value.detach().to("cpu", copy=True).contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def save_state(folder: Path, model, optimizer, step: int, with_optimizer: bool) -> None:
    """Write a checkpoint folder: weights, configuration, optionally optimizer state, manifest."""
    with files.saving(f"step {step} in {folder.parent.parent}"), files.atomic_folder(folder) as temporary:
        # under the model's own names, which `load_state` reads; some are published under others (GPT-NeoX's head)
        model.save_pretrained(temporary, save_original_format=False)
        if with_optimizer:
            tensors = optimizer_tensors(model, optimizer)
            save_file(tensors, temporary / layout.TRAINING_STATE, metadata={"step": str(step)})
        layout.write_manifest(temporary, step=step)


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer state of a checkpoint folder, in place."""
    layout.check_sizes(folder)
    with safe_open(folder / layout.WEIGHTS, "pt") as weights:
        saved = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - not a mapping
    tensors = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in saved.items():
            tensors[name].copy_(value)
    with safe_open(folder / layout.TRAINING_STATE, "pt") as state:
        parameters = dict(model.named_parameters())
        for key in state.keys():  # noqa: SIM118
            name, _, slot = key.rpartition(".")
            optimizer.state[parameters[name]][slot] = state.get_tensor(key).to(parameters[name].device)


def resumable(folder: Path) -> dict[int, Path]:
    """Folders in a run that training can resume from, by step."""
    return {step: path for step, path in layout.saved_steps(folder).items() if (path / layout.TRAINING_STATE).exists()}


def delete_resume_points(folder: Path, step: int) -> None:
    """Remove resume points older than `step`."""
    for saved_step, resume_point in layout.step_folders(folder / "resume").items():
        if saved_step < step:
            shutil.rmtree(resume_point, ignore_errors=True)


class Log:
    """The rows of `log.parquet`, one per update: the loss of the batch with the weights before the update."""

    def __init__(self, path: Path):
        self.path = path
        self.frame = pl.DataFrame(schema=LOG_SCHEMA)
        self._rows: list[tuple] = []  # loss and penalty stay on the device until they are written: a GPU need not wait

    def resume(self, step: int) -> None:
        """Load the rows before `step`."""
        if step:
            self.frame = read_log(self.path).filter(pl.col("step") < step)
            if len(self.frame) != step:
                raise UserError(
                    f"{self.path} has {len(self.frame)} of {step} rows; delete {self.path.parent} and train again"
                )

    def last(self, column: str) -> float:
        """The last value of a column; 0 before the first step."""
        if self._rows:
            return self._rows[-1][list(LOG_SCHEMA).index(column)]
        return self.frame[column][-1] if len(self.frame) else 0

    def add(
        self,
        step: int,
        loss: Tensor | None,
        lr: float,
        masking_rate: float | None,
        tokens: int,
        seconds: float,
        penalty: Tensor | None = None,
    ) -> None:
        """Add a step's row; `loss` is None where its batch had no token to predict."""
        self._rows.append((step, loss, lr, masking_rate, self.last("tokens") + tokens, seconds, penalty))

    def with_unsaved(self) -> pl.DataFrame:
        """All rows, those since the last write included."""
        new = pl.DataFrame(with_numbers(self._rows), LOG_SCHEMA, orient="row")
        return pl.concat([self.frame, new], how="diagonal")

    def write(self) -> None:
        self.frame, self._rows = self.with_unsaved(), []
        with files.saving(str(self.path)), files.atomic_file(self.path) as temporary:
            self.frame.write_parquet(temporary)


def with_numbers(rows: Sequence[tuple]) -> list[tuple]:
    """Rows of a log with losses and penalties as numbers."""
    losses, penalties = (_numbers([row[column] for row in rows]) for column in (1, -1))
    columns = zip(rows, losses, penalties, strict=True)
    return [(step, loss, *others, penalty) for (step, _, *others, _), loss, penalty in columns]


def _numbers(values: Sequence[Tensor | None]) -> list[float | None]:
    """Scalars on a device as numbers, copied together, so that a GPU waits once."""
    present = [value for value in values if value is not None]
    numbers = iter(torch.stack(present).cpu().double().tolist() if present else ())
    return [None if value is None else next(numbers) for value in values]


def trainer_log(folder: Path) -> pl.DataFrame:
    """A Trainer's history as a run's log: step, loss and lr; empty if there is none."""
    path = trainer_state_file(folder)
    rows = [
        {"step": record.get("step"), "loss": record["loss"], "lr": record.get("learning_rate")}
        for record in (trainer_history(path.read_text("utf-8-sig", "replace"), path) if path else [])
        if "loss" in record
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("step", "loss", "lr"), pl.Float64), strict=False)
    missing = [pl.lit(None, kind).alias(name) for name, kind in LOG_SCHEMA.items() if name not in frame.columns]
    return frame.with_columns(pl.col("step").cast(pl.Int64), *missing)


def read_log(path: Path) -> pl.DataFrame:
    """A run's log; an empty frame with the same columns if there is none."""
    if not path.exists():
        return pl.DataFrame(schema=LOG_SCHEMA)
    try:
        # read at once: polars opens a path twice, and a running training may replace the file in between
        return pl.read_parquet(BytesIO(path.read_bytes()))
    except pl.exceptions.ComputeError as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it from a copy, or delete the run and train again"
        ) from None
