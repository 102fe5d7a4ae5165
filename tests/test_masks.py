"""Masks are law: a pruned weight stays at +0.0, whatever trains the model and whatever copies it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

import secateurs as sc
from secateurs.types import SecateursError, Skipped

Batch = tuple[Tensor, Tensor]


def prune_half(model: nn.Module, task: sc.Task, masks: sc.Masks | None = None, sparsity: float = 0.5) -> sc.Masks:
    return sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=sparsity), task, masks=masks)


def steps(model: nn.Module, optimizer: Optimizer, batches: Iterable[Batch], autocast: torch.dtype | None = None) -> None:
    """A training loop that knows nothing of masks."""
    model.train()
    for inputs, target in batches:

        def closure(inputs: Tensor = inputs, target: Tensor = target) -> Tensor:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                loss = cross_entropy(model(inputs), target)
            loss.backward()
            return loss.detach()

        optimizer.step(closure)


def pruned(model: nn.Module, masks: sc.Masks) -> Tensor:
    """All pruned weights, as they are in a model."""
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name].detach()[~mask] for name, mask in masks.items()])


def kept(model: nn.Module, masks: sc.Masks) -> Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name].detach()[mask] for name, mask in masks.items()])


def assert_plus_zero(values: Tensor) -> None:
    assert values.numel() > 0
    assert torch.equal(values, torch.zeros_like(values))
    assert not values.signbit().any()


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, weight_decay=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_no_optimizer_brings_a_pruned_weight_back(
    make: Callable[[Iterable[Tensor]], Optimizer], small_cnn: nn.Module, cnn_task: sc.Task
) -> None:
    """Its state is from before the pruning, so momentum pushes at weights that are gone."""
    optimizer = make(small_cnn.parameters())
    steps(small_cnn, optimizer, cnn_task.train)
    masks = prune_half(small_cnn, cnn_task)
    masks.attach(optimizer)
    before = kept(small_cnn, masks)
    for batch in cnn_task.train:
        steps(small_cnn, optimizer, [batch])
        assert_plus_zero(pruned(small_cnn, masks))
    assert not torch.equal(kept(small_cnn, masks), before)
    assert torch.isfinite(kept(small_cnn, masks)).all()


def test_without_masks_the_same_training_does_move_pruned_weights(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    """What the tests around this one would miss otherwise."""
    optimizer = OPTIMIZERS["sgd"](small_cnn.parameters())
    masks = prune_half(small_cnn, cnn_task)
    steps(small_cnn, optimizer, cnn_task.train)
    assert pruned(small_cnn, masks).count_nonzero() > 0.7 * pruned(small_cnn, masks).numel()


def test_masks_hold_under_bfloat16_autocast(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    optimizer = OPTIMIZERS["adamw"](small_cnn.parameters())
    masks = prune_half(small_cnn, cnn_task)
    masks.attach(optimizer)
    steps(small_cnn, optimizer, cnn_task.train, autocast=torch.bfloat16)
    assert_plus_zero(pruned(small_cnn, masks))


@pytest.mark.parametrize("overflow", [False, True])
def test_masks_hold_under_float16_with_gradient_scaling(overflow: bool) -> None:
    """Also where the scaler skips steps because gradients overflow."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    inputs, target = torch.randn(32, 8), torch.randint(4, (32,))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40 if overflow else 2.0**8)
    masks = prune_half(model, sc.Task(inputs[:1]))
    masks.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = cross_entropy(model(inputs), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert_plus_zero(pruned(model, masks))
    assert (scaler.get_scale() < 2.0**40) if overflow else (scaler.get_scale() == 2.0**8)


def test_masks_hold_with_gradient_accumulation(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    optimizer = OPTIMIZERS["sgd"](small_cnn.parameters())
    masks = prune_half(small_cnn, cnn_task)
    masks.attach(optimizer)
    for index, (inputs, target) in enumerate(cnn_task.train):
        cross_entropy(small_cnn(inputs), target).backward()
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()
            assert_plus_zero(pruned(small_cnn, masks))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_masks_hold_in_every_precision(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 3).to(dtype)
    masks = sc.Masks({"weight": torch.eye(3, 4).bool()}, layer).apply_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    masks.attach(optimizer)
    layer(torch.ones(2, 4, dtype=dtype)).sum().backward()
    optimizer.step()
    assert layer.weight.dtype == dtype
    assert_plus_zero(pruned(layer, masks))


def test_what_else_uses_the_optimizer_is_not_disturbed(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    """Biases, normalisations and the weights of layers that are not masked train as they would without masks."""
    other = copy.deepcopy(small_cnn)
    all_kept = sc.Masks({"7.weight": torch.ones(32, 64, dtype=torch.bool)}, small_cnn)
    optimizers = [OPTIMIZERS["adamw"](model.parameters()) for model in (small_cnn, other)]
    all_kept.hold(optimizers[0])
    for model, optimizer in zip((small_cnn, other), optimizers, strict=True):
        steps(model, optimizer, cnn_task.train)
    assert all(torch.equal(a, b) for a, b in zip(small_cnn.state_dict().values(), other.state_dict().values(), strict=True))


# ---------------------------------------------------------------- copies and wrappers


def test_an_average_made_after_pruning_holds_zeros_by_itself(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    optimizer = OPTIMIZERS["sgd"](small_cnn.parameters())
    masks = prune_half(small_cnn, cnn_task)
    masks.attach(optimizer)
    average = AveragedModel(small_cnn, avg_fn=lambda mean, new, count: 0.9 * mean + 0.1 * new)
    for batch in cnn_task.train:
        steps(small_cnn, optimizer, [batch])
        average.update_parameters(small_cnn)
    assert not pruned(average.module, masks).any()


def test_an_average_made_before_pruning_needs_the_masks_once(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    average = AveragedModel(small_cnn, avg_fn=lambda mean, new, count: 0.9 * mean + 0.1 * new)
    optimizer = OPTIMIZERS["sgd"](small_cnn.parameters())
    steps(small_cnn, optimizer, cnn_task.train)
    average.update_parameters(small_cnn)
    masks = prune_half(small_cnn, cnn_task)
    masks.attach(optimizer)
    assert pruned(average.module, masks).any()
    assert masks.apply_(average) is masks
    for batch in cnn_task.train:
        steps(small_cnn, optimizer, [batch])
        average.update_parameters(small_cnn)
    assert not pruned(average.module, masks).any()


class Wrapper(nn.Module):
    """Names parameters as DistributedDataParallel and averages do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "parallel": Wrapper,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "parallel-compiled": lambda model: Wrapper(torch.compile(model, backend="eager")),  # type: ignore[arg-type]
    "average": lambda model: AveragedModel(model),
    "average-parallel": lambda model: AveragedModel(Wrapper(model)),
    "layer-compiled": lambda model: nn.Sequential(torch.compile(model[0], backend="eager"), *model[1:]),  # type: ignore[index]
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_masks_bind_to_wrapped_models_and_back(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    mask = torch.tensor([[True, False, True], [False, True, False]])
    wrapped = wrap(copy.deepcopy(model))
    sc.Masks({"0.weight": mask}, model).apply_(wrapped)
    name = next(name for name, p in wrapped.named_parameters() if p.shape == (2, 3))
    assert_plus_zero(wrapped.get_parameter(name).detach()[~mask])
    assert model[0].weight[~mask].all()
    sc.Masks({name: mask}, wrapped).apply_(model)
    assert_plus_zero(model[0].weight.detach()[~mask])


def test_a_submodule_called_module_is_no_wrapper() -> None:
    """The mask of ``weight`` is not taken for that of ``module.weight``, whichever comes last."""

    class Pair(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2, bias=False)
            self.module = nn.Linear(2, 2, bias=False)

    model = Pair()
    gone = torch.zeros(2, 2, dtype=torch.bool)
    sc.Masks({"weight": gone}, model).apply_()
    assert not model.weight.any()
    assert model.module.weight.all()
    sc.Masks({"module.weight": gone}, model).apply_()
    assert not model.module.weight.any()


def test_masks_are_named_as_in_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    mask = torch.eye(2).bool()
    assert list(sc.Masks({"1.weight": mask}, model).named_as_in(model)) == ["0.weight"]
    assert list(sc.Masks({"0.weight": mask}, model).named_as_in(Wrapper(model))) == ["module.0.weight"]
    both = sc.Masks({"0.weight": mask, "1.weight": torch.tensor([[True, True], [False, False]])}, model).named_as_in(model)
    assert both["0.weight"].tolist() == [[True, False], [False, False]]


def test_tied_weights_stay_zero_in_both_places() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    masks = sc.Masks({"2.weight": torch.eye(4).bool()}, model)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    masks.attach(optimizer)
    steps(model, optimizer, [(torch.randn(8, 4), torch.randint(4, (8,)))] * 3)
    assert_plus_zero(model[0].weight.detach()[~torch.eye(4).bool()])


# ---------------------------------------------------------------- exactly zero


@pytest.mark.parametrize("value", [-1.0, -0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, 1e-45])
def test_whatever_was_there_becomes_plus_zero(value: float) -> None:
    layer = nn.Linear(3, 2)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    layer.weight.data[~mask] = value
    before = layer.weight.detach().clone()
    sc.Masks({"weight": mask}, layer).apply_()
    assert_plus_zero(layer.weight.detach()[~mask])
    assert torch.equal(layer.weight.detach()[mask], before[mask])


def test_kept_weights_keep_every_bit() -> None:
    """A minus zero, a NaN and a subnormal that are kept stay what they are."""
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([[-0.0, torch.nan, 1e-45, -1.0]])
    before = layer.weight.detach().clone().view(torch.int32)
    sc.Masks({"weight": torch.ones(1, 4, dtype=torch.bool)}, layer).apply_()
    assert torch.equal(layer.weight.detach().view(torch.int32), before)


def test_masks_apply_to_weights_in_channels_last_memory() -> None:
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    mask = torch.rand(6, 4, 3, 3) < 0.5
    pointer = layer.weight.data_ptr()
    expected = layer.weight.detach().clone() * mask
    sc.Masks({"weight": mask}, layer).apply_()
    assert torch.equal(layer.weight, expected)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.weight.data_ptr() == pointer


# ---------------------------------------------------------------- attach


def test_attaching_applies_the_masks_at_once_and_removing_the_handle_ends_it() -> None:
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    handle = sc.Masks({"weight": torch.tensor([[True, False]])}, layer).attach(optimizer)
    assert layer.weight[0, 1] == 0
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert layer.weight[0, 1] == 0
    handle.remove()
    optimizer.step()
    assert layer.weight[0, 1] != 0


def test_what_is_attached_goes_on_with_masks_that_replace_it(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    optimizer = OPTIMIZERS["sgd"](small_cnn.parameters())
    masks = prune_half(small_cnn, cnn_task)
    masks.attach(optimizer)
    sparser = prune_half(copy.deepcopy(small_cnn), cnn_task, masks, sparsity=0.8)
    masks.replace_(sparser.bind(small_cnn))
    assert masks.sparsity == sparser.sparsity > 0.75
    assert masks.plan == sparser.plan
    steps(small_cnn, optimizer, cnn_task.train)
    assert_plus_zero(pruned(small_cnn, sparser))


def test_an_optimizer_of_another_copy_is_refused(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    masks = prune_half(small_cnn, cnn_task)
    other = copy.deepcopy(small_cnn)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(SecateursError, match="another copy of the model"):
        masks.attach(optimizer)
    masks.bind(other).attach(optimizer)
    steps(other, optimizer, cnn_task.train)
    assert_plus_zero(pruned(other, masks))


@pytest.mark.parametrize("thing", [None, object(), [nn.Parameter(torch.zeros(1))]])
def test_what_is_no_torch_optimizer_is_refused(thing: object) -> None:
    layer = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=r"is no torch\.optim\.Optimizer; call masks\.apply_\(\)"):
        sc.Masks({"weight": torch.ones(1, 2, dtype=torch.bool)}, layer).attach(thing)  # type: ignore[arg-type]


def test_an_optimizers_state_goes_through_saving_and_loading(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    """Attached masks leave nothing in ``state_dict``, and hold for a state that was loaded after them."""
    masks = prune_half(small_cnn, cnn_task)
    plain, masked = (OPTIMIZERS["sgd"](small_cnn.parameters()) for _ in range(2))
    masks.attach(masked)
    assert masked.state_dict() == plain.state_dict()
    steps(small_cnn, plain, cnn_task.train)
    masked.load_state_dict(plain.state_dict())
    for batch in cnn_task.train:
        steps(small_cnn, masked, [batch])
        assert_plus_zero(pruned(small_cnn, masks))


# ---------------------------------------------------------------- what masks are


def test_masks_cost_one_byte_a_weight(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    masks = prune_half(small_cnn, cnn_task)
    again = prune_half(small_cnn, cnn_task, masks, sparsity=0.75)
    sc.zero_dead_(small_cnn, again, cnn_task.example)
    for each in (masks, again, again.bind(small_cnn)):
        assert {name: mask.untyped_storage().nbytes() for name, mask in each.items()} == {
            name: small_cnn.get_parameter(name).numel() for name in each
        }


def test_masks_move_to_the_weights_device_when_they_are_next_applied() -> None:
    masks = sc.Masks({"weight": torch.eye(2, 3).bool()}, nn.Linear(3, 2, device="meta"))
    assert masks["weight"].device.type == "cpu"
    masks.apply_()
    assert masks["weight"].device.type == "meta"


def test_masks_count_what_stays() -> None:
    layer = nn.Linear(4, 2)
    masks = sc.Masks({"weight": torch.tensor([[True, False, False, False]] * 2), "bias": torch.tensor([True, True])}, layer)
    assert (masks.kept, masks.sparsity) == (2, 0.75)  # biases do not count
    assert repr(masks) == "Masks(2 parameters, sparsity 0.7500)"
    empty = sc.Masks({}, layer)
    assert (empty.kept, empty.sparsity, len(empty)) == (0, 0.0, 0)


def test_masks_of_zeros_are_where_the_zeros_are() -> None:
    layer = nn.Linear(3, 1)
    layer.weight.data = torch.tensor([[0.0, -0.0, 2.0]])
    assert sc.Masks.of_zeros(layer, ["weight"])["weight"].tolist() == [[False, False, True]]


def test_masks_of_zeros_are_of_every_weight_that_has_some() -> None:
    """Not of one that has none, nor of one that is zero all over, which was never trained; by name any can be had."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight.data.fill_diagonal_(0)
    model[2].weight.data.zero_()
    assert list(sc.Masks.of_zeros(model)) == ["0.weight"]
    assert not sc.Masks.of_zeros(model, "2.weight")["2.weight"].any()
    with pytest.raises(SecateursError, match=r"2\.wieght: Sequential has no such parameter; did you mean 2\.weight"):
        sc.Masks.of_zeros(model, ["2.wieght"])


def test_masks_serve_under_the_names_of_a_wrapper(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    """What was pruned before it was wrapped stays pruned when the wrapped model is pruned further, and dead neurons are found."""

    class Passing(Wrapper):
        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    masks = prune_half(small_cnn, cnn_task)
    masks["7.weight"][3] = False
    masks.apply_()
    with torch.no_grad():
        for name, mask in masks.items():
            small_cnn.get_parameter(name)[~mask] = 100.0  # as large as can be, so that only the masks tell
    wrapped = Passing(small_cnn)
    further = prune_half(wrapped, cnn_task, masks, sparsity=0.6)
    assert further.keys() == {f"module.{name}" for name in masks}
    assert not any((further[f"module.{name}"] & ~mask).any() for name, mask in masks.items())
    assert further.sparsity == pytest.approx(0.6, abs=1e-3)
    assert sc.find_dead(wrapped, masks, cnn_task.example).no_input["module.7"].tolist() == [3]


def test_masks_of_another_copy_do_not_change_hands(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    masks, other = prune_half(small_cnn, cnn_task), copy.deepcopy(small_cnn)
    with pytest.raises(SecateursError, match=r"none of the masked parameters.*masks\.bind\(model\)"):
        sc.zero_dead_(other, masks, cnn_task.example)
    sc.rewind_(other, {name: torch.ones_like(tensor) for name, tensor in other.state_dict().items()}, masks)
    assert_plus_zero(pruned(other, masks))
    assert kept(small_cnn, masks).ne(1).all()


def test_masks_that_hold_nothing_warn_when_they_are_attached(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    """But not those that are to come while training, nor those that a shrink has emptied."""
    optimizer = OPTIMIZERS["sgd"](small_cnn.parameters())
    dense = sc.Masks.of_zeros(small_cnn, ["0.weight"])
    for masks in (sc.Masks({}, small_cnn), dense):
        with pytest.warns(UserWarning, match=r"these masks hold nothing.*Masks\.of_zeros\(model\)"):
            masks.attach(optimizer)
    with pytest.warns(UserWarning, match="these masks hold nothing"):
        sc.train_(small_cnn, cnn_task, optimizer, 0, masks=dense)
    prune = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.one_shot(0.5))
    assert sc.train_(small_cnn, cnn_task, optimizer, 1, masks=dense, hooks=[prune], show=False).masks.sparsity >= 0.5
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    task = sc.Task(torch.randn(2, 3))
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    sc.shrink_(model, masks)
    assert not masks
    for held in (masks, masks.bind(copy.deepcopy(model))):
        held.attach(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"nope": torch.ones(1, dtype=torch.bool)},
            "nope: there is a mask for this parameter, but Linear has no such parameter",
        ),
        ({"weight": torch.ones(2, 3)}, r"weight: a mask must be a bool tensor of shape \(2, 3\), not torch.float32"),
        ({"weight": torch.ones(3, 2, dtype=torch.bool)}, r"the mask is of shape \(3, 2\), but the weight of \(2, 3\)"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks: dict[str, Tensor], message: str) -> None:
    with pytest.raises(SecateursError, match=message):
        sc.Masks(masks, nn.Linear(3, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(), (7,), (600, 1001), (64, 32, 3, 3)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_what_a_mask_leaves_is_bit_for_bit_what_a_choice_of_numbers_is(
    dtype: torch.dtype, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    weight = torch.randn(shape).to(dtype)
    weight.view(-1)[:3] = torch.tensor([torch.nan, -torch.inf, -0.0])[: weight.numel()].to(dtype)
    if len(shape) == 4:
        weight = weight.contiguous(memory_format=layout)
    module, mask = nn.ParameterList([weight.clone()]), torch.rand(shape) > 0.5
    mask.view(-1)[:3] = False
    sc.Masks({"0": mask}, module).apply_()
    expected = torch.where(mask, weight, torch.zeros((), dtype=dtype))
    found, wanted = (each.detach().reshape(-1).contiguous().view(torch.uint8) for each in (module[0], expected))
    assert torch.equal(found, wanted)


def test_print_tells_the_sparsity_of_the_whole_model_and_what_was_left_alone_largest_first():
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 4, bias=False), nn.LayerNorm(4), nn.Linear(4, 50))
    model[3].weight = model[0].weight
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(torch.zeros(1, 1).long()))
    whole = 200 + 16 + 8 + 50
    first, *left = str(masks).splitlines()
    assert first == f"1 parameter masked, sparsity 0.5000; of the whole model {8 / whole:.4f}"
    assert left[0].startswith(f"left alone, {200 / whole:.1%} of the parameters: 0: an embedding".replace("%", " %"))
    assert left[1].startswith(f"left alone, {8 / whole:.1%} of the parameters: 2: a normalisation".replace("%", " %"))
    assert str(masks.bind(model)) == str(masks)


def test_of_many_reasons_the_first_are_told():
    skipped = tuple(Skipped(f"{n}", f"reason {n}") for n in range(11))
    assert str(sc.Masks({}, nn.Linear(1, 1), sc.Origin(skipped=skipped))).endswith("\nand for 3 reasons more, see masks.skipped")
