"""Runs a plan: programs of kernels, and torch for what lies between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secateurs.nested import Value
from secateurs.run.kernels.machine import native_module
from secateurs.run.network.error import CompileError
from secateurs.run.network.interpret import program
from secateurs.run.network.nodes import Network, Node, Torch
from secateurs.run.network.plain import accepting, in_memory
from secateurs.run.planning.homes import Segment
from secateurs.run.planning.plan import Plan, programs, results

Kernels = Callable[[int, Sequence[Tensor]], list[Tensor]]

_empty = partial(torch.empty, dtype=torch.float32, device=torch.device("cpu"))
"""What kernels write to, whatever torch's defaults are."""


class _Here(threading.local):
    """What one thread's run uses: where its arena lies, and the seconds of each step if they are asked for."""

    address = 0
    steps: list[tuple[str, float]] | None = None


class Runner:
    """A plan made ready to run: `run(*tensors)` gives the tensors of the network's result, in the order of `gives`.

    ``shares``: it takes turns with torch, which runs what lies between the kernels.

    Several threads may run it at once: the first uses the arena that is kept, the others one of their own.
    """

    def __init__(self, network: Network, made: Plan, threads: int) -> None:
        self.threads = threads
        self.bytes = made.floats * 4
        self.programs = programs(made)
        self._here = _Here()
        self.gives = results(network)
        self._arena = native_module().Arena(self.bytes)
        self._free = threading.Lock()
        self._whole = self._only(network, made)
        asks = not all(isinstance(item, Segment) for item in made.items)
        self.shares = asks and bool(self.programs)
        if self._whole is None:
            nodes: list[Node] = [self._node(item) if isinstance(item, Segment) else item for item in made.items]
            self._run = program(nodes, network.inputs, self.gives, network.constants)
            if asks:
                self._run = _as_recorded(self._run)

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        mine = self._free.acquire(blocking=False)
        try:
            arena = self._arena if mine else native_module().Arena(self.bytes)
            if self._whole is not None:
                return self._whole(arena.address, tensors)
            self._here.address = arena.address
            return self._run(*tensors)
        finally:
            if mine:
                self._free.release()

    def straight(self, network: Network) -> Callable[[Any], Tensor | None] | None:
        """For a network that is kernels only, from one tensor to one tensor: all that a call takes, in one function. It returns nothing
        where the input is another one than expected, or another thread uses the arena: then the long way is to be gone."""
        wanted, made = network.example, network.result
        if self._whole is None or not isinstance(wanted, Value) or not isinstance(made, Value):
            return None
        accepts, out, threads = accepting(wanted.shape, wanted.dtype), made.shape, self.threads
        (native,) = self.programs.values()
        execute, arena, free = native.run, self._arena.address, self._free

        def call(x: Any, keeps_the_arena: Runner = self) -> Tensor | None:
            if not accepts(x) or not free.acquire(blocking=False):
                return None
            try:
                held, y = x.contiguous(), _empty(out)
                here, there = held.data_ptr(), y.data_ptr()
                if not here or not there:
                    return None
                execute((arena, here, there), threads)
                return y
            finally:
                free.release()

        return call

    def timed(self, *tensors: Tensor) -> list[tuple[str, float]]:
        """One run, with the seconds of each step of the kernels."""
        steps: list[tuple[str, float]] = []
        self._here.steps = steps
        try:
            self(*tensors)
            return steps
        finally:
            self._here.steps = None

    def _only(self, network: Network, made: Plan) -> Kernels | None:
        """The kernels of a network that is nothing else: they need no function around them, which would cost more than some layers."""
        if len(made.items) != 1 or not isinstance(made.items[0], Segment):
            return None
        segment = made.items[0]
        alike = segment.reads == list(network.inputs) and segment.writes == self.gives
        return self._kernels(segment) if alike else None

    def _node(self, segment: Segment) -> Torch:
        """A segment as one function of torch tensors."""
        kernels, here = self._kernels(segment), self._here

        def run(*tensors: Tensor) -> Any:
            made = kernels(here.address, [*map(Tensor.float, tensors)])  # torch's defaults may have changed since
            return made[0] if len(made) == 1 else made

        return Torch("kernels", run, tuple(segment.reads), {}, tuple(segment.writes))

    def _kernels(self, segment: Segment) -> Kernels:
        """A segment as a function of the arena's address and the tensors that it reads, which makes those that it writes."""
        native = self.programs[segment]
        shapes = [value.shape for value in segment.writes]
        here, threads, names = self._here, self.threads, [name for name, _ in segment.tasks]

        def run(arena: int, tensors: Sequence[Tensor]) -> list[Tensor]:
            held = [*map(in_memory, tensors)]
            made = [*map(_empty, shapes)]
            addresses = [arena, *map(Tensor.data_ptr, held), *map(Tensor.data_ptr, made)]
            if not all(addresses):
                raise CompileError("a tensor without memory cannot be given to kernels: run the model that was compiled instead")
            if here.steps is None:
                native.run(addresses, threads)
            else:
                here.steps += zip(names, native.timed(addresses, threads), strict=True)
            return made

        return run


def _as_recorded(run: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Operations of torch without gradients, and in the precision in which they were recorded, whatever is set around the call."""

    def recorded(*tensors: Tensor) -> tuple[Tensor, ...]:
        if not torch.is_autocast_enabled("cpu"):
            return run(*tensors)
        with torch.autocast("cpu", enabled=False):
            return run(*tensors)

    return torch.no_grad()(recorded)
