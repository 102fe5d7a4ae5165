"""What is observed of a model while it runs, and criteria that make scores of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from secateurs.types.errors import SecateursError

Watched = Literal[
    "inputs",
    "output_gradients",
    "weights",
    "weight_gradients",
    "weight_curvatures",
    "flow",
    "record",
    "values",
    "value_gradients",
    "stream",
    "removals",
    "routing",
]
"""What a statistic watches: what a layer is given, the gradient of the loss by what it answers, weights without or with their
gradient, their second derivatives, what flows through the network without data, nothing any more (it was recorded in training), and the
numbers that the readers of some units are given, without or with their gradient, the stream before and behind some units, the loss
without each of them, and what a router sends to experts."""

Hessian = Literal["hutchinson", "gauss_newton", "exact", "gradient"]
"""Which numbers of the matrix H of second derivatives of the loss are looked at: its diagonal, from products with random signs, of
the part without second derivatives of the network, or number by number; or its product with the gradient."""

Counted = Literal["producers", "consumers", "norms", "all"]
"""Whose elements count where many weights are coupled in a unit: those that make it, those that read it, the scales of the
normalisations that it passes, or every one."""

_OF_WEIGHTS = ("inputs", "output_gradients", "weight_gradients", "weight_curvatures", "flow", "record")
_OF_UNITS = ("weight_gradients", "weight_curvatures", "record", "values", "value_gradients", "stream", "removals", "routing")


@dataclass(frozen=True)
class Curvature:
    """Which second derivatives are looked at, with how many random vectors a batch, and the seed of these.

    >>> Curvature("exact")
    Curvature(of='exact', probes=1, seed=0)
    """

    of: Hessian
    probes: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Seen:
    """What was there to be seen once, in one call of a layer or with one batch; what a statistic does not watch is ``None``.

    - ``inputs``: ``inputs`` and ``output`` of one call of a weight's layer; with ``output_gradients`` the ``gradient`` of the loss by
      the output too, of the output's shape
    - ``weight_gradients``: once a batch, the ``gradient`` of the loss by the weight in its canonical view, float32. Of units:
      ``values`` are the weights and ``gradient`` their gradients, both ``(contests, competitors, elements)``, all members in a row
    - ``weight_curvatures``: once a batch, ``curvature``, of the weight's canonical view, float32: what a `Curvature` says. Of units: wᵀHw
      of each, all its weights together, ``(contests, competitors)``
    - ``flow``: once, the ``gradient`` of what flows through the network of absolute weights by each of them, as a part of that flow
    - ``values``: the numbers that one reader of the units is given in one call, ``(units, samples, numbers)``, float32; with
      ``value_gradients`` the ``gradient`` of the loss by them, of the same shape

    - ``stream``: once a pass, the stream before a unit as ``inputs`` and behind it as ``output``, each ``(places, features)``, float32
    - ``routing``: once a call of a mixture, in ``values`` how many tokens were sent to each expert, and the sum of weight × norm of what it
      answered to them, ``(2, experts)``
    - ``removals``: once, in ``values`` how much the mean loss rises without each unit, ``(contests, competitors)``

    The loss is the mean over the batch; ``samples`` says of how many.
    """

    inputs: tuple[Any, ...] = ()
    output: Any = None
    values: Tensor | None = None
    gradient: Tensor | None = None
    samples: int = 1
    curvature: Tensor | None = None


class Accumulator(Protocol):
    """Collects one statistic of one weight, or of the units of one site, batch by batch.

    ``sums``, an attribute of its class, names those of its attributes that are sums over batches (tensors, ``None`` before the first):
    where several processes train one model, each with its own batches, they are added up over all of them before the result is asked for.
    """

    def add(self, seen: Seen) -> None: ...

    def result(self) -> Tensor: ...


@dataclass(frozen=True)
class Statistic:
    """Something worth watching while calibration batches pass through a model.

    ``watches`` says what, and ``of`` for whom. ``start(member)`` returns an accumulator for one weight; it gets a `Seen` for each
    forward pass of the weight's module, or for each batch. A criterion's ``result()`` broadcasts against the canonical view of the
    weight; a solver's may have any shape. Where second derivatives are watched, ``curvature`` says which. Of stacked matrices each has
    an accumulator of its own, whose member is a stack of one; the results are joined along the first dimension. With ``of="units"`` it
    is ``start(site)``, and results are ``(contests, competitors)``. Gradients are those of the task's loss, or with ``loss="answers"`` of
    the mean over samples of the L2 norm of what the model answers, or the block that is observed by itself: no labels are needed then.

    >>> Statistic("gradients of outputs", start=print, watches="output_gradients").needs_loss
    True
    """

    name: str
    start: Callable[[Any], Accumulator] = field(compare=False, repr=False)
    watches: Watched = field(default="inputs", repr=False)
    of: Literal["weights", "units"] = field(default="weights", repr=False)
    members: Counted = field(default="producers", repr=False)
    curvature: Curvature | None = field(default=None, repr=False)
    loss: Literal["task", "answers"] = field(default="task", repr=False)

    def __post_init__(self) -> None:
        known = _OF_WEIGHTS if self.of == "weights" else _OF_UNITS
        if self.watches not in known:
            raise SecateursError(f"{self.name}: of {self.of} one can watch {', '.join(known)}, not {self.watches!r}")
        if (self.watches == "weight_curvatures") is not (self.curvature is not None):
            raise SecateursError(f"{self.name}: curvature= says which second derivatives are watched, with weight_curvatures alone")

    @property
    def needs_loss(self) -> bool:
        """Whether gradients are watched of the task's loss, so that it must be known."""
        return self.needs_gradients and self.loss == "task"

    @property
    def needs_gradients(self) -> bool:
        """Whether gradients are watched."""
        return self.watches.endswith(("gradients", "curvatures"))

    @property
    def needs_data(self) -> bool:
        """Whether it is observed while batches pass through the whole model."""
        return self.watches not in ("flow", "record", "removals")


Stats = Mapping[str, Mapping[Statistic, Tensor]]
"""Parameter name → statistic → tensor that broadcasts against the canonical view of the weight; for statistics of units, site name →
statistic → ``(contests, competitors)``."""


@dataclass(frozen=True)
class Evidence:
    """All that a criterion may look at: one weight in its canonical view, float32, and what was observed of it."""

    name: str
    weight: Tensor
    observed: Mapping[Statistic, Tensor] = field(default_factory=dict)

    def __getitem__(self, statistic: Statistic) -> Tensor:
        return self.observed[statistic]


@dataclass(frozen=True, repr=False)
class Criterion:
    """How much the network would miss a unit. Higher = keep. It scores in one of three ways:

    - element by element: ``element`` returns a tensor that broadcasts against ``evidence.weight``, ``reduce(values, dims)`` removes the
      trailing ``dims``, those of the elements of one unit
    - by comparing units: ``compare`` makes scores ``(contests, competitors)`` of the elements of all of them, ``(contests, competitors,
      elements)``, as ``element`` gives them
    - by what was observed of the units themselves: ``units`` is the statistic that is the score

    Criteria multiply, with each other and with observed statistics: element by element before the reduction of the left one, as Wanda,
    which is ``magnitude(p=1) * input_norm()``, or unit by unit where one of them knows no elements. Where many weights are coupled in
    a unit, ``members`` says whose elements count: those that make it (1608.08710), those that read it, or all (2301.12900).

    ``normalise(scores, alive)`` has the last word over the scores of a whole site: see `secateurs.criteria.normalised`.

    >>> from secateurs.criteria import magnitude, random
    >>> (magnitude(p=1) * random(seed=0)).name
    'magnitude(p=1) * random(seed=0)'
    """

    name: str
    element: Callable[[Evidence], Tensor]
    reduce: Callable[[Tensor, tuple[int, ...]], Tensor]
    needs: tuple[Statistic, ...] = ()
    members: Counted = "producers"
    compare: Callable[[Tensor], Tensor] | None = None
    units: Statistic | None = None
    factors: tuple[Criterion, ...] = ()
    normalise: Callable[[Tensor, Tensor | None], Tensor] | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def by_elements(self) -> bool:
        """Whether it scores single weights and joins them."""
        return self.compare is None and self.units is None and not self.factors and self.normalise is None

    def __mul__(self, other: Criterion | Statistic) -> Criterion:
        if isinstance(other, Statistic):
            statistic = replace(other, members=self.members)
            observed = Observed(statistic)
            units = statistic if statistic.of == "units" else None
            other = Criterion(statistic.name, observed, self.reduce, (statistic,), self.members, units=units)
        if not isinstance(other, Criterion):
            return NotImplemented
        name, needs = f"{self.name} * {other.name}", tuple(dict.fromkeys(self.needs + other.needs))
        if self.by_elements and other.by_elements:
            return replace(self, name=name, element=_Times(self.element, other.element), needs=needs)
        return replace(self, name=name, needs=needs, compare=None, units=None, normalise=None, factors=(self, other))


@dataclass(frozen=True)
class Observed:
    """What was observed of a weight, as the ``element`` of a criterion."""

    statistic: Statistic

    def __call__(self, evidence: Evidence) -> Tensor:
        return evidence[self.statistic]


@dataclass(frozen=True)
class _Times:
    one: Callable[[Evidence], Tensor]
    other: Callable[[Evidence], Tensor]

    def __call__(self, evidence: Evidence) -> Tensor:
        return self.one(evidence) * self.other(evidence)
