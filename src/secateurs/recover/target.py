"""The strength of a penalty found while training, from the sparsity that it is to reach; and what then becomes of what is at zero."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite, log
from typing import Any

import torch
from torch import Tensor

from secateurs.allocate import above, global_threshold, uniform
from secateurs.criteria import magnitude, normalised
from secateurs.given import BY_SPARSITY, require
from secateurs.masks import Masks
from secateurs.patterns import Selection
from secateurs.prune import prune_
from secateurs.recover.groups import Groups, root_mean_squares
from secateurs.recover.proximal import Step
from secateurs.solve import TopK
from secateurs.types import Allocator, Counted, FileError, NonFiniteError, Pattern, Run, SecateursError, Solver

_ARRIVAL = 0.8
_PROPORTIONAL, _INTEGRAL = 20.0, 100.0
_RANGE = log(1e4)
_LEAST = 0.05
"""What a unit counts at least that is above zero late, so that those which momentum lifts a little are held."""
_NEAR = 0.01


@dataclass(frozen=True)
class Target:
    """The sparsity that a penalty is to reach: the fraction of all units at zero, whose strength is found while training.

    Only the smallest units cost, as many as are to go: those that stay are not made smaller (the trimmed LASSO, 1708.04527). Which they are
    is seen anew after each step, over all sites by the root mean square of their weights; that of units of several weights in the measure
    of their site's mean when training began. No site loses more than the fraction ``ceiling`` of its units, by default half way from the
    target to all of them, and at least one unit stays, unless the whole site may go.

    The last unit that is to go shall get smaller along a line, and be at zero at four fifths of the epochs. Where it is larger than the
    line says the strength grows, else it falls: a controller with a proportional and an integral part, on the logarithm of the strength,
    critically damped, and within a factor of 10,000 of where it starts. That is ``start``, or what would bring the unit to zero by
    proximal steps alone. A unit is at zero where the root mean square of its weights is at most ``threshold``: by default 0 for proximal
    steps, and 0.001 for subgradients, which make no exact zeros (and under Adam may never settle: there take proximal steps).

    Reached (to one unit in a hundred), what is at zero is cut. Not reached, a warning tells what was, and that is cut; ``strict=True``
    then cuts the smallest of the rest as well, as ``allocate(sparsity=…)`` says, by default one threshold for all units.

    Raises `SecateursError` for a sparsity outside (0, 1), and for a ceiling, start or threshold that makes no sense.

    >>> Target(0.5, strict=True).sparsity
    0.5
    """

    sparsity: float
    strict: bool = False
    ceiling: float | None = None
    start: float | None = None
    threshold: float | None = None
    allocate: Callable[..., Allocator] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, bool) or not isinstance(self.sparsity, (int, float)) or not 0 < self.sparsity < 1:
            raise SecateursError(f"target={self.sparsity!r} is not in (0, 1); 0.9 is to bring 90 % of the units to zero")
        if self.ceiling is not None and not self.sparsity < self.ceiling <= 1:
            raise SecateursError(
                f"Target({self.sparsity}, ceiling={self.ceiling}): the ceiling must be above the target, and at most 1"
            )
        if self.start is not None and not 0 < self.start < float("inf"):
            raise SecateursError(f"Target(start={self.start}): the strength to begin with must be above 0, and finite")
        if self.threshold is not None and not 0 <= self.threshold < float("inf"):
            raise SecateursError(f"Target(threshold={self.threshold}): it must be at least 0, and finite")
        if self.allocate is not None:
            require("Target", "allocate", self.allocate, BY_SPARSITY)


@dataclass
class Control:
    """Finds the strength of one penalty; all its numbers go through a checkpoint."""

    target: Target
    pattern: Pattern
    members: Counted
    step: Step
    only: Selection | None
    skip: Selection | None
    numbers: dict[str, float] = field(default_factory=dict)
    scales: list[float] = field(default_factory=list)
    groups: tuple[Groups, ...] = ()
    costs: tuple[Tensor, ...] = ()

    def __str__(self) -> str:
        return f"group_lasso(target={self.target.sparsity})"

    @property
    def threshold(self) -> float:
        return threshold_of(self.step) if self.target.threshold is None else self.target.threshold

    @property
    def strength(self) -> float:
        return self.numbers["strength"]

    # ------------------------------------------------------------ while training

    def start(self, run: Run, groups: Sequence[Groups], until: int | None) -> None:
        """The strength to begin with, unless a checkpoint has given one."""
        epochs = max(1, run.epochs if until is None else min(until, run.epochs))
        self.groups, self.costs = tuple(groups), ()
        if self.numbers:
            self.numbers["epochs"] = float(epochs)
            if len(self.scales) != len(groups):
                raise FileError(
                    f"{self}: the checkpoint is of a penalty on {len(self.scales)} sites, and here are {len(groups)} "
                    f"({', '.join(each.site.name for each in groups[:5])}): give the same only= and skip=, or another checkpoint= path"
                )
            return
        self._require_room()
        sizes = self._sizes()
        if not all(bool(each.isfinite().all()) for each in sizes):
            raise NonFiniteError(
                f"{self}: weights are NaN or infinite before training; restore a checkpoint from before they diverged"
            )
        self.scales = [(float(size.mean()) or 1.0) if each.size > 1 else 1.0 for each, size in zip(groups, sizes, strict=True)]
        last = self._last(sizes) or 1.0
        rates = [max(float(group["lr"]), float(group.get("initial_lr", 0.0))) for group in run.optimizer.param_groups]
        steps = _steps_of(run)
        begin = self.target.start or last / ((max(rates) or 1.0) * epochs * _ARRIVAL * (steps or 100))
        self.numbers = {
            "begin": begin,
            "strength": begin,
            "integral": 0.0,
            "first": last,
            "steps": float(steps),
            "epochs": float(epochs),
            "epoch_step": float(run.step),
            "progress": 0.0,
        }

    def forget(self) -> None:
        """Begin anew, in another run."""
        self.numbers, self.scales = {}, []

    def begin_epoch(self, run: Run) -> None:
        self.numbers["epoch_step"] = float(run.step)
        self._look()

    def end_epoch(self, run: Run) -> None:
        """By now it is known how many steps an epoch has."""
        self.numbers["steps"] = run.step - self.numbers["epoch_step"]

    def measure(self, run: Run) -> None:
        """Look at the units, and set the strength."""
        numbers, last = self.numbers, self._look() / self.numbers["first"]
        within = (run.step - numbers["epoch_step"]) / numbers["steps"] if numbers["steps"] else 0.0
        progress = (run.epoch + min(within, 1.0)) / numbers["epochs"]
        passed, numbers["progress"] = max(progress - numbers["progress"], 0.0), progress
        line = max(1 - progress / _ARRIVAL, 0.0)
        error = max(last, _LEAST) if last > 0 and not line else last - line
        if not isfinite(error):
            raise NonFiniteError(
                f"{self}: in step {run.step} weights are NaN or infinite, at strength {self.strength:.3g}: lower the learning rate, or "
                "clip the gradients (hooks=[clip_gradients(1.0)])"
            )
        numbers["integral"] = _bounded(numbers["integral"] + _INTEGRAL * error * passed)
        numbers["strength"] = numbers["begin"] * exp(_bounded(_PROPORTIONAL * error + numbers["integral"]))

    def _look(self) -> float:
        """The size of the last unit that is to go; and by it what each unit costs until this is looked at again."""
        sizes = self._sizes()
        last = self._last(sizes)
        costs = []
        for each, size, scale in zip(self.groups, sizes, self.scales, strict=True):
            over = (size - self.threshold).clamp_min(0) / scale
            free = (over > last) | self._spared(each, size)
            costs.append((scale * ~free).view(each.site.contest_count, -1).to(size.dtype))
        self.costs = tuple(costs)
        return last

    def _sizes(self) -> list[Tensor]:
        """The root mean square of the weights of each unit, site by site."""
        return list(root_mean_squares(self.groups).split([each.count for each in self.groups]))

    def _last(self, sizes: Sequence[Tensor]) -> float:
        """By how much the unit that is the last to go of those that are to is above the threshold, in the measure of its site."""
        over = [
            ((size - self.threshold).clamp_min(0) / scale).masked_fill(self._spared(each, size), torch.inf)
            for each, size, scale in zip(self.groups, sizes, self.scales, strict=True)
        ]
        return float(torch.cat(over).kthvalue(self._count()).values)

    def _spared(self, groups: Groups, sizes: Tensor) -> Tensor:
        """The largest units of a site, which stay whatever the strength."""
        spared = torch.zeros_like(sizes, dtype=torch.bool)
        return spared.index_fill(0, sizes.topk(self._stay(groups)).indices, True)

    def _stay(self, groups: Groups) -> int:
        ceiling = (1 + self.target.sparsity) / 2 if self.target.ceiling is None else self.target.ceiling
        return 0 if groups.site.whole else max(1, groups.count - int(ceiling * groups.count))

    def _count(self) -> int:
        """How many units are to go."""
        return max(1, round(self.target.sparsity * sum(each.count for each in self.groups)))

    def _require_room(self) -> None:
        most, units = sum(each.count - self._stay(each) for each in self.groups), sum(each.count for each in self.groups)
        if most < self._count():
            raise SecateursError(
                f"{self}: of {units} units {self._count()} are to go, but no more than {most} may, so that some of each site stay: lower "
                "the target, or raise Target(ceiling=)"
            )

    # ------------------------------------------------------------ and then

    def cut(self, run: Run, last: bool) -> None:
        """The masks of what is at zero, or with ``strict`` of as many as were wanted; those that the run had hold as before."""
        reached = float((torch.cat(self._sizes()) <= self.threshold).double().mean())
        enough = reached >= self.target.sparsity - max(_NEAR, 0.5 / sum(each.count for each in self.groups))
        if not enough:
            self._warn(reached)
        criterion = magnitude(mean=True, members=self.members)
        if enough or not self.target.strict:
            cut_(run, self.pattern, TopK(criterion), above(self.threshold), only=self.only, skip=self.skip)
            return
        even = global_threshold if all(each.site.contest_count == 1 for each in self.groups) else uniform
        allocate = (self.target.allocate or even)(sparsity=self.target.sparsity)
        alike = all(each.size == 1 for each in self.groups)
        solver = TopK(criterion if alike else normalised(criterion))
        cut_(run, self.pattern, solver, allocate, only=self.only, skip=self.skip, last=last)

    def _warn(self, reached: float) -> None:
        told = f"{self}: {reached:.1%} of the units are at zero, at strength {self.strength:.3g}".replace("%", " %")
        then = "the smallest of the rest are cut as well (strict=True)" if self.target.strict else "that is what is cut"
        out = "" if self.target.strict else ", or strict=True"
        warnings.warn(
            f"{told}: the target was not reached, and {then}; train for more epochs, or give Target({self.target.sparsity}, start=...) a "
            f"start above {self.strength:.2g}{out}",
            stacklevel=2,
        )

    # ------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        return {"numbers": dict(self.numbers), "scales": list(self.scales)}

    def restore(self, state: Mapping[str, Any]) -> None:
        numbers, scales = state.get("numbers"), state.get("scales")
        if not isinstance(numbers, Mapping) or not isinstance(scales, list):
            raise FileError("group_lasso: the checkpoint holds no state of a target")
        if not all(type(each) is float for each in (*numbers.values(), *scales)):
            raise FileError("group_lasso: the checkpoint holds what is no number in the state of a target")
        self.numbers, self.scales = dict(numbers), list(scales)


def cut_(
    run: Run,
    pattern: Pattern,
    solver: Solver,
    allocate: Allocator | None,
    *,
    only: Selection | None,
    skip: Selection | None,
    last: bool = False,
) -> None:
    """Prune the model of a run as it is by now; its masks become those of this and of all earlier prunings.

    Unless it is the ``last`` thing that happens, the training that follows takes the statistics of BatchNorms anew.
    """
    anew = None if last else False
    masks = prune_(run.model, pattern, solver, allocate, run.task, only=only, skip=skip, masks=run.masks or None, recalibrate=anew)
    if run.masks is None:
        run.masks = Masks({}, run.model)
    run.masks.replace_(masks)


def threshold_of(step: Step) -> float:
    """Up to which root mean square of its weights a unit counts as at zero: a subgradient does not make it exactly that."""
    return 0.0 if step == "proximal" else 1e-3


def _bounded(value: float) -> float:
    return min(max(value, -_RANGE), _RANGE)


def _steps_of(run: Run) -> int:
    """How many steps an epoch has at most, 0 where nobody knows yet."""
    try:
        return len(run.task.train)  # type: ignore[arg-type]
    except TypeError:
        return 0
