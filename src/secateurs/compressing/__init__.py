"""Weight sharing: weights of few values, trained as such, which `secateurs.coding` writes in few bytes."""

from secateurs.compressing.bits import bits_within, importance
from secateurs.compressing.distortion import coded_bytes, price_within, rate_distortion_
from secateurs.compressing.quantisers import Quantiser, as_it_is, k_means, powers_of_two, ternary, uniform
from secateurs.compressing.share import quantise_, share_
from secateurs.compressing.shared import Shared, Size

__all__ = [
    "Quantiser",
    "Shared",
    "Size",
    "as_it_is",
    "bits_within",
    "coded_bytes",
    "importance",
    "k_means",
    "powers_of_two",
    "price_within",
    "quantise_",
    "rate_distortion_",
    "share_",
    "ternary",
    "uniform",
]
