"""What a user brings beside the model, and what plugs into the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from secateurs.types.errors import KindError

# ---------------------------------------------------------------- what the user brings


@dataclass(frozen=True)
class Task:
    """What a user brings beside the model.

    ``example`` is what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments. Batches come
    from any iterable that can be walked again (a DataLoader, a list): pairs ``(inputs, target)``, or mappings whose keys are the
    model's arguments, with the target in ``labels``; of others ``unpack`` makes ``(inputs, target)``. ``loss(output, target)`` and
    ``metric(output, target)`` are means over a batch; a model that returns its own ``loss`` needs no other. What is told of the metric is
    its mean over all samples, or what ``summary`` makes of that (exp makes perplexity of nats). ``validation`` is for
    choosing, ``test`` is for reporting, once. ``calibration`` is what statistics are observed on, by default the training batches.

    >>> task = Task(example=torch.zeros(1, 3), loss=nn.functional.mse_loss)
    >>> task.metric is None
    True
    """

    example: Any
    train: Iterable[Any] | None = None
    validation: Iterable[Any] | None = None
    test: Iterable[Any] | None = None
    calibration: Iterable[Any] | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    metric: Callable[[Any, Any], Tensor | float] | None = None
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    summary: Callable[[float], float] | None = None
    unpack: Callable[[Any], tuple[Any, Any]] | None = None
    name: str = "task"

    def __post_init__(self) -> None:
        for name in ("loss", "metric", "summary", "unpack"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise KindError(f"Task: {name} is {value!r}, but must be a function, for example torch.nn.functional.cross_entropy")
        for name in ("train", "validation", "test", "calibration"):
            value = getattr(self, name)
            if isinstance(value, (Tensor, str)) or not (
                value is None or isinstance(value, Iterable) or hasattr(value, "__getitem__")
            ):
                what = f"one tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise KindError(
                    f"Task: {name} is {what}, but must be batches, one after the other: a DataLoader, or a list of them"
                )

    def summarised(self, mean: float) -> float:
        """What is told of the metric, given its mean over all samples."""
        return mean if self.summary is None else self.summary(mean)


# ---------------------------------------------------------------- recovering


class Constraint(Protocol):
    """What holds of a model's weights whatever a training step does to them: pruned ones are zero, shared ones are equal.

    ``apply_`` makes it hold again, in place: at the start, after each optimizer step, and after hooks that may have changed weights; to
    apply it twice is to apply it once, to the bit, else a resumed run differs.
    ``state`` and ``restore`` carry it through a checkpoint under its ``name``: tensors, numbers, strings, lists and dicts of them.
    Masks are the first, and law: `train_` takes them by themselves, and a constraint must leave at zero what they hold.
    """

    @property
    def name(self) -> str: ...

    def apply_(self) -> object: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass
class Run:
    """The state of one training run, as hooks see it and may change it.

    ``stop = True`` ends training after the epoch. ``constraints`` are those beside the masks. ``dense_gradient`` is set by hooks that look
    at the gradients of removed weights as well in a step: what the step costs (`secateurs.training_macs`) depends on it.
    """

    model: nn.Module
    task: Task
    optimizer: torch.optim.Optimizer
    epochs: int
    scheduler: Any = None
    masks: Any = None
    epoch: int = 0
    step: int = 0
    inputs: Any = None
    output: Any = None
    target: Any = None
    history: list[dict[str, float]] = field(default_factory=list)
    constraints: tuple[Constraint, ...] = ()
    stop: bool = False
    dense_gradient: bool = False


def _nothing(run: Run) -> None:
    return None


def _no_state() -> dict[str, Any]:
    return {}


def _ignore_state(state: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True)
class Hook:
    """What plugs into the training loop; every part has a default that does nothing.

    In the order in which the loop calls them: ``made`` once, with the model as it was given, before a checkpoint makes another of it (one
    that was shrunk, say); ``start`` once, after a checkpoint was restored; ``epoch`` before each epoch;
    ``loss`` after each forward pass, returning what is added to the loss; ``gradients`` once the gradients of a step are complete;
    ``stepped`` after the optimizer's step; ``epoch_end`` after the epoch's validation, before its checkpoint is written; ``end`` once,
    when the last epoch is over or a hook has stopped training (``run.stop = True``). Where an error or Ctrl-C ends it, ``end`` is not
    called: such a run is not over, but goes on later from its checkpoint. ``close`` comes last of all, whatever ended the run, an error in
    another hook's ``start`` as well: it takes off what the hook has put on the model, and is called again without harm.
    ``state`` and ``restore`` carry a hook through a checkpoint: tensors, numbers, strings, lists and dicts of them.

    >>> halve = Hook("halve", gradients=lambda run: [p.grad.mul_(0.5) for p in run.model.parameters()] and None)
    >>> halve.name
    'halve'
    """

    name: str
    start: Callable[[Run], None] = _nothing
    epoch: Callable[[Run], None] = _nothing
    loss: Callable[[Run], Tensor | None] = _nothing
    gradients: Callable[[Run], None] = _nothing
    stepped: Callable[[Run], None] = _nothing
    epoch_end: Callable[[Run], None] = _nothing
    end: Callable[[Run], None] = _nothing
    close: Callable[[Run], None] = _nothing
    state: Callable[[], dict[str, Any]] = _no_state
    restore: Callable[[Mapping[str, Any]], None] = _ignore_state
    made: Callable[[Run], None] = _nothing
