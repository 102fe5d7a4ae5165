"""A user's model while it is watched: which module runs, and how it is put back to what it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from secateurs.forward import buffers_in, modules_in
from secateurs.nested import tensors_in
from secateurs.ranks import any_sharded
from secateurs.types import SecateursError


def refuse_opaque(model: nn.Module) -> None:
    """Raise `SecateursError` where a model's code cannot be seen, or not its parameters as they are."""
    if isinstance(model, torch.jit.ScriptModule):
        raise SecateursError(
            f"{type(model).__name__} is a scripted model, whose code cannot be traced: prune the nn.Module, then script it"
        )
    if hasattr(model, "_orig_mod"):
        raise SecateursError("the model is compiled: prune model._orig_mod, then compile again")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise SecateursError(f"the model is wrapped in {type(model).__name__}: prune model.module, then wrap again")
    if any_sharded(model.parameters()):
        raise SecateursError(
            "the model is sharded (fully_shard), and no trace sees what is coupled to what in shards: prune whole channels and shrink_ "
            "first, then shard it; or save it, load it into a whole one, and go on there"
        )


@contextmanager
def untouched(model: nn.Module, buffers: bool = True) -> Iterator[None]:
    """Whatever the forward pass writes down on its modules (caches, counters) is taken back, and into their buffers if so wished."""
    slots = [(module.__dict__, dict(module.__dict__)) for module in modules_in(model).values()]
    inside = [value for _, before in slots for value in before.values() if type(value) in (dict, OrderedDict, list, set)]
    filled = [(value, value.copy()) for value in inside if value]
    empty = [value for value in inside if not value]
    written = [(buffer, buffer.clone()) for buffer in buffers_in(model).values() if not buffer.is_meta] if buffers else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in written:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for now, before in slots:
            now.clear()
            now.update(before)
        for value in empty:
            if value:
                value.clear()
        for value, copied in filled:
            if value != copied if type(value) is set else not _alike(value, copied):
                value.clear()
                value.extend(copied) if isinstance(value, list) else value.update(copied)


def _alike(value: Any, copied: Any) -> bool:
    """Whether two dicts or lists hold the same objects."""
    if len(value) != len(copied):
        return False
    if isinstance(value, list):
        return all(one is other for one, other in zip(value, copied, strict=True))
    return all(key in copied and copied[key] is item for key, item in value.items())


class _Listener(Protocol):
    """Is told of the calls of modules: what it returns at the beginning is given back to it at the end, unless the call fails."""

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...
    def end(self, module: str, given: Any, args: tuple[Any, ...], output: Any) -> None: ...


@contextmanager
def modules(
    model: nn.Module, enter: Callable[[str], Any], leave: Callable[[], Any], calls: Sequence[_Listener] = ()
) -> Iterator[None]:
    """Tells when the forward pass of each module begins, by its name, and ends; ``calls`` are told what goes in and comes out.

    >>> model = nn.Sequential(nn.Flatten())
    >>> with modules(model, lambda name: print(repr(name), "begins"), lambda: print("and ends")):
    ...     _ = model(torch.ones(1, 2))
    '' begins
    '0' begins
    and ends
    and ends
    """
    names = {id(module): name for name, module in modules_in(model).items()}
    before, thread = nn.Module.__call__, get_ident()

    def told(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(self))
        if name is None or get_ident() != thread:
            return before(self, *args, **kwargs)
        given = [each.begin(args, kwargs) for each in calls]
        enter(name)
        try:
            output = before(self, *args, **kwargs)
        finally:
            leave()
        for each, value in zip(calls, given, strict=True):
            each.end(name, value, args, output)
        return output

    nn.Module.__call__ = told  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = before  # type: ignore[method-assign]


_InPlace = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class _Enough(BaseException):
    """Ends a pass of which no more is needed; says which one."""


@contextmanager
def cut_short() -> Iterator[Callable[[], NoReturn]]:
    """Gives a function that ends what runs in the block, such as a model's pass, wherever it is called.

    >>> with cut_short() as enough:
    ...     enough()
    ...     print("never")
    """
    this = object()

    def enough() -> NoReturn:
        raise _Enough(this)

    try:
        yield enough
    except _Enough as ended:
        if ended.args[0] is not this:
            raise


@contextmanager
def until_given(model: nn.Module, name: str, number: int) -> Iterator[list[Tensor]]:
    """Ends the model's pass in the block where the module of that name is given its tensor of that number, which is then in the list.

    Raises `SecateursError` where it is not called.

    >>> model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2), nn.Flatten(7))
    >>> with until_given(model, "1", 0) as given:
    ...     _ = model(torch.ones(1, 2))
    >>> given
    [tensor([[1., 1.]])]
    """
    found: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(list(tensors_in((args, kwargs)))[number])
        enough()

    with cut_short() as enough:
        handle = modules_in(model, again=True)[name].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            yield found
        finally:
            handle.remove()
        raise SecateursError(f"{name} is called with the example, but not with a calibration batch: give batches like the example")


@contextmanager
def instead(calls: Mapping[nn.Module, _InPlace]) -> Iterator[None]:
    """Calls something in place of some modules: with the module, what runs it, and its positional and keyword arguments.

    >>> relu = nn.ReLU()
    >>> with instead({relu: lambda module, run, args, kwargs: run(module, *args) + 1}):
    ...     nn.Sequential(relu)(torch.ones(1))
    tensor([2.])
    """
    before, thread = nn.Module.__call__, get_ident()

    def called(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        other = calls.get(self) if get_ident() == thread else None
        return before(self, *args, **kwargs) if other is None else other(self, before, args, kwargs)

    nn.Module.__call__ = called  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = before  # type: ignore[method-assign]
