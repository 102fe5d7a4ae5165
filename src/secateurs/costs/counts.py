"""Costs that are counted: parameters, multiply-accumulates, and the bytes of a file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.costs.elements import checked, constant, elements, extent_term, times
from secateurs.costs.sums import Sum
from secateurs.costs.trace import trace_macs
from secateurs.costs.workload import workload
from secateurs.forward import torch_masks
from secateurs.types import Cost, Plan, Prepared, Term


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


def _sizes(model: nn.Module) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def _prepare_params(model: nn.Module, example: Any) -> Prepared:
    sizes = _sizes(model)

    def terms(plan: Plan | None) -> list[Term]:
        if plan is None:
            return [constant(name, size) for name, size in sizes.items()]
        checked(plan, sizes)
        return [elements(name, size, plan) for name, size in sizes.items()]

    return Sum(terms)


def _prepare_macs(model: nn.Module, example: Any) -> Prepared:
    sizes, trace = _sizes(model), trace_macs(model, example)
    names = cache(lambda: workload(model, example).names)

    def terms(plan: Plan | None) -> list[Term]:
        between = constant("between activations", trace.between_activations)
        if plan is None:
            return [*(constant(name, macs) for name, macs in trace.by_parameter.items()), between]
        checked(plan, sizes)
        if "macs" in plan.extents:  # where layers are coupled, what one loses its neighbours lose too
            products = plan.extents["macs"]
            named = names() if len(products) > 1 else ("",)
            return [extent_term(name, (product,)) for name, product in zip(named, products, strict=True)]
        left = {name: elements(name, sizes[name], plan) for name in trace.by_parameter}
        return [*(times(left[name], macs / max(1, sizes[name])) for name, macs in trace.by_parameter.items()), between]

    return Sum(terms)


def _prepare_bytes(model: nn.Module, example: Any) -> Prepared:
    sizes = _sizes(model)
    widths = {name: parameter.element_size() for name, parameter in model.named_parameters()}
    parameters = {id(parameter) for parameter in model.parameters()}
    buffers = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in parameters}

    def terms(plan: Plan | None) -> list[Term]:
        of_buffers = [
            times(elements(name, tensor.numel(), plan), tensor.element_size())
            if plan is not None and name in plan.extents
            else constant(name, tensor.numel() * tensor.element_size())
            for name, tensor in buffers.items()
        ]
        if plan is None:
            return [*of_buffers, *(constant(name, size * widths[name]) for name, size in sizes.items())]
        checked(plan, sizes)
        masked = set() if plan.extents else {name for share in plan.shares.values() for name in share.elements}
        return [
            *of_buffers,
            *(
                _stored(elements(name, size, plan), widths[name], plan, size if name in masked else 0)
                for name, size in sizes.items()
            ),
        ]

    return Sum(terms)


def _stored(left: Term, width: int, plan: Plan, marked: int) -> Term:
    """The bytes of the numbers that stay of a parameter, and of a bit for each of ``marked`` numbers."""
    bits, index = plan.bits_of(left.layer), (marked + 7) // 8

    def size(counts: Mapping[str, int]) -> float:
        stays = left.value(counts)
        return index + (stays * width if bits is None else (stays * bits + 7) // 8)

    return Term(left.layer, left.sites, size)


params = Cost("params", "parameters", _prepare_params)
"""Parameters, tied ones once; of a plan, those that it leaves."""

macs = Cost("macs", "MACs", _prepare_macs)
"""MACs of one forward pass of the example; of a plan, those whose weight it leaves."""

tensor_bytes = Cost("tensor bytes", "bytes", _prepare_bytes)
"""Bytes of the tensors in the file that ``save`` writes, without its header; of a plan, those of the sparse layout, one index bit a
weight included, or those of the smaller model where whole channels go. Where the plan gives bits, a number takes so many."""
