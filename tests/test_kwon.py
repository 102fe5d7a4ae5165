"""Heads and inner units by the Fisher information of their gates, and the numbers that stay: against loops (2204.09656)."""

from __future__ import annotations

import copy
from functools import partial
from itertools import combinations, product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import secateurs as sc
from secateurs.allocate import plan_of
from secateurs.evidence import gate_fisher, gate_importance, observe
from secateurs.patterns import find_sites
from secateurs.solve import Chosen, GateFisher
from secateurs.solve.gates import rearranged
from secateurs.types import KindError, PlanError, SecateursError, TaskError


class Pairs(nn.Module):
    """Two rows a sample, each through a small network; the answer is how they meet."""

    def __init__(self, inner: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, inner), nn.Linear(inner, 3)
        self.gates: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.up(x.flatten(0, 1)))
        y = self.down(h if self.gates is None else h * self.gates)
        a, b = y.unflatten(0, (-1, 2)).unbind(1)
        return (a * b).sum(1)


def pairs(samples: int = 12, batch: int = 4) -> tuple[Pairs, sc.Task]:
    torch.manual_seed(0)
    x, target = torch.randn(samples, 2, 4), torch.randn(samples)
    batches = [(x[i : i + batch], target[i : i + batch]) for i in range(0, samples, batch)]
    return Pairs(), sc.Task(x[:1], calibration=batches, loss=mse_loss)


def sites_of(model: nn.Module, task: sc.Task, pattern: sc.types.Pattern | None = None) -> sc.types.Sites:
    return find_sites(model, pattern or sc.Channel(), task.example, only="up")


def fisher_by_hand(model: Pairs, task: sc.Task) -> Tensor:
    """The mean over samples of the products of gradients by explicit gates."""
    total, count = torch.zeros(6, 6), 0
    for x, target in task.calibration:  # type: ignore[union-attr]
        for sample in range(len(x)):
            model.gates = torch.ones(6, requires_grad=True)
            mse_loss(model(x[sample : sample + 1]), target[sample : sample + 1]).backward()
            total, count = total + torch.outer(model.gates.grad, model.gates.grad), count + 1  # type: ignore[arg-type]
    model.gates = None
    return total / count


# ------------------------------------------------------------------------------------------------ gates


def test_the_fisher_information_of_gates_is_that_of_samples_one_by_one():
    model, task = pairs()
    sites, whole, alone = sites_of(model, task), gate_fisher(), gate_importance()
    found = observe(model, sites, [whole, alone], task)["up"]
    expected = fisher_by_hand(model, task)
    torch.testing.assert_close(found[whole], expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found[alone], expected.diagonal()[None] / 2, rtol=1e-4, atol=1e-7)
    (scores,) = sc.TopK(sc.fisher(activations=True)).scores(sites, {"up": found})
    torch.testing.assert_close(scores, next(GateFisher().scores(sites, {"up": found})))


def test_units_that_several_layers_read_are_refused():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.one, self.other = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(self.up(x)) + self.other(self.up(x).relu())

    task = sc.Task(torch.zeros(1, 4), calibration=[(torch.randn(8, 4), torch.zeros(8, 3))], loss=mse_loss)
    with pytest.raises(SecateursError, match=r"^up: its units are read by 2 layers, .*skip=\['up'\]"):
        sc.prune_(Both(), sc.Channel(), GateFisher(), sc.uniform(keep=0.5), task)


def without(products: Tensor, gone: tuple[int, ...]) -> float:
    return float(products[list(gone)][:, list(gone)].sum())


@pytest.mark.parametrize("seed", range(6))
def test_no_swap_is_left_that_helps_and_as_many_stay(seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    products, alive = drawn @ drawn.T, torch.ones(9, dtype=torch.bool)
    alive[8] = False
    start = torch.zeros(9, dtype=torch.bool)
    start[products.diagonal()[:8].topk(4).indices] = True
    kept = rearranged(products, start, alive)
    gone = tuple((alive & ~kept).nonzero().flatten().tolist())
    assert int(kept.sum()) == 4 and not kept[8]
    assert without(products, gone) <= without(products, tuple((alive & ~start).nonzero().flatten().tolist()))
    stay = kept.nonzero().flatten().tolist()
    for back, instead in product(gone, stay):
        swapped = tuple(instead if unit == back else unit for unit in gone)
        assert without(products, swapped) >= without(products, gone) - 1e-9
    best = min(without(products, some) for some in combinations(range(8), 4))
    assert without(products, gone) <= 2.0 * best + 1e-9  # measured: mostly the best itself


def test_units_that_stand_for_each_other_are_not_both_taken():
    """Alone, units 0 and 1 mean least; without both, the loss changes most."""
    products = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.5, 0.0], [0.0, 0.0, 0.0, 9.0]]).double()
    kept = rearranged(products, torch.tensor([False, False, True, True]), torch.ones(4, dtype=torch.bool))
    assert kept.tolist() in ([True, False, False, True], [False, True, False, True])


# ------------------------------------------------------------------------------------------------ scores for what a unit costs


class Two(nn.Module):
    """Two branches whose units cost 3 and 8 multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.wide, self.narrow = nn.Linear(2, 5), nn.Linear(5, 1), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x[:, :2]).relu()) + self.narrow(self.wide(x).relu())


@pytest.mark.parametrize("seed", range(4))
def test_scores_per_cost_lose_least_within_a_budget_but_for_one_unit(seed):
    torch.manual_seed(seed)
    model, scores = Two(), [torch.rand(1, 5), torch.rand(1, 4) * 2]
    sites = find_sites(model, sc.Channel(), torch.zeros(1, 4))
    budget, price = sc.Budget(sc.macs, keep=0.6), sc.macs.prepare(model, torch.zeros(1, 4))
    plan = sc.within_budget(budget, partial(sc.global_threshold, per=sc.macs))(sites, lambda: iter(scores))

    def lost(counts: tuple[int, ...]) -> float:
        ordered = [each[0].sort(descending=True).values for each in scores]
        return float(sum(each[count:].sum() for each, count in zip(ordered, counts, strict=True)))

    limit = 0.6 * price(None)
    fitting = [
        counts
        for counts in product(range(1, 6), range(1, 5))
        if price(plan_of(sites, dict(zip(plan, counts, strict=True)))) <= limit
    ]
    assert price(plan) <= limit
    assert lost(tuple(plan.values())) <= min(map(lost, fitting)) + max(float(each.max()) for each in scores)
    unpriced = sc.within_budget(budget, sc.global_threshold)(sites, lambda: iter(scores))
    assert lost(tuple(plan.values())) <= lost(tuple(unpriced.values())) + 0.5


def test_a_cost_of_nothing_is_no_price():
    free = sc.Cost("free", "nothing", lambda model, example: lambda plan: 1.0)
    sites = find_sites(Two(), sc.Channel(), torch.zeros(1, 4))
    with pytest.raises(PlanError, match=r"^up: a unit costs 0 nothing, so scores per=free mean nothing"):
        sc.global_threshold(keep=0.5, per=free)(sites, lambda: iter([torch.rand(1, 5), torch.rand(1, 4)]))
    with pytest.raises(KindError, match=r"global_threshold: per"):
        sc.global_threshold(keep=0.5, per="macs")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ one number a unit


class Residual(nn.Module):
    """Two residual branches behind normalisations, as halves of a block are."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.before = before
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
        self.ups, self.downs = (nn.ModuleList(nn.Linear(*size) for _ in range(2)) for size in ((4, 6), (6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=False):
            x = x + down(torch.tanh(up(norm(x)))) if self.before else norm(down(torch.tanh(up(x))) + x)
        return self.norms[2](x)


def sums_of(model: Residual, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What the readers are given, and the sums behind them."""
    given, sums = [], []
    for norm, up, down in zip(model.norms, model.ups, model.downs, strict=False):
        given.append(torch.tanh(up(norm(x) if model.before else x)))
        sums.append(x + down(given[-1]))
        x = sums[-1] if model.before else norm(sums[-1])
    return given, sums


@pytest.mark.parametrize("before", [True, False], ids=["normalised before", "normalised after"])
def test_the_numbers_are_those_of_a_regression_with_one_column_a_unit(before):
    torch.manual_seed(0)
    model, data = Residual(before), torch.randn(4, 10, 4)
    dense, task = copy.deepcopy(model), sc.Task(data[:1], calibration=[(each[None], None) for each in data])
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), task)
    expected = copy.deepcopy(model)
    sc.rescale_(model, dense, task, masks, damping=0.0)
    with torch.no_grad():
        for place in range(2):
            given, sums = sums_of(expected, data)
            down, stay = expected.downs[place], masks[f"ups.{place}.bias"]
            parts = (given[place][..., None, :] * down.weight).double()[..., stay]
            wanted = (sums_of(dense, data)[1][place] - (sums[place] - down(given[place])) - down.bias).double()
            numbers = torch.linalg.lstsq(parts.reshape(-1, 3), wanted.reshape(-1, 1)).solution[:, 0]
            down.weight[:, stay] *= numbers.float()
            torch.testing.assert_close(model.downs[place].weight, down.weight, rtol=1e-3, atol=1e-5)
    assert all(not parameter[~masks[name]].any() for name, parameter in model.named_parameters() if name in masks)


class Between(nn.Module):
    """A residual branch whose answer is another one before it is added."""

    def __init__(self, between) -> None:
        super().__init__()
        self.up, self.down, self.between, self.last = nn.Linear(4, 6), nn.Linear(6, 4), between, nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(x, self.down(torch.tanh(self.up(x)))))


@pytest.mark.parametrize(
    "between",
    [
        lambda x, y: x + 0.1 * y,
        lambda x, y: torch.add(x, y, alpha=0.1),
        lambda x, y: x + torch.tanh(y),
        lambda x, y: x + nn.functional.layer_norm(y, (4,)),
    ],
    ids=["scaled", "alpha", "curved", "normalised"],
)
def test_where_the_answer_is_not_added_as_it_is_the_answer_itself_is_aimed_at(between):
    torch.manual_seed(0)
    model, data = Between(between), torch.randn(10, 4)
    dense, task = copy.deepcopy(model), sc.Task(data[:1], calibration=[(data, None)])
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), task)
    with torch.no_grad():
        given, stay, expected = torch.tanh(model.up(data)), masks["up.bias"], model.down.weight.clone()
        parts = (given[:, None] * expected)[..., stay].double()
        wanted = (dense.down(torch.tanh(dense.up(data))) - model.down.bias).double()
        expected[:, stay] *= torch.linalg.lstsq(parts.reshape(-1, 3), wanted.reshape(-1, 1)).solution[:, 0].float()
    sc.rescale_(model, dense, task, masks, damping=0.0)
    torch.testing.assert_close(model.down.weight, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (3, 2)])
def test_channels_that_a_convolution_reads_are_those_of_least_squares(shape):
    """Against every product of a patch and a channel's kernel, written out."""
    torch.manual_seed(0)
    conv = {1: nn.Conv1d, 2: nn.Conv2d}[len(shape)]
    data = torch.randn(6, 1, *(4,) * len(shape))
    model = nn.Sequential(
        conv(1, 4, 1), nn.Tanh(), conv(4, 3, shape, padding="same"), nn.BatchNorm2d(3) if shape[1:] else nn.Tanh()
    )
    dense, task = copy.deepcopy(model), sc.Task(data[:1], calibration=[(data[:4], None), (data[4:], None)])
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.75), task, only="0", recalibrate=False)
    with torch.no_grad():
        given, stay, expected = torch.tanh(model[0](data)), masks["0.bias"], model[2].weight.clone()
        parts = []
        for channel in stay.nonzero().flatten():
            alone = torch.zeros_like(given)
            alone[:, channel] = given[:, channel]
            parts.append((model[2](alone) - model[2](torch.zeros_like(given))).double().flatten())
        wanted = (dense[2](torch.tanh(dense[0](data))) - model[2](torch.zeros_like(given))).double().flatten()
        numbers = torch.linalg.lstsq(torch.stack(parts, 1), wanted[:, None]).solution[:, 0].float()
        expected[:, stay] *= numbers.view(-1, *(1,) * len(shape))
    sc.rescale_(model, dense, task, masks, damping=0.0, only="0")
    torch.testing.assert_close(model[2].weight, expected, rtol=1e-3, atol=1e-5)
    assert bool((numbers - 1).abs().max() > 0.01)


def test_a_batch_that_passes_elsewhere_than_the_example_is_an_error():
    class Short(Between):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if len(x) == 1 else x + self.down(self.up(x))

    model, data = Short(torch.add), torch.randn(10, 4)
    dense, task = copy.deepcopy(model), sc.Task(data[:1], calibration=[(data, None)])
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), task)
    with pytest.raises(SecateursError, match=r"^last is called with the example, but not with a calibration batch"):
        sc.rescale_(model, dense, task, masks)


def test_where_nothing_goes_nothing_changes_and_a_large_ridge_leaves_the_numbers_at_one():
    for keep, damping in ((1.0, 0.0), (0.5, 1e9)):
        torch.manual_seed(0)
        model, data = Residual(True), torch.randn(4, 10, 4)
        dense, task = copy.deepcopy(model), sc.Task(data[:1], calibration=[(data, None)])
        masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=keep), task)
        before = copy.deepcopy(model.state_dict())
        sc.rescale_(model, dense, task, masks, damping=damping)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=1e-3, atol=1e-5)


def test_numbers_that_are_too_large_are_not_taken_and_told():
    model, data = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(32, 4)
    dense, task = copy.deepcopy(model), sc.Task(data[:1], calibration=[(data, None)])
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), task)
    with torch.no_grad():
        dense[2].weight.mul_(1000)
    before = model[2].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"^0: its units stay as they are, as the fit would count one \d+ times: give more data"):
        sc.rescale_(model, dense, task, masks, damping=1e-6)
    assert torch.equal(model[2].weight, before)


def test_units_without_one_reader_or_without_batches_are_an_error_and_the_model_as_it_was():
    model, data = nn.Sequential(nn.Conv1d(1, 4, 1), nn.Tanh(), nn.Conv1d(4, 2, 1, groups=2)), torch.randn(2, 1, 3)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), sc.Task(data))
    with pytest.raises(
        SecateursError, match=r"^0:2#2: rescale_ needs units that one linear layer or convolution \(.* by 2.weight: skip it"
    ):
        sc.rescale_(model, copy.deepcopy(model), sc.Task(data, calibration=[(data, None)]), masks)
    linear, task = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), sc.Task(torch.zeros(1, 4))
    masks = sc.prune_(linear, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), task)
    with pytest.raises(TaskError, match=r"^rescale_ needs batches"):
        sc.rescale_(linear, copy.deepcopy(linear), task, masks)


def test_a_choice_of_other_masks_is_an_error():
    model, task = pairs()
    with pytest.raises(SecateursError, match=r"^up: the masks say nothing of it; they hold elsewhere"):
        sc.prune_(
            model, sc.Channel(), Chosen({"elsewhere": torch.ones(2, dtype=torch.bool)}), sc.uniform(keep=0.5), task, only="up"
        )
    masks = sc.prune_(copy.deepcopy(model), sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.5), task, only="up")
    with pytest.raises(PlanError, match=r"^up: the plan keeps 2 units, but the solver chose 3"):
        sc.prune_(model, sc.Channel(), Chosen(masks), sc.uniform(keep=1 / 3), task, only="up")


# ------------------------------------------------------------------------------------------------ all of it


def test_an_encoder_loses_half_of_its_macs_and_little_of_what_it_knows():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
    config = transformers.BertConfig(
        **sizes, hidden_dropout_prob=0.0, initializer_range=0.3, num_labels=1, max_position_embeddings=16
    )
    model = transformers.BertForSequenceClassification(config).eval()
    tokens = torch.randint(40, (32, 8))
    target = model(tokens).logits.detach() + 0.1 * torch.randn(32, 1)
    batches = [({"input_ids": tokens[i : i + 8]}, target[i : i + 8]) for i in range(0, 32, 8)]
    task = sc.Task({"input_ids": tokens[:1]}, calibration=batches, loss=lambda output, y: mse_loss(output.logits, y))
    only = ["*:heads", "*.intermediate.dense"]

    def lost(pruned: nn.Module) -> float:
        with torch.no_grad():
            return float(mse_loss(pruned(tokens).logits, target))

    budget, small, plain = sc.Budget(sc.macs, keep=0.6), copy.deepcopy(model), copy.deepcopy(model)
    masks = sc.methods.kwon2022_(small, task, budget=budget, only=only)
    assert masks.plan.promised["macs"] <= 0.6 * sc.macs(model, task.example)
    sc.prune_(plain, sc.Channel(), sc.TopK(sc.random(0)), sc.within_budget(budget, sc.uniform), task, only=only)
    assert lost(small) < 0.5 * lost(plain)
    before = small(tokens).logits
    assert not sc.shrink_(small, masks).skipped
    torch.testing.assert_close(small(tokens).logits, before, rtol=1e-4, atol=1e-5)
    assert sc.macs(small, task.example) == masks.plan.promised["macs"]
