"""Writes down the operations of a forward pass, each with values in place of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import TensorWeakRef

from secateurs.graph.fake_tensors import DEVICE, Fakes
from secateurs.graph.memory import (
    Memory,
    Traced,
    Writes,
    alike,
    lies,
    put_back,
    taken_from,
    writes,
)
from secateurs.graph.ops import Op
from secateurs.nested import Value, arguments, tensors_in
from secateurs.watch import storage_of, where, written_by

aten = torch.ops.aten


class Tracer:
    """Writes down each operation that passes; tensors that it does not know are constants of the model's code.

    Each value is the output of one operation at most, and no operation reads what is no longer so: a tensor that was written in place,
    itself or through another one that shares its memory, is another value from then on. ``lying`` tells in which memory each of them is.

    >>> from secateurs.watch import Operations
    >>> tracer = Tracer([""])
    >>> with Operations(tracer.see):
    ...     x = torch.zeros(2, 3)
    ...     _ = x[:, 1:].add_(1)
    ...     y = x.exp()
    >>> [op.name for op in tracer.ops]
    ['zeros', 'slice', 'add', 'slice_scatter', 'exp']
    >>> tracer.ops[4].inputs == tracer.ops[3].outputs
    True
    """

    def __init__(self, stack: list[str], fakes: Fakes | None = None) -> None:
        self.ops: list[Op] = []
        self.stack = stack
        self._run = _run if fakes is None else fakes.run
        self._hold: Callable[[Tensor], Any] = TensorWeakRef if fakes is None else _held  # fakes take no memory
        self._traced: dict[int, tuple[Callable[[], Tensor | None], Traced]] = {}
        self.lying: dict[Value, Memory] = {}
        self._memories: dict[int, Memory] = {}
        self._storages: list[StorageWeakRef] = []  # as long as they are referred to, no other one is at their address

    def value(self, tensor: Tensor) -> Value:
        """What a tensor is now."""
        return self._now(self._find(tensor))

    def share(self, tensors: Iterable[Tensor]) -> None:
        """These tensors stand for some that lie in one storage: who writes one of them may write the others."""
        memory = Memory()
        for tensor in tensors:
            if self._memory(tensor) is not memory:
                self._memories[storage_of(tensor)._cdata] = memory

    # ------------------------------------------------------------ what a tensor is now

    def _memory(self, tensor: Tensor) -> Memory:
        storage = storage_of(tensor)
        if storage is None:
            return Memory()
        found = self._memories.get(storage._cdata)
        if found is None:
            found = self._memories[storage._cdata] = Memory()
            self._storages.append(StorageWeakRef(storage))
        return found

    def _find(self, tensor: Tensor) -> Traced:
        held = self._traced.get(id(tensor))
        memory = self._memory(tensor)
        if held is not None and held[0]() is tensor and (held[1].memory is memory or tensor.layout is not torch.strided):
            return held[1]
        # seen for the first time, or its ``data`` are another tensor's by now
        traced = Traced(Value(tensor.shape, tensor.dtype), memory, lies(tensor), -1 if memory.computed else memory.version)
        memory.latest = memory.latest or traced
        self.lying[traced.value] = memory
        return self._keep(tensor, traced)

    def _keep(self, tensor: Tensor, traced: Traced) -> Traced:
        self._traced[id(tensor)] = (self._hold(tensor), traced)
        return traced

    def _now(self, traced: Traced) -> Value:
        """The value of a tensor; where its memory was written since, it is taken from its base again."""
        memory = traced.memory
        if traced.version == memory.version:
            return traced.value
        traced.base = traced.base or memory.latest
        if traced.base is not None and traced.base is not traced:
            of = self._now(traced.base)
            if traced.op is None:
                func, args = taken_from(traced.base, traced.layout)
                made = self._note(func, args, {}, (traced.value,), where())
            else:
                old = traced.op
                args = arguments(old.args, Value, lambda value: of if value is traced.of else value)
                made = traced.op = self._note(old.func, args, old.kwargs, old.outputs, old.where)
                traced.of = of
            traced.value = made.outputs[traced.place]
            self.lying.update(dict.fromkeys(made.outputs, memory))
        traced.version = memory.version
        return traced.value

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], like: Sequence[Any], line: str) -> Op:
        """One more operation; its results are as large as those values or tensors."""
        outputs = tuple([Value(each.shape, each.dtype) for each in like])
        self.ops.append(Op(func, args, kwargs, outputs, self.stack[-1], line))
        return self.ops[-1]

    # ------------------------------------------------------------ what an operation does

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and write down what it does."""
        if func is DEVICE:
            return self._run(func, args, kwargs)  # torch itself asks, at every normalisation
        taken: list[Traced] = []
        noted, named = self._noted(args, taken), self._noted(kwargs, taken) if kwargs else kwargs
        wrote = writes(func)
        out = self._run(func, args, kwargs)
        results = [out] if isinstance(out, Tensor) else list(tensors_in(out))
        if wrote is not None and not wrote.only_layout:
            self._written(func, wrote, noted, named, list(tensors_in(written_by(func, args, kwargs))), results)
        elif results:
            self._made(func if wrote is None else wrote.functional or func, noted, named, results, taken)
        return out

    def _noted(self, nest: Any, taken: list[Traced]) -> Any:
        """Arguments with values in place of tensors, of which notes are taken."""

        def noted(tensor: Tensor) -> Value:
            traced = self._find(tensor)
            taken.append(traced)
            return self._now(traced)

        return arguments(nest, Tensor, noted)

    def _made(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: list[Tensor], taken: list[Traced]
    ) -> None:
        """New tensors; those that share the memory of an operand are views of it."""
        if func is aten.as_strided.default and alike(taken[0].layout, lies(results[0])):
            func, args, kwargs = aten.alias.default, args[:1], {}  # torch only tidies the strides of single indices
        if func is aten.as_strided.default and lies(results[0])[2] == taken[0].layout[2]:
            taken[0].value.strides = taken[0].layout[1]
        op = self._note(func, args, kwargs, results, where())
        for place, tensor in enumerate(results):
            self._bind(tensor, op, place, taken)

    def _bind(self, tensor: Tensor, op: Op, place: int, taken: Sequence[Traced]) -> None:
        memory = self._memory(tensor)
        traced = self._keep(tensor, Traced(op.outputs[place], memory, lies(tensor), memory.version))
        self.lying[traced.value] = memory
        for base in taken:
            if base.memory is memory:
                traced.base, traced.op, traced.place, traced.of = base, op, place, base.value
                return
        if memory.latest is None:
            memory.latest, memory.computed = traced, True
        else:
            traced.base = memory.latest

    def _written(self, func: Any, wrote: Writes, args: Any, kwargs: Any, written: list[Tensor], results: list[Tensor]) -> None:
        """Tensors that an operation wrote, beside those that it made."""
        line, several = where(), [self._find(tensor) for tensor in written]
        made = [tensor for place, tensor in enumerate(results) if place not in wrote.returned]
        if wrote.functional is not None:
            func, kwargs = wrote.functional, {name: value for name, value in kwargs.items() if name not in wrote.given}
        op = self._note(func, args, kwargs, [*made, *written], line)
        for place, tensor in enumerate(made):
            self._bind(tensor, op, place, ())
        for traced, tensor, value in zip(several, written, op.outputs[len(made) :], strict=True):
            if wrote.given and wrote.functional is not None and traced.value.shape == value.shape:
                value = self._note(aten.copy.default, (self._now(traced), value), {}, (traced.value,), line).outputs[0]
            self._write(traced, tensor, value, line)
        for traced, tensor in zip(several, (results[place] for place in wrote.returned), strict=False):
            self._traced.setdefault(id(tensor), (self._hold(tensor), traced))  # fakes of real tensors are returned as others

    def _write(self, traced: Traced, tensor: Tensor, value: Value, line: str) -> None:
        """A tensor is another value now, and so is all that shares its memory."""
        memory = traced.memory
        if traced.layout != (now := lies(tensor)):  # ``out=`` made it larger or smaller: it is the base of what was there
            traced = self._keep(tensor, Traced(value, memory, now, memory.version))
        memory.version, memory.computed = memory.version + 1, True
        traced.value, traced.version = value, memory.version
        self.lying[value] = memory
        while (base := traced.base) is not None:
            func, args = put_back(traced, base)
            base.value = self._note(func, args, {}, (base.value,), line).outputs[0]
            self.lying[base.value] = memory
            base.version = memory.version
            traced = base
        memory.latest = traced


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _held(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor
