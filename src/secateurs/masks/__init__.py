"""What holds: masks on weights, and neurons that are dead because of them."""

from secateurs.masks.dead_neurons import Dead, find_dead, zero_dead_
from secateurs.masks.exchange import whole_units
from secateurs.masks.masks import Masks
from secateurs.masks.origin import Origin

__all__ = ["Dead", "Masks", "Origin", "find_dead", "whole_units", "zero_dead_"]
