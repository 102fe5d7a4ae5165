"""Seconds of single layers in ONNX Runtime: it likes widths that the kernels do not care about, and so it must be asked itself."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import torch

from secateurs.run.choosing.tune import described
from secateurs.run.clock.backends import onnx_session
from secateurs.run.clock.memory import read_seconds
from secateurs.run.clock.timing import sampler, torch_threads
from secateurs.run.forecast.predict import Stopwatch, Weighted
from secateurs.run.network.nodes import Conv, inputs_of

ONNX = "ONNX Runtime"
_ROUNDS, _SETTLE = 9, 0.002


def graph_of(layer: Weighted) -> bytes:
    """A layer as a graph of ONNX: the product with its bias, the sum with a residual, and a clamp; other activations are left out.

    >>> from secateurs.nested import Value
    >>> from secateurs.run.network.nodes import Linear
    >>> len(graph_of(Linear("fc", Value((1, 8)), Value((1, 4)), torch.ones(4, 8), None))) > 100
    True
    """
    helper, number = importlib.import_module("onnx.helper"), 1  # TensorProto.FLOAT
    weight = layer.weight.detach()
    held = {"weight": weight if isinstance(layer, Conv) else weight.t().contiguous()}
    if isinstance(layer, Conv):
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach()
        held["bias"] = bias
        pads = [*layer.padding, *layer.padding]
        ways = {"strides": list(layer.stride), "dilations": list(layer.dilation), "group": layer.groups, "pads": pads}
        nodes = [helper.make_node("Conv", ["x", "weight", "bias"], ["product"], **ways)]
    else:
        nodes = [helper.make_node("MatMul", ["x", "weight"], ["product"])]
    last = "product"
    if layer.bias is not None and not isinstance(layer, Conv):
        held["bias"] = layer.bias.detach()
        nodes.append(helper.make_node("Add", [last, "bias"], ["biased"]))
        last = "biased"
    given = [helper.make_tensor_value_info("x", number, layer.x.shape)]
    if layer.residual is not None:
        given.append(helper.make_tensor_value_info("residual", number, layer.residual.shape))
        nodes.append(helper.make_node("Add", [last, "residual"], ["summed"]))
        last = "summed"
    if layer.activation is not None and layer.activation.kind == "clamp":
        nodes.append(helper.make_node("Relu", [last], ["clamped"]))
        last = "clamped"
    made = helper.make_tensor_value_info(last, number, layer.out.shape)
    to_array = importlib.import_module("onnx.numpy_helper").from_array
    numbers = [to_array(np.ascontiguousarray(tensor.numpy(), np.float32), name) for name, tensor in held.items()]
    graph = helper.make_graph(nodes, "layer", given, [made], numbers)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString())


def seconds_in_onnx(layer: Weighted, clock: Stopwatch) -> float:
    """What a layer takes there alone, remembered by its shapes: the first quartile, since other work makes some calls longer."""
    key = f"{ONNX} {described(layer)} {layer.activation is None} {clock.threads}"
    return clock.memory.recall(key, read_seconds, partial(_measured, layer, clock.threads))


def _measured(layer: Weighted, threads: int) -> float:
    runtime: Any = importlib.import_module("onnxruntime")
    session = onnx_session(runtime, graph_of(layer), threads)
    inputs = tuple(torch.zeros(value.shape) for value in inputs_of(layer))
    with torch_threads(threads):
        sample = sampler(partial(session, inputs), settle=_SETTLE)
        return float(np.quantile([sample() for _ in range(_ROUNDS)], 0.25))
