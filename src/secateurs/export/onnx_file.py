"""ONNX files, run in onnxruntime before they take their place."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.export.error import ExportError
from secateurs.export.placing import placing
from secateurs.export.program import Captured, Exported, capture, first_line, quiet
from secateurs.nested import tensors_in

_ONE_FILE = 2**31 - 2**24
"""Bytes of weights that one protobuf file can hold beside the graph."""


def onnx(
    model: nn.Module,
    example: Any,
    path: str | Path,
    *,
    dynamic: Sequence[int] = (),
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    sparse: bool = False,
    external_data: bool = False,
    tolerance: float | None = None,
) -> Exported:
    """Write a model in evaluation mode as ONNX, run it in onnxruntime, and tell how far its answers are from the model's.

    ``example`` is what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments; what is no tensor
    in it is fixed. ``dynamic`` lists the dimensions of the inputs that may have other sizes than the example's: ``(0,)`` the batch,
    ``(0, 1)`` batch and length; another size is then tried too. Outputs of tuples, mappings and dataclasses become tensors named
    after their places. ``sparse=True`` stores a weight as its nonzeros and their places where that is smaller (float32: from 2/3
    zeros on); onnxruntime unfolds it when it loads, so it saves bytes of the file and neither memory nor time.
    ``external_data=True``, and any model above 2 GB, puts the weights into ``PATH.data`` beside the file. ``tolerance`` is a part of an
    output's largest number, by default 2e-4 for float32, 2e-2 for float16, none for whole numbers.

    Nothing is written unless onnxruntime's answers are the model's: the old file stays. Needs ``pip install 'secateurs[onnx]'``.

    Raises `ExportError` where a package is missing, the model cannot be exported, or an output is no tensor or differs; `TaskError`
    where the model rejects the example; `NonFiniteError` where it answers with NaN; `WriteError` where the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = onnx(nn.Linear(3, 2), torch.ones(1, 3), f"{folder}/model.onnx", dynamic=(0,))
    >>> made.inputs, made.outputs, made.largest_difference < 1e-6
    (('input',), ('output',), True)
    """
    needed("onnx"), needed("onnxruntime"), needed("onnxscript")
    if sparse and external_data:
        raise ExportError("ONNX keeps sparse weights in the file itself: say either sparse=True or external_data=True")
    _require_dtypes(model)
    with placing(path) as file:
        captured = capture(model, example, dynamic)
        program = _converted(captured, input_names, output_names, opset)
        _write(program, file, sparse, external_data or (not sparse and _bytes(model) > _ONE_FILE))
        inputs, outputs = _checked(captured, file, tolerance)
        size = sum(written.stat().st_size for written in file.parent.iterdir())
    return Exported(Path(path), size, inputs, tuple(outputs), outputs, int(program.model.opset_imports[""]))


def needed(name: str) -> Any:
    """An optional package; raises `ExportError` that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"writing ONNX needs the package {name} ({error}): pip install 'secateurs[onnx]'") from error


def _require_dtypes(model: nn.Module) -> None:
    """Raise `ExportError` for weights of a type that onnxruntime has no kernels for on the CPU, where the file is checked."""
    for name, parameter in model.named_parameters() if isinstance(model, nn.Module) else ():
        if parameter.is_floating_point() and parameter.dtype not in (torch.float16, torch.float32, torch.float64):
            raise ExportError(
                f"{name} is {parameter.dtype}, for which onnxruntime has no kernels on the CPU, so the file could not be checked: "
                "export a copy in float16 or float32, model.half() or model.float()"
            )


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _converted(
    captured: Captured, input_names: Sequence[str] | None, output_names: Sequence[str] | None, opset: int | None
) -> torch.onnx.ONNXProgram:
    """The graph in ONNX's operators; raises `ExportError` where torch has no translation, or names or opset do not fit."""
    outputs = _names("output_names", output_names, captured.outputs) or captured.outputs
    inputs = _names("input_names", input_names, [""] * len(captured.sizes))
    sizes = [dict(each) for each in captured.sizes] if any(captured.sizes) else None
    try:
        with quiet():
            program = torch.onnx.export(
                captured.program,
                verbose=False,
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                opset_version=opset,
                dynamic_shapes=sizes,
            )
    except Exception as error:
        reason = first_line(_root(error))
        raise ExportError(f"the model cannot be written as ONNX: {reason}") from error
    if program is None or opset not in (None, program.model.opset_imports[""]):
        known = "" if program is None else f"; it wrote opset {program.model.opset_imports['']}"
        raise ExportError(f"torch cannot write this model in opset {opset}{known}: leave opset= out, or say 18 or later")
    return program


def _root(error: BaseException) -> BaseException:
    """What an exception came of in the end: the operator that torch cannot translate."""
    return error if error.__cause__ is None else _root(error.__cause__)


def _names(what: str, given: Sequence[str] | None, there: Sequence[str]) -> list[str] | None:
    if given is not None and (isinstance(given, str) or len(given) != len(there) or len(set(given)) != len(given)):
        known = f" ({', '.join(there)})" if all(there) else ""
        raise ExportError(f"{what}={given!r}: {len(there)} different names are needed, one for each tensor{known}")
    return None if given is None else list(given)


def _write(program: torch.onnx.ONNXProgram, file: Path, sparse: bool, external_data: bool) -> None:
    if not sparse:
        program.save(file, external_data=external_data)
        return
    proto = program.model_proto
    _make_sparse_(proto.graph)
    needed("onnx").save(proto, file)


def _make_sparse_(graph: Any) -> None:
    """Each weight as its nonzeros and their places, eight bytes for each place, where that is smaller."""
    helper, numpy_helper = needed("onnx.helper"), needed("onnx.numpy_helper")
    for dense in list(graph.initializer):
        values = numpy_helper.to_array(dense)
        places = values.reshape(-1).nonzero()[0]
        if values.dtype.kind == "f" and places.size * (values.itemsize + 8) < values.nbytes:
            kept = numpy_helper.from_array(values.reshape(-1)[places], name=dense.name)
            graph.sparse_initializer.append(helper.make_sparse_tensor(kept, numpy_helper.from_array(places), values.shape))
            graph.initializer.remove(dense)


def _checked(captured: Captured, file: Path, tolerance: float | None) -> tuple[tuple[str, ...], dict[str, float]]:
    """The names of the file's inputs, and how much each of its outputs differs from the model's."""
    session, where = _opened(file), f"onnxruntime {needed('onnxruntime').__version__}"
    differences = captured.differences(lambda trial: _run(session, trial), where, tolerance)
    inputs, outputs = ([each.name for each in of] for of in (session.get_inputs(), session.get_outputs()))
    return tuple(inputs), dict(zip(outputs, differences.values(), strict=True))


def _opened(file: Path) -> Any:
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"onnxruntime {runtime.__version__} refuses the file: {first_line(error).replace(str(file), file.name)}; "
            "it has kernels for float32 (model.float()), fewer for other types, and knows opset 18 and some later ones (opset=18)"
        ) from error


def _run(session: Any, inputs: Any) -> list[Tensor]:
    names = [each.name for each in session.get_inputs()]
    feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors_in(inputs), strict=True)}
    try:
        return [torch.from_numpy(found) for found in session.run(None, feed)]
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feed.items())
        raise ExportError(f"onnxruntime cannot run the file with {shapes}: {first_line(error)}") from error
