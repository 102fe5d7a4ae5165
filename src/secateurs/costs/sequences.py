"""Costs of models that work through sequences: the memory of keys and values, and the parameters that a token meets."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import nn

from secateurs.costs.elements import checked
from secateurs.forward import parameters_in
from secateurs.given import COUNT, require
from secateurs.graph import Routed, analyse, keys_and_values, mixtures_of
from secateurs.types import KEYS_AND_VALUES, Cost, Plan, SecateursError


def kv_cache_bytes(sequence: int, batch: int = 1) -> Cost:
    """The bytes of the keys and values that a cache holds of `batch` sequences of `sequence` places, in the dtype in which they are made.

    Of every attention, with as many heads as keys and values have; of a plan, of those that it leaves. Windows that bound what is kept are
    not looked at. Needs the example; raises `SecateursError` where the model has no attention.

    >>> import torch
    >>> attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 5, 8)
    >>> kv_cache_bytes(100)(attention, (x, x, x))
    6400.0
    """
    for name, value in (("sequence", sequence), ("batch", batch)):
        require("kv_cache_bytes", name, value, COUNT)
        if value < 1:
            raise SecateursError(f"kv_cache_bytes: {name}={value}, but must be at least 1")

    def prepare(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
        found = keys_and_values(analyse(model, example))
        if not found:
            raise SecateursError(
                f"kv_cache_bytes: {type(model).__name__} has no attention that the example passes, so nothing is kept"
            )
        whole = sum(size * prod(dim.size for dim in dims) for _, size, dims in found)
        sizes = {name: parameter.numel() for name, parameter in parameters_in(model).items()}

        def count(plan: Plan | None) -> float:
            if plan is not None:
                checked(plan, sizes)
            here = plan.size(KEYS_AND_VALUES) if plan is not None and KEYS_AND_VALUES in plan.extents else whole
            return float(here * sequence * batch)

        return count

    return Cost(f"kv_cache_bytes({sequence}, {batch})", "bytes", prepare)


def _prepare_active(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
    sizes = {name: parameter.numel() for name, parameter in parameters_in(model).items()}
    owner: dict[str, Routed] = {}
    for found in mixtures_of(model, example)[0] if example is not None else ():
        for name in sizes:
            if name.startswith(f"{found.experts}.") and name not in found.router:
                owner[name] = found

    def count(plan: Plan | None) -> float:
        if plan is not None:
            checked(plan, sizes)
        total = 0.0
        for name, size in sizes.items():
            left = size - (plan.removed(name) if plan is not None else 0)
            total += left if name not in owner else left * owner[name].top / _experts_left(owner[name], plan)
        return total

    return count


def _experts_left(found: Routed, plan: Plan | None) -> int:
    """How many experts a plan leaves of a mixture; all, where it is about something else."""
    shares = plan.shares if plan is not None else {}
    of_list = [shares.get(f"{found.experts}.{index}") for index in range(found.count)] if found.listed else []
    if of_list and all(share is not None and share.units == 1 for share in of_list):
        return max(found.top, sum(share.kept for share in of_list if share is not None))
    share = shares.get(found.name or "experts")
    return share.kept if share is not None and not found.listed and share.units == found.count else found.count


active_params = Cost("active_params", "parameters", _prepare_active)
"""Parameters that one token meets: all but those of the experts to which it is not sent, on average over experts of unequal size. Of a
plan, of what it leaves. Needs the example, which shows the mixtures; without one, or without mixtures, all parameters count."""
