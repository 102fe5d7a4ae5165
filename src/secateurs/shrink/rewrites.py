"""Numbers in a model's code that its new sizes ask for, found call by call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from traceback import walk_tb
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from secateurs.forward import call, modules_in
from secateurs.graph import (
    Choice,
    Measured,
    SizeCall,
    Structure,
    asks_size,
    is_told,
    ready,
    told,
)
from secateurs.nested import changed
from secateurs.shrink.rewritten_forward import at, rewritten, takes_sizes
from secateurs.shrink.size_changes import Changes, measured, passed
from secateurs.shrink.step import Rewrite
from secateurs.types import SecateursError
from secateurs.watch import is_users, line_of

# ---------------------------------------------------------------- sizes in the code


@dataclass(frozen=True)
class _Wanted:
    """What one call that takes sizes must be given once the model is smaller."""

    name: str
    numbers: tuple[tuple[Sequence[int | str], Any], ...]
    pieces: tuple[int, list[int]] | None


def _wanted(structure: Structure, choice: Choice, size_call: SizeCall) -> _Wanted:
    kept_of = [(number, measured(structure, choice, number.tensor, number.dim)) for number in size_call.numbers]
    pieces = size_call.pieces
    lengths = [] if pieces is None else [int(measured(structure, choice, value, pieces.dim).sum()) for value in pieces.tensors]
    return _Wanted(
        size_call.name,
        tuple((number.path, number.measure(stay)) for number, stay in kept_of),
        None if pieces is None else (pieces.dim, lengths),
    )


class _Comparing(TorchFunctionMode):
    """Runs the shrunk model beside the trace of the whole one: where a call gives a size that is no more right, the right one."""

    def __init__(self, structure: Structure, choice: Choice) -> None:
        super().__init__()
        self._calls = iter([_wanted(structure, choice, size_call) for size_call in structure.trace.sizes])
        self.stack: list[list[Any]] = [["", 0]]
        self._found: dict[str, dict[tuple[int, Any], Rewrite]] = {}
        self._right: set[tuple[str, str, Any, Any, Any]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not takes_sizes(func):
            out = func(*args, **kwargs)
            return told(out) if asks_size(func, out) else out
        wanted = next(self._calls, None)
        if wanted is None or wanted.name != func.__name__:
            raise SecateursError("the model takes another path once it is smaller")
        name, ordinal = self.stack[-1]
        for frame in self.stack:
            frame[1] += 1
        rewrites = [Rewrite(ordinal, wanted.name, *each) for each in _needed(wanted, func, args, kwargs)]
        for each in rewrites:
            known = self._found.setdefault(name, {}).setdefault((ordinal, each.path), each)
            if known != each:
                raise SecateursError(f"{name or 'the model'} is called more than once, and would need other sizes each time")
        changed = {each.path: each.new for each in rewrites}
        for path, given in _given(wanted, args, kwargs):
            from_size = _from_size(path, given)
            if path not in changed:
                self._right.add((name, wanted.name, path, _hashable(given), from_size))
            for outer, _ in self.stack[:-1]:  # sees the calls of the modules within, too
                self._right.add((outer, wanted.name, path, _hashable(changed.get(path, given)), from_size))
        return rewritten(func, args, kwargs, rewrites)

    def rewrites(self) -> dict[str, list[Rewrite]]:
        """What was wrong, by module. Where all calls with one number need the same new one, their order does not matter."""
        found = {}
        for name, entries in self._found.items():
            alike: dict[Any, set[Any]] = {}
            for each in entries.values():
                alike.setdefault((each.name, each.path, _hashable(each.given), each.told), set()).add(str(each.new))
            everywhere = {key for key, news in alike.items() if len(news) == 1 and (name, *key) not in self._right}
            anywhere = [
                replace(each, ordinal=None) if (each.name, each.path, _hashable(each.given), each.told) in everywhere else each
                for each in entries.values()
            ]
            found[name] = list({str(each): each for each in anywhere}.values())
        return found


def _hashable(new: Any) -> Any:
    return tuple(new) if isinstance(new, list) else new


def _given(wanted: _Wanted, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """The numbers that a call was given, with their places."""
    if wanted.pieces is not None:
        yield ("pieces",), args[0].shape[wanted.pieces[0]]
    else:
        yield from ((tuple(path), at(args, kwargs, path)) for path, _ in wanted.numbers)


def _from_size(path: tuple[Any, ...], given: Any) -> bool | None:
    """Whether a number came from a tensor's size; of what is no such number, nothing."""
    return None if path == ("pieces",) or not isinstance(given, int) else is_told(given)


def _needed(wanted: _Wanted, func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Where the numbers of a call are not what they must be: place, what is given, what must be, and whether a size gave it."""
    if wanted.pieces is not None:
        dim, lengths = wanted.pieces
        try:
            found = [piece.shape[dim] for piece in func(*args, **kwargs)]
        except RuntimeError:
            found = []
        if found != lengths:
            yield ("pieces",), int(args[0].shape[dim]), lengths, None
        return
    for path, new in wanted.numbers:
        given = at(args, kwargs, path)
        if new is not None and given not in (new, -1):
            number = list(map(int, given)) if isinstance(given, list) else None if given is None else int(given)
            yield tuple(path), number, new, _from_size(tuple(path), given)


def rewrites_for(model: nn.Module, structure: Structure, choice: Choice, example: Any) -> dict[str, list[Rewrite]]:
    """The sizes that the model's code gives wrongly now, by module.

    Raises `SecateursError` with module and line where the code cannot run even with the right ones.
    """
    comparing, trace = _Comparing(structure, choice), structure.trace
    with ready(model, trace.fake, lambda name: comparing.stack.append([name, 0]), lambda: comparing.stack.pop()) as fakes:
        inputs = example if fakes is None else changed(example, fakes.of)
        with nullcontext() if fakes is None else fakes.running(), comparing:
            try:
                call(model, inputs)
            except SecateursError:
                raise
            except Exception as problem:  # whatever a model's code raises when its sizes do not fit any more
                raise SecateursError(_told(problem, model)) from problem
    return comparing.rewrites()


def sizes_stay(model: nn.Module, structure: Structure, choice: Choice) -> bool:
    """Whether all sizes that the model's code gives seem to be right as they are, or follow by themselves: nothing is to be replaced."""
    changes = passed(modules_in(model), structure, choice)

    def stays(given: Any, new: Any) -> bool:
        source = getattr(given, "source", None)
        if source is not None:
            path, attribute, place = source
            _, now = changes.get(path, {}).get(attribute, (given, given))
            given = now if place is None or now is given else now[place]
        return new is None or isinstance(given, Measured) or given in (new, -1)

    for size_call in structure.trace.sizes:
        wanted = _wanted(structure, choice, size_call)
        if not all(stays(number.given, new) for number, (_, new) in zip(size_call.numbers, wanted.numbers, strict=True)):
            return False
        before = [value.shape[size_call.pieces.dim] for value in size_call.pieces.tensors] if size_call.pieces else []
        if wanted.pieces is not None and wanted.pieces[1] != before:
            return False
    return True


def _told(problem: Exception, model: nn.Module) -> str:
    """What a model's code complained of, in which module and at which line."""
    first = (str(problem).strip().splitlines() or [""])[0]
    names = {id(module): name for name, module in modules_in(model).items()}
    frames = [frame for frame, _ in walk_tb(problem.__traceback__) if id(frame.f_locals.get("self")) in names]
    theirs = [frame for frame in frames if is_users(frame)] or frames
    if not theirs:
        return f"{type(problem).__name__}: {first}"
    name = names[id(theirs[-1].f_locals["self"])] or type(model).__name__
    return f"{type(problem).__name__}: {first} (in {name}, at {line_of(theirs[-1])})"


def unfused(model: nn.Module, rewrites: Mapping[str, Any]) -> Changes:
    """Torch's encoder layers whose attention is narrower now must not take their fused path, which knows only the usual shape."""
    layers = ((name, module) for name, module in modules_in(model).items() if isinstance(module, nn.TransformerEncoderLayer))
    return {
        name: {"activation_relu_or_gelu": [layer.activation_relu_or_gelu, 0]}
        for name, layer in layers
        if f"{name}.self_attn".removeprefix(".") in rewrites and layer.activation_relu_or_gelu
    }
