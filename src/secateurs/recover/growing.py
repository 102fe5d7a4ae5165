"""Growing regularisation: what is to go is chosen at the start, and pressed to zero ever harder before it is cut (2012.09243)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import parameters_in
from secateurs.given import ALLOCATOR, NUMBER, PATTERN, SOLVER, require
from secateurs.masks import Masks
from secateurs.patterns import Selection
from secateurs.prune import prune_
from secateurs.ranks import shard_of, sharded_as, whole
from secateurs.recover.as_large import AsLarge
from secateurs.recover.groups import require_trained
from secateurs.recover.proximal import Step, Taken, hold_, require_step, trained_by
from secateurs.recover.target import cut_
from secateurs.solve import Chosen
from secateurs.types import Allocator, FileError, Hook, Pattern, Plan, Run, SecateursError, Solver


def growing_penalty(
    pattern: Pattern,
    solver: Solver,
    allocate: Allocator,
    *,
    delta: float = 1e-4,
    every: int = 10,
    ceiling: float = 1.0,
    until: int | None = None,
    step: Step = "subgradient",
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """Makes the weights of chosen units cost ``½ · factor · Σw²``, the factor growing by `delta` every `every` steps (2012.09243, GReg-1).

    Which units are to go is chosen when training begins, as `prune_` would choose them: the solver says which, the allocator how many of
    each site, within a budget too. All others cost nothing. The factor stays at the `ceiling` once it is there. At the start of epoch
    ``until``, by default at the end, the units are cut: they become masks of the run, and by then there is little to miss.

    The factor is that of weight decay: a step of SGD makes w into (1 − lr · factor) · w. ``step="proximal"`` makes it
    w / (1 + lr · factor), after the optimizer's, which is stable for every learning rate and under Adam. ``run.history`` tells the
    factor, and the norm of what is to go as a fraction of what it was. In a loop of your own, call the parts of the hook as `Hook` says,
    with a `Run` of model, task and optimizer.

    Raises `SecateursError` for steps or a ceiling that make no sense, and where all that is to go is frozen; warns where the units are cut
    before the ceiling was reached.

    >>> from secateurs import Channel, TopK, magnitude, uniform
    >>> growing_penalty(Channel(), TopK(magnitude(p=1)), uniform(sparsity=0.5)).name
    'growing_penalty(Channel())'
    """
    for argument, value, kind in (("pattern", pattern, PATTERN), ("solver", solver, SOLVER), ("allocate", allocate, ALLOCATOR)):
        require("growing_penalty", argument, value, kind)
    require_step("growing_penalty", step, until)
    for argument, number in (("delta", delta), ("every", every), ("ceiling", ceiling)):
        require("growing_penalty", argument, number, NUMBER)
    if not (0 < delta <= ceiling < float("inf") and every >= 1):
        raise SecateursError(
            f"growing_penalty(delta={delta}, every={every}, ceiling={ceiling}): delta must be above 0 and at most the ceiling, the ceiling "
            "finite, and every at least 1"
        )
    return _Growing(pattern, solver, allocate, delta, every, ceiling, until, step, only, skip).hook()


@dataclass
class _Growing:
    pattern: Pattern
    solver: Solver
    allocate: Allocator
    delta: float
    every: int
    ceiling: float
    until: int | None
    step: Step
    only: Selection | None
    skip: Selection | None
    kept: dict[str, Tensor] = field(default_factory=dict)
    plan: str = ""
    steps: int = 0
    first: float = 0.0
    over: bool = False
    restored: bool = False
    size: AsLarge = field(default_factory=AsLarge)
    going: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    taken: Taken = field(default_factory=Taken)

    @property
    def name(self) -> str:
        return f"growing_penalty({self.pattern})"

    @property
    def factor(self) -> float:
        return min(self.ceiling, self.delta * (self.steps // self.every))

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
        if not self.restored:  # what an earlier run of this hook has chosen is none of this one's
            self.kept, self.plan, self.steps, self.first, self.over = {}, "", 0, 0.0, False
        self.restored = False
        self.size.look(run)
        if self.step == "proximal":
            self.taken.watch(run.optimizer, "growing_penalty")
        if not self.kept:
            masks = self._chosen(run)
            assert masks.plan is not None
            self.kept, self.plan = {name: whole(mask) for name, mask in masks.items()}, masks.plan.to_json()
        parameters, trained = parameters_in(run.model), trained_by(run.optimizer)
        concerned = {name: parameters[name] for name, mask in self.kept.items() if not bool(mask.all())}
        if not concerned:
            raise SecateursError(
                f"{self.name}: the plan keeps every unit, so that nothing is to go: ask allocate for a sparsity above 0"
            )
        frozen = [name for name, each in concerned.items() if id(each) not in trained]
        require_trained("growing_penalty", frozen, len(frozen) < len(concerned))
        self.going = [
            (each, sharded_as((~self.kept[name]).to(each.dtype), each)) for name, each in concerned.items() if id(each) in trained
        ]
        self.first = self.first or self._norm()

    def _chosen(self, run: Run) -> Masks:
        """What `prune_` would keep; the weights stay as they are."""
        before = [(each, each.detach().clone()) for each in parameters_in(run.model).values()]
        try:
            chosen: dict[str, Any] = {"only": self.only, "skip": self.skip, "masks": run.masks or None, "recalibrate": False}
            return prune_(run.model, self.pattern, self.solver, self.allocate, run.task, **chosen)
        finally:
            with torch.no_grad():
                for each, value in before:
                    each.copy_(value)

    def _norm(self) -> float:
        """The norm of what is to go."""
        with torch.no_grad():
            return sum(float(whole((each.detach() * gone).float().square().sum())) for each, gone in self.going) ** 0.5

    def _epoch(self, run: Run) -> None:
        if not self.over:
            self.size.require(run, self.name)
        if self.until is not None and run.epoch >= self.until:
            self._cut(run)

    def _loss(self, run: Run) -> Tensor | None:
        if self.over or not self.factor:
            return None
        self.size.require(run, self.name)
        total: Tensor | None = None
        for each, gone in self.going:
            part = whole((each * gone).square().sum())
            total = part if total is None else total + part.to(total.device)
        return None if total is None else 0.5 * self.factor * total

    @torch.no_grad()
    def _stepped(self, run: Run) -> None:
        if self.over or not (self.step == "subgradient" or self.taken()):
            return
        self.size.require(run, self.name)
        if self.step == "proximal" and self.factor:
            rates = trained_by(run.optimizer)
            for each, gone in self.going:
                shard_of(each.detach()).div_(1 + rates.get(id(each), 0.0) * self.factor * shard_of(gone))
            hold_(run)
        self.steps += 1

    def _tell(self, run: Run) -> None:
        if not self.over and run.history:
            left = self._norm() / self.first if self.first else 0.0
            run.history[-1] |= {f"{self.name}: factor": self.factor, f"{self.name}: left": left}

    def _end(self, run: Run) -> None:
        self.taken.leave()
        self._cut(run, last=True)

    def _cut(self, run: Run, last: bool = False) -> None:
        if self.over:
            return
        self.over = True
        if self.factor < self.ceiling * (1 - 1e-9):
            warnings.warn(
                f"{self.name}: the factor grew to {self.factor:.3g} in {self.steps} steps, and not to the ceiling of {self.ceiling:g}, "
                "before the units were cut: train for more epochs, or let it grow faster (delta=, every=)",
                stacklevel=2,
            )
        cut_(run, self.pattern, Chosen(self.kept), Plan.from_json(self.plan), only=self.only, skip=self.skip, last=last)

    def _state(self) -> dict[str, Any]:
        return {"kept": self.kept, "plan": self.plan, "steps": self.steps, "first": self.first, "over": self.over}

    def _restore(self, state: Mapping[str, Any]) -> None:
        kinds = {"plan": str, "steps": int, "first": float, "over": bool}
        kept = state.get("kept")
        if not isinstance(kept, Mapping) or not all(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in kept.values()
        ):
            raise FileError(f"{self.name}: the checkpoint holds no choice of units")
        if not all(type(state.get(key)) is kind for key, kind in kinds.items()):
            raise FileError(f"{self.name}: the checkpoint holds no state of this hook")
        self.kept, self.restored = dict(kept), True
        self.plan, self.steps, self.first, self.over = (state[key] for key in kinds)
