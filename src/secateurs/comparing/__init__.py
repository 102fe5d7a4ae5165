"""Many jobs to a table and a plot: recipes side by side, on the same model and data, over fractions kept and seeds."""

from __future__ import annotations

from secateurs.comparing.baselines import baselines
from secateurs.comparing.comparison import Comparison, Outcome, Row, read_comparison
from secateurs.comparing.drawing import plot
from secateurs.comparing.page import comparison_html
from secateurs.comparing.recipe import Pruning, Recipe, recipes
from secateurs.comparing.together import FailedJobsError, compare

__all__ = [
    "Comparison",
    "FailedJobsError",
    "Outcome",
    "Pruning",
    "Recipe",
    "Row",
    "baselines",
    "compare",
    "comparison_html",
    "plot",
    "read_comparison",
    "recipes",
]
