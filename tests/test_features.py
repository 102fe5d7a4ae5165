"""Features of a teacher: each loss against its definition, channels that stayed, teachers that a run makes itself, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import secateurs as sc
from secateurs.recover.descent import Descent, name_before
from secateurs.shrink.step import Step
from secateurs.types import FileError, KindError, Run, SecateursError


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def net(width: int = 6, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))


def task(batches: int = 2, size: int = 4) -> sc.Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batches, size, 5, generator=generator)
    target = torch.randint(3, (batches, size), generator=generator)
    return sc.Task(inputs[0], train=list(zip(inputs, target, strict=True)), loss=nn.functional.cross_entropy)


def only_hooks(output: Any, target: Tensor) -> Tensor:
    return 0 * output.sum()


def added(model: nn.Module, inputs: Any, hook: sc.Hook, example: Any = None) -> float:
    """What a hook adds to the loss of a batch that has no other."""
    first = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    alone = sc.Task(inputs if example is None else example, train=[(inputs, torch.zeros(len(first)))], loss=only_hooks)
    return sc.train_(model, alone, sgd(model, lr=0.0), 1, hooks=[hook]).history[0]["loss"]


# ---------------------------------------------------------------- definitions


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_features_are_the_mean_squared_difference_summed_over_modules(weight: float) -> None:
    model, teacher, (inputs, _) = net(), net(seed=1), task().train[0]  # type: ignore[index]
    expected = sum(mse_loss(model[:end](inputs), teacher[:end](inputs)).item() for end in (1, 2))
    assert added(model, inputs, sc.distill_features(teacher, ["0", "1"], weight=weight)) == pytest.approx(weight * expected)
    assert added(model, inputs, sc.distill_features(teacher, {"0": "0", "1": "1"}, weight=weight)) == pytest.approx(
        weight * expected
    )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Stack(nn.Module):
    """Blocks on a stream, for tokens with a mask of which are there."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(blocks)])

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x)
        return {"logits": x}


def stack_loss(output: Any, target: Tensor) -> Tensor:
    return 0 * output["logits"].sum()


@pytest.mark.parametrize("how", ["attention_mask", "counted"])
def test_tokens_count_where_they_are_no_padding(how: str) -> None:
    torch.manual_seed(0)
    model, teacher, x = Stack(), Stack(), torch.randn(2, 3, 4)
    there = torch.tensor([[1, 1, 0], [1, 0, 0]])
    inputs = {"x": x, "attention_mask": there} if how == "attention_mask" else {"x": x, "attention_mask": torch.ones(3)}
    counted = None if how == "attention_mask" else lambda given: there.bool()
    expected, ours, theirs = 0.0, x, x
    for mine, other in zip(model.layers, teacher.layers, strict=True):
        ours, theirs = mine(ours), other(theirs)
        distances = (ours - theirs).square().sum(-1)
        expected += (distances * there).sum().item() / 3
    alone = sc.Task(inputs, train=[(inputs, torch.zeros(2))], loss=stack_loss)
    hook = sc.distill_tokens(teacher, counted=counted)
    assert sc.train_(model, alone, sgd(model, 0.0), 1, hooks=[hook]).history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_what_counts_must_be_told_of_each_position() -> None:
    model, x = Stack(), torch.randn(2, 3, 4)
    inputs = {"x": x, "attention_mask": torch.ones(2, 3)}
    hook = sc.distill_tokens(Stack(), counted=lambda given: torch.ones(2))
    alone = sc.Task(inputs, train=[(inputs, torch.zeros(2))], loss=stack_loss)
    with pytest.raises(SecateursError, match=r"counted\(inputs\) gave \(2,\), but must say of each of \(2, 3\) positions"):
        sc.train_(model, alone, sgd(model), 1, hooks=[hook])


@settings(max_examples=8)
@given(st.floats(0.1, 10.0), st.integers(1, 5), st.integers(1, 5))
def test_attention_transfer_asks_where_features_are_large_and_not_how_large(scale: float, ours: int, theirs: int) -> None:
    """Any number of channels, any scale; and against its definition, sample by sample."""
    model, teacher, x = nn.Conv2d(2, ours, 3), nn.Conv2d(2, theirs, 3), torch.randn(3, 2, 5, 5)
    expected = 0.0
    for q, r in zip(model(x), teacher(x), strict=True):
        a, b = (each.square().sum(0).flatten() for each in (q, r))
        expected += (a / a.norm() - b / b.norm()).square().sum().item() / 3
    assert added(model, x, sc.attention_transfer(teacher, "")) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    with torch.no_grad():
        teacher.weight.mul_(scale), teacher.bias.mul_(scale)  # type: ignore[union-attr]
    assert added(model, x, sc.attention_transfer(teacher, "")) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_feature_that_is_zero_everywhere_is_no_division_by_zero() -> None:
    model, teacher = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)  # type: ignore[arg-type]
    x = torch.randn(2, 1, 3, 3)
    alone = sc.Task(x, train=[(x, torch.zeros(2))], loss=only_hooks)
    sc.train_(model, alone, sgd(model), 1, hooks=[sc.attention_transfer(teacher, "")])
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


# ---------------------------------------------------------------- shrunk from the teacher


class Frozen(nn.BatchNorm2d):
    """A normalisation that is in evaluation mode always, as that of a teacher is."""

    def train(self, mode: bool = True) -> nn.Module:  # type: ignore[override]
        return super().train(False)


class Residual(nn.Module):
    """Two residual blocks of convolutions, then a linear layer that reads flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), Frozen(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)) for _ in "12"
        )
        self.flat, self.head = nn.Flatten(), nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.flat(x))


def shrunk(make: Callable[[], nn.Module], example: Any, rounds: int = 2) -> tuple[nn.Module, nn.Module]:
    """A model that lost channels in some rounds, and one as large as it was that gives the same."""
    torch.manual_seed(1)
    model = make()
    large = copy.deepcopy(model)
    for _ in range(rounds):
        masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.25), sc.Task(example))
        sc.shrink_(model, masks, example)
    before, types = Descent(large, model, example), dict(large.named_parameters())
    with torch.no_grad():  # zero there what has gone here
        for name, parameter in types.items():
            for dim in range(parameter.ndim):
                gone = ~before.stays(name, dim, parameter.shape[dim])
                parameter.index_fill_(dim, gone.nonzero().flatten(), 0)
    return model, large


def test_of_a_shrunk_models_teacher_the_channels_that_stayed_count() -> None:
    """A teacher that has zeros where the model has nothing: all that both compute is the same, everywhere in the network."""
    x = torch.randn(2, 2, 4, 4)
    model, teacher = shrunk(Residual, x)
    assert sum(p.numel() for p in model.parameters()) < 0.5 * sum(p.numel() for p in teacher.parameters())
    assert added(model, x, sc.distill_features(teacher, ["stem", "blocks.*", "flat", "head"])) < 1e-8
    other = Residual()
    assert added(model, x, sc.distill_features(other, ["stem", "flat"])) > 1e-2


def test_other_teachers_than_the_one_it_was_shrunk_from_are_told_apart() -> None:
    model, _ = shrunk(net, torch.randn(2, 5))
    with pytest.raises(SecateursError, match=r"0.weight is \(6, 5\), which this teacher's is not \(\(9, 5\)\).*project=True"):
        added(model, torch.randn(2, 5), sc.distill_features(net(9), "1"))


def test_names_from_before_blocks_were_taken_out() -> None:
    assert name_before("a.0.x.1", [Step(entries={"a": [1, 2], "a.1.x": [0, 3]}), Step(entries={"a": [1]})]) == "a.2.x.1"
    torch.manual_seed(0)
    model = Stack(blocks=3)
    teacher, x = sc.teacher_of(model), torch.randn(2, 3, 4)
    with torch.no_grad():
        for parameter in model.layers[1].parameters():
            parameter.zero_()
    sc.shrink_(model, None, x)
    assert len(model.layers) == 2
    alone = sc.Task(x, train=[(x, torch.zeros(2))], loss=stack_loss)
    ours, theirs = list(model.layers.children()), list(teacher.get_submodule("layers").children())
    first, wanted = ours[0](x), theirs[0](x)
    expected = mse_loss(first, wanted) + mse_loss(ours[1](first), theirs[2](theirs[1](wanted)))
    hook = sc.distill_features(teacher, "layers.?")
    assert sc.train_(model, alone, sgd(model, 0.0), 1, hooks=[hook]).history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_blocks_that_go_in_the_middle_of_a_run_teach_no_more() -> None:
    """Whichever hook comes first in an epoch: what is looked at is found anew in the smaller model."""

    def take_out(run: Run) -> None:
        if run.epoch == 1:
            with torch.no_grad():
                for parameter in run.model.get_submodule("layers.0").parameters():
                    parameter.zero_()
            sc.shrink_(run.model, None, x, optimizer=run.optimizer)

    torch.manual_seed(0)
    model = Stack(blocks=3)
    teacher, x = sc.teacher_of(model), torch.randn(2, 3, 4)
    hooks = [sc.distill_features(teacher, "layers.?"), sc.Hook("out", epoch=take_out)]
    alone = sc.Task(x, train=[(x, torch.zeros(2))], loss=stack_loss)
    run = sc.train_(model, alone, sgd(model, 0.0), 2, hooks=hooks)
    theirs = list(teacher.get_submodule("layers").children())
    second = theirs[1](theirs[0](x))
    ours = [theirs[1](x), theirs[2](theirs[1](x))]
    expected = mse_loss(ours[0], second) + mse_loss(ours[1], theirs[2](second))
    assert len(model.layers) == 2 and run.history[0]["loss"] == 0
    assert run.history[1]["loss"] == pytest.approx(expected.item(), rel=1e-5)


# ---------------------------------------------------------------- other widths


def test_a_map_is_trained_where_widths_differ() -> None:
    """A teacher that is a linear map of the model is matched by the map alone, in whatever dimension channels are."""
    torch.manual_seed(0)
    pairs: list[tuple[nn.Module, nn.Module, Tensor]] = [
        (nn.Linear(5, 3), nn.Linear(3, 7, bias=False), torch.randn(32, 5)),
        (nn.Conv2d(2, 3, 1), nn.Conv2d(3, 7, 1, bias=False), torch.randn(8, 2, 3, 3)),
        (nn.Conv1d(2, 3, 1), nn.Conv1d(3, 7, 1, bias=False), torch.randn(8, 2, 5)),
    ]
    for model, more, x in pairs:
        teacher = nn.Sequential(copy.deepcopy(model), more)
        hook = sc.distill_features(teacher, {"": ""}, project=True, lr=0.1)
        alone = sc.Task(x, train=[(x, torch.zeros(len(x)))] * 15, loss=only_hooks)
        run = sc.train_(model, alone, sgd(model, 0.0), 5, hooks=[hook])
        assert run.history[-1]["loss"] < 0.1 * run.history[0]["loss"], more


def test_maps_learn_the_same_from_two_batches_as_from_one() -> None:
    states = []
    for size in (8, 4):
        hook, model = sc.distill_features(net(9, seed=1), "1", project=True), net()
        data = task(1, 8).train[0][0].split(size)  # type: ignore[index]
        alone = sc.Task(data[0], train=[(each, torch.zeros(size)) for each in data], loss=only_hooks)
        sc.train_(model, alone, sgd(model), 2, hooks=[hook], accumulate=8 // size)
        states.append(hook.state()["maps"]["1#0"])
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-6)


def test_maps_of_a_damaged_checkpoint_are_refused() -> None:
    hook = sc.distill_features(net(), "1", project=True)
    for broken in ({"maps": 3}, {"maps": {"1#0": torch.zeros(2, 2)}}, {"maps": {"a": 1}, "moments": {"a": [1]}, "steps": {"a": 1}}):
        with pytest.raises(FileError, match="no projections"):
            hook.restore(broken)


# ---------------------------------------------------------------- the model as its own teacher


def stopping(after: int) -> sc.Hook:
    return sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", run.epoch + 1 == after))


def hooks_of_one_teacher(until: int = 4) -> list[sc.Hook]:
    teacher = sc.Teacher()
    prune = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold, sc.linear(0.6))
    return [
        stopping(until),
        prune,
        sc.distill(teacher),
        sc.distill_features(teacher, "?", weight=0.1),
        sc.distill_features(net(9), "1", project=True, name="wide"),
    ]


def test_a_run_that_teaches_itself_goes_on_to_the_bit(tmp_path: Path) -> None:
    """New objects each time: the dense weights come from the checkpoint, whatever the model was made with."""
    states = []
    for stops in ((4,), (2, 4)):
        for number, until in enumerate(stops):
            model, hooks = net(seed=number), hooks_of_one_teacher(until)
            path = tmp_path / f"{len(stops)}.safetensors"
            run = sc.train_(model, task(), sgd(model), 4, hooks=hooks, checkpoint=path)
        states.append((model.state_dict(), run.history, hooks[2].state()["teacher"], hooks[4].state()["maps"]["1#0"]))
    (weights, history, teacher, maps), (again, also, other, same) = states
    assert history == also and torch.equal(maps, same)
    assert all(torch.equal(weights[name], again[name]) and torch.equal(teacher[name], other[name]) for name in weights)
    assert torch.equal(teacher["0.weight"], net().state_dict()["0.weight"])
    assert not hooks_of_one_teacher()[3].state() and float((weights["0.weight"] == 0).float().mean()) > 0.3


def test_a_run_that_shrinks_learns_from_what_it_was_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    """The teacher stays large, the channels that stayed are looked up anew, and a new process begins with a large model."""
    states = []
    for stops in ((4,), (1, 4), (3, 4)):
        for until in stops:
            teacher, model = sc.Teacher(), net(12)
            prune = sc.gradual(sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform, sc.linear(0.5), end=3, shrink=True)
            taught = [sc.distill_features(teacher, "?", weight=0.1), sc.distill(teacher)]
            path = tmp_path / f"{stops[0]}.safetensors"
            run = sc.train_(model, task(), sgd(model), 4, hooks=[*taught, prune, stopping(until)], checkpoint=path)
        assert (
            teacher.model is not None
            and len(teacher.model.get_parameter("0.bias")) == 12
            and len(model.get_parameter("0.bias")) == 6
        )
        states.append((model.state_dict(), run.history))
    assert all(torch.equal(states[0][0][name], value) for other, _ in states[1:] for name, value in other.items())
    assert all(history == states[0][1] for _, history in states)


def test_one_pass_teaches_all() -> None:
    calls: list[bool] = []
    original = net(seed=1)
    original.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    teacher, model = sc.Teacher(original), net()
    hooks = [sc.distill(teacher), sc.distill_features(teacher, "0"), sc.distill_features(teacher, "1", name="more")]
    sc.train_(model, task(3), sgd(model), 2, hooks=hooks)
    assert calls == [False] * 6
    apart = [sc.distill(original), sc.distill_features(original, "0"), sc.distill_features(original, "1", name="more")]
    alike = net()
    sc.train_(alike, task(3), sgd(alike), 2, hooks=apart)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), alike.parameters(), strict=True))


def test_a_loop_of_ones_own_does_the_same() -> None:
    teacher, models = net(9, seed=1), (net(), net())
    hooks = [sc.distill_features(teacher, "1", project=True) for _ in models]
    sc.train_(models[0], task(), sgd(models[0]), 2, hooks=[hooks[0]])
    model, optimizer = models[1], sgd(models[1])
    run = Run(model, task(), optimizer, epochs=2)
    hooks[1].start(run)
    for run.epoch in range(2):
        hooks[1].epoch(run)
        for run.inputs, run.target in task().train or ():
            optimizer.zero_grad()
            run.output = model(run.inputs)
            loss = nn.functional.cross_entropy(run.output, run.target) + hooks[1].loss(run)  # type: ignore[operator]
            loss.backward()
            optimizer.step()
            hooks[1].stepped(run)
    hooks[1].close(run)
    assert all(torch.equal(one, other) for one, other in zip(models[0].parameters(), model.parameters(), strict=True))
    assert torch.equal(hooks[0].state()["maps"]["1#0"], hooks[1].state()["maps"]["1#0"])


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_the_models(fails: bool) -> None:
    def stop(run: Run) -> None:
        raise KeyboardInterrupt

    model, teacher = net(), net(seed=1)
    hooks = [sc.distill_features(teacher, "0"), *([sc.Hook("stop", gradients=stop)] if fails else [])]
    with pytest.raises(KeyboardInterrupt) if fails else torch.enable_grad():
        sc.train_(model, task(), sgd(model), 1, hooks=hooks)
    assert not any(each._forward_hooks or each._forward_pre_hooks for one in (model, teacher) for each in one.modules())


def test_a_copy_of_what_is_pruned_already_is_no_teacher() -> None:
    model = net()
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task())
    with pytest.raises(
        SecateursError, match=r"distill: the teacher would be a copy .* masks with a sparsity of 0\.5.*teacher_of\(model\)"
    ):
        sc.train_(model, task(), sgd(model), 1, masks=masks, hooks=[sc.distill()])
    sc.shrink_(model, masks)
    with pytest.raises(SecateursError, match=r"that has been shrunk already"):
        sc.train_(model, task(), sgd(model), 1, hooks=[sc.distill_tokens(modules="0")])


def test_a_checkpoint_with_another_teacher_is_refused() -> None:
    hook, model = sc.distill(), net()
    hook.restore({"teacher": net(9).state_dict()})
    with pytest.raises(FileError, match=r"distill: the teacher in the checkpoint is another model .*2\.weight"):
        sc.train_(model, task(), sgd(model), 1, hooks=[hook])
    with pytest.raises(FileError, match="holds no teacher"):
        sc.distill().restore({"teacher": [3]})


# ---------------------------------------------------------------- what is refused


class Twice(nn.Module):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer, self.idle, self.times = nn.Linear(5, 5), nn.Linear(5, 5), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return x


@pytest.mark.parametrize(
    ("model", "hook", "message"),
    [
        (
            net(),
            lambda: sc.distill_features(net(9), "1"),
            r"1 gives \(4, 6\), and 1 of the teacher gives \(4, 9\), .*not shrunk from the teacher; with project=True",
        ),
        (net(), lambda: sc.distill_features(net(), "9"), r"Sequential has no module '9'; did you mean 0, 1, 2\?"),
        (net(), lambda: sc.distill_features(net(), {"0": "first"}), r"\(the teacher\): Sequential has no module 'first'"),
        (net(), lambda: sc.distill_features(nn.Unflatten(1, (5, 1)), "", project=True), r"only one dimension can be mapped"),
        (net(), lambda: sc.attention_transfer(net(), "0"), r"0 gives \(4, 6\), .* compares at which places features"),
        (net(), lambda: sc.distill_tokens(net()), r"has no stack of blocks"),
        (
            Twice(2),
            lambda: sc.distill_features(Twice(3), "layer"),
            r"layer gave 2 tensors in this batch, and layer of the teacher 3",
        ),
        (Twice(1), lambda: sc.distill_features(Twice(1), "idle"), r"idle of the model gave nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(model: nn.Module, hook: Callable[[], sc.Hook], message: str) -> None:
    data = sc.Task(torch.randn(4, 5), train=[(torch.randn(4, 5), torch.zeros(4))], loss=only_hooks)
    with pytest.raises(SecateursError, match=message):
        sc.train_(model, data, sgd(model), 1, hooks=[hook()])


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SecateursError, match=r"distill_features\(weight=-1\): weight must be at least 0"):
        sc.distill_features(net(), "0", weight=-1)
    with pytest.raises(KindError, match=r"distill: teacher is 3, but must be a torch\.nn\.Module, a Teacher"):
        sc.distill(3)  # type: ignore[arg-type]
    model = net()
    with pytest.raises(KindError, match=r"modules has 3, but must be names or globs"):
        sc.train_(model, task(), sgd(model), 1, hooks=[sc.distill_features(net(), [3])])  # type: ignore[list-item]
    with pytest.raises(SecateursError, match=r"begin with hook.start\(run\)"):
        sc.distill().loss(Run(model, task(), sgd(model), 1))


def test_outputs_of_other_kinds_are_taken_apart_by_the_caller() -> None:
    """Tuples, and classes that only one of them has."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net(seed=2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, self.inner(x)

    model = net()
    with pytest.raises(SecateursError, match=r"the teacher returned tuple and the model \(4, 3\); .*logits=lambda output"):
        sc.train_(model, task(), sgd(model), 1, hooks=[sc.distill(Pair())])
    take = lambda output: (output[1] if isinstance(output, tuple) else output)[:, :2]  # noqa: E731
    sc.train_(model, task(), sgd(model), 1, hooks=[sc.distill(Pair(), logits=take)])
