"""From what a loader gives to what a model takes: one batch apart into inputs and target, put on the model's device, and run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import call, describe, device_of, to_device
from secateurs.nested import tensors_in
from secateurs.types import SecateursError, Task, TaskError

_TARGETS = ("labels", "label", "label_ids", "target", "targets")
"""Keys of a mapping that hold what the model should answer, though it may take them as an argument too."""


def split(model: nn.Module, task: Task, batch: Any, scored: str | None = None) -> tuple[Any, Any]:
    """A batch as ``(inputs, target)`` on the model's device; ``scored`` names what needs the target (``"Task.loss"``), if any does.

    `Task.unpack` decides where it is given. Otherwise a tuple or list of two is a pair, and of a mapping the model gets those
    entries that its ``forward`` has arguments for, as from a loader of Hugging Face; the target is what is called ``labels``, or the
    one entry that is left. A tensor (or a tuple of one) is inputs without a target. Raises `TaskError` for anything else, and where
    a target is needed and none is there.

    >>> split(nn.Linear(2, 1), Task(example=None), ["x", "y"])
    ('x', 'y')
    >>> split(nn.Linear(2, 1), Task(example=None), {"input": "x", "labels": "y", "id": 7})
    ({'input': 'x'}, 'y')
    """
    inputs, target = _custom(task, batch) if task.unpack is not None else _usual(model, batch, scored)
    device = device_of(model)
    return to_device(inputs, device), to_device(target, device)


def _custom(task: Task, batch: Any) -> tuple[Any, Any]:
    parts = task.unpack(batch)  # type: ignore[misc]
    if not isinstance(parts, (tuple, list)) or len(parts) != 2:
        raise TaskError(f"Task.unpack must return (inputs, target), but of {_told(batch)} it made {_told(parts)}")
    return parts[0], parts[1]


def _usual(model: nn.Module, batch: Any, scored: str | None) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        return _of_arguments(model, batch, scored)
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 1 else batch
    if not isinstance(inputs, (Tensor, Mapping)):
        raise TaskError(
            f"{_told(batch)} is neither (inputs, target) nor a mapping of the model's arguments nor one tensor: say what is what "
            "with Task(unpack=...), for example unpack=lambda batch: (batch[0], batch[1])"
        )
    if isinstance(inputs, Mapping):
        return _of_arguments(model, inputs, scored)
    if scored is not None:
        raise TaskError(
            f"{scored} needs a target, but {_told(batch)} holds inputs alone: let the loader give (inputs, target), or say what the "
            "target is with Task(unpack=...), for example unpack=lambda batch: (batch, batch)"
        )
    return inputs, None


def _of_arguments(model: nn.Module, batch: Mapping[str, Any], scored: str | None) -> tuple[Any, Any]:
    """A mapping's entries that the model takes, and the target among all of them."""
    named, anything = _arguments(model)
    labels = [key for key in batch if key in _TARGETS]
    inputs = {key: value for key, value in batch.items() if key in named or anything}
    left = labels or [key for key in batch if key not in inputs]
    if not inputs or (scored is not None and len(left) != 1):
        takes = f"{type(model).__name__}.forward takes {', '.join(sorted(named)) or 'anything'}"
        what = "none of them is an argument of the model" if not inputs else f"{scored} needs one of them as the target"
        raise TaskError(
            f"a batch is a mapping of {', '.join(map(str, batch)) or 'nothing'}; {what} ({takes}): say what is what with "
            'Task(unpack=...), for example unpack=lambda batch: (batch["image"], batch["label"])'
        )
    return inputs, batch[left[0]] if len(left) == 1 else None


def _arguments(model: nn.Module) -> tuple[set[str], bool]:
    """The names of a model's arguments, and whether it takes others too; wrappers that pass all on are looked through."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters)
    wrapped = next((inner for name in ("_orig_mod", "module") if isinstance(inner := getattr(model, name, None), nn.Module)), None)
    return _arguments(wrapped) if anything and not named and wrapped is not None else (named, anything)


def run_batch(model: nn.Module, inputs: Any, what: str, example: Any = None) -> Any:
    """The model's output for a batch's inputs; raises `TaskError` that carries the model's own complaint where it rejects them.

    >>> run_batch(nn.Linear(3, 2), torch.zeros(5, 4), "a training batch", example=torch.zeros(1, 3))
    Traceback (most recent call last):
    secateurs.types.TaskError: the model rejects a training batch (tensor (5, 4) torch.float32): RuntimeError: ...
    """
    try:
        return call(model, inputs)
    except (SecateursError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        takes = f"; the example that it takes is {describe(example)}" if example is not None else ""
        raise TaskError(f"the model rejects {what} ({describe(inputs)}): {type(error).__name__}: {first_line}{takes}") from error


def own_loss(output: Any) -> Tensor | None:
    """The loss that a model returns itself when its batch holds labels: ``output.loss``, or the entry ``"loss"``.

    >>> own_loss({"loss": torch.tensor(2.0), "logits": torch.zeros(3)})
    tensor(2.)
    """
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return found if isinstance(found, Tensor) else None


def loss_of(task: Task, output: Any, target: Any) -> Tensor:
    """The task's loss, or the model's own, as one number that depends on the model; raises `TaskError` where it is none.

    >>> loss_of(Task(None, loss=nn.functional.mse_loss), torch.ones(2, requires_grad=True), torch.zeros(2)).item()
    1.0
    """
    loss = own_loss(output) if task.loss is None else task.loss(output, target)
    if loss is None and task.loss is None:
        raise TaskError(
            "there is no loss: give Task(loss=...), a function of (output, target), or batches with labels of which the model makes a "
            "loss of its own (output.loss)"
        )
    detached = torch.is_grad_enabled() and isinstance(loss, Tensor) and not loss.requires_grad
    if not isinstance(loss, Tensor) or loss.numel() != 1 or detached:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) and loss.numel() != 1 else repr(loss)
        raise TaskError(
            f"the loss must be one number that depends on the model, but Task.loss returned {what}; "
            "take its mean, and do not detach it"
        )
    return loss


def size_of(inputs: Any, target: Any) -> int:
    """Number of samples of a batch: the first dimension of its target, else of its inputs.

    >>> size_of(torch.zeros(4, 3), None)
    4
    """
    for part in (target, inputs):
        for tensor in tensors_in(part):
            if tensor.ndim:
                return tensor.shape[0]
    if isinstance(target, Sequence) and not isinstance(target, (str, Mapping)):
        return len(target)
    return 1


def _told(value: Any) -> str:
    """What a thing is, for messages: its type, and what is in it."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} ({describe(value)})"
    return f"a {type(value).__name__}" + (f" ({describe(value)})" if isinstance(value, (Tensor, Mapping)) else "")
