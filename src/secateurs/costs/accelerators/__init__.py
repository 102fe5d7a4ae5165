"""Machines that skip zeros, as models of what they take: each a dataclass whose numbers may be changed."""

from secateurs.costs.accelerators.attention import Attending, CascadePruning
from secateurs.costs.accelerators.columns import Columns, eie, ese
from secateurs.costs.accelerators.merging import OuterProducts
from secateurs.costs.accelerators.scalar import Scalar
from secateurs.costs.accelerators.tensor_cores import TensorCores

__all__ = ["Attending", "CascadePruning", "Columns", "OuterProducts", "Scalar", "TensorCores", "eie", "ese"]
