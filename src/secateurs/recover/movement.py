"""Movement: which way weights go while a network is fine-tuned, towards zero or away from it (2005.07683)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.allocate import uniform
from secateurs.criteria import movement
from secateurs.evidence import observe
from secateurs.forward import parameters_in
from secateurs.masks import Masks
from secateurs.patterns import Element, Selection, find_sites
from secateurs.prune import masks_of
from secateurs.recover.as_large import AsLarge
from secateurs.recover.schedules import Schedule
from secateurs.solve import TopK
from secateurs.types import Allocator, FileError, Hook, Pattern, Plan, Run, SecateursError, Sites, Task


@dataclass
class Movement:
    """Records −Σ g·w of each weight over the steps of a training run: above zero where the steps lead away from zero.

    Give ``hook()`` to `train_`, and ``numbers`` to the criterion `movement`. Steps of gradients that are not finite, which scaled training
    skips, do not count.

    >>> from secateurs.recover import train_
    >>> layer, moved = nn.Linear(1, 1, bias=False), Movement()
    >>> layer.weight.data.fill_(0.5) and None
    >>> task = Task(torch.ones(1, 1), train=[(torch.ones(1, 1), torch.ones(1, 1))], loss=nn.functional.mse_loss)
    >>> run = train_(layer, task, torch.optim.SGD(layer.parameters(), lr=0.1), epochs=1, hooks=[moved.hook()])
    >>> moved.numbers
    {'weight': tensor([[0.5000]])}
    """

    numbers: dict[str, Tensor] = field(default_factory=dict)

    def hook(self) -> Hook:
        """What records, in each step, before the weights have changed."""
        return Hook("movement", gradients=self._record, state=lambda: {"numbers": self.numbers}, restore=self._restore)

    def _record(self, run: Run) -> None:
        for name, parameter in parameters_in(run.model).items():
            self.add(name, parameter.grad, parameter)

    def add(self, name: str, gradient: Tensor | None, weight: Tensor) -> None:
        """One step of one weight."""
        if name not in self.numbers:
            self.numbers[name] = torch.zeros_like(weight, dtype=torch.float32).detach()
        if self.numbers[name].shape != weight.shape:
            raise SecateursError(
                f"{name}: its movement was recorded when its shape was {tuple(self.numbers[name].shape)}, and now it is "
                f"{tuple(weight.shape)}: make a new Movement() for another model, or for one that was shrunk"
            )
        if gradient is not None and bool(gradient.isfinite().all()):
            self.numbers[name] -= gradient.float() * weight.detach().float()

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.numbers = _tensors(state, "numbers")


def movement_pruning(
    schedule: Schedule,
    *,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    allocate: Callable[..., Allocator] = uniform,
    end: int | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that prunes by movement while it is learned, with weights that come back (hard movement pruning, 2005.07683).

    The network computes with W ⊙ M. In each step the scores, zero at first, take S ← S − ∂L/∂(W ⊙ M) · W, straight through the mask M
    of the highest ones, so that those of removed weights move too; W takes ∂L/∂(W ⊙ M) ⊙ M, so that removed weights wait where they
    are, but for the optimizer's momentum. M is chosen anew after each step, as many as ``schedule((epoch + 1) / end)`` leaves. At the
    start of epoch `end` (by default after three quarters of all) the masks become those of the run, and what is removed is gone.

    Raises `SecateursError` for an end below 1, and when training begins with masks already.

    >>> from secateurs import cubic
    >>> movement_pruning(cubic(0.9), end=3).name
    'movement_pruning'
    """
    if end is not None and end < 1:
        raise SecateursError(f"movement_pruning: end={end} must be an epoch, at least 1")

    def sites(run: Run) -> Sites:
        return find_sites(run.model, pattern, run.task.example, only=only, skip=skip)

    return _Pruning(sites, schedule, allocate, end).hook()


@dataclass
class _Pruning:
    find: Callable[[Run], Sites]
    schedule: Schedule
    allocate: Callable[..., Allocator]
    last: int | None
    moved: Movement = field(default_factory=Movement)
    whole: dict[str, Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    sites: Sites | None = None
    plan: Plan | None = None
    over: bool = False
    restored: bool = False
    size: AsLarge = field(default_factory=AsLarge)

    def hook(self) -> Hook:
        return Hook(
            "movement_pruning",
            start=self._start,
            epoch=self._epoch,
            gradients=self._gradients,
            stepped=self._stepped,
            end=self._finish,
            state=self._state,
            restore=self._restore,
        )

    def _start(self, run: Run) -> None:
        if not self.restored:  # what an earlier run of this hook has recorded is none of this one's
            self.whole, self.masks, self.plan, self.over = {}, {}, None, False
            self.moved.numbers = {}
        self.restored = False
        self.size.look(run)
        self._require_no_masks(run)
        self.sites = self.find(run)
        for name, weight in self._weights():
            self.whole.setdefault(name, weight.detach().clone())
            self.masks.setdefault(name, torch.ones_like(weight, dtype=torch.bool))
            self.moved.add(name, None, weight)

    def _require_no_masks(self, run: Run) -> None:
        if run.masks and not self.over:
            raise SecateursError(
                "movement_pruning: the run has masks already, of an earlier pruning or of another hook; weights that are gone cannot come "
                "back: begin without, or share the training out (end=, begin=)"
            )

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        assert self.sites is not None
        yield from {member.parameter: member.weight for site in self.sites for member in site.members}.items()

    def _end(self, run: Run) -> int:
        return max(1, run.epochs * 3 // 4) if self.last is None else min(self.last, run.epochs)

    def _epoch(self, run: Run) -> None:
        if not self.over:
            self.size.require(run, "movement_pruning")
        if run.epoch >= self._end(run):
            self._finish(run)
        elif self.sites is not None:
            amount = self.allocate(sparsity=self.schedule((run.epoch + 1) / self._end(run)))
            solver = self._solver()
            self.plan = amount(self.sites, lambda: solver.scores(self.sites or (), self._stats(run)))
            self._choose(run)

    def _solver(self) -> TopK:
        return TopK(movement(self.moved.numbers))

    def _stats(self, run: Run) -> Any:
        assert self.sites is not None
        return observe(run.model, self.sites, self._solver().needs, Task(example=None))

    def _choose(self, run: Run) -> None:
        """The masks of the highest scores, and the network as it is with them."""
        assert self.sites is not None and self.plan is not None
        solver, stats, found = self._solver(), self._stats(run), dict[str, Tensor]()
        for site in self.sites:
            for name, mask in masks_of(site, solver(site, self.plan[site.name], stats)).items():
                found[name] = mask & found[name] if name in found else mask
        self.masks = found
        with torch.no_grad():
            for name, weight in self._weights():
                weight.copy_(self.whole[name] * self.masks[name])

    def _gradients(self, run: Run) -> None:
        if not self.over:
            self.size.require(run, "movement_pruning")
            self._require_no_masks(run)
        for name, weight in self._weights() if not self.over else ():
            self.moved.add(name, weight.grad, self.whole[name])
            if weight.grad is not None:
                weight.grad.masked_fill_(~self.masks[name], 0)

    def _stepped(self, run: Run) -> None:
        if self.over:
            return
        for name, weight in self._weights():
            moved = self.whole[name] + weight.detach()  # from zero: what momentum does to a removed weight
            self.whole[name] = torch.where(self.masks[name], weight.detach(), moved)
        self._choose(run)

    def _finish(self, run: Run) -> None:
        if not self.over and self.plan is not None:
            self.over = True
            run.masks.replace_(Masks(self.masks, run.model))

    def _state(self) -> dict[str, Any]:
        plan = self.plan.to_json() if self.plan is not None else ""
        return {"numbers": self.moved.numbers, "whole": self.whole, "masks": self.masks, "over": self.over, "plan": plan}

    def _restore(self, state: Mapping[str, Any]) -> None:
        plan = state.get("plan")
        if not isinstance(plan, str):
            raise FileError("movement_pruning: the checkpoint holds no plan")
        self.plan = Plan.from_json(plan) if plan else None
        self.moved.numbers, self.whole = _tensors(state, "numbers"), _tensors(state, "whole")
        self.masks, self.over, self.restored = _tensors(state, "masks"), bool(state["over"]), True


def _tensors(state: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    found = state.get(key)
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise FileError("movement: the checkpoint holds no state of this hook")
    return dict(found)
