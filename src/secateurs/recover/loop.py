"""One training loop, in plain PyTorch, with hooks. Users who have their own keep it: masks.attach(optimizer) is all it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
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
from secateurs.given import COUNT, HOOKS, MASKS, MODEL, NUMBER_TYPE, OPTIMIZER, TASK, require
from secateurs.masks import Masks
from secateurs.progress import tell, track
from secateurs.ranks import any_sharded, count, is_sharded, require_same, summed, whole
from secateurs.recover.checkpoint import read_checkpoint, write_checkpoint
from secateurs.recover.evaluate import measured
from secateurs.recover.trial import needs_closure, require_scheduler_goes_on
from secateurs.types import Hook, NonFiniteError, Run, SecateursError, Task, TaskError


def train_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    *,
    scheduler: Any = None,
    masks: Masks | None = None,
    hooks: Sequence[Hook] = (),
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

    Without a loss in the task, the model's own is taken (``output.loss``).

    Raises `TaskError` for a missing or empty training loader, a missing loss, or one that returns no scalar; `NonFiniteError` where
    the loss is NaN or infinite; `FileError` for a checkpoint of another run.

    >>> task = Task(torch.zeros(1, 2), train=[(torch.ones(4, 2), torch.zeros(4, 1))], loss=nn.functional.mse_loss)
    >>> model = nn.Linear(2, 1)
    >>> run = train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), epochs=20)
    >>> run.history[-1]["loss"] < run.history[0]["loss"]
    True
    """
    require("train_", "model", model, MODEL)
    require("train_", "task", task, TASK)
    require("train_", "optimizer", optimizer, OPTIMIZER)
    for argument, number in (("epochs", epochs), ("accumulate", accumulate)):
        require("train_", argument, number, COUNT)
    require("train_", "hooks", hooks, HOOKS)
    for argument, optional, kind in (("masks", masks, MASKS), ("amp", amp, NUMBER_TYPE)):
        if optional is not None:
            require("train_", argument, optional, kind)
    _check(task, epochs, accumulate, hooks)
    if checkpoint is not None and any_sharded(model.parameters()):
        raise SecateursError(
            "train_: checkpoint= writes whole models, and this one is sharded (fully_shard): keep its state with "
            "torch.distributed.checkpoint, and its masks with save(model, path, masks)"
        )
    if task.loss is None:
        _require_own_loss(model, task)
    run = Run(model, task, optimizer, epochs, scheduler, masks if masks is not None else Masks({}, model))
    device = device_of(model)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
    autocast = torch.autocast(device.type, dtype=amp) if amp is not None else nullcontext()
    if scaler.is_enabled() and needs_closure(optimizer):
        raise SecateursError(f"train_: {type(optimizer).__name__} cannot scale gradients: use amp=torch.bfloat16, or none")
    start = 0
    if checkpoint is not None and Path(checkpoint).exists():
        start = read_checkpoint(checkpoint, run, hooks, scaler)
    elif seed is not None:
        torch.manual_seed(seed)
    require_same(
        {name: mask for name, mask in run.masks.items() if not is_sharded(mask)},
        "the mask",
        "give all the same masks (prune_ in every process does, and load_masks of one file)",
    )
    handle = run.masks.hold(optimizer) if masks is None or hooks else run.masks.attach(optimizer)
    try:
        for hook in hooks:
            hook.start(run)
        with closing(track(range(start, epochs), "training", show=show, status=lambda: _told(run))) as steps:
            for run.epoch in steps:
                for hook in hooks:
                    hook.epoch(run)
                loss = _epoch(run, hooks, scaler, autocast, accumulate, device, show)
                _finish_epoch(run, hooks, loss, show)
                if checkpoint is not None:
                    write_checkpoint(checkpoint, run, hooks, scaler, run.epoch + 1)
                tell(f"epoch {run.epoch + 1}/{epochs}: {_told(run)}", show)
    finally:
        handle.remove()
        run.inputs = run.output = run.target = None
    return run


def _check(task: Task, epochs: int, accumulate: int, hooks: Sequence[Hook]) -> None:
    if task.train is None:
        raise TaskError("there is nothing to train on: give Task(train=...), batches that can be walked once an epoch")
    if epochs < 0 or accumulate < 1:
        raise SecateursError(f"train_: epochs={epochs} must be at least 0, and accumulate={accumulate} at least 1")
    names = [hook.name for hook in hooks]
    if len(set(names)) < len(names):
        raise SecateursError(f"train_: the hooks' names must differ, so that a checkpoint can tell them apart: {names}")


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


def _epoch(
    run: Run,
    hooks: Sequence[Hook],
    scaler: torch.amp.GradScaler,
    autocast: AbstractContextManager[Any],
    accumulate: int,
    device: torch.device,
    show: bool,
) -> float:
    """One pass over the training batches; the mean loss."""
    run.model.train()
    sampler = getattr(run.task.train, "sampler", None)
    if sampler is not None and hasattr(sampler, "set_epoch"):
        sampler.set_epoch(run.epoch)
    walk = _Walk(run, hooks, scaler, autocast, device)
    batches = iter(track(() if run.task.train is None else run.task.train, f"epoch {run.epoch + 1}/{run.epochs}", show=show))
    while group := list(islice(batches, accumulate)):
        if needs_closure(run.optimizer):
            run.optimizer.step(partial(walk.backward, group))  # type: ignore[arg-type]
        else:
            walk.backward(group)
            scaler.step(run.optimizer)
            scaler.update()
        run.step += 1
        for hook in hooks:
            hook.stepped(run)
    return _finite(_mean(walk.total, walk.samples, run.epoch), run)


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

    run: Run
    hooks: Sequence[Hook]
    scaler: torch.amp.GradScaler
    autocast: AbstractContextManager[Any]
    device: torch.device
    total: Tensor | float = 0.0
    samples: int = 0

    def backward(self, group: Sequence[Any]) -> Tensor:
        """Gradients of the mean loss over the samples of some batches, of whatever sizes; returns that mean."""
        run = self.run
        run.optimizer.zero_grad()
        scored = None if run.task.loss is None else "Task.loss"
        parts = [split(run.model, run.task, batch, scored) for batch in group]
        sizes = [size_of(inputs, target) for inputs, target in parts]
        mean = torch.zeros((), device=self.device)
        for (run.inputs, run.target), size in zip(parts, sizes, strict=True):
            if not self.samples:
                check_fit(run.model, run.inputs, "a training batch")
            with self.autocast:
                loss = _loss(run, self.hooks) * (size / sum(sizes))
            self.scaler.scale(loss).backward()
            mean += loss.detach()
            self.samples += size
        self.total += mean * sum(sizes)
        self.scaler.unscale_(run.optimizer)
        for hook in self.hooks:
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


def _finish_epoch(run: Run, hooks: Sequence[Hook], loss: float, show: bool) -> None:
    entry = {"epoch": float(run.epoch), "loss": loss, "lr": float(run.optimizer.param_groups[0]["lr"])}
    entry["sparsity"] = run.masks.sparsity
    if run.task.validation is not None and run.task.metric is not None:
        entry["validation"] = _mean(*measured(run.model, run.task, run.task.validation, show))
    if isinstance(run.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        if "validation" not in entry:
            raise TaskError("ReduceLROnPlateau needs a metric: give Task(validation=..., metric=...)")
        run.scheduler.step(entry["validation"])
    elif run.scheduler is not None:
        run.scheduler.step()
    run.history.append(entry)
    for hook in hooks:
        hook.epoch_end(run)


def _told(run: Run) -> str:
    """What the last epoch came to, for who watches."""
    last = run.history[-1]
    parts = [f"loss {last['loss']:.4g}", f"sparsity {100 * last['sparsity']:.1f} %"]
    if "validation" in last:
        parts.insert(1, f"validation {run.task.metric_name} {last['validation']:.4g}")
    return ", ".join(parts)


def per_step(scheduler: Any) -> Hook:
    """A learning-rate scheduler that steps after each optimizer step (one-cycle, warm-up), as a hook.

    >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    >>> per_step(torch.optim.lr_scheduler.StepLR(optimizer, 10)).name
    'per_step'
    """

    def restore(state: Mapping[str, Any]) -> None:
        require_scheduler_goes_on(scheduler, state)
        scheduler.load_state_dict(dict(state))

    return Hook("per_step", stepped=lambda run: scheduler.step(), state=scheduler.state_dict, restore=restore)


def clip_gradients(norm: float) -> Hook:
    """Keeps the norm of all gradients together at most `norm`.

    >>> clip_gradients(1.0).name
    'clip_gradients'
    """

    def clip(run: Run) -> None:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), norm)

    return Hook("clip_gradients", gradients=clip)


def penalty(strength: float, p: float = 2) -> Hook:
    """Adds ``strength · Σ|w|ᵖ`` over all weights that may be pruned to the loss: L2 for p = 2, L1 for p = 1 (1506.02626, §3.1).

    Raises `SecateursError` for a negative strength or p outside [1, ∞).

    >>> penalty(1e-4, p=1).name
    'penalty(p=1)'
    """
    if strength < 0 or not 1 <= p < float("inf"):
        raise SecateursError(f"penalty(strength={strength}, p={p}): strength must be at least 0, and p in [1, inf)")

    def loss(run: Run) -> Tensor:
        weights: Iterator[Tensor] = (parameter for parameter in run.model.parameters() if parameter.ndim > 1)
        return strength * sum((whole(weight.abs().pow(p).sum()) for weight in weights), torch.zeros(()))

    return Hook(f"penalty(p={p})", loss=loss)
