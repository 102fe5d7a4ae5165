"""Linear mode connectivity: do two trainings from one point end in one valley (1912.05671)? And from which epoch on they do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateurs.given import COUNT, MASKS, MODEL, TASK, require
from secateurs.masks import Masks
from secateurs.random_state import random_state, restore_random_state
from secateurs.ranks import any_sharded, summed
from secateurs.recalibrate import recalibrate_, tracking
from secateurs.recover.evaluate import measured
from secateurs.types import SecateursError, Task, TaskError


@dataclass(frozen=True)
class Line:
    """The task's metric at evenly spaced points of the straight line from one network to another, both ends included.

    >>> round(Line((0.9, 0.7, 0.94), higher_is_better=True).barrier, 6)
    0.22
    """

    metrics: tuple[float, ...]
    higher_is_better: bool = True

    @property
    def barrier(self) -> float:
        """How much worse the worst point is than the mean of both ends."""
        ends = (self.metrics[0] + self.metrics[-1]) / 2
        return ends - min(self.metrics) if self.higher_is_better else max(self.metrics) - ends


def line_between(first: nn.Module, second: nn.Module, task: Task, *, points: int = 11) -> Line:
    """The metric on the validation batches along (1 − α)·first + α·second, all parameters and buffers taken; both stay as they are.

    Statistics of BatchNorm are those of neither network in between, so there they are taken anew, in one pass over the calibration batches
    (else those to train on). Where several processes train, the metric is that of all their batches.

    Raises `SecateursError` for fewer than three points, or networks that differ in more than numbers, `TaskError` without validation
    batches or a metric.

    >>> from secateurs.tasks import accuracy
    >>> first, second = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
    >>> _ = first.weight.data.copy_(torch.tensor([[1.0], [-1.0]])), second.weight.data.copy_(torch.tensor([[-1.0], [1.0]]))
    >>> data = [(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))]
    >>> line_between(first, second, Task(data[0][0], validation=data, metric=accuracy), points=3).metrics
    (1.0, 0.5, 0.0)
    """
    for name, model in (("first", first), ("second", second)):
        require("line_between", name, model, MODEL)
    require("line_between", "task", task, TASK)
    require("line_between", "points", points, COUNT)
    if points < 3:
        raise SecateursError(f"line_between: points={points} must be at least 3: both ends, and one between")
    if task.validation is None or task.metric is None:
        raise TaskError("line_between: give Task(validation=..., metric=...), by which the networks on the line are compared")
    ends = [dict(model.state_dict()) for model in (first, second)]
    _require_alike(*ends)
    between = copy.deepcopy(first)
    found = []
    with _undisturbed():
        for step in range(points):
            share = step / (points - 1)
            between.load_state_dict({name: _mixed(value, ends[1][name], share) for name, value in ends[0].items()})
            if 0 < step < points - 1 and tracking(between):
                recalibrate_(between, task)
            total, count = measured(between, task, task.validation, False)
            sums = summed({"": torch.tensor([total, count], dtype=torch.float64)})[""].tolist()
            found.append(task.summarised(sums[0] / sums[1]))
    return Line(tuple(found), task.higher_is_better)


def _require_alike(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    if any_sharded(value for value in (*first.values(), *second.values()) if isinstance(value, Tensor)):
        raise SecateursError("line_between: sharded models (fully_shard) are not mixed: compare them before sharding")
    for name in (*first, *second):
        one, other = first.get(name), second.get(name)
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
            raise SecateursError(
                f"line_between: the networks differ in {name}, so there is no line between them: give two of one shape"
            )


def _mixed(one: Tensor, other: Tensor, share: float) -> Tensor:
    return torch.lerp(one, other.to(one), share) if one.is_floating_point() else one.clone()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Random numbers go on afterwards as if nothing had been drawn."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


def instability(
    model: nn.Module, train: Callable[[nn.Module, int], object], task: Task, *, seeds: tuple[int, int] = (0, 1), points: int = 11
) -> Line:
    """Train two copies of a network from where it is, alike but for the seed (order of batches, augmentation, dropout), and look at the
    line between them: its ``barrier`` is 1912.05671's instability, of which 0.02 of the accuracy is still none.

    ``train(copy, seed)`` trains a copy in place to the end, such as ``lambda copy, seed: train_(copy, task, SGD(copy.parameters(), lr=0.1),
    10, seed=seed)``; of a pruned network with ``masks=masks.bind(copy)``. With a ``checkpoint`` file for each seed a long one goes on
    after a crash. Warns where both end alike, because nothing depends on the seed.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.recover import train_
    >>> from secateurs.tasks import digits
    >>> task, sgd = digits(), torch.optim.SGD
    >>> train = lambda copy, seed: train_(copy, task, sgd(copy.parameters(), lr=0.01), 1, seed=seed, show=False)
    >>> instability(digits_cnn(), train, task, points=3).barrier < 0.1
    True
    """
    require("instability", "model", model, MODEL)
    copies = []
    with _undisturbed():
        for seed in seeds:
            copies.append(copy.deepcopy(model))
            train(copies[-1], seed)
    first, second = (dict(each.state_dict()) for each in copies)
    if all(not isinstance(value, Tensor) or torch.equal(value, second[name]) for name, value in first.items()):
        warnings.warn(
            f"instability: both trainings, with seeds {seeds[0]} and {seeds[1]}, end in the same network: let the order of batches depend "
            "on the seed (DataLoader(shuffle=True), or train_(seed=seed))",
            stacklevel=2,
        )
    return line_between(copies[0], copies[1], task, points=points)


class Training(Protocol):
    """Trains a network in place from the start of epoch `begin` to that of epoch `end`, ``None``: to the end of all training."""

    def __call__(self, model: nn.Module, *, seed: int, begin: int, end: int | None, masks: Masks | None) -> object: ...


@dataclass(frozen=True)
class Rewinding:
    """From which epoch on training is stable, ``None`` where from none that was tried; and the line that was found from each."""

    epoch: int | None
    lines: Mapping[int, Line]


def rewinding_point(
    model: nn.Module,
    train: Training,
    task: Task,
    *,
    epochs: Sequence[int] = (0, 1, 2, 4, 8),
    threshold: float = 0.02,
    masks: Masks | None = None,
    seeds: tuple[int, int] = (0, 1),
    points: int = 11,
) -> Rewinding:
    """The first of some epochs from which two trainings, alike but for the seed, end in one valley: rewind tickets to it (1912.05671).

    A copy of the fresh ``model`` is trained on from one of ``epochs`` to the next; from each, two are trained to the end, until the barrier
    between them is at most ``threshold``, in the metric's unit. ``masks`` are those of a ticket: then its weights of that epoch under the
    masks are trained, as it is with tickets that stability says whether they match. ``train(copy, seed=, begin=, end=, masks=)`` trains
    in place, with the learning rates of those epochs, and holds the masks, which are bound to the copy.

    Warns where no epoch is stable. Raises `SecateursError` for epochs that do not rise, or a negative threshold.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.recover import train_
    >>> from secateurs.tasks import digits
    >>> task = digits()
    >>> def train(copy, *, seed, begin, end, masks):
    ...     sgd = torch.optim.SGD(copy.parameters(), lr=0.01)
    ...     train_(copy, task, sgd, (2 if end is None else end) - begin, masks=masks, seed=seed, show=False)
    >>> rewinding_point(digits_cnn(), train, task, epochs=(0, 1), threshold=0.1, points=3).epoch
    0
    """
    require("rewinding_point", "model", model, MODEL)
    if masks is not None:
        require("rewinding_point", "masks", masks, MASKS)
    rising = list(epochs) == sorted(set(epochs)) and all(type(epoch) is int and epoch >= 0 for epoch in epochs)
    if not epochs or not rising or threshold < 0:
        raise SecateursError(
            f"rewinding_point: epochs={tuple(epochs)} must be rising numbers from 0 on, and threshold={threshold} not negative"
        )
    main, at, lines = copy.deepcopy(model), 0, dict[int, Line]()
    for epoch in epochs:
        if epoch > at:
            with _undisturbed():
                train(main, seed=seeds[0], begin=at, end=epoch, masks=None)
        at = epoch
        point = copy.deepcopy(main)
        if masks is not None:
            masks.apply_(point)
        lines[epoch] = instability(point, _from(train, epoch, masks), task, seeds=seeds, points=points)
        if lines[epoch].barrier <= threshold:
            return Rewinding(epoch, lines)
    told = ", ".join(f"{line.barrier:.3g} from epoch {epoch}" for epoch, line in lines.items())
    warnings.warn(f"rewinding_point: no epoch is stable: barriers are {told}, above {threshold:g}; try later epochs", stacklevel=2)
    return Rewinding(None, lines)


def _from(train: Training, epoch: int, masks: Masks | None) -> Callable[[nn.Module, int], object]:
    return lambda model, seed: train(model, seed=seed, begin=epoch, end=None, masks=None if masks is None else masks.bind(model))
