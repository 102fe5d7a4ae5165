"""Evidence: what a criterion needs to know of the data that pass through the layers."""

from secateurs.evidence.gradients import (
    activation_change,
    activation_size,
    activation_variance,
    change,
    gradient,
    nonzero_activations,
    squared_gradient,
)
from secateurs.evidence.norms import input_norm
from secateurs.evidence.observe import observe

__all__ = [
    "activation_change",
    "activation_size",
    "activation_variance",
    "change",
    "gradient",
    "input_norm",
    "nonzero_activations",
    "observe",
    "squared_gradient",
]
