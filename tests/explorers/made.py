"""One of each explorer that looks at a table."""

from lmdynamics.explorers.deceleration import DecelerationExplorer
from lmdynamics.explorers.dissent import DissentExplorer
from lmdynamics.explorers.zero_sum import ZeroSumExplorer
from tests.charts import interference_frames as frames
from tests.charts.losses import points

RUNS = {"a": frames.one_step(), "b": frames.one_step(batches=1)}
MAKE = {
    "deceleration": lambda: DecelerationExplorer(points(), curve="small"),
    "dissent": lambda: DissentExplorer(frames.dissent()),
    "zero_sum": lambda: ZeroSumExplorer(RUNS, frames.texts),
}
