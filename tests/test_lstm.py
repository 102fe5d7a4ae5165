"""LSTMs: every way in which torch spells them becomes steps that the kernels run, which compute what the modules compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateurs import run
from secateurs.forward import call
from secateurs.models import lstm_language_model
from secateurs.nested import changed, leaves
from secateurs.run.kernels.machine import available
from secateurs.run.lowering.lower import lower
from secateurs.run.network.interpret import interpret
from secateurs.run.network.nodes import Linear, Lstm, Network, Torch
from secateurs.run.planning.homes import Segment
from secateurs.run.planning.plan import plan
from secateurs.run.recording.one_call import CompileError, network_of

INPUTS, WIDTH = 21, 19
ISAS = [isa.name for isa in available()]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def states(*shape: int) -> tuple[Tensor, Tensor]:
    return numbers(*shape), numbers(*shape) * 2


def other(example: Any) -> Any:
    """Other numbers in the same shapes; words are shuffled."""
    generator = torch.Generator().manual_seed(3)

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view(tensor.shape)

    return changed(example, change)


def agree(run: Callable[..., Any], model: nn.Module, inputs: Any) -> None:
    """Both give the same tensors, to 1e-5 of the greatest number of each."""
    with torch.no_grad():
        pairs = zip(*(list(leaves(each)) for each in (call(run, inputs), call(model, inputs))), strict=True)
    for (path, found), (there, wanted) in pairs:
        assert path == there
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def recorded(model: nn.Module, example: Any) -> Network:
    """The network of a model, which torch alone runs to the same result before and after it is lowered."""
    network = network_of(model.eval(), example)
    for each in (network, lower(network)):
        for inputs in (example, other(example)):
            agree(lambda *args, each=each: interpret(each, args if isinstance(example, tuple) else args[0]), model, inputs)
    return lower(network)


class Cells(nn.Module):
    """Two layers, written as a loop over steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(INPUTS, WIDTH), nn.LSTMCell(WIDTH, 8, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        one = two = None
        found = []
        for step in x.unbind(1):
            one = self.first(step, one)
            two = self.second(one[0], two)
            found.append(two[0])
        return torch.stack(found, 1), two


class Classifier(nn.Module):
    """Reads the last state of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(INPUTS, WIDTH, 2, batch_first=True), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[1][0][-1])


class Constant(nn.Module):
    """Starts from what it has learnt, and goes the other way in a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, WIDTH)
        self.hidden, self.cell = (nn.Parameter(each) for each in states(1, 1, WIDTH))

    def forward(self, x: Tensor) -> Any:
        state = (self.hidden.expand(1, x.shape[1], WIDTH), self.cell.expand(1, x.shape[1], WIDTH))
        return self.lstm(x.flip(0), state)


lstm = partial(nn.LSTM, INPUTS, WIDTH)
SEQUENCE = numbers(5, 2, INPUTS)
VARIANTS: dict[str, tuple[Callable[[], nn.Module], Any, int]] = {  # and how many `Lstm` there are
    "plain": (lstm, SEQUENCE, 1),
    "two layers": (partial(lstm, 2), SEQUENCE, 2),
    "three layers": (partial(lstm, 3, dropout=0.5), SEQUENCE, 3),
    "without bias": (partial(lstm, bias=False), SEQUENCE, 1),
    "batch first": (partial(lstm, batch_first=True), numbers(2, 5, INPUTS), 1),
    "batch first, one row": (partial(lstm, 2, batch_first=True), numbers(1, 5, INPUTS), 2),
    "no batch": (partial(lstm, bidirectional=True), numbers(5, INPUTS), 2),
    "both directions": (partial(lstm, bidirectional=True), SEQUENCE, 2),
    "everything": (partial(lstm, 3, False, True, 0.3, True), (numbers(2, 5, INPUTS), states(6, 2, WIDTH)), 6),
    "states": (lstm, (SEQUENCE, states(1, 2, WIDTH)), 1),
    "states of layers": (partial(lstm, 2), (SEQUENCE, states(2, 2, WIDTH)), 2),
    "states without batch": (lstm, (numbers(5, INPUTS), states(1, WIDTH)), 1),
    "learnt states": (Constant, SEQUENCE, 1),
    "one step": (partial(lstm, 2, bidirectional=True), numbers(1, 2, INPUTS), 4),
    "last state": (Classifier, numbers(2, 5, INPUTS), 2),
    "cell": (partial(nn.LSTMCell, INPUTS, WIDTH), numbers(2, INPUTS), 1),
    "cell with state": (partial(nn.LSTMCell, INPUTS, WIDTH), (numbers(2, INPUTS), states(2, WIDTH)), 1),
    "cell without batch": (partial(nn.LSTMCell, INPUTS, WIDTH), numbers(INPUTS), 1),
    "loop of cells": (Cells, numbers(2, 3, INPUTS), 6),
    "one unit": (partial(nn.LSTM, 1, 1), numbers(3, 2, 1), 1),
    "several jobs": (partial(nn.LSTM, 8, 300), numbers(3, 2, 8), 1),
    "whole vectors": (partial(nn.LSTM, 32, 48, 2), numbers(3, 4, 32), 2),
    **{f"{rows} rows": (partial(lstm, 2, batch_first=rows % 2 == 0), numbers(rows, rows, INPUTS), 2) for rows in range(1, 7)},
}


def pruned(make: Callable[[], nn.Module], sparsity: float) -> nn.Module:
    """With weights of which so many are zero, and large enough ones that the gates are not all in the middle."""
    torch.manual_seed(2)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=2 * parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 1)
            if parameter.dim() == 2:
                parameter *= torch.rand_like(parameter) >= sparsity
    return model


def lstms(network: Network) -> list[Lstm]:
    return [node for node in network.nodes if isinstance(node, Lstm)]


@pytest.mark.parametrize("name", VARIANTS)
def test_torch_alone_computes_it(name: str) -> None:
    make, example, count = VARIANTS[name]
    assert len(lstms(recorded(pruned(make, 0.5), example))) == count


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", VARIANTS)
def test_kernels_compute_it(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEURS_ISA", isa)
    make, example, _ = VARIANTS[name]
    for sparsity in (0.0, 0.9, 1.0):
        model = pruned(make, sparsity)
        for threads in (1, 2):
            fast = run.compile(model, example, threads=threads, tune=False)
            for inputs in (example, other(example)):
                agree(fast, model, inputs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "steps", "sparsity"), [(1, 1, 0.9), (2, 6, 0.0), (5, 3, 0.9)])
def test_language_model(rows: int, steps: int, sparsity: float, isa: str) -> None:
    model = pruned(partial(lstm_language_model, classes=50, width=40, depth=2), sparsity)
    example = torch.randint(50, (rows, steps))
    network = recorded(model, example)
    assert len(lstms(network)) == 2 and any(isinstance(node, Linear) for node in network.nodes)
    fast = run.compile(model, example, threads=2, tune=False, isa=isa)
    agree(fast, model, other(example))


def test_a_fast_path_from_layer_to_layer() -> None:
    """Layers follow each other without torch in between, and the last state is read where it was written."""
    network = lower(network_of(Classifier().eval(), numbers(2, 5, INPUTS)))
    assert [type(node) for node in network.nodes] == [Torch, Lstm, Lstm, Linear]
    items = plan(network, available()[0]).items
    assert [isinstance(item, Segment) for item in items] == [False, True]


def test_states_go_from_call_to_call() -> None:
    """Half a sequence and then the other half is the whole sequence."""
    model = pruned(partial(lstm, 2), 0.5)
    fast = run.compile(model, (numbers(3, 1, INPUTS), states(2, 1, WIDTH)), threads=1, tune=False)

    def halves(x: Tensor) -> Any:
        first, state = fast(x[:3], (torch.zeros(2, 1, WIDTH), torch.zeros(2, 1, WIDTH)))
        second, state = fast(x[3:], state)
        return torch.cat([first, second]), state

    agree(halves, model, numbers(6, 1, INPUTS))


@pytest.mark.parametrize("isa", ISAS)
def test_gates_that_are_full(isa: str) -> None:
    """Numbers so large that exponentials overflow."""
    model = pruned(lstm, 0.5)
    agree(run.compile(model, SEQUENCE, threads=1, tune=False, isa=isa), model, SEQUENCE * 1e4)


@pytest.mark.parametrize("isa", ISAS)
def test_weights_that_are_not_finite(isa: str) -> None:
    model = pruned(lstm, 0.5)
    with torch.no_grad():
        model.weight_ih_l0[3, 4] = float("inf")
        model.weight_hh_l0[WIDTH, 2] = -float("inf")
    example = (SEQUENCE, states(1, 2, WIDTH))
    agree(run.compile(model, example, threads=1, tune=False, isa=isa), model, example)


def test_calls_share_nothing() -> None:
    """Who writes into what came out changes neither what went in nor what comes out later."""
    model, example = pruned(partial(nn.LSTMCell, INPUTS, WIDTH), 0.5), numbers(2, INPUTS)
    fast = run.compile(model, example, threads=1, tune=False)
    kept = example.clone()
    for each in fast(example):
        each.fill_(7)
    assert torch.equal(example, kept)
    agree(fast, model, example)


@pytest.mark.parametrize(
    ("make", "example"),
    [
        (lambda: nn.GRU(INPUTS, WIDTH, 2), SEQUENCE),
        (lambda: nn.RNN(INPUTS, WIDTH, bidirectional=True), SEQUENCE),
        (lambda: nn.LSTM(INPUTS, WIDTH, proj_size=5), SEQUENCE),
        (lambda: nn.LSTM(INPUTS, WIDTH).double(), SEQUENCE.double()),
        (lambda: nn.LSTMCell(INPUTS, WIDTH).double(), SEQUENCE[0].double()),
    ],
    ids=["gru", "rnn", "projection", "double", "double cell"],
)
def test_others_stay_with_torch(make: Callable[[], nn.Module], example: Tensor) -> None:
    model = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no fast projections, and says so
        assert lstms(recorded(model, example)) == []
        fast = run.compile(model, example, threads=1, tune=False)
        agree(fast, model, other(example))


def test_weights_that_flow_stay_with_torch() -> None:
    class Flowing(nn.Module):
        def forward(self, x: Tensor, weight: Tensor, state: tuple[Tensor, Tensor]) -> Any:
            return torch.lstm_cell(x, state, weight, weight)

    assert lstms(recorded(Flowing(), (numbers(2, 4), numbers(16, 4), states(2, 4)))) == []


def test_a_stack_of_one_is_a_copy() -> None:
    """What is stacked alone, or taken out of a stack, is another tensor than what the caller has."""

    class Stacked(nn.Module):
        def forward(self, x: Tensor) -> Any:
            y = x.relu()
            return torch.stack([x]), torch.stack([x, y])[0], torch.stack([y], -1), y, torch.stack([y, x], 1)[:, 1]

    x = numbers(3, 4)
    network = recorded(Stacked(), x)
    kept, found = x.clone(), interpret(network, x)
    memories = {each.untyped_storage().data_ptr() for each in (x, *found)}
    assert len(memories) == 6
    found[0].fill_(7)
    assert torch.equal(x, kept)


def test_packed_sequences_are_refused() -> None:
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(INPUTS, WIDTH)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.lstm(nn.utils.rnn.pack_padded_sequence(x, lengths))[0].data

    with pytest.raises(CompileError):
        network_of(Packing().eval(), (SEQUENCE, torch.tensor([5, 3])))
