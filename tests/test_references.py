"""What machines that skip zeros fetch and multiply: held against simulation, against counts on data, and against a published table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs import models
from secateurs.costs import Work, activation_density, effective_macs, memory_references
from secateurs.costs.formats import units_of
from secateurs.costs.references import sums_of_products
from secateurs.testing import NETWORKS, check_cost
from secateurs.types import KindError, SecateursError, Task, TaskError

UNITS = {
    "single weights": (None, (1, 1, 1, 1)),
    "rows": (sc.Vector("width"), (1, 1, 1, 3)),
    "kernels": (sc.Kernel(), (1, 1, 3, 3)),
    "blocks": (sc.Block(2, 2), (2, 2, 1, 1)),
    "filters": (sc.Filter(), (1, 4, 3, 3)),
}


def walked(weight: Tensor, box: tuple[int, ...]) -> Tensor:
    """A weight in which every number of a unit that is there counts, one after the other."""
    there = torch.zeros_like(weight, dtype=torch.bool)
    outputs, inputs, high, wide = weight.shape
    for o in range(0, outputs, box[0]):
        for i in range(0, inputs, box[1]):
            for h in range(0, high, box[2]):
                for w in range(0, wide, box[3]):
                    where = (slice(o, o + box[0]), slice(i, i + box[1]), slice(h, h + box[2]), slice(w, w + box[3]))
                    there[where] = bool(weight[where].any())
    return there


def fetched(there: Tensor, x: Tensor, box: tuple[int, ...]) -> int:
    """Outputs that are fetched for one input (inputs, height, width): for each sum of products that has any."""
    _, inputs, high, wide = there.shape
    span = [max(a, b) for a, b in zip(box[1:], (1, 1, wide), strict=True)]
    found = 0
    for y in range(x.shape[1] - high + 1):
        for z in range(x.shape[2] - wide + 1):
            meet = there & (x[:, y : y + high, z : z + wide] != 0)
            for i in range(0, inputs, span[0]):
                for h in range(0, high, span[1]):
                    for w in range(0, wide, span[2]):
                        found += int(meet[:, i : i + span[0], h : h + span[1], w : w + span[2]].flatten(1).any(1).sum())
    return found


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("busy", [1.0, 0.4])
def test_outputs_are_fetched_as_often_as_in_a_simulation(name, busy):
    unit, box = UNITS[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, bias=False)
    layer.weight.data *= walked(torch.rand(6, 4, 3, 3) < 0.3 ** (1 if box == (1, 1, 1, 1) else 3), box)
    trials = 1 if busy == 1 else 12
    there = walked(layer.weight.data, box)
    found = sum(fetched(there, torch.rand(4, 6, 6) < busy, box) for _ in range(trials)) / trials
    cost = memory_references("outputs", unit=unit, activations={"weight": busy})
    assert cost(layer, torch.zeros(1, 4, 6, 6)) == pytest.approx(found, rel=1e-9 if busy == 1 else 0.04)


@pytest.mark.parametrize(
    ("pattern", "name"), [(sc.Element(), "single weights"), (sc.Kernel(), "kernels"), (sc.Vector("width"), "rows")]
)
def test_of_a_plan_they_are_those_of_weights_by_chance(pattern, name):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(24, 30, 3, bias=False), torch.zeros(1, 24, 6, 6)
    cost = memory_references("outputs", unit=UNITS[name][0], activations={"weight": 0.4})
    masks = sc.prune_(layer, pattern, sc.TopK(sc.random(0)), sc.uniform(keep=0.3), Task(x))
    assert cost(layer, x, masks.plan) == pytest.approx(cost(layer, x), rel=0.02 if name == "single weights" else 1e-9)


def test_each_kind_of_number_is_fetched_as_is_said():
    layer, x = nn.Conv2d(2, 3, 3, bias=False), torch.zeros(1, 2, 6, 6)
    parts = {of: memory_references(of)(layer, x) for of in ("outputs", "weights", "indices", "inputs")}
    assert parts == {"outputs": 16 * 18, "weights": 54 * 9, "indices": 54 * 9, "inputs": 72}
    assert memory_references()(layer, x) == sum(parts.values())
    assert memory_references("indices", unit=sc.Kernel())(layer, x) == 54
    assert memory_references("outputs", unit=sc.Block(2, 2))(nn.Linear(6, 4), torch.zeros(1, 6)) == 4 * 3
    assert memory_references("weights", inputs_at_once=12)(layer, x) == 54 * 3


@pytest.mark.parametrize(
    "cost", [memory_references(), memory_references("outputs", unit=sc.Kernel()), effective_macs()], ids=lambda c: c.name
)
def test_they_keep_the_laws_of_costs_and_their_promise_for_channels(cost):
    check_cost(cost, on=NETWORKS[:2])
    model, x = models.lenet_5(), torch.zeros(1, 1, 28, 28)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.random(0)), sc.uniform(keep=0.5), Task(x))
    promise = cost(models.lenet_5(), x, masks.plan)
    sc.shrink_(model, masks)
    assert promise == pytest.approx(cost(model, x)) == pytest.approx(sum(cost.by_layer(model, x).values()))


def test_activations_are_counted_layer_by_layer_as_they_come_in():
    torch.manual_seed(0)
    model, data = models.digits_cnn().train(), torch.randn(5, 1, 8, 8).relu()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = activation_density(model, Task(None, calibration=[(data[:3], None), (data[3:], None)]))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    counted: dict[str, float] = {}
    model.eval()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(
                lambda _, args, name=name: counted.update({name: float((args[0] != 0).float().mean())})
            )
    model(data)
    assert found == pytest.approx(counted) and 0 < min(found.values()) < 0.9
    cost = effective_macs(found)
    dense = effective_macs().by_layer(model, data[:1])
    assert cost.by_layer(model, data[:1]) == pytest.approx({name: macs * found[name] for name, macs in dense.items()})


def test_recurrent_layers_and_attention_are_counted_too():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.attention = nn.LSTM(4, 6, batch_first=True), nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.read(x)[0]
            return self.attention(y, y, y, need_weights=False)[0]

    x = torch.zeros(2, 5, 4)
    found = activation_density(Net(), Task(None, calibration=[(x, None)]))
    assert found["read.weight_ih_l0"] == 0 and found.keys() <= set(sc.costs.workload(Net().eval(), x).names)
    assert found["attention.in_proj_weight"] == 1 and found["attention.out_proj"] == 1


# ---------------------------------------------------------------- Mao et al., 1705.08922

VGG = [
    (3, 64, 224, 0.984),
    (64, 64, 224, 0.523),
    (64, 128, 112, 0.752),
    (128, 128, 112, 0.613),
    (128, 256, 56, 0.603),
    (256, 256, 56, 0.419),
    (256, 256, 56, 0.413),
    (256, 512, 28, 0.357),
    (512, 512, 28, 0.253),
    (512, 512, 28, 0.146),
    (512, 512, 14, 0.206),
    (512, 512, 14, 0.126),
    (512, 512, 14, 0.115),
]
"""VGG-16's convolutions: inputs, outputs, height; and the fraction of the inputs that is not zero, of Eyeriss (Chen et al., JSSC 2017)."""
PUBLISHED = [(0.401, 1.77e9, 1.23e9), (0.331, 1.53e9, 1.03e9), (0.275, 1.33e9, 0.87e9)]


@pytest.mark.parametrize(("density", "single", "vectors"), PUBLISHED)
def test_the_shares_of_vectors_are_those_of_mao_et_al(density, single, vectors):
    found = []
    for unit, size in ((None, 1), (sc.Vector("width"), 3)):
        total = 0.0
        for inputs, outputs, height, busy in VGG:
            kept = round(density * inputs * outputs * 9 / size) * size
            work = Work("", "", 1, inputs, outputs, (3, 3), height**2, 0, 0, kept, size, busy=busy)
            total += work.positions * sums_of_products(work, unit, units_of(work, unit, ""))
        found.append(total)
    assert found[1] / found[0] == pytest.approx(vectors / single, abs=0.05)
    assert found[0] == pytest.approx(single, rel=0.2) and found[1] == pytest.approx(vectors, rel=0.25)


def test_what_is_refused():
    layer, x = nn.Linear(3, 2), torch.zeros(1, 3)
    with pytest.raises(SecateursError, match="of='output', but must be one of outputs, weights, indices, inputs, all"):
        memory_references("output")  # type: ignore[arg-type]
    with pytest.raises(KindError, match="memory_references: unit is 3"):
        memory_references(unit=3)  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match="inputs_at_once=0, but must be at least 1"):
        memory_references(inputs_at_once=0)
    with pytest.raises(KindError, match=r"effective_macs: activations is 0\.5, but must be what activation_density"):
        effective_macs(0.5)  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match=r"activations\['0'\] is 1\.5, but must be a fraction, from 0 to 1"):
        effective_macs({"0": 1.5})
    with pytest.raises(SecateursError, match="activations names 'fc', but no layer of this Linear multiplies under that name"):
        effective_macs({"fc": 0.5})(layer, x)
    with pytest.raises(TaskError, match="activations are measured on data: give Task"):
        activation_density(layer, Task(x))
    with pytest.raises(TaskError, match="no batch came, or none passed a layer with a weight"):
        activation_density(layer, Task(x, calibration=[]))
