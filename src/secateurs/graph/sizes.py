"""Where the model's code gives a size as a number: ``view(-1, 16 * 5 * 5)``, ``split(768)``, ``x[:, :64]``, a number of heads.

Once the tensors are smaller these numbers must be others. Each call that takes sizes is noted here with the dimension that each of
its numbers measures, so that the number can be worked out anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateurs.graph.size_calls import Number, Pieces, SizeCall
from secateurs.graph.size_rules import TABLE, as_slices
from secateurs.graph.tagged_sizes import Measured, as_ints


class SizeCalls(TorchFunctionMode):
    """Notes every call that takes sizes while a model runs, and every size that it computes with.

    `value` gives a tensor its name in the trace, `where` is the line of the user's code.
    """

    def __init__(self, stack: list[str], value: Callable[[Tensor], Any], where: Callable[[], str]) -> None:
        super().__init__()
        self.calls: list[SizeCall] = []
        self.sized: str | None = None
        self.computed: dict[tuple[Any, int], str] = {}
        self._stack, self._value, self._where = stack, value, where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for arg in args if func.__name__ in _SCALING else ():
            if isinstance(arg, Measured):
                arg.told()
        if func.__name__ in _COUNTING or (_changes(func) and _holds_size((*args, *kwargs.values()))):
            self._use()
        out = _called(func, as_ints(args), as_ints(kwargs))  # what torch's own code divides by is none of the model's business
        if isinstance(out, torch.Size):
            return torch.Size([self._measured(args[0], dim, size) for dim, size in enumerate(out)])
        if func.__name__ == "size":
            return self._measured(args[0], kwargs.get("dim", args[-1]) % args[0].ndim, out)
        if (note := TABLE.get(func)) is not None:
            self._note(func, *_parts(note(args, kwargs, out)))
        return out

    def _note(self, func: Any, numbers: list[Number], pieces: Pieces | None) -> None:
        named = [Number(n.path, n.given, self._value(n.tensor), n.dim, n.measure) for n in numbers]
        if pieces is not None:
            pieces = Pieces(tuple(self._value(tensor) for tensor in pieces.tensors), pieces.dim)
        self.calls.append(SizeCall(self._stack[-1], len(self.calls), func.__name__, tuple(named), pieces))

    def _measured(self, tensor: Tensor, dim: int, size: int) -> int:
        """A size that tells where the code computes with it."""
        value, made = self._value(tensor), Measured(size)

        def told() -> None:
            if size > 1:
                self.computed.setdefault((value, dim), self._where())

        made.told, made.used = told, self._use
        return made

    def _use(self) -> None:
        """Note that the code computes with a size, and where it does so first."""
        self.sized = self.sized or self._where()


_SCALING = {
    "mul",
    "div",
    "true_divide",
    "mul_",
    "div_",
    "__mul__",
    "__rmul__",
    "__imul__",
    "__truediv__",
    "__rtruediv__",
    "__itruediv__",
}
"""Calls by which a tensor is scaled: by one of its sizes, say."""


_COUNTING = {"numel", "nelement", "__len__"}


def _changes(func: Any) -> bool:
    """Whether a size among the arguments of a function may change numbers of its result, and not only how many there are."""
    return func is functional.pad or (func not in TABLE and func.__name__ not in _ONLY_SHAPE)


_ONLY_SHAPE = {"arange", "eye", "rand", "randn", "interpolate", "upsample", "flatten", "expand_as", "view_as"} | {
    f"adaptive_{kind}_pool{count}d" for kind in ("avg", "max") for count in (1, 2, 3)
}


def _holds_size(nest: Any) -> bool:
    if isinstance(nest, (tuple, list)):
        return any(_holds_size(item) for item in nest)
    return isinstance(nest, Measured)


def _parts(found: list[Number] | tuple[list[Number], Pieces | None]) -> tuple[list[Number], Pieces | None]:
    return found if isinstance(found, tuple) else (list(found), None)


def _called(func: Any, args: Any, kwargs: Any) -> Any:
    """A call; a list of indices that is a stretch of every n-th of them is written as a slice, which tells more."""
    if func not in (Tensor.__getitem__, Tensor.__setitem__) or (index := as_slices(args[0].shape, args[1])) is None:
        return func(*args, **kwargs)
    out = func(args[0], index, *args[2:], **kwargs)
    return out if out is None else out.clone()
