"""What goes for good: smaller tensors in place of masked ones, with the same answers; two thin layers in place of one."""

from secateurs.shrink.factors import SparsePlusLowRank
from secateurs.shrink.fastfood import Fastfood, walsh_hadamard
from secateurs.shrink.frying import Fried, fastfood_
from secateurs.shrink.low_rank import LowRank, low_rank_
from secateurs.shrink.shrink import Shrunk, shrink_

__all__ = ["Fastfood", "Fried", "LowRank", "Shrunk", "SparsePlusLowRank", "fastfood_", "low_rank_", "shrink_", "walsh_hadamard"]
