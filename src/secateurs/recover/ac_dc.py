"""Alternating compressed and decompressed training: masks for some epochs, then all weights again (2106.12379)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateurs.criteria import magnitude
from secateurs.given import ALLOCATOR, PATTERN, SOLVER, require
from secateurs.masks import Masks, Origin
from secateurs.patterns import Element, Selection, find_sites
from secateurs.prune import prune_
from secateurs.ranks import whole
from secateurs.recover.as_large import AsLarge
from secateurs.recover.inner import inside
from secateurs.recover.regrowth import is_marks, refuse_closures, refuse_coupled, require_single
from secateurs.solve import TopK
from secateurs.types import Allocator, FileError, Hook, Pattern, Run, SecateursError, Sites, Solver


def ac_dc(
    allocate: Allocator | None,
    *,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    solver: Solver = TopK(magnitude()),  # noqa: B008 (frozen)
    warmup: int | None = None,
    phase: int | None = None,
    final: int | None = None,
    from_pruned: bool = False,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that trains compressed and decompressed by turns, and ends compressed (AC/DC, 2106.12379).

    After ``warmup`` dense epochs, phases of ``phase`` epochs alternate, a compressed one first: at its start the model is pruned anew; at
    the start of a decompressed one all that this hook removed comes back, at zero and unknown to the optimizer. The last ``final``
    epochs are compressed. By default those are 10 %, 5 % (at least 1) and 15 % (at least 1) of the run, as in the paper.
    ``allocate=None`` leaves the amount to the pattern (2:4). Masks that the run has already hold, unless ``from_pruned=True``. A run
    that another hook stops while it is dense is pruned at its end, with a warning.

    Raises `SecateursError` for numbers of epochs that a run does not hold, or an optimizer such as L-BFGS; `PatternError` for coupled
    units, which would never come back to life from zero.

    >>> from secateurs import global_threshold
    >>> ac_dc(global_threshold(sparsity=0.9), warmup=2, phase=2, final=3).name
    'ac_dc'
    """
    require("ac_dc", "pattern", pattern, PATTERN)
    require("ac_dc", "solver", solver, SOLVER)
    if allocate is not None:
        require("ac_dc", "allocate", allocate, ALLOCATOR)
    refuse_coupled("ac_dc", pattern)
    for name, epochs, low in (("warmup", warmup, 0), ("phase", phase, 1), ("final", final, 1)):
        if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < low):
            raise SecateursError(f"ac_dc: {name}={epochs!r} must be a number of epochs, at least {low}")

    def prune(run: Run, earlier: Masks | None) -> Masks:
        return prune_(inside(run.model), pattern, solver, allocate, run.task, only=only, skip=skip, masks=earlier)

    def find(run: Run) -> Sites:
        return find_sites(inside(run.model), pattern, run.task.example, only=only, skip=skip)

    return _AcDc(prune, find, _Phases(warmup, phase, final), from_pruned).hook()


@dataclass(frozen=True)
class _Phases:
    """How many epochs each takes; ``None``: a share of the run."""

    warmup: int | None
    phase: int | None
    final: int | None

    def compressed(self, epoch: int, epochs: int) -> bool:
        """Whether an epoch of a run of so many is a compressed one; raises `SecateursError` where they do not fit."""
        warmup = epochs // 10 if self.warmup is None else self.warmup
        phase = max(1, epochs // 20) if self.phase is None else self.phase
        final = max(1, round(0.15 * epochs)) if self.final is None else self.final
        if epochs and warmup + final > epochs:
            raise SecateursError(
                f"ac_dc: warmup={warmup} dense epochs and final={final} compressed ones are more than the {epochs} of the run: train for "
                "longer, or give fewer"
            )
        return epoch >= epochs - final or (epoch >= warmup and (epoch - warmup) // phase % 2 == 0)


@dataclass
class _AcDc:
    prune: Callable[[Run, Masks | None], Masks]
    find: Callable[[Run], Sites]
    phases: _Phases
    from_pruned: bool
    held: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    begun: bool = False
    compressed: bool = False
    restored: bool = False
    size: AsLarge = field(default_factory=AsLarge)

    def hook(self) -> Hook:
        return Hook("ac_dc", start=self._start, epoch=self._epoch, end=self._end, state=self._state, restore=self._restore)

    def _start(self, run: Run) -> None:
        if run.masks is None:
            run.masks = Masks({}, inside(run.model))
        refuse_closures("ac_dc", run.optimizer)
        self.phases.compressed(0, run.epochs)
        self.size.look(run)
        if not self.restored:  # what an earlier run of this hook has removed is none of this one's
            self.held, self.own, self.begun, self.compressed = {}, {}, False, False
        self.restored = False
        if self.begun:
            return
        earlier = run.masks.named_as_in(inside(run.model))
        everything = {
            member.parameter: torch.ones(member.weight.shape, dtype=torch.bool, device=member.weight.device)
            for site in self.find(run)
            for member in site.members
        }
        if not self.from_pruned:
            self.held = {name: removed for name, mask in earlier.items() if bool((removed := ~whole(mask)).any())}
        stays = {name: whole(mask) for name, mask in earlier.items() if not self.from_pruned or name not in everything}
        origin = Origin() if self.from_pruned else run.masks.origin
        run.masks.replace_(Masks({**everything, **stays}, inside(run.model), origin))
        run.masks.require_free({name: self._free(name, mask) for name, mask in everything.items()}, self.from_pruned)
        self.begun = True

    def _free(self, name: str, mask: Tensor) -> Tensor:
        """What of a mask nothing else holds."""
        return mask & ~self.held[name].to(mask.device) if name in self.held else mask

    def _epoch(self, run: Run) -> None:
        self.size.require(run, "ac_dc")
        if self.phases.compressed(run.epoch, run.epochs) != self.compressed:
            if self.compressed:
                self._decompress(run)
            else:
                self._compress(run)

    def _compress(self, run: Run) -> None:
        self._see(run)
        earlier = Masks({name: ~removed for name, removed in self.held.items()}, inside(run.model)) if self.held else None
        run.masks.replace_(self.prune(run, earlier))
        self.own = {name: self._free(name, ~whole(mask)) for name, mask in run.masks.named_as_in(inside(run.model)).items()}
        self.compressed = True

    def _see(self, run: Run) -> None:
        """In a dense phase all that is removed was removed by others: it stays so."""
        for name, mask in run.masks.named_as_in(inside(run.model)).items():
            gone = self._free(name, ~whole(mask))
            if bool(gone.any()):
                self.held[name] = gone | self.held[name].to(gone.device) if name in self.held else gone

    def _decompress(self, run: Run) -> None:
        require_single("ac_dc", run.masks)
        names = run.masks.named_as_in(inside(run.model))
        back = {name: self.own[name].to(mask.device) & ~whole(mask) for name, mask in names.items() if name in self.own}
        run.masks.regrow_(back, optimizer=run.optimizer, from_pruned=self.from_pruned)
        self.compressed = False

    def _end(self, run: Run) -> None:
        if not self.compressed and run.step:
            warnings.warn(
                f"ac_dc: training was stopped in a dense phase, in epoch {run.epoch + 1}: the model is pruned now, and trained no more",
                stacklevel=2,
            )
            self._compress(run)

    def _state(self) -> dict[str, Any]:
        return {"held": self.held, "own": self.own, "begun": self.begun, "compressed": self.compressed}

    def _restore(self, state: Mapping[str, Any]) -> None:
        held, own = state.get("held"), state.get("own")
        if not is_marks(held) or not is_marks(own):
            raise FileError("ac_dc: the checkpoint holds no state of this hook")
        self.held, self.own = dict(state["held"]), dict(state["own"])
        self.begun, self.compressed = bool(state["begun"]), bool(state["compressed"])
        self.restored = True
