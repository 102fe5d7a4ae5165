"""On random networks: what is shrunk computes what was masked, files bring it back, and it costs what the plan promised."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateurs as sc
from secateurs.allocate import plan_of

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports tests by their path, so their neighbours are not to be found

from random_networks import KINDS, RandomNetwork, check_one, drawn, example_of, flat, network, networks, rebuilt

on_random_networks = settings(
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


def models(**settings: Any) -> st.SearchStrategy[RandomNetwork]:
    """The networks without their examples, which are long to print, and always the same: `example_of`."""
    return networks(**settings).map(itemgetter(0))


def outputs(model: nn.Module, example: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return flat(model(example))


def drawn_allocator(data: st.DataObject, least: int) -> sc.types.Allocator:
    """Each site keeps a number of its own of its units, the same in each contest; simplest is that nothing goes."""

    def allocate(sites: sc.types.Sites, scores: Any) -> sc.Plan:
        kept = {}
        for site in sites:
            most = max(0, site.units // site.contest_count - least)
            removed = data.draw(st.integers(0, most), label=f"{site.name} loses")
            kept[site.name] = site.units - removed * site.contest_count
        return plan_of(sites, kept)

    return allocate


@contextmanager
def refusal_changes_nothing(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Lets the errors of the package through, and no other; after one the model is what it was."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = outputs(model, example)
    try:
        yield
    except sc.SecateursError:
        after = model.state_dict()
        assert state.keys() == after.keys()
        assert all(torch.equal(state[name], after[name]) for name in state), "an error left a part of the model changed"
        assert same(before, outputs(model, example)), "after an error the model computes something else"
        raise


def same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    """Whether outputs are equal to the bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def assert_close(masked: tuple[Tensor, ...], shrunk: tuple[Tensor, ...]) -> None:
    assert len(masked) == len(shrunk)
    for expected, actual in zip(masked, shrunk, strict=True):
        scale = float(expected.abs().amax()) if expected.numel() else 0.0
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * max(scale, 1e-6))


def pruned_(model: nn.Module, example: Tensor, data: st.DataObject, least: int = 1) -> sc.Masks | None:
    """Prune as drawn; ``None`` where the network has no channel to prune, or pruning is refused in words."""
    task = sc.Task(example=example)
    solver = sc.TopK(sc.random(data.draw(st.integers(0, 3), label="seed of the criterion")))
    try:
        with refusal_changes_nothing(model, example):
            sc.find_sites(model, sc.Channel(), example)
            return sc.prune_(model, sc.Channel(), solver, drawn_allocator(data, least), task)
    except sc.PatternError:
        return None


def shrunk_(model: nn.Module, masks: sc.Masks, example: Tensor) -> sc.apply.Shrunk | None:
    """Shrink; ``None`` where that is refused in words."""
    try:
        with refusal_changes_nothing(model, example):
            return sc.shrink_(model, masks)
    except sc.SecateursError:
        return None


def reduced(plan: sc.Plan) -> dict[str, sc.types.Share]:
    """The sites that lose something, and how much."""
    return {name: share for name, share in plan.shares.items() if share.kept < share.units}


def as_done(plan: sc.Plan, shrunk: sc.apply.Shrunk) -> sc.Plan:
    """The plan as shrinking could do it: sites that were put back keep all they have."""
    kept = {name: shrunk.sites[name][1] if name in shrunk.sites else share.units for name, share in plan.shares.items()}
    return replace(plan, shares={name: replace(share, kept=kept[name]) for name, share in plan.shares.items()})


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("literals", [False, True])
def test_a_shrunk_network_computes_what_the_masked_one_did(literals: bool) -> None:
    """With ``literals`` some sizes stand in the code, where nothing can change them: more sites must be put back, and listed."""

    @settings(on_random_networks, max_examples=20)
    @given(models(literals=literals), st.data())
    def check(network: RandomNetwork, data: st.DataObject) -> None:
        model, example = network.double(), example_of(network).double()
        masks = pruned_(model, example, data)
        if masks is None:
            return
        masked, dense, planned = outputs(model, example), size(model), reduced(masks.plan)
        shrunk = shrunk_(model, masks, example)
        if shrunk is None:
            return
        assert_close(masked, outputs(model, example))
        left = {item.name for item in shrunk.skipped}
        for name, share in planned.items():
            now = shrunk.sites.get(name, (share.units, share.units))[1]
            assert name in left or now <= share.kept, f"{name} did not shrink, and nobody said so"
        assert shrunk.parameters == (dense, size(model))
        assert size(model) < dense or planned.keys() <= left, "the plan removed something, but the model is as large as before"

    check()


@settings(on_random_networks, max_examples=8)
@given(models(), st.data())
def test_a_shrunk_network_comes_back_from_its_file_to_the_bit(network: RandomNetwork, data: st.DataObject) -> None:
    model, example = network.double(), example_of(network).double()
    masks = pruned_(model, example, data)
    assume(masks is not None and shrunk_(model, masks, example) is not None)
    with TemporaryDirectory() as folder:
        sc.save(model, f"{folder}/shrunk.safetensors")
        loaded = sc.load(f"{folder}/shrunk.safetensors", lambda: rebuilt(model).double())
    assert size(loaded) == size(model)
    assert same(outputs(model, example), outputs(loaded, example))


@settings(on_random_networks, max_examples=12)
@given(models(literals=False), st.data())
def test_a_shrunk_network_costs_what_the_plan_promised(network: RandomNetwork, data: st.DataObject) -> None:
    """The promise is that of the dense model for what was done: sites that had to be put back are not held against the plan.

    Two units stay in every site, since torch computes an einsum over one without a multiplication that is counted.
    """
    model, example = network.double(), example_of(network).double()
    promises = [cost.prepare(rebuilt(network).double(), example) for cost in (sc.params, sc.macs)]
    masks = pruned_(model, example, data, least=2)
    shrunk = masks and shrunk_(model, masks, example)
    assume(shrunk is not None and shrunk.sites.keys() <= masks.plan.keys())
    assert [cost(model, example) for cost in (sc.params, sc.macs)] == [of(as_done(masks.plan, shrunk)) for of in promises]


def test_most_random_networks_shrink() -> None:
    """The laws above would hold for a package that finds nothing to do."""
    fewer = 0
    for seed in range(10):
        model, example = network(seed)
        try:
            masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example=example))
            before, _ = size(model), sc.shrink_(model, masks)
            fewer += size(model) < before
        except sc.PatternError:
            continue
    assert fewer >= 5


# ---------------------------------------------------------------- the generator itself


@settings(on_random_networks, max_examples=25)
@given(models())
def test_every_network_that_is_drawn_runs(network: RandomNetwork) -> None:
    check_one(network, example_of(network))


def test_every_kind_of_operation_is_drawn() -> None:
    counts = drawn(60)
    assert set(counts) == set(KINDS)


def test_a_seed_always_draws_the_same_network() -> None:
    (first, example), (second, other) = network(5), network(5)
    assert repr(first) == repr(second) and torch.equal(example, other)
    assert repr(first) != repr(network(6)[0])
