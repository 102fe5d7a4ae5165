"""Weight sharing: weights of few values, trained as such, which `secateurs.coding` writes in few bytes."""

from secateurs.compressing.bits import bits_within, importance
from secateurs.compressing.quantisers import Quantiser, as_it_is, k_means, powers_of_two, ternary, uniform
from secateurs.compressing.share import quantise_, share_
from secateurs.compressing.shared import Shared, Size

__all__ = [
    "Quantiser",
    "Shared",
    "Size",
    "as_it_is",
    "bits_within",
    "importance",
    "k_means",
    "powers_of_two",
    "quantise_",
    "share_",
    "ternary",
    "uniform",
]
