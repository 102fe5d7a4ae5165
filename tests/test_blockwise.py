"""Pruning block by block gives what pruning with the whole model in order gives, to the bit, and is refused where it would not."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from language_models import FAMILIES, family

import secateurs as sc
from secateurs.evidence import gram
from secateurs.types import PatternError, SecateursError, Site, Solution, Stats, TaskError

LENGTHS = (12, 9, 12, 7)


def batches(name: str) -> list[dict[str, Tensor]]:
    """Batches of several lengths, some with padding."""
    random, found = torch.Generator().manual_seed(1), []
    for length in LENGTHS:
        if name == "vit":
            found.append({"pixel_values": torch.randn(2, 3, 8, 8, generator=random)})
            continue
        batch = {"input_ids": torch.randint(0, 32, (2, length), generator=random)}
        if name in ("bert", "t5", "bloom", "falcon_alibi"):
            batch["attention_mask"] = (torch.arange(length) < torch.tensor([[length], [length - 3]])).long()
        if name == "t5":
            batch["decoder_input_ids"] = torch.randint(0, 32, (2, 5), generator=random)
        found.append(batch)
    return found


def pruned(name: str, walk: Any, solver: Any = None, **more: Any) -> tuple[nn.Module, sc.Masks]:
    model, example, _ = family(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that blocks do something
    task = sc.Task(example, calibration=batches(name))
    solver = solver or sc.SparseGPT()
    return model, sc.prune_(model, sc.Element(), solver, sc.uniform(sparsity=0.5), task, walk=walk, **more)


def same(one: tuple[nn.Module, sc.Masks], other: tuple[nn.Module, sc.Masks]) -> bool:
    states = one[0].state_dict(), other[0].state_dict()
    masks = dict(one[1].items()), dict(other[1].items())
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0]) and all(
        torch.equal(masks[0][key], masks[1][key]) for key in masks[0]
    )


SLOW = ("llama", "mixtral", "gemma2", "falcon_alibi", "bert")


@pytest.mark.filterwarnings("ignore:.*its inputs depend", "ignore:.*no calibration token")
@pytest.mark.parametrize("name", ["gpt2", "bloom", "t5", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_same_to_the_bit_as_in_order(name: str) -> None:
    holders = family(name)[2]
    blocks = [f"{holder}.*" for holder in holders]
    expected = pruned(name, sc.in_order(blocks))
    assert same(pruned(name, sc.in_blocks()), expected)
    at_once = pruned(name, lambda sites: [sites])
    assert not same(at_once, expected)  # so that the order is seen


@pytest.mark.filterwarnings("ignore:.*its inputs depend")
def test_each_layer_of_a_block_after_the_other() -> None:
    assert same(pruned("llama", sc.in_blocks(each_layer=True)), pruned("llama", sc.in_order()))
    assert FAMILIES["llama"][3] == ["model.layers"]
    assert same(pruned("llama", sc.in_blocks("model.layers")), pruned("llama", sc.in_order("model.layers.*")))


class Residual(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Model(nn.Module):
    """Blocks with something before and behind; ``given`` makes what they are given beside the stream."""

    def __init__(
        self, given: Callable[[Model, Tensor, Tensor, int], Any] = lambda *_: None, block: type[nn.Module] = Residual
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layers, self.last = nn.Linear(4, 6), nn.ModuleList([block() for _ in range(3)]), nn.Linear(6, 2)
        self.given = given

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.first(inputs)
        for number, layer in enumerate(self.layers):
            x = layer(x, self.given(self, inputs, x, number))
        return self.last(x)


def task(count: int = 3) -> sc.Task:
    random = torch.Generator().manual_seed(2)
    data = [torch.randn(20 + number, 4, generator=random) for number in range(count)]
    return sc.Task(data[0][:1], calibration=[(each, None) for each in data])


def prune(model: nn.Module, walk: Any, **more: Any) -> tuple[nn.Module, sc.Masks]:
    arguments = {"solver": sc.SparseGPT(), "pattern": sc.Element(), "allocate": sc.uniform(sparsity=0.5), "task": task(), **more}
    return model, sc.prune_(model, walk=walk, **arguments)


class WithCache(Residual):
    """Writes into a cache that all blocks are given, and into what it is given, as blocks do."""

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        cache, mask = more[0]
        cache.seen.append(x)
        assert len(cache.seen) <= 3
        mask.mul_(0.5)
        x.add_(mask.sum())
        return super().forward(x) + mask[0] * cache.seen[-1]


class Cache:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []


def test_every_call_finds_what_it_is_given_as_the_first_one_did() -> None:
    """Each block here gets a mask of its own, and writes over it, over its input and into a cache."""
    caches: dict[int, Cache] = {}

    def given(model: Model, inputs: Tensor, x: Tensor, number: int) -> Any:
        caches[0] = Cache() if number == 0 else caches[0]
        return caches[0], torch.full((6,), 0.1 * (number + 1)) * inputs.mean()

    made = Model(given, WithCache), Model(given, WithCache)
    assert same(prune(made[0], sc.in_blocks()), prune(made[1], sc.in_order("layers.*")))


def test_what_depends_on_earlier_blocks_is_refused_and_left_as_it_was() -> None:
    kept: list[Tensor] = []

    def of_stream(model: Model, inputs: Tensor, x: Tensor, number: int) -> Any:
        return x.mean()

    class Reading(Residual):
        def forward(self, x: Tensor, *more: Any) -> Tensor:
            return super().forward(x * more[0])

    class Sharing(Residual):
        """Reads what an earlier block has computed, past the stream."""

        def forward(self, x: Tensor, *more: Any) -> Tensor:
            if more[0] == 0:
                kept.clear()
            kept.append(self.up(x))
            return super().forward(x) + kept[0].mean()

    for model, said in (
        (
            Model(of_stream, Reading),
            r"block layers\.1 reads at .* a tensor \(\), made in the model .*, that depends on what earlier",
        ),
        (
            Model(lambda *given: given[-1], Sharing),
            r"block layers\.1 reads at .* a tensor \(1, 8\), made in layers\.0\.up .*walk=in_order",
        ),
    ):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(SecateursError, match=said):
            prune(model, sc.in_blocks())
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.warns(UserWarning, match=r"as it cannot be run block by block: block layers\.1 reads"):
        found = prune(Model(of_stream, Reading), sc.in_blocks(otherwise=sc.in_order("layers.*")))
    assert same(found, prune(Model(of_stream, Reading), sc.in_order("layers.*")))


def test_a_weight_of_two_blocks_is_refused() -> None:
    model = Model()
    model.layers[2].up.weight = model.layers[0].up.weight
    with pytest.raises(SecateursError, match=r"layers\.0\.up\.weight of block layers\.0 is read in layers\.2 too"):
        prune(model, sc.in_blocks())


def test_outside_the_stack_the_whole_model_runs() -> None:
    expected = prune(Model(), sc.in_order("layers.*"), only="*")
    found = prune(Model(), sc.in_blocks(), only="*")
    assert same(found, expected) and {"first.weight", "last.weight"} <= found[1].keys()


class Counting:
    """How often each module was called."""

    def __init__(self, model: nn.Module) -> None:
        self.times: Counter[str] = Counter()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name: self.times.update([name]))


def test_each_block_runs_twice_and_the_last_once() -> None:
    model = Model()
    counting = Counting(model)
    prune(model, sc.in_blocks(), only="layers", skip="layers.2.up", task=task(5))
    examples = 2  # to find the order of the sites, and to trace
    of_blocks = [counting.times[f"layers.{number}"] for number in range(3)]
    assert of_blocks == [examples + 2 * 5, examples + 2 * 5, examples + 5] and counting.times["first"] == examples + 5
    assert counting.times["last"] == examples


class Stop(Exception):
    pass


class Stopping:
    """SparseGPT that stops after so many sites."""

    def __init__(self, after: int = 1 << 30) -> None:
        self.within, self.after, self.solved = sc.SparseGPT(), after, list[str]()
        self.needs, self.scores = self.within.needs, self.within.scores

    def __repr__(self) -> str:
        return repr(self.within)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        if len(self.solved) == self.after:
            raise Stop
        self.solved.append(site.name)
        return self.within(site, kept, stats)


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    expected = prune(Model(), sc.in_blocks(), only="layers")
    stopping = Stopping(3)
    with pytest.raises(Stop):
        prune(Model(), sc.in_blocks(), only="layers", solver=stopping, checkpoint=tmp_path)
    going_on = Stopping()
    found = prune(Model(), sc.in_blocks(), only="layers", solver=going_on, checkpoint=tmp_path)
    assert same(found, expected) and going_on.solved == ["layers.1.up", "layers.1.down", "layers.2.up", "layers.2.down"]


def test_equal_tensors_of_many_batches_are_kept_once() -> None:
    from secateurs.blockwise import Passage, Stacks

    model, example, _ = family("llama")
    tokens = [torch.randint(0, 32, (1, 12)) for _ in range(6)]
    names = tuple(f"model.layers.{number}" for number in range(3))
    task = sc.Task(example, calibration=[{"input_ids": each} for each in tokens])
    passage = Passage(Stacks(model, names, {}, frozenset()), task)
    kept = {id(tensor) for calls in passage.arguments for call in calls for tensor in _tensors(call._nest)}
    per_batch = len({id(tensor) for call in passage.arguments[0] for tensor in _tensors(call._nest)})
    assert 2 <= per_batch == len(kept)


def _tensors(nest: Any) -> Iterator[Tensor]:
    from secateurs.nested import tensors_in

    return tensors_in(nest)


def test_errors_of_the_walk() -> None:
    with pytest.raises(SecateursError, match="Sequential has no stack of blocks"):
        prune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), sc.in_blocks())
    found = prune(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), sc.in_blocks(otherwise=sc.in_order()))
    assert found[1].sparsity == 0.5
    with pytest.raises(SecateursError, match="blocks='nothing'"):
        prune(Model(), sc.in_blocks("nothing", otherwise=sc.in_order()))
    with pytest.raises(PatternError, match=r"its units lie in .* of .* and in .* of .*, so no block can be pruned by itself"):
        prune(Model(), sc.in_blocks(), pattern=sc.Channel(approximate=True), solver=sc.TopK(sc.magnitude()))
    with pytest.raises(SecateursError, match="needs the gradient of the loss, which no block has by itself"):
        prune(Model(), sc.in_blocks(), solver=sc.TopK(sc.taylor()))
    for criterion, what in (
        (sc.loss_without(), "the loss of"),
        (sc.block_influence(), "the streams of"),
        (sc.reap(), "the routers of"),
        (sc.synflow(), "what flows through"),
    ):
        with pytest.raises(SecateursError, match=f"needs {what} the whole network, which no block has by itself"):
            sc.in_blocks()(sc.find_sites(Model(), sc.Element(), task().example)).observing(criterion.needs, task())
    with pytest.raises(TaskError, match="give Task"):
        prune(Model(), sc.in_blocks(), task=sc.Task(torch.zeros(1, 4)))
    with pytest.raises(TaskError, match="the calibration loader is empty"):
        prune(Model(), sc.in_blocks(), task=sc.Task(torch.zeros(1, 4), calibration=[]))
    with pytest.raises(TaskError, match="the model rejects a calibration batch"):
        prune(Model(), sc.in_blocks(), task=sc.Task(torch.zeros(1, 4), calibration=[(torch.zeros(1, 5), None)]))


def test_methods_take_the_blocks_by_themselves() -> None:
    for method, walk in ((sc.methods.sparsegpt_, sc.in_order("layers.*")), (sc.methods.wanda_, sc.in_order("layers.*"))):
        model, other = Model(), Model()
        counting = Counting(model)
        masks = method(model, task(), sparsity=0.5, skip="first")
        assert counting.times["last"] <= 3
        pattern = sc.Element(within="row") if method is sc.methods.wanda_ else sc.Element()
        solver = sc.TopK(sc.magnitude(p=1) * sc.input_norm()) if method is sc.methods.wanda_ else sc.SparseGPT()
        expected = prune(other, walk, pattern=pattern, solver=solver, only="layers")
        assert same((model, masks), expected)


@contextmanager
def counted_products() -> Iterator[list[int]]:
    before, found = gram._products_of, [0]

    def products(rows: Tensor) -> Any:
        found[0] += 1
        return before(rows)

    gram._products_of = products
    try:
        yield found
    finally:
        gram._products_of = before


def test_layers_that_are_given_one_tensor_share_its_products() -> None:
    with counted_products() as count:
        model, _ = pruned("llama", sc.in_blocks())
    assert count[0] == 3 * len(LENGTHS) * 4 + len(LENGTHS)  # queries, keys and values; output; gate and up; down; and the head
    with counted_products() as count:  # what was written over since is another input

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.other(x.copy_(self.one(x)))

        torch.manual_seed(0)
        model = Twice()
        found = sc.observe(model, sc.find_sites(model, sc.Element(), only="*"), [gram.input_gram()], task())
    assert count[0] == 2 * 3
    assert not torch.equal(found["one.weight"][gram.input_gram()], found["other.weight"][gram.input_gram()])


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], dim=1)


def test_shared_products_add_up_apart() -> None:
    model, data = Beside(), task()
    found = sc.observe(model, sc.find_sites(model, sc.Element(), only="*"), [gram.input_gram()], data)
    rows = torch.cat([inputs for inputs, _ in data.calibration or ()])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    for name in ("one.weight", "other.weight"):
        assert torch.allclose(found[name][gram.input_gram()][0], rows.T @ rows / len(rows), atol=1e-5)
