"""A network in integers as an ONNX file: float32 layers between pairs of QuantizeLinear and DequantizeLinear, as other runtimes read it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from secateurs.integers.layers import (
    LIMITS,
    Add,
    Array,
    Concat,
    Conv,
    Cut,
    Face,
    Layer,
    Mean,
    Multiply,
    Network,
    Numbers,
    Pad,
    Pool,
    Recurrent,
    Reorder,
    Softmax,
    Table,
    View,
    read,
    written,
)
from secateurs.integers.qdq_functions import table
from secateurs.integers.quantise import to_integers
from secateurs.integers.reference import ends_of, run
from secateurs.types import SecateursError


def onnx_model(network: Network) -> Any:
    """A network in int8 or int16 as an ``onnx.ModelProto`` that takes and gives float32 tensors of the model's shapes.

    Each array is quantised with its scale and zero and taken back at once, weights are int8 with a scale for each output, biases int32
    (float32 where arrays are int16, whose biases have 64 bits). The number of samples is free where the network was built of samples. A
    network in float32 becomes plain layers. int8 takes opset 17, int16 opset 21.

    What a runtime answers differs from `reference.run`: it rounds products in float32 where integers are multiplied by factors of 31 bits
    and rounded twice, so of each layer's numbers some in a thousand are a step apart (where arrays are int16, whose factors have 16 bits,
    some in a hundred), and behind many layers that is several steps: less than what quantisation itself changes.

    Raises `SecateursError` for LSTM and GRU, which have no such pairs inside, and where the package onnx is missing.

    >>> from secateurs.integers.build import built
    >>> from secateurs.integers.quantise import quantised
    >>> from torch import nn, randn
    >>> network = built(nn.Linear(3, 2), randn(1, 3))
    >>> model = onnx_model(quantised(network, {name: (-1.0, 1.0) for name in network.arrays}))
    >>> [node.op_type for node in model.graph.node].count("QuantizeLinear")
    2
    """
    refused = [layer.name for layer in network.layers if isinstance(layer, Recurrent)]
    if refused:
        raise SecateursError(
            f"{', '.join(refused)}: LSTM and GRU in integers have no like in ONNX's pairs of QuantizeLinear and DequantizeLinear; "
            "write the model in float32 with secateurs.export.onnx, or as C"
        )
    graph = Graph(_needed("onnx"))
    for face in network.inputs:
        _into(graph, face)
    for layer in network.layers:
        (y,) = written(layer)
        _RULES[type(layer)](graph, layer, [_value(array) for array in read(layer)], f"{y.name}.exact")
        graph.rounded(f"{y.name}.exact", y)
    for face in network.outputs:
        _out_of(graph, face)
    return graph.model(network)


def steps_apart(network: Network, model: Any, inputs: Sequence[Numbers]) -> float:
    """How far onnxruntime's answers are from `reference.run`'s, in steps of the outputs (in their numbers where they are float32).

    ``model`` is what `onnx_model` made, ``inputs`` are float32 tensors of the model's shapes, one for each face.
    """
    session = _needed("onnxruntime").InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {face.name: each for face, each in zip(network.inputs, inputs, strict=True)})
    given = [to_integers(face.packed(each), face.array) for face, each in zip(network.inputs, inputs, strict=True)]
    apart = 0.0
    for face, made, wanted in zip(network.outputs, found, run(network, given), strict=True):
        steps = face.packed(made) / face.array.scale + face.array.zero - wanted
        apart = max(apart, float(np.abs(steps).max(initial=0.0)))
    return apart


def _needed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SecateursError(f"writing ONNX needs the package {name} ({error}): pip install 'secateurs[onnx]'") from error


@dataclass
class Graph:
    """Nodes and constants while they are written; every array is (samples, channels, height, width)."""

    onnx: Any
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    opset: int = 17

    def node(self, operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(operation, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, numbers: Any) -> str:
        self.constants[name] = self.onnx.numpy_helper.from_array(np.asarray(numbers), name)
        return name

    def rounded(self, exact: str, array: Array) -> None:
        """Float numbers as those of an array, and back to what these mean."""
        if array.kind == "float32":
            self.node("Identity", [exact], _value(array))
            return
        if array.kind == "int16":
            self.opset = 21
        scale = self.constant(f"{array.name}.scale", np.float32(array.scale))
        zero = self.constant(f"{array.name}.zero", np.array(array.zero, array.kind))
        whole = self.node("QuantizeLinear", [exact, scale, zero], f"{array.name}.{array.kind}")
        self.node("DequantizeLinear", [whole, scale, zero], _value(array))

    def model(self, network: Network) -> Any:
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "secateurs", self.inputs, self.outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        found = helper.make_model(graph, opset_imports=opsets, ir_version=10 if self.opset > 19 else 8, producer_name="secateurs")
        self.onnx.checker.check_model(found)
        return found


def _value(array: Array) -> str:
    """The tensor with what an array means."""
    return f"{array.name}.meant"


# ---------------------------------------------------------------- what goes in and out

_TO_IMAGE = (0, 3, 1, 2)
_FROM_IMAGE = (0, 2, 3, 1)


def _shape(face: Face) -> list[Any]:
    return ["samples", *face.shape[1:]] if face.batched else list(face.shape)


def _into(graph: Graph, face: Face) -> None:
    float32 = graph.onnx.TensorProto.FLOAT
    graph.inputs.append(graph.onnx.helper.make_tensor_value_info(face.name, float32, _shape(face)))
    now = face.name
    if len(face.order) != 4 or face.order != _FROM_IMAGE:
        now = _turned(graph, now, face.order, f"{face.name}.turned")
        now = _reshaped(graph, now, (-1, *face.array.shape), f"{face.name}.rows")
        now = _turned(graph, now, _TO_IMAGE, f"{face.name}.image")
    graph.rounded(now, face.array)


def _out_of(graph: Graph, face: Face) -> None:
    now, name = _value(face.array), face.name
    if name in {each.name for each in graph.inputs}:
        name = f"{name}.out"
    if len(face.order) != 4 or face.order != _FROM_IMAGE:
        lying = [face.shape[dim] for dim in face.order]
        now = _turned(graph, now, _FROM_IMAGE, f"{name}.rows")
        now = _reshaped(graph, now, (-1, *lying[1:]) if face.batched else lying, f"{name}.lying")
        now = _turned(graph, now, np.argsort(face.order).tolist(), f"{name}.turned")
    graph.node("Identity", [now], name)
    graph.outputs.append(graph.onnx.helper.make_tensor_value_info(name, graph.onnx.TensorProto.FLOAT, _shape(face)))


def _turned(graph: Graph, x: str, order: Sequence[int], name: str) -> str:
    return x if list(order) == sorted(order) else graph.node("Transpose", [x], name, perm=list(order))


def _reshaped(graph: Graph, x: str, shape: Sequence[int], name: str) -> str:
    return graph.node("Reshape", [x, graph.constant(f"{name}.shape", np.array(shape, np.int64))], name)


# ---------------------------------------------------------------- layers


def _conv(graph: Graph, layer: Conv, inputs: Sequence[str], output: str) -> None:
    weight = graph.constant(f"{layer.name}.weight", np.ascontiguousarray(layer.weight.transpose(0, 3, 1, 2)))
    bias: Numbers = layer.bias
    if layer.weight_scale is not None:
        scale = layer.weight_scale.astype(np.float32)
        scales = graph.constant(f"{layer.name}.weight.scale", scale)
        zeros = graph.constant(f"{layer.name}.weight.zero", np.zeros(len(scale), np.int8))
        weight = graph.node("DequantizeLinear", [weight, scales, zeros], f"{layer.name}.weight.meant", axis=0)
    name = f"{layer.name}.bias"
    if layer.weight_scale is None:
        biases = graph.constant(name, bias)
    elif bias.dtype == np.int32:
        units = graph.constant(f"{name}.scale", scale * np.float32(layer.x.scale))
        zeros = graph.constant(f"{name}.zero", np.zeros(len(bias), np.int32))
        biases = graph.node("DequantizeLinear", [graph.constant(name, bias), units, zeros], f"{name}.meant", axis=0)
    else:
        biases = graph.constant(name, (bias * layer.weight_scale * layer.x.scale).astype(np.float32))
    top, bottom, left, right = layer.padding
    sizes = {"kernel_shape": layer.kernel, "strides": layer.stride, "dilations": layer.dilation, "pads": (top, left, bottom, right)}
    _clamped(graph, layer, output, lambda to: graph.node("Conv", [*inputs, weight, biases], to, group=layer.groups, **sizes))


def _clamped(graph: Graph, layer: Conv | Add, output: str, write: Callable[[str], str]) -> None:
    """Sums, and the bounds of a layer that those of its numbers do not imply."""
    y, (least, most) = layer.y, LIMITS.get(layer.y.kind, (-np.inf, np.inf))
    low, high = (layer.low - y.zero) * y.scale, (layer.high - y.zero) * y.scale
    if layer.low <= least and layer.high >= most:
        write(output)
    elif low == 0 and layer.high >= most:
        graph.node("Relu", [write(f"{output}.sums")], output)
    else:
        bounds = [
            "" if not inside else graph.constant(f"{output}.{name}", np.float32(bound))
            for name, bound, inside in (("low", low, layer.low > least), ("high", high, layer.high < most))
        ]
        graph.node("Clip", [write(f"{output}.sums"), *bounds], output)


def _pool(graph: Graph, layer: Pool, inputs: Sequence[str], output: str) -> None:
    top, bottom, left, right = ends_of(layer)
    given: dict[str, Any] = {"kernel_shape": layer.window, "strides": layer.stride, "pads": (top, left, bottom, right)}
    if layer.dilation != (1, 1):
        given["dilations"] = layer.dilation
        graph.opset = max(graph.opset, 19 if layer.average else 17)
    if layer.average:
        graph.node("AveragePool", inputs, output, count_include_pad=int(layer.counts_padding), **given)
    else:
        graph.node("MaxPool", inputs, output, **given)


def _mean(graph: Graph, layer: Mean, inputs: Sequence[str], output: str) -> None:
    graph.node("GlobalAveragePool", inputs, output)


def _add(graph: Graph, layer: Add, inputs: Sequence[str], output: str) -> None:
    _clamped(graph, layer, output, lambda to: graph.node("Add" if layer.sign > 0 else "Sub", inputs, to))


def _multiply(graph: Graph, layer: Multiply, inputs: Sequence[str], output: str) -> None:
    graph.node("Mul", inputs, output)


def _concat(graph: Graph, layer: Concat, inputs: Sequence[str], output: str) -> None:
    graph.node("Concat", inputs, output, axis=1)


def _softmax(graph: Graph, layer: Softmax, inputs: Sequence[str], output: str) -> None:
    graph.node("Softmax", inputs, output, axis=1)


def _pad(graph: Graph, layer: Pad, inputs: Sequence[str], output: str) -> None:
    (top, bottom, left, right), (before, after) = layer.padding, layer.channels
    pads = graph.constant(f"{output}.pads", np.array([0, before, top, left, 0, after, bottom, right], np.int64))
    value = graph.constant(f"{output}.value", np.float32((layer.value - layer.x.zero) * layer.x.scale))
    graph.node("Pad", [*inputs, pads, value], output)


def _cut(graph: Graph, layer: Cut, inputs: Sequence[str], output: str) -> None:
    start, step = np.array(layer.start, np.int64), np.array(layer.step, np.int64)
    end = start + step * (np.array(layer.y.shape, np.int64) - 1) + 1
    parts = {"start": start, "end": end, "axes": np.array([2, 3, 1], np.int64), "step": step}
    graph.node("Slice", [*inputs, *(graph.constant(f"{output}.{name}", each) for name, each in parts.items())], output)


def _reorder(graph: Graph, layer: Reorder, inputs: Sequence[str], output: str) -> None:
    now = _turned(graph, inputs[0], _FROM_IMAGE, f"{output}.rows")
    now = _reshaped(graph, now, (-1, *layer.sizes), f"{output}.sizes")
    now = _turned(graph, now, (0, *(place + 1 for place in layer.order)), f"{output}.ordered")
    _reshaped(graph, now, (-1, *layer.y.shape), f"{output}.after")
    graph.node("Transpose", [f"{output}.after"], output, perm=_TO_IMAGE)


def _view(graph: Graph, layer: View, inputs: Sequence[str], output: str) -> None:
    now = _turned(graph, inputs[0], _FROM_IMAGE, f"{output}.rows")
    _reshaped(graph, now, (-1, *layer.y.shape), f"{output}.after")
    graph.node("Transpose", [f"{output}.after"], output, perm=_TO_IMAGE)


_RULES: dict[type[Layer], Callable[[Graph, Any, Sequence[str], str], None]] = {
    Conv: _conv,
    Pool: _pool,
    Mean: _mean,
    Add: _add,
    Multiply: _multiply,
    Concat: _concat,
    Table: table,
    Softmax: _softmax,
    Pad: _pad,
    Cut: _cut,
    Reorder: _reorder,
    View: _view,
}
