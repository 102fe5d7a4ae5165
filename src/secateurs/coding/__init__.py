"""The fewest bytes for tensors of few values, of whole numbers, and of any floats; and the file that holds them."""

from secateurs.coding.levels import Levels

__all__ = ["Levels"]
