"""How many numbers of each parameter a plan leaves, and whether it is a plan of this model at all."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from secateurs.types import Plan, PlanError, Product, Term


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


def elements(name: str, size: int, plan: Plan) -> Term:
    """How many of a parameter's ``size`` numbers stay, by what a plan's sites keep."""
    if name in plan.extents:
        return extent_term(name, plan.extents[name])
    parts = [(site, share.units, share.elements[name]) for site, share in plan.shares.items() if name in share.elements]

    def left(counts: Mapping[str, int]) -> float:
        return float(size - sum((units - counts[site]) * each for site, units, each in parts))

    return Term(name, tuple(site for site, *_ in parts), left)


def extent_term(layer: str, products: tuple[Product, ...]) -> Term:
    """The size that an extent tells, as a part of a cost."""

    def size(counts: Mapping[str, int]) -> float:
        return float(
            sum(prod([sum(n * prod([counts[site] for site in sites]) for n, sites in dim) for dim in each]) for each in products)
        )

    return Term(layer, tuple(sorted({site for each in products for dim in each for _, sites in dim for site in sites})), size)


def constant(layer: str, value: float) -> Term:
    """A part of a cost that no plan changes."""
    return Term(layer, (), lambda counts: float(value))


def times(term: Term, factor: float) -> Term:
    """So many times a part of a cost."""
    return Term(term.layer, term.sites, lambda counts: factor * term.value(counts))
