"""Runs a plan: programs of kernels, and torch for what lies between them."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from secateurs.run.homes import Segment
from secateurs.run.interpret import program
from secateurs.run.machine import native_module
from secateurs.run.nodes import Network, Node, Torch
from secateurs.run.plan import Plan, programs, results


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
        nodes: list[Node] = [self._node(item) if isinstance(item, Segment) else item for item in made.items]
        self._run = program(nodes, network.inputs, self.gives, network.constants)
        asks = not all(isinstance(item, Segment) for item in made.items)
        self.shares = asks and bool(self.programs)
        if asks:
            self._run = torch.no_grad()(self._run)
        self._arena = native_module().Arena(self.bytes)
        self._free = threading.Lock()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        mine = self._free.acquire(blocking=False)
        try:
            arena = self._arena if mine else native_module().Arena(self.bytes)
            self._here.address = arena.address
            return self._run(*tensors)
        finally:
            if mine:
                self._free.release()

    def timed(self, *tensors: Tensor) -> list[tuple[str, float]]:
        """One run, with the seconds of each step of the kernels."""
        steps: list[tuple[str, float]] = []
        self._here.steps = steps
        try:
            self(*tensors)
            return steps
        finally:
            self._here.steps = None

    def _node(self, segment: Segment) -> Torch:
        """A segment as one function of torch tensors."""
        native = self.programs[segment]
        order = [value for value, _ in sorted(segment.outside.items(), key=lambda pair: pair[1].index)]
        places = [order.index(value) + 1 for value in (*segment.reads, *segment.writes)]
        shapes = [value.shape for value in segment.writes]
        here, count, names = self._here, len(order), [name for name, _ in segment.tasks]

        def run(*tensors: Tensor) -> Any:
            held = [tensor.contiguous() for tensor in tensors]
            made = [torch.empty(shape) for shape in shapes]
            addresses = [here.address] + [0] * count
            for place, tensor in zip(places, (*held, *made), strict=True):
                addresses[place] = tensor.data_ptr()
            if here.steps is None:
                native.run(addresses, self.threads)
            else:
                here.steps += zip(names, native.timed(addresses, self.threads), strict=True)
            return made[0] if len(made) == 1 else made

        return Torch("kernels", run, tuple(segment.reads), {}, tuple(segment.writes))
