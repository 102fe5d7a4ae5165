"""Costs that are counted: parameters, multiply-accumulates, and the bytes of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.costs.trace import trace_macs
from secateurs.forward import torch_masks
from secateurs.types import Cost, Plan, PlanError


def nonzero_params(model: nn.Module) -> int:
    """Parameters that are not zero, tied ones once; what a mask of `torch.nn.utils.prune` hides is.

    >>> layer = nn.Linear(3, 2)
    >>> _ = torch.nn.init.ones_(layer.weight), torch.nn.init.zeros_(layer.bias)
    >>> nonzero_params(layer)
    6
    """
    return sum(_nonzero(model).values())


def _nonzero(model: nn.Module) -> dict[str, int]:
    """Parameter → how many of its numbers the layers compute with and are not zero."""
    hidden = torch_masks(model)
    return {
        name: int(torch.count_nonzero(parameter.detach() * hidden[name] if name in hidden else parameter))
        for name, parameter in model.named_parameters()
    }


def nonzero_macs(model: nn.Module, example: Any) -> float:
    """MACs of one forward pass whose weight is not zero, and those between activations.

    This is work that a sparse kernel need not do; it is not a measured time.

    >>> layer = nn.Linear(3, 2)
    >>> _ = torch.nn.init.zeros_(layer.weight[0].data), torch.nn.init.ones_(layer.weight[1].data)
    >>> nonzero_macs(layer, torch.zeros(1, 3))
    3.0
    """
    trace = trace_macs(model, example)
    nonzero, sizes = _nonzero(model), _sizes(model)
    fractions = {name: nonzero[name] / max(1, sizes[name]) for name in trace.by_parameter}
    return trace.between_activations + sum(macs * fractions[name] for name, macs in trace.by_parameter.items())


def file_bytes(path: str | Path) -> int:
    """Size of a file on disk, in bytes."""
    return Path(path).stat().st_size


def checked(plan: Plan, sizes: dict[str, int]) -> Plan:
    """The plan, which must be one of a model whose parameters have so many elements; raises `PlanError` otherwise."""
    for name in plan.extents:
        if name in sizes and plan.size(name, whole=True) != sizes[name]:
            raise PlanError(
                f"{name}: the plan measures {plan.size(name, whole=True)} elements, but it has {sizes[name]}: "
                "the plan belongs to another model"
            )
    for name, share in plan.shares.items():
        for parameter, per_unit in share.elements.items():
            if parameter not in sizes:
                raise PlanError(f"{name}: the plan names the parameter {parameter!r}, which the model does not have")
            if parameter not in plan.extents and share.units * per_unit > sizes[parameter]:
                raise PlanError(
                    f"{name}: the plan cuts {parameter} into {share.units} units of {per_unit}, but it has {sizes[parameter]} "
                    "elements: the plan belongs to another model"
                )
    return plan


def _sizes(model: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def _prepare_params(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
    sizes = _sizes(model)

    def count(plan: Plan | None) -> float:
        removed = sum(checked(plan, sizes).removed(name) for name in sizes) if plan else 0
        return float(sum(sizes.values()) - removed)

    return count


def _prepare_macs(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
    sizes, trace = _sizes(model), trace_macs(model, example)

    def count(plan: Plan | None) -> float:
        if plan is None:
            return trace.total
        checked(plan, sizes)
        if "macs" in plan.extents:  # where layers are coupled, what one loses its neighbours lose too
            return float(plan.size("macs"))
        kept = {name: 1 - plan.removed(name) / max(1, sizes[name]) for name in trace.by_parameter}
        return trace.between_activations + sum(macs * kept[name] for name, macs in trace.by_parameter.items())

    return count


def _prepare_bytes(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
    sizes = _sizes(model)
    widths = {name: parameter.element_size() for name, parameter in model.named_parameters()}
    parameters = {id(parameter) for parameter in model.parameters()}
    buffers = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in parameters}

    def count(plan: Plan | None) -> float:
        if plan is not None:
            checked(plan, sizes)
        masked = {name for share in plan.shares.values() for name in share.elements} if plan and not plan.extents else set()
        total = sum(
            tensor.element_size() * (plan.size(name) if plan and name in plan.extents else tensor.numel())
            for name, tensor in buffers.items()
        )
        for name, size in sizes.items():
            left = size - plan.removed(name) if plan else size
            bits = plan.bits_of(name) if plan else None
            index = (size + 7) // 8 if name in masked else 0
            total += index + (left * widths[name] if bits is None else (left * bits + 7) // 8)
        return float(total)

    return count


params = Cost("params", "parameters", _prepare_params)
"""Parameters, tied ones once; of a plan, those that it leaves."""

macs = Cost("macs", "MACs", _prepare_macs)
"""MACs of one forward pass of the example; of a plan, those whose weight it leaves."""

tensor_bytes = Cost("tensor bytes", "bytes", _prepare_bytes)
"""Bytes of the tensors in the file that ``save`` writes, without its header; of a plan, those of the sparse layout, one index bit a
weight included, or those of the smaller model where whole channels go. Where the plan gives bits, a number takes so many."""
