"""SparseGPT: against a plain sweep in float64, exact in its counts, and better than what adjusts nothing."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.patterns import marked
from secateurs.solve import LeastSquares, SparseGPT, TopK
from secateurs.solve.reconstruct import GRAM
from secateurs.types import NonFiniteError, PatternError, SecateursError, Site, Stats, Task

sys.path.insert(0, str(Path(__file__).parent))

from correlated_data import Experts, change, correlated, observed, redundant

TOP = TopK(sc.magnitude())


# ---------------------------------------------------------------- a plain sweep


def plain_sweep(site: Site, stats: Stats, kept: int, how: SparseGPT, step: int | None) -> tuple[Tensor, Tensor]:
    """The same in float64, one column after the other, with an inverse for every column; ``step`` consecutive columns of a row compete,
    without it the whole layer (or its rows, where there are several contests). Returns weights (with the bias) and what is gone."""
    member, each = site.members[0], site.each_of(kept)
    weight = member.canonical(member.weight.detach()).flatten(2).double()
    size, gram = weight.shape[2], stats[member.parameter][GRAM].double().expand(len(weight), -1, -1)
    alive = torch.ones(member.weight.shape, dtype=torch.bool) if site.alive is None else marked(site, site.alive)
    gone, free = ~member.canonical(alive).flatten(2), member.canonical(alive).flatten(2).clone()
    bias = member.module.bias
    if bias is not None:
        weight = torch.cat([weight, bias.detach().double().view(*weight.shape[:2], 1)], 2)
        gone, free = (torch.cat([part, torch.zeros_like(part[:, :, :1])], 2) for part in (gone, free))
    n = weight.shape[2]
    systems = [g[:n, :n] + how.damping * g.diagonal()[:size].mean() * torch.eye(n).double() for g in gram]
    order = [list(range(n)) for _ in systems]
    if how.order == "activation":
        group = step or 1
        for places, g in zip(order, gram, strict=True):
            inputs = g.diagonal()[:size].view(-1, group).sum(1)
            places[:size] = [group * i + j for i in inputs.argsort(descending=True, stable=True).tolist() for j in range(group)]
    rows = site.contest_count > 1
    left = [free.sum((0, 1, 2))] if not rows else free.sum(2).flatten()
    due = [max(0, int(number) - each) for number in left]
    left = [int(number) for number in left]
    for start in range(0, n, step or how.block):
        stop = min(n, start + (step or how.block))
        losses = torch.full(weight.shape, torch.inf).double()
        for g, system in enumerate(systems):
            for place in range(start, stop):
                rest, column = order[g][place:], order[g][place]
                inverse = system[rest][:, rest].inverse()[0, 0]
                losses[g, :, column] = torch.where(free[g, :, column], weight[g, :, column] ** 2 / inverse, torch.inf)
        contests = losses.reshape(-1, n) if rows else losses.reshape(1, -1)
        for contest, values in enumerate(contests):
            here = int(values.isfinite().sum())
            if step:
                number = max(0, here - each)
            else:
                number = -(-due[contest] * here // left[contest]) if left[contest] else 0
                left[contest], due[contest] = left[contest] - here, due[contest] - number
            (gone.view(-1, n)[contest] if rows else gone.view(-1))[values.argsort(stable=True)[:number]] = True
        for place in range(start, stop):
            for g, system in enumerate(systems):
                rest, column = order[g][place:], order[g][place]
                row = system[rest][:, rest].inverse()[0]
                weight[g][:, rest] -= (weight[g, :, column] * gone[g, :, column] / row[0])[:, None] * row
                weight[g][:, column].masked_fill_(gone[g, :, column], 0)
    return weight, gone


LAYERS = [
    (lambda: nn.Linear(24, 12), (60, 24)),
    (lambda: nn.Linear(24, 12, bias=False), (60, 24)),
    (lambda: nn.Conv2d(4, 6, (2, 3)), (8, 4, 5, 6)),
    (lambda: nn.Conv1d(8, 8, 3, groups=2), (20, 8, 9)),
]


@pytest.mark.parametrize("how", [SparseGPT(block=7), SparseGPT(block=64), SparseGPT(block=10, order="activation")], ids=repr)
@pytest.mark.parametrize("pattern", [sc.Element(), sc.Element(within="row"), sc.NofM(2, 4)], ids=repr)
@pytest.mark.parametrize(("build", "shape"), LAYERS, ids=["Linear", "without bias", "Conv2d", "groups"])
@pytest.mark.parametrize("earlier", [False, True])
def test_it_is_the_plain_sweep(build, shape, pattern, how, earlier):
    torch.manual_seed(1)
    layer, x = build(), correlated(*shape)
    if pattern.kept_of_each and layer.weight.ndim > 2:
        pytest.skip("of kernels the features that compete lie apart: see the test of those")
    masks = {"weight": torch.arange(layer.weight.numel()).view(layer.weight.shape) % 5 != 1} if earlier else None
    site, stats = observed(layer, pattern, x, masks)
    kept = site.kept_by(2 if pattern.kept_of_each else 11 if pattern.within == "row" else site.available * 2 // 5)
    solution = how(site, kept, stats)
    weight, gone = plain_sweep(site, stats, kept, how, 4 if pattern.kept_of_each else None)
    size = site.members[0].shape[2:].numel()
    found = site.members[0].canonical(solution.weights["weight"]).flatten(2)
    assert int(solution.kept.sum()) == kept
    assert torch.equal(found == 0, gone[:, :, :size])
    assert torch.allclose(found.double(), weight[:, :, :size], rtol=1e-3, atol=1e-4)
    if layer.bias is not None:
        assert torch.allclose(solution.weights["bias"].double(), weight[:, :, size].flatten(), rtol=1e-3, atol=1e-4)


def test_of_kernels_the_inputs_at_one_place_compete():
    """A 2:4 convolution is the 2:4 Linear of its patches, where four inputs at one place of the kernel stand side by side."""

    def side_by_side(tensor: Tensor) -> Tensor:
        """``(…, 8 inputs, 3 places)`` as ``(…, 24)``."""
        return tensor.unflatten(-2, (2, 4)).transpose(-1, -2).flatten(-3)

    torch.manual_seed(0)
    layer, x = nn.Conv1d(8, 6, 3), correlated(20, 8, 9)
    patches = side_by_side(x.unfold(2, 3, 1).transpose(1, 2)).flatten(0, 1)
    flat = nn.Linear(24, 6)
    flat.weight.data, flat.bias.data = side_by_side(layer.weight.data), layer.bias.data.clone()
    for how in (SparseGPT(block=9), SparseGPT(order="activation")):
        site, stats = observed(layer, sc.NofM(2, 4), x)
        made = how(site, site.available, stats).weights
        site, stats = observed(flat, sc.NofM(2, 4), patches)
        expected = how(site, site.available, stats).weights
        assert torch.allclose(side_by_side(made["weight"]), expected["weight"], rtol=1e-3, atol=1e-5)
        assert torch.allclose(made["bias"], expected["bias"], rtol=1e-3, atol=1e-5)


def test_a_tail_stays_and_makes_up_for_the_others():
    torch.manual_seed(0)
    layer, x = nn.Linear(10, 6), correlated(60, 10)
    site, stats = observed(layer, sc.NofM(2, 4, tail="keep"), x)
    made = SparseGPT()(site, site.available, stats).weights["weight"]
    assert (made != 0).sum(1).tolist() == [6] * 6 and made[:, 8:].all() and not torch.equal(made[:, 8:], layer.weight[:, 8:])


# ---------------------------------------------------------------- whole columns


@pytest.mark.parametrize(("build", "shape"), LAYERS, ids=["Linear", "without bias", "Conv2d", "groups"])
def test_columns_go_one_by_one_as_least_squares_say(build, shape):
    """Greedily the column without which the answers, all other weights solved anew, change least; float64, tried one by one."""
    torch.manual_seed(2)
    layer, x = build(), correlated(*shape)
    site, stats = observed(layer, sc.Vector("outputs"), x)
    dense = site.members[0].canonical(layer.weight.detach()).flatten(2).double()
    groups, outputs, size = dense.shape
    gram = stats["weight"][GRAM].double().expand(groups, -1, -1)
    rows = dense if layer.bias is None else torch.cat([dense, layer.bias.detach().double().view(groups, outputs, 1)], 2)
    n = rows.shape[2]
    systems = [g[:n, :n] + 1e-3 * g.diagonal()[:size].mean() * torch.eye(n).double() for g in gram]

    def solved(group: int, gone: list[int]) -> tuple[float, Tensor]:
        stays, system = [place for place in range(n) if place not in gone], systems[group]
        made = torch.zeros_like(rows[group])
        made[:, stays] = torch.linalg.solve(system[stays][:, stays], (rows[group] @ system)[:, stays].T).T
        change = made - rows[group]
        return float(((change @ system) * change).sum()), made

    gone: dict[int, list[int]] = {group: [] for group in range(groups)}
    for _ in range(groups * size // 2):
        costs = {
            (group, column): solved(group, [*gone[group], column])[0] - solved(group, gone[group])[0]
            for group in range(groups)
            for column in range(size)
            if column not in gone[group]
        }
        group, column = min(costs, key=costs.__getitem__)
        gone[group].append(column)
    solution = SparseGPT(damping=1e-3)(site, site.units - groups * size // 2, stats)
    made = site.members[0].canonical(solution.weights["weight"]).flatten(2)
    for group in range(groups):
        assert (made[group] == 0).all(0).nonzero().flatten().tolist() == sorted(gone[group])
        assert torch.allclose(made[group].double(), solved(group, gone[group])[1][:, :size], rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- better than what adjusts nothing


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", [sc.Element(), sc.Element(within="row"), sc.NofM(2, 4)], ids=repr)
def test_it_changes_the_answers_less_than_magnitude_and_wanda(pattern, seed):
    torch.manual_seed(seed)
    dense, x = nn.Linear(64, 48), redundant(400, 64, seed=seed)
    task, errors = Task(x[:1], calibration=[(x, None)]), []
    for solver in (SparseGPT(block=16), TOP, TopK(sc.magnitude(p=1) * sc.input_norm())):
        layer = copy.deepcopy(dense)
        sc.prune_(layer, pattern, solver, None if pattern.kept_of_each else sc.uniform(sparsity=0.6), task, only="*")
        errors.append(change(layer, dense, x))
    assert errors[0] < 0.5 * min(errors[1:])


def test_the_method_prunes_layer_by_layer_and_leaves_the_head():
    torch.manual_seed(0)
    dense, x = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), redundant(300, 32)
    task, model = Task(x[:1], calibration=[(x, None)]), copy.deepcopy(dense)
    masks = sc.methods.sparsegpt_(model, task, sparsity=0.6)
    assert sorted(masks) == ["0.weight", "2.weight"] and masks.sparsity == pytest.approx(0.6, abs=1e-3)
    by_wanda = copy.deepcopy(dense)
    sc.methods.wanda_(by_wanda, task, sparsity=0.6)
    assert change(model, dense, x) < 0.5 * change(by_wanda, dense, x)
    masks = sc.methods.sparsegpt_(copy.deepcopy(dense), task, sparsity=None, pattern=sc.NofM(2, 4), only="*")
    assert all(bool((mask.view(-1, 4).sum(1) == 2).all()) for mask in masks.values()) and len(masks) == 3


# ---------------------------------------------------------------- awkward layers


@pytest.mark.parametrize(("pattern", "kept"), [(sc.Element(), 24), (sc.NofM(2, 4), 16), (sc.Vector("outputs"), 6)], ids=repr)
def test_columns_that_see_nothing_go_first_and_are_not_touched(pattern, kept):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4), correlated(50, 8)
    layer.weight.data[:, [1, 6]] = 100.0
    x[:, [1, 6]] = 0.0
    site, stats = observed(layer, pattern, x)
    made = SparseGPT()(site, kept, stats).weights["weight"]
    assert not made[:, [1, 6]].any() and int((made != 0).sum()) == (16 if pattern.kept_of_each else 24)
    if pattern == sc.Element():
        made = SparseGPT()(site, 31, stats).weights["weight"]
        assert (made[:, [1, 6]] == 100).sum() == 7


def test_half_precision_is_solved_in_single():
    torch.manual_seed(0)
    layer, x = nn.Linear(32, 16).bfloat16(), correlated(200, 32).bfloat16()
    site, stats = observed(layer, sc.Element(), x)
    made = SparseGPT()(site, 256, stats).weights
    site32, _ = observed(layer.float(), sc.Element(), x.float())
    expected = SparseGPT()(site32, 256, stats).weights
    assert made["weight"].dtype == made["bias"].dtype == torch.bfloat16
    assert torch.equal(made["weight"], expected["weight"].bfloat16())


def test_each_expert_is_solved_with_what_it_is_given():
    torch.manual_seed(0)
    model, x = Experts(), correlated(80, 12)
    site, stats = observed(model, sc.Element(within="row"), x)
    made = SparseGPT()(site, site.kept_by(6), stats).weights["matrices"]
    for expert in range(2):
        alone = nn.Linear(12, 8, bias=False)
        alone.weight.data = model.matrices[expert].detach().T.contiguous()
        one, seen = observed(alone, sc.Element(within="row"), x[expert::2])
        assert torch.allclose(made[expert].T, SparseGPT()(one, one.kept_by(6), seen).weights["weight"], rtol=1e-3, atol=1e-5)


def test_earlier_removals_stand_and_the_others_make_up_for_them():
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8), redundant(100, 16)
    task, dense = Task(x[:1], calibration=[(x, None)]), copy.deepcopy(layer)
    first = sc.prune_(layer, sc.Element(), TOP, sc.uniform(sparsity=0.3), task, only="*")
    layer.load_state_dict(dense.state_dict())  # as if the mask had been found elsewhere
    second = sc.prune_(layer, sc.Element(), SparseGPT(), sc.uniform(sparsity=0.3), task, only="*", masks=first)
    assert torch.equal(first["weight"], second["weight"])
    plain = copy.deepcopy(dense)
    plain.weight.data *= first["weight"]
    assert change(layer, dense, x) < 0.5 * change(plain, dense, x)


# ---------------------------------------------------------------- bad input


def test_data_that_do_not_tell_raise_the_damping_or_an_error():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4), torch.randn(200, 1) @ torch.randn(1, 8)
    site, stats = observed(layer, sc.Element(), x)
    with pytest.warns(UserWarning, match=r"^weight: its inputs depend on each other, so damping was raised by 1e-0\d"):
        made = SparseGPT(damping=0.0)(site, 16, stats)
    assert made.weights["weight"].isfinite().all()
    no_gram = torch.eye(9)[None] - 100 * torch.ones(1, 9, 9)
    with pytest.raises(SecateursError, match=r"^weight: the products of its inputs are no Gram matrix"):
        SparseGPT()(site, 16, {"weight": {GRAM: no_gram}})
    with pytest.raises(NonFiniteError, match=r"^weight: the products of its inputs are NaN or infinite"):
        SparseGPT()(site, 16, {"weight": {GRAM: torch.full((1, 9, 9), torch.nan)}})
    layer.weight.data[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"^weight: a weight is NaN or infinite"):
        SparseGPT()(site, 16, stats)
    with pytest.raises(SecateursError, match=r"^weight: SparseGPT needs input_gram of weight, which was not observed"):
        SparseGPT()(site, 16, {})


def test_what_is_not_defined_is_told():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), correlated(20, 8)
    task = Task(x[:1], calibration=[(x, None)])
    needed = r"^0: SparseGPT chooses single weights, or whole columns, of one layer, so it needs Element"
    for pattern, only in ((sc.Filter(), "0"), (sc.Vector("inputs", 2), "0"), (sc.Block(2, 2), "0"), (sc.Channel(), None)):
        with pytest.raises(PatternError, match=needed):
            sc.prune_(copy.deepcopy(model), pattern, SparseGPT(), sc.uniform(sparsity=0.5), task, only=only)
    with pytest.raises(SecateursError, match="SparseGPT: damping=-1 is no part"):
        SparseGPT(damping=-1)
    with pytest.raises(SecateursError, match="SparseGPT: block=0 is no number of columns"):
        SparseGPT(block=0)
    with pytest.raises(SecateursError, match="SparseGPT: order='size' is none of"):
        SparseGPT(order="size")  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", [sc.Element(), sc.Vector("outputs")], ids=repr)
def test_scores_are_the_losses_when_one_unit_goes(pattern):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 3), correlated(50, 6)
    site, stats = observed(layer, pattern, x)
    (scores,) = SparseGPT(damping=1e-6).scores([site], stats)
    for unit in range(site.units):
        kept = torch.ones(1, site.units, dtype=torch.bool)
        kept[0, unit] = False
        solver = LeastSquares(Fixed(kept), damping=0.0)
        made = solver(site, site.units - 1, stats).weights
        changed = (x @ (made["weight"] - layer.weight).T + made["bias"] - layer.bias).square().sum(1).mean().detach()
        assert scores[0, unit] == pytest.approx(float(changed), rel=1e-2)


class Fixed(TopK):
    """A choice that was made elsewhere."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__(sc.magnitude())
        object.__setattr__(self, "kept", kept)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Any:
        return sc.types.Solution(self.kept)  # type: ignore[attr-defined]
