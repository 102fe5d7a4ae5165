"""What layers multiply, and costs that are sums over them: held against MACs counted while a model runs, and against counting anew."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs import models
from secateurs.costs import Tally, tensor_bytes, workload
from secateurs.types import Plan, SecateursError, Term


class Mixer(nn.Module):
    """A layer over places and one over channels: what is a position to one is a channel to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.places, self.leave = nn.Linear(4, 6), nn.Linear(5, 5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        return self.leave(x + self.places(x.mT).mT)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.leave = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.attention(x, x, x, need_weights=False)[0])


MODELS: dict[str, tuple[Any, Any]] = {
    "resnet": (models.resnet_20, torch.zeros(2, 3, 32, 32)),
    "depthwise": (models.ds_cnn, torch.zeros(3, 1, 49, 10)),
    "mixer": (Mixer, torch.zeros(2, 5, 4)),
    "attention": (Attending, torch.zeros(2, 7, 12)),
    "recurrent": (lambda: nn.LSTM(5, 6, batch_first=True), torch.zeros(2, 7, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), torch.zeros(2, 4, 5, 5)),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), (torch.zeros(2, 3), torch.zeros(2, 4))),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_multiply_as_often_as_is_counted_while_the_model_runs(name):
    make, example = MODELS[name]
    model = make().eval()
    layers = [layer.left({}) for layer in workload(model, example).under(None)]
    assert sum(work.macs for work in layers) == sc.macs(model, example)
    traced = sc.trace_macs(model, example)
    assert sum(work.macs for work in layers if work.parameter is None) == traced.between_activations
    for parameter, macs in traced.by_parameter.items():
        assert sum(work.macs for work in layers if work.parameter == parameter) == macs
    for work in layers:
        if work.weight is not None:
            assert work.weight.shape == (work.groups, work.outputs, work.inputs, *work.kernel)
    whole = {work.parameter for work in layers if work.parameter and work.weights == model.get_parameter(work.parameter).numel()}
    assert whole == traced.by_parameter.keys()


@pytest.mark.parametrize("name", ["resnet", "depthwise", "mixer"])
def test_what_a_plan_leaves_of_each_layer_is_what_the_smaller_model_has(name):
    make, example = MODELS[name]
    model = make().eval()
    load = workload(model, example)
    masks = sc.prune_(model, sc.Channel(approximate=True), sc.TopK(sc.random(3)), sc.uniform(keep=0.6), sc.Task(example))
    promised = [layer.left(dict(masks.plan)) for layer in load.under(masks.plan)]
    assert sum(work.macs for work in promised) == sc.macs.prepare(make().eval(), example)(masks.plan)
    done = sc.shrink_(model, masks)
    assert not done.skipped
    found = [layer.left({}) for layer in workload(model, example).under(None)]
    for one, other in zip(promised, found, strict=True):
        for part in ("layer", "groups", "inputs", "outputs", "kernel", "positions", "taken", "made", "macs"):
            assert getattr(one, part) == getattr(other, part), (one.layer, part)


def test_single_weights_and_blocks_leave_fractions():
    model, x = models.digits_cnn(), torch.zeros(2, 1, 8, 8)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.7), sc.Task(x))
    planned = [layer.left(dict(masks.plan)) for layer in workload(model, x).under(masks.plan)]
    counted = [layer.left({}) for layer in workload(model, x).under(None)]
    for one, other in zip(planned, counted, strict=True):
        assert one.nonzeros == pytest.approx(int(torch.count_nonzero(model.get_parameter(other.parameter))))
        assert one.nonzeros == pytest.approx(other.nonzeros) and one.weights == other.weights and 0 < one.density < 1


def test_of_blocks_that_go_nothing_is_left_not_even_between_activations():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x, need_weights=False)[0]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Part() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    model, x = Net().eval(), torch.randn(2, 7, 12)
    load, cost = workload(model, x), sc.layerwise("macs", "MACs", lambda work: work.nonzeros * work.positions)
    promise = cost.prepare(model, x)
    masks = sc.prune_(model, sc.Depth(), sc.TopK(sc.random(0)), sc.uniform(keep=1 / 3), sc.Task(x))
    assert promise(masks.plan) == sc.macs.prepare(model, x)(masks.plan)
    sc.shrink_(model, masks)
    assert promise(masks.plan) == sc.macs(model, x)
    gone = [work for work in (layer.left(dict(masks.plan)) for layer in load.under(masks.plan)) if not work.nonzeros]
    assert len(gone) == 8 and not any(work.taken or work.made or work.macs for work in gone)


@pytest.mark.parametrize("pattern", [sc.Element(), sc.Channel(), sc.Kernel()], ids=repr)
@pytest.mark.parametrize(
    "cost", [sc.params, sc.macs, tensor_bytes, sc.layerwise("made", "numbers", lambda work: work.made)], ids=lambda c: c.name
)
def test_a_tally_counts_what_counting_anew_finds(pattern, cost):
    model, x = models.resnet_20(), torch.zeros(1, 3, 32, 32)
    sites = sc.find_sites(model, pattern, x)
    plan = sc.uniform(keep=1.0)(sites, lambda: iter([]))
    prepared, chance = cost.prepare(model, x), random.Random(5)
    tally = Tally(prepared, plan)
    for _ in range(25):
        name = chance.choice(list(plan))
        kept = chance.randrange(plan.shares[name].units + 1)
        ahead = tally.at(name, kept)
        tally.move_(name, kept)
        again = prepared(Plan(plan.shares, extents=plan.extents).with_counts(tally.counts))
        assert tally.total == pytest.approx(again, rel=1e-12) == ahead
    assert sum(tally.by_layer().values()) == pytest.approx(tally.total)


def test_costs_tell_what_each_layer_takes():
    model, x = models.lenet_5(), torch.zeros(1, 1, 28, 28)
    found = sc.macs.by_layer(model, x)
    assert sum(found.values()) == sc.macs(model, x) and found["conv1.weight"] == 288_000
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), sc.Task(x))
    fewer = sc.macs.by_layer(model, x, masks.plan)
    assert fewer["conv1"] == 144_000 and sum(fewer.values()) == sc.macs(model, x, masks.plan)
    with pytest.raises(SecateursError, match="latency_of_all: this cost is of the whole model, and does not tell"):
        sc.Cost("latency_of_all", "ms", lambda model, example: lambda plan: 1.0).by_layer(model)


def test_a_cost_that_tells_no_layers_is_tallied_as_a_whole():
    model = models.lenet_300_100()
    plan = sc.uniform(keep=0.5)(sc.find_sites(model, sc.Element()), lambda: iter([]))
    tally = Tally(lambda plan: float(sum(plan.values())), plan)
    name = next(iter(plan))
    assert tally.change(name, plan[name] - 7) == -7 and tally.total == sum(plan.values())


def test_the_least_of_several_sums_is_tallied_and_told_layer_by_layer():
    model, x = models.resnet_20(), torch.zeros(1, 3, 32, 32)
    plan = sc.uniform(keep=1.0)(sc.find_sites(model, sc.Channel(), x), lambda: iter([]))
    work, made = sc.layerwise("a", "ms", lambda work: work.macs).prepare(model, x), sc.params.prepare(model, x)

    def sums(plan: Plan | None) -> list[Any]:
        slow = Term("call", (), lambda counts: 30e6)
        return [work.terms(plan), [slow, *made.terms(plan)]]

    least = sc.costs.Least(sums)
    cost, chance = sc.Cost("least", "ms", lambda model, example: least), random.Random(1)
    tally, seen = Tally(least, plan), set()
    for _ in range(60):
        name = chance.choice(list(plan))
        kept = chance.randrange(1, plan.shares[name].units // 2 + 1)
        ahead = tally.at(name, kept)
        tally.move_(name, kept)
        now = plan.with_counts(tally.counts)
        both = [sum(term.value(tally.counts) for term in terms) for terms in sums(now)]
        seen.add(both.index(min(both)))
        assert tally.total == pytest.approx(least(now)) == pytest.approx(min(both)) == pytest.approx(ahead)
        assert (
            sum(tally.by_layer().values()) == pytest.approx(sum(cost.by_layer(model, x, now).values())) == pytest.approx(min(both))
        )
        assert sum(term.value(tally.counts) for term in least.terms(now)) >= least(now)
    assert seen == {0, 1}
    assert len({term.layer for term in least.terms(plan)} & {"call"}) == 0, "who asks for one gets that which falls lowest"
