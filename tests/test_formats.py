"""Storage formats: held against encoders that write every entry down, simulation of places by chance, and a published table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import secateurs as sc
from secateurs import models
from secateurs.costs import CSC, CSR, Bitmap, Dense, Grouped, Relative, Work, cheapest, fillers, stored_bytes, workload
from secateurs.testing import COUPLED, NETWORKS, check_cost
from secateurs.types import Cost, KindError, SecateursError

# ---------------------------------------------------------------- encoders, entry by entry


def units(weight: Tensor, box: tuple[int, ...]) -> list[list[bool]]:
    """A weight (outputs, inputs, *kernel) as rows of boxes, each told by whether it holds anything."""
    outputs, inputs, *kernel = weight.shape
    high, wide, *deep = box
    rows = []
    for o in range(0, outputs, high):
        row = []
        for i in range(0, inputs, wide):
            whole = not kernel or tuple(deep) == tuple(kernel)
            for k in [0] if whole else range(kernel[0]):
                part = weight[o : o + high, i : i + wide]
                row.append(bool((part if whole else part[:, :, k : k + deep[0]]).count_nonzero()))
        rows.append(row)
    return rows


def naive_relative(there: list[bool], reach: int) -> int:
    last = max((place for place, each in enumerate(there) if each), default=-1)
    entries, gap = 0, 0
    for each in there[: last + 1]:
        if each or gap == reach - 1:
            entries, gap = entries + 1, 0
        else:
            gap += 1
    return entries


def work_of(weight: Tensor) -> Work:
    outputs, inputs, *kernel = weight.shape
    return Work("w", "w", 1, inputs, outputs, tuple(kernel), 1, 1, 1, float(weight.count_nonzero()), weight=weight[None])


@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([1, 2, 4]), st.sampled_from(["", "kernel", "block", "row"]))
@settings(max_examples=60, deadline=None)
def test_what_is_counted_is_what_an_encoder_writes(seed, density, bits, unit):
    torch.manual_seed(seed)
    weight = torch.randn(6, 5, 3, 3) * (torch.rand(6, 5, 3, 3) < density)
    pattern, box = {
        "": (None, (1, 1, 1, 1)),
        "kernel": (sc.Kernel(), (1, 1, 3, 3)),
        "block": (sc.Filter(), (1, 5, 3, 3)),
        "row": (sc.Vector("width"), (1, 1, 1, 3)),
    }[unit]
    rows = units(weight, box) if unit else (weight != 0).flatten(1).tolist()
    size, work, flat = torch.Size(box).numel(), work_of(weight), [each for row in rows for each in row]
    assert Relative(bits, pattern).bits(work, 8) == naive_relative(flat, 2**bits) * (8 * size + bits)
    assert Bitmap(pattern).bits(work, 8) == len(flat) + 8 * size * sum(flat)
    columns = max(1, len(rows[0]))
    pointers = (len(rows) + 1) * ceil(log2(sum(flat) + 1))
    assert CSR(unit=pattern).bits(work, 8) == sum(flat) * (8 * size + ceil(log2(columns))) + pointers
    across = (columns + 1) * ceil(log2(sum(flat) + 1))
    assert CSC(unit=pattern).bits(work, 8) == sum(flat) * (8 * size + ceil(log2(len(rows)))) + across
    assert Dense().bits(work, 8) == 8 * weight.numel()


@given(st.integers(0, 10**6), st.sampled_from([(1, 2), (2, 4), (1, 4)]), st.integers(4, 11))
@settings(max_examples=30, deadline=None)
def test_n_of_m_is_what_an_encoder_writes_and_refuses_what_it_cannot_hold(seed, of, inputs):
    torch.manual_seed(seed)
    (n, m), weight = of, torch.randn(3, inputs)
    whole = inputs // m
    weight[:, : whole * m].view(3, whole, m)[..., n:] = 0
    assert Grouped(n, m).bits(work_of(weight), 8) == 3 * (whole * n * (8 + ceil(log2(m))) + inputs % m * 8)
    weight[1, :m] = 1
    with pytest.raises(SecateursError, match=f"w: {n} of {m} cannot hold a weight that keeps {m} of {m} inputs; prune it with"):
        Grouped(n, m).bits(work_of(weight), 8)


@pytest.mark.parametrize(
    ("count", "kept", "reach"), [(400, 30, 16), (1000, 221, 16), (300, 3, 256), (64, 20, 2), (50, 0, 4), (9, 9, 2)]
)
def test_fillers_of_a_plan_are_those_of_places_by_chance(count, kept, reach):
    torch.manual_seed(0)
    found = []
    for _ in range(600):
        there = torch.zeros(count, dtype=torch.bool)
        there[torch.randperm(count)[:kept]] = True
        found.append(float(naive_relative(there.tolist(), reach) - kept))
    sample = torch.tensor(found)
    assert fillers(count, kept, reach) == pytest.approx(float(sample.mean()), abs=4 * float(sample.std()) / 600**0.5 + 1e-12)


# ---------------------------------------------------------------- whole models

COSTS: list[tuple[Cost, bool]] = [
    (stored_bytes(Dense()), True),
    (stored_bytes(CSR(32, 32)), True),
    (stored_bytes(Relative(4), value_bits=4, codebook=True), False),
    (stored_bytes(Relative(8, unit=sc.Kernel())), False),
    (stored_bytes(cheapest(Dense(), Bitmap(), CSR(), Relative(4), Grouped(2, 4)), value_bits=8), False),
]
"""Each with whether it says of a plan exactly what is there afterwards, wherever the weights lie."""


@pytest.mark.parametrize(("cost", "exact"), COSTS, ids=lambda each: getattr(each, "name", ""))
def test_the_bytes_of_a_format_keep_the_laws_of_costs(cost, exact):
    counted = (lambda model, example, masks: cost(model, example)) if exact else None
    check_cost(cost, counted=counted, on=NETWORKS[:1])


@pytest.mark.parametrize("cost", [cost for cost, _ in COSTS], ids=lambda cost: cost.name)
def test_of_whole_channels_what_a_plan_promises_is_what_the_smaller_model_takes(cost):
    for specimen in COUPLED[:2]:
        model = specimen.model().eval()
        masks = sc.prune_(
            model, sc.Channel(approximate=True), sc.TopK(sc.random(1)), sc.uniform(keep=0.5), sc.Task(specimen.example)
        )
        promise = cost(specimen.model().eval(), specimen.example, masks.plan)
        assert not sc.shrink_(model, masks).skipped
        assert promise == cost(model, specimen.example)


def test_kernels_have_one_index_each_and_their_plan_tells_how_many_there_are():
    model, x = models.digits_cnn(), torch.zeros(1, 1, 8, 8)
    cost = stored_bytes(Bitmap(sc.Kernel()), value_bits=8)
    masks = sc.prune_(model, sc.Kernel(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.3), sc.Task(x), only="conv*")
    assert cost(model, x, masks.plan) == cost(model, x) < cost(models.digits_cnn(), x)
    wrong = stored_bytes(Bitmap(sc.Vector("width")))
    with pytest.raises(SecateursError, match="an index for each 3 weights, but the plan removes 9 together"):
        wrong(model, x, masks.plan)
    each = stored_bytes(Relative(4), value_bits=8)
    assert each(model, x) <= each(model, x, masks.plan)  # kernels lie together: the most fillers that there can be


def test_single_weights_leave_as_many_units_as_chance_has_it():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(40, 30, 3, bias=False), torch.zeros(1, 40, 5, 5)
    cost = stored_bytes(Relative(4, unit=sc.Kernel()), value_bits=8)
    masks = sc.prune_(layer, sc.Element(), sc.TopK(sc.random(0)), sc.uniform(keep=0.1), sc.Task(x))
    assert cost(layer, x, masks.plan) == pytest.approx(cost(layer, x), rel=0.03)


def test_each_parameter_is_stored_once_and_what_no_product_reads_is_too():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out, self.norm = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(self.words(x)).relu()) + self.out(self.words(x))

    net, x = Net().eval(), torch.zeros(2, dtype=torch.long)
    found = stored_bytes(Dense(), value_bits=8).by_layer(net, x)
    assert found == {
        "words.weight": 28,
        "out.weight": 28,
        "norm.weight": 16,
        "norm.bias": 16,
        "norm.running_mean": 16,
        "norm.running_var": 16,
        "norm.num_batches_tracked": 8,
    }


def test_a_codebook_is_counted_and_a_plan_may_give_bits():
    layer, x = nn.Linear(64, 64, bias=False), torch.zeros(1, 64)
    assert stored_bytes(Dense(), value_bits=4, codebook=True)(layer, x) == 64 * 64 / 2 + 16 * 4
    sites = sc.find_sites(layer, sc.Element(), x, only="*")
    plan = sc.uniform(keep=1.0)(sites, lambda: iter([]))
    shares = {name: sc.types.Share(share.units, share.kept, share.elements, bits=2) for name, share in plan.shares.items()}
    assert stored_bytes(Dense(), value_bits=8)(layer, x, sc.Plan(shares)) == 64 * 64 / 4


def test_bits_by_weight():
    model, x = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False)), torch.zeros(1, 8)
    assert stored_bytes(Dense(), value_bits={"0.weight": 3})(model, x) == 32 * 3 / 8 + 8 * 4
    by_channel = {"0.weight": torch.tensor([3, 4, 5, 7]), "1.weight": torch.tensor([8])}
    assert stored_bytes(Dense(), value_bits=by_channel)(model, x) == 8 * (3 + 4 + 5 + 7) / 8 + 8
    assert stored_bytes(Bitmap(), value_bits=by_channel)(model, x) == 8 * (3 + 4 + 5 + 7) / 8 + 4 + 8 + 1
    with pytest.raises(SecateursError, match=r"value_bits names 2.weight, but the weights are 0.weight, 1.weight"):
        stored_bytes(Dense(), value_bits={"2.weight": 3})(model, x)
    for wrong in (0, 65, "four", torch.tensor([2.5]), torch.tensor([])):
        with pytest.raises(SecateursError, match=r"value_bits of 0.weight is .*, but must be whole numbers from 1 to 64"):
            stored_bytes(Dense(), value_bits={"0.weight": wrong})
    with pytest.raises(SecateursError, match=r"codebook=True needs value_bits, .*, one number for all"):
        stored_bytes(Dense(), value_bits={"0.weight": 4}, codebook=True)


def test_weights_are_found_as_the_product_reads_them():
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(12.0).view(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model = Turned()
    [layer] = workload(model, torch.zeros(2, 3)).under(None)
    work = layer.left({})
    assert work.weight is not None and (work.outputs, work.inputs) == (4, 3) and torch.equal(work.weight[0], model.weight.T)


# ---------------------------------------------------------------- Mao et al., 1705.08922

PUBLISHED = {
    "alexnet": ((22.1, 33.0), (29.9, 34.5), (37.8, 39.7)),
    "vgg_16": ((27.0, 40.6), (30.7, 35.8), (44.4, 46.9)),
    "googlenet": ((32.3, 48.5), (36.9, 47.4), (43.7, 51.6)),
    "resnet_50": ((37.1, 55.7), (40.0, 52.7), (61.3, 77.0)),
    "densenet_121": ((26.6, 39.8), (31.1, 43.8), (35.5, 48.9)),
}
"""Model → (density, storage) in % of the dense weights of 8 bits: single weights, vectors, kernels."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_storage_of_vectors_and_kernels_is_what_mao_et_al_publish(name):
    with torch.device("meta"):
        model = getattr(models, name)()
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    dense = sum(8 * weight.numel() for weight in weights)
    for pattern, (density, storage) in zip((sc.Element(), sc.Vector("width"), sc.Kernel()), PUBLISHED[name], strict=True):
        found = 0.0
        for weight in weights:
            outputs, inputs, *kernel = weight.shape
            unit = torch.Size(pattern.tile((1, *weight.shape))).numel()
            kept = round(density / 100 * weight.numel() / unit) * unit
            work = Work("", "", 1, inputs, outputs, tuple(kernel), 1, 1, 1, float(kept), unit)
            found += Relative(4, unit=pattern).bits(work, 8)
        assert 100 * found / dense == pytest.approx(storage, abs=2.6), pattern


@pytest.mark.skipif(
    "SECATEURS_DATA" not in os.environ, reason="SECATEURS_DATA is not set: it names the folder with the published weights"
)
def test_the_authors_of_deep_compression_need_as_much_for_their_squeezenet():
    """Their file, with relative indices of 4 bits and codes of 8 bits, has 675,763 bytes; four of each of its 26 layers tell its length."""
    model = models.squeezenet_1_0()
    model.load_state_dict(load_file(Path(os.environ["SECATEURS_DATA"]) / "squeezenet_v1_0_pruned.safetensors"))
    found = stored_bytes(Relative(4), value_bits=8, codebook=True)(model, torch.zeros(1, 3, 227, 227))
    assert found == 675_763 - 26 * 4


# ---------------------------------------------------------------- what is refused


@dataclass(frozen=True)
class Nothing:
    def bits(self, work: Work, width: int) -> float:
        raise SecateursError("never")


def test_what_is_refused():
    layer, x = nn.Linear(300, 4), torch.zeros(1, 300)
    with pytest.raises(KindError, match="stored_bytes: format is 4, but must be a format, for example Relative"):
        stored_bytes(4)  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match="value_bits=0, but must be from 1 to 64"):
        stored_bytes(Dense(), value_bits=0)
    with pytest.raises(SecateursError, match="codebook=True needs value_bits"):
        stored_bytes(Dense(), codebook=True)
    with pytest.raises(SecateursError, match=r"makes a table of 2 \*\* 17; 16 at most"):
        stored_bytes(Dense(), value_bits=17, codebook=True)
    with pytest.raises(SecateursError, match="Relative: index_bits=0, but must be from 1 to 32"):
        Relative(0)
    with pytest.raises(KindError, match="Bitmap: unit is 3, but must be a pattern of boxes"):
        Bitmap(3)  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match=r"Grouped\(4, 4\): n must be at least 1 and below m"):
        Grouped(4, 4)
    with pytest.raises(
        SecateursError, match=r"0|weight: CSR\(index_bits=8\) cannot tell numbers up to 299; give it 9 bits or more"
    ):
        stored_bytes(CSR(8))(layer, x)
    with pytest.raises(SecateursError, match="cheapest: give at least one format"):
        cheapest()
    with pytest.raises(KindError, match="cheapest: a format is 'dense'"):
        cheapest("dense")  # type: ignore[arg-type]
    with pytest.raises(SecateursError, match="none of 1 formats can hold it: never"):
        stored_bytes(cheapest(Nothing()))(layer, x)
    assert stored_bytes(cheapest(Nothing(), Dense()))(layer, x) == 4 * 1204
    half = sc.uniform(keep=0.75)(sc.find_sites(layer, sc.Element(), x, only="*"), lambda: iter([]))
    with pytest.raises(SecateursError, match="2 of 4 cannot hold 900 of 1200 weights; prune it with NofM"):
        stored_bytes(Grouped(2, 4))(layer, x, half)
