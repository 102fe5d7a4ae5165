"""The words of the house: what every other room hands to its neighbours, and nothing that computes.

A *pattern* cuts weights into *units*; a *criterion* scores units; an *allocator* makes a *plan*, the number of units that each
*site* keeps; a *solver* chooses which ones; a *task* is what a user brings beside the model; a *hook* plugs into the training loop.
"""

from secateurs.types.choice import Masks, Scores, Solution, Solver
from secateurs.types.cost import Budget, Cost
from secateurs.types.errors import (
    FileError,
    KindError,
    NonFiniteError,
    PatternError,
    PlanError,
    SecateursError,
    TaskError,
    WriteError,
)
from secateurs.types.evidence import (
    Accumulator,
    Counted,
    Criterion,
    Curvature,
    Evidence,
    Hessian,
    Observed,
    Seen,
    Statistic,
    Stats,
    Watched,
)
from secateurs.types.extents import Extents, Product
from secateurs.types.plan import Allocator, Plan, Share
from secateurs.types.training import Constraint, Hook, Run, Task
from secateurs.types.units import (
    Chosen,
    Coupling,
    Cut,
    Member,
    Part,
    Pattern,
    Role,
    Selection,
    Site,
    Sites,
    Skipped,
    Spot,
    Stretch,
    Tiling,
    Within,
)

__all__ = [
    "Accumulator",
    "Allocator",
    "Budget",
    "Chosen",
    "Constraint",
    "Cost",
    "Counted",
    "Coupling",
    "Criterion",
    "Curvature",
    "Cut",
    "Evidence",
    "Extents",
    "FileError",
    "Hessian",
    "Hook",
    "KindError",
    "Masks",
    "Member",
    "NonFiniteError",
    "Observed",
    "Part",
    "Pattern",
    "PatternError",
    "Plan",
    "PlanError",
    "Product",
    "Role",
    "Run",
    "Scores",
    "SecateursError",
    "Seen",
    "Selection",
    "Share",
    "Site",
    "Sites",
    "Skipped",
    "Solution",
    "Solver",
    "Spot",
    "Statistic",
    "Stats",
    "Stretch",
    "Task",
    "TaskError",
    "Tiling",
    "Watched",
    "Within",
    "WriteError",
]
