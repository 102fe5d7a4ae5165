"""Seeing at work what no layer tells from outside: which matrices of a stack a model multiplies, and with what.

Mixtures of experts keep the matrices of all experts in one parameter of three dimensions and multiply one expert after the other,
all in one batched or grouped product, or copies gathered for each token. Whichever it is, it ends in a few products of torch;
these are watched, and strides tell which matrix of the parameter took part, and which of its dimensions was summed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Product:
    """One matrix of a stack at work: ``inputs`` (rows, inputs) times it make ``output`` (rows, outputs).

    ``inputs_first`` says that the parameter lies as (stack, inputs, outputs), not as (stack, outputs, inputs).
    """

    parameter: str
    index: int
    inputs_first: bool
    inputs: Tensor
    output: Tensor


class Products(TorchDispatchMode):
    """While it is entered, tells ``found`` each product of a matrix that lies in one of the parameters ``(stack, rows, columns)``.

    >>> stack, seen = nn.Parameter(torch.zeros(4, 3, 2)), []
    >>> with torch.no_grad(), Products({"w": stack}, seen.append):
    ...     output = torch.ones(5, 2) @ stack[1].T
    >>> [(each.parameter, each.index, each.inputs_first, each.inputs.shape) for each in seen]
    [('w', 1, False, torch.Size([5, 2]))]
    """

    supports_higher_order_operators = True

    def __init__(self, parameters: Mapping[str, nn.Parameter], found: Callable[[Product], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.stacks = [_Stack(name, parameter, tuple(range(parameter.shape[0]))) for name, parameter in parameters.items()]
        self.gathered: list[_Stack] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.name().rpartition("::")[2].partition(".")[0]
        if name in _GATHERS:
            self._gather(output, *_GATHERS[name](args))
        elif name in _FACTORS or "grouped_mm" in name:
            left, right, *others = args[_FACTORS.get(name, 0) :]
            for product in self._products(left, right, output, [*others, (kwargs or {}).get("offs")][0]):
                self.found(product)
        return output

    def _gather(self, output: Tensor, source: Any, indices: Any) -> None:
        """Remember a copy of some of a stack's matrices, for as long as it lives."""
        self.gathered = [stack for stack in self.gathered if not stack.gone]
        stack = self._holder(source)
        if stack is not None and isinstance(indices, Tensor) and indices.ndim == 1 and source.shape == stack.tensor_shape:
            chosen = tuple(stack.indices[index] for index in indices.tolist())
            self.gathered.append(_Stack(stack.parameter, output, chosen))

    def _holder(self, tensor: Any) -> _Stack | None:
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            return None
        return next((stack for stack in [*self.stacks, *self.gathered] if stack.holds(tensor)), None)

    def _products(self, left: Any, right: Any, output: Tensor, ends: Any) -> Iterator[Product]:
        """Of (…, rows, k) times (…, k, columns), or of (rows, k) whose stretches, up to ``ends``, meet one matrix each."""
        for weight, other, flipped in ((right, left, False), (left, right, True)):
            stack = self._holder(weight)
            if stack is None or not isinstance(other, Tensor):
                continue
            matrix, rows, result = (weight.mT, other.mT, output.mT) if flipped and other.ndim > 1 else (weight, other, output)
            inputs_first = stack.lies(matrix)
            if inputs_first is None:
                return
            for index, there, made in _apart(stack, matrix, rows, result, ends):
                if there.numel():
                    yield Product(stack.parameter, index, inputs_first, there, made)
            return


_FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Products of torch → where their two factors begin among the arguments."""

_GATHERS: dict[str, Callable[[Sequence[Any]], tuple[Any, Any]]] = {
    "index": lambda args: (args[0], args[1][0] if len(args[1]) == 1 else None),
    "index_select": lambda args: (args[0], args[2] if args[1] == 0 else None),
}
"""Operations that copy matrices out of a stack → the stack and the indices."""


class _Stack:
    """Matrices that lie one after the other in one tensor: the parameter itself, or a copy of some of them."""

    def __init__(self, parameter: str, tensor: Tensor, indices: tuple[int, ...]) -> None:
        self.parameter, self.indices = parameter, indices
        self.tensor_shape, self.strides, self.start = tensor.shape, tensor.stride(), tensor.storage_offset()
        self.storage = StorageWeakRef(tensor.untyped_storage())

    @property
    def gone(self) -> bool:
        return bool(self.storage.expired())

    def holds(self, tensor: Tensor) -> bool:
        offset = tensor.storage_offset() - self.start
        return tensor.untyped_storage()._cdata == self.storage.cdata and 0 <= offset < self.strides[0] * len(self.indices)

    def lies(self, matrix: Tensor) -> bool | None:
        """Whether a factor (…, k, columns) has the inputs before the outputs in the parameter; ``None`` where it is another view.

        Of some of the outputs the first ones speak for all: others meet the same inputs.
        """
        found = tuple(matrix.stride()[-2:])
        for inputs_first, (inputs, outputs) in ((True, (1, 2)), (False, (2, 1))):
            if found == (self.strides[inputs], self.strides[outputs]) and matrix.shape[-2] == self.tensor_shape[inputs]:
                first = (matrix.storage_offset() - self.start) % self.strides[0] == 0
                return inputs_first if first and max(self.strides) == self.strides[0] else None
        return None

    def first(self, matrix: Tensor) -> int:
        return (matrix.storage_offset() - self.start) // self.strides[0]


def _apart(stack: _Stack, matrix: Tensor, rows: Tensor, result: Tensor, ends: Any) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Matrix by matrix: its index in the parameter, the rows that meet it, and what it makes of them."""
    first = stack.first(matrix)
    if matrix.ndim == 2:
        yield stack.indices[first], rows, result
    elif matrix.stride(0) == stack.strides[0]:
        met = stack.indices[first : first + matrix.shape[0]]
        if rows.ndim == 3:
            for index in sorted(set(met)):
                these = [place for place, each in enumerate(met) if each == index]
                yield index, rows[these].flatten(0, 1), result[these].flatten(0, 1)
        elif isinstance(ends, Tensor):
            start = 0
            for index, end in zip(met, ends.tolist(), strict=True):
                yield index, rows[start:end], result[start:end]
                start = end
