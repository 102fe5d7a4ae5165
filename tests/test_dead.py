"""Dead neurons: those that pruning has cut off are found, also one after another, and no living one is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import secateurs as sc
from secateurs.types import SecateursError, TaskError

Units = dict[str, set[int]]


def masks_without(model: nn.Module, *cuts: tuple[str, Any]) -> sc.Masks:
    """Masks of all weights of the layers named, without what an index of each takes out."""
    masks: dict[str, Tensor] = {}
    for name, index in cuts:
        mask = masks.setdefault(name, torch.ones(model.get_parameter(name).shape, dtype=torch.bool))
        mask[index] = False
    return sc.Masks(masks, model).apply_()


def units(found: dict[str, Tensor]) -> Units:
    return {name: set(indices.tolist()) for name, indices in found.items() if len(indices)}


def all_units(dead: sc.Dead) -> Units:
    names = dead.no_input.keys() | dead.no_output.keys()
    no_input, no_output = units(dead.no_input), units(dead.no_output)
    return {name: no_input.get(name, set()) | no_output.get(name, set()) for name in names}


ALL = slice(None)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


# ---------------------------------------------------------------- by hand


def test_in_an_mlp_by_hand() -> None:
    model = mlp()
    masks = masks_without(model, ("0.weight", 1), ("2.weight", (ALL, 3)), ("4.weight", (ALL, 0)))
    dead = sc.find_dead(model, masks, torch.zeros(1, 3))
    assert (units(dead.no_input), units(dead.no_output)) == ({"0": {1}}, {"0": {3}, "2": {0}})
    assert dead.count == 3


def test_nothing_is_dead_in_a_dense_model() -> None:
    assert sc.find_dead(mlp(), sc.Masks({}, mlp()), torch.zeros(1, 3)) == sc.Dead({}, {})


def test_deaths_cascade_forwards_and_backwards() -> None:
    """A neuron that is read by dead ones only is dead, and so is one that only dead ones feed; through three layers."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    chain = torch.eye(3, dtype=torch.bool)
    chain[0, 1] = True
    masks = {f"{i}.weight": chain.clone() for i in range(4)}
    masks["0.weight"][2] = False  # nothing feeds 2 any more, so it dies in every layer behind
    masks["3.weight"][:, 1] = False  # nothing reads 1 of the last but one; before it 1 is read by 0
    masks["2.weight"][0] = False  # and 0 of the last but one has no input
    model_masks = sc.Masks(masks, model).apply_()
    dead = sc.find_dead(model, model_masks, torch.zeros(1, 3))
    assert all_units(dead) == {"0": {0, 1, 2}, "1": {0, 1, 2}, "2": {0, 1, 2}, "3": {0, 1, 2}}
    assert units(dead.no_input)["2"] >= {2}


def test_a_long_chain_dies_to_its_end() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(8)))
    chain = torch.eye(2, dtype=torch.bool)
    masks = {f"{i}.weight": chain.clone() for i in range(8)}
    masks["7.weight"][:, 1] = False
    masks["7.weight"][1, 0] = True
    dead = sc.find_dead(model, sc.Masks(masks, model).apply_(), torch.zeros(1, 2))
    assert units(dead.no_output) == {str(i): {1} for i in range(7)}
    assert units(dead.no_input) == {}


def test_from_a_convolution_through_pooling_and_flattening_to_a_linear() -> None:
    """A channel is dead only when all of its positions are unread."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    masks = masks_without(model, ("0.weight", 2), ("4.weight", (ALL, slice(0, 4))), ("4.weight", (ALL, slice(4, 7))))
    dead = sc.find_dead(model, masks, torch.zeros(1, 1, 4, 4))
    assert (units(dead.no_input), units(dead.no_output)) == ({"0": {2}}, {"0": {0}})


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + torch.relu(self.branch(x)))


def test_in_a_residual_sum_both_terms_keep_the_reader_alive() -> None:
    model = Residual()
    masks = masks_without(model, ("branch.weight", 1), ("head.weight", (ALL, 2)), ("branch.weight", (ALL, 3)))
    zeroed = copy.deepcopy(masks)
    dead = sc.find_dead(model, masks, torch.zeros(1, 3))
    assert (units(dead.no_input), units(dead.no_output)) == ({"branch": {1}}, {"branch": {2}})
    sc.zero_dead_(model, masks, torch.zeros(1, 3))
    assert torch.equal(masks["head.weight"], zeroed["head.weight"])  # 1 of the stem still arrives there
    assert not masks["branch.bias"][1]
    assert not masks["branch.bias"][2]
    assert "stem.bias" not in masks or masks["stem.bias"].all()


def test_where_both_terms_of_a_sum_are_dead_what_reads_them_stays() -> None:
    """Each sees the other arrive there: harmless, since only a constant comes, and on the safe side."""
    model = Residual()
    masks = masks_without(model, ("branch.weight", 1), ("stem.weight", 1))
    dead = sc.zero_dead_(model, masks, torch.zeros(1, 3))
    assert units(dead.no_input) == {"stem": {1}, "branch": {1}}
    assert masks["branch.weight"][:, 1].tolist() == [False] * 4
    assert "head.weight" not in masks


@pytest.mark.parametrize("kind", ["floats", "embedding", "one-hot", "mask"])
def test_what_the_models_inputs_feed_is_fed(kind: str) -> None:
    """A dead neuron takes nothing with it that also comes from the input: as numbers, looked up, or converted."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look, self.fc, self.head = nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if kind == "embedding":
                x = self.look(x)
            if kind == "one-hot":
                x = one_hot(x, 4).float()
            if kind == "mask":
                x = (x[..., None] > torch.arange(4)).float()
            return self.head(x + self.fc(x))

    model = Skip()
    masks = masks_without(model, ("fc.weight", 1))
    model.fc.bias.data[1] = 0
    example = torch.randn(1, 4) if kind == "floats" else torch.tensor([[0, 3, 2]])
    before = model(example)
    dead = sc.zero_dead_(model, masks, example)
    assert units(dead.no_input) == {"fc": {1}}
    torch.testing.assert_close(model(example), before)
    assert model.head.weight[:, 1].all()


def test_looking_for_the_dead_leaves_buffers_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.look, self.fc = nn.Embedding(4, 3), nn.Linear(3, 2)
            self.register_buffer("cache", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.cache.index_copy_(0, x[0, :2] % 2, self.look.weight[:2].detach())
            return self.fc(self.look(x))

    model = Counting()
    sc.find_dead(model, sc.Masks({}, model), torch.tensor([[0, 1]]))
    assert torch.equal(model.cache, model.look.weight[:2])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_in_grouped_convolutions(groups: int) -> None:
    """A channel of the first is read by its own group of the second only."""
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=groups), nn.Flatten(), nn.Linear(8, 2))
    masks = masks_without(model, ("2.weight", slice(0, 2)), ("0.weight", 3))
    dead = sc.find_dead(model, masks, torch.zeros(1, 2, 3, 3))
    # Grouped in 4, outputs 0 and 1 are the whole group that reads channel 0, and 6 and 7 the one that channel 3 alone feeds.
    expected_unread = {"0": {0}} if groups == 4 else {}
    assert units(dead.no_output) == expected_unread
    assert units(dead.no_input) == {"0": {3}, "2": {0, 1} | ({6, 7} if groups == 4 else set())}


def test_in_depthwise_convolutions_a_channel_dies_with_its_only_reader() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 2, 1))
    masks = masks_without(model, ("2.weight", (ALL, 1)))
    dead = sc.find_dead(model, masks, torch.zeros(1, 2, 3, 3))
    assert units(dead.no_output) == {"0": {1}, "1": {1}}


@pytest.mark.parametrize("transposed", [False, True])
def test_in_one_and_three_dimensions_and_transposed(transposed: bool) -> None:
    for dimensions in (1, 2, 3):
        name = f"Conv{'Transpose' if transposed else ''}{dimensions}d"
        layer = getattr(nn, name)
        model = nn.Sequential(layer(2, 3, 2), nn.ReLU(), layer(3, 2, 2))
        first = (ALL, 1) if transposed else 1
        second = 2 if transposed else (ALL, 2)
        masks = masks_without(model, ("0.weight", first), ("2.weight", second))
        dead = sc.find_dead(model, masks, torch.zeros(1, 2, *(5,) * dimensions))
        assert (units(dead.no_input), units(dead.no_output)) == ({"0": {1}}, {"0": {2}})


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(4), lambda: nn.Sigmoid(), lambda: nn.Dropout(0.5)])
def test_through_normalisation_and_activations_that_make_a_constant(norm: Callable[[], nn.Module]) -> None:
    """What a dead neuron still says is a constant; zeroing takes away what reads it."""
    model = nn.Sequential(nn.Linear(3, 4), norm(), nn.Linear(4, 2))
    masks = masks_without(model, ("0.weight", 2))
    dead = sc.zero_dead_(model, masks, torch.zeros(2, 3))
    assert units(dead.no_input) == {"0": {2}}
    assert masks["2.weight"].tolist() == [[True, True, False, True]] * 2
    assert not model[2].weight[:, 2].any()
    assert model[0].bias[2] == 0
    assert model[2].bias.all()


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.Softmax(-1), nn.GroupNorm(2, 4)])
def test_where_outputs_mix_all_count_as_alive(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 4), norm, nn.Linear(4, 2))
    masks = masks_without(model, ("2.weight", (ALL, 2)))
    assert units(sc.find_dead(model, masks, torch.zeros(1, 3)).no_output) == {}


def test_in_attention_all_count_as_alive() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    masks = masks_without(model, ("self_attn.out_proj.weight", (ALL, 3)), ("self_attn.in_proj_weight", (ALL, 2)))
    assert sc.find_dead(model, masks, torch.zeros(1, 5, 8)).count == 0
    masks = masks_without(model, ("linear2.weight", (ALL, 7)), ("linear1.weight", 4))
    dead = sc.find_dead(model, masks, torch.zeros(1, 5, 8))
    assert (units(dead.no_input), units(dead.no_output)) == ({"linear1": {4}}, {"linear1": {7}})


def test_what_is_read_alone_by_one_and_mixed_by_another_is_alive() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head, self.gate = nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.fc(x)
            return self.head(hidden) + self.gate(torch.softmax(hidden, -1))

    masks = masks_without(model := Both(), ("head.weight", (ALL, 1)))
    assert sc.find_dead(model, masks, torch.zeros(1, 2)).count == 0


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 2), nn.Linear(3, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.right(x), x, torch.relu(self.left(x))], dim=1))


def test_through_concatenation() -> None:
    model = Concatenation()
    masks = masks_without(model, ("head.weight", (ALL, 1)), ("head.weight", (ALL, 7)), ("left.weight", 0))
    sc.zero_dead_(model, masks, torch.zeros(1, 3))
    dead = sc.find_dead(model, masks, torch.zeros(1, 3))
    assert all_units(dead) == {"right": {1}, "left": {0, 1}}
    assert masks["head.weight"][0].tolist() == [True, False, True, True, True, True, False, False]


def test_an_output_that_is_part_of_the_answer_is_read() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            hidden = self.fc(x)
            return {"answer": [self.head(hidden)], "hidden": hidden[:, :2]}

    masks = masks_without(model := Two(), ("head.weight", (ALL, ALL)))
    assert units(sc.find_dead(model, masks, torch.zeros(1, 2)).no_output) == {"fc": {2}}


def test_a_layer_that_is_called_twice_or_by_keyword() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.head = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=self.shared(self.shared(input=self.first(x)).flip(1)))

    model = Twice()
    masks = masks_without(model, ("shared.weight", (ALL, 0)), ("head.weight", (ALL, 2)))
    # 2 of the shared layer is unread at the head and, turned round, at its own input 0.
    assert all_units(sc.find_dead(model, masks, torch.zeros(1, 2))) == {"first": {0}, "shared": {2}}
    masks["head.weight"][:, 2] = True
    assert all_units(sc.find_dead(model, masks, torch.zeros(1, 2))) == {"first": {0}}


# ---------------------------------------------------------------- what zeroing does


def random_masks(model: nn.Module, sparsity: float) -> sc.Masks:
    named = {name: torch.rand(p.shape) >= sparsity for name, p in model.named_parameters() if p.ndim > 1}
    return sc.Masks(named, model).apply_()


def test_masks_and_biases_stay_zero_through_further_training(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    masks = random_masks(small_cnn, 0.93)
    dead = sc.zero_dead_(small_cnn, masks, cnn_task.example)
    assert dead.count > 5
    optimizer = torch.optim.SGD(small_cnn.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    masks.attach(optimizer)
    for inputs, target in cnn_task.train:
        optimizer.zero_grad()
        cross_entropy(small_cnn(inputs), target).backward()
        optimizer.step()
    for name, indices in all_units(dead).items():
        for index in indices:
            assert not small_cnn.get_parameter(f"{name}.weight")[index].any()
            assert small_cnn.get_parameter(f"{name}.bias")[index] == 0
    assert sum(int((~mask).sum()) for name, mask in masks.items() if name.endswith("bias")) == dead.count


def test_removing_unread_outputs_leaves_the_answer_as_it_was() -> None:
    model = mlp()
    masks = masks_without(model, ("2.weight", (ALL, 3)), ("4.weight", (ALL, 0)))
    inputs = torch.randn(16, 3)
    before = model(inputs)
    dead = sc.zero_dead_(model, masks, inputs[:1])
    assert (units(dead.no_input), units(dead.no_output)) == ({}, {"0": {3}, "2": {0}})
    torch.testing.assert_close(model(inputs), before)
    assert not model[0].weight[3].any()
    assert model[0].bias[3] == 0
    assert not masks["2.weight"][0].any()


def test_zeroing_finds_what_finding_finds_and_leaves_nothing_more(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    masks = random_masks(small_cnn, 0.9)
    found = sc.find_dead(small_cnn, masks, cnn_task.example)
    zeroed = sc.zero_dead_(small_cnn, masks, cnn_task.example)
    assert found.count > 0
    assert all_units(zeroed) == all_units(found)
    assert zeroed.count == found.count == sum(map(len, all_units(found).values()))
    earlier = {name: mask.clone() for name, mask in masks.items()}
    again = sc.zero_dead_(small_cnn, masks, cnn_task.example)
    assert all_units(again) == all_units(found)
    assert all(torch.equal(mask, earlier[name]) for name, mask in masks.items())


def test_plan_and_pattern_outlive_the_zeroing() -> None:
    model = mlp()
    task = sc.Task(torch.zeros(1, 3))
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.8), task)
    plan = masks.plan
    sc.zero_dead_(model, masks, task.example)
    assert (masks.plan, masks.pattern) == (plan, "Element()")


class Hidden(nn.Module):
    """Reads a layer in a way that NaN does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(2, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc(x)
        return self.head(hidden) + torch.where(hidden[:, :1] > 0, 1.0, 2.0)


def test_where_marking_is_deceived_the_model_is_left_as_it_was() -> None:
    model = Hidden()
    model.fc.bias.data[0] = 5.0
    masks = masks_without(model, ("head.weight", (ALL, 0)))
    before, earlier = copy.deepcopy(model.state_dict()), {name: mask.clone() for name, mask in masks.items()}
    with pytest.raises(SecateursError, match="zeroing outputs that seem to be read by no layer changed the model's answer"):
        sc.zero_dead_(model, masks, torch.zeros(1, 2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert masks.keys() == earlier.keys()
    assert all(torch.equal(mask, earlier[name]) for name, mask in masks.items())


@pytest.mark.parametrize("use", [sc.find_dead, sc.zero_dead_])
def test_neither_the_example_nor_modes_nor_hooks_change(use: Callable[..., sc.Dead], small_cnn: nn.Module) -> None:
    example = torch.randn(1, 4, 8, 8)
    before = example.clone()
    use(small_cnn, random_masks(small_cnn, 0.5), example)
    assert torch.equal(example, before)
    assert all(module.training for module in small_cnn.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small_cnn.modules())


def test_finding_changes_no_weight(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    masks = random_masks(small_cnn, 0.9)
    before = copy.deepcopy(small_cnn.state_dict())
    assert sc.find_dead(small_cnn, masks, cnn_task.example).count > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_cnn.state_dict().items())


def test_an_example_that_the_model_rejects_is_named() -> None:
    model = mlp()
    with pytest.raises(TaskError, match="the model rejects the example"):
        sc.find_dead(model, sc.Masks({}, model), torch.zeros(1, 7))


# ---------------------------------------------------------------- against a naive reference


def naive_dead(model: nn.Sequential, example: Tensor) -> Units:
    """Units whose output does not depend on the input, or on which the answer does not, by trying.

    Weights and inputs are positive, so nothing cancels and no ReLU hides anything.
    """
    hidden = [str(i) for i, layer in enumerate(model) if isinstance(layer, (nn.Linear, nn.Conv2d))]
    dead: Units = {}
    answer = model(example)
    for name in hidden:
        layer = model[int(name)]
        first, second = (model[: int(name) + 1](inputs) for inputs in (example, example + 0.5))
        for unit in range(first.shape[1]):
            fed = bool((first[:, unit] != second[:, unit]).any())
            bias = layer.bias.detach().clone()
            layer.bias.data[unit] += 1.0
            read = bool((model(example) != answer).any())
            layer.bias.data.copy_(bias)
            if not (fed and read):
                dead.setdefault(name, set()).add(unit)
    return dead


@st.composite
def positive_networks(draw: st.DrawFn) -> tuple[nn.Sequential, sc.Masks, Tensor]:
    torch.manual_seed(draw(st.integers(0, 10_000)))
    widths = draw(st.lists(st.integers(1, 5), min_size=3, max_size=5))
    if draw(st.booleans()):
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        example = torch.rand(1, widths[0]) + 0.5
    else:
        groups = draw(st.integers(1, 2))
        layers = [nn.Conv2d(widths[0], 2 * widths[1], 2), nn.ReLU(), nn.Conv2d(2 * widths[1], 4, 2, groups=groups), nn.ReLU()]
        layers += [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)]
        example = torch.rand(1, widths[0], 4, 4) + 0.5
    model = nn.Sequential(*layers).double()
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, dtype=torch.float64) + 0.5
    masks = {name: torch.rand(p.shape) < draw(st.floats(0.2, 0.9)) for name, p in model.named_parameters() if p.ndim > 1}
    return model, sc.Masks(masks, model).apply_(), example.double()


@given(positive_networks())
@settings(max_examples=80)
def test_the_dead_are_those_that_a_naive_trial_finds(case: tuple[nn.Sequential, sc.Masks, Tensor]) -> None:
    model, masks, example = case
    with torch.no_grad():
        expected = naive_dead(model, example)
    assert all_units(sc.find_dead(model, masks, example)) == expected
    assert all_units(sc.zero_dead_(model, masks, example)) == expected
