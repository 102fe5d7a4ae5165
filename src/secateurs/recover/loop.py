"""One training loop, in plain PyTorch, with hooks. Users who have their own keep it: masks.attach(optimizer) is all it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.batch import loss_of, own_loss, run_batch, size_of, split
from secateurs.forward import check_fit, device_of, evaluating
from secateurs.given import CONSTRAINTS, COUNT, HOOKS, MASKS, MODEL, NUMBER_TYPE, OPTIMIZER, TASK, require
from secateurs.masks import Masks
from secateurs.progress import tell, track
from secateurs.ranks import any_sharded, count, is_sharded, require_same, summed
from secateurs.recover.checkpoint import read_checkpoint, write_checkpoint
from secateurs.recover.evaluate import measured
from secateurs.recover.trial import needs_closure
from secateurs.shrink.undo import Undo
from secateurs.types import Constraint, Hook, NonFiniteError, Run, SecateursError, Task, TaskError


def train_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    scheduler: Any = None,
    masks: Masks | None = None,
    hooks: Sequence[Hook] = (),
    constraints: Sequence[Constraint] = (),
    amp: torch.dtype | None = None,
    accumulate: int = 1,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    show: bool = True,
) -> Run:
    """Train a model in place, pruned weights staying at zero; returns the run, with ``run.history`` (one dict an epoch) and masks.

    ``scheduler`` steps once an epoch (`per_step` makes a hook of one that steps more often; one that needs a metric gets the
    validation's). ``amp`` is the dtype of automatic mixed precision: ``torch.bfloat16``, or ``torch.float16`` with gradient scaling.
    ``accumulate`` batches, of whatever sizes, make one optimizer step. ``checkpoint`` is a file that is written after each epoch;
    where it exists, training goes on from it, to the bit as if it had never stopped. ``seed`` seeds torch at the start. Batches are
    moved to the model's device; where several processes train one model, masks must be the same in all, and losses and metrics are those
    of all. Where the task has validation batches and a metric, they are measured after each epoch. ``show``: bars
    on a terminal, elsewhere a line an epoch on stderr.

    ``constraints`` hold after each step as masks do, after them (`secateurs.types.Constraint`). Without a loss in the task, the model's own
    is taken (``output.loss``).

    Raises `TaskError` for a missing or empty training loader, a missing loss, or one that returns no scalar; `NonFiniteError` where
    the loss is NaN or infinite; `FileError` for a checkpoint of another run; `SecateursError` for a constraint that fills masked weights.

    >>> task = Task(torch.zeros(1, 2), train=[(torch.ones(4, 2), torch.zeros(4, 1))], loss=nn.functional.mse_loss)
    >>> model = nn.Linear(2, 1)
    >>> run = train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), epochs=20)
    >>> run.history[-1]["loss"] < run.history[0]["loss"]
    True
    """
    _require_kinds(locals())
    _require_fit(task, epochs, accumulate, hooks, constraints)
    if checkpoint is not None and any_sharded(model.parameters()):
        raise SecateursError(
            "train_: checkpoint= writes whole models, and this one is sharded (fully_shard): keep its state with "
            "torch.distributed.checkpoint, and its masks with save(model, path, masks)"
        )
    if task.loss is None:
        _require_own_loss(model, task)
    run = Run(model, task, optimizer, epochs, scheduler, masks if masks is not None else Masks({}, model))
    run.constraints = tuple(constraints)
    loop = _Loop(run, hooks, _scaler(run, amp), _autocast(model, amp), accumulate, show)
    undo = Undo()
    try:
        start = loop.begun(checkpoint, seed, undo)
        with _holding(run, no_surprise=masks is None or bool(hooks)), _closed_at_last(run, hooks):
            loop.started()
            undo.forget()  # from here on training may be gone on with
            loop.go(start, checkpoint)
    except BaseException:
        undo()
        raise
    return run


def _require_kinds(given: Mapping[str, Any]) -> None:
    kinds = {"model": MODEL, "task": TASK, "optimizer": OPTIMIZER, "epochs": COUNT, "accumulate": COUNT, "hooks": HOOKS}
    for argument, kind in {**kinds, "constraints": CONSTRAINTS}.items():
        require("train_", argument, given[argument], kind)
    for argument, kind in (("masks", MASKS), ("amp", NUMBER_TYPE)):
        if given[argument] is not None:
            require("train_", argument, given[argument], kind)


def _require_fit(task: Task, epochs: int, accumulate: int, hooks: Sequence[Hook], constraints: Sequence[Constraint]) -> None:
    if task.train is None:
        raise TaskError("there is nothing to train on: give Task(train=...), batches that can be walked once an epoch")
    if epochs < 0 or accumulate < 1:
        raise SecateursError(f"train_: epochs={epochs} must be at least 0, and accumulate={accumulate} at least 1")
    for what, named in (("hooks", hooks), ("constraints", constraints)):
        names = [each.name for each in named]
        if len(set(names)) < len(names):
            raise SecateursError(f"train_: the {what}' names must differ, so that a checkpoint can tell them apart: {names}")


def _scaler(run: Run, amp: torch.dtype | None) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler(device_of(run.model).type, enabled=amp == torch.float16)
    if scaler.is_enabled() and needs_closure(run.optimizer):
        raise SecateursError(f"train_: {type(run.optimizer).__name__} cannot scale gradients: use amp=torch.bfloat16, or none")
    return scaler


def _autocast(model: nn.Module, amp: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast(device_of(model).type, dtype=amp) if amp is not None else nullcontext()


@contextmanager
def _holding(run: Run, no_surprise: bool) -> Iterator[None]:
    """Masks, and then constraints, hold from here on after each step of the optimizer."""
    handles = [run.masks.hold(run.optimizer) if no_surprise else run.masks.attach(run.optimizer)]
    try:
        if run.constraints:
            handles.append(run.optimizer.register_step_post_hook(lambda *_: _constrain_(run)))
            _require_masked(run)
        yield
    finally:
        for handle in handles:
            handle.remove()
        run.inputs = run.output = run.target = None


@contextmanager
def _closed_at_last(run: Run, hooks: Sequence[Hook]) -> Iterator[None]:
    """Whatever ends the block, each hook takes off the model what it has put there, the last one first."""
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.close, run)
        yield


def _constrain_(run: Run) -> None:
    for constraint in run.constraints:
        constraint.apply_()


def _require_masked(run: Run) -> None:
    """Raise `SecateursError` where a constraint fills what the masks hold at zero."""
    for constraint in run.constraints:
        constraint.apply_()
        moved: dict[str, int] = {}
        for _, parts in run.masks.applied_(moved):
            for _ in parts:
                pass
        filled = {name: count for name, count in moved.items() if count}
        if filled:
            name, count = next(iter(filled.items()))
            raise SecateursError(
                f"train_: the constraint {constraint.name} fills {count} weights of {name} that the masks hold at zero: it must leave "
                "them, as masks[name] tells which"
            )


@dataclass(frozen=True)
class _Loop:
    """A run, and how its epochs go."""

    run: Run
    hooks: Sequence[Hook]
    scaler: torch.amp.GradScaler
    autocast: AbstractContextManager[Any]
    accumulate: int
    show: bool

    def begun(self, checkpoint: str | Path | None, seed: int | None, undo: Undo) -> int:
        """The first epoch to train: from the checkpoint on where there is one. Masks must be those of all processes."""
        run, start = self.run, 0
        if self.hooks:  # they may write weights and masks when they start, and then one of them may refuse
            weights = {name: each.clone() if isinstance(each, Tensor) else each for name, each in run.model.state_dict().items()}
            undo.add(partial(run.model.load_state_dict, weights))
            undo.add(run.masks.way_back())
        for hook in self.hooks:
            hook.made(run)
        if checkpoint is not None and Path(checkpoint).exists():
            start = read_checkpoint(checkpoint, run, self.hooks, self.scaler, undo)
        elif seed is not None:
            torch.manual_seed(seed)
        require_same(
            {name: mask for name, mask in run.masks.items() if not is_sharded(mask)},
            "the mask",
            "give all the same masks (prune_ in every process does, and load_masks of one file)",
        )
        return start

    def started(self) -> None:
        """Every hook has begun."""
        self._tell_hooks(lambda hook: hook.start(self.run))

    def go(self, start: int, checkpoint: str | Path | None) -> None:
        """The epochs from `start` on, each with a checkpoint at its end, and the end."""
        run = self.run
        with closing(track(range(start, run.epochs), "training", show=self.show, status=lambda: _told(run))) as epochs:
            for run.epoch in epochs:
                self._tell_hooks(lambda hook: hook.epoch(run))
                self._finish_epoch(self._epoch())
                if checkpoint is not None:
                    write_checkpoint(checkpoint, run, self.hooks, self.scaler, run.epoch + 1)
                tell(f"epoch {run.epoch + 1}/{run.epochs}: {_told(run)}", self.show)
                if run.stop:
                    break
        self._tell_hooks(lambda hook: hook.end(run))

    def _tell_hooks(self, call: Callable[[Hook], None]) -> None:
        """Call a part of each hook that may change weights."""
        for hook in self.hooks:
            call(hook)
        if self.hooks:
            self.run.masks.apply_()
            _constrain_(self.run)

    def _epoch(self) -> float:
        """One pass over the training batches; the mean loss."""
        run = self.run
        run.model.train()
        sampler = getattr(run.task.train, "sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(run.epoch)
        walk = _Walk(self, device_of(run.model))
        train = () if run.task.train is None else run.task.train
        batches = iter(track(train, f"epoch {run.epoch + 1}/{run.epochs}", show=self.show))
        while group := list(islice(batches, self.accumulate)):
            if needs_closure(run.optimizer):
                run.optimizer.step(partial(walk.backward, group))  # type: ignore[arg-type]
            else:
                walk.backward(group)
                self.scaler.step(run.optimizer)
                self.scaler.update()
            run.step += 1
            for hook in self.hooks:
                hook.stepped(run)
        return _finite(_mean(walk.total, walk.samples, run.epoch), run)

    def _finish_epoch(self, loss: float) -> None:
        run = self.run
        entry = {"epoch": float(run.epoch), "loss": loss, "lr": float(run.optimizer.param_groups[0]["lr"])}
        entry["sparsity"] = run.masks.sparsity
        if run.task.validation is not None and run.task.metric is not None:
            entry["validation"] = run.task.summarised(_mean(*measured(run.model, run.task, run.task.validation, self.show)))
        if isinstance(run.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            if "validation" not in entry:
                raise TaskError("ReduceLROnPlateau needs a metric: give Task(validation=..., metric=...)")
            run.scheduler.step(entry["validation"])
        elif run.scheduler is not None:
            run.scheduler.step()
        run.history.append(entry)
        for hook in self.hooks:
            hook.epoch_end(run)


def _require_own_loss(model: nn.Module, task: Task) -> None:
    """Raise `TaskError` where there is no loss in the task and none in what the model makes of the first batch."""
    with evaluating(model), torch.random.fork_rng(devices=[]):
        for batch in () if task.train is None else task.train:
            inputs, _ = split(model, task, batch)
            check_fit(model, inputs, "a training batch")
            if own_loss(run_batch(model, inputs, "a training batch", task.example)) is None:
                raise TaskError(
                    "there is no loss to train with: give Task(loss=...), a function of (output, target), or batches with labels of "
                    "which the model makes a loss of its own (output.loss)"
                )
            return


def _mean(total: Tensor | float, samples: int, epoch: int = 0) -> float:
    """The mean over the samples of all processes that train together."""
    if count() > 1:
        total, samples = summed({"": torch.tensor([float(total), samples], dtype=torch.float64)})[""].tolist()
    if not samples:
        once = f" in epoch {epoch + 1}; can it be walked only once, as an iterator? give a DataLoader or a list" if epoch else ""
        raise TaskError(f"the training loader is empty: it gave no batch{once}")
    return float(total / samples)


@dataclass
class _Walk:
    """Forward and backward passes, and the sum of the losses on the way."""

    loop: _Loop
    device: torch.device
    total: Tensor | float = 0.0
    samples: int = 0

    def backward(self, group: Sequence[Any]) -> Tensor:
        """Gradients of the mean loss over the samples of some batches, of whatever sizes; returns that mean."""
        loop, run = self.loop, self.loop.run
        run.optimizer.zero_grad()
        scored = None if run.task.loss is None else "Task.loss"
        parts = [split(run.model, run.task, batch, scored) for batch in group]
        sizes = [size_of(inputs, target) for inputs, target in parts]
        mean = torch.zeros((), device=self.device)
        for (run.inputs, run.target), size in zip(parts, sizes, strict=True):
            if not self.samples:
                check_fit(run.model, run.inputs, "a training batch")
            with loop.autocast:
                loss = _loss(run, loop.hooks) * (size / sum(sizes))
            loop.scaler.scale(loss).backward()
            mean += loss.detach()
            self.samples += size
        self.total += mean * sum(sizes)
        loop.scaler.unscale_(run.optimizer)
        for hook in loop.hooks:
            hook.gradients(run)
        return mean


def _loss(run: Run, hooks: Sequence[Hook]) -> Tensor:
    run.output = run_batch(run.model, run.inputs, "a training batch", run.task.example)
    loss = loss_of(run.task, run.output, run.target)
    for extra in (hook.loss(run) for hook in hooks):
        if extra is not None:
            loss = loss + extra
    return loss.reshape(())


def _finite(loss: float, run: Run) -> float:
    if not isfinite(loss):
        raise NonFiniteError(
            f"the loss became {loss} in epoch {run.epoch + 1}: lower the learning rate, clip the gradients "
            "(hooks=[clip_gradients(1.0)]), or go back to a checkpoint"
        )
    return loss


def _told(run: Run) -> str:
    """What the last epoch came to, for who watches."""
    last = run.history[-1]
    parts = [f"loss {last['loss']:.4g}", f"sparsity {100 * last['sparsity']:.1f} %"]
    if "validation" in last:
        parts.insert(1, f"validation {run.task.metric_name} {last['validation']:.4g}")
    if "params" in last:
        parts.append(f"{last['params']:,.0f} parameters")
    return ", ".join(parts)
