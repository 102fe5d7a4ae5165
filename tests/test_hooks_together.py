"""Hooks beside each other, and hooks that are given again, or to another run than theirs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.types import FileError, Hook, KindError, Run, SecateursError, TaskError

LARGEST = sc.TopK(sc.magnitude())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def task() -> sc.Task:
    chance = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, 1, 4, 4, generator=chance), torch.randint(4, (8,), generator=chance)) for _ in range(4)]
    return sc.Task(data[0][0], train=data, loss=nn.functional.cross_entropy)


def trained(model: nn.Module, *hooks: Hook, epochs: int = 4, **how: Any) -> Run:
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    return sc.train_(model, task(), adam, epochs, hooks=hooks, show=False, seed=0, **how)


def shrinking() -> Hook:
    return sc.gradual(sc.Channel(), LARGEST, sc.uniform, sc.linear(0.5), begin=1, end=3, shrink=True)


def state(model: nn.Module, run: Run) -> dict[str, Tensor]:
    return {**{name: value.clone() for name, value in model.state_dict().items()}, **{f"mask {n}": m for n, m in run.masks.items()}}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.filterwarnings("ignore:growing_penalty", "ignore:group_lasso")
@pytest.mark.parametrize(
    "make",
    [
        lambda: sc.group_lasso(sc.Channel(), target=0.3, until=3),
        lambda: sc.group_lasso(sc.Channel(), 1e-2, until=2),
        lambda: sc.growing_penalty(sc.Channel(), LARGEST, sc.uniform(sparsity=0.5), delta=5.0, every=2, ceiling=20.0, until=3),
        lambda: sc.hard_threshold(0.5, every=3),
        lambda: sc.ac_dc(sc.global_threshold(sparsity=0.6), warmup=1, phase=1, final=1),
        lambda: sc.soft_threshold(strength=0.01),
        lambda: sc.l0_gates(target=0.3, pattern=sc.Channel(), strict=True),
        lambda: sc.learned_n_of_m(skip=["0"]),
        lambda: sc.movement_pruning(sc.cubic(0.5), end=2),
        lambda: sc.early_bird(sc.uniform(sparsity=0.5), window=2, threshold=0.9, skip=["4"]),
    ],
)
def test_a_hook_that_is_given_to_another_run_begins_anew(make: Callable[[], Hook]):
    fresh, again, hook = network(), network(), make()
    wanted = state(fresh, trained(fresh, make()))
    trained(network(), hook)
    assert same(state(again, trained(again, hook)), wanted)


@pytest.mark.parametrize("make", [lambda: sc.soft_threshold(strength=0.01), lambda: sc.l0_gates(strength=0.1)])
def test_a_hook_whose_run_was_broken_off_takes_nothing_to_another_model(make: Callable[[], Hook]):
    hook, fresh, again = make(), network(), network()
    broken = sc.Hook("broken", epoch=lambda run: 1 / (run.epoch < 2) and None)
    with pytest.raises(ZeroDivisionError):
        trained(network(), hook, broken)
    wanted = state(fresh, trained(fresh, make()))
    assert same(state(again, trained(again, hook)), wanted)


@pytest.mark.parametrize(("first", "step"), [(True, "proximal"), (False, "subgradient")])
def test_a_penalty_goes_on_on_what_is_left_of_a_model_that_shrinks(first: bool, step: Any, tmp_path: Path):
    def hooks(stop: int = 9) -> list[Hook]:
        lasso, stopping = (
            sc.group_lasso(sc.Channel(), 1e-2, step=step),
            sc.Hook("stop", epoch=lambda run: 1 / (run.epoch < stop) and None),
        )
        return [stopping, *((lasso, shrinking()) if first else (shrinking(), lasso)), sc.training_macs()]

    whole, stopped = network(), network()
    run = trained(whole, *hooks())
    spent = [epoch["training_macs"] for epoch in run.history]
    sizes = [epoch["macs"] / 8 for epoch in run.history]  # of one sample
    assert [after - before for before, after in zip([0.0, *spent], spent, strict=False)] == [3 * 32 * size for size in sizes]
    assert sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(ZeroDivisionError):
        trained(network(), *hooks(stop=2), checkpoint=tmp_path / "run.safetensors")
    resumed = trained(stopped, *hooks(), checkpoint=tmp_path / "run.safetensors")
    assert same(state(stopped, resumed), state(whole, run)) and resumed.history == run.history


@pytest.mark.parametrize(
    "make",
    [
        lambda: sc.group_lasso(sc.Channel(), target=0.3),
        lambda: sc.rigl(sc.erdos_renyi(sparsity=0.5), every=2),
        lambda: sc.ac_dc(sc.global_threshold(sparsity=0.6), warmup=1, phase=1, final=1),
        lambda: sc.growing_penalty(sc.Channel(), LARGEST, sc.uniform(sparsity=0.5), delta=5.0, every=2, ceiling=20.0),
        lambda: sc.movement_pruning(sc.cubic(0.5)),
        lambda: sc.early_bird(sc.uniform(sparsity=0.5), window=3, threshold=1e-9, skip=["4"]),
    ],
)
def test_units_that_have_gone_for_good_are_told(make: Callable[[], Hook]):
    with pytest.raises(SecateursError, match=r"the model has become smaller by epoch [23] .* give shrink=False"):
        trained(network(), make(), shrinking())


@pytest.mark.parametrize("cut", ["elements", "channels"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: sc.rigl(sc.erdos_renyi(sparsity=0.3), every=2, until=1.0),
        lambda: sc.sparse_evolutionary(sc.erdos_renyi(sparsity=0.3), every=2),
        lambda: sc.gradual_regrowth(sc.cubic(0.4), every=2),
        lambda: sc.ac_dc(sc.global_threshold(sparsity=0.7), warmup=2, phase=1, final=1),
    ],
)
def test_what_other_hooks_remove_meanwhile_does_not_come_back(make: Callable[[], Hook], cut: str, tmp_path: Path):
    before: dict[str, Tensor] = {}
    gone: dict[str, Tensor] = {}

    def note(run: Run) -> None:
        before.update({name: mask.clone() for name, mask in run.masks.items()})

    def look(run: Run) -> None:
        if run.epoch == 2:
            gone.update({name: before.get(name, torch.ones_like(mask)) & ~mask for name, mask in run.masks.items()})

    def hooks(stop: int = 9) -> list[Hook]:
        pattern = sc.Element() if cut == "elements" else sc.Filter()
        prune = sc.prune_at(2, pattern, LARGEST, sc.uniform(sparsity=0.7))
        stopping = sc.Hook("stop", epoch=lambda run: 1 / (run.epoch < stop) and None)
        return [stopping, sc.Hook("note", epoch=note), prune, sc.Hook("look", epoch=look), make()]

    model, again = network(), network()
    run = trained(model, *hooks(), epochs=5)
    assert sum(int(each.sum()) for each in gone.values()) > 100 and run.masks.sparsity > 0.68
    assert not any(bool((run.masks[name] & each).any()) for name, each in gone.items())
    assert not any(bool(weight[gone[name]].any()) for name, weight in model.named_parameters() if name in gone)
    if cut == "channels":
        return
    with pytest.raises(ZeroDivisionError):
        trained(network(), *hooks(stop=3), epochs=5, checkpoint=tmp_path / "run")
    assert same(state(again, trained(again, *hooks(), epochs=5, checkpoint=tmp_path / "run")), state(model, run))


def test_coupled_units_that_went_meanwhile_are_told():
    cut = sc.prune_at(1, sc.Channel(), LARGEST, sc.uniform(sparsity=0.5))
    with pytest.raises(SecateursError, match=r"rigl: the masks are of coupled units by now \(Channel\(\)\)"):
        trained(network(), cut, sc.rigl(sc.erdos_renyi(sparsity=0.3), every=2))


def test_movement_of_another_model_is_told():
    moved, other = sc.Movement(), nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    moved.add("1.weight", None, torch.zeros(2, 2))
    with pytest.raises(
        SecateursError, match=r"1.weight: its movement was recorded when its shape was \(2, 2\), and now it is \(4, 16\)"
    ):
        trained(other, moved.hook())


def test_computed_weights_that_something_else_changes_are_told():
    for other in (shrinking(), sc.group_lasso(sc.Channel(), 1e-2)):
        with pytest.raises(SecateursError, match=r"is not what it was computed to be: .* a proximal step, .* shrinking"):
            trained(network(), other, sc.soft_threshold(strength=0.01))


def test_everything_pruned_on_the_way_to_a_target_is_told_as_such():
    fast = lambda values: torch.optim.SGD(values, lr=100.0)  # noqa: E731
    with pytest.raises(SecateursError, match=r"everything is pruned, .* though the target is 50.00%.* Train for more"):
        trained(network(), sc.soft_threshold(target=0.5, strength=1.0, learner=fast))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sc.soft_threshold(target="half"), "soft_threshold: target is 'half', but must be a number"),
        (lambda: sc.soft_threshold(strength="a"), "strength is 'a'"),
        (lambda: sc.soft_threshold(target=0.5, reach="a"), "reach is 'a'"),
        (lambda: sc.soft_threshold(target=0.5, end="a"), "end is 'a', but must be a whole number"),
        (lambda: sc.soft_threshold(target=0.5, end=-1), "end=-1, the epoch"),
        (lambda: sc.learned_bits(target="a"), "learned_bits: target is 'a'"),
        (lambda: sc.l0_gates(target=True), "l0_gates: target is True"),
        (lambda: sc.sparse_refined(strength="a"), "sparse_refined: strength is 'a'"),
        (lambda: sc.penalty(1e-3, p="a"), "penalty: p is 'a'"),
        (lambda: sc.group_lasso(sc.Channel(), 1e-3, growth="a"), "group_lasso: growth is 'a'"),
        (lambda: sc.growing_penalty(sc.Channel(), LARGEST, sc.uniform(sparsity=0.5), every="a"), "growing_penalty: every is 'a'"),
        (lambda: sc.hard_threshold(sc.uniform(sparsity=0.5)), "hard_threshold: sparsity is a function"),
        (lambda: sc.rigl(fraction="a"), "rigl: fraction is 'a'"),
        (lambda: sc.rigl(until="a"), "rigl: until is 'a'"),
        (lambda: sc.distill(temperature="a"), "distill: temperature is 'a'"),
        (lambda: sc.distill(weight="a"), "distill: weight is 'a'"),
        (lambda: sc.distill_features(None, "0", weight="a"), "distill_features: weight is 'a'"),
        (lambda: sc.distill_attention(weight="a"), "distill_attention: weight is 'a'"),
        (lambda: sc.saliency_penalty("a"), "saliency_penalty: strength is 'a'"),
        (lambda: sc.exit_losses("a"), "exit_losses: weight is 'a'"),
    ],
)
def test_what_is_no_number_is_told_before_anything_trains(make: Callable[[], Hook], message: str):
    with pytest.raises((KindError, SecateursError), match=message):
        make()


def test_a_checkpoint_of_another_penalty_is_refused(tmp_path: Path):
    target, strength = sc.group_lasso(sc.Channel(), target=0.3), sc.group_lasso(sc.Channel(), 1e-3)
    trained(network(), target, epochs=2, checkpoint=tmp_path / "target")
    trained(network(), strength, epochs=2, checkpoint=tmp_path / "strength")
    with pytest.raises(FileError, match=r"of a run with a target, and here is a strength"):
        trained(network(), sc.group_lasso(sc.Channel(), 1e-3), checkpoint=tmp_path / "target")
    with pytest.raises(FileError, match=r"of a run with a strength, and here is a target"):
        trained(network(), sc.group_lasso(sc.Channel(), target=0.3), checkpoint=tmp_path / "strength")
    with pytest.raises(FileError, match=r"on 2 sites, and here are 1 \(0\)"):
        trained(network(), sc.group_lasso(sc.Channel(), target=0.3, only="0"), checkpoint=tmp_path / "target")


def test_a_teacher_that_does_not_take_the_batch_is_told():
    with pytest.raises(
        TaskError, match=r"distill: the teacher rejects a training batch \(tensor .* torch.float32\): RuntimeError: .* dtype"
    ):
        trained(network(), sc.distill(network().bfloat16()))


def test_numbers_for_units_that_went_already_are_refused():
    model, dense = network(), network()
    masks = sc.prune_(model, sc.Channel(), LARGEST, sc.uniform(sparsity=0.5), task())
    sc.shrink_(model, masks, task().example)
    with pytest.raises(SecateursError, match=r"rescale_: the dense model has no parameter .* call shrink_ after the repair"):
        sc.rescale_(model, dense, replace(task(), calibration=task().train), masks)


def test_tokens_that_are_left_out_already_are_told():
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x, x, x)[0]

    model, x = nn.Sequential(Attending(), Attending()).eval(), torch.randn(1, 6, 4)
    attached = sc.drop_tokens_(model, x, keep=0.5)
    with pytest.raises(SecateursError, match=r"tokens of this Sequential are left out already: .* attached.remove\(\)"):
        sc.drop_tokens_(model, x, keep=0.5)
    attached.remove()
    sc.exit_tokens_(model, x, change=0.1)


@pytest.mark.parametrize("stop", [2, 3])
def test_movement_pruning_that_was_stopped_before_its_masks_are_made_goes_on(stop: int, tmp_path: Path):
    def hooks(stop: int = 9) -> list[Hook]:
        return [
            sc.Hook("stop", epoch=lambda run: 1 / (run.epoch < stop) and None),
            sc.movement_pruning(sc.cubic(0.5), end=3),
        ]

    model, again = network(), network()
    wanted = state(model, run := trained(model, *hooks()))
    with pytest.raises(ZeroDivisionError):
        trained(network(), *hooks(stop), checkpoint=tmp_path / "run")
    assert run.masks.sparsity >= 0.5 and same(state(again, trained(again, *hooks(), checkpoint=tmp_path / "run")), wanted)


def test_movement_pruning_beside_what_makes_masks_is_refused():
    prune = sc.gradual(sc.Element(), LARGEST, sc.uniform, sc.linear(0.5))
    for hooks in ((prune, sc.movement_pruning(sc.cubic(0.5))), (sc.movement_pruning(sc.cubic(0.5)), prune)):
        with pytest.raises(SecateursError, match=r"movement_pruning: the run has masks already, .* or of another hook"):
            trained(network(), *hooks)


@pytest.mark.parametrize("resumed", [False, True])
def test_where_one_hook_refuses_to_start_nothing_has_changed(resumed: bool, tmp_path: Path):
    """What those before it wrote, and what the checkpoint did, is taken back."""

    def train(model: nn.Module, masks: sc.Masks, *more: sc.Hook) -> sc.Run:
        data = [(torch.ones(4, 8), torch.zeros(4, 4))] * 3
        task = sc.Task(torch.zeros(1, 8), train=data, loss=nn.functional.mse_loss)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        hooks = [sc.rigl(sc.uniform(sparsity=0.5), every=1), *more]
        file = tmp_path / "run" if resumed else None
        return sc.train_(model, task, optimizer, 2, masks=masks, hooks=hooks, checkpoint=file, show=False)

    def refuse(run: sc.Run) -> None:
        raise sc.SecateursError("no")

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    if resumed:
        other = copy.deepcopy(model)
        train(other, sc.Masks({}, other), sc.Hook("last"))
    before, masks = copy.deepcopy(model.state_dict()), sc.Masks({}, model)
    with pytest.raises(sc.SecateursError, match=r"^no$"):
        train(model, masks, sc.Hook("last", start=refuse))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(masks) == 0
