"""The words of the house: what every other room hands to its neighbours, and nothing that computes.

A *pattern* cuts weights into *units*; a *criterion* scores units; an *allocator* makes a *plan*, the number of units that each
*site* keeps; a *solver* chooses which ones; a *task* is what a user brings beside the model; a *hook* plugs into the training loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Within = Literal["model", "layer", "row"] | int
"""Among whom units compete: all sites together, their own layer, their own output row, or each M consecutive inputs."""

Scores = Tensor
"""``(contests, competitors)``, float32; higher = keep; only units of one contest are compared."""

Masks = Mapping[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape; ``True`` = kept."""


class SecateursError(ValueError):
    """Something that a caller can put right; the message names the place, the value and the way out."""


class PatternError(SecateursError):
    """A pattern does not fit a weight."""


class PlanError(SecateursError):
    """A plan asks for a number of units that is not there."""


class NonFiniteError(SecateursError):
    """A weight, a score or a loss is NaN or infinite."""


class TaskError(SecateursError):
    """The task and the model do not fit each other: example, batches, loss, metric, dtype or device."""


class FileError(SecateursError):
    """A file is truncated, corrupted, hostile, or belongs to another model."""


class WriteError(OSError, SecateursError):
    """A file could not be written: a full disk, a folder that is missing or read-only; what was there before is untouched."""


# ---------------------------------------------------------------- granularity


@runtime_checkable
class Pattern(Protocol):
    """How a weight is cut into units, and among whom they compete.

    Every pattern on a single weight tiles the canonical view ``(groups, outputs, inputs, *kernel)`` with boxes of one size; the
    box is the unit. ``tail`` says what happens to the last outputs or inputs that do not fill a box: ``"error"``, or ``"keep"``
    to leave them dense.
    """

    @property
    def within(self) -> Within: ...

    @property
    def tail(self) -> Literal["error", "keep"]: ...

    @property
    def kept_of_each(self) -> int | None:
        """Units that every contest keeps where the pattern itself decides (2 for 2:4), else ``None``."""

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Size of a unit along ``(outputs, inputs, *kernel)`` of a weight of that canonical shape; raises `PatternError`."""


@dataclass(frozen=True)
class Member:
    """One weight's part in a site: where it lives, and how it is seen as units.

    ``canonical`` maps a tensor of the parameter's shape to its view ``(groups, outputs, inputs, *kernel)``; ``cut`` maps that view
    to ``(*contests, *competitors, *elements)``. Both return views, so writing through them writes the parameter (or its mask).
    """

    parameter: str
    module: nn.Module
    attribute: str
    canonical: Callable[[Tensor], Tensor]
    cut: Callable[[Tensor], Tensor]

    @property
    def weight(self) -> nn.Parameter:
        return getattr(self.module, self.attribute)


@dataclass(frozen=True)
class Site:
    """A named set of units that compete with each other.

    ``contests`` and ``competitors`` are the shapes of the leading parts of a cut; what trails them are a unit's elements.
    ``alive`` (bool, ``(contests, competitors)``) marks the units that an earlier pruning left, or is ``None`` at first.
    """

    name: str
    members: tuple[Member, ...]
    contests: tuple[int, ...]
    competitors: tuple[int, ...]
    elements_per_unit: int
    pattern: Pattern
    alive: Tensor | None = None

    @property
    def contest_count(self) -> int:
        return torch.Size(self.contests).numel()

    @property
    def units(self) -> int:
        """How many units there are, pruned or not."""
        return self.contest_count * torch.Size(self.competitors).numel()

    @property
    def available(self) -> int:
        """How many units a plan may keep: those that are still alive."""
        return self.units if self.alive is None else int(self.alive.sum())


@dataclass(frozen=True)
class Skipped:
    """A weight that is left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sites(Sequence[Site]):
    """The sites that a pattern found in a model, with what it left alone."""

    found: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    model: nn.Module
    example: Any = None

    def __getitem__(self, index: Any) -> Any:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)


# ---------------------------------------------------------------- evidence and scores


@dataclass(frozen=True)
class Statistic:
    """Something worth watching while calibration batches pass through a layer.

    ``start(member)`` returns an accumulator for one weight; it is called with ``(inputs, output)`` of each forward pass of the
    weight's module. A criterion's ``result()`` broadcasts against the canonical view of the weight; a solver's may have any shape.
    """

    name: str
    start: Callable[[Member], Accumulator] = field(compare=False, repr=False)


class Accumulator(Protocol):
    """Collects one statistic of one weight, batch by batch."""

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
    reduction of the left one: Wanda is ``magnitude(p=1) * input_norm()``.

    >>> from secateurs.criteria import magnitude, random
    >>> (magnitude(p=1) * random(seed=0)).name
    'magnitude(p=1) * random(seed=0)'
    """

    name: str
    element: Callable[[Evidence], Tensor]
    reduce: Callable[[Tensor, tuple[int, ...]], Tensor]
    needs: tuple[Statistic, ...] = ()

    def __mul__(self, other: Criterion | Statistic) -> Criterion:
        if isinstance(other, Statistic):
            statistic = other
            other = Criterion(statistic.name, lambda evidence: evidence[statistic], self.reduce, (statistic,))
        if not isinstance(other, Criterion):
            return NotImplemented
        mine, theirs = self.element, other.element
        return replace(
            self,
            name=f"{self.name} * {other.name}",
            element=lambda evidence: mine(evidence) * theirs(evidence),
            needs=tuple(dict.fromkeys(self.needs + other.needs)),
        )


# ---------------------------------------------------------------- how much where


@dataclass(frozen=True)
class Share:
    """One site's part of a plan: how many of its units stay, and what one unit holds of each parameter."""

    units: int
    kept: int
    elements: Mapping[str, int]

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.units


@dataclass(frozen=True)
class Plan(Mapping[str, int]):
    """Site name → whole number of units kept; JSON in and out.

    >>> plan = Plan({"fc1": Share(units=10, kept=3, elements={"fc1.weight": 1})})
    >>> plan["fc1"], round(plan.sparsity, 3)
    (3, 0.7)
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    shares: Mapping[str, Share]
    promised: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.shares[name].kept

    def __iter__(self) -> Iterator[str]:
        return iter(self.shares)

    def __len__(self) -> int:
        return len(self.shares)

    @property
    def sparsity(self) -> float:
        """Fraction of the elements of all sites that the plan removes."""
        sizes = [(share.units, share.kept, sum(share.elements.values())) for share in self.shares.values()]
        total = sum(units * size for units, _, size in sizes)
        return 1 - sum(kept * size for _, kept, size in sizes) / total if total else 0.0

    def removed(self, parameter: str) -> int:
        """How many elements of one parameter the plan removes."""
        shares = [share for share in self.shares.values() if parameter in share.elements]
        return sum((share.units - share.kept) * share.elements[parameter] for share in shares)

    def to_json(self) -> str:
        shares = {
            name: {"units": share.units, "kept": share.kept, "elements": dict(share.elements)}
            for name, share in self.shares.items()
        }
        return json.dumps({"shares": shares, "promised": dict(self.promised)})

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises `PlanError` where the text is not a plan."""
        try:
            document = json.loads(text)
            shares = {str(name): _share(entry) for name, entry in document["shares"].items()}
            return Plan(shares, {str(unit): float(value) for unit, value in document["promised"].items()})
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
            raise PlanError(f"this is not a plan ({error!r}): expected what Plan.to_json() wrote") from error


def _share(entry: Mapping[str, Any]) -> Share:
    share = Share(_whole(entry["units"]), _whole(entry["kept"]), {str(name): _whole(n) for name, n in entry["elements"].items()})
    if share.kept > share.units:
        raise ValueError(f"keeps {share.kept} of {share.units} units")
    return share


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no whole number")
    return value


class Allocator(Protocol):
    """Decides how many units each site keeps; ``scores`` may be called again and again, and then computes again."""

    def __call__(self, sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan: ...


@dataclass(frozen=True)
class Cost:
    """A number with a unit, of a model as it is or as a plan would leave it.

    ``prepare(model, example)`` does the slow part once (a traced forward pass, a measurement) and returns a cheap function of a
    plan, or of ``None`` for the model as it is: searches over plans call that one.

    >>> from secateurs.costs import params
    >>> params(torch.nn.Linear(3, 2))
    8.0
    """

    name: str
    unit: str
    prepare: Callable[[nn.Module, Any], Callable[[Plan | None], float]]

    def __call__(self, model: nn.Module, example: Any = None, plan: Plan | None = None) -> float:
        return self.prepare(model, example)(plan)


@dataclass(frozen=True)
class Budget:
    """A cost and a limit on it: absolute (``limit=``, in the cost's unit) or relative to the model as it is (``keep=``).

    >>> from secateurs.costs import params
    >>> Budget(params, keep=0.25).limit_for(torch.nn.Linear(3, 2), None)
    2.0
    """

    cost: Cost
    limit: float | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if (self.limit is None) == (self.keep is None):
            raise SecateursError(f"Budget({self.cost.name}): give either limit= (in {self.cost.unit}) or keep= (a fraction)")
        if self.limit is not None and not self.limit > 0:
            raise SecateursError(f"Budget({self.cost.name}, limit={self.limit}): the limit must be above 0 {self.cost.unit}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise SecateursError(f"Budget({self.cost.name}, keep={self.keep}): the fraction kept must be in (0, 1]")

    def limit_for(self, model: nn.Module, example: Any) -> float:
        """The limit in the cost's unit."""
        return self.limit if self.limit is not None else (self.keep or 0) * self.cost(model, example)


# ---------------------------------------------------------------- which ones


@dataclass(frozen=True)
class Solution:
    """What a solver decided for one site: which units stay (bool, ``(contests, competitors)``), and what the weights become.

    ``weights`` maps parameter names to new values; parameters that are not named keep theirs.
    """

    kept: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class Solver(Protocol):
    """Chooses the units that a site keeps, and may adjust the weights that stay."""

    @property
    def needs(self) -> tuple[Statistic, ...]: ...

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]: ...

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution: ...


# ---------------------------------------------------------------- what the user brings


def pair(batch: Any) -> tuple[Any, Any]:
    """Splits a batch ``(inputs, target)``, the usual shape of a data loader's batches."""
    inputs, target = batch
    return inputs, target


@dataclass(frozen=True)
class Task:
    """What a user brings beside the model.

    ``example`` is what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments. Batches come
    from any iterable that can be walked again (a DataLoader, a list); ``unpack`` splits one into ``(inputs, target)``, and
    ``loss(output, target)`` and ``metric(output, target)`` are means over a batch. ``validation`` is for choosing, ``test`` is for
    reporting, once. ``calibration`` is what statistics are observed on, by default the training batches.

    >>> task = Task(example=torch.zeros(1, 3), loss=nn.functional.mse_loss)
    >>> task.metric is None
    True
    """

    example: Any
    train: Iterable[Any] | None = None
    validation: Iterable[Any] | None = None
    test: Iterable[Any] | None = None
    calibration: Iterable[Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    metric: Callable[[Any, Any], Tensor | float] | None = None
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    unpack: Callable[[Any], tuple[Any, Any]] = pair
    name: str = "task"


# ---------------------------------------------------------------- recovering


@dataclass
class Run:
    """The state of one training run, as hooks see it and may change it."""

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    epochs: int
    scheduler: Any = None
    masks: Any = None
    epoch: int = 0
    step: int = 0
    inputs: Any = None
    output: Any = None
    target: Any = None
    history: list[dict[str, float]] = field(default_factory=list)


def _nothing(run: Run) -> None:
    return None


def _no_state() -> dict[str, Any]:
    return {}


def _ignore_state(state: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True)
class Hook:
    """What plugs into the training loop; every part has a default that does nothing.

    In the order in which the loop calls them: ``start`` once, after a checkpoint was restored; ``epoch`` before each epoch;
    ``loss`` after each forward pass, returning what is added to the loss; ``gradients`` once the gradients of a step are complete;
    ``stepped`` after the optimizer's step; ``epoch_end`` after the epoch's validation, before its checkpoint is written.
    ``state`` and ``restore`` carry a hook through a checkpoint: tensors, numbers, strings, lists and dicts of them.

    >>> halve = Hook("halve", gradients=lambda run: [p.grad.mul_(0.5) for p in run.model.parameters()] and None)
    >>> halve.name
    'halve'
    """

    name: str
    start: Callable[[Run], None] = _nothing
    epoch: Callable[[Run], None] = _nothing
    loss: Callable[[Run], Tensor | None] = _nothing
    gradients: Callable[[Run], None] = _nothing
    stepped: Callable[[Run], None] = _nothing
    epoch_end: Callable[[Run], None] = _nothing
    state: Callable[[], dict[str, Any]] = _no_state
    restore: Callable[[Mapping[str, Any]], None] = _ignore_state
