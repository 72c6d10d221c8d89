"""What every measurement is: a frozen dataclass that maps a checkpoint to a tidy frame."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import polars as pl

    from lmdynamics.runs.run import Checkpoint


class Measurement:
    """Subclasses are frozen dataclasses: their fields are their parameters, and so their cache key.

    `trace` adds to the key the kind of device and the precision.

    Calling one on a checkpoint gives one row per observation, the same rows every time on the same device.

    `higher_is_better` decides which of two runs is better. A measurement that declares None is compared, but neither
    run is called better.
    """

    version: ClassVar[int] = 1  # raise when the numbers would change
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool | None] = None
    reads_training: ClassVar[bool] = False  # whether step, recipe and optimizer state count, besides the weights

    def __call__(self, checkpoint: Checkpoint, device: str = "cpu") -> pl.DataFrame:
        raise TypeError(f"{type(self).__name__} does not say what it measures: define __call__(checkpoint, device)")

    def key(self) -> str:
        """16 hex digits that name this measurement's results: class, version, and every field.

        A field that holds data counts by its `fingerprint`, so the same sentences read from another place give the
        same key.

        Raises
        ------
        TypeError
            If a field is neither a plain value nor data with a fingerprint: it could not be told from another.
        """
        parameters = {field.name: self._plain(getattr(self, field.name)) for field in fields(self)}
        described = json.dumps([type(self).__name__, self.version, parameters], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (tuple, list)):
            return [self._plain(part) for part in value]
        if isinstance(fingerprint := getattr(value, "fingerprint", None), str):
            return {"fingerprint": fingerprint}
        raise TypeError(f"{type(self).__name__} has a field of type {type(value).__name__}, which has no fingerprint")
