"""From operations that write into memory to operations that only make new values, as far as that is the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from secateurs.nested import Value, among, changed, leaves
from secateurs.run.network.nodes import Network, Torch
from secateurs.watch import written_by

aten = torch.ops.aten


_KEEP_DTYPE = ("copy_", "fill_", "masked_fill_", "index_put_", "index_copy_", "index_add_", "scatter_")
"""What they write is of the dtype of what it is written into."""


def settled(network: Network, storage: Mapping[Value, object]) -> Network:
    """The same network without what its result does not need, and without writes where nothing else sees them.

    ``storage`` tells which values share memory. A write into memory that is read under another name later stays as it is, and so does
    its place in the order; ``written`` names the values that share such memory.
    """
    recorded = [node for node in network.nodes if isinstance(node, Torch)]
    made, reads = _times(network, recorded, storage)
    storage, now = dict(storage), dict[Value, Value]()
    nodes: list[Torch] = []

    def current(nest: Any) -> Any:
        return changed(nest, lambda value: now.get(value, value), objects=True)

    for time, node in enumerate(recorded):
        settling = replace(node, args=current(node.args), kwargs=current(node.kwargs))
        plain = _plain(node)
        if plain is not None:
            target = node.args[0]
            others = ((value, last) for value, last in reads[storage[target]].items() if value is not target)
            if not any(made[value] < time < last for value, last in others):
                now[target] = fresh = Value(target.shape, target.dtype)
                storage[fresh] = storage[target]
                settling = replace(settling, function=plain, outputs=(fresh,))
        nodes.append(settling)
    return _alive(replace(network, result=current(network.result)), nodes, storage)


def _times(
    network: Network, nodes: list[Torch], storage: Mapping[Value, object]
) -> tuple[dict[Value, int], dict[object, dict[Value, int]]]:
    """When each value is made, and for each memory, when each of its values is read for the last time."""
    made: dict[Value, int] = defaultdict(lambda: -1)
    reads: dict[object, dict[Value, int]] = defaultdict(dict)
    for time, node in enumerate(nodes):
        made.update(dict.fromkeys(node.outputs, time))
        for value in among((node.args, node.kwargs), Value):
            reads[storage[value]][value] = time
    for _, value in leaves(network.result):
        if isinstance(value, Value):
            reads[storage[value]][value] = len(nodes)
    return made, reads


def _writes(node: Torch) -> bool:
    return isinstance(node.function, torch._ops.OpOverload) and node.function._schema.is_mutable


def _plain(node: Torch) -> Any:
    """The operation that makes a new value instead of writing into its first argument, where that gives the same numbers."""
    if not _writes(node):
        return None
    name = node.function.overloadpacket.__name__
    plain = getattr(getattr(aten, name.removesuffix("_"), None), node.function._overloadname, None)
    if not name.endswith("_") or plain is None or node.outputs or not isinstance(node.args[0], Value):
        return None
    dtype = node.args[0].dtype
    if name in _KEEP_DTYPE:
        return plain
    for value in among((node.args, node.kwargs), Value):
        dtype = torch.promote_types(dtype, value.dtype)
    return plain if dtype == node.args[0].dtype else None


def _alive(network: Network, candidates: list[Torch], storage: Mapping[Value, object]) -> Network:
    """Only the nodes that the result needs; inputs that are written into are copied first."""
    live = {value for _, value in leaves(network.result) if isinstance(value, Value)}
    memories = {storage[value] for value in live}
    nodes: list[Torch] = []
    written: set[object] = set()
    for node in reversed(candidates):
        operands = list(among((node.args, node.kwargs), Value))
        targets = {storage[value] for value in _targets(node)}
        if live.isdisjoint(node.outputs) and memories.isdisjoint(targets):
            continue
        live.update(operands)
        memories.update(storage[value] for value in operands)
        written |= targets
        nodes.append(node)
    nodes.reverse()
    values = {value for node in nodes for value in (*among((node.args, node.kwargs), Value), *node.outputs)}
    for value in network.inputs:
        if storage[value] in written:  # the caller's tensors stay as they are
            copy = Value(value.shape, value.dtype)
            nodes = [
                replace(node, args=_swapped(node.args, value, copy), kwargs=_swapped(node.kwargs, value, copy)) for node in nodes
            ]
            nodes.insert(0, Torch("", aten.clone.default, (value,), {}, (copy,)))
            network = replace(network, result=_swapped(network.result, value, copy))
            values.add(copy)
            storage = {**storage, copy: storage[value]}
    return replace(
        network,
        nodes=list(nodes),
        constants={value: tensor for value, tensor in network.constants.items() if value in live},
        written=frozenset(value for value in values if storage[value] in written),
    )


def _targets(node: Torch) -> list[Value]:
    """The values that a node writes into."""
    return list(among(written_by(node.function, node.args, node.kwargs), Value)) if _writes(node) else []


def _swapped(nest: Any, before: Value, after: Value) -> Any:
    return changed(nest, lambda value: after if value is before else value, objects=True)
