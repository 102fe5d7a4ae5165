"""Pruning while training: at the start of some epochs the next share of units goes, and training makes up for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from secateurs.given import BY_SPARSITY, SCHEDULE, SOLVER, require
from secateurs.masks import Masks, zero_dead_
from secateurs.patterns import Selection
from secateurs.prune import prune_
from secateurs.recover.checkpoint import load_weights
from secateurs.recover.dropout import adjust_dropout_, dropout_rates
from secateurs.recover.schedules import Schedule
from secateurs.types import Allocator, FileError, Hook, Pattern, Run, SecateursError, Solver

Rewind = Literal["weights", "learning_rate"]


def gradual(
    pattern: Pattern,
    solver: Solver,
    allocate: Callable[..., Allocator],
    schedule: Schedule,
    *,
    begin: int = 0,
    end: int | None = None,
    every: int = 1,
    rewind: Rewind | None = None,
    rewind_to: int | str | Path = 0,
    dropout: bool = True,
    dead: bool = True,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that prunes at the start of every `every`-th epoch from `begin` up to `end` (not included; by default all epochs).

    The i-th of n prunings brings the sparsity to ``schedule(i / n)``, spread by ``allocate(sparsity=…)``; what is gone stays gone.
    After `end`, training goes on at the final sparsity. ``dropout=True`` adjusts dropout rates to the pruned layers
    (`adjust_dropout_`); ``dead=True`` zeroes neurons that the last pruning has cut off (`zero_dead_`).

    ``rewind="learning_rate"`` sets scheduler and optimizer back to where they began, at each pruning (2003.02389);
    ``rewind="weights"`` also sets what is left of the weights back to their values at the start of epoch `rewind_to`: lottery
    tickets (1803.03635), late rewinding where `rewind_to` > 0 (1903.01611). ``rewind_to`` may also be a file, of `save` or a
    checkpoint of `train_`.

    Raises `SecateursError` for a range of epochs that holds no pruning.

    >>> from secateurs import Element, TopK, cubic, global_threshold, magnitude
    >>> gradual(Element(), TopK(magnitude()), global_threshold, cubic(0.9), end=10, every=2).name
    'gradual'
    """
    if every < 1 or begin < 0 or (end is not None and end <= begin):
        raise SecateursError(f"gradual: from epoch {begin} to {end}, every {every}, there is nothing to prune")
    if rewind == "weights" and isinstance(rewind_to, int) and rewind_to > begin:
        raise SecateursError(f"gradual: rewind_to={rewind_to} comes after the first pruning, at epoch {begin}")

    require("gradual", "solver", solver, SOLVER)
    require("gradual", "allocate", allocate, BY_SPARSITY)
    require("gradual", "schedule", schedule, SCHEDULE)

    def prune(run: Run, sparsity: float) -> None:
        masks = prune_(
            run.model, pattern, solver, allocate(sparsity=sparsity), run.task, only=only, skip=skip, masks=run.masks or None
        )
        run.masks.replace_(masks)

    times = _Times(schedule, begin, end, every)
    return _Gradual(prune, times, rewind, rewind_to, dropout, dead, pattern.removable).hook()


@dataclass(frozen=True)
class _Times:
    """When prunings happen, and what sparsity each brings."""

    schedule: Schedule
    begin: int
    end: int | None
    every: int

    def sparsity(self, run: Run) -> float | None:
        """The sparsity that this epoch brings, or ``None`` where it does not prune."""
        after = run.epoch - self.begin
        if after < 0 or after % self.every or run.epoch >= self._end(run):
            return None
        return self.schedule((after // self.every + 1) / ceil((self._end(run) - self.begin) / self.every))

    def require_some(self, run: Run) -> None:
        """Raise `SecateursError` where the run ends before the first pruning."""
        if run.epochs and self.begin >= self._end(run):
            raise SecateursError(
                f"gradual: the first pruning is at epoch {self.begin}, but training ends after {run.epochs}: "
                "train for more epochs, or begin earlier"
            )

    def is_last(self, run: Run) -> bool:
        return run.epoch + self.every >= self._end(run)

    def _end(self, run: Run) -> int:
        return run.epochs if self.end is None else min(self.end, run.epochs)


@dataclass
class _Gradual:
    prune: Callable[[Run, float], None]
    times: _Times
    rewind: Rewind | None
    rewind_to: int | str | Path
    dropout: bool
    dead: bool
    coupled: bool = False
    original_dropout: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    beginning: dict[str, Any] = field(default_factory=dict)

    def hook(self) -> Hook:
        return Hook("gradual", start=self._start, epoch=self._epoch, state=self._state, restore=self._restore)

    def _start(self, run: Run) -> None:
        self.times.require_some(run)
        if not self.original_dropout:
            self.original_dropout = dropout_rates(run.model)
        elif self.dropout:
            adjust_dropout_(run.model, run.masks.named_as_in(run.model), run.task.example, self.original_dropout)
        if not self.beginning:
            self.beginning = {"optimizer": copy.deepcopy(run.optimizer.state_dict()), "scheduler": _scheduler_state(run)}

    def _epoch(self, run: Run) -> None:
        if self.rewind == "weights" and run.epoch == self.rewind_to:
            self.weights = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
        sparsity = self.times.sparsity(run)
        if sparsity is None or (run.masks and not self.coupled and sparsity <= run.masks.sparsity):
            return  # where units are coupled, masks hold more than their fraction of the weights
        self.prune(run, sparsity)
        if self.dead and self.times.is_last(run):
            zero_dead_(run.model, run.masks, run.task.example)
        if self.dropout and self.original_dropout:
            adjust_dropout_(run.model, run.masks.named_as_in(run.model), run.task.example, self.original_dropout)
        if self.rewind is not None:
            self._go_back(run)

    def _go_back(self, run: Run) -> None:
        if self.rewind == "weights":
            rewind_(run.model, self.weights if isinstance(self.rewind_to, int) else self.rewind_to, run.masks)
        run.optimizer.load_state_dict(copy.deepcopy(self.beginning["optimizer"]))
        if run.scheduler is not None:
            run.scheduler.load_state_dict(copy.deepcopy(self.beginning["scheduler"]))

    def _state(self) -> dict[str, Any]:
        return {"dropout": self.original_dropout, "weights": self.weights, "beginning": self.beginning}

    def _restore(self, state: Mapping[str, Any]) -> None:
        beginning = state["beginning"]
        sound = all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in state["dropout"].values())
        sound &= all(isinstance(tensor, Tensor) for tensor in state["weights"].values())
        if not sound or (
            beginning and not (beginning["optimizer"].keys() >= {"state", "param_groups"} and "scheduler" in beginning)
        ):
            raise FileError("gradual: the checkpoint holds no state of this hook")
        self.original_dropout, self.weights = dict(state["dropout"]), dict(state["weights"])
        self.beginning = dict(state["beginning"])


def _scheduler_state(run: Run) -> Any:
    return copy.deepcopy(run.scheduler.state_dict()) if run.scheduler is not None else None


def rewind_(model: nn.Module, weights: Mapping[str, Tensor] | str | Path, masks: Masks) -> None:
    """Set what is left of a pruned model back to earlier weights: for loops of one's own (`gradual` does it by itself).

    ``weights`` is an earlier ``state_dict()``, or a file: of `save`, or a checkpoint of `train_`. Raises `FileError` where the file
    is damaged or belongs to another model.

    >>> import torch
    >>> from secateurs import Masks
    >>> layer = nn.Linear(2, 1)
    >>> earlier = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    >>> rewind_(layer, earlier, Masks({"weight": torch.tensor([[True, False]])}, layer))
    >>> bool(layer.weight[0, 0] == earlier["weight"][0, 0]), layer.weight[0, 1].item()
    (True, 0.0)
    """
    if isinstance(weights, (str, Path)):
        load_weights(weights, model)
    else:
        model.load_state_dict(dict(weights))
    masks.apply_(model)
