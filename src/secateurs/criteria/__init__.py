"""How much the network would miss a unit."""

from secateurs.criteria.magnitude import magnitude
from secateurs.criteria.random import random

__all__ = ["magnitude", "random"]
