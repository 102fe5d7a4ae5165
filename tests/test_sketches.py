"""Four later capabilities in ten lines each, against stubs: they keep the types honest. A sketch that no longer fits is a warning."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.allocate import plan_of
from secateurs.files import container
from secateurs.patterns import as_units
from secateurs.solve import highest
from secateurs.types import Member, Scores, Site, Sites, Solution, Stats

# ---------------------------------------------------------------- SparseGPT: choice and compensation, layer by layer


@dataclass
class InputPower:
    """Stub of the Hessian: Σx² of each input."""

    total: Any = 0

    def add(self, seen: sc.Seen) -> None:
        self.total = self.total + seen.inputs[0].square().sum(0)

    def result(self) -> Tensor:
        return self.total


POWER = sc.Statistic("input power", lambda member: InputPower())


@dataclass(frozen=True)
class Compensating:
    """Stub of OBS: keeps w²·Σx², and spreads what was lost over what stays."""

    needs = (POWER,)

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        for site in sites:
            member = site.members[0]
            yield as_units(site, member.weight.detach().square() * stats[member.parameter][POWER])

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        chosen = highest(next(self.scores([site], stats)), kept // site.contest_count)
        weight = site.members[0].weight.detach()
        rescaled = weight * (weight.sum() / weight[chosen.view_as(weight)].sum())
        return Solution(chosen, {site.members[0].parameter: rescaled})


def sparsegpt_(model: nn.Module, layers: list[str], task: sc.Task) -> sc.Masks:
    masks = None
    for layer in layers:  # each layer sees the inputs that the layers pruned before it now give
        masks = sc.prune_(model, sc.Element(), Compensating(), sc.uniform(sparsity=0.5), task, only=layer, masks=masks)
    assert masks is not None
    return masks


def test_sparsegpt_interleaves_choice_and_compensation_layer_by_layer() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    sums = [layer.weight.sum().item() for layer in model]
    task = sc.Task(torch.randn(1, 8), calibration=[(torch.randn(16, 8), None)])
    masks = sparsegpt_(model, ["0", "1"], task)
    assert masks.kept == 48
    assert all(torch.isclose(layer.weight.sum(), torch.tensor(before)) for layer, before in zip(model, sums, strict=True))


# ---------------------------------------------------------------- Network Slimming: a penalty, then one pool under a MACs budget


def network_slimming_(model: nn.Module, task: sc.Task, optimizer: torch.optim.Optimizer, scales: list[nn.Parameter]) -> sc.Masks:
    shrink = sc.Hook("scales", loss=lambda run: 1e-2 * sum((scale.abs().sum() for scale in scales), torch.zeros(())))
    sc.train_(model, task, optimizer, epochs=2, hooks=[shrink])
    half = sc.within_budget(sc.Budget(sc.macs, keep=0.5), sc.global_threshold)
    masks = sc.prune_(model, sc.Channel(within="model"), sc.TopK(sc.magnitude(p=1, mean=True)), half, task)
    sc.shrink_(model, masks, optimizer=optimizer)
    return masks


def test_network_slimming_pools_channels_over_the_model_under_a_macs_budget(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    norm, optimizer = small_cnn[1], torch.optim.SGD(small_cnn.parameters(), lr=0.05, momentum=0.9)
    before, dense = norm.weight.abs().mean().item(), sc.macs(small_cnn, cnn_task.example)
    masks = network_slimming_(small_cnn, cnn_task, optimizer, [norm.weight])
    assert norm.weight.abs().mean().item() < before
    after = sc.macs(small_cnn, cnn_task.example)
    assert 0 < after <= 0.5 * dense
    assert masks.plan is not None
    assert masks.plan.promised["macs"] == after
    sc.train_(small_cnn, cnn_task, optimizer, epochs=1)  # the small model trains on


# ---------------------------------------------------------------- AMC: an allocator that tries plans, and puts the weights back


def amc(trial: Callable[[sc.Plan], float], episodes: int) -> Any:
    def allocate(sites: Sites, scores: Any) -> sc.Plan:
        generator = torch.Generator().manual_seed(0)  # the agent, for now
        kept = [{site.name: 1 + int(torch.randint(site.units, (), generator=generator)) for site in sites} for _ in range(episodes)]
        return max((plan_of(sites, each) for each in kept), key=trial)

    return allocate


def trial_of(model: nn.Module, task: sc.Task) -> Callable[[sc.Plan], float]:
    def trial(plan: sc.Plan) -> float:
        with sc.trial(model, sc.Element(), sc.TopK(sc.magnitude()), plan, task):
            return sc.evaluate(model, task, task.validation)

    return trial


def test_amc_tries_plans_and_leaves_the_weights_as_they_were_between_tries(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    weights = small_cnn[0].weight.detach().clone()
    tried: list[float] = []

    def noted(plan: sc.Plan) -> float:
        tried.append(trial_of(small_cnn, cnn_task)(plan))
        assert torch.equal(small_cnn[0].weight, weights)
        return tried[-1]

    sc.prune_(small_cnn, sc.Element(), sc.TopK(sc.magnitude()), amc(noted, episodes=4), cnn_task)
    assert len(tried) == 4
    assert sc.evaluate(small_cnn, cnn_task, cnn_task.validation) == max(tried)


# ---------------------------------------------------------------- Deep Compression: masks, then tied centroids, then a coded file


def share_(model: nn.Module, masks: sc.Masks, levels: int) -> tuple[sc.Hook, dict[str, tuple[Tensor, Tensor]]]:
    """Stub of weight sharing: quantiles for centroids. The hook trains centroids by moving all that share one together."""
    parameters = dict(model.named_parameters())
    shared = {}
    for name, mask in masks.items():
        weights = parameters[name].detach()[mask]
        centroids = weights.quantile(torch.linspace(0, 1, levels))
        shared[name] = ((weights[:, None] - centroids).abs().argmin(1), centroids)

    def tie(run: Any = None) -> None:
        for name, (codes, centroids) in shared.items():
            weights = parameters[name].detach()
            current = torch.zeros_like(centroids).scatter_reduce(0, codes, weights[masks[name]], "mean", include_self=False)
            weights[masks[name]] = current[codes]

    tie()
    return sc.Hook("centroids", stepped=tie), shared


def test_deep_compression_trains_tied_centroids_under_masks_and_writes_codes(
    small_cnn: nn.Module, cnn_task: sc.Task, tmp_path: Path
) -> None:
    masks = sc.prune_(small_cnn, sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold(sparsity=0.8), cnn_task)
    tied, shared = share_(small_cnn, masks, levels=8)
    sc.train_(small_cnn, cnn_task, torch.optim.SGD(small_cnn.parameters(), lr=0.01), 2, masks=masks, hooks=[tied])
    parameters = dict(small_cnn.named_parameters())
    for name, (codes, _) in shared.items():
        assert len(parameters[name][masks[name]].unique()) <= 8
        assert len(codes) == int(masks[name].sum())
    coded = {name: codes.to(torch.uint8) for name, (codes, _) in shared.items()}
    container.write(tmp_path / "coded.safetensors", coded, {"plan": json.loads(masks.plan.to_json()) if masks.plan else None})
    assert container.read(tmp_path / "coded.safetensors")[0].keys() == coded.keys()


def test_a_member_is_all_that_a_statistic_needs() -> None:
    seen: list[Member] = []
    statistic = sc.Statistic("noting", lambda member: seen.append(member) or InputPower())
    task = sc.Task(torch.zeros(1, 4), calibration=[(torch.ones(2, 4), None)])
    sites = sc.find_sites(nn.Linear(4, 2), sc.Element())
    stats = sc.observe(sites.model, sites, [statistic], task)
    assert [member.parameter for member in seen] == ["weight"]
    assert torch.equal(stats["weight"][statistic], torch.full((4,), 2.0))
