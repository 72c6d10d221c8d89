"""One function per figure: a tidy frame in, an Altair chart out. `show` puts it before the reader."""

from lmdynamics.charts.arcs import sentence_arcs
from lmdynamics.charts.heads import heads_by_relation, layer_head_map
from lmdynamics.charts.overview import loss_and_uas
from lmdynamics.charts.predictions import predictions_over_training
from lmdynamics.charts.show import show, to_png, to_svg
from lmdynamics.charts.trajectories import (
    complexity_over_training,
    loss_over_training,
    pair_accuracy_over_training,
    uas_over_training,
)

__all__ = [
    "complexity_over_training",
    "heads_by_relation",
    "layer_head_map",
    "loss_and_uas",
    "loss_over_training",
    "pair_accuracy_over_training",
    "predictions_over_training",
    "sentence_arcs",
    "show",
    "to_png",
    "to_svg",
    "uas_over_training",
]
