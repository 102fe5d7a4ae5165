"""Reconstruction: least squares, LASSO and ThiNet against plain solutions, and never worse than without."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.evidence import observe
from secateurs.patterns import find_sites
from secateurs.prune import masks_of
from secateurs.solve import Lasso, LeastSquares, ThiNet, TopK
from secateurs.solve.reconstruct import GRAM, least_squares, unit_products
from secateurs.types import KindError, PatternError, SecateursError, Solution, Task

TOP = TopK(sc.magnitude())


def task_of(*shape: int, batches: int = 3, correlated: bool = True) -> Task:
    generator = torch.Generator().manual_seed(5)
    data = [torch.randn(shape, generator=generator) for _ in range(batches)]
    if correlated:  # neighbours tell about each other, so that there is something to make up for
        data = [x + 0.8 * x.roll(1, dims=1) + 0.5 for x in data]
    return Task(data[0][:1], calibration=[(x, None) for x in data])


def answers(model: nn.Module, task: Task) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in task.calibration])


def error(model: nn.Module, dense: nn.Module, task: Task) -> float:
    return float((answers(model, task) - answers(dense, task)).square().mean())


@pytest.mark.parametrize(
    "pattern", [sc.Element(), sc.Element(within="row"), sc.NofM(2, 4), sc.Vector("outputs", 2), sc.Block(2, 2)], ids=repr
)
def test_each_row_is_the_least_squares_solution_for_what_stays(pattern):
    torch.manual_seed(0)
    layer, task = nn.Linear(8, 6), task_of(40, 8)
    dense = copy.deepcopy(layer)
    allocate = None if pattern.kept_of_each else sc.uniform(sparsity=0.5)
    masks = sc.prune_(layer, pattern, LeastSquares(TOP, damping=0.0), allocate, task, only="*")
    x = torch.cat([x for x, _ in task.calibration]).double()
    wanted = x @ dense.weight.double().T + dense.bias.double()
    for row in range(6):
        kept = masks["weight"][row]
        columns = torch.cat([x[:, kept], torch.ones(len(x), 1).double()], dim=1)
        solution = torch.linalg.lstsq(columns, wanted[:, row]).solution
        assert torch.allclose(layer.weight[row, kept].double(), solution[:-1], rtol=1e-3, atol=1e-5)
        assert torch.allclose(layer.bias[row].double(), solution[-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4)),
        lambda: nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4, bias=False)),
    ],
)
@pytest.mark.parametrize("solver", [LeastSquares(TOP, 0.0), Lasso(0.0), ThiNet(0.0)], ids=repr)
def test_the_readers_of_channels_are_the_least_squares_solution(build, solver):
    torch.manual_seed(1)
    model, task = build(), task_of(50, 6)
    dense = copy.deepcopy(model)
    masks = sc.prune_(model, sc.Channel(), solver, sc.uniform(sparsity=0.5), task)
    kept = masks["0.weight"].any(1)
    assert int(kept.sum()) == 5
    hidden = torch.cat([dense[:2](x) for x, _ in task.calibration]).detach().double()
    columns, reader = hidden[:, kept], dense[2]
    if reader.bias is not None:
        columns = torch.cat([columns, torch.ones(len(columns), 1).double()], dim=1)
    solution = torch.linalg.lstsq(columns, answers(dense, task).double()).solution
    assert torch.allclose(model[2].weight[:, kept].double(), solution[:5].T, rtol=1e-3, atol=1e-5)
    assert not model[2].weight[:, ~kept].any()
    small = copy.deepcopy(model)
    assert not sc.shrink_(small, masks.bind(small), task.example).skipped
    assert torch.allclose(small(task.example), model(task.example), atol=1e-6)


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))


def convolutions() -> nn.Module:
    first, second = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 6, 3)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.Flatten(), nn.Linear(54, 5))


def groups() -> nn.Module:
    first, second = nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 8, 3, groups=2)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv1d(8, 4, 1))


NETS: list[tuple[Any, tuple[int, ...]]] = [(linear, (30, 8)), (convolutions, (20, 4, 7, 7)), (groups, (20, 4, 9))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("build", "shape"), NETS)
@pytest.mark.parametrize(
    ("pattern", "solvers"),
    [
        (sc.Element(), (TOP, LeastSquares(TOP))),
        (sc.Channel(), (TOP, LeastSquares(TOP))),
        (sc.Channel(), (TOP, Lasso())),
        (sc.Channel(), (TOP, ThiNet())),
    ],
    ids=["weights", "channels", "Lasso", "ThiNet"],
)
def test_a_reconstructed_network_answers_more_like_the_dense_one(build, shape, pattern, solvers, seed):
    torch.manual_seed(seed)
    dense, task = build().eval(), task_of(*shape)
    errors = []
    for solver in solvers:
        model = copy.deepcopy(dense)
        sc.prune_(model, pattern, solver, sc.uniform(sparsity=0.5), task, walk=sc.in_order(), recalibrate=False)
        errors.append(error(model, dense, task))
    assert errors[1] < 0.8 * errors[0]


def test_what_units_add_to_the_answers_in_products():
    """The answers change by the sum of the products over the units that go: tried with every pair, groups and kernels included."""
    torch.manual_seed(0)
    model, task = NETS[2][0](), task_of(6, 4, 9)
    sites = find_sites(model, sc.Channel(), task.example)
    stats = observe(model, sites, [GRAM], task)
    for site in sites:
        products, (reader,) = (
            unit_products(site, stats),
            [int(member.parameter[0]) for member in site.members if member.role == "consumer"],
        )
        hidden = torch.cat([model[:reader](x) for x, _ in task.calibration]).detach()
        for gone in combinations(range(site.units), 2):
            kept = torch.ones(1, site.units, dtype=torch.bool)
            kept[0, list(gone)] = False
            made = masks_of(site, Solution(kept))[site.members[0].parameter].flatten(1).any(1)
            without = hidden * made.view(1, -1, 1)
            change = (model[reader](hidden) - model[reader](without)).detach().double().square().sum(1).mean()
            assert torch.allclose(products[list(gone)][:, list(gone)].sum(), change, rtol=1e-4)


def test_thinet_is_greedy_and_lasso_takes_the_support_of_a_penalty():
    from sklearn.linear_model import lars_path_gram

    torch.manual_seed(3)
    model, task = NETS[0][0](), task_of(30, 8)
    (site, _) = find_sites(model, sc.Channel(), task.example)
    stats = observe(model, [site], [GRAM], task)
    products = unit_products(site, stats)
    gone: list[int] = []
    for _ in range(7):
        costs = {unit: float(products[[*gone, unit]][:, [*gone, unit]].sum()) for unit in range(12) if unit not in gone}
        gone.append(min(costs, key=costs.__getitem__))
    assert set((~ThiNet()(site, 5, stats).kept[0]).nonzero().flatten().tolist()) == set(gone)
    scores = next(ThiNet().scores([site], stats))[0]
    assert scores[gone].diff().ge(0).all() and scores[gone].max() <= scores[[unit for unit in range(12) if unit not in gone]].min()
    scaled = (products / products.diagonal().mean()).numpy()
    _, _, path = lars_path_gram(scaled.sum(1), scaled, n_samples=1, method="lasso")
    for kept in range(1, 12):
        supports = [set(column.nonzero()[0]) for column in path.T if (column != 0).sum() == kept]
        found = set(Lasso()(site, kept, stats).kept[0].nonzero().flatten().tolist())
        assert len(found) == kept and (not supports or found == supports[0])


def test_earlier_removals_stand():
    torch.manual_seed(0)
    for pattern, solver in (
        (sc.Element(), LeastSquares(TOP)),
        (sc.Channel(), LeastSquares(TOP)),
        (sc.Channel(), Lasso()),
        (sc.Channel(), ThiNet()),
    ):
        model, task = NETS[0][0](), task_of(30, 8)
        first = sc.prune_(model, pattern, solver, sc.uniform(sparsity=0.3), task)
        second = sc.prune_(model, pattern, solver, sc.uniform(sparsity=0.6), task, masks=first)
        for name, mask in second.items():
            assert not (mask & ~first[name]).any() and not dict(model.named_parameters())[name][~mask].any()


def test_stacked_and_half_precision_weights():
    torch.manual_seed(0)
    model, task = NETS[0][0]().bfloat16(), task_of(30, 8)
    task = Task(task.example.bfloat16(), calibration=[(x.bfloat16(), None) for x, _ in task.calibration])
    dense = copy.deepcopy(model)
    sc.prune_(model, sc.Channel(), LeastSquares(TOP), sc.uniform(sparsity=0.5), task)
    assert model[2].weight.dtype == torch.bfloat16 and error(model, dense, task) < 1


def test_rank_deficient_data_raise_the_damping_or_keep_the_weights():
    gram, rows = torch.zeros(4, 4).double(), torch.randn(2, 4).double()
    gram[0, 0] = gram[-1, -1] = 1.0
    kept = torch.tensor([[True, True, False, True]]).expand(2, 4)
    found = least_squares(rows, kept, gram, 1e-4, "fc")
    assert torch.allclose(found[:, [0, 1, 3]], rows[:, [0, 1, 3]], rtol=1e-3) and not found[:, 2].any()
    with pytest.warns(UserWarning, match="fc: its inputs depend on each other, so damping was raised"):
        assert bool(least_squares(rows, kept, gram, 0.0, "fc").isfinite().all())


def test_bad_input_is_told():
    model, task = NETS[0][0](), task_of(4, 8)
    with pytest.raises(KindError, match="LeastSquares: choice is"):
        LeastSquares(sc.magnitude())  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match=r"Lasso: damping=-1 is no part"):
        Lasso(-1)
    with pytest.raises(
        PatternError, match=r"^0: Lasso chooses units that other layers read, so it needs Channel\(\) or Head\(\), not Element"
    ):
        sc.prune_(model, sc.Element(), Lasso(), sc.uniform(sparsity=0.5), task)
    with pytest.raises(sc.TaskError, match="must be observed on data"):
        sc.prune_(model, sc.Channel(), ThiNet(), sc.uniform(sparsity=0.5), Task(task.example))
    with pytest.raises(sc.SecateursError, match="NaN or infinite"):
        sc.prune_(
            model, sc.Channel(), ThiNet(), sc.uniform(sparsity=0.5), Task(task.example, calibration=[torch.full((2, 8), torch.nan)])
        )
