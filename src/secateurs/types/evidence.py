"""What is observed of a model while it runs, and criteria that make scores of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from secateurs.types.units import Member

# ---------------------------------------------------------------- evidence and scores


@dataclass(frozen=True)
class Statistic:
    """Something worth watching while calibration batches pass through a layer.

    ``start(member)`` returns an accumulator for one weight; it is called with ``(inputs, output)`` of each forward pass of the
    weight's module. A criterion's ``result()`` broadcasts against the canonical view of the weight; a solver's may have any shape.
    Of stacked matrices each has an accumulator of its own, whose member is a stack of one; the results are joined along the first
    dimension.
    """

    name: str
    start: Callable[[Member], Accumulator] = field(compare=False, repr=False)


class Accumulator(Protocol):
    """Collects one statistic of one weight, batch by batch.

    ``sums``, an attribute of its class, names those of its attributes that are sums over batches (tensors, ``None`` before the first):
    where several processes train one model, each with its own batches, they are added up over all of them before the result is asked for.
    """

    def add(self, inputs: tuple[Any, ...], output: Any) -> None: ...

    def result(self) -> Tensor: ...


Stats = Mapping[str, Mapping[Statistic, Tensor]]
"""Parameter name → statistic → tensor that broadcasts against the canonical view of the weight."""


@dataclass(frozen=True)
class Evidence:
    """All that a criterion may look at: one weight in its canonical view, float32, and what was observed of it."""

    name: str
    weight: Tensor
    observed: Mapping[Statistic, Tensor] = field(default_factory=dict)

    def __getitem__(self, statistic: Statistic) -> Tensor:
        return self.observed[statistic]


@dataclass(frozen=True)
class Criterion:
    """How much the network would miss a unit: ``element`` scores single weights, ``reduce`` joins those of one unit.

    ``element`` returns a tensor that broadcasts against ``evidence.weight``; ``reduce(values, dims)`` removes the trailing
    ``dims``. Higher = keep. Criteria multiply, with each other and with observed statistics, element by element before the
    reduction of the left one: Wanda is ``magnitude(p=1) * input_norm()``. Where many weights are coupled in a unit, ``members`` says
    whose elements count: those that make it (1608.08710), or all (2301.12900).

    >>> from secateurs.criteria import magnitude, random
    >>> (magnitude(p=1) * random(seed=0)).name
    'magnitude(p=1) * random(seed=0)'
    """

    name: str
    element: Callable[[Evidence], Tensor]
    reduce: Callable[[Tensor, tuple[int, ...]], Tensor]
    needs: tuple[Statistic, ...] = ()
    members: Literal["producers", "all"] = "producers"

    def __mul__(self, other: Criterion | Statistic) -> Criterion:
        if isinstance(other, Statistic):
            other = Criterion(other.name, _Observed(other), self.reduce, (other,))
        if not isinstance(other, Criterion):
            return NotImplemented
        return replace(
            self,
            name=f"{self.name} * {other.name}",
            element=_Product(self.element, other.element),
            needs=tuple(dict.fromkeys(self.needs + other.needs)),
        )


@dataclass(frozen=True)
class _Observed:
    """A statistic as it was observed."""

    statistic: Statistic

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.statistic]


@dataclass(frozen=True)
class _Product:
    """Two scores of single weights, multiplied. An object and not a closure, so that criteria go to other processes."""

    left: Callable[[Evidence], Tensor]
    right: Callable[[Evidence], Tensor]

    def __call__(self, evidence: Evidence) -> Tensor:
        return self.left(evidence) * self.right(evidence)
