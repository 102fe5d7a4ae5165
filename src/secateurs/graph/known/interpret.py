"""From a trace and a model's parameters to what is known of every tensor for every input: rule by rule, in the order of the pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from secateurs.forward import buffers_in, parameters_in
from secateurs.graph.known.knowing import Knowing
from secateurs.graph.known.state import Free, Known, fixed
from secateurs.graph.known.table import rule_of
from secateurs.graph.ops import Op, used
from secateurs.graph.structure import Structure
from secateurs.nested import Value


def interpret(model: nn.Module, structure: Structure, instead: Mapping[str, Tensor] | None = None, evenly: bool = False) -> Knowing:
    """What a model's zeros make certain; with ``instead``, what these parameters would, if nothing were known of the others.

    ``evenly``: see `Knowing`.

    >>> import torch
    >>> from secateurs.graph import analyse
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid())
    >>> model[0].weight.data[1], model[0].bias.data[1] = 0, 0
    >>> structure = analyse(model, torch.zeros(1, 2))
    >>> knowing = interpret(model, structure)
    >>> knowing.of(structure.trace.outputs[0]).along(1), knowing.of(structure.trace.outputs[0]).numbers(1)
    (tensor([False,  True, False]), tensor([0.0000, 0.5000, 0.0000], dtype=torch.float64))
    """
    trace = structure.trace
    knowing = Knowing(structure.typing, trace.sized is not None, evenly)
    parameters = parameters_in(model) if instead is None else instead
    for held, tensors in ((trace.parameters, parameters), (trace.buffers, buffers_in(model))):
        for name, value in held.items():
            if name not in tensors:
                knowing.known.setdefault(value, Known.nothing([fixed(size) for size in value.shape]))
                continue
            tensor = tensors[name].detach()
            plain = not (tensor.is_meta or tensor.is_sparse or tensor.is_quantized)
            if plain and name not in trace.written and tensor.shape == value.shape:
                knowing.known.setdefault(value, Known.of(tensor.cpu()))
    for value in trace.inputs:
        knowing.known[value] = Known.nothing([(Free(size),) for size in value.shape])
    for op, needed in zip(trace.ops, used(trace), strict=True):
        if needed:  # what nobody reads may be anything, and what it adds up does not matter
            _apply(knowing, op)
    return knowing


def _apply(knowing: Knowing, op: Op) -> None:
    rule, found = rule_of(op), None
    try:
        found = rule(knowing, op) if rule is not None else None
    except Exception as problem:  # to know nothing is always right, and no reason to fail
        knowing.failed.setdefault(op.name, f"{type(problem).__name__}: {problem} (at {op.where})")
    results = found if isinstance(found, list) else [found]
    for place, value in enumerate(op.outputs):
        known = results[place] if place < len(results) else None
        if known is None or not _fits(known, value):
            known = knowing.nothing(value)
        knowing.known[value] = replace(known, same=None) if known.same is value else known


def _fits(known: Known, value: Value) -> bool:
    """Whether a rule spoke of a tensor of that shape."""
    return len(known.sizes) == len(value.shape) and all(
        here in (1, size) and (here == 1) >= flag for here, size, flag in zip(known.shape, value.shape, known.uniform, strict=True)
    )
