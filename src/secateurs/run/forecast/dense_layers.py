"""Seconds of single layers in ONNX Runtime: it likes widths that the kernels do not care about, and so it must be asked itself."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.run.choosing.tune import described
from secateurs.run.clock.backends import onnx_session
from secateurs.run.clock.memory import read_seconds
from secateurs.run.clock.timing import interleaved, sampler, torch_threads
from secateurs.run.forecast.predict import Stopwatch, Weighted
from secateurs.run.network.nodes import Conv

ONNX = "ONNX Runtime"
_ROUNDS, _SETTLE, _MANY = 9, 0.002, 7
_LEAST = 1e-7


def graph_of(layer: Weighted, many: int) -> bytes:
    """A layer so many times, as a graph of ONNX: all read the same input, and each adds its result to that of the one before.

    What comes and goes at the ends, in layouts of their own, is there once, so that two such graphs tell what one layer takes between
    others. Of activations, only that there is one is looked at: it is a clamp.

    >>> from secateurs.nested import Value
    >>> from secateurs.run.network.nodes import Linear
    >>> len(graph_of(Linear("fc", Value((1, 8)), Value((1, 4)), torch.ones(4, 8), None), 2)) > 100
    True
    """
    helper, number = importlib.import_module("onnx.helper"), 1  # TensorProto.FLOAT
    to_array = importlib.import_module("onnx.numpy_helper").from_array
    nodes, held, last = [], dict[str, Tensor](), None
    for turn in range(many):
        held[f"weight{turn}"] = torch.full_like(layer.weight, 1.0 + turn)  # not alike, or they would be one to the optimizer
        held[f"bias{turn}"] = torch.full(layer.weight.shape[:1], 1.0 + turn)
        name = f"product{turn}"
        if isinstance(layer, Conv):
            ways = {"strides": layer.stride, "dilations": layer.dilation, "group": layer.groups, "pads": layer.padding * 2}
            nodes.append(helper.make_node("Conv", ["x", f"weight{turn}", f"bias{turn}"], [name], **ways))
        else:
            held[f"weight{turn}"] = held[f"weight{turn}"].t()
            nodes.append(helper.make_node("MatMul", ["x", f"weight{turn}"], [f"bare{turn}"]))
            nodes.append(helper.make_node("Add", [f"bare{turn}", f"bias{turn}"], [name]))
        if last is not None:
            nodes.append(helper.make_node("Add", [name, last], [f"sum{turn}"]))
            name = f"sum{turn}"
        if layer.activation is not None:
            nodes.append(helper.make_node("Relu", [name], [f"clamped{turn}"]))
            name = f"clamped{turn}"
        last = name
    given, made = (helper.make_tensor_value_info(name, number, value.shape) for name, value in (("x", layer.x), (last, layer.out)))
    numbers = [to_array(np.ascontiguousarray(tensor.detach().numpy(), np.float32), name) for name, tensor in held.items()]
    graph = helper.make_graph(nodes, "layers", [given], [made], numbers)
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString())


def seconds_in_onnx(layer: Weighted, clock: Stopwatch) -> float:
    """What a layer takes there between others, remembered by its shapes."""
    key = f"{ONNX} between others {described(layer)} {layer.activation is None} {clock.threads}"
    return clock.memory.recall(key, read_seconds, partial(_measured, layer, clock.threads))


def _measured(layer: Weighted, threads: int) -> float:
    """The difference between many and one, by the first quartile of each, since other work makes some calls longer."""
    runtime: Any = importlib.import_module("onnxruntime")
    x = torch.zeros(layer.x.shape)
    with torch_threads(threads):
        made = {many: onnx_session(runtime, graph_of(layer, many), threads) for many in (1, _MANY)}
        samplers = {str(many): sampler(partial(session, (x,)), settle=_SETTLE) for many, session in made.items()}
        timed = interleaved(samplers, _ROUNDS, seconds=10.0)
    one, many = (float(np.quantile(timed[str(number)].samples, 0.25)) for number in made)
    return max((many - one) / (_MANY - 1), _LEAST)
