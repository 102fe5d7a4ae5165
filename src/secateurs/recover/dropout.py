"""Less capacity needs less dropout: Han's adjustment of dropout rates to pruned layers."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from secateurs.forward import run_example
from secateurs.patterns import find_weights
from secateurs.ranks import whole


def dropout_rates(model: nn.Module) -> dict[str, float]:
    """The rate of every dropout layer, by name.

    >>> dropout_rates(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4)))
    {'1': 0.4}
    """
    return {name: float(module.p) for name, module in model.named_modules() if isinstance(module, _DropoutNd)}


def adjust_dropout_(model: nn.Module, masks: Mapping[str, Tensor], example: Any, original: Mapping[str, float]) -> dict[str, float]:
    """Set each dropout layer's rate to D_o·√(C_r / C_o) (1506.02626, eq. 2) and return the new rates by name.

    C_o and C_r are the connections, before and after pruning, of the layer whose output is dropped: the last prunable layer that
    the example passed before. ``original`` holds the rates D_o of the dense network (`dropout_rates`), so that repeated calls do
    not pile up. Dropout inside attention and recurrent layers, which is not a layer of its own, stays as it is.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    >>> mask = torch.zeros(4, 4, dtype=torch.bool)
    >>> mask[0] = True
    >>> adjust_dropout_(model, {"0.weight": mask}, torch.zeros(1, 4), dropout_rates(model))
    {'1': 0.25}
    """
    rates = {}
    modules = dict(model.named_modules())
    for name, parameter in _dropped_weights(model, example).items():
        mask = masks.get(parameter)
        fraction = 1.0 if mask is None else int(whole(mask).count_nonzero()) / mask.numel()
        rates[name] = original[name] * sqrt(fraction)
        modules[name].p = rates[name]
    return rates


def _dropped_weights(model: nn.Module, example: Any) -> dict[str, str]:
    """Dropout layer → the weight of the last prunable layer that ran before it."""
    weights, _ = find_weights(model)
    parameter_of = {weight.module: weight.parameter for weight in weights}
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if isinstance(module, _DropoutNd)}
    found: dict[str, str] = {}
    last: list[str] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if module in parameter_of:
            last[:] = [parameter_of[module]]
        elif last:
            found.setdefault(names[module], last[0])

    hooks = [module.register_forward_hook(note) for module in [*parameter_of, *names]]
    try:
        run_example(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return found
