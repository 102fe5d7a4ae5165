"""Training with rounded weights and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.integers.best import decibels
from secateurs.integers.build import built
from secateurs.integers.fake import quantisation_aware, rounded_array, rounded_weight
from secateurs.integers.layers import Conv
from secateurs.integers.quantise import quantised
from secateurs.integers.ranges import calibrated
from secateurs.integers.reference import run as run_network
from secateurs.types import FileError, Hook, SecateursError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def task() -> sc.Task:
    chance = torch.Generator().manual_seed(1)
    data = [(torch.randn(16, 1, 4, 4, generator=chance), torch.randint(4, (16,), generator=chance)) for _ in range(4)]
    return sc.Task(data[0][0], train=data, validation=data, loss=nn.functional.cross_entropy, metric=sc.tasks.accuracy)


def trained(model: nn.Module, *hooks: Hook, epochs: int = 4, **how: Any) -> Any:
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    return sc.train_(model, task(), adam, epochs, hooks=hooks, show=False, seed=0, **how)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_rounding_is_that_of_its_definition_and_passes_gradients():
    weight = torch.randn(5, 3, 2, 2, requires_grad=True)
    made = rounded_weight(weight, 4)
    for row, exact in zip(made.detach(), weight.detach(), strict=True):
        step = exact.abs().max() / 7
        torch.testing.assert_close(row / step, (exact / step).round())
    assert torch.equal(rounded_weight(made.detach(), 4), made.detach())
    made.backward(torch.ones_like(made))
    assert torch.equal(weight.grad, torch.ones_like(weight))
    x = torch.tensor([-3.0, -0.9, 0.02, 0.5, 4.0], requires_grad=True)
    found = rounded_array(x, -1.0, 2.0, 8)
    step = 3 / 255
    torch.testing.assert_close(found.detach(), torch.tensor([-85.0, -76, 2, 42, 170]) * step, atol=step * 1.01, rtol=0)
    found.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    assert torch.equal(rounded_array(torch.zeros(3), 0.0, 0.0, 8), torch.zeros(3))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_afterwards_weights_have_few_values_and_masks_hold(bits):
    model = network()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task())
    before = {name: mask.clone() for name, mask in masks.items()}
    run = trained(model, quantisation_aware(bits=bits), masks=masks)
    assert same(before, dict(run.masks))  # weights that are rounded to zero may come back
    for name in ("0.weight", "4.weight", "6.weight"):
        weight = model.get_parameter(name).detach()
        assert not weight[~run.masks[name]].any()
        assert max(len(row.unique()) for row in weight) <= 2**bits - 1
        assert torch.equal(rounded_weight(weight, bits), weight)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training == model.training for module in model.modules())


def test_eight_bits_are_those_that_int8_has():
    """Batch normalisation folded too: the grid of each output is scaled as a whole."""
    model = network()
    trained(model, quantisation_aware())
    model.eval()
    inputs = task().example
    exact = built(model, inputs)
    for layer, real in zip(quantised(exact, calibrated(exact, [inputs])).layers, exact.layers, strict=True):
        if isinstance(layer, Conv):
            meant = layer.weight * layer.weight_scale[:, None, None, None]
            np.testing.assert_allclose(meant, real.weight, rtol=2e-6, atol=1e-9)


def test_statistics_stay_from_the_middle_on():
    means: list[Tensor] = []
    model = network()
    look = Hook("look", epoch_end=lambda run: means.append(run.model[1].running_mean.clone()))
    trained(model, quantisation_aware(freeze=0.5), look)
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[2]) and torch.equal(means[2], means[3])


def test_what_is_validated_is_the_rounded_network():
    seen: list[tuple[int, int]] = []
    model = network()

    def look(run: Any) -> None:
        run.model.eval()
        read: list[Tensor] = []
        handle = run.model[4].register_forward_pre_hook(lambda module, args: read.append(args[0]))
        with torch.no_grad():
            run.model(torch.randn(64, 1, 4, 4))
        handle.remove()
        seen.append((len(read[0].unique()), len(run.model[4].weight[0].unique())))

    trained(model, quantisation_aware(bits=3, activations=3), Hook("look", epoch_end=look))
    assert max(levels for levels, _ in seen) <= 8 and max(values for _, values in seen) <= 7


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_goes_on_to_the_bit(stop, tmp_path: Path):
    def hooks(last: int = 9) -> list[Hook]:
        return [Hook("stop", epoch=lambda run: 1 / (run.epoch < last) and None), quantisation_aware(bits=3, activations=4)]

    whole, stopped = network(), network()
    run = trained(whole, *hooks())
    with pytest.raises(ZeroDivisionError):
        trained(network(), *hooks(stop), checkpoint=tmp_path / "run.safetensors")
    resumed = trained(stopped, *hooks(), checkpoint=tmp_path / "run.safetensors")
    assert same(state(stopped), state(whole)) and resumed.history == run.history


def test_a_hook_that_is_given_to_another_run_begins_anew():
    fresh, again, hook = network(), network(), quantisation_aware(bits=3)
    trained(fresh, quantisation_aware(bits=3))
    trained(network(), hook)
    trained(again, hook)
    assert same(state(fresh), state(again))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"bits": 9}, "bits=9 must be from 2 to 8"),
        ({"bits": "8"}, "bits is '8'"),
        ({"activations": 1}, "activations=1 must be from 2 to 16"),
        ({"freeze": 2}, "freeze=2 is the part of the epochs"),
    ],
)
def test_arguments_that_are_none(how, told):
    with pytest.raises(SecateursError, match=told):
        quantisation_aware(**how)


def test_models_without_such_layers_and_foreign_checkpoints_are_told():
    table = nn.Sequential(nn.Embedding(4, 3))
    data = [(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3))]
    given = sc.Task(data[0][0], train=data, loss=nn.functional.mse_loss)
    sgd = torch.optim.SGD(table.parameters(), lr=0.1)
    with pytest.raises(SecateursError, match="no convolution or linear layer among those chosen"):
        sc.train_(table, given, sgd, 1, hooks=[quantisation_aware(only="*")], show=False)
    with pytest.raises(FileError, match="holds no state of this hook"):
        quantisation_aware().restore({"ranges": 3})


def test_only_and_skip_choose_layers():
    model = network()
    trained(model, quantisation_aware(bits=2, skip=["0"]))
    assert len(model[0].weight[0].unique()) > 3 >= len(model[4].weight[0].unique())


def test_a_network_trained_so_loses_less():
    """Digits, in so few bits that it hurts: trained as ever and then rounded, or trained with it."""
    digits = sc.tasks.digits()
    accuracy = {}
    for aware in (False, True):
        torch.manual_seed(0)
        model = sc.models.digits_cnn()
        adam = torch.optim.Adam(model.parameters(), lr=2e-3)
        sc.train_(model, digits, adam, 5, show=False, seed=0)
        hooks = [quantisation_aware(bits=2, activations=3)] if aware else []
        sc.train_(model, digits, torch.optim.Adam(model.parameters(), lr=1e-3), 4, hooks=hooks, show=False, seed=0)
        if not aware:
            with torch.no_grad():
                for module in model.modules():
                    if isinstance(module, (nn.Conv2d, nn.Linear)):
                        module.weight.copy_(rounded_weight(module.weight, 2))
        accuracy[aware] = sc.evaluate(model, digits, digits.validation)
    assert accuracy[True] > accuracy[False] + 0.02, accuracy


def test_int8_of_a_network_trained_so_is_nearer_to_its_float32():
    """The weights lose nothing any more."""
    noise = {}
    for aware in (False, True):
        model = network()
        trained(model, *([quantisation_aware()] if aware else []), epochs=6)
        model.eval()
        inputs = torch.cat([each for each, _ in task().train])
        real = built(model, inputs)
        packed = [real.inputs[0].packed(inputs.numpy())]
        noise[aware] = decibels(quantised(real, calibrated(real, [inputs]), "int16"), packed, run_network(real, packed))
    assert noise[True] > noise[False] + 15  # int16 arrays: what is left is nearly all of the weights
