"""A user's model while it is being watched: nothing of it is changed afterwards."""

from __future__ import annotations

import functools
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateurs.forward import buffers_in, evaluating, modules_in
from secateurs.graph.calls import Calls
from secateurs.graph.fake_tensors import Fakes
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
def ready(
    model: nn.Module, fake: bool, enter: Callable[[str], Any], leave: Callable[[], Any], calls: Sequence[Calls] = ()
) -> Iterator[Fakes | None]:
    """A model about to be watched: in evaluation mode, without fused paths, with fake weights if so wished; then as it was before.

    ``enter`` is told the name of each module whose forward begins, ``leave`` is called where it ends; ``calls`` are told what goes in
    and comes out.
    """
    fakes = Fakes() if fake else None
    with ExitStack() as around:
        contexts = (
            _quiet(),
            untouched(model, buffers=not fake),
            evaluating(model),
            torch.random.fork_rng(devices=[]),
            plain(),
            _modules(model, enter, leave, calls),
        )
        for context in contexts:
            around.enter_context(context)
        if fakes is not None:
            _forget(model)
            around.callback(_forget, model)
            around.enter_context(_faked(model, fakes))
        yield fakes


_DATA = {int, float, bool, str, tuple, list, dict, OrderedDict, set, type(None)}
"""What nearly all of a module's attributes are, and no function."""


def _forget(model: nn.Module) -> None:
    """Empty the caches of functions on and beside the model's classes: what they computed from fake tensors is fake."""
    modules = modules_in(model).values()
    classes = {base for kind in set(map(type, modules)) for base in kind.__mro__ if not base.__module__.startswith("torch.")}
    names = {base.__module__ for base in classes} - {"builtins"}
    spaces = [vars(each) for each in (*modules, *classes)] + [vars(sys.modules[name]) for name in names if name in sys.modules]
    values = [value for space in spaces for value in list(space.values()) if type(value) not in _DATA]
    for value in values:
        if not callable(value) and not isinstance(value, staticmethod):
            continue
        function = getattr(value, "__func__", value)
        cells = getattr(function, "__closure__", None) or ()
        for cached in (function, *(cell.cell_contents for cell in cells if _filled(cell))):
            if isinstance(cached, functools._lru_cache_wrapper):
                cached.cache_clear()


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs what fake tensors cannot do before it raises; the pass on real tensors takes care of that."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


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


@contextmanager
def plain(kernels: bool = False) -> Iterator[None]:
    """Fused paths off, so that attention and recurrent layers show the operations that they are made of.

    ``kernels`` leaves those of oneDNN on, which are faster in float32.
    """
    attention, recurrent = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(recurrent and kernels)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(attention)
        torch._C._set_mkldnn_enabled(recurrent)


@contextmanager
def _modules(
    model: nn.Module, enter: Callable[[str], Any], leave: Callable[[], Any], calls: Sequence[Calls] = ()
) -> Iterator[None]:
    """Tells when the forward pass of each module begins and ends."""
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


@contextmanager
def _faked(model: nn.Module, fakes: Fakes) -> Iterator[None]:
    """Fake tensors in place of every parameter and buffer, wherever the modules hold them; afterwards the real ones again."""
    known: dict[int, Tensor] = {}
    held: list[tuple[Any, Any, Any]] = []

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            known[id(tensor)] = fakes.of(tensor)
        return known[id(tensor)]

    try:
        modules = modules_in(model).values()
        for module in modules:
            for slots in (module._parameters, module._buffers):
                for key, tensor in slots.items():
                    if tensor is not None:
                        held.append((slots, key, tensor))
                        slots[key] = fake(tensor)  # type: ignore[assignment]
        for module in modules:  # an LSTM keeps its weights a second time, in a list
            for key, value in list(module.__dict__.items()):
                if isinstance(value, list) and any(isinstance(item, Tensor) and id(item) in known for item in value):
                    held.append((module.__dict__, key, value))
                    module.__dict__[key] = [known.get(id(item), item) for item in value]
        yield
    finally:
        for slots, key, tensor in reversed(held):
            slots[key] = tensor
