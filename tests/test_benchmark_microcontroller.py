"""What `benchmarks/microcontroller.py` measures, and what it makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import firmware_cmsis as cmsis
import firmware_curves as curves
import firmware_networks as networks
import firmware_page as page
import firmware_pruned as pruning
import firmware_scalpel as scalpel
import microcontroller as benchmark
import numpy as np
import pytest
import torch
from torch import nn

from secateurs.firmware.emulator import missing
from secateurs.integers.build import built
from secateurs.integers.quantise import quantised, to_integers
from secateurs.integers.ranges import calibrated
from secateurs.integers.reference import values_of

ON_DATA = pytest.mark.skipif(
    "SECATEURS_DATA" not in os.environ, reason="SECATEURS_DATA is not set: it names the folder with the weights"
)
IN_EMULATOR = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")
TINY = {
    networks.ResNet8: (78_186, (3, 32, 32), 10),
    networks.MobileNet: (216_322, (3, 96, 96), 2),
    networks.Autoencoder: (267_928, (640,), 640),
}
"""Numbers to train, the input, the outputs."""


@pytest.mark.parametrize("make", TINY)
def test_mlperfs_networks_have_its_sizes(make: Any):
    count, shape, outputs = TINY[make]
    model = make().eval()
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == count
    assert model(torch.zeros(2, *shape)).shape == (2, outputs)


@ON_DATA
@pytest.mark.parametrize("name", ["mobilenet", "autoencoder"])
def test_published_weights_fit(name: str):
    about = networks.NETWORKS[name]()
    assert not about.model.training and len(about.calibration) == 4
    with torch.no_grad():
        assert torch.isfinite(about.model(about.calibration[0])).all()


def places() -> dict[str, scalpel.Place]:
    return {place.name: place for place in scalpel.places()}


@pytest.mark.parametrize("name", ["LeNet-5, conv2", "LeNet-300-100, fc2"])
@pytest.mark.parametrize("level", [0.5, 0.75, 0.9])
def test_every_pattern_leaves_as_many_weights_as_it_says(name: str, level: float):
    place = places()[name]
    whole = place.layer.weight.size
    for pattern, layer, _ in scalpel.cases(place, level):
        left = np.count_nonzero(layer.weight) if pattern != scalpel.NODES else layer.weight.size
        assert left / whole == pytest.approx(1 - level, abs=0.06), pattern
        tall, wide = scalpel.BLOCKS.get(pattern, (1, 1))
        flat = layer.weight.reshape(len(layer.weight), -1)
        blocks = np.pad(flat != 0, ((0, -len(flat) % tall), (0, -flat.shape[1] % wide)))
        blocks = blocks.reshape(len(blocks) // tall, tall, -1, wide).any((1, 3))
        assert blocks.mean() == pytest.approx(1 - level, abs=0.06) or pattern in (scalpel.NODES, *scalpel.OF_FOUR)


def test_what_goes_is_the_smallest():
    weight = np.array([[1.0, -5.0, 3.0, 0.5], [2.0, 2.0, 0.1, 0.1]])
    assert scalpel.pruned(weight, 1, 1, 0.5).tolist() == [[0, -5, 3, 0], [2, 2, 0, 0]]
    assert scalpel.pruned(weight, 1, 2, 0.5).tolist() == [[1, -5, 0, 0], [2, 2, 0, 0]]
    assert scalpel.pruned(weight, 2, 2, 0.5).tolist() == [[1, -5, 0, 0], [2, 2, 0, 0]]
    assert scalpel.of_four(weight, 0.75).tolist() == [[0, -5, 0, 0], [0, 2, 0, 0]] or scalpel.of_four(weight, 0.75)[1, 0] == 2


@IN_EMULATOR
def test_a_layer_is_counted_in_the_emulator():
    place = places()["LeNet-300-100, fc3"]
    dense, sparse = scalpel.measured(place, 0.0), scalpel.measured(place, 0.9)
    assert set(dense) == {"dense"}
    assert {"CSR", *scalpel.BLOCKS, scalpel.NODES} == set(sparse)
    assert all(0 < each["instructions"] < 2 * dense["dense"]["instructions"] for each in sparse.values())


def test_where_a_pattern_begins_to_pay():
    assert curves.crossing({0.5: 120.0, 0.9: 80.0}, 100.0) == "70%"
    assert curves.crossing({0.5: 90.0, 0.9: 80.0}, 100.0) == "below 50%"
    assert curves.crossing({0.5: 190.0, 0.9: 180.0}, 100.0) == "not up to 90%"


def test_calls_of_cmsis_nn_take_our_layers():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    x = torch.randn(8, 2, 12, 12)
    network = built(model, x)
    network = quantised(network, calibrated(network, [x]))
    values: dict[str, Any] = {}
    given = to_integers(network.inputs[0].packed(x[:1].numpy()), network.inputs[0].array)
    values_of(network, [given], lambda array, numbers: values.update({array.name: numbers}))
    text = cmsis.program([layer for layer in network.layers if isinstance(layer, cmsis.Known)], values)
    for name in ("arm_convolve_wrapper_s8", "arm_depthwise_conv_wrapper_s8", "arm_max_pool_s8", "arm_fully_connected_wrapper_s8"):
        assert text.count(name) == 1
    assert "{2, 2}, {1, 1}, {1, 1}" in text  # stride, padding and dilation of the first
    assert text.count("static int32_t multiplier_") == 3  # not constant: its types are not


def test_without_cmsis_nn_and_the_publishers_file_it_says_so(capsys: pytest.CaptureFixture[str]):
    given: Any = type("Given", (), {"cmsis": None, "tflite": None, "again": False})
    benchmark.beside_cmsis(given)
    benchmark.tflite(given)
    said = capsys.readouterr().out
    assert "--cmsis FOLDER" in said and "--tflite FILE" in said


def test_a_name_tells_what_was_done():
    assert pruning.Way().name == "dense"
    assert pruning.Way(0.6, 0.8, True).name == "channels 0.60, blocks 0.80, taught"
    assert len({way.name for way in pruning.WAYS}) == len(pruning.WAYS)


def test_varied_words_are_words():
    draw = torch.Generator().manual_seed(0)
    words = torch.randn(6, 1, 49, 10, generator=draw) * 20
    found = pruning.varied(words, draw)
    assert found.shape == words.shape and not torch.equal(found, words)
    assert pruning.varied(words * 0, draw).std() == pytest.approx(1, abs=0.1)


def cell(accuracy: float, instructions: float, flash: int) -> dict[str, Any]:
    told = {f"{kind}, {part}": accuracy for kind in ("float", "int8") for part in ("choosing", "kept back", "reported")}
    steps = [["pw", "dense", 0.0, instructions]]
    return told | {"instructions": instructions, "flash": flash, "sram": 10, "macs": 5, "steps": steps}


def test_the_smallest_that_keeps_the_floor_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = {
        "dense": cell(92, 100, 100),
        "channels 0.80": cell(91, 80, 80),
        "channels 0.60": cell(90, 60, 90),
        "channels 0.40": cell(89.9, 40, 40),
        "channels 0.40, taught": cell(90.5, 40, 40),
    }
    for name, each in made.items():
        path = tmp_path / "ds_cnn" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(each))
    assert page.chosen(tmp_path) == {
        "fewest instructions, least squares": "channels 0.60",
        "least flash, least squares": "channels 0.80",
        "fewest instructions, taught": "channels 0.40, taught",
        "least flash, taught": "channels 0.40, taught",
    }
    written: list[str] = []
    monkeypatch.setattr(page, "write", lambda name, *parts: written.extend(parts))
    monkeypatch.setattr(page, "DOCS", tmp_path)
    page.report(tmp_path)
    assert (tmp_path / "microcontroller.png").exists()
    assert any("channels 0.60 | 90.00 | 90.00 | 90 | 10 | 60" in part for part in written)
