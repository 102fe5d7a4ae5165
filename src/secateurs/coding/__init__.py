"""The fewest bytes for tensors of few values, of whole numbers, and of any floats; and the file that holds them."""

from secateurs.coding.coder import Coder
from secateurs.coding.coders import context, fixed, huffman, mixed, rans
from secateurs.coding.distortion import bits_of, rate_distortion
from secateurs.coding.found import entropy, levels_in
from secateurs.coding.levels import Levels
from secateurs.coding.tensors import FAST, SMALLEST, Codecs, deep_compression

__all__ = [
    "FAST",
    "SMALLEST",
    "Codecs",
    "Coder",
    "Levels",
    "bits_of",
    "context",
    "deep_compression",
    "entropy",
    "fixed",
    "huffman",
    "levels_in",
    "mixed",
    "rans",
    "rate_distortion",
]
