"""What goes for good: smaller tensors in place of masked ones, with the same answers; two thin layers in place of one."""

from secateurs.shrink.factors import SparsePlusLowRank
from secateurs.shrink.low_rank import LowRank, low_rank_
from secateurs.shrink.shrink import Shrunk, shrink_

__all__ = ["LowRank", "Shrunk", "SparsePlusLowRank", "low_rank_", "shrink_"]
