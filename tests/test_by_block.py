"""Allocators that give some blocks more than others: outliers among scores, spectra of weights, and plans made beforehand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.cli.parts import parsed_allocator
from secateurs.patterns import find_sites
from secateurs.solve import TopK
from secateurs.types import KindError, NonFiniteError, PlanError, SecateursError, Task

WANDA = TopK(sc.magnitude(p=1) * sc.input_norm())


class Block(nn.Sequential):
    """Two layers with a shortcut around."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class Stack(nn.Module):
    """Blocks of two layers each, and a head."""

    def __init__(self, blocks: int = 4, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)) for _ in range(blocks)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def stack(seed: int = 0, **sizes: int) -> Stack:
    torch.manual_seed(seed)
    return Stack(**sizes)


def task(model: Stack) -> Task:
    width = model.head.in_features
    data = torch.randn(64, width)
    return Task(example=data[:1], calibration=[(data, None)])


def plainly_owl(model: Stack, data: torch.Tensor, sparsity: float, times: float, spread: float) -> list[float]:
    """Sparsity of each block as the paper says it: outliers among |w|·‖x‖, scaled to ± spread about the mean."""
    inputs: dict[nn.Module, torch.Tensor] = {}
    layers = [layer for block in model.blocks for layer in block if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(lambda module, given, _: inputs.update({module: given[0]})) for layer in layers]
    model(data)
    for hook in hooks:
        hook.remove()
    shares = []
    for block in model.blocks:
        scores = torch.cat([(layer.weight.abs() * inputs[layer].norm(dim=0)).flatten() for layer in block if layer in inputs])
        shares.append(float((scores > times * scores.mean()).double().mean()))
    away = torch.tensor(shares) - torch.tensor(shares).mean()
    return (sparsity - spread * away / away.abs().max()).tolist()


@pytest.mark.parametrize("pattern", [sc.Element(), sc.Element(within="row")], ids=repr)
def test_owl_keeps_what_the_paper_says_of_each_block(pattern):
    model = stack()
    with torch.no_grad():
        model.blocks[1][0].weight[0] *= 40
    data = torch.randn(64, 16)
    work = Task(example=data[:1], calibration=[(data, None)])
    plan = sc.planned(model, pattern, WANDA, sc.owl(sparsity=0.6, times=3), work, only="blocks")
    expected = plainly_owl(model, data, 0.6, times=3, spread=0.08)
    assert len(set(expected)) > 2
    for name, share in plan.shares.items():
        unit = 1 if pattern.within == "layer" else share.units // 16  # rows keep the same number each
        assert abs(share.sparsity - expected[int(name.split(".")[1])]) <= (unit + 1) / share.units, name
    assert abs(plan.sparsity - 0.6) < 1e-3 or pattern.within == "row"
    assert abs(min(expected) - 0.52) < 1e-6 or abs(max(expected) - 0.68) < 1e-6


def test_owl_takes_any_scores_that_are_positive_and_leaves_out_what_is_gone():
    model = stack()
    masks = sc.prune_(model, sc.Element(), TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task(model), only="blocks")
    again = sc.prune_(model, sc.Element(), TopK(sc.magnitude()), sc.owl(sparsity=0.7), task(model), only="blocks", masks=masks)
    assert again.kept == round(0.3 * again.plan.shares["blocks.0.0"].units * 8)
    negative = sc.Criterion("negative", lambda evidence: -evidence.weight.abs(), lambda values, dims: values.sum(dims))
    with pytest.raises(
        PlanError, match=r"blocks\.0\.0.*5 times the mean of their block.*take a criterion whose scores are positive"
    ):
        sc.prune_(stack(), sc.Element(), TopK(negative), sc.owl(sparsity=0.5), task(model))


def test_a_plan_made_on_the_dense_model_guides_another_solver_one_layer_after_the_other():
    model = stack()
    work, before = task(model), copy.deepcopy(model.state_dict())
    plan = sc.planned(model, sc.Element(), WANDA, sc.owl(sparsity=0.5, times=2), work, only="blocks")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    masks = sc.prune_(model, sc.Element(), sc.SparseGPT(), plan, work, only="blocks", walk=sc.in_order("blocks.*"))
    assert {name.removesuffix(".weight"): int(mask.sum()) for name, mask in masks.items()} == dict(plan)
    assert sc.Plan.from_json(plan.to_json())(None, None) == plan  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"scores of all sites, which are not there.*planned\(\.\.\.\)"):
        sc.prune_(model, sc.Element(), WANDA, sc.owl(sparsity=0.5), work, walk=sc.in_order())


def test_heavy_tails_keep_more_by_hills_estimator():
    model = stack(blocks=3)
    with torch.no_grad():  # spectra of known power laws: the k-th eigenvalue of n is (n/k)^(1/(α-1))
        for block, alpha in zip(model.blocks, (2.0, 3.0, 6.0), strict=True):
            for layer in (block[0], block[2]):
                u, _, v = torch.linalg.svd(layer.weight, full_matrices=False)
                values = (16 / torch.arange(1, 17)) ** (1 / (alpha - 1))
                layer.weight.copy_(u @ torch.diag(values.sqrt()) @ v)
    hill = [sum(torch.log((16 / torch.arange(1, 9)) / (16 / 9)) / (a - 1)) for a in (2.0, 3.0, 6.0)]
    exponents = [1 + 8 / float(each) for each in hill]
    scaled = [0.7 + 0.6 * (e - exponents[0]) / (exponents[2] - exponents[0]) for e in exponents]
    expected = [0.5 * each / (sum(scaled) / 3) for each in scaled]
    plan = sc.alpha_pruning(sparsity=0.5)(find_sites(model, sc.Element(), torch.zeros(1, 16), only="blocks"), None)  # type: ignore[arg-type]
    for name, share in plan.shares.items():
        assert abs(share.sparsity - expected[int(name.split(".")[1])]) < 2 / share.units
    assert expected[0] < expected[1] < expected[2] and sum(plan.values()) == 3 * 512


def test_alpha_pruning_decides_for_layers_that_are_observed_one_after_the_other():
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 16, 4))
    data = torch.randn(8, 2, 8, 8)
    work = Task(example=data[:1], calibration=[(data, None)])
    masks = sc.prune_(model, sc.Element(), sc.SparseGPT(), sc.alpha_pruning(sparsity=0.5), work, only="*weight", walk=sc.in_order())
    assert masks.kept == round(0.5 * sum(mask.numel() for mask in masks.values()))
    assert len({round(share.sparsity, 3) for share in masks.plan.shares.values()}) > 1


def test_blocks_differ_by_less_where_one_would_be_emptied_or_filled():
    model = stack()
    with torch.no_grad():
        model.blocks[1][0].weight[0] *= 40
    sites = find_sites(model, sc.Element(), torch.zeros(1, 16), only="blocks")
    scores = lambda: TopK(sc.magnitude()).scores(sites, {})  # noqa: E731
    for keep in (0.02, 0.1, 0.5, 0.9, 0.99, 1.0):
        for allocate in (
            sc.owl(keep=keep, spread=0.5),
            sc.alpha_pruning(keep=keep, spread=1),
        ):
            plan = allocate(sites, scores)
            assert sum(plan.values()) == round(keep * 4 * 1024)
            assert all(share.kept >= keep / 2 * share.units - 1 for share in plan.shares.values())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: sc.owl(sparsity=0.5, blocks="block"),
            r"blocks='block': the model has no module of this name; did you mean blocks",
        ),
        (
            lambda: sc.alpha_pruning(sparsity=0.5, blocks=["blocks", "layers"]),
            "blocks='layers': the model has no module of this name",
        ),
        (lambda: sc.owl(sparsity=0.5, times=0), "times=0 is not above 0"),
        (lambda: sc.owl(sparsity=0.5, spread=2), "spread=2 is not above 0 and at most 1"),
        (lambda: sc.alpha_pruning(sparsity=0.5, tail=-1), "tail=-1 is not above 0 and at most 1"),
    ],
)
def test_what_makes_no_plan_is_said(make, said):
    model = stack()
    with pytest.raises(SecateursError, match=said):
        sc.prune_(model, sc.Element(), TopK(sc.magnitude()), make(), task(model))


def test_numbers_are_numbers_patterns_decide_and_weights_have_spectra():
    model = stack()
    with pytest.raises(KindError, match="owl: times is '5', but must be a number"):
        sc.owl(sparsity=0.5, times="5")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"owl\(keep=0\.4\) keeps .* by itself"):
        sc.prune_(model, sc.NofM(2, 4), WANDA, sc.owl(sparsity=0.6), task(model), only="blocks")
    for make in (sc.owl, sc.alpha_pruning):
        with pytest.raises(PlanError, match="decides layer by layer"):
            sc.prune_(model, sc.Element(within="model"), WANDA, make(sparsity=0.6), task(model))
    column = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 4))
    with pytest.raises(PlanError, match=r"0.*sees one eigenvalue.*needs two at least: skip=\['0"):
        sc.alpha_pruning(sparsity=0.5)(find_sites(column, sc.Element(), only="*"), None)  # type: ignore[arg-type]
    nothing = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nothing[1].weight.data.zero_()
    with pytest.raises(PlanError, match=r"1: all of 1\.weight is zero, so alpha_pruning sees no spectrum"):
        sc.alpha_pruning(sparsity=0.5)(find_sites(nothing, sc.Element(), only="*.weight"), None)  # type: ignore[arg-type]
    model.blocks[0][0].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"blocks\.0\.0\.weight"):
        sc.alpha_pruning(sparsity=0.5)(find_sites(model, sc.Element(), only="blocks"), None)  # type: ignore[arg-type]


def test_they_are_written_on_the_command_line_as_in_python():
    sites = find_sites(stack(), sc.Element(), torch.zeros(1, 16), only="blocks")
    made = parsed_allocator("alpha-pruning(spread=0.2)")
    assert made(sparsity=0.5)(sites, None) == sc.alpha_pruning(sparsity=0.5, spread=0.2)(sites, None)  # type: ignore[arg-type]
    assert parsed_allocator("owl(times=7)").func is sc.owl
    with pytest.raises(SecateursError, match="write alpha-pruning, erdos-renyi, global, owl, uniform, with arguments"):
        parsed_allocator("layers")
