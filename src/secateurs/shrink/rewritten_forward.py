"""Forward passes with other sizes than their code writes down."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from types import CodeType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateurs.graph import TABLE, asks_size, is_told, told
from secateurs.shrink.narrow_attention import attend
from secateurs.shrink.step import Rewrite
from secateurs.types import SecateursError

REWRITES = "_secateurs_rewrites"
"""The attribute of a module that holds its rewrites, those of each shrinking in turn."""


class Rewriting(TorchFunctionMode):
    """Gives the calls of one module's forward pass the sizes that its smaller weights need."""

    def __init__(self, rewrites: Sequence[Rewrite]) -> None:
        super().__init__()
        self._rewrites = rewrites
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not takes_sizes(func):
            out = func(*args, **kwargs)
            return told(out) if asks_size(func, out) and not _is_watched() else out
        ordinal, self._count = self._count, self._count + 1
        return rewritten(func, args, kwargs, self._meant(func, args, kwargs, ordinal))

    def _meant(self, func: Any, args: Any, kwargs: Any, ordinal: int) -> list[Rewrite]:
        """The rewrites that are meant for this call: its numbers fit them, and so does its place in the pass."""
        return [
            each
            for each in self._rewrites
            if each.name == func.__name__ and each.ordinal in (None, ordinal) and _fits(each, args, kwargs)
        ]


def _fits(rewrite: Rewrite, args: Any, kwargs: Any) -> bool:
    if rewrite.path == ("pieces",):
        dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
        return args[0].shape[dim] == rewrite.given
    try:
        number = at(args, kwargs, rewrite.path)
        return number == rewrite.given and (rewrite.told is None or _is_watched() or is_told(number) is rewrite.told)
    except (IndexError, TypeError, AttributeError):
        return False


def _is_watched() -> bool:
    """Whether the pass is compiled or traced, where sizes must be what torch makes of them."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def at(args: Any, kwargs: Any, path: Sequence[int | str]) -> Any:
    """The number that stands at a place in the arguments."""
    here: Any = kwargs.get(path[0]) if isinstance(path[0], str) else args[path[0]]
    for part in path[1:]:
        here = getattr(here, part) if isinstance(part, str) else here[part]
    return here


def takes_sizes(func: Any) -> bool:
    """Whether a call counts among those that take sizes: the same calls must count in every pass."""
    return func in TABLE


def rewritten(func: Any, args: Any, kwargs: Any, rewrites: Sequence[Rewrite]) -> Any:
    """Call a function with some of its numbers replaced."""
    for each in rewrites:
        if each.path == ("pieces",):
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            return torch.split(args[0], each.new, dim)
        args, kwargs = replaced(args, kwargs, each.path, each.new)
    if func is functional.multi_head_attention_forward and rewrites:
        return attend(*args, **kwargs)
    return func(*args, **kwargs)


def replaced(args: Any, kwargs: Any, path: Sequence[int | str], new: Any) -> tuple[Any, Any]:
    """Arguments with one number replaced."""
    if isinstance(path[0], str):
        return args, {**kwargs, path[0]: _with(kwargs.get(path[0]), path[1:], new)}
    return (*args[: path[0]], _with(args[path[0]], path[1:], new), *args[path[0] + 1 :]), kwargs


def _with(value: Any, path: Sequence[int | str], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, slice):
        ends = {"start": value.start, "stop": value.stop, path[0]: new}
        return slice(ends["start"], ends["stop"], value.step)
    place = int(path[0])
    return (*value[:place], _with(value[place], path[1:], new), *value[place + 1 :])


class ScriptError(SecateursError, AttributeError):
    """A module was made smaller in a way that only running it can follow, not reading its code. Whoever only looks finds no attribute."""


class RewrittenForward:
    """The forward pass of a module's class, with the sizes that its smaller weights need; it is copied and pickled with the module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(MethodType(type(self.module).forward, self.module))

    @property
    def __code__(self) -> CodeType:
        return type(self.module).forward.__code__  # torch.export asks for it

    @property
    def __globals__(self) -> dict[str, Any]:
        """What torch.jit.script reads first of all."""
        raise ScriptError(
            f"the code of {type(self.module).__name__} writes down sizes of before it was made smaller, which are replaced while it runs; "
            "torch.jit.script compiles the code as it is written, with the old sizes: use torch.jit.trace(model, example), or torch.export"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as earlier_first:
            for rewrites in reversed(getattr(self.module, REWRITES)):
                earlier_first.enter_context(Rewriting(rewrites))
            return type(self.module).forward(self.module, *args, **kwargs)
