"""Channels pruned while training, to budgets, out of the model for good after each round; stopped and gone on across shrinks."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.files import container, nested_state
from secateurs.masks import Masks
from secateurs.shrink.remembered import steps_of
from secateurs.types import FileError, SecateursError


class Block(nn.Module):
    """A residual stream with a branch that may go, and channels that are coupled over the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.drop, self.answer = nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.answer(self.drop(x.mean((2, 3))))


def network() -> Block:
    torch.manual_seed(0)
    return Block()


def task() -> sc.Task:
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, 1, 5, 5, generator=generator), torch.randint(3, (8,), generator=generator)) for _ in range(3)]
    accuracy = lambda output, target: (output.argmax(1) == target).float().mean()  # noqa: E731
    return sc.Task(data[0][0][:1], train=data, validation=data, loss=nn.functional.cross_entropy, metric=accuracy)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def gradual(schedule: Any = None, *, allocate: Any = sc.uniform, solver: Any = None, **options: Any) -> sc.Hook:
    given = solver or sc.TopK(sc.magnitude())
    pattern = options.pop("pattern", sc.Channel())
    return sc.gradual(pattern, given, allocate, schedule or sc.linear(0.5), **{"shrink": True, "dead": False, **options})


def train(model: nn.Module, hook: sc.Hook, epochs: int = 3, make: Callable[..., Any] = adam, **options: Any) -> sc.Run:
    torch.manual_seed(2)
    optimizer = make(model)
    if options.pop("cosine", False):
        options["scheduler"] = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    hooks = [hook, *options.pop("hooks", ())]
    return sc.train_(model, options.pop("task", None) or task(), optimizer, epochs, hooks=hooks, show=False, **options)


def half(cost: sc.Cost = sc.macs, keep: float = 0.5) -> sc.Budget:
    return sc.Budget(cost, keep=keep)


# ---------------------------------------------------------------- how much


@pytest.mark.parametrize("allocate", [sc.uniform, sc.marginal])
def test_budgets_are_of_the_dense_model_and_met_after_each_round(allocate: Any) -> None:
    model, given_task = network(), task()
    dense = {cost.name: cost(model, given_task.example) for cost in (sc.macs, sc.params)}
    run = train(model, gradual(budget=[half(), half(sc.params, 0.6)], allocate=allocate, dead=True), 2)
    for entry, way in zip(run.history, (1 / 2, 1), strict=True):
        assert (
            entry["macs"] <= dense["macs"] * (1 - 0.5 * way) + 1e-6 and entry["params"] <= dense["params"] * (1 - 0.4 * way) + 1e-6
        )
    assert sc.macs(model, given_task.example) == run.history[-1]["macs"] > 0.3 * dense["macs"]
    assert not run.masks and len(steps_of(model)) == 2
    sizes = [entry["macs"] for entry in run.history]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 2


def test_a_budget_without_shrinking_is_what_the_plan_promises() -> None:
    model, given_task = network(), task()
    dense = sc.macs(model, given_task.example)
    run = train(model, gradual(sc.geometric(0.9), budget=half(), shrink=False))
    promised = run.masks.plan.promised["macs"]
    assert promised <= dense / 2 and "macs" not in run.history[-1]
    sc.shrink_(model, run.masks)
    assert sc.macs(model, given_task.example) == promised


def test_an_absolute_limit_and_one_that_is_met_already() -> None:
    model = network()
    dense = sc.params(model)
    run = train(model, gradual(budget=[sc.Budget(sc.params, limit=700), sc.Budget(sc.macs, limit=1e9)]), 2)
    assert dense > run.history[0]["params"] > run.history[1]["params"] and 600 < run.history[1]["params"] <= 700


def test_sparsities_are_of_the_units_that_there_were() -> None:
    """As many units stay after each round as without shrinking between rounds."""
    kept: dict[bool, list[int]] = {False: [], True: []}
    for shrink, found in kept.items():
        model = network()

        def count(run: sc.Run, found: list[int] = found) -> None:
            found.append(sum(run.masks.plan.values()))

        solver = sc.TopK(sc.magnitude(mean=True))
        hook = gradual(sc.linear(0.6), shrink=shrink, allocate=sc.global_threshold, solver=solver)
        train(model, hook, hooks=[sc.Hook("count", epoch_end=count)])
    total = 8 + 12
    assert kept[False] == kept[True] == [pytest.approx(total * (1 - 0.2 * round_), abs=1.5) for round_ in (1, 2, 3)]


def test_only_and_skip_and_earlier_masks_hold() -> None:
    model, given_task = network(), task()
    earlier = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.25), given_task, only="inner")
    train(model, gradual(sc.one_shot(0.5), skip="inner"), 1, masks=earlier)
    assert model.inner.out_channels == 9 and model.first.out_channels == 4


def test_whole_blocks_go_while_training() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)) for _ in range(4))
            self.answer = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x)
            return self.answer(x)

    torch.manual_seed(0)
    model, x = Deep(), torch.randn(8, 6)
    given_task = sc.Task(x[:1], train=[(x, torch.randint(3, (8,)))], loss=nn.functional.cross_entropy)
    run = train(model, gradual(pattern=sc.Depth(), allocate=sc.global_threshold), 2, task=given_task)
    assert [entry["params"] for entry in run.history] == [3 * 123 + 21, 2 * 123 + 21] and sc.params(model) == 267


# ---------------------------------------------------------------- what follows


def test_the_first_step_after_a_shrink_is_that_of_the_masked_model() -> None:
    """Momentum and moments are cut alike, dropout has the rate that the masked model has, and the schedule goes on."""
    models = {}
    for shrink in (False, True):
        model = network()
        hook = gradual(sc.one_shot(0.5), begin=1, end=2, shrink=shrink)
        run = train(
            model, hook, 2, cosine=True, task=sc.Task(task().example, train=task().train[:1], loss=nn.functional.cross_entropy)
        )
        models[shrink] = model
        if shrink:
            averages = {tuple(each.shape) for state in run.optimizer.state.values() for each in state.values() if each.numel() > 1}
            assert averages == {tuple(parameter.shape) for parameter in model.parameters()}
        else:
            sc.shrink_(model, run.masks)
    assert models[True].drop.p == pytest.approx(models[False].drop.p) and models[True].drop.p < 0.3
    small, masked = models[True].state_dict(), models[False].state_dict()
    assert {name: each.shape for name, each in small.items()} == {name: each.shape for name, each in masked.items()}
    for name in ("first.weight", "inner.bias"):  # before the dropout, whose noise is of another shape
        assert small[name].shape == masked[name].shape


def test_dropout_falls_over_rounds_as_it_does_without_shrinking() -> None:
    rates = {}
    for shrink in (False, True):
        found: list[float] = []
        note = sc.Hook("note", epoch_end=lambda run, found=found: found.append(run.model.drop.p))
        train(network(), gradual(shrink=shrink), 2, hooks=[note])
        rates[shrink] = found
    assert rates[True] == pytest.approx(rates[False], rel=0.05) and rates[True] == sorted(rates[True], reverse=True)


def test_a_loop_of_ones_own() -> None:
    model, given_task, hook = network(), task(), gradual(budget=half())
    optimizer = adam(model)
    run = sc.Run(model, given_task, optimizer, 2, masks=Masks({}, model))
    run.masks.hold(optimizer)
    hook.start(run)
    for run.epoch in range(2):
        hook.epoch(run)
        for x, y in given_task.train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert sc.macs(model, given_task.example) <= sc.macs(network(), given_task.example) / 2


def test_learning_rates_are_rewound_at_each_pruning() -> None:
    rates: list[float] = []
    look = sc.Hook("look", epoch=lambda run: rates.append(run.optimizer.param_groups[0]["lr"]))
    train(network(), gradual(rewind="learning_rate", end=2), 3, cosine=True, hooks=[look])
    assert rates[0] == rates[1] == 0.01 > rates[2]


# ---------------------------------------------------------------- stopped and gone on

RUNS: dict[str, tuple[Callable[[nn.Module], torch.optim.Optimizer], Callable[[], sc.Hook]]] = {
    "budgets": (adam, lambda: gradual(budget=[half(), half(sc.params, 0.7)])),
    # What cannot be told from the smaller model is in the checkpoint: how many units there were.
    "sparsities": (
        lambda model: torch.optim.SGD(
            [{"params": [p], "lr": 0.02 + 0.01 * (p.ndim > 1)} for p in model.parameters()], momentum=0.9, weight_decay=1e-3
        ),
        lambda: gradual(sc.linear(0.6)),
    ),
}


def everything(run: sc.Run) -> dict[str, Any]:
    optimizer = run.optimizer.state_dict()
    return {
        "model": run.model.state_dict(),
        "optimizer": optimizer["state"],
        "groups": optimizer["param_groups"],
        "masks": dict(run.masks),
        "history": run.history,
        "rates": run.model.drop.p,
        "random": torch.get_rng_state(),
        "scheduler": run.scheduler.state_dict() if run.scheduler else None,
    }


@pytest.mark.parametrize(("make", "hook"), RUNS.values(), ids=RUNS.keys())
def test_a_run_goes_on_across_shrinks_to_the_bit(make: Callable[..., Any], hook: Callable[[], sc.Hook], tmp_path: Path) -> None:
    """Stopped before the third of three prunings, and asked once more when all is over."""
    whole_run = train(network(), hook(), 3, make, cosine=True)
    train_until(2, hook(), make, tmp_path / "c")
    for _ in range(2):
        gone_on = train(network(), hook(), 3, make, cosine=True, checkpoint=tmp_path / "c")
        assert len(steps_of(gone_on.model)) == len(steps_of(whole_run.model)) == 3
        torch.testing.assert_close(everything(gone_on), everything(whole_run), rtol=0, atol=0)


def train_until(epoch: int, hook: sc.Hook, make: Callable[..., Any], path: Path) -> None:
    """A run of three epochs that is stopped behind one of them."""

    class Stopped(Exception):
        pass

    def unless_stopped(run: sc.Run) -> None:
        if run.epoch == epoch:
            raise Stopped
        hook.epoch(run)

    with pytest.raises(Stopped):
        train(network(), replace(hook, epoch=unless_stopped), 3, make, cosine=True, checkpoint=path)


# ---------------------------------------------------------------- bad input


def before_and_after(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    parameters = {name: (id(p), tuple(p.shape), p.detach().clone()) for name, p in model.named_parameters()}
    return copy.deepcopy(
        (parameters, optimizer.state_dict(), len(steps_of(model)), {k: v.clone() for k, v in model.state_dict().items()})
    )


def damaged(path: Path, change: Callable[[Any], Any]) -> None:
    tensors, document = container.read(path)
    state = nested_state.unpack(tensors, document["checkpoint"])
    tensors, document = nested_state.pack(change(state))
    container.write(path, tensors, {"checkpoint": document})


def with_steps(change: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    return lambda state: {**state, "steps": json.dumps(change(json.loads(state["steps"])))}


def deep(state: Any, *path: Any, value: Any) -> Any:
    (key, *rest) = path
    return {**state, key: deep(state[key], *rest, value=value) if rest else value}


DAMAGE: dict[str, Callable[[Any], Any]] = {
    "no steps": with_steps(lambda steps: []),
    "one step too few": with_steps(lambda steps: steps[:-1]),
    "twice": with_steps(lambda steps: steps + steps),
    "other indices": with_steps(lambda steps: [{**steps[0], "kept": [[10**6] for _ in steps[0]["kept"]]}, *steps[1:]]),
    "other attributes": with_steps(
        lambda steps: [{**steps[0], "attributes": {"inner": {"out_channels": [12, 10**9]}}}, *steps[1:]]
    ),
    "no json": lambda state: {**state, "steps": "[" * 2000},
    "no text": lambda state: {**state, "steps": 5},
    "factors": with_steps(lambda steps: [{**steps[0], "factors": {"hidden": {"rank": 1, "sparse": False}}}, *steps[1:]]),
    "other weights": lambda state: {**state, "model": {**state["model"], "inner.weight": torch.zeros(1)}},
    "other momentum": lambda state: deep(state, "optimizer", "state", 0, "exp_avg", value=torch.zeros(8, 1, 3, 3)),
    "other costs": lambda state: deep(state, "hooks", "gradual", "amount", value={"macs": float("nan")}),
    "other budgets": lambda state: deep(state, "hooks", "gradual", "amount", value={"bytes": 1.0}),
    "a size that is no number": lambda state: {**state, "history": [{**entry, "macs": "few"} for entry in state["history"]]},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gradual") / "c"
    train_until(2, gradual(budget=half()), adam, path)
    return path


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_refused_and_nothing_is_changed(
    change: Callable[[Any], Any], written: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    path.write_bytes(written.read_bytes())
    damaged(path, change)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(task().example).sum().backward()
    optimizer.step()
    before = before_and_after(model, optimizer)
    with pytest.raises(FileError, match=str(path)):
        sc.train_(model, task(), optimizer, 3, hooks=[gradual(budget=half())], checkpoint=path, show=False)
    torch.testing.assert_close(before_and_after(model, optimizer), before, rtol=0, atol=0)
    assert model.inner.out_channels == 12


def test_a_model_that_shrank_otherwise_is_refused(written: Path, tmp_path: Path) -> None:
    model, path = network(), tmp_path / "c"
    path.write_bytes(written.read_bytes())
    sc.shrink_(model, sc.prune_(model, sc.Channel(), sc.TopK(sc.random(5)), sc.uniform(sparsity=0.75), task()))
    with pytest.raises(FileError, match="shrank in other ways than this one: give the model as it was when that run began"):
        sc.train_(model, task(), adam(model), 3, hooks=[gradual(budget=half())], checkpoint=path, show=False)


def test_bad_input_is_told() -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises((SecateursError, TypeError), match=match):
            gradual(**options)

    refused(
        r"leaves zeros within its weights, which shrink_ cannot take out: give shrink=True with Channel\(\)", pattern=sc.Element()
    )
    refused('rewind="weights" needs the weights as large as they were', rewind="weights")
    refused("gradual: budget is 0.5, but must be a budget", budget=0.5)
    refused("limit costs of one name", budget=[half(), half(keep=0.4)])
    refused("the schedule ends at 0.0, so that no pruning comes nearer to the budget", schedule=sc.linear(0.0), budget=half())
    refused("allocate is 0.5, but must be a function that makes allocators", allocate=0.5, budget=half())
    refused("gradual: pattern is 0.5, but must be a pattern", pattern=0.5)


def test_what_cannot_shrink_is_told_before_training(tmp_path: Path) -> None:
    class Tied:
        name = "tied"

        def apply_(self) -> None: ...

        def state(self) -> dict[str, Any]:
            return {}

        def restore(self, state: Any) -> None: ...

    model, given_task = network(), task()
    with pytest.raises(SecateursError, match="the constraint tied holds weights of the old sizes"):
        train(model, gradual(), constraints=[Tied()])
    wrapped = nn.DataParallel(network())
    with pytest.raises(
        SecateursError, match="the model itself must be trained, as its wrapper holds on to weights of the old sizes"
    ):
        train(wrapped, gradual())
    used = adam(model)
    model(given_task.example).sum().backward()
    used.step()
    with pytest.raises(SecateursError, match="make a new optimizer for this training"):
        train(model, gradual(rewind="learning_rate"), make=lambda _: used)
    with pytest.raises(SecateursError, match=r"can fall to .* at the least, but the budget is"):
        train(network(), gradual(budget=half(keep=0.001)))
