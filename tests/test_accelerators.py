"""Accelerators: counted by hand, against a simulation cycle by cycle, and the shapes of the figures that their papers publish."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.costs.accelerators import CascadePruning, Columns, OuterProducts, eie, ese
from secateurs.types import KindError, SecateursError


def sparse(rows: int, columns: int, density: float, seed: int = 0) -> Tensor:
    return (torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density).float()


# ---------------------------------------------------------------- EIE and ESE


def by_the_cycle(entries: Tensor, depth: int) -> int:
    """The same machine, a cycle at a time: columns are sent to queues, and each element works off what stands first in its own."""
    queues: list[deque[int]] = [deque() for _ in entries]
    column, cycle = 0, 0
    while column < entries.shape[1] or any(queues):
        cycle += 1
        if column < entries.shape[1] and all(len(queue) < depth for queue in queues):
            for queue, mine in zip(queues, entries[:, column].tolist(), strict=True):
                queue.append(mine)
            column += 1
        for queue in queues:
            while queue and queue[0] == 0:
                queue.popleft()
            if queue:
                queue[0] -= 1
                if not queue[0]:
                    queue.popleft()
    return cycle


@pytest.mark.parametrize("depth", [1, 2, 3, 8, 100])
@pytest.mark.parametrize(("elements", "density"), [(1, 0.3), (4, 0.1), (8, 0.5)])
def test_cycles_are_those_of_a_machine_that_is_watched(depth, elements, density):
    for seed in range(4):
        weight = sparse(24, 40, density, seed)
        machine = Columns(elements=elements, depth=depth, busy=1.0)
        expected = by_the_cycle(machine.entries(weight), depth)
        assert machine.simulated(weight) == expected >= int(machine.entries(weight).sum(1).max())


def test_entries_are_those_of_rows_that_are_dealt_out():
    weight = torch.zeros(9, 2)
    weight[[0, 2, 3, 8], 0] = 1
    weight[5, 1] = 1
    machine = Columns(elements=2, index_bits=1, depth=8)
    assert machine._nonzeros(weight).tolist() == [[3, 0], [1, 1]]
    # element 0 has rows 0, 2, 4, 6, 8: two zeros come before the last, one bit can tell one; element 1 has rows 1, 3, 5, 7
    assert machine._filled(weight).tolist() == [[1, 0], [0, 1]]
    assert machine.padding(weight) == pytest.approx(2 / 7)


def test_gaps_as_long_as_the_index_can_tell_need_no_filler():
    for gap, fillers in ((15, 0), (16, 1), (31, 1), (32, 2)):
        weight = torch.zeros(gap + 1, 1)
        weight[-1] = 1
        assert int(Columns(elements=1).entries(weight).sum()) == 1 + fillers


def test_the_figures_of_eie_come_out_in_shape():
    weight = sparse(4096, 128, 0.09)  # AlexNet's fc7 has 9 % of its weights left
    balances = [replace(eie(), depth=depth).balance(weight) for depth in (1, 2, 4, 8, 16, 64)]
    assert balances == sorted(balances)
    assert 0.35 < balances[0] < 0.65, "with a queue of 1 about half of all cycles are idle"
    assert balances[3] - balances[0] > 2 * (balances[5] - balances[3]), "more than 8 helps little"
    paddings = [replace(eie(), elements=elements).padding(weight) for elements in (1, 4, 16, 64, 256)]
    assert paddings == sorted(paddings, reverse=True) and paddings[0] > 0.1 > paddings[-1]
    worse = [replace(eie(), elements=elements).balance(weight) for elements in (4, 16, 64, 256)]
    assert worse == sorted(worse, reverse=True)


def test_rows_that_keep_the_same_balance_ese():
    weights = {}
    for within in ("layer", "row"):
        layer = nn.Linear(128, 128)
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
        layer.weight.data *= 1 + (torch.arange(128) % 32 < 4)[:, None]
        pattern = sc.Element(within=within)
        sc.prune_(layer, pattern, sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.875), sc.Task(torch.zeros(1, 128)), only="*")
        weights[within] = layer.weight.detach()
    shares = {within: ese()._nonzeros(weight).sum(1) for within, weight in weights.items()}
    assert len(set(shares["row"].tolist())) == 1 and len(set(shares["layer"].tolist())) > 1
    assert ese().simulated(weights["row"]) < 0.8 * ese().simulated(weights["layer"])


def test_of_a_plan_cycles_are_those_of_weights_by_chance():
    model, x = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 64)), torch.zeros(1, 96)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.random(1)), sc.uniform(sparsity=0.8), sc.Task(x))
    cost = eie().cycles
    assert cost(model, x, masks.plan) == pytest.approx(cost(model, x), rel=0.15)
    assert sum(cost.by_layer(model, x).values()) == cost(model, x)


# ---------------------------------------------------------------- SpArch


def naive_bytes(left: Tensor, right: Tensor, machine: OuterProducts) -> int:
    """With all partial products merged at once: no more than reading both and writing the result."""
    named = (left != 0).sum(0)
    return machine.entry_bytes * int((left != 0).sum() + (named * (right != 0).sum(1)).sum() + ((left @ right) != 0).sum())


def test_what_merges_at_once_is_written_once():
    left, right = sparse(40, 40, 0.1), sparse(40, 40, 0.1, 1)
    for condensed in (True, False):
        assert OuterProducts(ways=64, condensed=condensed).dram_bytes(left, right) == naive_bytes(left, right, OuterProducts())


def test_condensing_and_wider_trees_move_less():
    left, right = sparse(128, 128, 0.05), sparse(128, 128, 0.05, 1)
    plain, condensed = (OuterProducts(ways=4, condensed=condensed) for condensed in (False, True))
    assert plain.partial_products(left) > 100 and condensed.partial_products(left) == int((left != 0).sum(1).max())
    moved = [replace(plain, ways=ways).dram_bytes(left, right) for ways in (2, 4, 16, 64, 256)]
    assert moved == sorted(moved, reverse=True)
    assert condensed.dram_bytes(left, right) < plain.dram_bytes(left, right)
    assert moved[-1] == naive_bytes(left, right, plain)
    assert replace(plain, reread=False).dram_bytes(left, right) < plain.dram_bytes(left, right)


def test_two_partial_products_by_hand():
    left, right = torch.tensor([[1.0, 1.0, 1.0]]), torch.eye(3)
    # three partial products of one entry: two are merged (2 written), read with the third, and three are written
    assert OuterProducts(ways=2, condensed=False, entry_bytes=1).dram_bytes(left, right) == 3 + 3 + 2 + 2 + 3


# ---------------------------------------------------------------- SpAtten


def test_a_transformer_without_pruning_multiplies_what_is_counted():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=16
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    whole = CascadePruning(2, 32, 4, 48, (1.0, 1.0), (1.0, 1.0))
    assert whole.macs(12) == sc.macs(model, torch.zeros(1, 12, dtype=torch.long))
    half = replace(whole, tokens=(1.0, 0.5), heads=(0.5, 0.5))
    first, second = half.pass_of(12)
    assert first.products == whole.layer(0, 12).products / 2 and second.products == whole.layer(0, 12).products / 8
    assert second.feed_forward == whole.layer(0, 12).feed_forward / 2 and second.fetched == whole.layer(0, 12).fetched / 4


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Columns(elements=0), SecateursError, "elements=0, but must be at least 1"),
        (lambda: Columns(busy=0.0), SecateursError, r"busy=0.0, but .* in \(0, 1\]"),
        (lambda: OuterProducts(ways=1), KindError, "ways=1, but merging takes two"),
        (lambda: CascadePruning(2, 8, 2, 8, (1.0,), (1.0, 1.0)), SecateursError, "tokens has 1 fractions for 2 layers"),
        (
            lambda: CascadePruning(2, 8, 2, 8, (1.0, 1.0), (0.5, 1.0)),
            SecateursError,
            r"heads=\(0.5, 1.0\): fractions .* never rise",
        ),
    ],
)
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
