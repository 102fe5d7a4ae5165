"""The first mistakes: what is another kind of thing than what is asked for is told in a sentence, and nothing has changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import secateurs as sc

X = torch.zeros(1, 8)
TASK = sc.Task(X, train=[(torch.zeros(2, 8), torch.zeros(2).long())], loss=nn.functional.cross_entropy)
SOLVER, HALF = sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5)


def pruned(model, **wrong):
    return sc.prune_(model, **{"pattern": sc.Element(), "solver": SOLVER, "allocate": HALF, "task": TASK} | wrong)


def trained(model, **wrong):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return sc.train_(model, **{"task": TASK, "optimizer": optimizer, "epochs": 1} | wrong)


def gradually(**wrong):
    return sc.gradual(**{"pattern": sc.Element(), "solver": SOLVER, "allocate": sc.uniform, "schedule": sc.cubic(0.5)} | wrong)


MISTAKES = [
    (lambda m: pruned(m, allocate=0.5), "prune_: allocate is 0.5, but must be an allocator, for example uniform(sparsity=0.5)"),
    (lambda m: pruned(m, allocate=sc.uniform), "prune_: allocate is the function uniform"),
    (lambda m: pruned(m, allocate=sc.Budget(sc.params, keep=0.5)), "prune_: allocate is a Budget"),
    (
        lambda m: pruned(m, solver=sc.magnitude()),
        "prune_: solver is a Criterion, but must be a solver, for example TopK(magnitude())",
    ),
    (lambda m: pruned(m, solver=sc.TopK), "prune_: solver is the class TopK, not one made of it"),
    (lambda m: pruned(m, task=X), "prune_: task is a tensor of shape (1, 8), but must be a Task, for example Task(example="),
    (lambda m: pruned(m, masks=0.5), "prune_: masks is 0.5, but must be the Masks"),
    (lambda m: pruned(m, pattern="2:4"), "find_sites: pattern is '2:4', but must be a pattern, for example Element(), NofM(2, 4)"),
    (lambda m: pruned(m, pattern=sc.Element), "find_sites: pattern is the class Element"),
    (lambda m: pruned(m.state_dict()), "prune_: model is a OrderedDict, but must be a torch.nn.Module"),
    (lambda m: sc.find_sites(nn.Linear, sc.Element()), "find_sites: model is the class Linear"),
    (
        lambda m: sc.TopK(sc.magnitude),
        "TopK: criterion is the function magnitude, but must be a criterion, for example magnitude()",
    ),
    (lambda m: trained(m, task=X), "train_: task is a tensor"),
    (lambda m: trained(m, optimizer=0.1), "train_: optimizer is 0.1, but must be a torch optimizer, for example torch.optim.SGD("),
    (lambda m: trained(m, optimizer=torch.optim.SGD), "train_: optimizer is the class SGD"),
    (lambda m: trained(m, epochs="3"), "train_: epochs is '3', but must be a whole number"),
    (lambda m: trained(m, accumulate=0.5), "train_: accumulate is 0.5, but must be a whole number"),
    (lambda m: trained(m, hooks=sc.clip_gradients(1.0)), "train_: hooks is a Hook, but must be a list of hooks"),
    (lambda m: trained(m, masks={}), "train_: masks is a dict, but must be the Masks that prune_ returned"),
    (lambda m: trained(m, amp=True), "train_: amp is True, but must be torch.bfloat16 or torch.float16"),
    (lambda m: gradually(schedule=0.5), "gradual: schedule is 0.5, but must be a function of the progress in (0, 1]"),
    (lambda m: gradually(allocate=HALF), "gradual: allocate is a function, but must be a function that makes allocators"),
    (lambda m: gradually(solver=sc.magnitude()), "gradual: solver is a Criterion"),
    (lambda m: sc.cubic("x"), "a schedule's sparsity is 'x', but must be a number"),
    (lambda m: sc.evaluate(m, "digits", []), "evaluate: task is 'digits', but must be a Task"),
    (lambda m: sc.evaluate("m", TASK, []), "evaluate: model is 'm', but must be a torch.nn.Module"),
    (
        lambda m: sc.observe(m, sc.find_sites(m, sc.Element()), sc.input_norm(), TASK),
        "observe: needs is a Statistic, but must be a list",
    ),
    (lambda m: sc.observe(m, sc.find_sites(m, sc.Element()), [], X), "observe: task is a tensor"),
    (lambda m: sc.Task(X, loss="ce"), "Task: loss is 'ce', but must be a function"),
    (lambda m: sc.Task(X, train=X), "Task: train is one tensor of shape (1, 8), but must be batches"),
    (lambda m: sc.Task(X, test=3), "Task: test is 3, but must be batches"),
    (
        lambda m: sc.Budget("params", keep=0.5),
        "Budget: cost is 'params', but must be a cost, for example Budget(secateurs.macs, keep=0.5)",
    ),
    (lambda m: sc.Budget(sc.params, keep="half"), "Budget(params): keep is 'half', but must be a number"),
    (lambda m: sc.params(X), "params: model is a Tensor, but must be a torch.nn.Module"),
    (
        lambda m: sc.within_budget(sc.params, sc.uniform),
        "within_budget: budget is a Cost, but must be a budget, for example Budget(macs",
    ),
    (
        lambda m: sc.within_budget(sc.Budget(sc.params, keep=0.5), HALF),
        "within_budget: allocator is a function, but must be a function that",
    ),
    (lambda m: sc.uniform(sparsity="0.5"), "uniform: sparsity is '0.5', but must be a number, for example sparsity=0.5"),
    (lambda m: sc.by_layer(0.5), "by_layer: sparsities is 0.5, but must say them by name"),
    (lambda m: sc.shrink_(m, 0.5), "shrink_: masks is 0.5, but must be the Masks that prune_ returned"),
    (lambda m: sc.shrink_(X), "shrink_: model is a tensor"),
    (lambda m: sc.load(m, "p"), 'load(path, model): path is a Sequential, but must be a path, for example "model.safetensors"'),
    (
        lambda m: sc.load("p", m.state_dict()),
        "load(path, model): model is a OrderedDict, but must be a torch.nn.Module, or a class",
    ),
    (lambda m: sc.load("p", sc.Masks({}, m)), "load(path, model): model is a Masks, but must be a torch.nn.Module, or a class"),
    (lambda m: sc.load_masks(m, "p"), "load_masks(path, model): path is a Sequential"),
    (lambda m: sc.load_masks("p", nn.Linear), "load_masks(path, model): model is the class Linear, not one made of it"),
    (lambda m: sc.read_saved(m), "read_saved: path is a Sequential"),
    (lambda m: sc.save("p", m), "save(model, path): model is 'p', but must be a torch.nn.Module"),
    (lambda m: sc.save(m, sc.Masks({}, m), "p"), "save(model, path): path is a Masks"),
    (lambda m: sc.save(m, "p", m.state_dict()), "save: masks is a OrderedDict, but must be the Masks"),
    (lambda m: sc.save(m, "p", metric=0.5), 'save: metric is 0.5, but must be names with numbers, for example {"accuracy": 0.98}'),
    (lambda m: sc.save(m, "p", metric={"accuracy": "good"}), "save: metric is a dict"),
    (lambda m: sc.save(m, "p", seed="a"), "save: seed is 'a', but must be a whole number"),
    (lambda m: sc.Masks({}, m, "Element()"), "Masks: origin is 'Element()', but must be an Origin, for example Origin(plan"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[message.split(",")[0] for _, message in MISTAKES])
def test_a_thing_of_another_kind_is_told_in_a_sentence_and_nothing_has_changed(mistake, message):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(sc.KindError) as caught:
        mistake(model)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, sc.SecateursError)
    assert str(caught.value).startswith(message)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_what_a_function_makes_for_load_must_be_a_model(tmp_path):
    sc.save(nn.Linear(2, 1), tmp_path / "model")
    with pytest.raises(sc.KindError, match=r"^load: what <lambda>\(\) makes: the model is 3, but must be a torch.nn.Module"):
        sc.load(tmp_path / "model", lambda: 3)


VALUELESS = {
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), "0.weight is lazy and has no shape yet; run the model once"),
    "meta": (
        lambda: nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)).to("meta"),
        "0.weight is on the meta device and has no values",
    ),
    "a buffer": (lambda: nn.LazyBatchNorm1d(affine=False), "running_mean is lazy"),
}


@pytest.mark.parametrize("kind", VALUELESS)
@pytest.mark.parametrize(
    "does", [pruned, lambda m: sc.shrink_(m, example=X), sc.Masks.of_zeros], ids=["prune_", "shrink_", "of_zeros"]
)
def test_a_model_without_values_is_told_in_a_sentence(kind, does):
    make, message = VALUELESS[kind]
    model = make()
    with pytest.raises(sc.SecateursError, match=rf"^(prune_|shrink_|Masks.of_zeros): {message}"):
        does(model)
    assert [type(each) for each in model.modules()] == [type(each) for each in make().modules()]


def test_parts_of_ones_own_are_let_through():
    class Mine:
        needs = ()

        def scores(self, sites, stats):
            return SOLVER.scores(sites, stats)

        def __call__(self, site, kept, stats):
            return SOLVER(site, kept, stats)

    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    assert pruned(model, solver=Mine(), allocate=lambda sites, scores, extra=None: HALF(sites, scores)).sparsity == 0.5


def test_an_iterator_that_is_walked_up_is_told():
    model = nn.Sequential(nn.Linear(8, 2))
    task = sc.Task(X, train=iter(TASK.train), loss=TASK.loss)
    with pytest.raises(sc.TaskError, match=r"no batch in epoch 2; can it be walked only once, as an iterator\?"):
        trained(model, task=task, epochs=2)
