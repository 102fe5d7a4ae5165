"""Entropy coders for whole numbers, from the fastest to the smallest; docs/coders.md describes their bytes."""

from secateurs.coding.coder import Coder
from secateurs.coding.coders import by_mixing, by_neighbours, fixed_width, numeral_system, prefix_code
from secateurs.coding.coders.payload import least_bytes, most_numbers

fixed = Coder("fixed", fixed_width.encode, fixed_width.decode)
"""Equally many bits a number."""

huffman = Coder("huffman", prefix_code.encode, prefix_code.decode)
"""A word of whole bits for each number."""

rans = Coder("rans", numeral_system.encode, numeral_system.decode)
"""Asymmetric numeral systems: the entropy of the numbers' frequencies."""

context = Coder("context", by_neighbours.encode, by_neighbours.decode)
"""Arithmetic coding with probabilities that are learned, and chosen by neighbours."""

mixed = Coder("mixed", by_mixing.encode, by_mixing.decode)
"""The same with the forecasts of many models mixed: the smallest, and slow."""

CODERS = {coder.name: coder for coder in (fixed, huffman, rans, context, mixed)}

__all__ = ["CODERS", "Coder", "context", "fixed", "huffman", "least_bytes", "mixed", "most_numbers", "rans"]
