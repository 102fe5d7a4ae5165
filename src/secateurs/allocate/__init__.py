"""How much where."""

from secateurs.allocate.above import above
from secateurs.allocate.allocators import as_pattern, by_layer, erdos_renyi, global_threshold, uniform
from secateurs.allocate.apportion import Bounds, Limits, apportion, bounds, fraction_kept, limits_of, plan_of
from secateurs.allocate.blocks import equal_in_blocks
from secateurs.allocate.budget import within_budget
from secateurs.allocate.by_block import alpha_pruning, owl
from secateurs.allocate.integer import integer
from secateurs.allocate.weighed import dynamic, lagrangian, marginal

__all__ = [
    "Bounds",
    "Limits",
    "above",
    "alpha_pruning",
    "apportion",
    "as_pattern",
    "bounds",
    "by_layer",
    "dynamic",
    "equal_in_blocks",
    "erdos_renyi",
    "fraction_kept",
    "global_threshold",
    "integer",
    "lagrangian",
    "limits_of",
    "marginal",
    "owl",
    "plan_of",
    "uniform",
    "within_budget",
]
