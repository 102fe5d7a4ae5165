"""The fewest bytes for tensors of few values, of whole numbers, and of any floats; and the file that holds them."""

from secateurs.coding.coder import Coder
from secateurs.coding.coders import context, fixed, huffman, mixed, rans
from secateurs.coding.distortion import bits_of, rate_distortion
from secateurs.coding.levels import Levels

__all__ = ["Coder", "Levels", "bits_of", "context", "fixed", "huffman", "mixed", "rans", "rate_distortion"]
