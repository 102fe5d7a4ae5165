"""What flows through a network without any data: the network of absolute weights, given ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.answers import in_float64, widened
from secateurs.batch import run_batch
from secateurs.evidence.adding import Accumulators
from secateurs.evidence.backward import require_gradients
from secateurs.forward import evaluating, modules_in, parameters_in
from secateurs.nested import changed, tensors_in
from secateurs.types import Member, NonFiniteError, SecateursError, Seen, TaskError
from secateurs.watch import untouched


def observe_flow(model: nn.Module, example: Any, accumulators: Mapping[str, Accumulators], member: Callable[[str], Member]) -> None:
    """Tell accumulators the gradients by absolute weights of Σ answers to an input of ones, as parts of that sum (2006.05467).

    Everything is computed in float64 and in evaluation mode; biases and buffers are absolute too, but the means that a BatchNorm has seen
    count as zero. What of the example are integers stays. The model is afterwards as it was. Raises `TaskError` without an example,
    `SecateursError` where nothing flows, `NonFiniteError` where it is too much for float64.
    """
    if not accumulators:
        return
    if example is None:
        raise TaskError("the flow through the network needs an input of the example's shape: give Task(example=...)")
    for name in accumulators:
        require_gradients(member(name))
    with evaluating(model), untouched(model), torch.random.fork_rng(devices=[]), in_float64(model), torch.enable_grad():
        _without_signs(model)
        inputs = changed(widened(example), lambda tensor: torch.ones_like(tensor) if tensor.is_floating_point() else tensor)
        output = run_batch(model, inputs, "ones in place of the example", example)
        total = sum((tensor.sum() for tensor in tensors_in(output) if tensor.is_floating_point()), torch.zeros(()))
        weights = {name: member(name).weight for name in accumulators}
        gradients = _gradients(total, weights)
    for name, found in accumulators.items():
        seen = Seen(gradient=member(name).canonical(gradients[name]).float())
        for accumulator in found.values():
            accumulator.add(seen)


def _without_signs(model: nn.Module) -> None:
    """In float64, where each tensor has been replaced already and comes back."""
    for parameter in parameters_in(model).values():
        if parameter.is_floating_point():
            parameter.data = parameter.data.abs()
    for module in modules_in(model).values():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[key] = torch.zeros_like(buffer) if key == "running_mean" else buffer.abs()


def _gradients(total: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    flow = float(total.detach())
    if not torch.isfinite(total):
        raise NonFiniteError(
            f"what flows through the network of absolute weights is {flow}, even in float64: are there weights of NaN?"
        )
    if not total.requires_grad or flow == 0:
        raise SecateursError(
            f"what flows through the network of absolute weights is {flow}: everything is pruned somewhere, or what the model answers "
            "does not depend on an input of ones"
        )
    found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient / flow
        for (name, weight), gradient in zip(weights.items(), found, strict=True)
    }
