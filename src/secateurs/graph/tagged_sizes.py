"""Whole numbers that know where they come from, so that sizes can be told from other numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from secateurs.forward import modules_in

Source = tuple[str, str, "int | None"]
"""An attribute of the model: a module's name, the attribute's, and a place in it where it is a tuple."""


class Told(int):
    """A whole number that the size of a tensor gave, as it is or computed with: at another size it is another one."""


def _told(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: int, *others: Any) -> Any:
        result = plain(self, *others)
        return Told(result) if type(result) is int else result

    return method


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "rmod", "neg"):
    setattr(Told, f"__{_name}__", _told(f"__{_name}__"))


def told(size: Any) -> Any:
    """What a tensor's ``shape`` or ``size()`` gave, with numbers that know where they came from."""
    if isinstance(size, torch.Size):
        return torch.Size([told(each) for each in size])
    return Told(size) if type(size) is int else size


def is_told(number: Any) -> bool:
    """Whether a number came from a size.

    >>> is_told(told(torch.zeros(2, 6).shape)[1] // 2), is_told(3)
    (True, False)
    """
    return isinstance(number, (Told, Measured))


def asks_size(func: Any, out: Any) -> bool:
    """Whether a call asked for sizes."""
    return isinstance(out, torch.Size) or (func.__name__ == "size" and type(out) is int)


class Computing(int):
    """A whole number that tells when the code divides by it, takes a root of it, or makes a floating-point number of it."""

    told: Callable[[], None]

    def _told(self) -> int:
        self.told()
        return int.__int__(self)

    def __rfloordiv__(self, other: int) -> int:
        return other // self._told()

    def __truediv__(self, other: float) -> float:
        return self._told() / other

    def __rtruediv__(self, other: float) -> float:
        return other / self._told()

    def __rmod__(self, other: int) -> int:
        return other % self._told()

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        return self._told() ** other

    def __float__(self) -> float:
        return float(self._told())


class Tagged(Computing):
    """A number that knows which attribute it came from.

    An attribute that the code computes with must keep its value: ``(width // self.heads) ** -0.5`` would scale attention otherwise with
    fewer heads.
    """

    source: Source


class Measured(Computing):
    """The size of a tensor, as its ``shape`` told it. Where the code computes with it, fewer indices would change the answers.

    ``used`` hears of whatever the model's own code makes of it: it may do something else at another size.
    """

    used: Callable[[], None]

    def _used(self) -> int:
        if not sys._getframe(2).f_code.co_filename.startswith(TORCH):
            self.used()
        return int.__int__(self)

    def _told(self) -> int:
        self.used()
        return super()._told()

    def __rfloordiv__(self, other: int) -> int:  # sizes divide sizes all the time, to give other sizes
        return Told(other // self._used())

    def __rmod__(self, other: int) -> int:
        return Told(other % self._used())

    def __hash__(self) -> int:
        return int.__hash__(self)


def _noticed(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def method(self: Measured, *others: Any) -> Any:
        result = plain(self._used(), *[int.__int__(other) if isinstance(other, Measured) else other for other in others])
        return Told(result) if type(result) is int else result

    return method


for _name in (
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "floordiv",
    "mod",
    "divmod",
    "neg",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "bool",
):
    setattr(Measured, f"__{_name}__", _noticed(f"__{_name}__"))


@contextmanager
def tagged(model: nn.Module) -> Iterator[set[Source]]:
    """While a model runs, the whole numbers among its modules' attributes know where they came from; yields those computed with.

    Numbers that the forward pass itself writes down are for `untouched` around it to take back.
    """
    computed: set[Source] = set()
    held: list[tuple[dict[str, Any], str, Any]] = []
    for name, module in modules_in(model).items():
        for key, value in list(module.__dict__.items()):
            if type(value) in (int, tuple, list) and (marked := _marked(value, name, key, computed)) is not None:
                held.append((module.__dict__, key, value))
                module.__dict__[key] = marked
    try:
        yield computed
    finally:
        for slots, key, value in held:
            slots[key] = value


def _marked(value: Any, module: str, attribute: str, computed: set[Source]) -> Any:
    def tag(number: int, place: int | None) -> Tagged:
        made = Tagged(number)
        made.source = source = (module, attribute, place)
        made.told = lambda: computed.add(source)
        return made

    if type(value) is int and value > 1:
        return tag(value, None)
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):
        return type(value)(tag(item, place) if item > 1 else item for place, item in enumerate(value))
    return None


TORCH = str(FilePath(torch.__file__).parent)


_KNOW_NOTHING = {Tensor, nn.Parameter, FakeTensor, int, float, bool, str, type(None)}


def as_ints(value: Any) -> Any:
    """Arguments with whole numbers that know nothing."""
    if type(value) in _KNOW_NOTHING:
        return value
    if isinstance(value, Computing):
        return int.__int__(value)
    if isinstance(value, dict):
        return {key: as_ints(item) for key, item in value.items()}
    if type(value) in (tuple, list, torch.Size):
        return type(value)(as_ints(item) for item in value)
    if isinstance(value, slice):
        return slice(as_ints(value.start), as_ints(value.stop), as_ints(value.step))
    return value
