"""Fake tensors, cheaper: what torch has worked out for one operation need not be worked out for the next one like it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from secateurs.watch import Operations

_NUMBERS = {int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}
_DECIDED_OTHERWISE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
DEVICE = torch.ops.prim.device.default
"""The operation that a tensor's device is asked by."""
_MOST = 1 << 16


Told = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device, int]
"""Shape, strides, dtype, device, and where in its storage a tensor begins."""


class _Unknown(Exception):
    """An argument of which shape, strides, dtype and device do not tell everything."""


@dataclass(frozen=True)
class _Result:
    """What an operation returned: one tensor, or a ``tuple`` or ``list`` of them; each an argument (its index), nothing, or new."""

    kind: type | None
    parts: tuple[Any, ...]
    is_view: bool


_seen: dict[Any, _Result] = {}


class Fakes:
    """Fake tensors, and a memory of what operations make of them: by the shapes, strides, dtypes and devices of their operands.

    What depends on numbers, or on more of a tensor than that, is torch's `FakeTensorMode`'s to find out.

    >>> fakes = Fakes()
    >>> with fakes.running():
    ...     (fakes.of(torch.ones(2, 3)) @ fakes.of(torch.ones(3, 4))).shape
    torch.Size([2, 4])
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._like: dict[torch.device, FakeTensor] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Whatever runs now runs on fake tensors."""
        with self.mode, Operations(self.run):
            yield

    def of(self, tensor: Tensor) -> Any:
        """A fake of a tensor; of a plain one, without asking what else it may be."""
        plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.device.type != "meta"
        if not plain or tensor.is_nested or tensor.is_quantized or tensor.is_complex() or tensor.storage_offset():
            return self.mode.from_tensor(tensor)
        told = tensor.shape, tensor.stride(), tensor.dtype, tensor.device, 0
        fake = self._made(told, requires_grad=tensor.requires_grad)
        if type(tensor) is nn.Parameter:
            fake._is_param = True
        return fake

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operation's result; where there is no like of it, torch's, which is kept in mind."""
        if func is DEVICE:
            return args[0].fake_device if type(args[0]) is FakeTensor else func(*args)
        key = _key(func, args, kwargs)
        if key is not None and (known := _seen.get(key)) is not None:
            return self._again(known, args)
        out = func(*args, **kwargs)
        if key is not None and (found := _result(func, args, out)) is not None:
            if len(_seen) == _MOST:
                _seen.clear()
            _seen[key] = found
        return out

    def _again(self, known: _Result, args: Sequence[Any]) -> Any:
        base = args[0] if known.is_view else None
        parts = [args[part] if type(part) is int else None if part is None else self._made(part, base) for part in known.parts]
        return parts[0] if known.kind is None else known.kind(parts)

    def _made(self, told: Told, base: Tensor | None = None, requires_grad: bool = False) -> Any:
        """A fake tensor as it was told; one that is a view shares the storage of its base."""
        shape, stride, dtype, device, offset = told
        with torch._C._DisableTorchDispatch():
            if base is None:
                meta = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            else:
                meta = torch.empty(0, dtype=dtype, device="meta").set_(base.untyped_storage(), offset, shape, stride)
            like = self._like.get(device)
            if like is None:
                like = self._like[device] = FakeTensor(self.mode, torch.empty(0, device="meta"), device)
            fake: Any = Tensor._make_subclass(
                FakeTensor, meta, requires_grad, dispatch_device=True, device_for_backend_keys=like.fake_device
            )
            torch._C._set_throw_on_mutable_data_ptr(fake)
            fake.__dict__.update(like.__dict__)  # all that FakeTensor's constructor would work out again each time
            return fake


def _key(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """All that the result of an operation depends on, or nothing where that cannot be told."""
    operands = args[0] if args and type(args[0]) is list else args
    if not kwargs.get("device") and not any(type(each) is FakeTensor for each in operands):
        return None  # a new tensor, on whatever device is the default one at that place
    try:
        return func, torch.get_default_dtype(), _told(args), _told(kwargs)
    except _Unknown:
        return None


def _told(value: Any) -> Any:
    kind = type(value)
    if kind is FakeTensor:
        if value.constant is not None:
            raise _Unknown
        return value.shape, value.stride(), value.dtype, value.fake_device, value.storage_offset()
    if kind in (tuple, list):
        return tuple([_told(item) for item in value])
    if kind is dict:
        return tuple([(name, _told(item)) for name, item in value.items()])
    if kind in _NUMBERS:
        return kind, value  # 1, 1.0 and True are equal
    raise _Unknown


def _result(func: Any, args: Sequence[Any], out: Any) -> _Result | None:
    """What must be known of a result to make it again, where that is possible."""
    if func.namespace != "aten" or _DECIDED_OTHERWISE.intersection(func.tags):
        return None
    kind = type(out) if type(out) in (tuple, list) else None
    parts: list[Any] = []
    for each in out if kind else (out,):
        place = next((place for place, arg in enumerate(args) if arg is each), None)
        if place is not None or each is None:
            parts.append(place)
        elif (
            type(each) is not FakeTensor or each.constant is not None or each.layout is not torch.strided or func._schema.is_mutable
        ):
            return None
        else:
            parts.append(_told(each))
    return _Result(kind, tuple(parts), func.is_view)
