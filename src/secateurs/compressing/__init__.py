"""Fewer bytes: weights that share values and are trained as such, and models in compressed files."""

from secateurs.compressing.bits import bits_within, importance
from secateurs.compressing.compressed import Compressed, CompressedTensor, compress, decompress, read_compressed, recode
from secateurs.compressing.cost import compressed_bytes, compressed_bytes_at
from secateurs.compressing.distortion import coded_bytes, price_within, rate_distortion_
from secateurs.compressing.quantisers import Quantiser, as_it_is, k_means, powers_of_two, ternary, uniform
from secateurs.compressing.share import quantise_, share_
from secateurs.compressing.shared import Shared, Size

__all__ = [
    "Compressed",
    "CompressedTensor",
    "Quantiser",
    "Shared",
    "Size",
    "as_it_is",
    "bits_within",
    "coded_bytes",
    "compress",
    "compressed_bytes",
    "compressed_bytes_at",
    "decompress",
    "importance",
    "k_means",
    "powers_of_two",
    "price_within",
    "quantise_",
    "rate_distortion_",
    "read_compressed",
    "recode",
    "share_",
    "ternary",
    "uniform",
]
