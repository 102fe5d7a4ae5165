"""Pruning at run time: what one input does not need is left out for it, and counted."""

from secateurs.per_input.attached import PerInput
from secateurs.per_input.by_block import small_inputs_by_block
from secateurs.per_input.channels import Gate, boost_, saliencies, saliency_penalty
from secateurs.per_input.exits import exit_early_, exit_losses, left_at
from secateurs.per_input.small import activation_sparsity, skip_small_, small_inputs
from secateurs.per_input.tokens import drop_tokens_, exit_tokens_, kept_tokens
from secateurs.per_input.work import WorkPerInput, unpadded, work_per_input

__all__ = [
    "Gate",
    "PerInput",
    "WorkPerInput",
    "activation_sparsity",
    "boost_",
    "drop_tokens_",
    "exit_early_",
    "exit_losses",
    "exit_tokens_",
    "kept_tokens",
    "left_at",
    "saliencies",
    "saliency_penalty",
    "skip_small_",
    "small_inputs",
    "small_inputs_by_block",
    "unpadded",
    "work_per_input",
]
