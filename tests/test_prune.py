"""The heart: a network is pruned to exactly what was asked, or left exactly as it was."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from secateurs.allocate import by_layer, erdos_renyi, global_threshold, plan_of, uniform, within_budget
from secateurs.costs import macs, nonzero_macs, nonzero_params, params
from secateurs.criteria import magnitude, random
from secateurs.evidence import input_norm
from secateurs.masks import Masks
from secateurs.patterns import Block, Channel, Element, Filter, Kernel, NofM, Vector, find_sites
from secateurs.prune import prune_
from secateurs.solve import TopK
from secateurs.types import (
    Budget,
    Criterion,
    NonFiniteError,
    PatternError,
    Plan,
    PlanError,
    SecateursError,
    Solution,
    Task,
    TaskError,
)

BY_MAGNITUDE = TopK(magnitude())


def two_linears() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


EXAMPLE = Task(example=torch.zeros(1, 8))


@contextmanager
def left_as_it_was(model: nn.Module):
    """The block must raise, and must not change weights, buffers, modes or hooks of the model."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    yield
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        same = tensor.is_meta or torch.equal(tensor.nan_to_num(7), after[name].nan_to_num(7))
        assert same, f"{name} was changed"
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ------------------------------------------------------------------------------------------------ what is asked is what is done


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("make", [uniform, erdos_renyi, global_threshold])
@pytest.mark.parametrize("criterion", [magnitude(), random()], ids=lambda it: it.name)
def test_exactly_so_many_weights_stay(small_cnn, cnn_task, sparsity, make, criterion):
    masks = prune_(small_cnn, Element(), TopK(criterion), make(sparsity=sparsity), cnn_task)
    total = sum(mask.numel() for mask in masks.values())
    assert masks.kept == round((1 - sparsity) * total)
    assert sum(int(small_cnn.get_parameter(name).count_nonzero()) for name in masks) == masks.kept
    assert sum(masks.plan.values()) == masks.kept
    assert masks.plan.sparsity == pytest.approx(masks.sparsity)


def test_the_weights_that_stay_are_untouched_and_the_others_are_zero(small_cnn, cnn_task):
    before = {name: parameter.detach().clone() for name, parameter in small_cnn.named_parameters()}
    masks = prune_(small_cnn, Element(), BY_MAGNITUDE, uniform(sparsity=0.7), cnn_task)
    for name, parameter in small_cnn.named_parameters():
        expected = before[name] * masks[name] if name in masks else before[name]
        assert torch.equal(parameter, expected)


def test_the_largest_weights_of_the_whole_model_are_what_stays():
    model = two_linears()
    largest = torch.cat([p.detach().abs().flatten() for p in (model[0].weight, model[2].weight)]).sort(descending=True).values
    prune_(model, Element(within="model"), BY_MAGNITUDE, uniform(sparsity=0.75), EXAMPLE)
    kept = torch.cat([p.detach()[p != 0].abs() for p in (model[0].weight, model[2].weight)])
    assert torch.equal(kept.sort(descending=True).values, largest[:24])


def test_within_the_model_and_one_threshold_over_layers_are_the_same():
    first, second = two_linears(), two_linears()
    second.load_state_dict(first.state_dict())
    one = prune_(first, Element(within="model"), BY_MAGNITUDE, uniform(sparsity=0.8), EXAMPLE)
    other = prune_(second, Element(), BY_MAGNITUDE, global_threshold(sparsity=0.8), EXAMPLE)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_within_a_row_each_row_keeps_the_same_number():
    model = two_linears()
    masks = prune_(model, Element(within="row"), BY_MAGNITUDE, uniform(sparsity=0.5), EXAMPLE)
    assert masks["0.weight"].sum(1).tolist() == [4] * 8
    assert masks["2.weight"].sum(1).tolist() == [4] * 4


@pytest.mark.parametrize("pattern", [Block(4, 2), Vector("outputs", 4), Filter(), Vector("inputs", 2)], ids=repr)
def test_units_live_and_die_as_one(pattern):
    model = two_linears()
    masks = prune_(model, pattern, BY_MAGNITUDE, uniform(sparsity=0.5), EXAMPLE)
    rows, columns = pattern.tile((1, 8, 8))
    for mask in masks.values():
        tiles = mask.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).transpose(1, 2).flatten(2)
        assert torch.equal(tiles.all(2), tiles.any(2))
    assert masks.kept == sum(mask.numel() for mask in masks.values()) // 2


def test_two_of_four_needs_no_allocator(small_cnn, cnn_task):
    masks = prune_(small_cnn, NofM(2, 4), BY_MAGNITUDE, None, cnn_task)
    assert masks.sparsity == 0.5
    assert torch.equal(masks["0.weight"].sum(1), torch.full((8, 3, 3), 2))
    assert torch.equal(masks["3.weight"].sum(1), torch.full((16, 3, 3), 2))
    assert torch.equal(masks["7.weight"].unflatten(1, (16, 4)).sum(2), torch.full((32, 16), 2))


def test_two_of_four_of_a_transposed_weight_runs_along_its_inputs():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
    model = transformers.GPT2LMHeadModel(config).eval()
    masks = prune_(model, NofM(2, 4), BY_MAGNITUDE, None, Task(example={"input_ids": torch.arange(4)[None]}))
    mask = masks["transformer.h.0.mlp.c_fc.weight"]
    assert mask.shape == (8, 32)  # (inputs, outputs)
    assert torch.equal(mask.unflatten(0, (2, 4)).sum(1), torch.full((2, 32), 2))
    assert not torch.equal(mask.unflatten(1, (8, 4)).sum(2), torch.full((8, 8), 2))
    assert "transformer.wte.weight" not in masks


def test_wanda_follows_the_data():
    model, inputs = nn.Sequential(nn.Linear(4, 3)), torch.randn(16, 4) * torch.tensor([100.0, 0.01, 100.0, 0.01])
    task = Task(example=inputs, calibration=[(inputs, None)])
    masks = prune_(model, Element(within="row"), TopK(magnitude(p=1) * input_norm()), uniform(keep=0.5), task)
    assert masks["0.weight"].tolist() == [[True, False, True, False]] * 3


def test_layers_are_chosen_and_skipped():
    assert list(prune_(two_linears(), Element(), BY_MAGNITUDE, uniform(keep=0.5), EXAMPLE, only="0")) == ["0.weight"]
    masks = prune_(two_linears(), Element(), BY_MAGNITUDE, uniform(keep=0.5), EXAMPLE, skip="0")
    assert list(masks) == ["2.weight"]
    assert [(item.name, item.reason) for item in masks.skipped] == [("0", "named in skip=")]
    assert masks.pattern == "Element()"


def test_tied_weights_are_pruned_once_and_stay_tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    masks = prune_(model, Element(), BY_MAGNITUDE, uniform(sparsity=0.75), EXAMPLE)
    assert (list(masks), masks.kept) == (["0.weight"], 16)
    assert model[2].weight is model[0].weight
    assert int(model[2].weight.count_nonzero()) == 16


def test_random_pruning_is_another_one_for_another_seed():
    model = two_linears()
    weights = model.state_dict()
    kept = []
    for seed in (0, 1, 2, 0):
        copy = two_linears()
        copy.load_state_dict(weights)
        kept.append(prune_(copy, Element(), TopK(random(seed)), uniform(sparsity=0.5), EXAMPLE)["0.weight"])
    assert torch.equal(kept[0], kept[3])
    assert not any(torch.equal(kept[a], kept[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("cost", [params, macs], ids=lambda cost: cost.name)
def test_a_budgets_promise_is_kept_by_the_pruned_model(small_cnn, cnn_task, cost):
    for parameter in small_cnn.parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    dense = cost(small_cnn, cnn_task.example)
    masks = prune_(small_cnn, Element(), BY_MAGNITUDE, within_budget(Budget(cost, keep=0.4), global_threshold), cnn_task)
    counted = nonzero_params(small_cnn) if cost is params else nonzero_macs(small_cnn, cnn_task.example)
    assert counted == pytest.approx(masks.plan.promised[cost.name])
    largest_unit = 1 if cost is params else 8 * 8
    assert 0.4 * dense - largest_unit < counted <= 0.4 * dense


def test_what_a_solver_writes_is_written_and_masked():
    class Doubling(TopK):
        def __call__(self, site, kept, stats):
            solution = super().__call__(site, kept, stats)
            return Solution(solution.kept, {member.parameter: member.weight * 2 for member in site.members})

    model = two_linears()
    before = model[0].weight.detach().clone()
    masks = prune_(model, Element(), Doubling(magnitude()), uniform(keep=0.5), EXAMPLE)
    assert torch.equal(model[0].weight, torch.where(masks["0.weight"], before * 2, 0))


class Writing(TopK):
    """Keeps what TopK keeps, and writes what a function makes of each weight of a site."""

    def __init__(self, value):
        super().__init__(magnitude())
        object.__setattr__(self, "value", value)

    def __call__(self, site, kept, stats):
        weights = {member.parameter: self.value(site, member) for member in site.members}
        return Solution(super().__call__(site, kept, stats).kept, weights)


def three_linears() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4))


def test_what_a_solver_writes_for_two_sites_with_a_weight_in_common_is_kept_of_both():
    model = three_linears()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = prune_(model, Channel(), Writing(lambda site, member: member.weight * 2), uniform(keep=0.5), EXAMPLE)
    factors = {"0.weight": 2, "2.weight": 4, "4.weight": 2, "0.bias": 2, "2.bias": 2, "4.bias": 1}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] * factors[name] * masks.get(name, 1))


def test_what_was_written_is_taken_back_where_a_later_site_fails():
    def value(site, member):
        if site.name == "2":
            raise RuntimeError("singular")
        return member.weight * 2

    model = three_linears()
    with left_as_it_was(model), pytest.raises(RuntimeError, match="singular"):
        prune_(model, Channel(), Writing(value), uniform(keep=0.5), EXAMPLE)


def test_a_weight_of_another_shape_or_another_site_is_an_error_that_names_it():
    model = two_linears()
    with left_as_it_was(model), pytest.raises(SecateursError, match=r"^0: the solver writes 0.weight as \(\), but it is \(8, 8\)"):
        prune_(model, Element(), Writing(lambda site, member: member.weight.sum()), uniform(keep=0.5), EXAMPLE)

    class Elsewhere(TopK):
        def __call__(self, site, kept, stats):
            return Solution(super().__call__(site, kept, stats).kept, {"0.bias": torch.ones(8)})

    with (
        left_as_it_was(model),
        pytest.raises(SecateursError, match=r"^2: the solver writes 0.bias .* is none of 2.weight, nor"),
    ):
        prune_(model, Element(), Elsewhere(magnitude()), uniform(keep=0.5), EXAMPLE)


def test_a_solver_that_keeps_another_number_than_planned_is_an_error():
    class OneLess(TopK):
        def __call__(self, site, kept, stats):
            return super().__call__(site, kept - 1, stats)

    model = two_linears()
    with left_as_it_was(model), pytest.raises(PlanError, match=r"^0: the plan keeps 32 units, but the solver chose 31"):
        prune_(model, Element(), OneLess(magnitude()), uniform(keep=0.5), EXAMPLE)


# ------------------------------------------------------------------------------------------------ again and again


def test_what_is_gone_stays_gone():
    model, masks = two_linears(), None
    previous = torch.ones(0)
    for sparsity in (0.2, 0.5, 0.8, 0.9):
        for make in (uniform, global_threshold, erdos_renyi):
            masks = prune_(model, Element(), BY_MAGNITUDE, make(sparsity=sparsity), EXAMPLE, masks=masks)
            kept = torch.cat([mask.flatten() for mask in masks.values()])
            assert previous.numel() == 0 or not (kept & ~previous).any()
            assert masks.kept == round((1 - sparsity) * 96)
            previous = kept
            with torch.no_grad():  # as if training went on without masks
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter))


def test_masks_of_layers_that_take_no_part_again_still_hold():
    model = two_linears()
    first = prune_(model, Element(), BY_MAGNITUDE, uniform(keep=0.5), EXAMPLE, only="0")
    with torch.no_grad():
        model[0].weight.add_(1)
    masks = prune_(model, Element(), BY_MAGNITUDE, uniform(keep=0.5), EXAMPLE, only="2", masks=first)
    assert torch.equal(masks["0.weight"], first["0.weight"])
    assert set(masks) == {"0.weight", "2.weight"}
    assert int(model[0].weight.count_nonzero()) == 32


def test_a_second_pattern_prunes_what_the_first_one_left():
    model = two_linears()
    first = prune_(model, Element(), BY_MAGNITUDE, global_threshold(sparsity=0.4), EXAMPLE)
    masks = prune_(model, NofM(2, 4), BY_MAGNITUDE, None, EXAMPLE, masks=first)
    for name, mask in masks.items():
        assert not (mask & ~first[name]).any()
        assert int(mask.unflatten(1, (2, 4)).sum(2).max()) <= 2
    assert sum(masks.plan.values()) == masks.kept


def test_a_tail_that_is_kept_dense_stays_as_an_earlier_pruning_left_it():
    model = nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 4))
    task = Task(example=torch.zeros(1, 7))
    first = prune_(model, Element(), BY_MAGNITUDE, uniform(keep=0.75), task)
    masks = prune_(model, NofM(2, 4, tail="keep"), BY_MAGNITUDE, None, task, masks=first)
    assert torch.equal(masks["0.weight"][:, 4:], first["0.weight"][:, 4:])


# ------------------------------------------------------------------------------------------------ precisions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("criterion", [magnitude(), magnitude(p=1) * input_norm()], ids=lambda it: it.name)
def test_a_model_of_another_precision_is_pruned_with_an_example_of_that_precision(small_cnn, dtype, criterion):
    model, inputs = small_cnn.to(dtype), torch.randn(4, 4, 8, 8).to(dtype)
    task = Task(example=inputs, calibration=[(inputs, None)])
    masks = prune_(model, Element(), TopK(criterion), uniform(sparsity=0.5), task)
    assert masks.sparsity == pytest.approx(0.5, abs=1e-3)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.isfinite(model(inputs)).all()


# ------------------------------------------------------------------------------------------------ bad input: the model stays


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("who", ["model", "example"])
def test_model_and_example_of_different_precision_is_an_error_that_says_what_to_convert(dtype, who):
    model, example = two_linears(), torch.zeros(1, 8)
    model, example = (model.to(dtype), example) if who == "model" else (model, example.to(dtype))
    message = rf"the example is {example.dtype} but the model's weights are {model[0].weight.dtype}: convert one of them"
    with left_as_it_was(model), pytest.raises(TaskError, match=message):
        prune_(model, Element(), BY_MAGNITUDE, uniform(sparsity=0.5), Task(example=example))


def test_model_and_example_on_different_devices_is_an_error_that_says_what_to_move():
    model, example = two_linears(), torch.zeros(1, 8, device="meta")
    message = r'the example is on meta but the model is on cpu: move one of them, .*model.to\("meta"\)'
    with left_as_it_was(model), pytest.raises(TaskError, match=message):
        prune_(model, Element(), BY_MAGNITUDE, uniform(sparsity=0.5), Task(example=example))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (
            torch.zeros(1, 9),
            r"rejects the example \(tensor \(1, 9\) torch.float32\): RuntimeError: .*; an example is a tensor, a tuple",
        ),
        ({"tokens": torch.zeros(1, 8)}, r"rejects the example \(tokens: tensor \(1, 8\) torch.float32\): TypeError"),
        ((torch.zeros(1, 8), 3), r"rejects the example \(tensor \(1, 8\) torch.float32, int\): TypeError"),
        ("eight", r"rejects the example \(str\): TypeError"),
    ],
)
def test_an_example_that_the_model_rejects_is_an_error_with_the_models_own_words(example, message):
    model = two_linears()
    with left_as_it_was(model), pytest.raises(TaskError, match=message):
        prune_(model, Element(), BY_MAGNITUDE, uniform(sparsity=0.5), Task(example=example))


def nan_scores() -> TopK:
    return TopK(Criterion("mine", lambda e: e.weight / 0 * 0, lambda values, dims: values.sum(dims)))


def one_too_many(sites, scores) -> Plan:
    return plan_of(sites, {site.name: site.units + 1 for site in sites})


def forgetful(sites, scores) -> Plan:
    plan = uniform(keep=0.5)(sites, scores)
    return replace(plan, shares={"0": plan.shares["0"]})


def of_another_model(sites, scores) -> Plan:
    plan = uniform(keep=0.5)(sites, scores)
    return replace(plan, shares={**plan.shares, "fc9": plan.shares["0"]})


def half_wrong(sites, scores) -> Plan:
    """Right for the first site, wrong for the second."""
    return plan_of(sites, {"0": 10, "2": 1000})


WANDA = TopK(magnitude() * input_norm())
EMPTY = Task(example=torch.zeros(1, 8), calibration=[])
HALF = uniform(keep=0.5)
TOO_SMALL = within_budget(Budget(params, limit=3), uniform)
BUDGET = within_budget(Budget(macs, keep=0.5), uniform)

# What is wrong, what is then raised, and with which words.
FAILURES = [
    ("a keep count above the units", {"allocate": one_too_many}, PlanError, "0: the plan keeps 65 units, but only 64"),
    ("a wrong count after a right one", {"allocate": half_wrong}, PlanError, "2: the plan keeps 1000"),
    ("a plan without a site", {"allocate": forgetful}, PlanError, r"the plan does not say .* 2.*it names 0"),
    ("a plan of another model", {"allocate": of_another_model}, PlanError, "names fc9, but the sites are 0, 2"),
    ("no allocator", {"allocate": None}, PlanError, "give an allocator"),
    ("too sparse for the floors", {"allocate": uniform(keep=1e-3)}, PlanError, "ask for less sparsity"),
    (
        "a sparsity that 2:4 cannot have",
        {"pattern": NofM(2, 4), "allocate": uniform(keep=0.1)},
        PlanError,
        "keeps 48 by itself",
    ),
    ("a pattern that fits no layer", {"pattern": Kernel()}, PatternError, r"Kernel\(\) finds no site"),
    (
        "a pattern that does not fit",
        {"pattern": Block(3, 3), "only": "*"},
        PatternError,
        r"0: Block\(3, 3\) .*skip=\['0', '2'\]",
    ),
    ("zero sites", {"skip": "*"}, PatternError, "finds no site .*named in skip="),
    ("an unknown layer", {"only": "fc"}, PatternError, "called 'fc'; did you mean 0"),
    ("an unknown layer by hand", {"allocate": by_layer({"fc": 0.5})}, SecateursError, "no site is called 'fc'"),
    ("scores that are NaN", {"solver": nan_scores()}, NonFiniteError, "0: mine gave a score"),
    ("no calibration data", {"solver": WANDA}, TaskError, r"give Task\(calibration=...\)"),
    ("an empty calibration loader", {"solver": WANDA, "task": EMPTY}, TaskError, "loader is empty"),
    ("no example", {"allocate": BUDGET, "task": Task(example=None)}, TaskError, "there is no example"),
    ("a budget that is too small", {"allocate": TOO_SMALL}, PlanError, "can fall to 14 parameters"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES])
def test_what_goes_wrong_is_named_and_the_model_is_left_as_it_was(wrong, error, message):
    model = two_linears()
    right = {"pattern": Element(), "solver": BY_MAGNITUDE, "allocate": HALF, "task": EXAMPLE}
    with left_as_it_was(model), pytest.raises(error, match=message):
        prune_(model, **{**right, **wrong})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [uniform, global_threshold])
def test_weights_that_are_not_finite_are_named_and_nothing_is_pruned(bad, make):
    model = two_linears()
    model[2].weight.data[1, 1] = bad
    with (
        left_as_it_was(model),
        pytest.raises(NonFiniteError, match=r"^2: 1 of its 32 weights are NaN or infinite.*skip=\['2'\]"),
    ):
        prune_(model, Element(), BY_MAGNITUDE, make(sparsity=0.5), EXAMPLE)
    assert prune_(model, Element(), BY_MAGNITUDE, make(sparsity=0.5), EXAMPLE, skip="2").sparsity == 0.5


def test_masks_of_another_model_are_an_error():
    model = two_linears()
    other = nn.Sequential(nn.Linear(5, 5))
    with (
        left_as_it_was(model),
        pytest.raises(SecateursError, match=r"^0.weight: .*\(5, 5\), but the weight of \(8, 8\): .*another model"),
    ):
        prune_(model, Element(), BY_MAGNITUDE, uniform(keep=0.5), EXAMPLE, masks=Masks({"0.weight": torch.ones(5, 5) > 0}, other))
    stranger = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    earlier = Masks({"1.weight": torch.ones(5, 5) > 0}, stranger)
    with left_as_it_was(model), pytest.raises(SecateursError, match=r"^1.weight: .*Sequential has no such parameter"):
        prune_(model, Element(), BY_MAGNITUDE, uniform(keep=0.5), EXAMPLE, masks=earlier)


def test_statistics_of_a_layer_that_cannot_be_observed_are_an_error_that_names_it():
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 4))
    tokens = torch.zeros(2, 3, dtype=torch.long)
    task = Task(example=tokens, calibration=[(tokens, None)])
    with left_as_it_was(model), pytest.raises(SecateursError, match=r"^0.weight: the inputs .* cannot be observed; skip it"):
        prune_(model, Element(), WANDA, uniform(keep=0.5), task, only="*")
    assert list(prune_(model, Element(), WANDA, uniform(keep=0.5), task)) == ["1.weight"]


def test_an_error_of_the_users_own_loader_passes_through_and_leaves_the_model():
    def batches():
        yield torch.zeros(1, 8), None
        raise OSError("the disk is gone")

    model = two_linears()
    with left_as_it_was(model), pytest.raises(OSError, match="the disk is gone"):
        prune_(model, Element(), WANDA, uniform(keep=0.5), Task(example=torch.zeros(1, 8), calibration=batches()))


def test_sites_tell_what_takes_part_before_anything_is_pruned():
    sites = find_sites(two_linears(), Element(), EXAMPLE.example)
    assert [(site.name, site.units, site.available) for site in sites] == [("0", 64, 64), ("2", 32, 32)]
    assert (len(sites), sites[0].name, sites[-1].name) == (2, "0", "2")
