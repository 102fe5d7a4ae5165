"""A network in int8 (or int16, or float32) as small machines run it, and what it answers, to the bit."""

from secateurs.integers.best import Best, Tried, best, decibels
from secateurs.integers.bounds import largest_sums
from secateurs.integers.build import UnsupportedError, built
from secateurs.integers.correct import corrected, rounded_together, unbiased
from secateurs.integers.equalise import equalised, reaches
from secateurs.integers.fake import quantisation_aware
from secateurs.integers.layers import Network
from secateurs.integers.module import IntegerModel
from secateurs.integers.qdq import onnx_model, steps_apart
from secateurs.integers.quantise import from_integers, quantised, to_integers
from secateurs.integers.ranges import calibrated, least_error, minmax, percentile
from secateurs.integers.reference import run

__all__ = [
    "Best",
    "IntegerModel",
    "Network",
    "Tried",
    "UnsupportedError",
    "best",
    "built",
    "calibrated",
    "corrected",
    "decibels",
    "equalised",
    "from_integers",
    "largest_sums",
    "least_error",
    "minmax",
    "onnx_model",
    "percentile",
    "quantisation_aware",
    "quantised",
    "reaches",
    "rounded_together",
    "run",
    "steps_apart",
    "to_integers",
    "unbiased",
]
