"""One function per figure: a tidy frame in, an Altair chart out. `show` displays it."""

from lmdynamics.charts.any_frame import lines
from lmdynamics.charts.arcs import sentence_arcs
from lmdynamics.charts.deceleration import break_profile, deceleration, manual_break, power_law_claim
from lmdynamics.charts.dissent import dissent_over_training, dissent_plane, norms_over_training
from lmdynamics.charts.family import family_tree
from lmdynamics.charts.gradient_cosines import cosine_distribution, gram, group_opposition, opposition_map
from lmdynamics.charts.gradient_interference import (
    coefficients_by_layer,
    coefficients_over_training,
    first_order_against_measured,
)
from lmdynamics.charts.heads import heads_by_relation, layer_head_map, loss_and_uas
from lmdynamics.charts.interventions import (
    conditions_over_training,
    conditions_panels,
    final_by_condition,
    value_over_parameter,
)
from lmdynamics.charts.learning_times import learning_density
from lmdynamics.charts.pair_race import pair_race
from lmdynamics.charts.scaling import early_prediction, gain_parts, size_trends
from lmdynamics.charts.schedules import gain_by_paradigm, masking_rates, speedup_curves
from lmdynamics.charts.seeds import divergence_of_groups, divergence_panels, seeds_in_rows
from lmdynamics.charts.show import save_figure, show, to_html, to_png, to_svg
from lmdynamics.charts.tokens import ColouredTokens
from lmdynamics.charts.trades import traded, winners_and_losers
from lmdynamics.charts.trajectories import (
    complexity_over_training,
    loss_over_training,
    pair_accuracy_over_training,
    precursors_over_training,
    uas_over_training,
)
from lmdynamics.charts.trend import record_trend
from lmdynamics.charts.zero_sum import interference_over_training, step_interference

__all__ = [
    "ColouredTokens",
    "break_profile",
    "coefficients_by_layer",
    "coefficients_over_training",
    "complexity_over_training",
    "conditions_over_training",
    "conditions_panels",
    "cosine_distribution",
    "deceleration",
    "dissent_over_training",
    "dissent_plane",
    "divergence_of_groups",
    "divergence_panels",
    "early_prediction",
    "family_tree",
    "final_by_condition",
    "first_order_against_measured",
    "gain_by_paradigm",
    "gain_parts",
    "gram",
    "group_opposition",
    "heads_by_relation",
    "interference_over_training",
    "layer_head_map",
    "learning_density",
    "lines",
    "loss_and_uas",
    "loss_over_training",
    "manual_break",
    "masking_rates",
    "norms_over_training",
    "opposition_map",
    "pair_accuracy_over_training",
    "pair_race",
    "power_law_claim",
    "precursors_over_training",
    "record_trend",
    "save_figure",
    "seeds_in_rows",
    "sentence_arcs",
    "show",
    "size_trends",
    "speedup_curves",
    "step_interference",
    "to_html",
    "to_png",
    "to_svg",
    "traded",
    "uas_over_training",
    "value_over_parameter",
    "winners_and_losers",
]
