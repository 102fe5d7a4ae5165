"""Quantised models as ONNX files with QuantizeLinear and DequantizeLinear, run in onnxruntime before they take their place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from secateurs.export.error import ExportError
from secateurs.export.onnx_file import needed
from secateurs.export.placing import placing
from secateurs.export.program import Exported
from secateurs.given import MODEL, require
from secateurs.integers.best import best
from secateurs.integers.build import built
from secateurs.integers.layers import LIMITS, Kind
from secateurs.integers.qdq import onnx_model, steps_apart
from secateurs.integers.ranges import packed_batches

_APART = 0.1
"""By how much of the largest number that an output's integers hold onnxruntime may differ: it rounds in float32."""


def qdq(model: nn.Module, example: Any, path: str | Path, *, calibration: Iterable[Any], kind: Kind = "int8") -> Exported:
    """Write a model in integers as ONNX that other runtimes take: the network that `c` writes, in pairs of quantise and dequantise.

    ``calibration`` are batches on which ranges, rounding and biases are chosen; ``kind`` is int8 or int16 (activations; opset 21). The file
    is run in onnxruntime on some of them and compared with the integer reference; ``differences`` is by how much of an output's range the
    two differ. Needs ``pip install 'secateurs[onnx]'``.

    Raises `ExportError` where a package is missing or the answers differ; `UnsupportedError` for layers that small machines do not have;
    `TaskError` for calibration inputs that do not fit or are fewer than 8; `WriteError` where the file cannot be written.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     inputs = torch.randn(32, 8)
    ...     made = qdq(nn.Linear(8, 3), inputs, f"{folder}/small.onnx", calibration=[inputs])
    >>> made.inputs, made.opset, made.largest_difference < 0.02
    (('input',), 17, True)
    """
    require("export.qdq", "model", model, MODEL)
    if kind not in LIMITS:
        raise ExportError(f"export.qdq: kind={kind!r}, but must be 'int8' or 'int16'; float32 is written by export.onnx")
    onnx = needed("onnx")
    needed("onnxruntime")
    network = built(model, example)
    batches = list(calibration)
    whole = best(network, batches, kind).network
    made = onnx_model(whole)
    some = [face.unpacked(each[:8]) for face, each in zip(network.inputs, next(packed_batches(network, batches)), strict=True)]
    least, most = LIMITS[kind]
    apart = steps_apart(whole, made, [np.ascontiguousarray(each) for each in some]) / (most - least)
    if apart > _APART:
        raise ExportError(
            f"onnxruntime's answers differ from the integer reference by {apart:.0%} of an output's range: write the model as C, or in "
            "float32"
        )
    with placing(path) as file:
        onnx.save(made, str(file))
        size = file.stat().st_size
    names = [tuple(face.name for face in faces) for faces in (network.inputs, network.outputs)]
    return Exported(Path(path), size, names[0], names[1], dict.fromkeys(names[1], apart), int(made.opset_import[0].version))
