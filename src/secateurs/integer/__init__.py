"""A network in int8 (or int16, or float32) as small machines run it, and what it answers, to the bit."""

from secateurs.integer.best import Best, Tried, best, decibels
from secateurs.integer.bounds import largest_sums
from secateurs.integer.build import UnsupportedError, built
from secateurs.integer.correct import corrected, rounded_together, unbiased
from secateurs.integer.equalise import equalised, reaches
from secateurs.integer.fake import quantisation_aware
from secateurs.integer.layers import Network
from secateurs.integer.qdq import onnx_model, steps_apart
from secateurs.integer.quantise import from_integers, quantised, to_integers
from secateurs.integer.ranges import calibrated, least_error, minmax, percentile
from secateurs.integer.reference import run

__all__ = [
    "Best",
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
