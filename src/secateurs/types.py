"""The words of the house: what every other room hands to its neighbours, and nothing that computes.

A *pattern* cuts weights into *units*; a *criterion* scores units; an *allocator* makes a *plan*, the number of units that each
*site* keeps; a *solver* chooses which ones; a *task* is what a user brings beside the model; a *hook* plugs into the training loop.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Within = Literal["model", "isomorphic", "layer", "row"] | int
"""Among whom units compete: all sites together, those of one kind (2407.04616: the same weight of the same class of layer, coupled
in the same way), their own layer, their own output row, or each M consecutive inputs."""

Role = Literal["producer", "consumer", "scale"]
"""What a member does with the units of its site: it makes them, reads them, or passes them on one by one."""

Scores = Tensor
"""``(contests, competitors)``, float32; higher = keep; only units of one contest are compared."""

Masks = Mapping[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape; ``True`` = kept."""


class SecateursError(ValueError):
    """Something that a caller can put right; the message names the place, the value and the way out."""


class KindError(SecateursError, TypeError):
    """An argument is another kind of thing than what is asked for."""


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


class Pattern(Protocol):
    """What a unit is, and among whom units compete: a `Tiling` of single weights, or a `Coupling` of many."""

    @property
    def within(self) -> Within: ...

    @property
    def kept_of_each(self) -> int | None:
        """Units that every contest keeps where the pattern itself decides (2 for 2:4), else ``None``."""


@runtime_checkable
class Tiling(Pattern, Protocol):
    """A pattern on single weights.

    It tiles the canonical view ``(groups, outputs, inputs, *kernel)`` with boxes of one size; the box is the unit. ``tail`` says
    what happens to the last outputs or inputs that do not fill a box: ``"error"``, or ``"keep"`` to leave them dense.
    """

    @property
    def tail(self) -> Literal["error", "keep"]: ...

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Size of a unit along ``(outputs, inputs, *kernel)`` of a weight of that canonical shape; raises `PatternError`."""


@runtime_checkable
class Coupling(Pattern, Protocol):
    """A pattern whose units are the indices of an axis, in every weight where it lies.

    Kept numbers make widths that are multiples of ``round_to``; ``approximate`` lets axes take part over which a reduction runs;
    ``only_heads`` leaves all others alone.
    """

    @property
    def round_to(self) -> int: ...

    @property
    def approximate(self) -> bool: ...

    @property
    def only_heads(self) -> bool: ...


@dataclass(frozen=True)
class Member:
    """One weight's part in a site: where it lives, and how it is seen as units.

    ``canonical`` maps a tensor of the parameter's shape to its view ``(groups, outputs, inputs, *kernel)``; ``cut`` maps that view
    to ``(*contests, *competitors, *elements)``. Both return views, so writing through them writes the parameter (or its mask).
    ``stacked``: the groups are matrices that each meet inputs of their own, as those of experts; each is observed by itself.
    """

    parameter: str
    module: nn.Module
    attribute: str
    canonical: Callable[[Tensor], Tensor]
    cut: Callable[[Tensor], Tensor]
    role: Role = "producer"
    stacked: bool = False

    @property
    def weight(self) -> nn.Parameter:
        return getattr(self.module, self.attribute)

    @property
    def shape(self) -> torch.Size:
        """Shape of the canonical view."""
        return self.canonical(torch.empty(self.weight.shape, device="meta")).shape


@dataclass(frozen=True)
class Site:
    """A named set of units that compete with each other.

    ``contests`` and ``competitors`` are the shapes of the leading parts of a cut; what trails them are a unit's elements.
    ``alive`` (bool, ``(contests, competitors)``) marks the units that an earlier pruning left, or is ``None`` at first. All contests
    keep the same number, a multiple of ``step``, or what they have. ``kind`` is the same for sites that are isomorphic;
    ``note`` is for people.

    >>> from secateurs.patterns import Element, find_sites
    >>> masks = {"weight": torch.tensor([[True, True, True], [True, False, False]])}
    >>> site = find_sites(nn.Linear(3, 2), Element(within="row"), masks=masks)[0]
    >>> site.available, [site.kept_by(each) for each in (1, 2, 3)], site.each_of(3)
    (4, [2, 3, 4], 2)
    """

    name: str
    members: tuple[Member, ...]
    contests: tuple[int, ...]
    competitors: tuple[int, ...]
    elements_per_unit: int
    pattern: Pattern
    alive: Tensor | None = None
    step: int = 1
    kind: str = ""
    note: str = ""

    @property
    def contest_count(self) -> int:
        return torch.Size(self.contests).numel()

    @property
    def units(self) -> int:
        """How many units there are, pruned or not."""
        return self.contest_count * torch.Size(self.competitors).numel()

    @property
    def available(self) -> int:
        """How many units a plan may keep: those that are still alive, of a pattern such as 2:4 no more than it lets stay."""
        return self.kept_by(self.fullest)

    @property
    def fullest(self) -> int:
        """How many units the fullest contest may keep."""
        most, decided = self.left[-1][0], self.pattern.kept_of_each
        return most if decided is None else min(most, decided)

    @cached_property
    def left(self) -> tuple[tuple[int, int], ...]:
        """How many contests have so many units alive: ``((units, contests), …)``, the fullest last."""
        if self.alive is None:
            return ((torch.Size(self.competitors).numel(), self.contest_count),)
        units, contests = self.alive.sum(1).unique(return_counts=True)
        return tuple(zip(units.tolist(), contests.tolist(), strict=True))

    def kept_by(self, each: int) -> int:
        """How many units stay where every contest keeps `each`, or all that it has left."""
        return sum(min(units, each) * contests for units, contests in self.left)

    def each_of(self, kept: int) -> int:
        """How many units every contest keeps, or all that it has left, so that `kept` stay; raises `PlanError` where none does."""
        if not 0 <= kept <= self.available:
            raise PlanError(f"{self.name}: the plan keeps {kept} units, but only {self.available} of {self.units} can be kept")
        each = bisect_left(range(self.fullest), kept, key=self.kept_by)
        if self.kept_by(each) != kept:
            near = " or ".join(str(self.kept_by(number)) for number in (each - 1, each))
            raise PlanError(
                f"{self.name}: {self.pattern} lets {self.contest_count} groups compete, each keeping the same number "
                f"or all that an earlier pruning left of it, so the plan can keep {near} units, not {kept}"
            )
        return each


@dataclass(frozen=True)
class Skipped:
    """A weight that is left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sites(Sequence[Site]):
    """The sites that a pattern found in a model, with what it left alone; of axes, the ``structure`` that they come from."""

    found: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    model: nn.Module
    example: Any = None
    extents: Extents = field(default_factory=dict)
    structure: Any = field(default=None, repr=False, compare=False)

    def __getitem__(self, index: Any) -> Any:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        """A table: each site with its units, what is tied in it and what is to be known of it; then what was left alone, and why."""
        rows = [("site", "units", "tied", "")]
        for site in self.found:
            tied = list(dict.fromkeys(member.parameter for member in site.members))
            shown = ", ".join(tied[:4]) + (f", and {len(tied) - 4} more" if len(tied) > 4 else "")
            rows.append((site.name, str(site.units), shown, site.note))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {units:>{widths[1]}}  {tied:<{widths[2]}}  {note}".rstrip() for name, units, tied, note in rows
        ]
        if self.skipped:
            lines += ["", "left alone:", *(f"  {item.name}: {item.reason}" for item in self.skipped)]
        return "\n".join(lines)


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


Product = tuple[tuple[tuple[int, tuple[str, ...]], ...], ...]
"""A product of dimensions, each a sum of numbers times the units that some sites keep: ``(((64, ("heads",)),), ((48, ()),))``."""

Extents = Mapping[str, tuple[Product, ...]]
"""Parameter or buffer → its number of elements; ``"macs"`` → those of the whole model: sums of products, where sites are coupled."""


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
    extents: Extents = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.shares[name].kept

    def __iter__(self) -> Iterator[str]:
        return iter(self.shares)

    def __len__(self) -> int:
        return len(self.shares)

    @property
    def sparsity(self) -> float:
        """Fraction of the elements of all sites that the plan removes."""
        if self.extents:
            names = {name for share in self.shares.values() for name in share.elements}
            whole = sum(self.size(name, whole=True) for name in names)
            return 1 - sum(self.size(name) for name in names) / whole if whole else 0.0
        sizes = [(share.units, share.kept, sum(share.elements.values())) for share in self.shares.values()]
        total = sum(units * size for units, _, size in sizes)
        return 1 - sum(kept * size for _, kept, size in sizes) / total if total else 0.0

    def size(self, name: str, whole: bool = False) -> int:
        """What the plan leaves of a thing in ``extents``; ``whole=True``: what there was before."""
        counts = {site: share.units if whole else share.kept for site, share in self.shares.items()}
        return sum(
            prod(sum(number * prod(counts[site] for site in sites) for number, sites in dim) for dim in product)
            for product in self.extents[name]
        )

    def removed(self, parameter: str) -> int:
        """How many elements of one parameter the plan removes."""
        if parameter in self.extents:
            return self.size(parameter, whole=True) - self.size(parameter)
        shares = [share for share in self.shares.values() if parameter in share.elements]
        return sum((share.units - share.kept) * share.elements[parameter] for share in shares)

    def to_json(self) -> str:
        shares = {
            name: {"units": share.units, "kept": share.kept, "elements": dict(share.elements)}
            for name, share in self.shares.items()
        }
        document = {"shares": shares, "promised": dict(self.promised)}
        return json.dumps({**document, "extents": self.extents} if self.extents else document)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises `PlanError` where the text is not a plan."""
        try:
            document = json.loads(text)
            shares = {str(name): _share(entry) for name, entry in document["shares"].items()}
            extents = {str(name): _extent(entry, shares) for name, entry in document.get("extents", {}).items()}
            measured = {name for share in shares.values() for name in share.elements} - extents.keys() if extents else ()
            if measured:
                raise ValueError(f"says nothing of the size of {min(measured)!r}")
            return Plan(shares, {str(unit): _number(value) for unit, value in document["promised"].items()}, extents)
        except (TypeError, KeyError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise PlanError(f"this is not a plan ({repr(error)[:200]}): expected what Plan.to_json() wrote") from error


_LARGEST = 2**63


def _share(entry: Mapping[str, Any]) -> Share:
    share = Share(_whole(entry["units"]), _whole(entry["kept"]), {str(name): _whole(n) for name, n in entry["elements"].items()})
    if share.kept > share.units:
        raise ValueError(f"keeps {share.kept} of {share.units} units")
    return share


def _extent(entry: Any, sites: Mapping[str, Share]) -> tuple[Product, ...]:
    found = tuple(tuple(tuple((_whole(n), tuple(map(str, names))) for n, names in dim) for dim in product) for product in entry)
    unknown = {name for product in found for dim in product for _, names in dim for name in names} - sites.keys()
    if unknown:
        raise ValueError(f"measures by {min(unknown)!r}, of which it says nothing")
    for product in found:
        _bounded(sum(n * _bounded(sites[name].units for name in names) for n, names in dim) for dim in product)
    return found


def _bounded(factors: Iterable[int]) -> int:
    """A product, or `ValueError` before it is larger than any model."""
    known, product = list(factors), 1
    for factor in () if 0 in known else known:
        product *= factor
        if product >= _LARGEST:
            raise ValueError("speaks of more numbers than any model has")
    return 0 if 0 in known else product


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"{value!r} is no whole number of a size that a model can have")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number")
    return float(value)  # type: ignore[arg-type]


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
        if not isinstance(model, nn.Module):
            raise KindError(f"{self.name}: model is a {type(model).__name__}, but must be a torch.nn.Module")
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


@dataclass(frozen=True)
class Task:
    """What a user brings beside the model.

    ``example`` is what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments. Batches come
    from any iterable that can be walked again (a DataLoader, a list): pairs ``(inputs, target)``, or mappings whose keys are the
    model's arguments, with the target in ``labels``; of others ``unpack`` makes ``(inputs, target)``. ``loss(output, target)`` and
    ``metric(output, target)`` are means over a batch; a model that returns its own ``loss`` needs no other. ``validation`` is for
    choosing, ``test`` is for reporting, once. ``calibration`` is what statistics are observed on, by default the training batches.

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
    unpack: Callable[[Any], tuple[Any, Any]] | None = None
    name: str = "task"

    def __post_init__(self) -> None:
        for name in ("loss", "metric", "unpack"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise KindError(f"Task: {name} is {value!r}, but must be a function, for example torch.nn.functional.cross_entropy")
        for name in ("train", "validation", "test", "calibration"):
            value = getattr(self, name)
            if isinstance(value, (Tensor, str)) or not (
                value is None or isinstance(value, Iterable) or hasattr(value, "__getitem__")
            ):
                what = f"one tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise KindError(
                    f"Task: {name} is {what}, but must be batches, one after the other: a DataLoader, or a list of them"
                )


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
