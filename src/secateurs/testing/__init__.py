"""The contract of each part, for everyone who writes one of his own: plain functions that raise `AssertionError`.

A message says which law broke, and on what. One line in a test file is enough:

>>> from secateurs.patterns import Block
>>> check_pattern(Block(2, 2))
"""

from secateurs.testing.allocator import check_allocator
from secateurs.testing.cost import check_cost
from secateurs.testing.coupling import check_coupling
from secateurs.testing.criterion import check_criterion
from secateurs.testing.pattern import check_pattern
from secateurs.testing.quantiser import check_quantiser
from secateurs.testing.solver import check_solver
from secateurs.testing.specimens import COUPLED, LAYERS, NETWORKS, Specimen

__all__ = [
    "COUPLED",
    "LAYERS",
    "NETWORKS",
    "Specimen",
    "check_allocator",
    "check_cost",
    "check_coupling",
    "check_criterion",
    "check_pattern",
    "check_quantiser",
    "check_solver",
]
