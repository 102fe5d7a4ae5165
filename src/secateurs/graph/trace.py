"""One forward pass, recorded operation by operation at the level of ATen, without computing anything where that is possible."""

from __future__ import annotations

import functools
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateurs.forward import buffers_in, call, check_fit, evaluating, modules_in, nested, parameters_in, run_example, tensors_in
from secateurs.graph.calls import Calls, ModuleCall
from secateurs.graph.fake import Fakes
from secateurs.graph.lines import where
from secateurs.graph.memory import storage_of
from secateurs.graph.ops import Op, Value
from secateurs.graph.recorder import Recorder
from secateurs.graph.sizes import SizeCall, SizeCalls, Source, tagged
from secateurs.ranks import any_sharded
from secateurs.types import SecateursError, TaskError


@dataclass
class Trace:
    """The operations of one forward pass in order; which values are parameters, buffers, inputs and outputs.

    Each value is written once: it is the output of one operation, or was there before, and what an operation reads is what is there at
    that time. In-place operations are told as those that are none (``relu_`` is ``relu`` with a new value), ``out=`` as the operation and
    a ``copy``; what was written through a view comes into its base by ``slice_scatter``, ``select_scatter`` and their like, and other
    views of it are taken anew where they are read. Where no such operation fits it is ``as_strided_scatter`` and ``as_strided``, after
    which anything may be anywhere in that memory. ``written`` are parameters and buffers that the pass writes, and what they are at its
    end: the next pass begins with that, so that they are no constants.

    ``calls`` are those of its modules; ``sized`` is where the code first computes with a size, if it does, so that it may do something
    else at another one. ``sizes`` are the calls that take sizes; ``computed``, the attributes that the code divides by or takes a root
    of; ``measured``, the
    dimensions whose size it computes with, and where; ``floats``,
    each module's attributes that are floating-point numbers.
    """

    ops: list[Op] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    sizes: list[SizeCall] = field(default_factory=list)
    sized: str | None = None
    parameters: dict[str, Value] = field(default_factory=dict)
    buffers: dict[str, Value] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    written: dict[str, Value] = field(default_factory=dict)
    computed: set[Source] = field(default_factory=set)
    measured: dict[tuple[Value, int], str] = field(default_factory=dict)
    floats: dict[str, set[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fake: bool = True


def used(trace: Trace) -> list[bool]:
    """Which operations' results find their way into the outputs, or into what the next pass begins with."""
    needed, found = {*trace.outputs, *trace.written.values()}, []
    for op in reversed(trace.ops):
        found.append(any(value in needed for value in op.outputs))
        if found[-1]:
            needed.update(op.inputs)
    return found[::-1]


def record(model: nn.Module, example: Any) -> Trace:
    """Record one forward pass of the example, in evaluation mode, on fake tensors: neither memory nor time for the numbers.

    Where the model's code asks for a number (``if x.max() > 0``), the pass is repeated on real tensors, and a note says so. Raises
    `TaskError` where the model rejects the example, `SecateursError` where it is compiled or scripted.

    >>> import torch
    >>> [op.name for op in record(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3)).ops]
    ['t', 'addmm', 'relu']
    """
    refuse_opaque(model)
    if example is None:
        run_example(model, example)  # raises
    check_fit(model, example)
    try:
        return _recorded(model, example, fake=True)
    except TaskError:
        raise
    except Exception as problem:
        trace = _recorded(model, example, fake=False)
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        trace.notes.append(
            f"the pass was traced on real numbers ({type(problem).__name__}: {reason}): where the model's code decides by numbers, "
            "only the branch that this example takes was seen"
        )
        return trace


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


def _recorded(model: nn.Module, example: Any, fake: bool) -> Trace:
    stack = [""]
    trace = Trace(fake=fake)
    calls: list[Calls] = []
    together = _together(_tensors(model, example)) if fake else []
    with ready(model, fake, stack.append, stack.pop, calls) as fakes, tagged(model) as computed:
        recorder = Recorder(stack, fakes)
        calls += [Calls(recorder.value)] if fake else []
        if fakes is not None:
            example = nested(example, fakes.of)
        tensors = _tensors(model, example) if together else []
        for places in together:
            recorder.share(tensors[place] for place in places)
        trace.floats = {name: _floats(module) for name, module in modules_in(model).items()}
        trace.parameters = {name: recorder.value(tensor) for name, tensor in parameters_in(model).items()}
        trace.buffers = {name: recorder.value(tensor) for name, tensor in buffers_in(model).items()}
        trace.inputs = [recorder.value(tensor) for tensor in tensors_in(example)]
        sizes = SizeCalls(stack, recorder.value, where)
        with fakes.mode if fakes else nullcontext(), recorder, sizes:
            output = call(model, example) if fake else run_example(model, example)
        trace.outputs = [recorder.value(tensor) for tensor in tensors_in(output)]
        now = {name: recorder.value(tensor) for held in (parameters_in(model), buffers_in(model)) for name, tensor in held.items()}
        if not trace.outputs:
            raise TaskError(
                f"the model returns {type(output).__name__}, in which no tensor can be found: what is pruned could not be compared; "
                "return tensors, or tuples, lists, mappings or dataclasses of them"
            )
    trace.ops, trace.sizes, trace.computed = recorder.ops, sizes.calls, computed
    trace.measured, trace.sized, trace.calls = sizes.computed, sizes.sized, [call for each in calls for call in each.found()]
    before = {**trace.parameters, **trace.buffers}
    trace.written = {name: value for name, value in now.items() if before.get(name) is not value}
    return trace


def _tensors(model: nn.Module, example: Any) -> list[Tensor]:
    return [*parameters_in(model).values(), *buffers_in(model).values(), *tensors_in(example)]


def _together(tensors: Iterable[Tensor]) -> list[list[int]]:
    """Which of some tensors lie in one storage, of those that lie in one with another."""
    found: dict[int, list[int]] = {}
    for place, tensor in enumerate(tensors):
        storage = storage_of(tensor)
        if storage is not None:
            found.setdefault(storage._cdata, []).append(place)
    return [places for places in found.values() if places[1:]]


def _floats(module: nn.Module) -> set[float]:
    found = {value for value in module.__dict__.values() if type(value) is float}
    if isinstance(module, nn.RMSNorm) and module.eps is None and module.weight is not None:
        found.add(torch.finfo(module.weight.dtype).eps)
    return found


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
