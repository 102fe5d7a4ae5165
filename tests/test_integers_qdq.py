"""Networks in integers as ONNX files: onnxruntime's answers against the reference's."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateurs import models
from secateurs.integers.build import built
from secateurs.integers.layers import (
    LIMITS,
    Add,
    Array,
    Concat,
    Conv,
    Cut,
    Face,
    Mean,
    Multiply,
    Network,
    Pad,
    Pool,
    Reorder,
    Softmax,
    Table,
    View,
    read,
)
from secateurs.integers.qdq import onnx_model, steps_apart
from secateurs.integers.quantise import from_integers, quantised, to_integers
from secateurs.integers.ranges import calibrated
from secateurs.integers.reference import run, values_of
from secateurs.types import SecateursError

pytest.importorskip("onnxruntime", reason="ONNX files are checked in onnxruntime: pip install 'secateurs[onnx]'")


def _answers(model, inputs):
    session = importlib.import_module("onnxruntime").InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def _face(name: str, array: Array) -> Face:
    height, width, channels = array.shape
    return Face(name, array, (1, channels, height, width), (0, 2, 3, 1), True)


def layer_by_layer(whole: Network, inputs: list[np.ndarray]) -> set[type]:
    """Each layer as a file of its own, given the integers that it is given: a step apart at most, and only some numbers.

    Tables of int16 are lines between 513 numbers, which a bend of the function in between shows.
    """
    exact = whole.kind == "int8"
    values: dict[str, np.ndarray] = {}
    values_of(
        whole,
        [to_integers(each, face.array) for each, face in zip(inputs, whole.inputs, strict=True)],
        lambda array, numbers: values.__setitem__(array.name, numbers),
    )
    for layer in whole.layers:
        arrays = list({array.name: array for array in read(layer)}.values())
        faces = tuple(_face(f"in{place}", array) for place, array in enumerate(arrays))
        out = _face("out", layer.y)
        model = onnx_model(Network(faces, (out,), (layer,)))
        given = {face.name: face.unpacked(from_integers(values[face.array.name], face.array)) for face in faces}
        (found,) = _answers(model, given)
        steps = np.rint(out.packed(found) / layer.y.scale) + layer.y.zero - values[layer.y.name]
        most = 1 if exact or not isinstance(layer, Table) else 16
        share = (0.02 if exact else 0.3) if isinstance(layer, Conv) else 0.2 if exact else 0.5
        assert np.abs(steps).max() <= most, (layer.name, np.abs(steps).max())
        assert (steps != 0).mean() <= share, (layer.name, (steps != 0).mean())
    return {type(layer) for layer in whole.layers}


class Everything(nn.Module):
    """A layer of each kind, with all that it can have."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, stride=2, padding=(1, 2), dilation=(2, 1))
        self.two = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.three = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.squeeze = nn.Linear(8, 8)
        self.fc = nn.Linear(40, 24)

    def forward(self, x):
        x = F.relu6(self.one(F.pad(x, (0, 1, 0, 1), value=0.5)))
        y = F.hardswish(self.two(x))
        z = F.silu(self.three(F.max_pool2d(x, 3, 1, 1)))
        both = F.relu(y + z) - F.avg_pool2d(x, 3, 1, 1)
        gate = F.hardsigmoid(self.squeeze(both.mean((2, 3))))
        x = both * gate[:, :, None, None]
        x = torch.cat([x, torch.sigmoid(y), torch.tanh(z), F.gelu(y), F.gelu(z, approximate="tanh")], 1)
        x = x.reshape(x.shape[0], 2, 20, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        x = F.avg_pool2d(x[:, 4:34:3], 3, 2, 1, count_include_pad=False)
        x = F.avg_pool2d(F.pad(x, (0, 0, 0, 0, 0, 2)), 2, 1, ceil_mode=True)[:, :10]
        return self.fc(x.flatten(1)).softmax(1), x.clamp(-0.25, 0.5)


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_each_kind_of_layer_is_a_step_apart_at_most(kind):
    model, inputs = Everything().eval(), torch.randn(24, 3, 11, 7)
    network = built(model, inputs)
    whole = quantised(network, calibrated(network, [inputs]), kind)
    packed = [whole.inputs[0].packed(inputs.numpy())]
    kinds = layer_by_layer(whole, packed)
    assert {Conv, Pool, Mean, Add, Multiply, Concat, Table, Softmax, Pad, Cut, Reorder, View} <= kinds
    model_file = onnx_model(whole)
    assert model_file.opset_import[0].version == (17 if kind == "int8" else 21)
    wanted = run(whole, [to_integers(packed[0], whole.inputs[0].array)])
    for face, found, right in zip(whole.outputs, _answers(model_file, {"input": inputs.numpy()}), wanted, strict=True):
        apart = face.packed(found) / face.array.scale + face.array.zero - right
        assert np.abs(apart).mean() < (1 if kind == "int8" else 8)


def test_a_network_in_float32_becomes_plain_layers():
    model, inputs = Everything().eval(), torch.randn(5, 3, 11, 7)
    network = built(model, inputs)
    assert steps_apart(network, onnx_model(network), [inputs.numpy()]) < 1e-5


@pytest.mark.parametrize("kind", ["int8", "int16"])
@pytest.mark.parametrize(
    ("make", "shape", "most"),
    [
        (lambda: models.ds_cnn(width=0.5), (6, 1, 49, 10), 4),
        (models.resnet_20, (4, 3, 32, 32), 6),
        (lambda: models.mobilenet_v2(width=0.35), (2, 3, 32, 32), 40),
        (models.lenet_300_100, (4, 1, 28, 28), 2),
        (models.squeezenet_1_0, (2, 3, 48, 48), 4),
    ],
    ids=["ds_cnn", "resnet_20", "mobilenet_v2", "lenet_300_100", "squeezenet"],
)
def test_models_answer_as_the_reference_but_for_some_steps(make, shape, most, kind):
    """Less than what quantisation changes."""
    torch.manual_seed(0)
    model, inputs = make().eval(), torch.randn(shape)
    network = built(model, inputs)
    whole = quantised(network, calibrated(network, [inputs]), kind)
    apart = steps_apart(whole, onnx_model(whole), [inputs.numpy()])
    assert apart <= most * (1 if kind == "int8" else 4)


def test_inputs_of_several_kinds_and_names():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv1d(3, 4, 3), nn.Linear(5, 4)

        def forward(self, sound, more):
            return {"sum": self.conv(sound).mean(2) + self.fc(more), "more": self.fc(more)}

    sound, more = torch.randn(7, 3, 9), torch.randn(7, 5)
    network = built(Two(), (sound, more))
    whole = quantised(network, calibrated(network, [((sound, more), None)]))
    model = onnx_model(whole)
    assert steps_apart(whole, model, [sound.numpy(), more.numpy()]) <= 1
    assert [value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input] == ["samples", "samples"]


def test_one_sample_without_a_dimension_for_samples():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(28, 2))
    inputs = torch.randn(3, 9)
    network = built(model, inputs)
    whole = quantised(network, calibrated(network, [inputs]))
    assert steps_apart(whole, onnx_model(whole), [inputs.numpy()]) <= 1


def test_weights_stand_there_as_integers_once():
    model, inputs = models.ds_cnn().eval(), torch.randn(4, 1, 49, 10)
    network = built(model, inputs)
    whole = quantised(network, calibrated(network, [inputs]))
    file = onnx_model(whole)
    sizes = {each.name: (each.data_type, each.dims) for each in file.graph.initializer}
    onnx = importlib.import_module("onnx")
    for layer in whole.layers:
        if isinstance(layer, Conv):
            assert sizes[f"{layer.name}.weight"][0] == onnx.TensorProto.INT8
            assert sizes[f"{layer.name}.bias"][0] == onnx.TensorProto.INT32
    assert len(file.SerializeToString()) < 50_000
    assert LIMITS["int8"] == (-128, 127)


def test_recurrent_layers_are_refused_by_name():
    class Speaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.lstm(x)[0])

    network = built(Speaks(), torch.randn(1, 5, 3))
    with pytest.raises(SecateursError, match="lstm: LSTM and GRU in integers have no like"):
        onnx_model(network)


def test_a_missing_package_is_told(monkeypatch):
    network = built(nn.Linear(3, 2), torch.randn(1, 3))
    with warnings.catch_warnings():
        monkeypatch.setitem(importlib.import_module("sys").modules, "onnx", None)
        with pytest.raises(SecateursError, match=r"needs the package onnx .*pip install 'secateurs\[onnx\]'"):
            onnx_model(network)
