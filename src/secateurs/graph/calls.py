"""Which tensors go into each module of a model, and which come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from secateurs.nested import Value, changed, parts, tensors_in


@dataclass(frozen=True)
class ModulePass:
    """One call of a module: the values of all tensors among its arguments, in order, and of those that it gives.

    ``answer`` is what it gives with values in place of tensors; ``ops`` are the places of the operations that it runs.
    """

    module: str
    given: tuple[Any, ...]
    answer: Any
    ops: range

    @property
    def gives(self) -> tuple[Value, ...]:
        return tuple(_values(self.answer))


def _values(nest: Any) -> Iterator[Value]:
    if isinstance(nest, Value):
        yield nest
    else:
        for _, part in parts(nest) or ():
            yield from _values(part)


@dataclass(frozen=True)
class Seen:
    """Where a value can be seen while a model runs: it is the tensor of that number that the module is given."""

    module: str
    number: int


def seen(passes: Sequence[ModulePass], value: Value, within: str = "") -> Seen | None:
    """The first of the modules that are called once (of those within one) that is given a value; ``None`` where none is."""
    count = Counter(each.module for each in passes)
    inside = f"{within}." if within else ""
    given = [
        each
        for each in passes
        if each.module.startswith(inside) and count[each.module] == 1 and any(one is value for one in each.given)
    ]
    if not given:
        return None
    first = min(given, key=lambda each: (each.ops.start, each.module.count(".")))
    return Seen(first.module, next(number for number, one in enumerate(first.given) if one is value))


class Passes:
    """Notes what goes into each module and what comes out, as values at that time; `value` gives a tensor its name in the trace.

    >>> import torch
    >>> value, x = Value((1,)), torch.ones(1)
    >>> passes = Passes(lambda tensor: value, list)
    >>> passes.end("relu", passes.begin((), {"x": x}), (), x)
    >>> passes.found[0].given == passes.found[0].gives
    True
    """

    def __init__(self, value: Callable[[Tensor], Value], ops: Callable[[], Sequence[Any]]) -> None:
        self._value, self._ops = value, ops
        self.found: list[ModulePass] = []

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The values that go in."""
        return tuple(map(self._value, tensors_in((args, kwargs)))), len(self._ops())

    def end(self, module: str, given: Any, args: tuple[Any, ...], output: Any) -> None:
        """What came out."""
        values, start = given
        self.found.append(ModulePass(module, values, changed(output, self._value), range(start, len(self._ops()))))


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: the tensor that goes in and the one that comes out; ``None`` where there is none.

    Where several go in or come out it is the first that was given by place, else by name, and the first of those that were returned;
    ``alone``: there are no others, nor anything else. ``overwrites``: the tensor that went in is another one when the module returns.
    ``overwritten``: what went in or came out is written to later, so that it matters whether they are one tensor.
    """

    module: str
    input: Any = None
    output: Any = None
    overwrites: bool = False
    overwritten: bool = False
    alone: bool = True


class Calls:
    """Notes the calls of modules while a model runs; `value` gives a tensor its name in the trace.

    >>> import torch
    >>> calls = Calls(id)
    >>> x = torch.ones(1)
    >>> calls.end("relu", calls.begin((x,), {}), (x,), x)
    >>> call, = calls.found()
    >>> call.input == call.output
    True
    """

    def __init__(self, value: Callable[[Tensor], Any]) -> None:
        self._value = value
        self._noted: list[tuple[ModuleCall, tuple[Tensor, ...]]] = []

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The tensor that goes in, its value, and whether it goes in alone."""
        first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), None)
        return None if first is None else (first, self._value(first), len(args) == 1 and not kwargs)

    def end(self, module: str, given: Any, args: tuple[Any, ...], output: Any) -> None:
        """What came out, and whether what went in is still what it was."""
        several = isinstance(output, (tuple, list)) and len(output) > 0
        made = output[0] if several else output
        if given is None or not isinstance(made, Tensor):
            self._noted.append((ModuleCall(module), ()))
        else:
            first, value, alone = given
            changed = self._value(first) != value
            call = ModuleCall(module, value, self._value(made), changed, alone=alone and not several)
            self._noted.append((call, (first, made)))

    def found(self) -> list[ModuleCall]:
        """Every call, once the pass is over."""

        def now(call: ModuleCall, tensors: tuple[Tensor, ...]) -> ModuleCall:
            later = [self._value(tensor) for tensor in tensors]
            return replace(call, overwritten=bool(later) and later != [call.input, call.output])

        return [now(*each) for each in self._noted]
