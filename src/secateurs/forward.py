"""Running a user's model on a user's example, with errors that say what does not fit; and what the model consists of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.nested import changed, tensors_in
from secateurs.types import SecateursError, TaskError


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """Call a model with a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.

    >>> call(nn.Flatten(), (torch.zeros(2, 3, 4),)).shape
    torch.Size([2, 12])
    """
    positional, named = as_call(inputs)
    return model(*positional, **named)


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the call that an inputs stands for.

    >>> as_call(3), as_call({"x": 3})
    (((3,), {}), ((), {'x': 3}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is."""
    first = next(iter(model.parameters()), None)
    return torch.device("cpu") if first is None else first.device


def to_device(value: Any, device: torch.device) -> Any:
    """The same nesting with every tensor on `device`; one on the meta device stays there, as it has no values to move."""
    return changed(value, lambda tensor: tensor if tensor.is_meta else tensor.to(device, non_blocking=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in modules_in(model).values()]
    if any(training for _, training in modes):
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            if module.training is not training:
                module.training = training


def check_fit(model: nn.Module, inputs: Any, what: str = "the example") -> None:
    """Raise `TaskError` where the inputs' device or floating dtype is not the model's."""
    weights = _weights(model)
    _check_devices(weights, inputs, what)
    dtypes = {weight.dtype for weight in weights}
    for tensor in tensors_in(inputs):
        if dtypes and tensor.is_floating_point() and tensor.dtype not in dtypes and not _autocasts(tensor.device.type):
            theirs = " and ".join(sorted(map(str, dtypes)))
            raise TaskError(
                f"{what} is {tensor.dtype} but the model's weights are {theirs}: convert one of them, "
                f"for example model.to({tensor.dtype}), or example.to({next(iter(dtypes))})"
            )


def _weights(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in parameters_in(model).values() if parameter.is_floating_point()]


def _check_devices(weights: Sequence[Tensor], inputs: Any, what: str) -> None:
    devices = {weight.device for weight in weights}
    for tensor in tensors_in(inputs):
        if devices and tensor.device not in devices:
            here = " and ".join(sorted(map(str, devices)))
            raise TaskError(
                f"{what} is on {tensor.device} but the model is on {here}: "
                f'move one of them, for example model.to("{tensor.device}")'
            )


def _autocasts(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def run_example(model: nn.Module, example: Any) -> Any:
    """One forward pass in evaluation mode, without gradients, that leaves the model and its random state as they were.

    Raises `TaskError` that carries the model's own complaint where the model rejects the example.

    >>> run_example(nn.Linear(3, 2), torch.zeros(1, 4))
    Traceback (most recent call last):
    secateurs.types.TaskError: the model rejects the example (tensor (1, 4) torch.float32): RuntimeError: ...
    """
    if example is None:
        raise TaskError("there is no example input: give Task(example=...) what the model is called with, for one sample")
    _check_devices(_weights(model), example, "the example")
    with evaluating(model), torch.random.fork_rng(devices=[]):
        try:
            return call(model, example)
        except Exception as error:
            if not isinstance(error, SecateursError):
                check_fit(model, example)  # the most frequent reason, in words; a model that takes any dtype never comes here
            first_line = (str(error).strip().splitlines() or [""])[0]
            raise TaskError(
                f"the model rejects the example ({describe(example)}): {type(error).__name__}: {first_line}; "
                "an example is a tensor, a tuple of positional or a mapping of keyword arguments"
            ) from error


def describe(value: Any) -> str:
    """Shapes and dtypes of an input, for messages.

    >>> describe({"ids": torch.zeros(1, 5)})
    'ids: tensor (1, 5) torch.float32'
    """
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)} {value.dtype}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {describe(item)}" for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return ", ".join(map(describe, value))
    return type(value).__name__


# ---------------------------------------------------------------- what a model consists of


def modules_in(model: nn.Module, again: bool = False) -> dict[str, nn.Module]:
    """Path → module, as `nn.Module.named_modules` tells them, many times faster; ``again``: under each of several paths.

    >>> list(modules_in(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))))
    ['', '0', '1', '1.0']
    """
    found: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if again or module not in seen:
            seen.add(module)
            found[path] = module
            if module._modules:
                inside = f"{path}." if path else ""
                waiting += [(inside + name, child) for name, child in reversed(module._modules.items()) if child is not None]
    return found


def parameters_in(model: nn.Module, again: bool = False) -> dict[str, nn.Parameter]:
    """Name → parameter; tied ones once, or ``again`` under each of their names."""
    return _held_in(model, "_parameters", again)


def buffers_in(model: nn.Module, again: bool = False) -> dict[str, Tensor]:
    """Name → buffer; shared ones once, or ``again`` under each of their names."""
    return _held_in(model, "_buffers", again)


def _held_in(model: nn.Module, where: str, again: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: set[int] = set()
    for path, module in modules_in(model, again).items():
        for key, tensor in getattr(module, where).items():
            if tensor is not None and (again or id(tensor) not in seen):
                seen.add(id(tensor))
                found[f"{path}.{key}" if path else key] = tensor
    return found


def torch_masks(model: nn.Module) -> dict[str, Tensor]:
    """Parameter → the mask that `torch.nn.utils.prune` has laid over it: numbers 1 and 0, which its layer's code multiplies with.

    >>> from torch.nn.utils import prune
    >>> layer = prune.l1_unstructured(nn.Linear(2, 2), "weight", amount=3)
    >>> {name: int(mask.sum()) for name, mask in torch_masks(layer).items()}
    {'weight_orig': 1}
    """
    found: dict[str, Tensor] = {}
    for path, module in modules_in(model, again=True).items():
        for key, mask in module._buffers.items():
            of = key.removesuffix("_mask") + "_orig"
            if key.endswith("_mask") and mask is not None and module._parameters.get(of) is not None:
                found[f"{path}.{of}" if path else of] = mask
    return found
