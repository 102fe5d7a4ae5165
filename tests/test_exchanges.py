"""Swaps and ALPS: local optima and normal equations against plain solutions, and better than what they start from."""

from __future__ import annotations

import copy
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.patterns import marked
from secateurs.solve import ALPS, Lasso, LeastSquares, SparseGPT, Swaps, TopK, swaps
from secateurs.solve.alps import conjugate_gradients
from secateurs.solve.reconstruct import GRAM, least_squares
from secateurs.types import KindError, PatternError, SecateursError, Site, Solution, Solver, Stats, Task

sys.path.insert(0, str(Path(__file__).parent))

from correlated_data import Experts, change, correlated, observed, redundant

TOP = TopK(sc.magnitude())
WANDA = TopK(sc.magnitude(p=1) * sc.input_norm())
PATTERNS = [sc.Element(), sc.Element(within="row"), sc.NofM(2, 4), sc.Element(within=6)]


def losses(layer: nn.Module, stays: Tensor, gram: Tensor) -> Tensor:
    gone = (layer.weight.detach() * ~stays).double()
    return ((gone @ gram) * gone).sum(1)


# ---------------------------------------------------------------- swaps


@pytest.mark.parametrize("start", [TOP, TopK(sc.random(seed=1)), SparseGPT(block=5)], ids=repr)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("near", [2, 128])
def test_no_exchange_helps_any_more_and_none_was_made_that_did_not(pattern, start, near, monkeypatch):
    """Every pair of every row tried, with the masks that would be; ``near`` so small that the last look at all pairs finds most."""
    monkeypatch.setattr(swaps, "_NEAR", near)
    torch.manual_seed(3)
    layer, x = nn.Linear(12, 6), correlated(40, 12)
    site, stats = observed(layer, pattern, x)
    gram = stats["weight"][GRAM][0, :12, :12].double()
    kept = site.kept_by(2 if pattern.kept_of_each else 3 if pattern.within == 6 else 5 if pattern.within == "row" else 33)
    before = site_mask(site, start(site, kept, stats).kept)
    after = site_mask(site, Swaps(start)(site, kept, stats).kept)
    assert torch.equal(before.sum(1), after.sum(1))
    best = losses(layer, after, gram)
    assert (best <= losses(layer, before, gram) * (1 + 1e-12)).all()
    assert not torch.equal(before, after)
    group = pattern.within if isinstance(pattern.within, int) else 12
    for row, back, away in product(range(6), range(12), range(12)):
        if back // group == away // group and not after[row, back] and after[row, away]:
            other = after.clone()
            other[row, back], other[row, away] = True, False
            assert losses(layer, other, gram)[row] >= best[row] * (1 - 1e-6)


def site_mask(site: Site, kept: Tensor) -> Tensor:
    return marked(site, kept)


def test_the_first_exchange_is_the_best_one():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 1), correlated(40, 8)
    site, stats = observed(layer, sc.Element(), x)
    gram = stats["weight"][GRAM][0, :8, :8].double()
    rows = swaps._Rows(swaps.layer_of(site, stats, ""), 0, torch.arange(8)[None] % 2 == 0)
    rows.products = (rows.weight * ~rows.stays) @ rows.gram
    gains, back, away = rows._best(torch.tensor([0]), 128)
    found = {}
    for one, other in product((1, 3, 5, 7), (0, 2, 4, 6)):
        stays = rows.stays.clone()
        stays[0, one], stays[0, other] = True, False
        found[one, other] = float((losses(layer, stays, gram) - losses(layer, rows.stays, gram))[0])
    assert (int(back[0]), int(away[0])) == min(found, key=found.__getitem__)
    assert float(gains[0]) == pytest.approx(min(found.values()), rel=1e-4)


def test_of_kernels_groups_and_experts_each_row_meets_its_own_inputs():
    torch.manual_seed(0)
    layers = [(nn.Conv2d(4, 6, 2, groups=2), (8, 4, 5, 5)), (nn.Conv1d(4, 4, 3), (9, 4, 8)), (Experts(), (40, 12))]
    for layer, shape in layers:
        x = correlated(*shape)
        site, stats = observed(layer, sc.Element(within="row"), x)
        member, kept = site.members[0], site.units // 2
        dense = member.canonical(member.weight.detach()).flatten(2).double()
        gram = stats[member.parameter][GRAM].double().expand(len(dense), -1, -1)[:, :-1, :-1]
        changes = []
        for solver in (TOP, Swaps(TOP)):
            gone = dense * ~member.canonical(site_mask(site, solver(site, kept, stats).kept)).flatten(2)
            changes.append(((gone @ gram) * gone).sum(2))
        assert (changes[1] <= changes[0]).all() and changes[1].sum() < 0.9 * changes[0].sum()


def test_earlier_removals_and_tails_stand():
    torch.manual_seed(0)
    for pattern in (sc.Element(), sc.NofM(2, 4, tail="keep")):
        for solver in (Swaps(WANDA), ALPS(), LeastSquares(Swaps(WANDA))):
            layer, x = nn.Linear(14, 8), correlated(60, 14)
            task = Task(x[:1], calibration=[(x, None)])
            first = sc.prune_(layer, sc.Element(), TOP, sc.uniform(sparsity=0.3), task, only="*")
            allocate = None if pattern.kept_of_each else sc.uniform(sparsity=0.6)
            second = sc.prune_(layer, pattern, solver, allocate, task, only="*", masks=first)
            assert not (second["weight"] & ~first["weight"]).any() and not layer.weight[~second["weight"]].any()
            if pattern.kept_of_each:
                assert torch.equal(second["weight"][:, 12:], first["weight"][:, 12:])


# ---------------------------------------------------------------- ALPS


def test_conjugate_gradients_solve_the_normal_equations():
    torch.manual_seed(0)
    x = redundant(300, 24).double()
    gram, rows = x.T @ x / 300, torch.randn(10, 24).double()
    kept = torch.rand(10, 24) < 0.5
    expected = least_squares(rows, kept, gram, 1e-3, "fc")
    system = gram + 1e-3 * gram.diagonal().mean() * torch.eye(24).double()
    found = conjugate_gradients(system, rows @ system, kept, torch.zeros_like(rows), iterations=1000, tolerance=1e-10)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8) and not found[~kept].any()
    once = conjugate_gradients(system, rows @ system, kept, expected, iterations=0)
    assert torch.equal(once, expected)


@pytest.mark.parametrize("pattern", [*PATTERNS, sc.Vector("outputs")], ids=repr)
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Linear(24, 12), (60, 24)),
        (lambda: nn.Conv2d(12, 8, 2), (10, 12, 6, 6)),
        (lambda: nn.Conv1d(24, 6, 2, groups=2, bias=False), (10, 24, 9)),
    ],
    ids=["Linear", "Conv2d", "groups"],
)
def test_the_values_are_the_least_squares_for_what_stays(pattern, build, shape):
    torch.manual_seed(1)
    layer, x = build(), correlated(*shape)
    site, stats = observed(layer, pattern, x)
    kept = site.kept_by(site.fullest // 2)
    solution = ALPS(damping=1e-2)(site, kept, stats)
    expected = LeastSquares(Chosen(solution.kept), damping=1e-2)(site, kept, stats).weights
    for name, value in solution.weights.items():
        assert torch.allclose(value, expected[name], rtol=1e-2, atol=1e-3), name


class Chosen(TopK):
    """A choice that was made elsewhere."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__(sc.magnitude())
        object.__setattr__(self, "kept", kept)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        return Solution(self.kept)  # type: ignore[attr-defined]


@pytest.mark.parametrize("data", [redundant, correlated])
@pytest.mark.parametrize("pattern", [sc.Element(), sc.Element(within="row"), sc.NofM(2, 4)], ids=repr)
def test_each_is_better_than_what_it_starts_from(pattern, data):
    """Answers to data that were not used, over seeds: swaps than their start, least squares than the choice alone, ALPS than SparseGPT."""
    solvers: dict[str, Solver] = {
        "Wanda": WANDA,
        "Swaps": Swaps(WANDA),
        "SparseGPT": SparseGPT(),
        "ALPS": ALPS(),
        "Swaps, then values": LeastSquares(Swaps(WANDA)),
        "SparseGPT, then values": LeastSquares(SparseGPT()),
    }
    errors = dict.fromkeys(solvers, 0.0)
    for seed in range(3):
        torch.manual_seed(seed)
        dense, x = nn.Linear(64, 48), data(800, 64, seed=seed)
        new, task = x[400:], Task(x[:1], calibration=[(x[:400], None)])
        for name, solver in solvers.items():
            layer = copy.deepcopy(dense)
            sc.prune_(layer, pattern, solver, None if pattern.kept_of_each else sc.uniform(sparsity=0.6), task, only="*")
            errors[name] += change(layer, dense, new)
    assert errors["Swaps"] < 0.8 * errors["Wanda"] and errors["Swaps, then values"] < errors["Swaps"]
    assert errors["SparseGPT, then values"] < errors["SparseGPT"]
    assert errors["ALPS"] < 0.8 * errors["SparseGPT"] and errors["ALPS"] < errors["Swaps, then values"]


def test_half_precision_and_columns_that_see_nothing():
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8).bfloat16(), correlated(100, 16).bfloat16()
    layer.weight.data[:, 3] = 50
    x[:, 3] = 0
    site, stats = observed(layer, sc.Element(within="row"), x)
    for solver in (ALPS(), Swaps(TopK(sc.random()))):
        solution = solver(site, site.kept_by(8), stats)
        assert not site_mask(site, solution.kept)[:, 3].any()
        assert all(value.dtype == torch.bfloat16 for value in solution.weights.values())


def test_bad_input_is_told():
    x = correlated(20, 8)
    model, task = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), Task(x[:1], calibration=[(x, None)])
    with pytest.raises(KindError, match="Swaps: start is a Criterion"):
        Swaps(sc.magnitude())  # type: ignore[arg-type]
    with pytest.raises(PatternError, match=r"^0: Swaps exchanges single weights of a row, so it needs Element.*, not Vector"):
        sc.prune_(model, sc.Vector("outputs"), Swaps(TOP), sc.uniform(sparsity=0.5), task, only="0")
    for solver in (Swaps(TOP), ALPS()):
        with pytest.raises(PatternError, match="chooses single weights, or whole columns, of one layer"):
            sc.prune_(model, sc.Channel(), solver, sc.uniform(sparsity=0.5), task)
    with pytest.raises(PatternError, match="Lasso chooses units that other layers read"):
        sc.prune_(model, sc.Element(), Swaps(Lasso()), sc.uniform(sparsity=0.5), task)
    with pytest.raises(SecateursError, match="ALPS: damping=-1 is no part"):
        ALPS(damping=-1)
    with pytest.raises(SecateursError, match="ALPS: iterations=0 is none: give a whole number from 1"):
        ALPS(iterations=0)
