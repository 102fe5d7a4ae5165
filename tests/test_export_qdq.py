"""Quantised models as ONNX: what onnxruntime answers beside the integer reference, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateurs import export
from secateurs.integers.build import UnsupportedError
from secateurs.types import SecateursError, TaskError

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(150, 4)).eval()


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_onnxruntime_answers_like_the_model(kind, tmp_path: Path) -> None:
    model, inputs = network(), torch.randn(48, 1, 12, 12)
    made = export.qdq(model, inputs[:1], tmp_path / "small.onnx", calibration=[inputs[:32]], kind=kind)
    session = runtime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {made.inputs[0]: inputs.numpy()})
    wanted = model(inputs).detach().numpy()
    assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).max()
    assert made.bytes == made.path.stat().st_size and made.opset == (17 if kind == "int8" else 21)
    assert made.largest_difference < 0.02


def test_what_is_refused_leaves_no_file(tmp_path: Path) -> None:
    path, inputs = tmp_path / "small.onnx", torch.randn(32, 1, 12, 12)
    for error, message, model, changes in (
        (SecateursError, "kind='float32', but must be 'int8' or 'int16'", network(), {"kind": "float32"}),
        (TaskError, "4 calibration samples are too few", network(), {"calibration": [inputs[:4]]}),
        (UnsupportedError, "no kernels for", nn.Sequential(nn.GroupNorm(1, 1)), {}),
        (SecateursError, "LSTM and GRU", nn.Sequential(nn.Flatten(1, 2), nn.GRU(12, 3, batch_first=True)).eval(), {}),
        (SecateursError, "model is 3", 3, {}),
    ):
        with pytest.raises(error, match=message):
            export.qdq(model, inputs[:1], path, **{"calibration": [inputs], **changes})
    assert not path.exists()
