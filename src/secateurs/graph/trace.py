"""One forward pass, recorded operation by operation at the level of ATen, without computing anything where that is possible."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import buffers_in, call, check_fit, modules_in, parameters_in, run_example
from secateurs.graph.calls import Calls, Passes
from secateurs.graph.ops import Trace
from secateurs.graph.ready import ready
from secateurs.graph.sizes import SizeCalls
from secateurs.graph.tagged_sizes import tagged
from secateurs.graph.tracer import Tracer
from secateurs.nested import changed, tensors_in
from secateurs.types import TaskError
from secateurs.watch import Operations, refuse_opaque, storage_of, where


def trace_of(model: nn.Module, example: Any) -> Trace:
    """Record one forward pass of the example, in evaluation mode, on fake tensors: neither memory nor time for the numbers.

    Where the model's code asks for a number (``if x.max() > 0``), the pass is repeated on real tensors, and a note says so. Raises
    `TaskError` where the model rejects the example, `SecateursError` where it is compiled or scripted.

    >>> import torch
    >>> [op.name for op in trace_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3)).ops]
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


def _recorded(model: nn.Module, example: Any, fake: bool) -> Trace:
    stack = [""]
    trace = Trace(fake=fake)
    calls: list[Calls | Passes] = []
    together = _together(_tensors(model, example)) if fake else []
    with ready(model, fake, stack.append, stack.pop, calls) as fakes, tagged(model) as computed:
        tracer = Tracer(stack, fakes)
        noted, passes = [Calls(tracer.value)] if fake else [], Passes(tracer.value, lambda: tracer.ops)
        calls += [*noted, passes]
        if fakes is not None:
            example = changed(example, fakes.of)
        tensors = _tensors(model, example) if together else []
        for places in together:
            tracer.share(tensors[place] for place in places)
        trace.floats = {name: _floats(module) for name, module in modules_in(model).items()}
        trace.parameters = {name: tracer.value(tensor) for name, tensor in parameters_in(model).items()}
        trace.buffers = {name: tracer.value(tensor) for name, tensor in buffers_in(model).items()}
        trace.inputs = [tracer.value(tensor) for tensor in tensors_in(example)]
        sizes = SizeCalls(stack, tracer.value, where)
        with fakes.mode if fakes else nullcontext(), Operations(tracer.see), sizes:
            output = call(model, example) if fake else run_example(model, example)
        trace.outputs = [tracer.value(tensor) for tensor in tensors_in(output)]
        now = {name: tracer.value(tensor) for held in (parameters_in(model), buffers_in(model)) for name, tensor in held.items()}
        if not trace.outputs:
            raise TaskError(
                f"the model returns {type(output).__name__}, in which no tensor can be found: what is pruned could not be compared; "
                "return tensors, or tuples, lists, mappings or dataclasses of them"
            )
    numbers: dict[int, int] = {}
    trace.storages = {value: numbers.setdefault(id(memory), len(numbers)) for value, memory in tracer.lying.items()}
    trace.ops, trace.sizes, trace.computed = tracer.ops, sizes.calls, computed
    trace.measured, trace.sized = sizes.computed, sizes.sized
    trace.calls, trace.passes = [call for each in noted for call in each.found()], passes.found
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
