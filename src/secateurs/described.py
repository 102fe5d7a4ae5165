"""What a thing is, as a text and a number: so that another one of the same name is noticed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import buffers_in, parameters_in


def shown(value: Any) -> str:
    """A value as it shows itself, without addresses in memory, which differ from run to run.

    >>> shown(object())
    '<object object>'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def digest(value: Any) -> str:
    """A number that tells values apart: by their parts, functions by their code and what they enclose, tensors by their content, modules
    by both and by their settings.

    >>> digest(lambda: 1) == digest(lambda: 1), digest(lambda: 1) == digest(lambda: 2)
    (True, False)
    """
    total = hashlib.sha256()
    for part in _parts(value, set()):
        total.update(part + b"\0")
    return total.hexdigest()[:16]


def _parts(value: Any, above: set[int]) -> Iterator[bytes]:
    """What a value is made of, piece by piece; what encloses itself ends there."""
    if id(value) in above:
        return
    above = above | {id(value)}
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, nn.Module):
        yield from _of_module(value, above)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__qualname__.encode()
        yield from _each({part.name: getattr(value, part.name) for part in dataclasses.fields(value)}, above)
    elif isinstance(value, functools.partial):
        yield from _each({"of": value.func, "arguments": value.args, "named": value.keywords}, above)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, above)
    elif isinstance(value, types.CodeType):
        yield value.co_code
        yield from _each({"constants": value.co_consts, "names": value.co_names}, above)
    elif isinstance(value, Mapping):
        yield from _each({str(key): each for key, each in value.items()}, above)
    elif isinstance(value, (list, tuple)):
        yield from _each({str(place): each for place, each in enumerate(value)}, above)
    elif isinstance(value, (set, frozenset)):
        yield from sorted(shown(each).encode() for each in value)
    else:
        yield shown(value).encode()


def _each(parts: Mapping[str, Any], above: set[int]) -> Iterator[bytes]:
    for name, part in parts.items():
        yield name.encode()
        yield from _parts(part, above)


def _of_module(module: nn.Module, above: set[int]) -> Iterator[bytes]:
    """Its values, and what it does with them, as far as its parts and their settings tell: another activation is another model."""
    yield type(module).__qualname__.encode()
    yield shown(module).encode()
    for name, part in module.named_modules():
        settings = {key: value for key, value in vars(part).items() if isinstance(value, (bool, int, float, str)) and key[0] != "_"}
        yield f"{name} {sorted((key, value) for key, value in settings.items() if key != 'training')}".encode()
    yield from _each({**parameters_in(module), **buffers_in(module)}, above)


def _of_function(function: types.FunctionType, above: set[int]) -> Iterator[bytes]:
    yield f"{function.__module__}.{function.__qualname__}".encode()
    if (function.__module__ or "").partition(".")[0] == "secateurs" and "<" not in function.__qualname__:
        return  # ours: its code may become better, and still means the same
    enclosed = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}
    yield from _each({"code": function.__code__, "defaults": function.__defaults__, "enclosed": enclosed}, above)


def names(values: Iterable[str]) -> str:
    """Names in quotation marks, in a row."""
    return ", ".join(f"{value!r}" for value in values)
