"""Masks that move while a network trains: what matters least goes, and as much comes back where gradients, or chance, say."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from secateurs.allocate import global_threshold
from secateurs.criteria import magnitude, random
from secateurs.forward import parameters_in
from secateurs.given import ALLOCATOR, BY_SPARSITY, CRITERION, NUMBER, PATTERN, SCHEDULE, require
from secateurs.masks import Masks
from secateurs.patterns import Element, Selection, find_sites, finite
from secateurs.prune import prune_
from secateurs.ranks import whole
from secateurs.recover.as_large import AsLarge
from secateurs.recover.exchange import Standing, cosine, exchanged, in_weight, least, steepest
from secateurs.recover.inner import inside
from secateurs.recover.schedules import Schedule
from secateurs.recover.trial import needs_closure
from secateurs.solve import TopK
from secateurs.types import Allocator, Criterion, FileError, Hook, Pattern, PatternError, Run, SecateursError, Site, Sites


def rigl(
    allocate: Allocator | None = None,
    *,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    start: Criterion = random(),  # noqa: B008 (frozen)
    every: int = 100,
    fraction: float = 0.3,
    until: float = 0.75,
    from_pruned: bool = False,
    again: bool = False,
    rescale: bool = False,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that trains a sparse network whose masks move where the loss falls fastest (RigL, 1911.11134).

    At the start the units that ``start`` scores highest stay, as many in each layer as ``allocate`` says (the paper's:
    ``erdos_renyi(sparsity=0.9)``). Every `every` steps, until the share `until` of training, an exchange takes the place of a step: in
    each layer the fraction α/2·(1 + cos(πt/T)) of its units goes, α = ``fraction``, lowest magnitude first, and as many come back, by the
    largest |gradient| at zero (summed over a unit), at zero and unknown to the optimizer. So every layer, and every contest of a pattern
    such as 2:4, keeps its number. ``again=True``, as in the paper, lets what goes come back at once, which leaves it as it is.
    ``rescale=True`` is for fresh networks: what stays of a layer at the start is multiplied by 1/√(its fraction), so that signals are as
    large as the dense initialisation made them (2010.03533).

    Masks that the run has already are an earlier pruning's, and hold: only what this hook itself removed comes back, unless
    ``from_pruned=True``; then ``allocate=None`` takes them as the start. Steps whose gradients are not finite (scaled training) wait for
    the next. A layer without a gradient in the step waits for the next exchange.

    In a loop of your own: ``run = Run(model, task, optimizer, epochs)``, ``hook.start(run)``, ``run.masks.hold(optimizer)``; then call
    ``epoch``, and for each batch ``loss`` and, behind ``backward()``, ``gradients``; after ``optimizer.step()`` add 1 to ``run.step`` and
    call ``stepped``.

    Raises `SecateursError` for numbers out of range, an optimizer such as L-BFGS, frozen weights, where nothing is pruned, or where
    nothing may come back; `PatternError` for coupled units, whose gradient is zero where all of a unit is.

    >>> from secateurs import erdos_renyi
    >>> rigl(erdos_renyi(sparsity=0.9)).name
    'rigl'
    """
    _require("rigl", pattern, every, fraction, until)
    require("rigl", "start", start, CRITERION)
    begin = _begin("rigl", allocate, pattern, start, only, skip)
    find = _finding("rigl", pattern, only, skip)
    return _Regrowth("rigl", find, begin, "gradient", every, fraction, until, from_pruned, again, rescale=rescale).hook()


def sparse_evolutionary(
    allocate: Allocator | None = None,
    *,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    start: Criterion = random(),  # noqa: B008 (frozen)
    every: int | None = None,
    fraction: float = 0.3,
    until: float = 1.0,
    from_pruned: bool = False,
    rescale: bool = False,
    seed: int = 0,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that trains a sparse network whose masks move by chance (SET, 1707.04780).

    As `rigl`, but after each epoch except the last (or every `every` steps) the same `fraction` of each layer goes, lowest magnitude
    first, and as many come back at random, at zero. (The paper takes the fraction of positive and negative weights apart.) What is drawn
    depends on ``seed`` alone, so it is the same in all processes.

    >>> from secateurs import erdos_renyi
    >>> sparse_evolutionary(erdos_renyi(sparsity=0.9)).name
    'sparse_evolutionary'
    """
    who = "sparse_evolutionary"
    _require(who, pattern, 1 if every is None else every, fraction, until)
    require(who, "start", start, CRITERION)
    begin, find = _begin(who, allocate, pattern, start, only, skip), _finding(who, pattern, only, skip)
    return _Regrowth(who, find, begin, "random", every, fraction, until, from_pruned, False, seed=seed, rescale=rescale).hook()


def gradual_regrowth(
    schedule: Schedule,
    allocate: Callable[..., Allocator] = global_threshold,
    *,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    every: int = 100,
    fraction: float = 0.5,
    until: float = 0.75,
    from_pruned: bool = False,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that prunes further and further by magnitude, and exchanges a share of what is left each time (GraNet, 2106.10404).

    Every `every` steps up to the share `until` of training, in the place of a step, masks go on to ``schedule(progress / until)``, spread
    by ``allocate(sparsity=…)``; then a fraction of each layer goes, `fraction` decayed along a cosine, and as many come back by their
    gradients, as in `rigl`. At `until` the final sparsity stands, exactly. Masks that the run has already hold, unless
    ``from_pruned=True``.

    >>> from secateurs import cubic
    >>> gradual_regrowth(cubic(0.9)).name
    'gradual_regrowth'
    """
    who = "gradual_regrowth"
    _require(who, pattern, every, fraction, until)
    require(who, "schedule", schedule, SCHEDULE)
    require(who, "allocate", allocate, BY_SPARSITY)
    if pattern.kept_of_each is not None:
        raise PatternError(
            f"{who}: {pattern} says by itself how many units stay, so there is nothing gradual: use rigl(pattern=...)"
        )

    def further(run: Run, progress: float) -> Masks | None:
        sparsity = schedule(progress)
        if sparsity <= run.masks.sparsity:
            return None
        amount, solver = allocate(sparsity=sparsity), TopK(magnitude())
        return prune_(inside(run.model), pattern, solver, amount, run.task, only=only, skip=skip, masks=run.masks or None)

    find = _finding(who, pattern, only, skip)
    return _Regrowth(who, find, _as_it_is, "gradient", every, fraction, until, from_pruned, False, further).hook()


def _require(who: str, pattern: Pattern, every: int, fraction: float, until: float) -> None:
    require(who, "pattern", pattern, PATTERN)
    refuse_coupled(who, pattern)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise SecateursError(f"{who}: every={every!r} must be a number of steps, at least 1")
    require(who, "fraction", fraction, NUMBER)
    require(who, "until", until, NUMBER)
    if not 0 < fraction <= 1 or not 0 < until <= 1:
        raise SecateursError(f"{who}: fraction={fraction} of the units and until={until}, a share of training, must be in (0, 1]")


def refuse_coupled(who: str, pattern: Pattern) -> None:
    """Raise `PatternError` for a pattern whose units are gone on both sides, so that none learns to live again."""
    if pattern.removable:
        raise PatternError(
            f"{who}: units of {pattern} are gone in all that makes and reads them, so no gradient reaches them and none could come back "
            "to life: use Element(), NofM(...), Block(...) or Filter()"
        )


def refuse_closures(who: str, optimizer: torch.optim.Optimizer) -> None:
    """Raise `SecateursError` for an optimizer such as L-BFGS, which cannot forget single weights."""
    if needs_closure(optimizer):
        raise SecateursError(
            f"{who}: {type(optimizer).__name__} remembers steps of all weights together and cannot forget those that come back: take "
            "another optimizer"
        )


def require_single(who: str, masks: Masks) -> None:
    """Raise `SecateursError` where another hook has pruned coupled units meanwhile: none of them may come back by itself."""
    if masks.plan is not None and masks.plan.extents:
        raise SecateursError(
            f"{who}: the masks are of coupled units by now ({masks.pattern}), of which no single weight comes back: prune those before "
            "this hook begins, or once it has ended"
        )


def is_marks(value: object) -> bool:
    """Whether a part of a checkpoint is bool tensors by name."""
    return isinstance(value, Mapping) and all(isinstance(each, Tensor) and each.dtype == torch.bool for each in value.values())


def _finding(who: str, pattern: Pattern, only: Selection | None, skip: Selection | None) -> Callable[[Run], Sites]:
    def find(run: Run) -> Sites:
        sites = find_sites(inside(run.model), pattern, run.task.example, only=only, skip=skip)
        tied = next((site for site in sites if len(site.members) > 1), None)
        if tied is not None:
            names = ", ".join(dict.fromkeys(member.parameter for member in tied.members))
            raise PatternError(
                f"{who}: the units of {tied.name} lie in several weights ({names}); skip it with skip=[{tied.name!r}]"
            )
        return sites

    return find


def _begin(
    who: str, allocate: Allocator | None, pattern: Pattern, start: Criterion, only: Selection | None, skip: Selection | None
) -> Callable[[Run, bool], Masks]:
    """What makes the masks of the start."""
    if allocate is not None:
        require(who, "allocate", allocate, ALLOCATOR)

    def begin(run: Run, from_pruned: bool) -> Masks:
        if allocate is None and run.masks and from_pruned:
            return _as_it_is(run, from_pruned)
        if allocate is None and pattern.kept_of_each is None:
            if not run.masks:
                raise SecateursError(
                    f"{who}: nothing is pruned, and it is not said how much is to be: {who}(erdos_renyi(sparsity=0.9))"
                )
            raise SecateursError(
                f"{who}: the run's masks ({run.masks!r}) are those of an earlier pruning, or of a file, and what they removed stays gone: "
                f"say {who}(from_pruned=True) to let it come back, or {who}(erdos_renyi(sparsity=0.9)) to prune further and move that alone"
            )
        return prune_(inside(run.model), pattern, TopK(start), allocate, run.task, only=only, skip=skip, masks=run.masks or None)

    return begin


def _as_it_is(run: Run, from_pruned: bool) -> Masks:
    """The run's masks, under the names that the model has."""
    return Masks(run.masks.named_as_in(inside(run.model)), inside(run.model), run.masks.origin)


@torch.no_grad()
def _rescale_(masks: Masks, sites: Sites) -> None:
    """Make what stays of each weight so much larger that sums over it vary as they did."""
    for name, weight in {member.parameter: member.weight for site in sites for member in site.members}.items():
        kept = int(torch.count_nonzero(whole(masks[name]))) if name in masks else 0
        if kept:
            weight.mul_((weight.numel() / kept) ** 0.5)


@dataclass
class _Regrowth:
    name: str
    find: Callable[[Run], Sites]
    begin: Callable[[Run, bool], Masks]
    by: Literal["gradient", "random"]
    every: int | None
    fraction: float
    until: float
    from_pruned: bool
    again: bool
    further: Callable[[Run, float], Masks | None] | None = None
    seed: int = 0
    rescale: bool = False
    sites: tuple[Site, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    held: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    done: int = 0
    length: int = 0
    over: bool = False
    begun: bool = False
    batches: int = 0
    passed: int = 0
    size: AsLarge = field(default_factory=AsLarge)
    generator: torch.Generator = field(default_factory=torch.Generator)

    def hook(self) -> Hook:
        self.generator.manual_seed(self.seed)
        return Hook(
            self.name,
            start=self._start,
            epoch=self._epoch,
            loss=self._loss,
            gradients=self._gradients,
            stepped=self._stepped,
            epoch_end=self._see,
            end=self._end,
            state=self._state,
            restore=self._restore,
        )

    # ------------------------------------------------------------ the start

    def _start(self, run: Run) -> None:
        if run.masks is None:
            run.masks = Masks({}, inside(run.model))
        refuse_closures(self.name, run.optimizer)
        sites = self.find(run)
        frozen = next((member.parameter for site in sites for member in site.members if not member.weight.requires_grad), None)
        if frozen is not None:
            raise SecateursError(f"{self.name}: {frozen} is frozen, so nothing is learned there: skip its layer with skip=[...]")
        if not self.begun:
            self._begin(run, sites)
        elif not all(member.parameter in run.masks for site in sites for member in site.members if self.counts.get(site.name)):
            raise SecateursError(
                f"{self.name}: this hook has begun on another model, or the run's masks are not its own: make a new hook"
            )
        self.sites = tuple(sites)
        self.size.look(run)
        self._leave(run)
        self.done = 0 if run.step == 0 else self.done
        places = [(site, Standing.of(site, run.masks, self.held).free) for site in self.sites]
        if self.further is None and not any(bool(free.any()) for _, free in places):
            raise SecateursError(
                f"{self.name}: no weight may come back: nothing is pruned, or an earlier pruning holds all that is"
            )
        masked = [(site, free) for site, free in places if site.members[0].parameter in run.masks]
        back = {site.members[0].parameter: self._open(site, free) for site, free in masked}
        run.masks.require_free(back, self.from_pruned)

    def _begin(self, run: Run, sites: Sites) -> None:
        earlier = {} if self.from_pruned else run.masks.named_as_in(inside(run.model))
        masks = self.begin(run, self.from_pruned)
        self.held = {name: removed for name, mask in earlier.items() if bool((removed := ~whole(mask)).any())}
        run.masks.replace_(masks)
        del masks
        self.counts = {site.name: Standing.of(site, run.masks, self.held).count for site in sites}
        if self.rescale:
            _rescale_(run.masks, sites)
        self.begun = True

    def _open(self, site: Site, units: Tensor) -> Tensor:
        """Which weights come back with some units: those that nothing else holds."""
        marks, stays = in_weight(site, units), self.held.get(site.members[0].parameter)
        return marks if stays is None else marks & ~stays.to(marks.device)

    # ------------------------------------------------------------ when

    def _epoch(self, run: Run) -> None:
        self.length = self.batches or self.length
        self.batches = self.passed = 0
        if self.every is None and self._due(run):
            self._exchange(run)
        self._finish_when_due(run)

    def _loss(self, run: Run) -> None:
        self.batches += 1

    def _gradients(self, run: Run) -> None:
        run.dense_gradient = False
        if self.by != "gradient" or not self._due(run):
            return
        gradients = [site.members[0].weight.grad for site in self.sites]
        if not all(gradient is None or finite(whole(gradient)) for gradient in gradients):
            return  # scaled training skips this step: the next one will do
        run.dense_gradient = True
        if self.further is not None:
            self._prune_on(run, self._progress(run) / self.until)
        self._exchange(run)
        for parameter in parameters_in(run.model).values():
            parameter.grad = None  # an exchange takes the place of a step

    def _stepped(self, run: Run) -> None:
        self.passed = self.batches
        if self.by == "random" and self.every is not None and self._due(run):
            self._exchange(run)
        self._finish_when_due(run)

    def _progress(self, run: Run) -> float:
        """The share of training that is over."""
        try:
            length = len(run.task.train)  # type: ignore[arg-type]
        except TypeError:  # a loader that does not tell; after an epoch it is known
            length = self.length
        return (run.epoch + (min(1.0, self.passed / length) if length else 0.0)) / max(1, run.epochs)

    def _number(self, run: Run) -> int:
        return run.epoch if self.every is None else run.step // self.every

    def _due(self, run: Run) -> bool:
        return self._number(run) > self.done and self._progress(run) < self.until

    # ------------------------------------------------------------ what

    def _exchange(self, run: Run) -> None:
        self.size.require(run, self.name)
        require_single(self.name, run.masks)
        self._see(run)
        self.done = self._number(run)
        share = cosine(self.fraction, self._progress(run) / self.until) if self.by == "gradient" else self.fraction
        gone: dict[str, Tensor] = {}
        back: dict[str, Tensor] = {}
        for site in self.sites:
            name = site.members[0].parameter
            standing = Standing.of(site, run.masks, self.held)
            growth = self._drawn(standing) if self.by == "random" else steepest(site, self.held)
            if growth is None or name not in run.masks:
                continue
            missing = max(0, self.counts[site.name] - standing.count) if site.contest_count == 1 else 0
            units = exchanged(standing, least(site), growth, int(share * standing.count), missing=missing, again=self.again)
            gone[name] = in_weight(site, units[0]) & whole(run.masks[name]).to(units[0].device)
            back[name] = self._open(site, units[1])
        run.masks.exchange_(gone, back, optimizer=run.optimizer, plan=run.masks.plan, from_pruned=self.from_pruned)
        self._leave(run)

    def _leave(self, run: Run) -> None:
        """Remember the masks as they are by now."""
        weights = {member.parameter: member.weight for site in self.sites for member in site.members[:1]}
        self.left = {
            name: whole(run.masks[name]).clone() if name in run.masks else torch.ones_like(whole(weight.detach()), dtype=torch.bool)
            for name, weight in weights.items()
        }

    def _see(self, run: Run) -> None:
        """What others have removed since then stays gone, and the layer has as many fewer from now on."""
        for site in self.sites if self.size.still(run) else ():
            name = site.members[0].parameter
            gone = self.left[name] & ~whole(run.masks[name]) if name in run.masks else None
            if gone is not None and bool(gone.any()):
                self.held[name] = gone | self.held[name].to(gone.device) if name in self.held else gone
                self.counts[site.name] = Standing.of(site, run.masks, self.held).count
        self._leave(run)

    def _drawn(self, standing: Standing) -> Tensor:
        return torch.rand(standing.kept.shape, generator=self.generator).to(standing.kept.device)

    def _prune_on(self, run: Run, progress: float) -> None:
        self._see(run)
        masks = self.further(run, progress) if self.further is not None else None
        if masks is not None:
            run.masks.replace_(masks)
            del masks
            self.counts = {site.name: Standing.of(site, run.masks, self.held).count for site in self.sites}
            self._leave(run)

    def _finish_when_due(self, run: Run) -> None:
        if self.further is not None and not self.over and self._progress(run) >= self.until:
            self._prune_on(run, 1.0)
            self.over = True

    # ------------------------------------------------------------ the end, and what is kept of it

    def _end(self, run: Run) -> None:
        if self.further is not None and not self.over:
            self._prune_on(run, 1.0)
            self.over = True
        if self.done == 0 and run.step:
            period = "epoch" if self.every is None else f"{self.every} steps"
            warnings.warn(
                f"{self.name}: no weight has moved: an exchange was due each {period}, until {self.until:.0%} of training, but it was over "
                f"after {run.epochs} epochs and {run.step} steps: make every= smaller, or train for longer",
                stacklevel=2,
            )

    def _state(self) -> dict[str, Any]:
        kept = {key: getattr(self, key) for key in ("counts", "held", "done", "length", "over", "begun")}
        return {**kept, "length": self.batches or self.length, "generator": self.generator.get_state()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        counts, held = state.get("counts"), state.get("held")
        sound = isinstance(counts, Mapping) and all(type(each) is int for each in counts.values())
        sound &= is_marks(held)
        sound &= type(state.get("done")) is int and type(state.get("length")) is int and isinstance(state.get("generator"), Tensor)
        if not sound:
            raise FileError(f"{self.name}: the checkpoint holds no state of this hook")
        self.generator.set_state(state["generator"])
        self.counts, self.held = dict(state["counts"]), dict(state["held"])
        self.done, self.length, self.batches = state["done"], state["length"], 0
        self.over, self.begun = bool(state["over"]), bool(state["begun"])
