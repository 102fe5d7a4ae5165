"""How much the network would miss a unit."""

from secateurs.criteria.activations import activation, apoz, variance
from secateurs.criteria.comparing import cosine, fpgm, lamp
from secateurs.criteria.depth import block_influence, loss_without
from secateurs.criteria.experts import reap, routed
from secateurs.criteria.gradients import fisher, grasp, head_importance, hessian_trace, obd, regional, snip, synflow, taylor
from secateurs.criteria.magnitude import batchnorm_scale, magnitude
from secateurs.criteria.normalised import normalised
from secateurs.criteria.random import random
from secateurs.criteria.recorded import learned, movement, pcas

__all__ = [
    "activation",
    "apoz",
    "batchnorm_scale",
    "block_influence",
    "cosine",
    "fisher",
    "fpgm",
    "grasp",
    "head_importance",
    "hessian_trace",
    "lamp",
    "learned",
    "loss_without",
    "magnitude",
    "movement",
    "normalised",
    "obd",
    "pcas",
    "random",
    "reap",
    "regional",
    "routed",
    "snip",
    "synflow",
    "taylor",
    "variance",
]
