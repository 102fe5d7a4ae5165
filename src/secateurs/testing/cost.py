"""The laws of costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isclose, isfinite
from typing import Any

from torch import nn

from secateurs.allocate import uniform
from secateurs.criteria import magnitude
from secateurs.masks import Masks
from secateurs.patterns import Element, find_sites
from secateurs.prune import prune_
from secateurs.solve import TopK
from secateurs.testing.specimens import LAYERS, NETWORKS, Specimen, earlier_masks, unchanged
from secateurs.types import Cost, Pattern, Plan, PlanError, Share, Task

_ELEMENT = Element()

Counted = Callable[[nn.Module, Any, Masks], float]
"""``(pruned model, example, masks)`` → the cost as it is counted or measured there."""


def check_cost(cost: Cost, *, counted: Counted | None = None, on: Sequence[Specimen] | None = None) -> None:
    """Raise `AssertionError` where a cost breaks a law, on small layers and networks (``on=`` to choose others).

    - it has a name and a unit, and is finite and not negative
    - a plan that removes a quarter or more costs no more than the dense model, and a sparser plan no more than a denser one
    - the model is left as it was; the same plan costs the same
    - a plan of another model is a `PlanError`
    - ``counted=``: what a plan promises is what is counted on the model that was really pruned, also where an earlier pruning left
      rows that compete apart with unequal numbers of weights

    >>> from secateurs.costs import nonzero_params, params
    >>> check_cost(params, counted=lambda model, example, masks: nonzero_params(model))
    """
    assert cost.name, f"{cost!r} needs a name: a number without it cannot be read"
    assert cost.unit, f"{cost!r} needs a unit: a number without it cannot be read"
    for specimen in on or (*LAYERS, *NETWORKS):
        where = f"{cost.name} of the {specimen.name}"
        model = specimen.model()
        with unchanged(model, where):
            _check_plans(cost, model, specimen.example, where)
        if counted is not None:
            _check_promise(cost, counted, specimen, where)


def _plan(model: nn.Module, keep: float, pattern: Pattern = _ELEMENT, masks: Masks | None = None) -> Plan:
    sites = find_sites(model, pattern, only="*", masks=masks)
    return uniform(keep=keep)(sites, lambda: TopK(magnitude()).scores(sites, {}))


def _check_plans(cost: Cost, model: nn.Module, example: Any, where: str) -> None:
    count = cost.prepare(model, example)
    last = count(None)
    assert isfinite(last), f"{where}: the dense model costs {last} {cost.unit}"
    for keep in (0.75, 0.5, 0.25, 0.1):
        plan = _plan(model, keep)
        value = count(plan)
        assert isfinite(value), f"{where}: keep={keep} costs {value} {cost.unit}"
        assert value >= 0, f"{where}: keep={keep} costs {value} {cost.unit}"
        assert value <= last, f"{where}: keep={keep} costs {value} {cost.unit}, more than {last}, the cost of keeping more"
        assert count(plan) == value, (
            f"{where}: keep={keep} costs {count(plan)} {cost.unit} at the second call, {value} at the first"
        )
        last = value
    stranger = Plan({"no such site": Share(units=2, kept=1, elements={"no such parameter": 1})})
    try:
        count(stranger)
    except PlanError:
        return
    raise AssertionError(f"{where}: a plan that names parameters that the model does not have must be a PlanError")


def _check_promise(cost: Cost, counted: Counted, specimen: Specimen, where: str) -> None:
    for keep, pattern, uneven in ((0.5, _ELEMENT, False), (0.2, _ELEMENT, False), (0.4, Element(within="row"), True)):
        model = specimen.model()
        masks = _uneven_(model) if uneven else None
        plan = _plan(model, keep, pattern, masks)
        promised = cost(model, specimen.example, plan)
        solver, task = TopK(magnitude()), Task(example=specimen.example)
        masks = prune_(model, pattern, solver, lambda sites, scores, plan=plan: plan, task, only="*", masks=masks)
        found = counted(model, specimen.example, masks)
        said = f"{where}: keep={keep}" + (" after an earlier pruning" if uneven else "")
        assert isclose(promised, found, rel_tol=1e-9), (
            f"{said} promises {promised} {cost.unit}, but {found} are counted on the pruned model"
        )


def _uneven_(model: nn.Module) -> Masks:
    """An earlier pruning of every weight, after which rows have unequal numbers of weights."""
    names = [member.parameter for site in find_sites(model, _ELEMENT, only="*") for member in site.members]
    return Masks(earlier_masks(model, names), model).apply_()
