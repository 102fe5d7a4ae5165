"""Operations of ATen as they run: each one seen, and none hidden in another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """While it is entered, each operation goes through a function: ``see(func, args, kwargs)`` runs it and gives its result.

    >>> def see(func, args, kwargs):
    ...     print(func)
    ...     return func(*args, **kwargs)
    >>> with Operations(see):
    ...     _ = torch.ones(2).exp()
    aten.ones.default
    aten.exp.default
    """

    def __init__(self, see: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._see(func, args, kwargs or {})


def written_by(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that a call of an operation writes into.

    >>> written_by(torch.ops.aten.add.out, (1, 2), {"out": 3}), written_by(torch.ops.aten.relu_.default, (1,), {})
    ([3], [1])
    """
    return [args[place] if place < len(args) else kwargs.get(name) for place, name in written_arguments(func)]


@functools.cache
def written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of each argument that an operation writes into."""
    arguments = enumerate(func._schema.arguments) if func._schema.is_mutable else ()
    return tuple((place, each.name) for place, each in arguments if is_written(each))


def is_written(argument: Any) -> bool:
    """Whether a schema says of an argument or a result that it is written into."""
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def storage_of(tensor: Tensor) -> Any:
    """The storage of a tensor; nothing where it has none that could be shared (sparse tensors)."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


@contextmanager
def unfused() -> Iterator[None]:
    """Torch's attention modules run as linear layers and attention, not as one operation that hides the layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def plain(kernels: bool = False) -> Iterator[None]:
    """All fused paths off, so that attention and recurrent layers show the operations that they are made of.

    ``kernels`` leaves those of oneDNN on, which are faster in float32.
    """
    recurrent = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(recurrent and kernels)
    try:
        with unfused(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(recurrent)
