"""A user's model about to be traced, with fake tensors for weights."""

from __future__ import annotations

import functools
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import evaluating, modules_in
from secateurs.graph.calls import Calls, Passes
from secateurs.graph.fake_tensors import Fakes
from secateurs.watch import modules, plain, untouched


@contextmanager
def ready(
    model: nn.Module, fake: bool, enter: Callable[[str], Any], leave: Callable[[], Any], calls: Sequence[Calls | Passes] = ()
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
            modules(model, enter, leave, calls),
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
