"""The stack of blocks in a model: the modules that the residual stream passes through one after the other, found from the trace."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from secateurs.forward import modules_in, parameters_in
from secateurs.graph.calls import ModulePass
from secateurs.graph.ops import Trace
from secateurs.graph.trace import trace_of
from secateurs.types import KindError, SecateursError

_BY_HAND = 'name the module that holds them, for example blocks="model.layers"'


@dataclass(frozen=True)
class Blocks(Sequence[str]):
    """The names of all blocks in the order in which they are called; ``stacks`` holds those apart that follow on each other.

    Within a stack the first tensor that a block gives is, untouched, what the next one is given. A decoder has one stack, an
    encoder-decoder two, each with a stream of its own.
    """

    stacks: tuple[tuple[str, ...], ...]

    def __getitem__(self, index: Any) -> Any:
        return [name for stack in self.stacks for name in stack][index]

    def __len__(self) -> int:
        return sum(map(len, self.stacks))

    def of(self, name: str) -> str | None:
        """The block in which a module, a parameter or a site lies.

        >>> blocks = Blocks((("layers.0", "layers.1"),))
        >>> blocks.of("layers.1.mlp.up.weight"), blocks.of("layers.10"), blocks.of("layers.0:heads")
        ('layers.1', None, 'layers.0')
        """
        path = name.split(":")[0].split("[")[0].split(".")
        return next((each for end in range(1, len(path) + 1) if (each := ".".join(path[:end])) in self), None)


def blocks_of(model: nn.Module, example: Any, blocks: str | Iterable[str] | None = None) -> Blocks:
    """The stacks of blocks that a model's residual stream passes through, such as the layers of a transformer.

    Found by structure: modules of one kind with others inside, beside each other in one parent, each called once, where the first tensor
    that one call gives is what the next is given, of one size and dtype. Where such stacks lie in each other, the one with the most
    weights counts; others beside it count too (the encoder and the decoder of T5). ``blocks`` says by hand in which module they are, or
    in which modules (``"model.layers"``, ``["encoder.block", "decoder.block"]``), which need hold no more than one block each.

    Raises `SecateursError` where there is no such stack, or the modules named are none; `TaskError` where the model rejects the example.

    >>> import torch
    >>> block = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    >>> list(blocks_of(nn.Sequential(nn.Linear(3, 4), nn.Sequential(block(), block())), torch.zeros(1, 3)))
    ['1.0', '1.1']
    """
    return blocks_in(model, trace_of(model, example), blocks)


def blocks_in(model: nn.Module, trace: Trace, blocks: str | Iterable[str] | None = None) -> Blocks:
    """As `blocks_of`, from a trace of the model."""
    modules, passes = modules_in(model), _Passes(trace.passes)
    if blocks is not None:
        return Blocks(tuple(_named(name, modules, passes) for name in _names(blocks)))
    sizes = {id(parameter): parameter.numel() for parameter in parameters_in(model).values()}
    found = [stack for parent in modules for stack in _stacks_in(parent, modules, passes)]
    shares = {stack: sum(sizes.get(id(each), 0) for name in stack for each in modules[name].parameters()) for stack in found}
    chosen: list[tuple[str, ...]] = []
    for stack in sorted(found, key=lambda stack: -shares[stack]):  # stable: of equal ones the outer
        if not any(_meet(one, other) for one in stack for kept in chosen for other in kept):
            chosen.append(stack)
    if not chosen:
        raise SecateursError(
            f"{type(model).__name__} has no stack of blocks: no two modules alike, beside each other, of which one is given what the "
            f"other gives; {_BY_HAND}"
        )
    return Blocks(tuple(sorted(chosen, key=lambda stack: passes.order[stack[0]])))


class _Passes:
    """The calls of modules in one pass: of those that are called once, what goes in and what comes out."""

    def __init__(self, passes: Sequence[ModulePass]) -> None:
        self.count = Counter(each.module for each in passes)
        self.once = {each.module: each for each in passes if self.count[each.module] == 1}
        self.order = {each.module: place for place, each in enumerate(passes)}

    def follow(self, one: str, other: str) -> bool:
        """Whether what one module gives is, untouched, what the other is given."""
        gives = self.once[one].gives
        return bool(gives) and any(value is gives[0] for value in self.once[other].given)

    def keeps_size(self, name: str) -> bool:
        """Whether a module gives a tensor as large as one that it is given."""
        call = self.once[name]
        return any(value.shape == call.gives[0].shape and value.dtype == call.gives[0].dtype for value in call.given)


def _children(parent: str, modules: Mapping[str, nn.Module], passes: _Passes) -> list[str]:
    """The modules in another one that are called once, in the order of their calls."""
    inside = f"{parent}." if parent else ""
    names = [inside + name for name, child in modules[parent]._modules.items() if child is not None]
    return sorted((name for name in names if name in passes.once), key=lambda name: passes.order[name])


def _stacks_in(parent: str, modules: Mapping[str, nn.Module], passes: _Passes) -> Iterator[tuple[str, ...]]:
    """Runs of modules in one parent that are alike and follow on each other."""
    listed = isinstance(modules[parent], nn.ModuleList)
    run: list[str] = []
    for name in _children(parent, modules, passes):
        whole = bool(modules[name]._modules) and bool(passes.once[name].gives) and passes.keeps_size(name)
        if not (whole and run and (listed or type(modules[name]) is type(modules[run[-1]])) and passes.follow(run[-1], name)):
            yield from (tuple(run),) if len(run) > 1 else ()
            run = []
        run += [name] if whole else []
    yield from (tuple(run),) if len(run) > 1 else ()


def _meet(one: str, other: str) -> bool:
    """Whether one of two modules lies in the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _names(blocks: object) -> list[str]:
    names = [blocks] if isinstance(blocks, str) else list(blocks) if isinstance(blocks, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise KindError(f"blocks is {blocks!r}, but must be the name of a module that holds the blocks, or a list of such names")
    return names


def _named(parent: str, modules: Mapping[str, nn.Module], passes: _Passes) -> tuple[str, ...]:
    """The blocks in a module that was named by hand."""
    if parent not in modules:
        holders = [name for name, module in modules.items() if name and len(module._modules) > 1]
        close = difflib.get_close_matches(parent, holders, n=3) or holders[:3]
        raise SecateursError(
            f"blocks={parent!r}: the model has no module of this name; did you mean {', '.join(close) or 'another'}?"
        )
    inside = f"{parent}." if parent else ""
    names = [inside + name for name, child in modules[parent]._modules.items() if child is not None]
    for name in names:
        if name not in passes.once:
            times = f"called {passes.count[name]} times" if name in passes.count else "not called"
            raise SecateursError(
                f"blocks={parent!r}: {name} is {times} in one pass, but each block must be called once; {_BY_HAND}"
            )
    names = sorted(names, key=lambda name: passes.order[name])
    if not names:
        raise SecateursError(f"blocks={parent!r}: this module holds no others; {_BY_HAND}")
    for one, other in pairwise(names):
        if not passes.follow(one, other):
            raise SecateursError(
                f"blocks={parent!r}: {other} is not given the tensor that {one} gives, so they are no stack with one stream; {_BY_HAND}"
            )
    return tuple(names)
