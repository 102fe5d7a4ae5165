"""Pruning while training: at the start of some epochs the next share of units goes, and training makes up for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from secateurs.allocate.account import budgets_of
from secateurs.costs import macs, params
from secateurs.given import ALLOCATORS_OR_BUDGETED, BY_SPARSITY, PATTERN, SCHEDULE, SOLVER, require
from secateurs.masks import Masks, zero_dead_
from secateurs.nested import tensors_in
from secateurs.patterns import Selection
from secateurs.prune import prune_
from secateurs.recover.amounts import Amount, ByBudget, BySparsity, require_ends
from secateurs.recover.checkpoint import load_weights
from secateurs.recover.dropout import adjust_dropout_, dropout_rates
from secateurs.recover.schedules import Schedule
from secateurs.shrink import shrink_
from secateurs.types import Allocator, Budget, FileError, Hook, Pattern, Run, SecateursError, Solver
from secateurs.watch import refuse_opaque

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
    budget: Budget | Sequence[Budget] | None = None,
    shrink: bool = False,
    rewind: Rewind | None = None,
    rewind_to: int | str | Path = 0,
    dropout: bool = True,
    dead: bool = True,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that prunes at the start of every `every`-th epoch from `begin` up to `end` (not included; by default all epochs).

    The i-th of n prunings brings the sparsity to ``schedule(i / n)``, spread by ``allocate(sparsity=…)``; what is gone stays gone. With a
    ``budget``, or several, it brings each cost so far of the way from that of the model as it is when training begins to its limit, by
    ``within_budget(…, allocate)``, or by ``allocate(budgets)`` where that takes them (`marginal`): of the schedule only its shape counts.
    After `end`, training goes on at the final sparsity. ``dropout=True`` adjusts dropout rates to the pruned layers
    (`adjust_dropout_`); ``dead=True`` zeroes neurons that the last pruning has cut off (`zero_dead_`).

    ``rewind="learning_rate"`` sets scheduler and optimizer back to where they began, at each pruning (2003.02389);
    ``rewind="weights"`` also sets what is left of the weights back to their values at the start of epoch `rewind_to`: lottery
    tickets (1803.03635), late rewinding where `rewind_to` > 0 (1903.01611). ``rewind_to`` may also be a file, of `save` or a
    checkpoint of `train_`.

    ``shrink=True``, for patterns whose units `shrink_` takes out (channels, heads, blocks, experts): after each pruning the model gets
    physically smaller, and the optimizer's state follows, so that each round trains faster than the one before; ``run.history`` tells
    ``params`` and ``macs`` of the model of each epoch. Fractions and budgets are of the model as it was when training began. A
    checkpoint holds how the model was shrunk: the program that goes on builds it as it was at first.

    In a loop of your own: ``run = Run(model, task, optimizer, epochs, masks=Masks({}, model))``, ``run.masks.hold(optimizer)``,
    ``hook.start(run)``, and at the start of each epoch ``run.epoch = epoch; hook.epoch(run)``.

    Raises `SecateursError` for a range of epochs that holds no pruning; for ``shrink=True`` with a pattern of single weights, with weights
    that are rewound, and, when training begins, for a model that is wrapped, compiled or sharded, or under constraints.

    >>> from secateurs import Element, TopK, cubic, global_threshold, magnitude
    >>> gradual(Element(), TopK(magnitude()), global_threshold, cubic(0.9), end=10, every=2).name
    'gradual'
    """
    if every < 1 or begin < 0 or (end is not None and end <= begin):
        raise SecateursError(f"gradual: from epoch {begin} to {end}, every {every}, there is nothing to prune")
    if rewind == "weights" and isinstance(rewind_to, int) and rewind_to > begin:
        raise SecateursError(f"gradual: rewind_to={rewind_to} comes after the first pruning, at epoch {begin}")

    require("gradual", "pattern", pattern, PATTERN)
    require("gradual", "solver", solver, SOLVER)
    require("gradual", "allocate", allocate, BY_SPARSITY if budget is None else ALLOCATORS_OR_BUDGETED)
    require("gradual", "schedule", schedule, SCHEDULE)
    budgets = () if budget is None else budgets_of("gradual", budget)
    require_ends(schedule, budgets)
    if shrink:
        _require_shrinks(pattern, rewind)
    amount: Amount = ByBudget(budgets, allocate, schedule) if budgets else BySparsity(allocate, schedule, shrink)

    def prune(run: Run, plan: Allocator) -> None:
        chosen: dict[str, Any] = {"only": only, "skip": skip, "masks": run.masks or None}
        # An epoch of training follows, and takes the statistics of BatchNorms anew by itself.
        run.masks.replace_(prune_(run.model, pattern, solver, plan, run.task, recalibrate=False, **chosen))

    times = _Times(begin, end, every)
    return _Gradual(prune, times, amount, rewind, rewind_to, dropout, dead, pattern.removable, shrink).hook()


def _require_shrinks(pattern: Pattern, rewind: Rewind | None) -> None:
    """Raise `SecateursError` where a model cannot shrink while it is pruned."""
    if not pattern.removable:
        raise SecateursError(
            f"gradual: {pattern} leaves zeros within its weights, which shrink_ cannot take out: give shrink=True with Channel(), Head(), "
            "Depth() or Expert(), or call shrink_ once training is over"
        )
    if rewind == "weights":
        raise SecateursError(
            'gradual: rewind="weights" needs the weights as large as they were: leave out shrink=True, and call shrink_ once training '
            "is over"
        )


@dataclass(frozen=True)
class _Times:
    """When prunings happen."""

    begin: int
    end: int | None
    every: int

    def progress(self, run: Run) -> float | None:
        """How far the pruning of this epoch brings things, in (0, 1], or ``None`` where it does not prune."""
        after = run.epoch - self.begin
        if after < 0 or after % self.every or run.epoch >= self._end(run):
            return None
        return (after // self.every + 1) / ceil((self._end(run) - self.begin) / self.every)

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
    prune: Callable[[Run, Allocator], None]
    times: _Times
    amount: Amount
    rewind: Rewind | None
    rewind_to: int | str | Path
    dropout: bool
    dead: bool
    coupled: bool = False
    shrink: bool = False
    original_dropout: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
    beginning: dict[str, Any] = field(default_factory=dict)
    size: dict[str, float] = field(default_factory=dict)

    def hook(self) -> Hook:
        tell = self._tell_size if self.shrink else Hook("").epoch_end
        return Hook("gradual", self._start, self._epoch, epoch_end=tell, state=self._state, restore=self._restore)

    def _start(self, run: Run) -> None:
        self.times.require_some(run)
        if self.shrink:
            _require_may_shrink(run)
            self._measure(run)
        self.amount.begin(run)
        if not self.original_dropout:
            self.original_dropout = dropout_rates(run.model)
        elif self.dropout:
            adjust_dropout_(run.model, run.masks.named_as_in(run.model), run.task.example, self.original_dropout)
        if not self.beginning:
            self.beginning = {"optimizer": copy.deepcopy(run.optimizer.state_dict()), "scheduler": _scheduler_state(run)}
        if self.shrink and self.rewind and any(tensor.numel() > 1 for tensor in tensors_in(self.beginning["optimizer"]["state"])):
            raise SecateursError(
                'gradual: rewind="learning_rate" would set the optimizer back to what it held when training began, which is of the larger '
                "weights: make a new optimizer for this training, or leave out shrink=True"
            )

    def _epoch(self, run: Run) -> None:
        if self.rewind == "weights" and run.epoch == self.rewind_to:
            self.weights = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
        progress = self.times.progress(run)
        if progress is None:
            return
        sparsity = self.amount.sparsity(progress)
        if sparsity is not None and run.masks and not self.coupled and sparsity <= run.masks.sparsity:
            return  # where units are coupled, masks hold more than their fraction of the weights
        self.prune(run, self.amount.allocator(progress))
        if self.dead and self.times.is_last(run):
            zero_dead_(run.model, run.masks, run.task.example)
        if self.dropout and self.original_dropout:
            adjust_dropout_(run.model, run.masks.named_as_in(run.model), run.task.example, self.original_dropout)
        if self.rewind is not None:
            self._go_back(run)
        if self.shrink:
            self._shrink(run)

    def _shrink(self, run: Run) -> None:
        """Take out what was pruned; what cannot go is listed in ``run.masks.skipped``, and stays masked."""
        shrunk = shrink_(run.model, run.masks, run.task.example, optimizer=run.optimizer)
        skipped = dict.fromkeys((*run.masks.skipped, *shrunk.skipped))
        run.masks.origin = replace(run.masks.origin, skipped=tuple(skipped))
        self._measure(run)
        rates, self.original_dropout = dropout_rates(run.model), {}
        if rates and self.dropout:  # what is left of the masks lowers them already: the next pruning starts from those without
            left = run.masks.named_as_in(run.model)
            factors = adjust_dropout_(run.model, left, run.task.example, dict.fromkeys(rates, 1.0))
            rates = {name: rate / (factors.get(name) or 1.0) for name, rate in rates.items()}
            adjust_dropout_(run.model, left, run.task.example, rates)
        self.original_dropout = rates

    def _measure(self, run: Run) -> None:
        self.size = {cost.name: cost(run.model, run.task.example) for cost in (params, macs)}

    def _tell_size(self, run: Run) -> None:
        run.history[-1].update(self.size)

    def _go_back(self, run: Run) -> None:
        if self.rewind == "weights":
            rewind_(run.model, self.weights if isinstance(self.rewind_to, int) else self.rewind_to, run.masks)
        run.optimizer.load_state_dict(copy.deepcopy(self.beginning["optimizer"]))
        if run.scheduler is not None:
            run.scheduler.load_state_dict(copy.deepcopy(self.beginning["scheduler"]))

    def _state(self) -> dict[str, Any]:
        kept = {"dropout": self.original_dropout, "weights": self.weights, "beginning": self.beginning}
        return {**kept, "amount": self.amount.state()}

    def _restore(self, state: Mapping[str, Any]) -> None:
        beginning = state["beginning"]
        sound = all(type(rate) in (int, float) and 0 <= rate <= 1 for rate in state["dropout"].values())
        sound &= all(isinstance(tensor, Tensor) for tensor in state["weights"].values())
        if not sound or (
            beginning and not (beginning["optimizer"].keys() >= {"state", "param_groups"} and "scheduler" in beginning)
        ):
            raise FileError("gradual: the checkpoint holds no state of this hook")
        self.amount.restore(state.get("amount", {}))
        self.original_dropout, self.weights = dict(state["dropout"]), dict(state["weights"])
        self.beginning = dict(state["beginning"])


def _require_may_shrink(run: Run) -> None:
    """Raise `SecateursError` where a model that trains cannot become smaller."""
    try:
        refuse_opaque(run.model)
    except SecateursError as problem:
        raise SecateursError(
            f"gradual: with shrink=True the model itself must be trained, as its wrapper holds on to weights of the old sizes ({problem}); "
            "or leave out shrink=True, and call shrink_ once training is over"
        ) from problem
    if run.constraints:
        raise SecateursError(
            f"gradual: the constraint {run.constraints[0].name} holds weights of the old sizes, so shrink=True cannot be: call shrink_ "
            "once training is over"
        )


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
