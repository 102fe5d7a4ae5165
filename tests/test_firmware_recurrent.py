"""LSTM and GRU: from torch to layers, from layers to integers, and from these to C."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.firmware.calls import call_of
from secateurs.firmware.emulator import M3, M4, missing
from secateurs.firmware.host import compiler
from secateurs.integers.build import UnsupportedError, built
from secateurs.integers.layers import Array, Network, Recurrent
from secateurs.integers.quantise import from_integers, quantised, to_integers
from secateurs.integers.recurrent import GATE_BITS, STATE_BITS, TANH, sigmoid, tanh
from secateurs.integers.reference import run, values_of
from secateurs.nested import tensors_in
from secateurs.types import SecateursError

sys.path.insert(0, str(Path(__file__).parent))
import firmware_trials as trials

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")


class Outputs(nn.Module):
    """What a recurrent layer gives at all steps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(x)[0]
        return found


class Steps(nn.Module):
    """A cell, step by step; what it ends with."""

    def __init__(self, cell: nn.Module, units: int) -> None:
        super().__init__()
        self.cell, self.units = cell, units

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.shape[0], self.units)
        cell = state
        for step in range(x.shape[1]):
            if isinstance(self.cell, nn.GRUCell):
                state = self.cell(x[:, step], state)
            else:
                state, cell = self.cell(x[:, step], (state, cell))
        return state


class Stacked(nn.Module):
    """Two cells, one on top of the other, LSTMs from the last step on; all that the second gives, and what the first ends with."""

    def __init__(self, gru: bool) -> None:
        super().__init__()
        make = nn.GRUCell if gru else nn.LSTMCell
        self.below, self.above, self.gru = make(5, 6), make(6, 4), gru

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states: list[Any] = [None, None]
        found = []
        for step in range(x.shape[1]) if self.gru else range(x.shape[1] - 1, 0, -1):
            states[0] = self.below(x[:, step], states[0])
            states[1] = self.above(states[0] if self.gru else states[0][0], states[1])
            found.append(states[1] if self.gru else states[1][0])
        return torch.stack(found, 1), states[0] if self.gru else states[0][1]


class Streaming(nn.Module):
    """A layer that is given its state and gives the next."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, *state: torch.Tensor) -> Any:
        return self.inner(x, state[0] if len(state) == 1 else state)


MODELS = {
    "gru": lambda: Outputs(nn.GRU(5, 7, batch_first=True)),
    "gru, two layers, both directions": lambda: Outputs(nn.GRU(5, 6, 2, batch_first=True, bidirectional=True)),
    "gru without biases": lambda: Outputs(nn.GRU(5, 6, batch_first=True, bias=False, dropout=0.0)),
    "gru cell": lambda: Steps(nn.GRUCell(5, 6), 6),
    "gru cell without biases": lambda: Steps(nn.GRUCell(5, 6, bias=False), 6),
    "lstm": lambda: Outputs(nn.LSTM(5, 9, batch_first=True)),
    "lstm, two layers, both directions": lambda: Outputs(nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True)),
    "lstm without biases": lambda: Outputs(nn.LSTM(5, 6, batch_first=True, bias=False)),
    "lstm cell": lambda: Steps(nn.LSTMCell(5, 6), 6),
    "two cells, lstm": lambda: Stacked(gru=False),
    "two cells, gru": lambda: Stacked(gru=True),
}


def _ranges(network: Network, inputs: Sequence[np.ndarray]) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}

    def see(array: Array, numbers: np.ndarray) -> None:
        low, high = ranges.get(array.name, (0.0, 0.0))
        ranges[array.name] = min(low, float(numbers.min())), max(high, float(numbers.max()))

    values_of(network, inputs, see)
    return ranges


def _both(model: nn.Module, example: Any) -> tuple[Network, list[np.ndarray]]:
    """The network of a model, its inputs as arrays; both answer alike."""
    network = built(model.eval(), example)
    with torch.no_grad():
        wanted = list(tensors_in(model(*example) if isinstance(example, tuple) else model(example)))
    inputs = [face.packed(tensor.numpy()) for face, tensor in zip(network.inputs, tensors_in(example), strict=True)]
    for face, found, want in zip(network.outputs, run(network, inputs), wanted, strict=True):
        np.testing.assert_allclose(face.unpacked(found).reshape(want.shape), want.numpy(), atol=1e-5)
    return network, inputs


@pytest.mark.parametrize("name", MODELS)
def test_models_answer_as_torch_and_in_integers_nearly_so(name: str) -> None:
    network, inputs = _both(MODELS[name](), torch.randn(20, 11, 5))
    expected = sum(isinstance(layer, Recurrent) for layer in network.layers)
    assert expected == (4 if "both directions" in name else 2 if "two cells" in name else 1)
    ranges = _ranges(network, inputs)
    floats = run(network, inputs)[0]
    for kind, most in (("int8", 4.0), ("int16", 400.0)):
        made = quantised(network, ranges, kind)  # type: ignore[arg-type]
        found = run(made, [to_integers(each, face.array) for each, face in zip(inputs, made.inputs, strict=True)])[0]
        array = made.outputs[0].array
        assert found.dtype == kind
        assert np.abs(from_integers(found, array) - floats).max() <= most * array.scale


@pytest.mark.parametrize("gru", [True, False])
def test_a_state_goes_in_and_comes_out(gru: bool) -> None:
    model = Streaming(nn.GRU(5, 6) if gru else nn.LSTM(5, 6))
    example = (torch.randn(9, 1, 5), *(torch.randn(1, 1, 6) for _ in range(1 if gru else 2)))
    network, inputs = _both(model, example)
    made = quantised(network, _ranges(network, inputs))
    found = run(made, [to_integers(each, face.array) for each, face in zip(inputs, made.inputs, strict=True)])
    for face, each, want in zip(made.outputs, found, run(network, inputs), strict=True):
        assert np.abs(from_integers(each, face.array) - want).max() <= 4 * face.array.scale


@pytest.mark.parametrize("gru", [True, False])
def test_a_state_that_comes_out_goes_in_again_as_it_is(gru: bool) -> None:
    """Step by step as the float model over all steps; what a first step begins with are zeros, so their range is that of what is left."""
    model, states = Streaming(nn.GRU(5, 6) if gru else nn.LSTM(5, 6)), 1 if gru else 2
    whole = torch.randn(30, 1, 5)
    network, inputs = _both(model, (whole, *(torch.zeros(1, 1, 6) for _ in range(states))))
    step, _ = _both(model, (whole[:1], *(torch.zeros(1, 1, 6) for _ in range(states))))
    ranges = _ranges(network, inputs) | {face.array.name: (0.0, 0.0) for face in step.inputs[1:]}
    if not gru:
        ranges["inner.cell"] = -1.5, 1.5
    made = quantised(step, ranges)
    for given, left in zip(made.inputs[1:], made.outputs[1:], strict=True):
        assert (given.array.scale, given.array.zero) == (left.array.scale, left.array.zero)
    kept = [to_integers(np.zeros((1, 1, 1, 6)), face.array) for face in made.inputs[1:]]
    found = []
    for place in range(30):
        x = to_integers(inputs[0][:, :, place : place + 1], made.inputs[0].array)
        y, *kept = run(made, [x, *kept])
        found.append(from_integers(y, made.outputs[0].array).reshape(-1))
    wanted = run(network, inputs)[0].reshape(30, 6)
    assert np.abs(np.stack(found) - wanted).max() <= 8 * made.outputs[0].array.scale


class Apart(nn.Module):
    """Steps that are none of one layer: another cell for each second one, another order, or a cell's state that is read in between."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.cells, self.why = nn.ModuleList([nn.LSTMCell(5, 6), nn.LSTMCell(5, 6)]), why

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, total = None, None
        for place, step in enumerate([0, 2, 1, 3] if self.why == "order" else range(4)):
            state = self.cells[place % 2 if self.why == "cells" else 0](x[:, step], state)
            total = state[0] if self.why != "state" else state[1] if total is None else total + state[1]
        assert total is not None
        return total


@pytest.mark.parametrize("why", ["cells", "order", "state"])
def test_steps_that_are_none_of_one_layer_stay_as_they_are(why: str) -> None:
    network, _ = _both(Apart(why), torch.randn(20, 4, 5))
    assert sum(isinstance(layer, Recurrent) for layer in network.layers) == 4


def test_what_functions_give_is_near_what_they_are() -> None:
    places = np.arange(-32767, 32768)
    meant = places / 2.0**GATE_BITS
    assert np.abs(tanh(places) / 2.0**STATE_BITS - np.tanh(meant)).max() < 2e-4
    assert np.abs(sigmoid(places) / 2.0**STATE_BITS - 1 / (1 + np.exp(-meant))).max() < 2e-4
    assert len(TANH) == 257


def test_a_projected_lstm_is_refused_by_name() -> None:
    model = nn.ModuleDict({"inner": nn.LSTM(5, 6, proj_size=3, batch_first=True)})
    with pytest.raises(UnsupportedError, match=r"inner: an LSTM whose hidden state is projected \(proj_size=3\)"):
        built(Outputs(model["inner"]), torch.randn(2, 3, 5))


def test_several_sequences_at_a_time_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="a GRU over 4 sequences at a time"):
        built(nn.GRU(5, 6), torch.randn(7, 4, 5))


def layer(random: np.random.Generator, gru: bool, steps: int | None = None) -> Recurrent:
    """A layer at random, in float32."""
    inputs, units, gates = (*(int(each) for each in random.integers(1, 12, 2)), 3 if gru else 4)
    states = 1 if gru else 2
    steps = int(random.integers(1, 7)) if steps is None else steps

    def some(name: str) -> tuple[Array | None, ...]:
        return tuple(Array(f"{name}{place}", (1, 1, units)) if random.random() < 0.6 else None for place in range(states))

    size = float(random.choice([0.3, 1.0, 4.0]))
    weights = [random.normal(0, size, shape).astype(np.float32) for shape in ((gates * units, inputs), (gates * units, units))]
    biases = [random.normal(0, 1, gates * units).astype(np.float32) for _ in range(2)]
    x, y = Array("x", (1, steps, inputs)), Array("y", (1, steps, units))
    return Recurrent("layer", x, y, *weights, *biases, gru, some("start"), some("last"), bool(random.random() < 0.5))


def of_kind(found: Recurrent, kind: str, random: np.random.Generator) -> Recurrent:
    ranges = {
        each.name: (-float(random.uniform(0.2, 3)), float(random.uniform(0.2, 3)))
        for each in (found.x, *found.start, *found.last)
        if each
    }
    ranges["y"] = -float(random.uniform(0.2, 1)), float(random.uniform(0.2, 1))
    return quantised(Network((), (), (found,)), ranges, kind).layers[0]  # type: ignore[arg-type, return-value]


def _trials(kind: str, seed: int, count: int) -> list[trials.Trial]:
    random = np.random.default_rng(seed)
    made = [of_kind(layer(random, bool(number % 2)), kind, random) for number in range(count)]
    return [trials.trial(call_of(each, f"layer_{number}"), random) for number, each in enumerate(made)]


@needs_compiler
@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
def test_c_answers_as_the_reference(kind: str) -> None:
    assert trials.wrong_on_host(_trials(kind, 3, 60)) == []


@needs_emulator
@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
def test_c_on_emulated_cores(kind: str) -> None:
    for core in (M4, M3):
        assert trials.counted(_trials(kind, 4, 12), core)[0] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 70_000}, r"layer: its state can reach 70000 within 70000 steps, more than 65535"),
        ({"size": 1e6}, r"layer: row \d+ of its weight can reach .* before the gate, more than kernels take \(131072\)"),
    ],
)
def test_what_could_overflow_is_refused(change: dict[str, float], message: str) -> None:
    found = layer(np.random.default_rng(0), False, int(change.get("steps", 3)))
    found = replace(found, start=(), last=(), weight=found.weight * np.float32(change.get("size", 1)))
    with pytest.raises(SecateursError, match=message):
        of_kind(found, "int8", np.random.default_rng(0))


def test_too_many_inputs_are_refused() -> None:
    x, y = Array("x", (1, 1, 600)), Array("y", (1, 1, 1))
    numbers = np.ones((3, 600), np.float32), np.ones((3, 1), np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32)
    found = Recurrent("layer", x, y, *numbers, True)
    with pytest.raises(SecateursError, match=r"layer: the sum of row 0 of its weight can reach 24969216\d\d, .* \(600\) for int16"):
        quantised(Network((), (), (found,)), {"x": (-0.01, 0.01), "y": (-1.0, 1.0)}, "int16")
