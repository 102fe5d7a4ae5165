"""A piece of a decoder made ready to run: one program of kernels, and what looks up words before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateurs.run.decoding.pieces import Piece
from secateurs.run.kernels.machine import InstructionSet, native_module
from secateurs.run.network.error import CompileError
from secateurs.run.network.interpret import program
from secateurs.run.network.nodes import Node, outputs_of
from secateurs.run.planning.homes import Segment
from secateurs.run.planning.layers import Choice
from secateurs.run.planning.plan import plan, programs


class ReadyPiece:
    """Runs up to ``count`` tokens that begin at a position: what the head takes of each, (count, channels), good until the next call.

    ``tables`` have a row for each position, and ``kept`` are the keys and values of each layer, into which it writes.
    """

    def __init__(
        self,
        piece: Piece,
        isa: InstructionSet,
        threads: int,
        chosen: Mapping[Node, Choice],
        tables: Sequence[Tensor],
        kept: Sequence[Tensor],
    ) -> None:
        network = piece.network
        made = plan(network, isa, threads, chosen)
        *front, last = made.items
        if not isinstance(last, Segment) or any(isinstance(item, Segment) for item in front):
            left = ", ".join(made.between)
            raise CompileError(f"not all steps between the words and the logits have kernels (torch would run {left})")
        nodes: list[Node] = [item for item in front if not isinstance(item, Segment)]
        by_front = {value for node in nodes for value in outputs_of(node)}
        looked_up = [value for value in last.reads if value in by_front]
        ids, position, *_ = network.inputs
        self._ids = torch.zeros((1, piece.count), dtype=torch.int64)
        self._position = torch.zeros(1)
        self._tables = tables
        self._front = torch.no_grad()(program(nodes, [ids, *piece.tables], looked_up, network.constants))
        self._native, self._threads, self._count = programs(made)[last], threads, piece.count
        self._arena = native_module().Arena(made.floats * 4)
        ((_, channels),) = {value.shape[1:] for value in last.writes}
        self._hidden = torch.empty(piece.count, channels)
        held = dict(zip([value for past in piece.layers for value in (past.keys, past.values)], kept, strict=True))
        held[position] = self._position
        self._held = [held.get(value, network.constants.get(value)) for value in last.reads]
        self._of_tables = [piece.tables.index(value) if value in piece.tables else None for value in last.reads]
        held_there = [0 if each is None else each.data_ptr() for each in self._held]
        self._addresses = [self._arena.address, *held_there, self._hidden.data_ptr()]
        """What the program takes; those of what depends on the position and on the words are written at each call."""

    def __call__(self, ids: Tensor, position: int) -> Tensor:
        some = ids.shape[0]
        self._ids[0, :some] = ids
        self._position[0] = position
        rows = [table.narrow(-2, position, self._count) for table in self._tables]
        looked_up = iter(self._front(self._ids, *rows))
        made = []
        for place, (held, table) in enumerate(zip(self._held, self._of_tables, strict=True), 1):
            if held is None:
                tensor = rows[table] if table is not None else next(looked_up)
                made.append(tensor.contiguous())
                self._addresses[place] = made[-1].data_ptr()
        self._native.run(self._addresses, self._threads)
        return self._hidden
