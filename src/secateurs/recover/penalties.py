"""Penalties: weights, scales or whole units that cost something while they are there, until they are zero."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink

from secateurs.forward import modules_in, parameters_in
from secateurs.given import NUMBER, PATTERN, require
from secateurs.patterns import NORMALISATIONS, Channel, Element, Selection, find_parameters, find_sites
from secateurs.ranks import shard_of, whole
from secateurs.recover.as_large import AsLarge
from secateurs.recover.groups import Groups, groups_of, require_trained, root_mean_squares
from secateurs.recover.proximal import Step, Taken, hold_, rate, require_step, trained_by
from secateurs.recover.target import Control, Target, threshold_of
from secateurs.types import Counted, FileError, Hook, NonFiniteError, Pattern, Run, SecateursError


def penalty(
    strength: float,
    p: float = 2,
    of: Literal["weights", "scales"] = "weights",
    *,
    pattern: Pattern | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    step: Step = "subgradient",
    until: int | None = None,
) -> Hook:
    """Adds ``strength · Σ|w|ᵖ`` over all weights that may be pruned to the loss: L2 for p = 2, L1 for p = 1 (1506.02626, §3.1).

    Weights are all parameters with two dimensions or more; with ``only``, ``skip`` or ``pattern`` those in which the sites of the pattern
    lie (`find_sites`; by default those of `Element`). ``of="scales"``: the scales of all normalisations instead, which L1 drives to zero
    channel by channel (1708.06519); ``only`` and ``skip`` then choose among these. From epoch ``until`` on it costs nothing.

    ``step="proximal"``, for p = 1 and 2: not a part of the loss, but a step by itself after each of the optimizer's, of ``lr · strength``
    with the learning rate of the weight's group. L1 moves each weight by that much towards zero, and what gets there is exactly zero
    (soft threshold). So it is under Adam too, as decoupled weight decay is: the step does not go through the moments, and how fast a
    weight goes does not depend on the size of its gradients. To learn a strength from a sparsity, see `group_lasso`.

    In a loop of your own: ``run = Run(model, task, optimizer, epochs)``, then ``hook.start(run)`` once, add ``hook.loss(run)`` to the loss
    where that is not ``None``, and call ``hook.stepped(run)`` after each step.

    Raises `SecateursError` for a negative strength, p outside [1, ∞), or a way to step that there is not, and, when training begins, where
    there is nothing to penalise or all of it is frozen.

    >>> penalty(1e-4, p=1).name
    'penalty(p=1)'
    """
    require("penalty", "p", p, NUMBER)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not strength >= 0 or not 1 <= p < float("inf"):
        raise SecateursError(f"penalty(strength={strength}, p={p}): strength must be at least 0, and p in [1, inf)")
    if not isfinite(strength):
        raise SecateursError(f"penalty(strength={strength}, p={p}): strength must be finite")
    if of not in ("weights", "scales"):
        raise SecateursError(f'penalty(of={of!r}): of is "weights" or "scales"')
    if of == "scales" and pattern is not None:
        raise SecateursError(
            'penalty(of="scales"): a pattern cuts weights; for the scales that its channels pass, take '
            f'group_lasso({pattern}, members="norms")'
        )
    require_step("penalty", step, until)
    if step == "proximal" and p not in (1, 2):
        raise SecateursError(f'penalty(p={p}, step="proximal"): there is a proximal step for p=1 and p=2; use step="subgradient"')
    if pattern is not None:
        require("penalty", "pattern", pattern, PATTERN)
    name = f"penalty(p={p}{'' if of == 'weights' else ', of=scales'})"
    return _Elements(strength, p, _Which(of, pattern, only, skip), step, until, name).hook()


@dataclass(frozen=True)
class _Which:
    """Which weights a penalty is about."""

    of: Literal["weights", "scales"]
    pattern: Pattern | None
    only: Selection | None
    skip: Selection | None

    def __call__(self, run: Run) -> dict[str, nn.Parameter]:
        chosen = self.only is not None or self.skip is not None
        if self.of == "scales":
            among = {id(each) for each in find_parameters(run.model, self.only, self.skip).values()} if chosen else None
            return {name: each for name, each in _scales(run.model).items() if among is None or id(each) in among}
        if self.pattern is None and not chosen:
            return {name: each for name, each in parameters_in(run.model).items() if each.ndim > 1}
        sites = find_sites(run.model, self.pattern or Element(), run.task.example, only=self.only, skip=self.skip)
        return {member.parameter: member.weight for site in sites for member in site.members}


def _scales(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {name: module for name, module in modules_in(model).items() if isinstance(module, NORMALISATIONS)}
    return {
        f"{name}.weight".lstrip("."): weight
        for name, module in found.items()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter)
    }


@dataclass
class _Elements:
    """A penalty on single weights."""

    strength: float
    p: float
    which: _Which
    step: Step
    until: int | None
    name: str
    found: dict[str, nn.Parameter] = field(default_factory=dict)
    taken: Taken = field(default_factory=Taken)

    def hook(self) -> Hook:
        if self.step == "proximal":
            return Hook(self.name, start=self._start, stepped=self._shrink, end=lambda run: self.taken.leave())
        return Hook(self.name, start=self._start, loss=self._loss)

    def _start(self, run: Run) -> None:
        self.found = self.which(run)
        if not self.found and self.which.of == "scales":
            raise SecateursError(
                f'penalty(of="scales"): {type(run.model).__name__} has no normalisation with a scale'
                f"{'' if self.which.only is self.which.skip is None else ' among those chosen'}: put nn.BatchNorm2d behind its "
                'layers, or take of="weights"'
            )
        if not self.found:
            raise SecateursError(
                f"penalty: {type(run.model).__name__} has no weight of two dimensions or more, so that there is nothing to make smaller; "
                'take of="scales", or name parameters in an optimizer group with weight_decay='
            )
        trained = trained_by(run.optimizer)
        asked = self.which.pattern is not None or self.which.only is not None or self.which.of == "scales"
        frozen = [name for name, each in self.found.items() if id(each) not in trained]
        require_trained("penalty", frozen if asked or len(frozen) == len(self.found) else (), len(frozen) < len(self.found))
        self.found = {name: each for name, each in self.found.items() if id(each) in trained}
        if self.step == "proximal":
            self.taken.watch(run.optimizer, "penalty")

    def _loss(self, run: Run) -> Tensor | None:
        if not _costs(run, self.until):
            return None
        punished = self.found or self.which(run)
        return self.strength * sum((whole(each.abs().pow(self.p).sum()) for each in punished.values()), torch.zeros(()))

    @torch.no_grad()
    def _shrink(self, run: Run) -> None:
        if not self.taken() or not _costs(run, self.until):
            return
        rates = trained_by(run.optimizer)
        for each in self.found.values():
            by, here = rates.get(id(each), 0.0) * self.strength, shard_of(each.detach())
            here.copy_(softshrink(here, by)) if self.p == 1 else here.div_(1 + 2 * by)
        hold_(run)


def _costs(run: Run, until: int | None) -> bool:
    return until is None or run.epoch < until


def group_lasso(
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    strength: float | None = None,
    *,
    target: float | Target | None = None,
    members: Counted = "all",
    as_one: bool = False,
    by_size: bool = True,
    growth: float = 0.0,
    squared: bool = False,
    step: Step = "proximal",
    until: int | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """Makes each unit of a pattern cost ``strength · √size · ‖unit‖₂``, so that whole units become zero (structured sparsity, 1608.03665).

    A unit of n weights is a group: a filter (``Filter()``), a shape (``Vector("outputs")``), a block, an element (then it is the LASSO), a
    channel with all that is coupled to it (``Channel()``, 2301.12900), a whole residual block (``Depth()``). Of coupled weights
    ``members`` says which count: ``"all"``, biases and scales too; ``"producers"``, the filters that make it; ``"consumers"``, what reads
    it as an input channel; ``"norms"``, its scales (1708.06519). ``as_one=True`` takes all units of a site as one group: whole layers.
    √n, without which large units would go last, is left out with ``by_size=False``.

    ``growth`` multiplies the cost of a unit by 2^(growth · (I_max − I)/(I_max − I_min)), where I = ‖unit‖² and the extremes are those of
    its site: 1 for the most important and 2^growth for the least, anew in each step (2301.12900, with growth = 4). ``squared=True`` takes
    ``strength · ‖unit‖²`` in the place of the norm, as that paper does; no unit then becomes exactly zero.

    ``step="proximal"``: after each step of the optimizer each norm is made smaller by ``lr · strength · √size``, and is exactly zero where
    it would become negative (block soft threshold); lr is the learning rate of the parameters' group, the smallest where a unit lies in
    several. Under Adam it is the same step, as decoupled weight decay is: not through the moments, nor in their metric. Where units of
    several sites share weights, one site follows the other. ``"subgradient"``: a part of the loss.

    ``target``: the sparsity to reach in place of a strength, the fraction of all units that is at zero; see `Target`. What is at zero then
    becomes the run's masks at the start of epoch ``until`` (by default at the end); from there on nothing costs. ``run.history`` tells the
    fraction at zero, and the strength, after each epoch. In a loop of your own, ``run = Run(model, task, optimizer, epochs)``, and call
    the parts of the hook as `Hook` says; the masks are ``run.masks``.

    Raises `SecateursError` for a strength that is negative or not finite, for both or none of strength and target, where all is frozen, and
    where after an epoch everything is at zero; `NonFiniteError` where norms are; `PatternError` where there is no such unit.

    >>> from secateurs import Filter, Task, train_
    >>> layer, x = nn.Linear(2, 2, bias=False), torch.eye(2)
    >>> layer.weight.data = torch.tensor([[3.0, 4.0], [0.1, 0.0]])
    >>> task = Task(x, train=[(x, x)], loss=lambda output, target: 0 * output.sum())
    >>> lasso = group_lasso(Filter(), strength=1.0, only="*")
    >>> run = train_(layer, task, torch.optim.SGD(layer.parameters(), lr=0.5), 1, hooks=[lasso], show=False)
    >>> layer.weight.norm(dim=1), run.history[0]["group_lasso(Filter()): at zero"]  # 5 - 0.5 * sqrt(2)
    (tensor([4.2929, 0.0000], grad_fn=<LinalgVectorNormBackward0>), 0.5)
    """
    _require_sound(pattern, strength, target, members, as_one, growth, squared, step, until)
    name = f"group_lasso({pattern}{'' if members == 'all' else f', members={members}'}{', as_one' if as_one else ''})"
    cost = _Cost(by_size and not squared, growth, squared)
    wanted = target if isinstance(target, Target) or target is None else Target(target)
    control = None if wanted is None else Control(wanted, pattern, members, step, only, skip)
    return _Lasso(_Units(pattern, members, as_one, only, skip), strength or 0.0, cost, step, until, name, control).hook()


def _require_sound(
    pattern: Pattern,
    strength: float | None,
    target: float | Target | None,
    members: Counted,
    as_one: bool,
    growth: float,
    squared: bool,
    step: Step,
    until: int | None,
) -> None:
    """Raise where the arguments of `group_lasso` make no sense."""
    require("group_lasso", "pattern", pattern, PATTERN)
    require_step("group_lasso", step, until)
    if (strength is None) == (target is None):
        raise SecateursError(f"group_lasso(strength={strength}, target={target}): give a strength or a target, one of them")
    if strength is not None and (
        isinstance(strength, bool) or not (isinstance(strength, (int, float)) and 0 <= strength < float("inf"))
    ):
        raise SecateursError(f"group_lasso(strength={strength!r}): strength must be at least 0, and finite")
    if members not in get_args(Counted):
        raise SecateursError(f"group_lasso(members={members!r}): members is one of {', '.join(get_args(Counted))}")
    require("group_lasso", "growth", growth, NUMBER)
    if not 0 <= growth < float("inf"):
        raise SecateursError(f"group_lasso(growth={growth}): growth must be at least 0; 4 is that of 2301.12900")
    if target is not None and (as_one or squared):
        raise SecateursError(
            f"group_lasso(target={target}): a target needs units that become zero and can be cut: leave {'as_one' if as_one else 'squared'}"
            "=True away; for whole blocks take Depth()"
        )


@dataclass(frozen=True)
class _Units:
    """Which units a penalty is about."""

    pattern: Pattern
    members: Counted
    as_one: bool
    only: Selection | None
    skip: Selection | None

    def __call__(self, run: Run) -> tuple[Groups, ...]:
        sites = find_sites(run.model, self.pattern, run.task.example, only=self.only, skip=self.skip)
        return groups_of(sites, self.members, self.as_one, trained_by(run.optimizer), "group_lasso")


@dataclass(frozen=True)
class _Cost:
    """What one unit costs, in the measure of the strength: a factor to its norm, or to the square of that."""

    by_size: bool
    growth: float
    squared: bool

    def factors(self, norms: Tensor, size: int) -> Tensor:
        """A factor for each unit, which is no part of any gradient."""
        factors = torch.full_like(norms, sqrt(size) if self.by_size else 1.0)
        if not self.growth:
            return factors
        importance = norms.detach().square()
        least, most = importance.min(), importance.max()
        spread = (most - least).clamp_min(torch.finfo(norms.dtype).tiny)
        return factors * torch.exp2(self.growth * (most - importance) / spread)

    def of(self, groups: Groups, share: Tensor | float) -> Tensor:
        """What all units of a site cost together, as a part of the loss; ``share``: the part of it that each unit costs by now."""
        norms = groups.norms()
        return (share * self.factors(norms, groups.size) * (norms.square() if self.squared else norms)).sum()

    def shrink_(self, groups: Groups, by: float, share: Tensor | float) -> None:
        """The proximal step of length `by`."""

        def left(norms: Tensor) -> Tensor:
            steps = by * share * self.factors(norms, groups.size)
            if self.squared:
                return 1 / (1 + 2 * steps)
            return torch.where(norms > steps, 1 - steps / norms, 0.0)

        groups.scale_(left)


@dataclass
class _Lasso:
    """A penalty on whole units."""

    units: _Units
    strength: float
    cost: _Cost
    step: Step
    until: int | None
    name: str
    control: Control | None
    groups: tuple[Groups, ...] = ()
    over: bool = False
    warned: bool = False
    restored: bool = False
    size: AsLarge = field(default_factory=AsLarge)
    taken: Taken = field(default_factory=Taken)

    def hook(self) -> Hook:
        loss = {"loss": self._loss} if self.step == "subgradient" else {}
        return Hook(
            self.name,
            start=self._start,
            epoch=self._epoch,
            stepped=self._stepped,
            epoch_end=self._tell,
            end=self._end,
            state=self._state,
            restore=self._restore,
            **loss,  # type: ignore[arg-type]
        )

    def _start(self, run: Run) -> None:
        if not self.restored:  # what an earlier run of this hook has found is none of this one's
            self.over = self.warned = False
            if self.control is not None:
                self.control.forget()
        self.restored = False
        self._find(run)
        if self.step == "proximal":
            self.taken.watch(run.optimizer, "group_lasso")
        if self.control is not None:
            self.control.start(run, self.groups, self.until)

    def _find(self, run: Run) -> None:
        self.groups = self.units(run)
        self.size.look(run)

    def _follow(self, run: Run) -> None:
        """Look anew where the model has shrunk; a target counts among the units that there were, and cannot."""
        if self.control is not None:
            self.size.require(run, self.name)
        elif not self.size.still(run):
            self._find(run)

    def _epoch(self, run: Run) -> None:
        if not self.over:
            self._follow(run)
        if self.until is not None and run.epoch >= self.until:
            self._finish(run)
        elif self.control is not None:
            self.control.begin_epoch(run)

    def _finish(self, run: Run, last: bool = False) -> None:
        """From here on nothing costs; what a target has brought to zero becomes masks."""
        if not self.over and self.control is not None:
            self.control.cut(run, last)
        self.over = True

    def _shares(self) -> Sequence[Tensor | float]:
        return (1.0,) * len(self.groups) if self.control is None else self.control.costs

    def _now(self) -> float:
        return self.strength if self.control is None else self.control.strength

    def _loss(self, run: Run) -> Tensor | None:
        if self.over:
            return None
        self._follow(run)
        parts = [self.cost.of(groups, share) for groups, share in zip(self.groups, self._shares(), strict=True)]
        return self._now() * torch.stack([part.to(parts[0].device) for part in parts]).sum()

    def _stepped(self, run: Run) -> None:
        taken = self.step == "subgradient" or self.taken()
        if self.over or not taken:
            return
        self._follow(run)
        if self.step == "proximal":
            rates = trained_by(run.optimizer)
            for groups, share in zip(self.groups, self._shares(), strict=True):
                self.cost.shrink_(groups, self._now() * rate(rates, map(groups.weight, groups.members)), share)
            hold_(run)
        if self.control is not None:
            self.control.measure(run)

    def _tell(self, run: Run) -> None:
        if self.over:
            return
        sizes = root_mean_squares(self.groups)
        if not bool(sizes.isfinite().all()):
            raise NonFiniteError(
                f"{self.name}: weights became NaN or infinite in epoch {run.epoch + 1}: lower the learning rate or the strength "
                f"({self._now():.3g}), or go back to a checkpoint"
            )
        at_zero = float((sizes <= self._threshold()).double().mean())
        if self.control is not None:
            self.control.end_epoch(run)
        self._require_some_left(run, sizes <= self._threshold())
        if run.history:
            run.history[-1] |= {f"{self.name}: at zero": at_zero, f"{self.name}: strength": self._now()}

    def _require_some_left(self, run: Run, at_zero: Tensor) -> None:
        """Raise where nothing is left, and warn where nothing is of a site, unless it may go as a whole."""
        parts = at_zero.split([each.count for each in self.groups])
        empty = [
            each.site.name
            for each, part in zip(self.groups, parts, strict=True)
            if bool(part.all()) and not each.site.whole and not each.as_one
        ]
        if len(empty) == len(self.groups):
            raise SecateursError(
                f"{self.name}: after epoch {run.epoch + 1} everything is at zero, so that the model answers nothing any more: the strength "
                f"({self._now():.3g}) is too high; take a lower one, or target="
            )
        if empty and not self.warned:
            self.warned = True
            warnings.warn(
                f"{self.name}: after epoch {run.epoch + 1} all units of {', '.join(empty)} are at zero, so that nothing passes there: the "
                f"strength ({self._now():.3g}) may be too high; take a lower one, or skip={empty}",
                stacklevel=2,
            )

    def _threshold(self) -> float:
        return threshold_of(self.step) if self.control is None else self.control.threshold

    def _end(self, run: Run) -> None:
        self.taken.leave()
        self._finish(run, last=True)

    def _state(self) -> dict[str, Any]:
        return {"over": self.over, **({} if self.control is None else self.control.state())}

    def _restore(self, state: Mapping[str, Any]) -> None:
        if type(state.get("over")) is not bool:
            raise FileError(f"{self.name}: the checkpoint holds no state of this hook")
        if (self.control is None) != ("numbers" not in state):
            with_, without = ("a target", "a strength") if self.control is None else ("a strength", "a target")
            raise FileError(f"{self.name}: the checkpoint is of a run with {with_}, and here is {without}")
        if self.control is not None:
            self.control.restore(state)
        self.over, self.restored = state["over"], True
