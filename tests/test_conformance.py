"""One matrix: each part against the contract of its kind, on each layer. A new part is one row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import inf

import pytest
import torch
from torch import Tensor, nn

from secateurs.allocate import (
    above,
    alpha_pruning,
    by_layer,
    erdos_renyi,
    fraction_kept,
    global_threshold,
    marginal,
    owl,
    uniform,
    within_budget,
)
from secateurs.compressing import Quantiser, as_it_is, compressed_bytes, compressed_bytes_at, k_means, powers_of_two, ternary
from secateurs.compressing import uniform as evenly
from secateurs.costs import (
    Bitmap,
    active_params,
    kv_cache_bytes,
    macs,
    nonzero_macs,
    nonzero_params,
    params,
    stored_bytes,
    tensor_bytes,
)
from secateurs.costs.accelerators import Scalar, TensorCores, eie
from secateurs.criteria import (
    activation,
    apoz,
    batchnorm_scale,
    cosine,
    fisher,
    fpgm,
    grasp,
    head_importance,
    hessian_trace,
    lamp,
    loss_without,
    magnitude,
    movement,
    normalised,
    obd,
    pcas,
    random,
    regional,
    snip,
    synflow,
    taylor,
    variance,
)
from secateurs.evidence import input_norm, observe
from secateurs.files import bytes_, save
from secateurs.firmware.costs import flash_bytes, instructions, sram_bytes
from secateurs.masks import Masks
from secateurs.patterns import Block, Channel, Element, Filter, Head, Kernel, NofM, Vector, find_sites, find_weights, misfit
from secateurs.solve import ALPS, GateFisher, Lasso, LeastSquares, Merge, Restored, SparseGPT, Swaps, ThiNet, TopK, ZipLM
from secateurs.testing import (
    COUPLED,
    LAYERS,
    NETWORKS,
    Specimen,
    check_allocator,
    check_cost,
    check_coupling,
    check_criterion,
    check_pattern,
    check_quantiser,
    check_solver,
)
from secateurs.types import (
    Allocator,
    Budget,
    Cost,
    Coupling,
    Criterion,
    Pattern,
    PatternError,
    Plan,
    Site,
    Sites,
    Solution,
    Solver,
    Stats,
    Task,
)

ALL = {specimen.name for specimen in LAYERS}
CONVOLUTIONS = {name for name in ALL if name.startswith("Conv") and name != "Conv1D (transposed)"}
WITH_HEIGHT = {name for name in CONVOLUTIONS if "1d" not in name}
EVEN = ALL - {"Linear of awkward size"}
SEVERAL_INPUTS = EVEN - {"Conv2d, depthwise"}

QUICK = ("Linear of awkward size", "Conv2d, depthwise", "Conv2d, grouped", "RNN", "MultiheadAttention", "Embedding")
ALL_OF_THEM = os.environ.get("SECATEURS_ALL") == "1"
EACH_KIND = [each for each in LAYERS if each.name in QUICK or ALL_OF_THEM]  # all of them take minutes
SEVERAL = (LAYERS[1], LAYERS[4], COUPLED[0])
"""Where a pass for each unit or each output would take long: an awkward layer, a grouped one, a perceptron."""
OBSERVED = {name for name in ALL if name.startswith(("Linear", "Conv"))}

# Each pattern, and the layers that it fits.
PATTERNS: list[tuple[Pattern, set[str]]] = [
    (Element(), ALL),
    (Element(within="row"), ALL),
    (Element(within="model"), ALL),
    (Element(within=4), SEVERAL_INPUTS),
    (Element(within=4, tail="keep"), ALL - {"Conv2d, depthwise"}),
    (NofM(2, 4), SEVERAL_INPUTS),
    (NofM(1, 2), SEVERAL_INPUTS),
    (NofM(2, 4, tail="keep"), ALL - {"Conv2d, depthwise"}),
    (Vector("width"), CONVOLUTIONS),
    (Vector("height"), WITH_HEIGHT),
    (Vector("depth"), {"Conv3d"}),
    (Vector("inputs"), ALL),
    (Vector("inputs", 2), SEVERAL_INPUTS),
    (Vector("inputs", 2, within="row"), SEVERAL_INPUTS),
    (Vector("outputs", 2), EVEN),
    (Vector("outputs", 2, within="row"), EVEN),
    (Vector("outputs", 2, tail="keep"), ALL),
    (Kernel(), CONVOLUTIONS),
    (Kernel(within="row"), CONVOLUTIONS),
    (Kernel(within=2), CONVOLUTIONS - {"Conv2d, depthwise"}),
    (Block(2, 2), SEVERAL_INPUTS),
    (Block(2, 2, tail="keep"), ALL - {"Conv2d, depthwise"}),
    (Block(2, 1, within=4), SEVERAL_INPUTS),
    (Block(4, 2, within="row"), SEVERAL_INPUTS),
    (Filter(), ALL),
    (Filter(within="model"), ALL),
    (Element(within="isomorphic"), ALL),
]

ALL_NETWORKS = {specimen.name for specimen in COUPLED}

# Each pattern on axes, and the networks in which it finds a site.
COUPLINGS: list[tuple[Coupling, set[str]]] = [
    (Channel(), ALL_NETWORKS),
    (Channel(within="model"), ALL_NETWORKS),
    (Channel(within="isomorphic"), ALL_NETWORKS),
    (Channel(round_to=2), ALL_NETWORKS),
    (Channel(approximate=True), ALL_NETWORKS),
    (Head(), {"transformer block"}),
    (Head(within="model"), {"transformer block"}),
]

# What training may have recorded of one specimen.
MOVED = {name: torch.randn(parameter.shape) for name, parameter in NETWORKS[0].model().named_parameters()}
GATES = {"0": torch.rand(12), "2": torch.rand(8)}

# Each criterion, and which of the laws that not every criterion has are its laws.
CRITERIA: list[tuple[Criterion, dict[str, object]]] = [
    *((magnitude(p), {"keeps_order_when_scaled": True}) for p in (0.5, 1, 2, 3, inf)),
    *((magnitude(p, mean=True), {"keeps_order_when_scaled": True}) for p in (0.5, 1, 2, 3, inf)),
    (magnitude(members="all"), {"keeps_order_when_scaled": True}),
    (magnitude(p=1, mean=True, members="all"), {"keeps_order_when_scaled": True}),
    (random(seed=0), {"permutes": False, "keeps_order_when_scaled": True}),
    (magnitude(p=1) * input_norm(), {"keeps_order_when_scaled": True}),
    (regional(), {}),
    (magnitude(p=2) * input_norm(p=1), {"keeps_order_when_scaled": True}),
    (magnitude(p=1) * random(seed=0), {"permutes": False, "keeps_order_when_scaled": True}),
    (batchnorm_scale(), {"keeps_order_when_scaled": True}),
    (fpgm(), {"keeps_order_when_scaled": True}),
    (fpgm(members="all"), {}),
    (cosine(), {}),
    (lamp(), {"keeps_order_when_scaled": True}),
    (lamp(members="consumers"), {}),
    (snip(), {"keeps_order_when_scaled": True}),
    (snip(members="all"), {}),
    (fisher(), {"keeps_order_when_scaled": True}),
    (fisher(activations=True), {}),
    (taylor(), {}),
    (taylor(members="all"), {}),
    (taylor(activations=True), {}),
    (obd(probes=1), {}),
    (obd("gauss_newton", probes=1), {"on": SEVERAL}),
    (obd(probes=1, together=True), {}),
    (hessian_trace(probes=1) * magnitude(), {}),
    (grasp(), {}),
    (synflow(), {"keeps_order_when_scaled": True}),
    (head_importance(), {}),
    (movement(MOVED), {"on": NETWORKS[:1]}),
    (pcas(GATES), {"on": NETWORKS[:1]}),
    (apoz(), {}),
    (activation(), {}),
    (activation(p=2), {}),
    (variance(), {}),
    (loss_without(), {"on": SEVERAL}),
    (apoz() * magnitude(), {}),
    (magnitude(p=1) * input_norm() * apoz(), {}),
    *((normalised(magnitude(), by), {}) for by in ("mean", "max", "norm", "deviation")),
    (normalised(taylor(members="all")) * magnitude(), {}),
]


class Doubling(TopK):
    """Writes all that it may write."""

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        return Solution(super().__call__(site, kept, stats).kept, {member.parameter: member.weight * 2 for member in site.members})


SOLVERS: list[Solver] = [
    TopK(magnitude()),
    TopK(magnitude(members="all")),
    TopK(random()),
    TopK(magnitude(p=1) * input_norm()),
    TopK(magnitude(members="all") * input_norm()),
    TopK(taylor()),
    TopK(fpgm()),
    LeastSquares(TopK(magnitude())),
    Restored(TopK(magnitude()), part=0.5),
    Lasso(),
    ThiNet(),
    ZipLM(),
    Merge(),
    GateFisher(),
    SparseGPT(block=3, order="activation"),
    Swaps(TopK(magnitude(p=1) * input_norm())),
    ALPS(iterations=9),
    Doubling(magnitude()),
]


def by_hand(**fraction: float) -> Allocator:
    return by_layer({"*": 1 - fraction_kept("by_hand", fraction.get("sparsity"), fraction.get("keep"))})


def within_params(**fraction: float) -> Allocator:
    keep = fraction_kept("within_params", fraction.get("sparsity"), fraction.get("keep"))
    return within_budget(Budget(params, keep=keep), uniform)


def by_score(**fraction: float) -> Allocator:
    """`above` a score that so many exceed; below all of them where everything stays."""
    keep = fraction_kept("by_score", fraction.get("sparsity"), fraction.get("keep"))

    def allocate(sites: Sites, scores: Callable[[], Iterator[Tensor]]) -> Plan:
        every = torch.cat([each.flatten() for each in scores()])
        order = every[every.isfinite()].sort(descending=True).values.tolist()
        return above(order[round(keep * len(order))] if keep < 1 and round(keep * len(order)) < len(order) else -1.0)(sites, scores)

    return allocate


# Each allocator, and whether it keeps exactly the fraction of all units that it is asked for.
ALLOCATORS: list[tuple[str, Callable[..., Allocator], bool]] = [
    ("uniform", uniform, True),
    ("erdos_renyi", erdos_renyi, True),
    ("erdos_renyi(kernel=False)", partial(erdos_renyi, kernel=False), True),
    ("global_threshold", global_threshold, True),
    ("owl", partial(owl, times=2, spread=0.3), True),
    ("alpha_pruning", alpha_pruning, True),
    ("uniform(same_in_every_block=True)", partial(uniform, same_in_every_block=True), False),
    ("global_threshold(same_in_every_block=True)", partial(global_threshold, same_in_every_block=True), False),
    ("by_layer", by_hand, False),
    ("within_budget", within_params, False),
]


USING_UP = {"within_budget"}
"""Those that give what a budget leaves over to whom it fits, so that a site may lose some of it at a larger budget."""


def count_parameters(model: nn.Module, example: object, masks: Masks) -> float:
    return nonzero_params(model)


def count_macs(model: nn.Module, example: object, masks: Masks) -> float:
    return nonzero_macs(model, example)


BITMAP = stored_bytes(Bitmap(), value_bits=8)

# Each cost, and how it is counted on a model that was pruned.
COSTS: list[tuple[Cost, Callable[..., float] | None]] = [
    (params, count_parameters),
    (macs, count_macs),
    (tensor_bytes, None),
    (active_params, count_parameters),
    (BITMAP, lambda model, example, masks: BITMAP(model, example)),
    (Scalar().cycles, lambda model, example, masks: Scalar().cycles(model, example)),
    (eie().cycles, None),
    (TensorCores().milliseconds, lambda model, example, masks: TensorCores().milliseconds(model, example)),
]
OF_SMALL_MACHINES = (flash_bytes(), sram_bytes(), instructions())


@pytest.mark.parametrize("specimen", LAYERS, ids=repr)
@pytest.mark.parametrize(("pattern", "fits"), PATTERNS, ids=lambda value: "" if isinstance(value, set) else repr(value))
def test_each_pattern_keeps_its_laws_on_each_layer_and_fits_where_it_should(pattern, fits, specimen):
    check_pattern(pattern, on=[specimen])
    weights = find_weights(specimen.model())[0]
    assert weights
    fitting = all(misfit(pattern, weight.shape) is None for weight in weights)
    assert fitting == (specimen.name in fits)


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in PATTERNS], ids=repr)
def test_each_pattern_fits_some_layer_and_treats_awkward_shapes_as_it_says(pattern):
    assert check_pattern(pattern) is None


@pytest.mark.parametrize("specimen", COUPLED, ids=repr)
@pytest.mark.parametrize(("pattern", "fits"), COUPLINGS, ids=lambda value: "" if isinstance(value, set) else repr(value))
def test_each_pattern_on_axes_keeps_its_laws_on_each_network_and_fits_where_it_should(pattern, fits, specimen):
    check_coupling(pattern, on=[specimen])
    try:
        found = len(find_sites(specimen.model(), pattern, specimen.example))
    except PatternError:
        found = 0
    assert bool(found) == (specimen.name in fits)


@pytest.mark.parametrize(("criterion", "laws"), CRITERIA, ids=lambda value: getattr(value, "name", ""))
def test_each_criterion_keeps_its_laws(criterion, laws):
    assert check_criterion(criterion, **laws) is None


@pytest.mark.parametrize("number", range(len(SOLVERS)), ids=lambda number: repr(SOLVERS[number])[:60])
def test_each_solver_keeps_its_laws(number):
    """RNN, attention and embedding have plain matrices: of these three each solver meets one, in turns."""
    solver = SOLVERS[number]
    on = EACH_KIND if ALL_OF_THEM else [*EACH_KIND[:3], EACH_KIND[3 + number % 3]]
    together = isinstance(solver, (ALPS, GateFisher, Lasso, Merge, Restored, SparseGPT, Swaps, ThiNet, ZipLM))
    assert check_solver(solver, by_score=not together, on=on, coupled=COUPLED) is None


@pytest.mark.parametrize("specimen", [specimen for specimen in LAYERS if specimen.name in OBSERVED], ids=repr)
def test_each_layer_is_observed_where_the_model_is(specimen):
    model, norm = specimen.model().to("meta"), input_norm()
    (stats, *_) = observe(
        model, find_sites(model, Element(), only="*"), [norm], Task(example=None, calibration=[(specimen.example, None)])
    ).values()
    assert stats[norm].device.type == "meta"


@pytest.mark.parametrize(("name", "make", "exact"), ALLOCATORS, ids=[row[0] for row in ALLOCATORS])
def test_each_allocator_keeps_its_laws(name, make, exact):
    on = COUPLED[2:4] if name in USING_UP and not ALL_OF_THEM else None  # tied weights and residual sums: a search for each budget
    assert check_allocator(make, exact=exact, nested=name not in USING_UP, on=on) is None


def test_allocators_that_weigh_losses_against_costs_keep_their_laws():
    """`marginal`, `lagrangian`, `dynamic` and `integer` do on every specimen, which takes minutes; here one, on the smallest."""

    def make(**fraction: float) -> Allocator:
        return marginal(Budget(params, keep=fraction_kept("make", fraction.get("sparsity"), fraction.get("keep"))), levels=9)

    assert check_allocator(make, exact=False, nested=False, on=COUPLED[:1]) is None


def test_an_allocator_that_looks_at_scores_alone_keeps_its_laws():
    """On every specimen it takes half a minute; here one."""
    assert check_allocator(by_score, exact=False, on=COUPLED[:1]) is None


@pytest.mark.parametrize("specimen", [*LAYERS, *NETWORKS], ids=repr)
@pytest.mark.parametrize(("cost", "counted"), COSTS, ids=[cost.name for cost, _ in COSTS])
def test_each_cost_keeps_its_laws_on_each_model(cost, counted, specimen, tmp_path):
    def saved_payload(model: nn.Module, example: object, masks: Masks) -> float:
        size = save(model, tmp_path / "pruned.safetensors", masks, sparse=True)
        header = int.from_bytes((tmp_path / "pruned.safetensors").read_bytes()[:8], "little")
        return size - 8 - header

    assert check_cost(cost, counted=saved_payload if cost is tensor_bytes else counted, on=[specimen]) is None


@pytest.mark.parametrize("cost", OF_SMALL_MACHINES, ids=[cost.name for cost in OF_SMALL_MACHINES])
def test_each_cost_of_small_machines_keeps_its_laws_where_there_are_kernels(cost):
    perceptron = Specimen("perceptron", lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), torch.zeros(1, 64))
    assert check_cost(cost, on=[perceptron]) is None


def test_the_memory_of_keys_and_values_keeps_its_laws_where_there_are_any():
    assert check_cost(kv_cache_bytes(16), on=COUPLED[-1:]) is None


def test_bytes_keep_their_laws_on_models_that_are_larger_than_a_header():
    large = Specimen("large perceptron", lambda: nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 32)), torch.zeros(2, 64))
    for cost in (bytes_, compressed_bytes, compressed_bytes_at(4)):
        assert check_cost(cost, on=[large]) is None


# ---------------------------------------------------------------- quantisers

QUANTISERS = (
    k_means(bits=2),
    k_means(clusters=3, per="channel"),
    k_means(clusters=1, start="random", seed=3),
    k_means(bits=1, start="linear", per=4),
    evenly(bits=4),
    evenly(bits=3, per="channel", clip="mse"),
    evenly(step=0.25),
    powers_of_two(bits=3),
    powers_of_two(bits=8, per="channel"),
    ternary(),
    ternary(per=4, threshold=0.05, of="max"),
    as_it_is(),
)


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=repr)
def test_each_quantiser_keeps_its_laws(quantiser):
    check_quantiser(quantiser, scales="step" not in repr(quantiser))


def test_what_breaks_a_law_of_quantisers_is_told():
    def broken(change, message, **how):
        made = evenly(bits=4).choose
        with pytest.raises(AssertionError, match=message):
            check_quantiser(Quantiser("broken", lambda rows, there: change(made(rows, there), rows, there)), **how)

    def shifted(levels, rows, there):
        return replace(levels, numbers=levels.numbers + 1)

    def drawn(levels, rows, there):
        return replace(levels, numbers=torch.where(torch.rand(rows.shape) > 0.5, levels.numbers, 0))

    def coarse(levels, rows, there):
        return replace(levels, scale=3 * levels.scale)

    def flipped(levels, rows, there):
        return replace(levels, scale=-levels.scale)

    def rounded(levels, rows, there):
        return replace(levels, scale=levels.scale.clamp(min=0.2))

    broken(shifted, "what is zero or masked has levels other than 0|the values are further")
    broken(drawn, "asked again, it gives other levels")
    broken(coarse, "the values are further from the weight than zeros are")
    broken(flipped, "level 0 is not 0")
    broken(rounded, "twice the weight does not give twice the values")
    with pytest.raises(AssertionError, match="it takes no weight"):
        check_quantiser(evenly(per=1000))
