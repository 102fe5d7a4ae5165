"""One forward pass of the user's model on real numbers, written down operation by operation at the level of ATen.

What does not depend on the inputs is computed by the pass itself, once: it is a constant of what is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from secateurs.forward import run_example
from secateurs.nested import Value, arguments, changed, holds, leaves, tensors_in
from secateurs.run.network.error import CompileError
from secateurs.run.network.nodes import Network, Node, Torch
from secateurs.run.network.plain import written_out
from secateurs.run.recording.writes import settled
from secateurs.types import SecateursError, TaskError
from secateurs.watch import Operations, modules, unfused, untouched, where, written_by

aten = torch.ops.aten


_RANDOM = torch.Tag.nondeterministic_seeded


_DECIDES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


_SELECTING = (aten.index, aten._unsafe_index, aten.masked_select)


_READ_BY_PYTHON = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


_NORMS = (aten.native_batch_norm.default, aten._native_batch_norm_legit.default)


def network_of(model: nn.Module, example: Any) -> Network:
    """What the model computes in evaluation mode without gradients, for inputs like the example, as a list of torch's operations.

    Neither the model nor the example changes. Raises `CompileError` where what the model does depends on the numbers in the
    inputs, or is kept in the model for the next call; `TaskError` where the model rejects the example.

    >>> [str(node.function) for node in network_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(1, 3)).nodes]
    ['aten.addmm.default', 'aten.relu.default']
    """
    _check(model, example)
    try:
        return _recorded(model, example)
    except CompileError as refused:
        # Many a model checks its inputs (for padding, say) only where it is not being compiled.
        with _compiling():
            try:
                return _recorded(model, example)
            except SecateursError:
                raise refused from None


def _recorded(model: nn.Module, example: Any) -> Network:
    stack = [""]
    with untouched(model), unfused(), modules(model, stack.append, stack.pop), ExitStack() as after:
        recorder = Recorder(model, stack)
        after.callback(recorder.restore)
        # Clones: the model may write into its inputs, and two inputs that are one tensor here need not be so later.
        taken = changed(example, lambda tensor: tensor.detach().clone(), objects=True)
        template = changed(taken, recorder.input, objects=True)
        held = _held(model)
        with Operations(recorder.see), _Watch(recorder):
            try:
                output = run_example(model, taken)
            except TaskError as error:
                raise error.__cause__ if isinstance(error.__cause__, SecateursError) else error from None
        if not holds(output):
            raise TaskError(
                f"the model returns {type(output).__name__}, in which no tensor can be found; "
                "return tensors, or tuples, lists, mappings or dataclasses of them"
            )
        result = changed(output, recorder.noted, objects=True)
        for place, tensor in _held(model).items():
            if place in held and held[place] is not tensor:
                recorder.replaced(place, held[place], tensor)
        return recorder.network(template, result)


def _held(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that modules hold, parameters apart, by where they are."""
    found = {}
    for name, module in model.named_modules():
        slots = {key: value for key, value in module.__dict__.items() if isinstance(value, (Tensor, dict, list, tuple))}
        slots.pop("_parameters", None)
        slots.update(slots.pop("_buffers", {}))
        found.update({f"{name}{path}": leaf for path, leaf in leaves(slots) if isinstance(leaf, Tensor)})
    return found


def _check(model: nn.Module, example: Any) -> None:
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise CompileError(f"{type(model).__name__} is compiled or scripted already: give the nn.Module that it was made from")
    for name, tensor in (
        *model.named_parameters(),
        *model.named_buffers(),
        *(("the example", leaf) for leaf in tensors_in(example)),
    ):
        if tensor.device.type != "cpu":
            raise CompileError(f"{name} is on {tensor.device}, but compiled models run on the CPU: move model and example to it")


@contextmanager
def _compiling() -> Iterator[None]:
    """What `torch.compiler.is_compiling` says is yes."""
    before, torch.compiler._is_compiling_flag = torch.compiler._is_compiling_flag, True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


@dataclass
class _Memory:
    """Memory of a constant into which numbers that depend on the inputs are written: from then on a copy, made anew in each call."""

    held: Tensor
    copy: Value


@dataclass
class _Owned:
    """Memory of a parameter or buffer."""

    name: str
    tensor: Tensor
    written: str = ""
    before: Tensor | None = None


class Recorder:
    """Writes down each operation on tensors that depend on the inputs or on chance; runs all the others, and forgets them."""

    def __init__(self, model: nn.Module, stack: list[str]) -> None:
        self._stack = stack
        self._nodes: list[Node] = []
        self._inputs: list[Value] = []
        self._flowing: dict[int, tuple[Callable[[], Tensor | None], Value]] = {}
        self._constants: dict[int, tuple[Tensor, Value]] = {}
        self._numbers: dict[Value, Tensor] = {}
        self._storage: dict[Value, object] = {}
        self._memories: dict[int, _Memory] = {}
        self._kept: dict[Value, str] = {}
        owned = (*model.named_parameters(), *model.named_buffers())
        self._owned = {_memory(tensor): _Owned(name, tensor.detach()) for name, tensor in reversed(owned)}
        self._alive: list[Tensor] = []

    def input(self, tensor: Tensor) -> Value:
        """An input of the network."""
        value = self._flow(tensor, object())
        self._inputs.append(value)
        return value

    def noted(self, nest: Any) -> Any:
        """The same arguments with values in place of tensors."""
        return arguments(nest, Tensor, lambda tensor: self.flowing(tensor) or self._constant(tensor))

    def flowing(self, tensor: Tensor) -> Value | None:
        """The value of a tensor that depends on inputs or chance."""
        known = self._flowing.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        memory = self._memories.get(_memory(tensor)) if self._memories else None
        if memory is None:
            return None
        if tensor.dtype != memory.held.dtype:
            raise self._refusal("writes into memory that it reads as another dtype", "write whole tensors of one dtype")
        value = self._flow(tensor, self._storage[memory.copy])
        layout = (memory.copy, tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset())
        self._write_down(aten.as_strided.default, layout, {}, (value,))
        return value

    def network(self, template: Any, result: Any) -> Network:
        """All that was written down, without what the result does not need."""
        result = changed(result, self._returned, objects=True)
        network = settled(Network(tuple(self._inputs), self._nodes, result, self._numbers, example=template), self._storage)
        used = set(network.constants).union(*(node.outputs for node in network.nodes if isinstance(node, Torch)))
        for value, message in self._kept.items():
            if value in used:
                raise CompileError(message)
        return network

    def replaced(self, place: str, before: Tensor, after: Tensor) -> None:
        """Where a module held one tensor before the pass, it holds another one now."""
        if self.flowing(after) is not None:
            memory = _memory(before)
            for tensor, value in self._constants.values():
                if _memory(tensor) == memory:
                    self._kept[value] = self._state(_Owned(place, before, "the model"))

    def restore(self) -> None:
        """Put back what the pass wrote into parameters and buffers."""
        with torch.no_grad():
            for owned in self._owned.values():
                if owned.before is not None:
                    owned.tensor.copy_(owned.before)

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and write it down where it belongs to what is computed from the inputs."""
        if func.namespace == "prim":
            return func(*args, **kwargs)
        written = list(tensors_in(written_by(func, args, kwargs)))
        flows = any(self.flowing(tensor) is not None for tensor in tensors_in((args, kwargs)))
        if not flows and _RANDOM not in func.tags:
            for tensor in written:
                self._before_writing(tensor)
            return func(*args, **kwargs)
        if self._decides(func, args):
            raise self._refusal(
                f"decides by the numbers in its inputs (aten.{func.overloadpacket.__name__})",
                "compute it with torch.where or masks,",
            )
        if torch.Tag.inplace_view in func.tags:
            return self._turned(func, args, kwargs)
        for tensor in written:
            if self.flowing(tensor) is None:
                self._melt(tensor)
        if func in _NORMS and args[5]:
            args = (*args[:3], None, None, *args[5:])  # the statistics of the batch, and none are kept
            func = aten.native_batch_norm.default
        noted, named = tuple(self.noted(args)), self.noted(kwargs)
        if func is aten.as_strided.default:
            noted = (noted[0], tuple(args[0].stride()), *noted[1:])
        out = func(*args, **kwargs)
        outputs = tuple(
            self._output(tensor, args, kwargs) for tensor in tensors_in(out) if not any(tensor is each for each in written)
        )
        if outputs or written:
            self._write_down(strided if func is aten.as_strided.default else func, noted, named, outputs)
        return out

    def refuse_reading(self, tensor: Tensor, reader: str) -> None:
        """Raise where Python reads numbers that depend on the inputs."""
        if self.flowing(tensor) is not None:
            raise self._refusal(f"takes numbers out of torch (Tensor.{reader})", "compute it with torch,")

    def _returned(self, value: Value) -> Value:
        """Of a constant, a copy: whoever gets it may write into it."""
        if value not in self._numbers:
            return value
        copy = Value(value.shape, value.dtype)
        self._storage[copy] = object()
        self._write_down(aten.clone.default, (value,), {}, (copy,))
        return copy

    def _decides(self, func: Any, args: Any) -> bool:
        """Whether numbers, or the number of them, leave the world of tensors of known shape."""
        if func.overloadpacket in _SELECTING:
            chosen = [each for each in tensors_in(args[1]) if each.dtype in (torch.bool, torch.uint8)]
            return any(self.flowing(each) is not None for each in chosen)
        return not _DECIDES.isdisjoint(func.tags)

    def _output(self, tensor: Tensor, args: Any, kwargs: Any) -> Value:
        memory = _memory(tensor)
        for each in tensors_in((args, kwargs)):
            if _memory(each) == memory and memory:
                value = self.flowing(each) or self._constant(each)
                return self._flow(tensor, self._storage[value])
        return self._flow(tensor, object())

    def _flow(self, tensor: Tensor, storage: object) -> Value:
        value = Value(tuple(tensor.shape), tensor.dtype)
        self._flowing[id(tensor)] = (TensorWeakRef(tensor), value)
        self._storage[value] = storage
        return value

    def _constant(self, tensor: Tensor) -> Value:
        known = self._constants.get(id(tensor))
        if known is not None:
            return known[1]
        value = Value(tuple(tensor.shape), tensor.dtype)
        owned = self._owned.get(_memory(tensor))
        if owned is not None and owned.written:
            self._kept[value] = self._state(owned)
        self._constants[id(tensor)] = (tensor, value)
        self._numbers[value] = written_out(tensor)
        self._storage[value] = object()
        return value

    def _before_writing(self, tensor: Tensor) -> None:
        """Constants are kept by reference: what was noted of this memory keeps the numbers that it had."""
        memory = _memory(tensor)
        for place, (held, value) in list(self._constants.items()):
            if _memory(held) == memory:
                self._numbers[value] = held.detach().clone()
                self._alive.append(held)  # or another tensor might get its id
                del self._constants[place]
        owned = self._owned.get(memory)
        if owned is not None and not owned.written:
            owned.written = f"{self._stack[-1] or 'the model'} ({where()})"
            owned.before = owned.tensor.clone()

    def _melt(self, tensor: Tensor) -> None:
        memory = _memory(tensor)
        self._before_writing(tensor)
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        whole = tensor.detach().as_strided((size,), (1,), 0)
        copy = Value((size,), tensor.dtype)
        if memory in self._owned:
            self._kept[copy] = self._state(self._owned[memory])
        self._storage[copy] = object()
        self._write_down(aten.clone.default, (self._constant(whole.clone()),), {}, (copy,))
        self._memories[memory] = _Memory(whole, copy)

    def _turned(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation such as ``transpose_``: the same tensor is another value from here on."""
        name = func.overloadpacket.__name__
        packet = getattr(aten, name.removesuffix("_"), None)
        plain = next((each for each in overloads(packet) if _takes(each) == _takes(func)), None)
        if plain is None or not plain.is_view:
            raise self._refusal(f"changes the memory of a tensor in place ({name})", "make a new tensor instead,")
        before = self.noted(args[0])
        noted, named = (before, *self.noted(args[1:])), self.noted(kwargs)
        out = func(*args, **kwargs)
        self._write_down(plain, noted, named, (self._flow(args[0], self._storage[before]),))
        return out

    def _write_down(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: tuple[Value, ...]) -> None:
        self._nodes.append(Torch(self._name(args), func, args, kwargs, outputs))

    def _name(self, args: Any) -> str:
        """The innermost module that runs, or one inside of it where the operation uses that one's parameters."""
        name = self._stack[-1]
        for value in args:
            tensor = self._numbers.get(value) if isinstance(value, Value) else None
            owned = self._owned.get(_memory(tensor)) if tensor is not None else None
            if owned is not None and f"{owned.name.rpartition('.')[0]}.".startswith(f"{name}." if name else ""):
                return owned.name.rpartition(".")[0]
        return name

    def _refusal(self, what: str, way_out: str) -> CompileError:
        place = f"module {self._stack[-1]!r}" if self._stack[-1] else "the model"
        return CompileError(
            f"{place} {what} at {where()}, which a compiled model cannot repeat: {way_out} or compile the parts without it"
        )

    def _state(self, owned: _Owned) -> str:
        place = owned.written or f"{self._stack[-1] or 'the model'} ({where()})"
        return (
            f"{owned.name} is written by {place} and used for the result: a compiled model keeps nothing between calls; "
            "return the new state and take it as an input, or compile the parts without it"
        )


class _Watch(TorchFunctionMode):
    """Sees what reads the numbers of a tensor without an operation of torch."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READ_BY_PYTHON:
            self._recorder.refuse_reading(args[0], func.__name__)
        if func is torch.lstm_cell:
            func = _one_step
        return func(*args, **(kwargs or {}))


def _one_step(
    x: Tensor, state: tuple[Tensor, Tensor], weight: Tensor, recurrent: Tensor, *biases: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``torch.lstm_cell`` as an LSTM of one step, which is one operation at the level of ATen, not fifteen."""
    weights = [weight, recurrent, *(each for each in biases if each is not None)]
    before = [each[None] for each in state]
    _, hidden, cell = torch.lstm(x[None], before, weights, len(weights) > 2, 1, 0.0, False, False, False)
    return hidden[0], cell[0]


def strided(tensor: Tensor, strides: tuple[int, ...], size: Any, stride: Any, offset: int | None = None) -> Tensor:
    """``as_strided`` of a tensor that had these strides where this was written down.

    >>> strided(torch.arange(4).view(2, 2).t().contiguous(), (1, 2), (4,), (1,))
    tensor([0, 1, 2, 3])
    """
    if tensor.stride() != strides:
        tensor = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
    return tensor.as_strided(size, stride, offset)


def _takes(func: Any) -> list[tuple[str, str]]:
    return [(declared.name, str(declared.type)) for declared in func._schema.arguments]


def overloads(packet: Any) -> Iterator[Any]:
    """The variants of an operation of torch."""
    for name in packet.overloads() if packet is not None else ():
        yield getattr(packet, name)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else 0
