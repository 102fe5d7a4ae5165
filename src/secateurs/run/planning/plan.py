"""From nodes to programs: which layout each value gets, where it lies, and what each kernel is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from secateurs.nested import Value, leaves
from secateurs.run.kernels.machine import InstructionSet, native_module
from secateurs.run.network.nodes import (
    Activate,
    Add,
    Affine,
    Attention,
    Concat,
    Conv,
    Lstm,
    Mean,
    Multiply,
    Network,
    Node,
    Norm,
    Pool,
    Rotary,
    Scale,
    Torch,
    inputs_of,
    outputs_of,
)
from secateurs.run.planning.buffers import lay_out
from secateurs.run.planning.homes import Homes, Segment, is_image
from secateurs.run.planning.layers import (
    SINGLE,
    Choice,
    as_linear,
    is_pointwise,
    plan_conv,
    plan_lstm,
    plan_pointwise_conv,
    plan_tokens,
    plan_vectors,
    positions_of,
)
from secateurs.run.planning.masked import is_masked, plan_masked_conv
from secateurs.run.planning.tokens import plan_of_tokens
from secateurs.run.planning.weightless import plan_concat, plan_mean, plan_pointwise, plan_pool, share_concatenations


@dataclass
class Plan:
    """What runs one after the other, and the size in floats of the arena that all segments share."""

    items: list[Segment | Node]
    floats: int

    @property
    def between(self) -> Counter[str]:
        """How often which operation is left to torch."""
        return Counter(_called(item) for item in self.items if not isinstance(item, Segment))


def plan(
    network: Network,
    isa: InstructionSet,
    threads: int = 1,
    choices: Mapping[Node, Choice] | None = None,
    direct: bool = True,
) -> Plan:
    """Lay out a network for an instruction set and a number of threads; ``direct``: what is an image of torch in the end is made as such,
    and not in panels first."""
    chosen = {node: (choices or {}).get(node, Choice()) for node in network.nodes}
    homes = Homes(isa, threads, {*network.inputs, *network.constants}, _leaving(network, chosen) if direct else set())
    share_concatenations(homes, network.nodes)
    for node in network.nodes:
        choice = chosen[node]
        if choice.dense or not _is_float(node) or not _planned(homes, node, choice):
            homes.torch(node, inputs_of(node), list(outputs_of(node)))
    for value in results(network):
        homes.tensor(value)
    return Plan(homes.items, lay_out(buffer for buffer in homes.buffers if buffer.first >= 0))


def _called(node: Node) -> str:
    if isinstance(node, Torch):
        packet = getattr(node.function, "overloadpacket", node.function)
        return str(getattr(packet, "__name__", packet))
    return type(node).__name__.lower()


def programs(made: Plan) -> dict[Segment, Any]:
    """The native program of each segment: its buffers are the arena, then what it reads, then what it writes."""
    found = {}
    for segment in (item for item in made.items if isinstance(item, Segment)):
        found[segment] = native_module().Program()
        for index, value in enumerate((*segment.reads, *segment.writes), 1):
            segment.outside[value].index = index
        for _, task in segment.tasks:
            task(found[segment])
    return found


def results(network: Network) -> list[Value]:
    """The values that the network returns, each once."""
    return list(dict.fromkeys(value for _, value in leaves(network.result) if isinstance(value, Value)))


def _leaving(network: Network, chosen: Mapping[Node, Choice]) -> set[Value]:
    """The values that nothing but torch wants."""
    by_kernels = [node for node in network.nodes if not isinstance(node, Torch) and not chosen[node].dense]
    return {value for node in network.nodes for value in outputs_of(node)}.difference(*map(inputs_of, by_kernels))


def _planned(homes: Homes, node: Node, choice: Choice) -> bool:
    """Plan a node in panels or vectors, where there are kernels for it and its input lies so already or may as well."""
    linear = as_linear(node)
    if linear is not None:
        (plan_tokens if positions_of(linear) > SINGLE else plan_vectors)(homes, linear, choice)
    elif isinstance(node, Conv) and is_image(node.x) and is_image(node.out):
        stays = is_pointwise(node) and not homes.is_image(node.x) and node.out not in homes.reserved
        masked = is_masked(homes, node, choice)
        (plan_pointwise_conv if stays else plan_masked_conv if masked else plan_conv)(homes, node, choice)
    elif isinstance(node, Lstm) and node.x.shape[1] <= SINGLE:
        plan_lstm(homes, node, choice)
    elif isinstance(node, Pool) and homes.is_image(node.x):
        plan_pool(homes, node)
    elif isinstance(node, Mean) and homes.is_image(node.x):
        plan_mean(homes, node)
    elif isinstance(node, Concat) and any(map(homes.is_image, node.parts)) and all(map(is_image, node.parts)):
        plan_concat(homes, node)
    elif isinstance(node, (Add, Activate, Affine, Scale)) and homes.is_image(node.x):
        plan_pointwise(homes, node)
    elif isinstance(node, (Norm, Multiply, Add, Rotary, Attention)):
        return plan_of_tokens(homes, node)
    else:
        return False
    return True


def _is_float(node: Node) -> bool:
    """Whether all that it reads and makes is float32, and there is something in it."""
    return all(value.dtype == torch.float32 and all(value.shape) for value in (*inputs_of(node), *outputs_of(node)))
