"""Watch language models learn: runs, checkpoints, measurements along training, charts and notebooks."""

import sys
from importlib import import_module

# altair, nbformat and papermill import jsonschema, which spends more than a second on compiling a grammar of URIs if it
# finds this module. Without it one string format is not checked; schemas validate all the same.
sys.modules.setdefault("rfc3987_syntax", None)

# public names, imported when first used: `import lmdynamics` stays instant
_PUBLIC = {
    "open_run": "lmdynamics.hub.suites",
    "Run": "lmdynamics.runs.run",
    "Checkpoint": "lmdynamics.runs.run",
    "train": "lmdynamics.runs.trained",
    "sweep": "lmdynamics.runs.sweep",
    "read_plan": "lmdynamics.runs.sweep",
    "reference": "lmdynamics.experiments.reference",
    "bracket_onset": "lmdynamics.experiments.bracket",
    "compare_runs": "lmdynamics.experiments.comparison",
    "read_curves": "lmdynamics.experiments.reading",
    "fit_deceleration": "lmdynamics.analysis.deceleration",
    "Deceleration": "lmdynamics.analysis.deceleration",
    "fit_curves": "lmdynamics.analysis.fits",
    "Measurement": "lmdynamics.measurements.trace",
    "Watch": "lmdynamics.measurements.watch",
    "show_watch": "lmdynamics.explorers.watching",
    "trace": "lmdynamics.measurements.trace",
    "trace_all": "lmdynamics.measurements.trace",
    "record": "lmdynamics.records",
    "start_records": "lmdynamics.records",
    "open_treebank": "lmdynamics.corpora.treebanks",
    "open_pairs": "lmdynamics.corpora.minimal_pairs",
    "Grammar": "lmdynamics.corpora.grammar",
    "UserError": "lmdynamics.errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"lmdynamics has no {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
