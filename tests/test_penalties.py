"""Penalties: what a step of each does, against a minimiser that looks for it by itself; targets; what is cut; stopping and going on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import network_slimming_
from secateurs.patterns import as_units
from secateurs.recover.groups import Groups
from secateurs.recover.penalties import _Cost
from secateurs.types import FileError, KindError, NonFiniteError, PatternError, Run, SecateursError


def sgd(model: nn.Module, lr: float = 0.1, **more: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, **more)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, 3)
    )


class Stopping:
    """Batches whose walk of a number fails, as if the process had been killed."""

    def __init__(self, batches: list[Any], fails: int | None) -> None:
        self.batches, self.fails, self.walks = batches, fails, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if self.walks == self.fails:
            raise KeyboardInterrupt
        self.walks += 1
        return iter(self.batches)


def task(fails: int | None = None) -> sc.Task:
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(24, 1, 6, 6, generator=generator), torch.randint(3, (24,), generator=generator)
    batches = [(images[i : i + 8], target[i : i + 8]) for i in range(0, 24, 8)]
    return sc.Task(images[:1], train=Stopping(batches, fails), loss=nn.functional.cross_entropy)


def without_gradient() -> sc.Task:
    """One step an epoch that changes nothing, so that a penalty is alone."""
    x = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return sc.Task(x[:1], train=[(x, x)], loss=lambda output, target: 0 * output.float().sum())


def trained(model: nn.Module, hook: sc.Hook, epochs: int = 1, lr: float = 0.1, which: sc.Task | None = None, **more: Any) -> Run:
    return sc.train_(model, which or without_gradient(), sgd(model, lr), epochs, hooks=[hook], show=False, **more)


# ---------------------------------------------------------------- what a step does


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.03, 0.3, 3.0]), st.booleans(), st.sampled_from([0.0, 4.0]), st.booleans())
def test_a_proximal_step_minimises_what_it_says(seed: int, by: float, squared: bool, growth: float, by_size: bool):
    """½‖x − w‖² + by · cost(x), the factors being those of w: no point around the step is better."""
    torch.manual_seed(seed)
    layer = nn.Linear(3, 4).double()
    if seed % 3 == 0:
        layer.weight.data[1] = 0
    groups = Groups(sc.find_sites(layer, sc.Filter(), only="*")[0], (0,))
    cost, before = _Cost(by_size and not squared, growth, squared), layer.weight.detach().clone()
    factors = cost.factors(before.norm(dim=1)[None], 3)[0]

    def value(x: Tensor) -> Tensor:
        norms = x.norm(dim=-1)
        return ((x - before) ** 2).sum((-1, -2)) / 2 + by * (factors * (norms**2 if squared else norms)).sum(-1)

    cost.shrink_(groups, by, 1.0)
    step = layer.weight.detach()
    best = float(value(step))
    sizes = torch.tensor([1e-4, 1e-2, 1.0], dtype=torch.double).repeat(50)[:, None, None]
    assert float(value(step + sizes * torch.randn(150, 4, 3, dtype=torch.double)).min()) >= best - 1e-12
    norms = before.norm(dim=1)
    if not squared:
        torch.testing.assert_close(step.norm(dim=1), (norms - by * factors).clamp_min(0))
        assert bool((step[norms <= by * factors] == 0).all())


@pytest.mark.parametrize(("seed", "strength", "p"), [(0, 0.0, 1), (1, 0.5, 1), (2, 0.5, 2), (3, 2.0, 1)])
def test_a_proximal_step_on_single_weights_minimises_what_it_says(seed: int, strength: float, p: int):
    torch.manual_seed(seed)
    layer, x = nn.Linear(3, 2).double(), torch.zeros(1, 3, dtype=torch.double)
    before = layer.weight.detach().clone()
    blind = sc.Task(x, train=[(x, x)], loss=lambda output, target: 0 * output.sum())
    trained(layer, sc.penalty(strength, p=p, step="proximal"), which=blind, lr=0.5)
    grid = torch.linspace(-1, 1, 10_001, dtype=torch.double)
    best = grid[((grid - before[..., None]) ** 2 / 2 + 0.5 * strength * grid.abs() ** p).argmin(-1)]
    torch.testing.assert_close(layer.weight.detach(), best, atol=4e-4, rtol=0)


@pytest.mark.parametrize("step", ["proximal", "subgradient"])
def test_norms_of_coupled_units_shrink_by_exactly_the_step(step: Any):
    model = network()
    model[0].weight.data[2] *= 1e-3
    (site,) = (site for site in sc.find_sites(model, sc.Channel(), without_gradient().example) if site.name == "0")
    rows = lambda: torch.cat([as_units(site, m.weight.detach(), i).reshape(6, -1) for i, m in enumerate(site.members)], dim=1)  # noqa: E731
    before, size = rows(), 9 + 1 + 2 + 8 * 16
    trained(model, sc.group_lasso(sc.Channel(), 0.05, only="0", step=step), epochs=2, lr=0.1)
    after = rows()
    torch.testing.assert_close(after.norm(dim=1), (before.norm(dim=1) - 2 * 0.1 * 0.05 * size**0.5).clamp_min(0))
    torch.testing.assert_close(torch.cosine_similarity(before, after), torch.ones(6))


class Residual(nn.Module):
    """Attention and two blocks of perceptrons, with what is added to a stream."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(2)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("pattern", "only", "step"),
    [
        (sc.Element(), "head", "proximal"),
        (sc.Element(within="row"), "head", "proximal"),
        (sc.Filter(), "attention.out_proj", "proximal"),
        (sc.Vector("outputs"), "head", "proximal"),
        (sc.Block(2, 4), "blocks.0.0", "proximal"),
        (sc.NofM(2, 4), "blocks.0.0", "proximal"),
        (sc.Head(), None, "proximal"),
        (sc.Channel(), "blocks.1.0", "proximal"),
        (sc.Depth(), "blocks.1", "proximal"),
        (sc.Block(2, 4), "blocks.0.0", "subgradient"),
        (sc.Head(), None, "subgradient"),
    ],
    ids=repr,
)
def test_units_of_every_pattern_shrink_by_exactly_the_step(pattern: Any, only: Any, step: Any):
    model, x = Residual(), torch.randn(2, 4, 8)
    blind = sc.Task(x, train=[(x, x)], loss=lambda output, target: 0 * output.sum())
    (site,) = list(sc.find_sites(model, pattern, x, only=only))[:1]
    groups = Groups(site, tuple(range(len(site.members))))
    before, others = groups.norms().detach(), {name: each.detach().clone() for name, each in model.named_parameters()}
    trained(model, sc.group_lasso(pattern, 0.01, only=only, step=step), which=blind)
    torch.testing.assert_close(groups.norms().detach(), before - 0.1 * 0.01 * groups.size**0.5)
    inside = {member.parameter for member in site.members}
    assert all(torch.equal(each, others[name]) for name, each in model.named_parameters() if name not in inside) or only is None


def test_whole_blocks_go_to_a_target():
    model, x = Residual(), torch.randn(2, 4, 8)
    data = sc.Task(x, train=[(x, x[..., :3])] * 3, loss=nn.functional.mse_loss)
    run = trained(model, sc.group_lasso(sc.Depth(), target=0.3, only="blocks"), epochs=8, which=data)
    assert sorted(run.masks.plan.values()) == [0, 1]
    expected = model(x)
    assert len(sc.shrink_(model, run.masks, x).skipped) == 0 and torch.allclose(model(x), expected, atol=1e-5)
    assert sum(parameter.numel() for parameter in model.blocks.parameters()) == 48 + 6 + 48 + 8


def test_tied_weights_cost_once_and_empty_layers_nothing():
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    before, x = tied[0].weight.detach().clone(), torch.zeros(1, 4)
    blind = sc.Task(x, train=[(x, x)], loss=lambda output, target: 0 * output.sum())
    for hook in (sc.penalty(0.01, p=1, step="proximal"), sc.group_lasso(sc.Element(), 0.01)):
        tied[0].weight.data = before.clone()
        trained(tied, hook, which=blind)
        torch.testing.assert_close(tied[0].weight.detach(), nn.functional.softshrink(before, 0.001))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of an initialisation of nothing
        empty = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4))
    with pytest.raises(PatternError, match=r"finds no unit|no prunable|finds no site"):
        trained(empty, sc.group_lasso(sc.Element(), 0.01), which=blind)
    trained(empty, sc.penalty(0.01, p=1, step="proximal"), which=blind)


def test_groups_at_zero_stay_there_although_the_loss_pulls():
    model = network()
    with torch.no_grad():
        for parameter in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            parameter[1] = 0
        model[4].weight.view(8, 6, 16)[:, 1] = 0
    trained(model, sc.group_lasso(sc.Channel(), 1e-3, only="0"), epochs=2, which=task())
    assert not bool(model[0].weight[1].any()) and bool(model[0].weight[0].any())
    gone = network()
    gone[6].weight.data[0] = 0  # here the loss pulls, and only a strong penalty holds
    for strength, holds in ((0.3, True), (1e-4, False)):
        model = copy.deepcopy(gone)
        trained(model, sc.group_lasso(sc.Filter(), strength, only="6"), which=task())
        assert bool((model[6].weight[0] == 0).all()) == holds


@pytest.mark.parametrize("step", ["proximal", "subgradient"])
def test_an_l2_penalty_is_weight_decay(step: Any):
    models = [network() for _ in range(2)]
    sc.train_(models[0], task(), sgd(models[0]), 2, hooks=[sc.penalty(0.05, p=2, step=step)], show=False)
    weights = [parameter for parameter in models[1].parameters() if parameter.ndim > 1]
    others = [parameter for parameter in models[1].parameters() if parameter.ndim == 1]
    decayed = torch.optim.SGD([{"params": weights, "weight_decay": 0.1}, {"params": others}], lr=0.1)
    sc.train_(models[1], task(), decayed, 2, show=False)
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):  # implicit decay differs in lr²
        torch.testing.assert_close(first, second, **({"rtol": 0.05, "atol": 5e-3} if step == "proximal" else {}))


def test_less_important_units_cost_more():
    """2^(growth · (max − I)/(max − min)) with I = ‖unit‖², by subgradients of the square: 2301.12900."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False))
    before = model[1].weight.detach().clone()
    trained(model, sc.group_lasso(sc.Filter(), 0.05, squared=True, growth=4.0, step="subgradient", only="1"), lr=0.1)
    importance = before.square().sum(1)
    gamma = 2 ** (4 * (importance.max() - importance) / (importance.max() - importance.min()))
    torch.testing.assert_close(model[1].weight.detach(), before * (1 - 2 * 0.1 * 0.05 * gamma)[:, None])
    assert gamma.min() == 1 and gamma.max() == 16


def test_what_counts_of_coupled_units_and_whole_layers():
    moved: dict[str, set[str]] = {}
    for members in ("producers", "consumers", "norms"):
        model, before = network(), network()
        trained(model, sc.group_lasso(sc.Channel(), 0.01, members=members, only="0"))
        state = before.state_dict()
        moved[members] = {name for name, each in model.named_parameters() if not torch.equal(each, state[name])}
    assert moved == {"producers": {"0.weight"}, "consumers": {"4.weight"}, "norms": {"1.weight"}}
    model = network()
    before = model[4].weight.detach().norm()
    run = trained(model, sc.group_lasso(sc.Element(), 0.01, as_one=True, only="4"))
    torch.testing.assert_close(model[4].weight.detach().norm(), before - 0.1 * 0.01 * (96 * 8) ** 0.5)
    assert "group_lasso(Element(), as_one): at zero" in run.history[0]
    trained(model, sc.group_lasso(sc.Element(), 1e3, as_one=True, only="4"))  # a whole layer may go
    assert not bool(model[4].weight.any())


def test_the_subgradient_at_zero_is_zero_and_is_scaled_with_the_loss():
    model, reference = network(), network()
    for net in (model, reference):
        net[4].weight.data[0] = 0
    hook = sc.group_lasso(sc.Filter(), 0.1, step="subgradient", only="4")
    trained(model, hook, amp=torch.float16)
    assert all(bool(each.isfinite().all()) for each in model.parameters()) and not bool(model[4].weight[0].any())
    trained(reference, sc.group_lasso(sc.Filter(), 0.1, only="4"))  # far from zero, one step of both is the same
    torch.testing.assert_close(model[4].weight, reference[4].weight, rtol=1e-3, atol=1e-4)


def test_steps_that_scaled_training_skips_shrink_nothing():
    model = network()
    before = model[4].weight.detach().clone()
    for hook in (sc.group_lasso(sc.Filter(), 0.1, only="4"), sc.penalty(0.1, p=1, step="proximal")):
        optimizer = sgd(model)
        scaler = torch.amp.GradScaler("cpu")
        run = Run(model, task(), optimizer, 1)
        hook.start(run)
        scaler.scale(model(torch.zeros(2, 1, 6, 6)).sum()).backward()
        model[0].weight.grad.fill_(torch.inf)
        scaler.step(optimizer)
        hook.stepped(run)
        assert torch.equal(model[4].weight, before) or hook.name == "penalty(p=1)"
        assert bool(model[4].weight.isfinite().all())
    assert torch.equal(model[4].weight, before)


def test_learning_rates_of_groups_and_weights_that_are_shared_by_constraints():
    model = network()
    before = [model[4].weight.detach().clone(), model[6].weight.detach().clone()]
    optimizer = torch.optim.SGD([{"params": model[:5].parameters(), "lr": 0.0}, {"params": model[6].parameters()}], lr=0.1)
    sc.train_(model, without_gradient(), optimizer, 1, hooks=[sc.penalty(0.01, p=1, step="proximal")], show=False)
    assert torch.equal(model[4].weight, before[0]) and not torch.equal(model[6].weight, before[1])

    class Equal:
        name = "equal"

        def apply_(self) -> None:
            model[6].weight.data[1] = model[6].weight.data[0]

        def state(self) -> dict[str, Any]:
            return {}

        def restore(self, state: Any) -> None:
            pass

    trained(model, sc.group_lasso(sc.Filter(), 0.01, only="6"), constraints=[Equal()])
    assert torch.equal(model[6].weight[1], model[6].weight[0])


# ---------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("pattern", "target", "make"),
    [
        (sc.Channel(), 0.4, sgd),
        (sc.Element(), 0.8, lambda model: torch.optim.Adam(model.parameters(), lr=3e-3)),
        (sc.Block(2, 2), 0.5, lambda model: sgd(model, 0.05, momentum=0.9)),
    ],
    ids=["channels, SGD", "elements, Adam", "blocks, momentum"],
)
def test_a_target_is_reached_exactly_and_becomes_masks(pattern: Any, target: float, make: Callable[..., Any]):
    model = network()
    only = {"only": "4"} if isinstance(pattern, sc.Block) else {}
    hook = sc.group_lasso(pattern, target=target, until=8, **only)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = sc.train_(model, task(), make(model), 9, hooks=[hook], show=False)
    units = sum(site.units for site in sc.find_sites(model, pattern, task().example, **only))
    found = [entry[f"{hook.name}: at zero"] for entry in run.history[:8]]
    assert abs(found[-1] * units - round(target * units)) <= max(0.5, 0.01 * units) and found[0] < found[-1]
    assert f"{hook.name}: at zero" not in run.history[8]
    assert run.masks.plan is not None and sum(run.masks.plan.values()) == units - round(found[-1] * units)
    assert all(not bool(model.get_parameter(name)[~mask].any()) for name, mask in run.masks.items())
    if isinstance(pattern, sc.Channel):
        x = torch.randn(4, 1, 6, 6)
        expected = model.eval()(x)
        shrunk = sc.shrink_(model, run.masks, task().example)
        assert not shrunk.skipped and torch.allclose(model(x), expected, atol=1e-5)
        assert model[0].out_channels + model[4].out_features == 14 - round(0.4 * 14)


def test_a_target_that_was_not_reached_is_told_and_strictly_cut():
    model = network()
    weak = sc.Target(0.5, start=1e-12)
    with pytest.warns(
        UserWarning, match=r"group_lasso\(target=0.5\): 0.0 % of the units are at zero, at strength .*: the target was not"
    ):
        run = trained(model, sc.group_lasso(sc.Channel(), target=weak), which=task())
    assert all(bool(mask.all()) for mask in run.masks.values())
    for allocate, counts in ((None, None), (sc.uniform, {"0": 3, "4": 4})):
        model = network()
        strict = sc.Target(0.5, strict=True, start=1e-12, allocate=allocate)
        with pytest.warns(UserWarning, match=r"the smallest of the rest are cut as well \(strict=True\)"):
            run = trained(model, sc.group_lasso(sc.Channel(), target=strict), which=task())
        assert sum(run.masks.plan.values()) == 7 and (counts is None or dict(run.masks.plan) == counts)
    budget = lambda sparsity: sc.within_budget(sc.Budget(sc.macs, keep=1 - sparsity), sc.uniform)  # noqa: E731
    model = network()
    dense = sc.macs(model, task().example)
    with pytest.warns(UserWarning, match="strict=True"):
        run = trained(
            model, sc.group_lasso(sc.Channel(), target=sc.Target(0.5, strict=True, start=1e-12, allocate=budget)), which=task()
        )
    sc.shrink_(model, run.masks, task().example)
    assert 0.3 * dense < sc.macs(model, task().example) <= 0.5 * dense


def test_no_site_is_emptied_by_a_target():
    model = network()
    model[0].weight.data *= 0.3
    run = trained(model, sc.group_lasso(sc.Filter(), target=sc.Target(0.6, ceiling=0.7), only=["0", "4"]), epochs=8, which=task())
    assert min(run.masks.plan.values()) >= 2 and sum(run.masks.plan.values()) == 14 - round(0.6 * 14)


def test_masks_of_an_earlier_pruning_hold():
    model = network()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task())
    before = {name: mask.clone() for name, mask in masks.items()}
    hook = sc.group_lasso(sc.Channel(), target=0.3)
    run = trained(model, hook, epochs=5, which=task(), masks=masks)
    for name, mask in before.items():
        assert not bool((run.masks[name] & ~mask).any()) and not bool(model.get_parameter(name)[~mask].any())
    assert run.masks.sparsity > 0.55


# ---------------------------------------------------------------- growing


@pytest.mark.parametrize("step", ["proximal", "subgradient"])
def test_a_growing_penalty_presses_what_was_chosen_and_cuts_it(step: Any):
    model, chosen = network(), network()
    expected = sc.prune_(chosen, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task())
    hook = sc.growing_penalty(
        sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), delta=1.0, every=2, ceiling=5.0, until=5, step=step
    )
    run = trained(model, hook, epochs=6, which=task())
    assert {name: mask.tolist() for name, mask in run.masks.items()} == {name: mask.tolist() for name, mask in expected.items()}
    factors = [entry[f"{hook.name}: factor"] for entry in run.history[:5]]
    left = [entry[f"{hook.name}: left"] for entry in run.history[:5]]
    assert factors == [1.0, 3.0, 4.0, 5.0, 5.0] and left == sorted(left, reverse=True) and left[-1] < 0.2
    assert dict(run.masks.plan) == {"0": 3, "4": 4} and f"{hook.name}: left" not in run.history[5]


def test_a_growing_penalty_by_itself_is_weight_decay_of_what_is_to_go():
    model, hook = network(), None
    before = copy.deepcopy(model)
    hook = sc.growing_penalty(
        sc.Filter(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), delta=0.5, every=1, ceiling=1.0, only="4"
    )
    watch = []
    spy = sc.Hook("spy", epoch_end=lambda run: watch.append(run.model[4].weight.detach().clone()))
    sc.train_(model, without_gradient(), sgd(model), 3, hooks=[spy, hook], show=False)
    small = before[4].weight.norm(dim=1) <= before[4].weight.norm(dim=1).sort().values[3]
    factor = torch.where(small, 0.95 * 0.9, 1.0)[:, None]
    torch.testing.assert_close(watch[-1], (before[4].weight * factor).detach())
    hook = sc.growing_penalty(sc.Filter(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), delta=0.1, every=1, only="4")
    with pytest.warns(UserWarning, match="the factor grew to 0.2 in 2 steps, and not to the ceiling of 1, before the units were"):
        trained(model, hook, epochs=2)


# ---------------------------------------------------------------- stopping and going on, loops of one's own


def hooks_of(kind: str) -> list[sc.Hook]:
    grow = sc.growing_penalty(
        sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), delta=0.5, every=2, ceiling=2.0, until=4, step="proximal"
    )
    return {
        "target": [sc.group_lasso(sc.Channel(), target=0.4, until=4), sc.penalty(1e-3, p=1, step="proximal")],
        "subgradient": [sc.group_lasso(sc.Filter(), target=sc.Target(0.4, strict=True), step="subgradient", growth=2.0)],
        "growing": [grow, sc.prune_at(4, sc.Element(), sc.TopK(sc.magnitude()), sc.above(1e-3), only="6")],
    }[kind]


@pytest.mark.parametrize(("kind", "fails"), [("target", 2), ("target", 4), ("subgradient", 2), ("growing", 4)])
@pytest.mark.filterwarnings("ignore:group_lasso")
def test_a_run_that_was_stopped_goes_on_to_the_bit(kind: str, fails: int, tmp_path: Path):
    def run(fails: int | None, checkpoint: Path | None) -> Any:
        model = network()
        optimizer = sgd(model, momentum=0.9)
        run = sc.train_(model, task(fails), optimizer, 5, hooks=hooks_of(kind), checkpoint=checkpoint, show=False, seed=1)
        return {**model.state_dict(), **{f"mask {name}": mask for name, mask in run.masks.items()}}, run.history

    expected, history = run(None, None)
    with pytest.raises(KeyboardInterrupt):
        run(fails, tmp_path / "c")
    found, again = run(None, tmp_path / "c")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert again == history


def test_a_checkpoint_without_the_state_is_refused():
    for hook in (
        sc.group_lasso(sc.Channel(), 1.0),
        sc.group_lasso(sc.Channel(), target=0.5),
        sc.growing_penalty(sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5)),
    ):
        with pytest.raises(FileError, match="the checkpoint holds no"):
            hook.restore({"over": 1})
    with pytest.raises(FileError, match="what is no number"):
        sc.group_lasso(sc.Channel(), target=0.5).restore({"over": False, "numbers": {"begin": "1"}, "scales": []})
    with pytest.raises(FileError, match="no state of this hook"):
        sc.growing_penalty(sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5)).restore({"kept": {}, "plan": 1})


@pytest.mark.parametrize("step", ["proximal", "subgradient"])
@pytest.mark.filterwarnings("ignore:group_lasso")
def test_in_a_loop_of_ones_own(step: Any):
    """What `Hook` says, without `train_`: the same weights and masks."""
    make = lambda: [sc.group_lasso(sc.Channel(), target=0.4, step=step), sc.penalty(1e-3, p=1)]  # noqa: E731
    expected = network()
    reference = sc.train_(expected, task(), sgd(expected), 5, hooks=make(), show=False)
    model, data, hooks = network(), task(), make()
    optimizer = sgd(model)
    run = Run(model, data, optimizer, 5)
    for hook in hooks:
        hook.start(run)
    for run.epoch in range(5):
        for hook in hooks:
            hook.epoch(run)
        model.train()
        for x, y in data.train:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            for hook in hooks:
                extra = hook.loss(run)
                loss = loss if extra is None else loss + extra
            loss.backward()
            optimizer.step()
            run.step += 1
            for hook in hooks:
                hook.stepped(run)
        for hook in hooks:
            hook.epoch_end(run)
    for hook in hooks:
        hook.end(run)
    assert all(torch.equal(model.state_dict()[name], each) for name, each in expected.state_dict().items())
    assert all(torch.equal(run.masks[name], mask) for name, mask in reference.masks.items())


def test_prune_at_prunes_once_and_adds_to_what_is_gone():
    model = network()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task(), only="6")
    hook = sc.prune_at(1, sc.Filter(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), only="4")
    run = trained(model, hook, epochs=3, which=task(), masks=masks)
    assert [round(entry["sparsity"], 3) for entry in run.history] == [0.5, 0.5, 0.5] and set(run.masks) == {"4.weight", "6.weight"}
    with pytest.raises(SecateursError, match="prune_at: epoch 3 never begins, since training ends after 3"):
        trained(model, sc.prune_at(3, sc.Filter(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5)), epochs=3)
    with pytest.raises(SecateursError, match=r"prune_at: epoch=-1 must be a whole number"):
        sc.prune_at(-1, sc.Filter(), sc.TopK(sc.magnitude()), None)


def test_slimming_to_a_budget_by_proximal_steps():
    model, half = network(), sc.within_budget(sc.Budget(sc.macs, keep=0.5), sc.global_threshold)
    dense = sc.macs(model, task().example)
    options = {"sparse_epochs": 4, "epochs": 1, "strength": 2.0, "step": "proximal", "show": False}
    run = network_slimming_(model, task(), sgd(model), allocate=half, **options)
    assert 0 < sum(run.masks.plan.values()) < 6
    sc.shrink_(model, run.masks, task().example)
    assert sc.macs(model, task().example) <= 0.5 * dense
    for wrong in ({}, {"sparsity": 0.5, "allocate": half}):
        with pytest.raises(SecateursError, match=r"network_slimming_: give sparsity=.* or allocate=, one of them"):
            network_slimming_(model, task(), sgd(model), **wrong, **options)


# ---------------------------------------------------------------- above


def test_above_keeps_what_scores_above_and_no_site_empty():
    layer = nn.Linear(4, 3, bias=False)
    layer.weight.data = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 3.0], [0.0] * 4])
    solver, data = sc.TopK(sc.magnitude()), sc.Task(torch.zeros(1, 4))
    plan = lambda pattern, allocate: sum(sc.planned(layer, pattern, solver, allocate, data, only="*").values())  # noqa: E731
    assert plan(sc.Element(), sc.above(0.0)) == 3 and plan(sc.Element(), sc.above(1.0)) == 2
    assert plan(sc.Element(within="row"), sc.above(0.0)) == 6  # as many in each row as the fullest needs
    assert plan(sc.Filter(), sc.above(9.0)) == 1 and plan(sc.Element(), sc.above(9.0, ceiling=0.5)) == 6
    for score in (float("nan"), None, True):
        with pytest.raises(SecateursError, match=r"above\(score=.*units stay that score above a finite number"):
            sc.above(score)


def test_above_keeps_widths_that_are_multiples():
    model = nn.Sequential(nn.Linear(2, 8, bias=False), nn.Linear(8, 2))
    model[0].weight.data[5:], model[1].weight.data[:, 5:] = 0.0, 0.0
    data = sc.Task(torch.zeros(1, 2))
    plan = sc.planned(model, sc.Channel(round_to=4), sc.TopK(sc.magnitude(members="all")), sc.above(0.0), data)
    assert dict(plan) == {"0": 8} and dict(sc.planned(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.above(0.0), data)) == {
        "0": 5
    }


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sc.group_lasso(sc.Channel()), r"group_lasso\(strength=None, target=None\): give a strength or a target"),
        (lambda: sc.group_lasso(sc.Channel(), 1.0, target=0.5), "give a strength or a target, one of them"),
        (lambda: sc.group_lasso(sc.Channel(), -1.0), r"group_lasso\(strength=-1.0\): strength must be at least 0, and finite"),
        (lambda: sc.group_lasso(sc.Channel(), float("nan")), r"group_lasso\(strength=nan\)"),
        (lambda: sc.group_lasso(sc.Channel(), 1.0, members="some"), r"group_lasso\(members='some'\): members is one of"),
        (lambda: sc.group_lasso(sc.Channel(), 1.0, growth=-1), r"group_lasso\(growth=-1\)"),
        (lambda: sc.group_lasso(sc.Channel(), 1.0, step="newton"), r'step=\'newton\'\): step is "subgradient" or "proximal"'),
        (
            lambda: sc.group_lasso(sc.Element(), target=0.5, as_one=True),
            "that become zero and can be cut: leave as_one",
        ),
        (lambda: sc.group_lasso(sc.Element(), target=0.5, squared=True), "leave squared=True away"),
        (lambda: sc.group_lasso(0.1), "group_lasso: pattern is 0.1, but must be a pattern"),
        (lambda: sc.group_lasso(sc.Channel(), target=1.0), r"target=1.0 is not in \(0, 1\)"),
        (lambda: sc.group_lasso(sc.Channel(), target=0), r"target=0 is not in \(0, 1\)"),
        (lambda: sc.Target(0.5, ceiling=0.4), r"the ceiling must be above the target, and at most 1"),
        (lambda: sc.Target(0.5, start=0.0), r"Target\(start=0.0\)"),
        (lambda: sc.Target(0.5, threshold=-1.0), r"Target\(threshold=-1.0\)"),
        (lambda: sc.Target(0.5, allocate=sc.uniform(sparsity=0.5)), "Target: allocate is"),
        (lambda: sc.penalty(float("inf")), "strength must be finite"),
        (lambda: sc.penalty(1.0, p=1.5, step="proximal"), "there is a proximal step for p=1 and p=2"),
        (lambda: sc.penalty(1.0, of="scales", pattern=sc.Channel()), r'take group_lasso\(Channel\(\), members="norms"\)'),
        (lambda: sc.penalty(1.0, until=0), "penalty: until=0 is the epoch from which on nothing costs any more"),
        (lambda: sc.group_lasso(sc.Channel(), 1.0, until=2.5), "group_lasso: until=2.5 is the epoch"),
        (lambda: sc.penalty(1.0, pattern="Channel"), "penalty: pattern is 'Channel', but must be a pattern"),
        (
            lambda: sc.growing_penalty(sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), delta=2.0),
            "delta must be above 0",
        ),
        (lambda: sc.growing_penalty(sc.Channel(), sc.magnitude(), sc.uniform(sparsity=0.5)), "growing_penalty: solver is"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], message: str):
    with pytest.raises(SecateursError, match=message):
        make()
    assert issubclass(KindError, SecateursError)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (sc.group_lasso(sc.Head(), 1.0), "Head"),
        (sc.group_lasso(sc.Filter(), 1.0, members="norms"), r"of 0, 4 no unit lies in a member of the kind 'norms'"),
        (sc.group_lasso(sc.Filter(), 1.0, only="nothing"), "nothing in Sequential is called 'nothing'"),
        (sc.penalty(1.0, only="nothing"), "nothing in Sequential is called 'nothing'"),
        (sc.penalty(1.0, of="scales", only="4"), "has no normalisation with a scale among those chosen"),
        (sc.growing_penalty(sc.Head(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5)), "Head"),
        (sc.growing_penalty(sc.Filter(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.0)), "the plan keeps every unit"),
        (sc.group_lasso(sc.Filter(), target=0.99, only="0"), "of 6 units 6 are to go, but no more than 5 may"),
    ],
)
def test_penalties_of_nothing_are_refused_and_change_nothing(hook: sc.Hook, message: str):
    model = network()
    with pytest.raises(SecateursError, match=message):
        trained(model, hook)
    assert all(torch.equal(each, model.state_dict()[name]) for name, each in network().state_dict().items())


def test_a_model_without_weights_has_no_penalty():
    model = nn.BatchNorm1d(2)
    with pytest.raises(SecateursError, match="BatchNorm1d has no weight of two dimensions or more"):
        sc.train_(model, without_gradient(), sgd(model), 1, hooks=[sc.penalty(1.0)], show=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sc.group_lasso(sc.Filter(), 1.0, only=["0", "4"]),
        lambda: sc.penalty(1.0, only=["0", "4"]),
        lambda: sc.growing_penalty(
            sc.Filter(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), every=1, delta=1.0, only=["0", "4"]
        ),
    ],
)
def test_frozen_parameters_are_left_out_and_told(make: Callable[[], sc.Hook]):
    model = network()
    model[0].weight.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"0.weight are frozen \(requires_grad=False\) or not given to the optimizer"):
        trained(model, make(), lr=1e-3)
    model[4].weight.requires_grad_(False)
    with pytest.raises(SecateursError, match=r"all that it is to make smaller is frozen .*: 0.weight, 4.weight"):
        trained(model, make())


def test_everything_at_zero_is_an_error_and_a_whole_site_a_warning():
    with pytest.raises(SecateursError, match="after epoch 1 everything is at zero, so that the model answers nothing"):
        trained(network(), sc.group_lasso(sc.Channel(), 1e3))
    model = network()
    model[0].weight.data *= 1e-6
    with pytest.warns(UserWarning, match=r"after epoch 1 all units of 0 are at zero, so that nothing passes there"):
        trained(model, sc.group_lasso(sc.Filter(), 1e-3, only=["0", "4"]))


@pytest.mark.parametrize("what", [{"strength": 1.0}, {"target": 0.5}])
def test_weights_that_diverge_are_told(what: dict[str, float]):
    def diverge(run: Run) -> None:
        with torch.no_grad():
            model[4].weight[0, 0] = torch.nan

    model = network()
    hooks = [sc.Hook("diverge", stepped=diverge), sc.group_lasso(sc.Filter(), only="4", **what)]
    with pytest.raises(NonFiniteError, match=r"NaN or infinite"):
        sc.train_(model, without_gradient(), sgd(model), 1, hooks=hooks, show=False)
    with pytest.raises(NonFiniteError, match="weights are NaN or infinite before training"):
        trained(model, sc.group_lasso(sc.Filter(), target=0.5, only="4"))


def test_optimizers_that_take_several_steps_at_once_have_subgradients_only():
    model = network()
    lbfgs = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)
    for hook in (sc.group_lasso(sc.Filter(), 1e-3), sc.penalty(1e-3, p=1, step="proximal")):
        with pytest.raises(SecateursError, match='and LBFGS takes several at once: use step="subgradient"'):
            sc.train_(model, task(), lbfgs, 1, hooks=[hook], show=False)
    sc.train_(model, task(), lbfgs, 1, hooks=[sc.group_lasso(sc.Filter(), 1e-3, step="subgradient")], show=False)


def test_patterns_that_find_no_site_name_the_way_out():
    with pytest.raises(PatternError, match="finds no site"):
        trained(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), sc.group_lasso(sc.Channel(), 1.0))
