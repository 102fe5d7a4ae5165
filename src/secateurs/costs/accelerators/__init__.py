"""Machines that skip zeros, as models of what they take: each a dataclass whose numbers may be changed."""

from secateurs.costs.accelerators.scalar import Scalar
from secateurs.costs.accelerators.tensor_cores import TensorCores

__all__ = ["Scalar", "TensorCores"]
