"""What a model multiplies in one pass, layer by layer, and what a plan would leave of that: what most costs are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.costs.elements import checked, elements
from secateurs.costs.operands import as_read
from secateurs.forward import parameters_in, torch_masks
from secateurs.graph import Axis, Dim, Op, Structure, Value, analyse, axis_names, extent
from secateurs.types import Plan, Term

Numbers = tuple[tuple[int, tuple[str, ...]], ...]
"""A size as a sum of numbers times the units that some sites keep."""


@dataclass(frozen=True)
class Work:
    """What one product of a pass does: of a weight with activations, or (without a ``parameter``) of activations with each other.

    ``groups`` times, ``inputs`` × ``kernel`` numbers are summed up for each of ``outputs``, at so many ``positions`` (of a convolution, in
    its output; samples included). ``taken`` and ``made`` are the numbers of the activations that it reads and of those that it writes.
    Of its ``weights``, ``nonzeros`` are not zero, and of those that it takes a fraction ``busy`` is not. ``unit`` is how many of its
    weights a plan removes together (1 where it says nothing), ``bits`` how wide it lets them be. ``space`` is the height and width (or
    length) of what a convolution takes, ``grid`` that of its positions, ``stride`` how far it moves. Where there is no plan, ``weight``
    holds the numbers as ``(groups, outputs, inputs, *kernel)``; ``None`` where others are mixed into them before they are multiplied.
    """

    layer: str
    parameter: str | None
    groups: int
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    positions: int
    taken: int
    made: int
    nonzeros: float
    unit: int = 1
    bits: int | None = None
    space: tuple[int, ...] = ()
    grid: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    busy: float = 1.0
    weight: Tensor | None = None

    @property
    def weights(self) -> int:
        """How many numbers the weight has; of a product of activations, what stands in its place."""
        return self.groups * self.inputs * self.outputs * prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiplications with each of them, zero or not."""
        return self.weights * self.positions

    @property
    def density(self) -> float:
        """The fraction of the weights that is not zero."""
        return self.nonzeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Layer:
    """One product of a pass, with sizes that a plan's units make: ``left`` tells what they leave."""

    name: str
    parameter: str | None
    groups: Numbers
    inputs: Numbers
    outputs: Numbers
    kernel: tuple[int, ...]
    positions: Numbers
    taken: tuple[Numbers, ...]
    made: Numbers
    space: tuple[int, ...]
    grid: tuple[int, ...]
    stride: tuple[int, ...]
    plan: Plan | None
    weight: Tensor | None
    stays: float
    owner: str | None
    _whole: int

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """All sites of the plan on which it depends."""
        numbers = (self.groups, self.inputs, self.outputs, self.positions, *self.taken, self.made)
        found = {site for each in numbers for _, sites in each for site in sites}
        if self.plan is not None and self.parameter is not None:
            found.update(self._elements.sites)
        return tuple(sorted(found | {self.owner} if self.owner else found))

    def left(self, counts: Mapping[str, int]) -> Work:
        """What it does where each site keeps so many units."""
        groups, inputs, outputs = (size_of(each, counts) for each in (self.groups, self.inputs, self.outputs))
        share = self._share(counts)
        gone = share == 0
        return Work(
            self.name,
            self.parameter,
            0 if gone else groups,
            inputs,
            outputs,
            self.kernel,
            size_of(self.positions, counts),
            0 if gone else sum(size_of(each, counts) for each in self.taken),
            0 if gone else size_of(self.made, counts),
            groups * inputs * outputs * prod(self.kernel) * share,
            self._unit,
            None if self.plan is None or self.parameter is None else self.plan.bits_of(self.parameter),
            self.space,
            self.grid,
            self.stride,
            weight=self.weight,
        )

    def _share(self, counts: Mapping[str, int]) -> float:
        """The fraction of the weights of the layer that is left which are not zero: of masks, blocks or experts that a plan names."""
        if self.owner is not None:
            return float(counts[self.owner])
        if self.plan is None or self.parameter is None:
            return self.stays
        if self.parameter in self.plan.extents and self._typed:
            return 1.0
        return self._elements.value(counts) / self._whole if self._whole else 0.0

    @cached_property
    def _elements(self) -> Term:
        assert self.plan is not None and self.parameter is not None
        return elements(self.parameter, self._whole, self.plan)

    @cached_property
    def _typed(self) -> bool:
        """Whether the sizes themselves tell what a plan leaves of the weight."""
        return any(sites for each in (self.groups, self.inputs, self.outputs) for _, sites in each)

    @cached_property
    def _unit(self) -> int:
        if self.plan is None or self.parameter is None or self.parameter in self.plan.extents:
            return 1
        return max((share.elements.get(self.parameter, 1) for share in self.plan.shares.values()), default=1)


def known_axes(structure: Structure, plan: Plan | None) -> dict[Axis, str]:
    """The axes whose sizes a plan tells, by its sites."""
    names = axis_names(structure) if plan is not None and plan.extents else {}
    return {axis: name for axis, name in names.items() if plan is not None and name in plan.shares}


def numbers_of(dims: Sequence[Dim], known: Mapping[Axis, str]) -> Numbers:
    """The product of some dimensions."""
    found: Numbers = ((1, ()),)
    for dim in dims:
        found = tuple((a * b, (*x, *y)) for a, x in found for b, y in extent(dim, known))
    return found


def size_of(numbers: Numbers, counts: Mapping[str, int]) -> int:
    """How large something is where each site keeps so many units."""
    return sum(number * prod([counts[site] for site in sites]) for number, sites in numbers)


@dataclass(frozen=True)
class Workload:
    """The products of one pass of a model. ``under`` a plan, their sizes are told by its units; ``None`` stands for the model as it is."""

    structure: Structure
    sizes: Mapping[str, int]
    weights: Mapping[str, Tensor]

    def under(self, plan: Plan | None) -> tuple[Layer, ...]:
        """Its layers; raises `PlanError` where the plan is one of another model."""
        known = self._checked(plan)
        typing = self.structure.typing
        return tuple(
            self._layer(self.structure.trace.ops[place], dims, known, plan)
            for place, dims in zip(typing.multiplying, typing.products, strict=True)
        )

    def _checked(self, plan: Plan | None) -> dict[Axis, str]:
        if plan is not None:
            checked(plan, dict(self.sizes))
        return known_axes(self.structure, plan)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What each product is called, in order."""
        return tuple(layer.name for layer in self.under(None))

    def _layer(self, op: Op, dims: Sequence[Dim], known: Mapping[Axis, str], plan: Plan | None) -> Layer:
        parts = _parts(op, dims)
        operands = [value for value in parts.operands if not self._names(value)]
        named = [name for value in parts.operands for name in self._names(value)]
        parameter = max(named, key=lambda name: self.sizes[name], default=None)
        product = parts.turned if parameter is not None and self._names(parts.operands[0]) else parts

        def numbers(which: Sequence[Dim]) -> Numbers:
            return numbers_of(which, known)

        stored = None if parameter is None or plan is not None else self.weights[parameter]
        trace = self.structure.trace
        weight = None if stored is None else as_read(trace, op, parts.operands, trace.parameters[parameter or ""], stored)
        return Layer(
            op.module if parameter is None else parameter.removesuffix(".weight"),
            parameter,
            numbers(product.groups),
            numbers(product.inputs),
            numbers(product.outputs),
            tuple(dim.size for dim in product.kernel),
            numbers(product.positions),
            tuple(numbers(self.structure.typing.types[value]) for value in operands),
            numbers(self.structure.typing.types[op.outputs[0]]),
            product.space,
            product.grid,
            product.stride,
            plan,
            weight,
            1.0 if stored is None else float(torch.count_nonzero(stored)) / max(1, stored.numel()),
            _owner(op, plan) if parameter is None else None,
            self.sizes[parameter] if parameter is not None else 0,
        )

    def stored(self, plan: Plan | None) -> dict[str, Layer]:
        """Each parameter of two dimensions or more once, as it is stored: as the first product that reads all of it does, if any.

        Raises `PlanError` where the plan is one of another model.
        """
        layers: dict[str, Layer] = {}
        for place, layer in enumerate(self.under(plan)):
            if layer.parameter is not None and self._whole[place]:
                layers.setdefault(layer.parameter, layer)
        known = self._checked(plan)
        many = {name: dims for name, dims in self.structure.parameters.items() if len(dims) > 1}
        return {name: layers.get(name) or self._unread(name, dims, known, plan) for name, dims in many.items()}

    @cached_property
    def _whole(self) -> list[bool]:
        """Of each product, whether its weight is all of a parameter."""
        return [
            layer.parameter is not None
            and size_of(layer.groups, {}) * size_of(layer.inputs, {}) * size_of(layer.outputs, {}) * prod(layer.kernel)
            == self.sizes[layer.parameter]
            for layer in self.under(None)
        ]

    def _unread(self, name: str, dims: Sequence[Dim], known: Mapping[Axis, str], plan: Plan | None) -> Layer:
        """A parameter that no product reads as a whole: its first dimension by all others."""
        one, none = ((1, ()),), ((0, ()),)
        weight = None if plan is not None else self.weights[name].flatten(1)[None]
        stays = 1.0 if weight is None else float(torch.count_nonzero(weight)) / max(1, weight.numel())
        rows, columns = numbers_of(dims[:1], known), numbers_of(dims[1:], known)
        label = name.removesuffix(".weight")
        return Layer(label, name, one, columns, rows, (), none, (), none, (), (), (), plan, weight, stays, None, self.sizes[name])

    def _names(self, value: Value) -> frozenset[str]:
        return self.structure.typing.fixed.get(value, frozenset())


def _owner(op: Op, plan: Plan | None) -> str | None:
    """The unit of a plan of whole blocks or halves of them with which a product of activations goes."""
    units = () if plan is None or not plan.extents else (name for name, share in plan.shares.items() if share.units == 1)
    return next((name for name in units if f"{op.module}.".startswith(f"{name}.")), None)


@dataclass(frozen=True)
class _Parts:
    """The dimensions over which an operation runs, by what they are to the weight that is its second operand."""

    operands: tuple[Value, ...]
    groups: Sequence[Dim]
    inputs: Sequence[Dim]
    outputs: Sequence[Dim]
    positions: Sequence[Dim]
    kernel: Sequence[Dim] = ()
    space: tuple[int, ...] = ()
    grid: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def turned(self) -> _Parts:
        """The same, to a weight that is the first operand."""
        if self.kernel or self.space:
            return self
        return _Parts(self.operands, self.groups, self.inputs, self.positions, self.outputs)


def _parts(op: Op, dims: Sequence[Dim]) -> _Parts:
    values = tuple(value for value in op.args if isinstance(value, Value))
    if op.name == "convolution":
        kernel = values[1].shape[2:]
        batch = len(dims) - 3 - 2 * len(kernel)
        group, inputs, outputs = dims[batch : batch + 3]
        ends = dims[batch + 3 + len(kernel) :]
        space = values[0].shape[-len(kernel) :]
        grid = space if op.argument("transposed", False) else op.outputs[0].shape[-len(kernel) :]
        stride = tuple(op.argument("stride", (1,)))
        return _Parts(
            values[:2], [group], [inputs], [outputs], [*dims[:batch], *ends], dims[batch + 3 : -len(kernel)], space, grid, stride
        )
    if op.name == "linear":
        return _Parts(values[:2], [], [dims[-2]], [dims[-1]], dims[:-2])
    if op.name == "_trilinear":
        return _Parts(values[:3], [], dims[-2:], [dims[-3]], dims[:-3])
    if op.name.startswith(("add", "badd")):
        values = values[1:]
    if op.name in ("mm", "addmm", "grouped_mm", "_grouped_mm"):
        return _Parts(values[:2], [], [dims[1]], [dims[2]], [dims[0]])
    if op.name in ("bmm", "baddbmm", "addbmm"):
        return _Parts(values[:2], [dims[0]], [dims[2]], [dims[3]], [dims[1]])
    if op.name in ("mv", "addmv"):
        return _Parts(values[:2], [], [dims[1]], [], [dims[0]])
    return _Parts(values[:2], [], dims[:1], dims[1:], [])


def workload(model: nn.Module, example: Any) -> Workload:
    """What a model multiplies in one pass of the example.

    Raises `TaskError` where the model rejects it.

    >>> [layer] = workload(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 10, 10)).under(None)
    >>> work = layer.left({})
    >>> work.inputs, work.outputs, work.kernel, work.positions, work.taken, work.made, work.macs
    (3, 8, (3, 3), 100, 300, 800, 21600)
    """
    held, hidden = parameters_in(model), torch_masks(model)
    return Workload(
        analyse(model, example),
        {name: parameter.numel() for name, parameter in held.items()},
        {name: parameter.detach() * hidden[name] if name in hidden else parameter.detach() for name, parameter in held.items()},
    )
