"""Numbers with a unit, and limits on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from secateurs.types.errors import KindError, SecateursError
from secateurs.types.plan import Plan


@dataclass(frozen=True)
class Term:
    """A part of a cost: what a layer costs, told by how many units some sites keep, and by nothing else."""

    layer: str
    sites: tuple[str, ...]
    value: Callable[[Mapping[str, int]], float]


@runtime_checkable
class Prepared(Protocol):
    """What `Cost.prepare` may return where a cost is a sum: its parts as well, so that a search counts anew only what it changes."""

    def __call__(self, plan: Plan | None) -> float: ...

    def terms(self, plan: Plan | None) -> Sequence[Term]:
        """The parts of the sum for plans of these sites, whatever numbers of units they keep; without a plan, of the model as it is."""


@runtime_checkable
class Alternatives(Prepared, Protocol):
    """What `Cost.prepare` may return where a cost is the least of several sums, as a time is that of whichever runtime is fastest."""

    def sums(self, plan: Plan | None) -> Sequence[Sequence[Term]]:
        """The parts of each sum, for plans of these sites, whatever numbers of units they keep."""


@dataclass(frozen=True)
class Cost:
    """A number with a unit, of a model as it is or as a plan would leave it.

    ``prepare(model, example)`` does the slow part once (a traced forward pass, a measurement) and returns a cheap function of a
    plan, or of ``None`` for the model as it is: searches over plans call that one.

    >>> import torch
    >>> from secateurs.costs import params
    >>> params(torch.nn.Linear(3, 2))
    8.0
    """

    name: str
    unit: str
    prepare: Callable[[nn.Module, Any], Callable[[Plan | None], float]]

    def __call__(self, model: nn.Module, example: Any = None, plan: Plan | None = None) -> float:
        return self._of(model, example)(plan)

    def by_layer(self, model: nn.Module, example: Any = None, plan: Plan | None = None) -> dict[str, float]:
        """Layer → what it costs, in the order of the pass; raises `SecateursError` where the cost does not tell.

        >>> import torch
        >>> from secateurs.costs import params
        >>> params.by_layer(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)))
        {'0.weight': 6.0, '0.bias': 2.0, '1.weight': 2.0, '1.bias': 1.0}
        """
        prepared = self._of(model, example)
        if not isinstance(prepared, Prepared):
            raise SecateursError(f"{self.name}: this cost is of the whole model, and does not tell what each layer takes of it")
        return by_layer(prepared, plan)

    def _of(self, model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
        if not isinstance(model, nn.Module):
            raise KindError(f"{self.name}: model is a {type(model).__name__}, but must be a torch.nn.Module")
        return self.prepare(model, example)


def by_layer(prepared: Prepared, plan: Plan | None) -> dict[str, float]:
    """Layer → what it costs under a plan, of a cost that is prepared already."""
    counts = {} if plan is None else dict(plan)
    sums = prepared.sums(plan) if isinstance(prepared, Alternatives) else [prepared.terms(plan)]
    return min((_by_layer(terms, counts) for terms in sums), key=lambda found: sum(found.values()))


def _by_layer(terms: Sequence[Term], counts: Mapping[str, int]) -> dict[str, float]:
    found = dict[str, float]()
    for term in terms:
        found[term.layer] = found.get(term.layer, 0.0) + term.value(counts)
    return found


@dataclass(frozen=True)
class Budget:
    """A cost and a limit on it: absolute (``limit=``, in the cost's unit) or relative to the model as it is (``keep=``).

    >>> import torch
    >>> from secateurs.costs import params
    >>> Budget(params, keep=0.25).limit_for(torch.nn.Linear(3, 2), None)
    2.0
    """

    cost: Cost
    limit: float | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cost, Cost):
            raise KindError(f"Budget: cost is {self.cost!r}, but must be a cost, for example Budget(secateurs.macs, keep=0.5)")
        for name, value in (("limit", self.limit), ("keep", self.keep)):
            if value is not None and not isinstance(value, (int, float)):
                raise KindError(f"Budget({self.cost.name}): {name} is {value!r}, but must be a number")
        if (self.limit is None) == (self.keep is None):
            raise SecateursError(f"Budget({self.cost.name}): give either limit= (in {self.cost.unit}) or keep= (a fraction)")
        if self.limit is not None and not self.limit > 0:
            raise SecateursError(f"Budget({self.cost.name}, limit={self.limit}): the limit must be above 0 {self.cost.unit}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise SecateursError(f"Budget({self.cost.name}, keep={self.keep}): the fraction kept must be in (0, 1]")

    def limit_for(self, model: nn.Module, example: Any) -> float:
        """The limit in the cost's unit."""
        return self.limit if self.limit is not None else (self.keep or 0) * self.cost(model, example)
