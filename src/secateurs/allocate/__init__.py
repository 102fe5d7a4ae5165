"""How much where."""

from secateurs.allocate.allocators import as_pattern, by_layer, erdos_renyi, global_threshold, uniform
from secateurs.allocate.apportion import Bounds, apportion, bounds, fraction_kept, plan_of
from secateurs.allocate.budget import within_budget

__all__ = [
    "Bounds",
    "apportion",
    "as_pattern",
    "bounds",
    "by_layer",
    "erdos_renyi",
    "fraction_kept",
    "global_threshold",
    "plan_of",
    "uniform",
    "within_budget",
]
