"""Weights that are computed of whole ones and of what is learned beside them: thresholds, indicators, gates."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import secateurs as sc
from secateurs.recover.hard_concrete import hard_concrete, open_probability
from secateurs.recover.learned_masks import candidates, mixed_mask
from secateurs.recover.reparametrised import Chance
from secateurs.recover.strength import Strength
from secateurs.recover.thresholds import indicated, soft_thresholded
from secateurs.types import FileError, Hook, NonFiniteError, Run, SecateursError

WEIGHTS = ("0.weight", "2.weight")


def problem(seed: int = 0, count: int = 4) -> tuple[nn.Module, sc.Task]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(10, 6), torch.randint(0, 3, (10,))) for _ in range(count)]
    accuracy = lambda output, target: (output.argmax(1) == target).float().mean()  # noqa: E731
    return model, sc.Task(data[0][0][:1], train=data, validation=data, loss=cross_entropy, metric=accuracy)


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, **options})


def plain(lr: float = 0.1) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    return lambda values: torch.optim.SGD(values, lr=lr)


def adam(lr: float) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    return lambda values: torch.optim.Adam(values, lr=lr)


HOOKS: dict[str, Callable[..., Hook]] = {
    "soft_threshold": lambda **options: sc.soft_threshold(**{"strength": 0.1, "start": -2.5, **options}),
    "indicators": lambda **options: sc.indicators(**{"strength": 0.3, "start": 0.05, **options}),
    "l0_gates": lambda **options: sc.l0_gates(**{"strength": 0.3, "start": 0.6, "learner": adam(0.2), **options}),
    "l0_gates of units": lambda **options: sc.l0_gates(
        **{"strength": 0.3, "start": 0.6, "learner": adam(0.07), "pattern": sc.Channel(), **options}
    ),
    "soft_movement": lambda **options: sc.soft_movement(**{"strength": 0.3, "learner": adam(0.3), **options}),
    "sparse_refined": lambda **options: sc.sparse_refined(**{"n": 1, "m": 2, **options}),
    "learned_n_of_m": lambda **options: sc.learned_n_of_m(**{"n": 1, "m": 2, **options}),
}


def learning(hook: Hook) -> Any:
    return hook.close.__self__  # type: ignore[attr-defined]


# ---------------------------------------------------------------- the formulas


def test_formulas_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    s = torch.tensor(-1.5, dtype=torch.float64, requires_grad=True)
    u = torch.rand(5, generator=generator, dtype=torch.float64)
    for shape in (torch.sigmoid, torch.exp):
        assert torch.autograd.gradcheck(lambda v, s, g=shape: soft_thresholded(v, g(s)), (v, s))
    log_alpha = (torch.randn(5, generator=generator, dtype=torch.float64) / 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: hard_concrete(a, u), log_alpha)
    assert torch.autograd.gradcheck(open_probability, log_alpha)
    logits, gumbel = (
        torch.randn(2, 6, generator=generator).double().requires_grad_(),
        torch.randn(2, 6, generator=generator).double(),
    )
    masks = candidates(2, 4).double()
    assert torch.autograd.gradcheck(lambda each: mixed_mask(each, masks, gumbel, 3.0, 2.0), logits)
    assert torch.autograd.gradcheck(lambda v: indicated(v, torch.tensor([1.0, -1, 1, -1, 1])), v)


def test_a_gate_is_open_as_often_as_is_said() -> None:
    log_alpha = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    noise = Chance(3).uniform((20000, 4), log_alpha)
    often = (hard_concrete(log_alpha, noise) > 0).float().mean(0)
    assert torch.allclose(often, open_probability(log_alpha), atol=0.01)
    assert hard_concrete(torch.tensor([-2.5, 2.5])).tolist() == [0.0, 1.0]  # to the bit


@pytest.mark.parametrize("coarse", ["leaky", "softplus"])
def test_indicators_have_coarse_gradients(coarse: Any) -> None:
    v, m, g = torch.randn(6), torch.tensor([1.0, -1, 0.3, -0.3, 0, 2]), torch.randn(6)
    m.requires_grad_()
    indicated(v, m, coarse).backward(g)
    slope = torch.sigmoid(m) if coarse == "softplus" else torch.tensor([1, 0.1, 1, 0.1, 0.1, 1])
    assert torch.allclose(m.grad, g * v.sign() * slope.detach())


# ---------------------------------------------------------------- whole training, written out


class Open(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        return (m > 0).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        return gradient * torch.where(m > 0, 1.0, 0.1)


class Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return (torch.sigmoid(scores) > 0.1).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Scaled(torch.autograd.Function):
    """The product v·h with gradient g·h for v and g·sgn(v) for h."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, h: Tensor) -> Tensor:
        ctx.save_for_backward(v, h)
        return v * h

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        v, h = ctx.saved_tensors
        return gradient * h, gradient * v.sign()


RATES = {"soft_threshold": 0.05, "indicators": 0.5, "l0_gates": 40.0, "soft_movement": 60.0}


def written_out(kind: str, epochs: int = 2) -> tuple[dict[str, Tensor], nn.Module]:
    """The weights after training as the paper says it, with θ as parameters of one loss."""
    model, task = problem()
    whole = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    generator = torch.Generator().manual_seed(7)
    total = sum(whole[name].numel() for name in WEIGHTS)
    if kind == "soft_threshold":
        beside = {name: torch.tensor(-2.0, requires_grad=True) for name in WEIGHTS}
    else:
        closed = float(torch.logit(torch.tensor(0.35)) + 2 / 3 * torch.log(torch.tensor(1 / 11)))
        start = {"indicators": 0.05, "soft_movement": 0.0, "l0_gates": closed}
        beside = {name: torch.full_like(whole[name], start[kind]).requires_grad_() for name in WEIGHTS}
    trained = torch.optim.SGD(list(whole.values()), lr=0.1, momentum=0.9, weight_decay=1e-3)
    learner = torch.optim.SGD(list(beside.values()), lr=RATES[kind])

    def computed(noisy: bool) -> dict[str, Tensor]:
        found = {}
        for name, theta in beside.items():
            if kind == "soft_threshold":
                found[name] = whole[name].sign() * torch.relu(whole[name].abs() - torch.sigmoid(theta))
            elif kind == "indicators":
                found[name] = Scaled.apply(whole[name], Open.apply(theta))
            elif kind == "soft_movement":
                found[name] = whole[name] * Passed.apply(theta)
            else:
                u = torch.rand(theta.shape, generator=generator).clamp(1e-6, 1 - 1e-6) if noisy else None
                noise = torch.log(u / (1 - u)) if u is not None else None
                s = torch.sigmoid((noise + theta) / (2 / 3)) if noise is not None else torch.sigmoid(theta)
                found[name] = whole[name] * (s * 1.2 - 0.1).clamp(0, 1)
        return found

    for _ in range(epochs):
        for x, y in task.train:
            trained.zero_grad(), learner.zero_grad()
            cross_entropy(functional_call(model, {**whole, **computed(True)}, x), y).backward()
            if kind == "soft_threshold":
                (0.3 * sum(theta.square().sum() / 2 for theta in beside.values())).backward()
            elif kind == "indicators":
                (0.3 * sum(Open.apply(theta).sum() for theta in beside.values()) / total).backward()
            elif kind == "soft_movement":
                (0.3 * sum(torch.sigmoid(theta).sum() for theta in beside.values()) / total).backward()
            else:
                open_ = sum(torch.sigmoid(theta - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1))).sum() for theta in beside.values())
                (0.3 * open_ / total).backward()
            trained.step(), learner.step()
    return {**whole, **computed(False)}, model


@pytest.mark.parametrize("kind", ["soft_threshold", "indicators", "l0_gates", "soft_movement"])
def test_training_is_that_of_the_paper_written_out(kind: str) -> None:
    expected, _ = written_out(kind)
    model, task = problem()
    options = {"soft_threshold": {"start": -2.0}, "indicators": {"start": 0.05}, "l0_gates": {"start": 0.35, "seed": 7}}.get(
        kind, {}
    )
    hook = getattr(sc, kind)(strength=0.3, learner=plain(RATES[kind]), **options)
    seen: list[Tensor] = []
    watch = sc.Hook("watch", stepped=lambda run: seen.append(model[0].weight.detach().clone()))
    run = sc.train_(model, task, sgd(model), 2, hooks=[hook, watch], show=False)
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
    assert all(torch.equal(run.masks[name], model.get_parameter(name) != 0) for name in WEIGHTS)
    assert 0 < run.masks.sparsity < 1 and len(seen) == 8


def test_sparse_refinement_written_out() -> None:
    """v ← v − lr·(∂L/∂(v⊙M) + λ(1 − M)⊙v), M the larger one of each two consecutive inputs."""
    model, task = problem()
    theirs = copy.deepcopy(model)
    whole = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(list(whole.values()), lr=0.1, momentum=0.9, weight_decay=1e-3)

    def larger(v: Tensor) -> Tensor:
        pairs = v.detach().abs().view(-1, 2)
        return torch.stack([pairs[:, 0] >= pairs[:, 1], pairs[:, 0] < pairs[:, 1]], 1).view_as(v)

    for x, y in task.train * 2:
        masked = {name: (whole[name].detach() * larger(whole[name])).requires_grad_() for name in WEIGHTS}
        optimizer.zero_grad()
        cross_entropy(functional_call(model, {**whole, **masked}, x), y).backward()
        for name, w in masked.items():
            whole[name].grad = w.grad + 0.05 * ~larger(whole[name]) * whole[name].detach()
        optimizer.step()
    run = sc.train_(theirs, task, sgd(theirs), 2, hooks=[sc.sparse_refined(n=1, m=2, strength=0.05)], show=False)
    for name in WEIGHTS:
        assert torch.allclose(theirs.get_parameter(name), whole[name] * larger(whole[name]), atol=1e-6)
        assert torch.equal(run.masks[name], larger(whole[name]))


def test_a_choice_of_masks_is_learned_where_the_prior_is_wrong() -> None:
    """Of each four weights the two that matter are the smaller ones; the weights stay as they are, to the bit."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Identity()), torch.randn(64, 8)
    model[0].weight.data = torch.tensor([1.0, -0.9, 1.2, 1.1]).repeat(4, 2)
    useful = torch.tensor([1.0, 1, 0, 0]).repeat(4, 2)
    y, before = x @ (model[0].weight.detach() * useful).T, model[0].weight.detach().clone()
    task = sc.Task(x[:1], train=[(x, y)] * 10, validation=[(x, y)], loss=nn.functional.mse_loss, metric=lambda a, b: (a - b).norm())
    hook = sc.learned_n_of_m(learner=adam(0.01), only="*")
    run = sc.train_(model, task, torch.optim.AdamW(model.parameters(), lr=0.1), 12, hooks=[hook], show=False)
    assert torch.equal(run.masks["0.weight"], useful.bool()) and torch.equal(model[0].weight, before * useful)
    assert run.history[0]["sparsity"] == 0.5 and run.history[-1]["validation"] < 1e-4
    for frozen in (True, False):
        other = copy.deepcopy(model)
        other[0].weight.data = before.clone()
        hook = sc.learned_n_of_m(prior={"0.weight": useful.bool()}, frozen=frozen, only="*")
        run = sc.train_(other, task, torch.optim.AdamW(other.parameters(), lr=0.1), 1, hooks=[hook], show=False)
        assert torch.equal(run.masks["0.weight"], useful.bool())
        assert torch.equal(other[0].weight, before * useful) == frozen


# ---------------------------------------------------------------- through a checkpoint, and in a loop of one's own


@pytest.mark.parametrize("kind", HOOKS)
def test_it_goes_on_from_a_checkpoint_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole, task = problem()
    parts, copied = copy.deepcopy(whole), copy.deepcopy(whole)
    stop = sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", run.epoch == 1))

    def train(model: nn.Module, hooks: list[Hook], checkpoint: Path | None) -> Run:
        adam = torch.optim.Adam(model.parameters(), lr=0.03)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 6)
        made = HOOKS[kind](end=5)
        return sc.train_(model, task, adam, 6, scheduler=cosine, hooks=[made, *hooks], checkpoint=checkpoint, seed=1, show=False)

    straight = train(whole, [sc.Hook("stop")], None)
    train(copied, [stop], tmp_path / "c")
    resumed = train(parts, [sc.Hook("stop")], tmp_path / "c")
    assert straight.history == resumed.history
    assert all(torch.equal(straight.masks[name], mask) for name, mask in resumed.masks.items()) and len(resumed.masks) >= 2
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["indicators", "l0_gates", "sparse_refined", "learned_n_of_m"])
def test_a_loop_of_ones_own_comes_to_the_same(kind: str) -> None:
    theirs, task = problem()
    model = copy.deepcopy(theirs)
    expected = sc.train_(theirs, task, sgd(theirs), 3, hooks=[HOOKS[kind]()], show=False)
    optimizer, hook = sgd(model), HOOKS[kind]()
    run = Run(model, task, optimizer, 3, masks=sc.Masks({}, model))
    hook.start(run)
    for run.epoch in range(3):
        model.train()
        for x, y in task.train:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        hook.epoch_end(run)
    hook.end(run)
    assert all(torch.equal(one, other) for one, other in zip(theirs.parameters(), model.parameters(), strict=True))
    assert all(torch.equal(expected.masks[name], mask) for name, mask in run.masks.items()) and run.masks
    assert not optimizer._optimizer_step_pre_hooks and not model._forward_pre_hooks


# ---------------------------------------------------------------- beside masks, mixed precision, accumulation, errors


@pytest.mark.parametrize("kind", HOOKS)
def test_earlier_masks_hold_and_their_weights_stay_away(kind: str) -> None:
    model, task = problem()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.3), task)
    before = {name: mask.clone() for name, mask in masks.items()}
    hook = HOOKS[kind]()
    seen: list[bool] = []

    def look(run: Run) -> None:
        whole = learning(hook).whole
        seen.append(all(not bool(whole[name][~before[name]].any()) for name in before if name in whole))

    run = sc.train_(model, task, sgd(model), 4, masks=masks, hooks=[hook, sc.Hook("look", stepped=look)], show=False)
    assert all(seen) and len(seen) == 16
    for name, mask in before.items():
        assert not bool((run.masks[name] & ~mask).any()) and not bool(model.get_parameter(name)[~run.masks[name]].any())


def test_masks_that_grow_beside_it_are_taken_over() -> None:
    model, task = problem()
    gradual = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.one_shot(0.5), begin=1, end=2, dead=False)
    hook = sc.indicators(strength=0.1)
    run = sc.train_(model, task, sgd(model), 3, hooks=[hook, gradual], show=False)
    assert run.masks.sparsity >= 0.5
    rewound = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.one_shot(0.5), begin=1, end=2, rewind="weights")
    model, task = problem()
    with pytest.raises(
        SecateursError, match=r"indicators: 0.weight is not what it was computed to be: something else has changed it"
    ):
        sc.train_(model, task, sgd(model), 3, hooks=[sc.indicators(strength=0.1), rewound], show=False)


def test_masks_over_the_largest_of_each_m_let_others_come_in_their_place() -> None:
    model, task = problem()
    gone: dict[str, Tensor] = {}

    def lay(run: Run) -> None:
        if run.epoch == 0:
            for name in WEIGHTS:
                sizes = model.get_parameter(name).detach().abs()
                gone[name] = sizes >= 0.7 * sizes.max()
            run.masks.replace_(sc.Masks({name: ~mask for name, mask in gone.items()}, model))

    hooks = [sc.sparse_refined(n=1, m=2), sc.Hook("lay", epoch_end=lay)]
    run = sc.train_(model, task, sgd(model), 3, hooks=hooks, show=False)
    assert run.masks.sparsity == pytest.approx(0.5, abs=0.03)
    assert all(mask.any() and not run.masks[name][mask].any() for name, mask in gone.items())


@pytest.mark.parametrize("kind", ["soft_threshold", "l0_gates", "learned_n_of_m"])
def test_steps_that_scaling_skips_change_nothing(kind: str) -> None:
    model, task = problem()
    optimizer, hook = sgd(model), HOOKS[kind]()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    run = Run(model, task, optimizer, 3, masks=sc.Masks({}, model))
    hook.start(run)
    before = copy.deepcopy(model.state_dict())
    values = {key: value.detach().clone() for key, value in learning(hook).beside.values.items()}
    for x, y in task.train:
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(x), y)).backward()
        model[0].bias.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    model.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, values[key]) for key, value in learning(hook).beside.values.items())


def test_accumulated_batches_are_one_step_and_half_precision_trains() -> None:
    model, task = problem()
    other = copy.deepcopy(model)
    joined = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in (task.train[:2], task.train[2:])]
    large = sc.Task(task.example, train=joined, loss=cross_entropy)
    for network, its_task, accumulate in ((model, task, 2), (other, large, 1)):
        sc.train_(network, its_task, sgd(network), 2, accumulate=accumulate, hooks=[sc.l0_gates(strength=0.1)], show=False)
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    for kind in ("soft_threshold", "l0_gates", "learned_n_of_m"):
        sc.train_(model, task, sgd(model), 1, amp=torch.float16, hooks=[HOOKS[kind]()], show=False)


@pytest.mark.parametrize(
    ("kind", "where"), [("l0_gates", "gradients"), ("l0_gates", "loss"), ("soft_threshold", "epoch"), ("sparse_refined", "stepped")]
)
def test_after_an_error_the_model_is_the_sparse_one_and_nothing_is_left_on_it(kind: str, where: str) -> None:
    def fail(run: Run) -> None:
        if run.step == 4:
            raise RuntimeError("stopped here")

    model, task = problem()
    optimizer, hook = sgd(model), HOOKS[kind]()
    with pytest.raises(RuntimeError, match=r"stopped here"):
        sc.train_(model, task, optimizer, 3, hooks=[hook, sc.Hook("fail", **{where: fail})], show=False)
    state = learning(hook)
    assert all(torch.equal(model.get_parameter(name), state._compute(name, state.whole[name])) for name in state.weights)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks and not model._forward_pre_hooks
    sc.train_(model, task, optimizer, 3, hooks=[hook], show=False)  # and goes on, as nothing else has begun


# ---------------------------------------------------------------- gates on units


@pytest.mark.parametrize("pattern", [sc.Filter(), sc.Channel(), sc.Vector("inputs", 2)], ids=repr)
def test_gates_on_units_close_units_as_a_whole(pattern: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    x = torch.randn(32, 2, 6, 6)
    y = (x[:, 0].mean((1, 2)) > 0).long()
    task = sc.Task(x[:1], train=list(zip(x.split(8), y.split(8), strict=True)), loss=cross_entropy)
    hook = sc.l0_gates(strength=0.1, pattern=pattern, skip=["0"] if isinstance(pattern, sc.Vector) else None)

    def close_some(run: Run) -> None:
        for value in learning(hook).beside.values.values() if run.epoch == 1 else ():
            value.data[::2] = -9.0
        learning(hook)._settle(run)

    run = sc.train_(model, task, sgd(model), 3, hooks=[sc.Hook("close", epoch_end=close_some), hook], show=False)
    assert run.history[-1]["sparsity"] == pytest.approx(0.5, abs=0.05)
    if isinstance(pattern, sc.Channel):
        model.eval()
        answer, before = model(x), sum(p.numel() for p in model.parameters())
        sc.shrink_(model, run.masks, task.example)
        assert torch.allclose(model(x), answer, atol=1e-5) and sum(p.numel() for p in model.parameters()) < 0.75 * before
    elif isinstance(pattern, sc.Filter):
        assert all(bool((mask.flatten(1).all(1) | ~mask.flatten(1).any(1)).all()) for mask in run.masks.values())


def test_noise_is_drawn_in_training_only_and_validation_sees_gates_as_they_are() -> None:
    model, task = problem()
    hook, optimizer = sc.l0_gates(strength=0.1, start=0.5), sgd(model)
    run = Run(model, task, optimizer, 1, masks=sc.Masks({}, model))
    hook.start(run)
    settled = model[0].weight.detach().clone()
    model.eval()(task.example)
    assert torch.equal(model[0].weight, settled)
    model.train()(task.example)
    noisy = model[0].weight.detach().clone()
    assert not torch.equal(noisy, settled)
    model(task.example)
    assert torch.equal(model[0].weight, noisy)  # one draw a step
    copy.deepcopy(model).eval()(task.example)
    assert torch.equal(model[0].weight, noisy)  # a copy is nobody's
    model.eval()(task.example)
    assert torch.equal(model[0].weight, settled)
    model[2](torch.tanh(model[0](task.example))).sum().backward()
    with pytest.raises(SecateursError, match=r"l0_gates: a step, but no noise was drawn for it: the loss must come from a call"):
        optimizer.step()
    hook.close(run)


# ---------------------------------------------------------------- the target


def test_strength_grows_where_too_much_is_left() -> None:
    strength = Strength.of("x", None, 0.9, first=1e-2)
    assert strength.wanted(0.7) == strength.wanted(1.0) == pytest.approx(0.1)
    strength.follow_(1.0, 0.35, 0.1)
    more = strength.now
    strength.follow_(0.01, 0.7, 0.1)
    assert more > 1e-2 > strength.now
    again = Strength.of("x", None, 0.9, first=1e-2)
    again.restore(strength.state())
    assert again == strength


@pytest.mark.parametrize("kind", ["soft_threshold", "indicators", "l0_gates", "l0_gates of units", "soft_movement"])
def test_a_target_that_was_not_reached_is_told_or_cut(kind: str) -> None:
    model, task = problem()
    slow = plain(1e-9)
    with pytest.warns(UserWarning, match=rf"{kind.split()[0]}: the target of 90.00% was not reached, but"):
        sc.train_(model, task, sgd(model), 1, hooks=[HOOKS[kind](target=0.9, learner=slow)], show=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = sc.train_(model, task, sgd(model), 1, hooks=[HOOKS[kind](target=0.5, learner=slow, strict=True)], show=False)
    assert run.masks.sparsity == pytest.approx(0.5, abs=0.02)


def test_everything_pruned_is_an_error_and_one_layer_a_warning() -> None:
    model, task = problem()
    with pytest.raises(
        SecateursError, match=r"soft_threshold: everything is pruned, every weight of 0.weight, 2.weight: lower the"
    ):
        sc.train_(model, task, sgd(model), 1, hooks=[sc.soft_threshold(strength=0.0, start=4.0)], show=False)
    model, task = problem()
    model[2].weight.data *= 10
    with pytest.warns(UserWarning, match=r'soft_threshold: every weight of 0.weight is pruned.*skip=\["0"\]'):
        sc.train_(model, task, sgd(model), 1, hooks=[sc.soft_threshold(strength=0.0, start=0.0)], show=False)
    with pytest.raises(
        NonFiniteError, match=r"indicators: what is learned beside 0.weight became NaN or infinite: lower its learning"
    ):
        _diverged()


def _diverged() -> None:
    model, task = problem()
    hook = sc.indicators(strength=0.1)
    spoil = sc.Hook("spoil", stepped=lambda run: learning(hook).beside.values["0.weight"].data.fill_(torch.nan))
    sc.train_(model, task, sgd(model), 1, hooks=[hook, spoil], show=False)


# ---------------------------------------------------------------- what cannot be


def test_bad_input_is_told(tmp_path: Path) -> None:
    model, task = problem()
    for hook in (sc.soft_threshold, sc.indicators, sc.l0_gates):
        with pytest.raises(SecateursError, match=rf"{hook.__name__}: give strength=..., how strongly .*, or target="):
            hook()
        for wrong in ({"target": 1.0}, {"strength": -1.0}, {"target": 0.5, "strength": 0.0}, {"target": 0.5, "reach": 0.0}):
            with pytest.raises(SecateursError, match=rf"{hook.__name__}: (target|strength|reach)="):
                hook(**wrong)
    with pytest.raises(SecateursError, match='soft_threshold: shape=\'tanh\' is "sigmoid" or "exp"'):
        sc.soft_threshold(target=0.5, shape="tanh")  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match='indicators: coarse=\'relu\' is "leaky" or "softplus"'):
        sc.indicators(target=0.5, coarse="relu")  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match=r"l0_gates: start=1.5, how probable it is"):
        sc.l0_gates(target=0.5, start=1.5)
    with pytest.raises(SecateursError, match=r"l0_gates: NofM\(2, 4\) says itself how many units stay"):
        sc.l0_gates(target=0.5, pattern=sc.NofM(2, 4))
    with pytest.raises(SecateursError, match=r"soft_movement: threshold=0.5 must be in \(0, 0.5\)"):
        sc.soft_movement(target=0.5, threshold=0.5)
    with pytest.raises(SecateursError, match=r"learned_n_of_m: scales=\(0, 1\) and temperatures=.* must be above 0"):
        sc.learned_n_of_m(scales=(0, 1))
    with pytest.raises(SecateursError, match=r"learned_n_of_m: there are more than 10,000 masks of 8 in 32"):
        sc.learned_n_of_m(n=8, m=32)
    with pytest.raises(SecateursError, match=r"learned_n_of_m: the prior masks say nothing of 0.weight; they are of nothing"):
        sc.train_(model, task, sgd(model), 1, hooks=[sc.learned_n_of_m(n=1, m=2, prior={})], show=False)
    with pytest.raises(SecateursError, match=r"sparse_refined: strength=-1 must be at least 0"):
        sc.sparse_refined(strength=-1)
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(SecateursError, match=r"indicators: LBFGS computes several gradients in one step"):
        sc.train_(model, task, lbfgs, 1, hooks=[sc.indicators(target=0.5)], show=False)
    two = [sc.indicators(target=0.5), sc.soft_threshold(target=0.5)]
    with pytest.raises(SecateursError, match=r"soft_threshold: 0.weight is computed by indicators already: one weight cannot be"):
        sc.train_(model, task, sgd(model), 1, hooks=two, show=False)
    shared = [sc.indicators(strength=0.5, only="0"), sc.soft_threshold(strength=0.01, only="2", start=-4.0)]
    assert len(sc.train_(model, task, sgd(model), 1, hooks=shared, show=False).masks) == 2
    model[2].weight.requires_grad_(False)
    with pytest.raises(SecateursError, match=r'indicators: 2.weight is frozen, so that no gradient .* skip=\["2"\]'):
        sc.train_(model, task, sgd(model), 1, hooks=[sc.indicators(target=0.5)], show=False)
    model[2].weight.requires_grad_(True)
    few = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(SecateursError, match=r"indicators: 2.weight is not trained by the optimizer"):
        sc.train_(model, task, few, 1, hooks=[sc.indicators(target=0.5)], show=False)
    fused = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = sc.indicators(target=0.5)
    hook.start(run := Run(model, task, fused, 1, masks=sc.Masks({}, model)))
    fused.grad_scale = torch.tensor(2.0)
    with pytest.raises(SecateursError, match=r"indicators: the gradients are still scaled: call scaler.unscale_\(optimizer\)"):
        fused.step()
    hook.close(run)
    with pytest.raises(FileError, match=r"indicators: the checkpoint holds no state of this hook"):
        sc.indicators(target=0.5).restore({"over": False})
    broken = copy.deepcopy(model)
    broken[0].weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"0.weight: a weight is NaN or infinite"):
        sc.train_(broken, task, sgd(broken), 1, hooks=[sc.indicators(target=0.5)], show=False)


@pytest.mark.filterwarnings("ignore:.*every weight of unused.weight is pruned")
def test_weights_without_gradient_and_tied_ones() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    torch.manual_seed(0)
    model, x = Odd(), torch.randn(8, 6)
    task = sc.Task(x[:1], train=[(x, x)] * 4, loss=nn.functional.mse_loss)
    before = model.unused.weight.detach().clone()
    for kind in ("soft_threshold", "indicators", "l0_gates"):
        run = sc.train_(model, task, sgd(model, weight_decay=0.0), 2, hooks=[HOOKS[kind]()], show=False)
        assert "a.weight" in run.masks
    assert torch.equal(model.unused.weight[run.masks["unused.weight"]], before[run.masks["unused.weight"]])
