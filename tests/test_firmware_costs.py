"""What a model takes on a microcontroller: held against the calls and the arena of the model itself, dense, masked and made smaller."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.firmware.arena import arena_of
from secateurs.firmware.calls import call_of
from secateurs.firmware.cores import STACK
from secateurs.firmware.costs import CODE, flash_bytes, instructions, sram_bytes
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.formats import choices
from secateurs.firmware.instructions import counted
from secateurs.firmware.outline import ranges_of
from secateurs.firmware.overwriting import overwriting
from secateurs.integers.build import UnsupportedError, built
from secateurs.integers.layers import Conv
from secateurs.integers.quantise import quantised
from secateurs.testing import COUPLED, LAYERS, NETWORKS, check_cost
from secateurs.types import PlanError, Task


def calls_of(model, x, kind):
    network = built(model, x)
    network = quantised(network, ranges_of(network), kind)
    return network, [overwriting(call_of(layer, f"n{place}")) for place, layer in enumerate(network.layers)]


def flash_of(model, x, kind="int8"):
    return CODE + sum(call.flash for call in calls_of(model, x, kind)[1])


def instructions_of(model, x, kind="int8"):
    """Of each layer the format that takes fewest, as it is chosen for a model that is there."""
    network, calls = calls_of(model, x, kind)
    found = 0.0
    for layer, call in zip(network.layers, calls, strict=True):
        if isinstance(layer, Conv) and kind == "int8":
            found += min(counted(each).instructions for each in choices(layer, "n"))
        else:
            found += call.instructions
    return found


def sram_of(model, x, kind="int8"):
    return STACK + arena_of(*calls_of(model, x, kind)).bytes


class Branching(nn.Module):
    """A residual sum, a concatenation, a gate, a padding, and a classifier of all places."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.inner, self.outer = nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 1)
        self.left, self.right = nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(12, 7, 1)
        self.gate = nn.Conv2d(13, 13, 1)
        self.depthwise = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.leave = nn.Linear(13 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        x = torch.cat([self.left(x), nn.functional.max_pool2d(self.right(x), 3, 1, 1)], 1).relu()
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        x = nn.functional.avg_pool2d(self.depthwise(x).relu(), 2)
        return self.leave(x.flatten(1))


def separable() -> nn.Module:
    """DS-CNN in small."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, (10, 4), stride=2, padding=(5, 1)), nn.BatchNorm2d(16), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU()]
        layers += [nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12), nn.Softmax(1))


NETS = [(Branching, torch.randn(1, 3, 12, 12)), (separable, torch.randn(2, 1, 49, 10))]


@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
@pytest.mark.parametrize(("make", "x"), NETS, ids=["branching", "separable"])
def test_plans_of_channels_promise_what_the_smaller_model_takes(make, x, kind):
    torch.manual_seed(0)
    model = make().eval()
    flash, sram, run = flash_bytes(kind), sram_bytes(kind), instructions(kind)
    assert flash(model, x) == flash_of(model, x, kind)
    assert sram(model, x) == sram_of(model, x, kind)
    assert run(model, x) == pytest.approx(instructions_of(model, x, kind))
    task = Task(example=x)
    promised = []
    for keep in (0.7, 0.4):
        model = make().eval()
        masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=keep), task)
        promised = [(cost, cost(make().eval(), x, masks.plan)) for cost in (flash, sram)]
        fewer = run(make().eval(), x, masks.plan)
        sc.shrink_(model, masks, x)
        assert fewer == pytest.approx(instructions_of(model, x, kind), rel=0.01)
        assert promised == [(flash, flash_of(model, x, kind)), (sram, sram_of(model, x, kind))]
        assert promised == [(cost, cost(model, x)) for cost, _ in promised]


def test_zeros_take_no_flash_where_a_format_leaves_them_out():
    x = torch.randn(1, 64)
    for pattern, keep in (
        (sc.Element(), 0.1),
        (sc.Block(1, 4), 0.25),
        (sc.Block(4, 4), 0.2),
        (sc.Block(2, 4), 0.25),
        (sc.NofM(1, 4), 0.25),
    ):
        model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16))
        plain = flash_bytes()(model, x)
        masks = sc.prune_(model, pattern, sc.TopK(sc.magnitude()), sc.uniform(keep=keep), Task(example=x), only="*")
        promised = flash_bytes()(model, x, masks.plan)
        network, _ = calls_of(model, x, "int8")
        layers = [layer for layer in network.layers if isinstance(layer, Conv)]
        least = CODE + sum(min(call.flash for call in choices(layer, "n") if call.label != "Huffman") for layer in layers)
        assert least - CODE < 0.75 * (plain - CODE)
        assert flash_bytes()(model, x) == pytest.approx(least, abs=8)
        if not isinstance(pattern, sc.NofM):  # of which a plan does not tell where the weights are
            assert promised == pytest.approx(least, rel=0.01)
        assert promised >= least - 8
        assert instructions()(model, x) == pytest.approx(instructions_of(model, x), rel=0.01)


@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
@pytest.mark.parametrize("specimen", [*LAYERS[:6], *NETWORKS[:2], COUPLED[3]], ids=repr)
def test_they_keep_the_laws_of_costs(specimen, kind):
    for cost in (flash_bytes(kind), sram_bytes(kind), instructions(kind)):
        check_cost(cost, on=[specimen])


def test_they_limit_what_is_kept():
    model, x = separable().eval(), NETS[1][1]
    task = Task(example=x)
    for cost in (flash_bytes(), sram_bytes(), instructions()):
        limit = round(0.85 * cost(model, x))
        pruned = separable().eval()
        budget = sc.within_budget(sc.Budget(cost, limit=limit), sc.uniform)
        masks = sc.prune_(pruned, sc.Channel(), sc.TopK(sc.magnitude()), budget, task)
        sc.shrink_(pruned, masks, x)
        assert 0.9 * limit <= cost(pruned, x) <= limit
    assert sum(flash_bytes().by_layer(model, x).values()) == flash_bytes()(model, x)


def test_what_cannot_be_told_is_said():
    with pytest.raises(FirmwareError, match=r"flash_bytes: kind='int4', but must be one of 'int8', 'int16', 'float32'"):
        flash_bytes("int4")
    with pytest.raises(FirmwareError, match="there is no core 'z80' here; take one of cortex-m"):
        instructions(core="z80")
    with pytest.raises(UnsupportedError, match="the input is int64"):
        sram_bytes()(nn.Embedding(5, 4), torch.zeros(1, 3, dtype=torch.long))
    other = sc.find_sites(nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 2)), sc.Channel(), torch.zeros(1, 9))
    plan = sc.uniform(keep=0.5)(other, lambda: sc.TopK(sc.magnitude()).scores(other, {}))
    for cost in (flash_bytes(), sram_bytes()):
        with pytest.raises(PlanError):
            cost(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), torch.zeros(1, 8), plan)
