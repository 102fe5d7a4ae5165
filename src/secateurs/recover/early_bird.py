"""Early-bird tickets: the channels to keep are known early in training, when they no longer change from epoch to epoch (1909.11957)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateurs.criteria import batchnorm_scale
from secateurs.evidence import observe
from secateurs.given import ALLOCATOR, PATTERN, SOLVER, require
from secateurs.masks import Masks
from secateurs.patterns import Channel, Selection, find_sites
from secateurs.prune import prune_
from secateurs.recover.as_large import AsLarge
from secateurs.recover.inner import inside
from secateurs.solve import TopK
from secateurs.types import Allocator, FileError, Hook, Pattern, Run, SecateursError, Solver


def early_bird(
    allocate: Allocator,
    *,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    solver: Solver = TopK(batchnorm_scale()),  # noqa: B008 (frozen)
    window: int = 5,
    threshold: float = 0.1,
    strict: bool = False,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that prunes as soon as the choice of units has settled, and lets training go on without them (early-bird tickets, 1909.11957).

    After each epoch the units are chosen that would stay now, by ``solver`` and as many as ``allocate`` says; nothing is pruned. Once the
    choice differs from each of the ``window - 1`` before it in at most the fraction ``threshold`` of all units, the next epoch begins with
    that pruning. The paper's: the scales of BatchNorm, pushed towards zero (``penalty(1e-4, p=1, of="scales")`` beside it), and one
    threshold for all layers (``global_threshold(sparsity=0.5)``). ``run.history`` tells ``mask_distance``, the largest in the window.

    A run that ends before is not pruned, with a warning that tells how far it was; with ``strict=True`` it is pruned at its end. Raises
    `SecateursError` for a window below 2 or a threshold outside (0, 1], `PatternError` where no unit passes a normalisation.

    >>> from secateurs import global_threshold
    >>> early_bird(global_threshold(sparsity=0.5)).name
    'early_bird'
    """
    for name, value, kind in (("allocate", allocate, ALLOCATOR), ("pattern", pattern, PATTERN), ("solver", solver, SOLVER)):
        require("early_bird", name, value, kind)
    if isinstance(window, bool) or not isinstance(window, int) or window < 2 or not 0 < threshold <= 1:
        raise SecateursError(
            f"early_bird: window={window!r} must be a number of epochs, at least 2, and threshold={threshold} a fraction in (0, 1]"
        )

    def choose(run: Run) -> Tensor:
        model = inside(run.model)
        sites = find_sites(model, pattern, run.task.example, only=only, skip=skip, masks=run.masks.named_as_in(model) or None)
        stats = observe(model, sites, solver.needs, run.task)
        plan = allocate(sites, partial(solver.scores, sites, stats))
        return torch.cat([solver(site, plan[site.name], stats).kept.flatten().cpu() for site in sites])

    def prune(run: Run) -> Masks:
        return prune_(inside(run.model), pattern, solver, allocate, run.task, only=only, skip=skip, masks=run.masks or None)

    return _EarlyBird(choose, prune, window, threshold, strict).hook()


@dataclass
class _EarlyBird:
    choose: Any
    prune: Any
    window: int
    threshold: float
    strict: bool
    chosen: list[Tensor] = field(default_factory=list)
    least: float = 1.0
    found: bool = False
    pruned: bool = False
    restored: bool = False
    size: AsLarge = field(default_factory=AsLarge)

    def hook(self) -> Hook:
        return Hook(
            "early_bird",
            start=self._start,
            epoch=self._epoch,
            epoch_end=self._epoch_end,
            end=self._end,
            state=self._state,
            restore=self._restore,
        )

    def _start(self, run: Run) -> None:
        if run.masks is None:
            run.masks = Masks({}, inside(run.model))
        if not self.restored:  # what an earlier run of this hook has chosen is none of this one's
            self.chosen, self.least, self.found, self.pruned = [], 1.0, False, False
        self.restored = False
        self.size.look(run)
        if not self.pruned:
            self.choose(run)  # what cannot be chosen is told before an epoch is trained

    def _epoch_end(self, run: Run) -> None:
        if self.found:
            return
        self.size.require(run, "early_bird")
        now = self.choose(run)
        self.chosen = [*self.chosen, now][-self.window :]
        if len(self.chosen) < self.window:
            return
        distance = max(float((now != earlier).float().mean()) for earlier in self.chosen[:-1])
        self.least = min(self.least, distance)
        run.history[-1]["mask_distance"] = distance
        self.found = distance <= self.threshold

    def _epoch(self, run: Run) -> None:
        if self.found and not self.pruned:
            run.masks.replace_(self.prune(run))
            self.pruned, self.chosen = True, []

    def _end(self, run: Run) -> None:
        if self.found or self.strict:
            self.found = True
            self._epoch(run)
        elif run.step:
            seen = (
                f"the least distance was {self.least:.3g}" if len(self.chosen) == self.window else f"it takes {self.window} epochs"
            )
            warnings.warn(
                f"early_bird: the choice of units has not settled within {run.epoch + 1} epochs, so nothing is pruned: {seen}, above "
                f"{self.threshold:g}; train for longer, raise threshold=, or say strict=True",
                stacklevel=2,
            )

    def _state(self) -> dict[str, Any]:
        return {"chosen": self.chosen, "least": self.least, "found": self.found, "pruned": self.pruned}

    def _restore(self, state: Mapping[str, Any]) -> None:
        chosen, least = state.get("chosen"), state.get("least")
        sound = isinstance(chosen, list) and all(isinstance(each, Tensor) for each in chosen)
        if not sound or not isinstance(chosen, list) or not isinstance(least, (int, float)):
            raise FileError("early_bird: the checkpoint holds no state of this hook")
        self.chosen, self.least, self.restored = list(chosen), float(least), True
        self.found, self.pruned = bool(state["found"]), bool(state["pruned"])
