"""Dense runtimes: what a sparse one has to beat, and falls back on. All but torch itself are optional."""

from __future__ import annotations

import copy
import importlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import as_call, call
from secateurs.nested import changed, tensors_in

Runner = Callable[[Any], Any]
"""Takes what the model takes. Torch's give what the model gives, the others a tuple of its tensors."""


class Lent(tuple[Tensor, ...]):
    """Tensors that are good until the next call."""


@dataclass(frozen=True)
class Absent:
    """Why a back end cannot run a model here."""

    reason: str


Backend = Callable[[nn.Module, Any, int], Runner | Absent]
"""``(model, example, threads)``: the example is what the model is called with, and fixes the shapes. How many threads torch has
is a setting of the whole process, so for torch the caller sets it."""


def torch_eager(model: nn.Module, example: Any, threads: int) -> Runner | Absent:
    """torch as it comes, in inference mode.

    >>> torch_eager(nn.Linear(3, 2), torch.ones(1, 3), threads=1)(torch.ones(1, 3)).shape
    torch.Size([1, 2])
    """
    return _inferring(_ready(model))


def torch_channels_last(model: nn.Module, example: Any, threads: int) -> Runner | Absent:
    """torch with channels last in memory; converting the input counts."""
    if not any(parameter.ndim == 4 for parameter in model.parameters()):
        return Absent("the model has no two-dimensional convolution")
    run = _inferring(copy.deepcopy(model).eval().to(memory_format=torch.channels_last))  # type: ignore[call-overload]

    def channels_last(inputs: Any) -> Any:
        return run(changed(inputs, lambda tensor: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor))

    try:
        channels_last(example)  # the model may look at numbers as they lie, by ``view``
    except Exception as error:
        return Absent(_reason(error))
    return channels_last


def torch_frozen(model: nn.Module, example: Any, threads: int) -> Runner | Absent:
    """torch's graph with constants folded, batch normalisation too, in the layouts that oneDNN likes best."""
    named = isinstance(example, Mapping)
    arguments = {"example_kwarg_inputs": dict(example)} if named else {"example_inputs": example}
    try:
        with quiet(), torch.no_grad():
            traced = torch.jit.trace(_ready(model), **arguments, strict=False, check_trace=False)
            run = _inferring(torch.jit.optimize_for_inference(torch.jit.freeze(traced)))
            run(example), run(example)  # the second call is the optimised one
    except Exception as error:
        return Absent(_reason(error))
    return run


def onnx_runtime(model: nn.Module, example: Any, threads: int) -> Runner | Absent:
    """ONNX Runtime, on what ``torch.onnx`` makes of the model, with all of its optimisations."""
    try:
        runtime = importlib.import_module("onnxruntime")
        if type(model) is nn.Linear and isinstance(example, Tensor):
            graph = _product(model, example)  # which torch.onnx takes seconds for
        else:
            importlib.import_module("onnxscript")
            positional, keywords = as_call(example)
            with quiet(), torch.no_grad():
                program = torch.onnx.export(_ready(model), positional, kwargs=keywords, dynamo=True, verbose=False)
            if program is None:
                return Absent("torch.onnx made nothing of the model")
            graph = program.model_proto.SerializeToString()
        run = onnx_session(runtime, graph, threads)
        run(example)  # it may reject a dtype
        return run
    except Exception as error:
        return Absent(_reason(error))


def _product(layer: nn.Linear, example: Tensor) -> bytes:
    """A linear layer as a graph of ONNX."""
    onnx = importlib.import_module("onnx")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    out = (*example.shape[:-1], layer.out_features)
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y" if layer.bias is None else "product"])]
    held = {"weight": layer.weight.detach().t().contiguous()}
    if layer.bias is not None:
        held["bias"] = layer.bias.detach()
        nodes.append(helper.make_node("Add", ["product", "bias"], ["y"]))
    given, made = (helper.make_tensor_value_info(name, number, shape) for name, shape in (("x", example.shape), ("y", out)))
    numbers = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in held.items()]
    graph = helper.make_graph(nodes, "layer", [given], [made], numbers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def onnx_session(runtime: Any, graph: bytes | str, threads: int) -> OnnxSession:
    """ONNX Runtime on a graph that is there already, in memory or in a file."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    return OnnxSession(runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]))


class OnnxSession:
    """A session of ONNX Runtime, called as a caller of its own would do it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [each.name for each in session.get_inputs()]

    def __call__(self, inputs: Any) -> tuple[Tensor, ...]:
        tensors = (inputs,) if isinstance(inputs, Tensor) else tensors_in(inputs)
        feed = {name: tensor.numpy() for name, tensor in zip(self._names, tensors, strict=True)}
        return tuple(map(torch.from_numpy, self._session.run(None, feed)))

    def bound(self, like: Tensor) -> Callable[[Tensor], Tensor | None]:
        """For plain tensors of one shape and dtype, in and out: what is asked anew in each call is settled here, which saves
        microseconds. It gives nothing where another thread is within, or the tensor has no memory."""
        (made,) = self(like)
        held, session, (into,), (out,) = (
            torch.empty_like(like).contiguous(),
            self._session,
            self._names,
            self._session.get_outputs(),
        )
        binding = session.io_binding()
        for bind, name, tensor in ((binding.bind_input, into, held), (binding.bind_output, out.name, made)):
            bind(name, "cpu", 0, tensor.numpy().dtype.type, tuple(tensor.shape), tensor.data_ptr())
        run, free, copied, into_held = session.run_with_iobinding, threading.Lock(), made.clone, held.copy_

        def call(x: Tensor) -> Tensor | None:
            if not x.data_ptr() or not free.acquire(blocking=False):
                return None
            try:
                into_held(x)
                run(binding)
                return copied()
            finally:
                free.release()

        return call


def openvino(model: nn.Module, example: Any, threads: int) -> Runner | Absent:
    """OpenVINO, for the latency of one stream, in float32 also where the processor has bfloat16."""
    try:
        package = importlib.import_module("openvino")
        shapes = [tuple(tensor.shape) for tensor in tensors_in(example)]
        with quiet(), torch.no_grad():
            graph = package.convert_model(_ready(model), example_input=example, input=shapes)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # it would pin the caller's thread too
        }
        request = package.compile_model(graph, "CPU", settings).create_infer_request()
        run = partial(_inferred, request)
        run(example)
    except Exception as error:
        return Absent(_reason(error, line=-1))  # its first line is a place in C++
    return run


def _inferred(request: Any, inputs: Any) -> Lent:
    found = request.infer([tensor.numpy() for tensor in tensors_in(inputs)], share_inputs=True, share_outputs=True)
    return Lent(map(torch.from_numpy, found.values()))


DENSE: Mapping[str, Backend] = {
    "torch": torch_eager,
    "torch, channels last": torch_channels_last,
    "torch, frozen": torch_frozen,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
}


def _ready(model: nn.Module) -> nn.Module:
    """The model itself where it is in evaluation mode, else a copy that is."""
    return copy.deepcopy(model).eval() if any(module.training for module in model.modules()) else model


def _inferring(model: nn.Module) -> Runner:
    def run(inputs: Any) -> Any:
        with torch.inference_mode():
            return call(model, inputs)

    return run


def _reason(error: Exception, line: int = 0) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install {error.name}"
    lines = [each.strip() for each in str(error).splitlines() if each.strip()] or [""]
    return f"{type(error).__name__}: {lines[line]}"[:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes and warnings that converters write about their own inside; what matters comes as an exception."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
