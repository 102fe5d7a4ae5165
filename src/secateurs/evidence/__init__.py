"""Evidence: what a criterion needs to know of the data that pass through the layers."""

from secateurs.evidence.gates import gate_fisher, gate_importance
from secateurs.evidence.gradients import (
    activation_change,
    activation_size,
    activation_variance,
    change,
    curvature,
    curvature_of_units,
    gradient,
    hessian_gradient,
    loss_rise,
    nonzero_activations,
    regional_gradient,
    squared_gradient,
    stream_change,
    synaptic_flow,
)
from secateurs.evidence.gram import input_gram, input_rows, patches
from secateurs.evidence.norms import input_norm
from secateurs.evidence.observe import observe
from secateurs.evidence.record import recorded
from secateurs.evidence.routing import expert_saliency, tokens_routed
from secateurs.evidence.rows import gauss_newton_rows, mean_loss
from secateurs.evidence.units import by_unit, readers_of
from secateurs.evidence.walks import Observing, at_once, in_order

__all__ = [
    "Observing",
    "activation_change",
    "activation_size",
    "activation_variance",
    "at_once",
    "by_unit",
    "change",
    "curvature",
    "curvature_of_units",
    "expert_saliency",
    "gate_fisher",
    "gate_importance",
    "gauss_newton_rows",
    "gradient",
    "hessian_gradient",
    "in_order",
    "input_gram",
    "input_norm",
    "input_rows",
    "loss_rise",
    "mean_loss",
    "nonzero_activations",
    "observe",
    "patches",
    "readers_of",
    "recorded",
    "regional_gradient",
    "squared_gradient",
    "stream_change",
    "synaptic_flow",
    "tokens_routed",
]
