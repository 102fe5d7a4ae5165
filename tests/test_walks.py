"""Products of inputs, and pruning one site after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateurs as sc
from secateurs.evidence import input_gram, input_norm, observe
from secateurs.patterns import find_sites
from secateurs.types import PlanError, SecateursError, Site, Sites, Solution, Task

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(4, 3), (5, 4)),
    (nn.Linear(4, 3), (2, 3, 4)),
    (nn.Conv1d(2, 3, 3, padding=1, stride=2), (2, 2, 9)),
    (nn.Conv2d(4, 6, (2, 3), padding=(1, 0), dilation=(1, 2), groups=2), (3, 4, 6, 8)),
    (nn.Conv2d(4, 4, 3, groups=4, padding="same"), (2, 4, 5, 5)),
    (nn.Conv2d(3, 2, 3, padding=2, padding_mode="reflect"), (2, 3, 5, 6)),
    (nn.Conv3d(2, 2, 2, padding_mode="circular", padding=1), (2, 2, 3, 3, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))
def test_the_gram_matrix_tells_what_any_weights_answer(layer, shape):
    """The mean square of a layer's answers with any weights, and their means, from the products of the inputs alone."""
    inputs, weight = torch.randn(shape), torch.randn_like(layer.weight)
    (site,) = find_sites(layer, sc.Element(), only="*")
    stats = observe(layer, [site], [input_gram()], Task(None, calibration=[(part, None) for part in inputs.split(1)]))
    gram = stats[site.members[0].parameter][input_gram()].double()
    assert torch.allclose(gram, gram.transpose(1, 2)) and torch.allclose(gram[:, -1, -1], torch.ones(()).double())
    with torch.no_grad():
        layer.weight.copy_(weight)
        answers = layer(inputs).double()
    out = answers.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
    rows = site.members[0].canonical(weight).flatten(2).double()
    bias = layer.bias.detach().view(rows.shape[0], -1, 1).double()
    whole = torch.cat([rows, bias], dim=2)
    squares = torch.einsum("goi,gij,goj->go", whole, gram.expand(rows.shape[0], -1, -1), whole).flatten()
    assert torch.allclose(squares, out.square().mean(1), rtol=1e-4)
    assert torch.allclose((whole @ gram.expand(rows.shape[0], -1, -1)[:, :, -1:]).flatten(), out.mean(1), rtol=1e-4, atol=1e-6)


def test_inputs_that_are_no_patches_are_refused():
    for layer, said in (
        (nn.ConvTranspose2d(2, 3, 3), "inputs of a transposed convolution"),
        (nn.Embedding(5, 3), "cannot be observed"),
    ):
        with pytest.raises(SecateursError, match=said):
            observe(
                layer, find_sites(layer, sc.Element(), only="*"), [input_gram()], Task(None, calibration=[torch.zeros(1, 2, 4, 4)])
            )


class Watching:
    """Chooses by size, notes the norms that each site was observed with, and which sites together, and may fail."""

    needs = (input_norm(),)

    def __init__(self, fail_at: str = "", factor: float = 1.0) -> None:
        self.norms: dict[str, Tensor] = {}
        self.together: list[set[str]] = []
        self.fail_at, self.factor = fail_at, factor

    def scores(self, sites: Iterable[Site], stats: Any) -> Iterator[Tensor]:
        return sc.TopK(sc.magnitude()).scores(sites, stats)

    def __call__(self, site: Site, kept: int, stats: Any) -> Solution:
        if site.name == self.fail_at:
            raise KeyboardInterrupt
        self.norms[site.name] = stats[site.members[0].parameter][self.needs[0]]
        if set(stats) not in self.together:
            self.together.append(set(stats))
        weights = {site.members[0].parameter: site.members[0].weight.detach() * self.factor} if self.factor != 1 else {}
        return Solution(sc.TopK(sc.magnitude())(site, kept, stats).kept, weights)


def net() -> tuple[nn.Module, Task]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 3))
    return model, Task(torch.randn(1, 6), calibration=[(torch.randn(16, 6), None)])


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_each_site_sees_what_those_before_it_became(factor):
    model, task = net()
    solver = Watching(factor=factor)
    masks = sc.prune_(model, sc.Element(), solver, sc.uniform(sparsity=0.5), task, walk=sc.in_order())
    assert len(solver.together) == 4 and all(len(each) == 1 for each in solver.together)
    hidden = model[1](model[0](task.calibration[0][0]))
    assert torch.allclose(solver.norms["2.0"].flatten(), hidden.norm(dim=0), rtol=1e-5)
    deeper = model[2][1](model[2][0](hidden))
    assert torch.allclose(solver.norms["2.2"].flatten(), deeper.norm(dim=0), rtol=1e-5)
    assert abs(masks.sparsity - 0.5) < 0.01
    model, task = net()
    at_once = Watching(factor=factor)
    sc.prune_(model, sc.Element(), at_once, sc.uniform(sparsity=0.5), task)
    assert len(at_once.together) == 1 and not torch.allclose(at_once.norms["2.2"], solver.norms["2.2"])


def test_blocks_go_together():
    model, task = net()
    solver = Watching()
    sc.prune_(model, sc.Element(), solver, sc.uniform(sparsity=0.5), task, walk=sc.in_order("2"))
    assert solver.together == [{"0.weight"}, {"2.0.weight", "2.2.weight"}, {"3.weight"}]


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_what_is_interrupted_half_way_leaves_nothing(factor):
    model, task = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        sc.prune_(model, sc.Element(), Watching("2.2", factor), sc.uniform(sparsity=0.5), task, walk=sc.in_order())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_coupled_sites_go_in_order_too():
    model, task = net()
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.activation()), sc.uniform(sparsity=0.5), task, walk=sc.in_order())
    expected = model(task.example)
    assert not sc.shrink_(model, masks).skipped and torch.allclose(model(task.example), expected, atol=1e-6)


def test_what_does_not_fit_a_walk_is_told():
    model, task = net()
    with pytest.raises(PlanError, match="compares the scores of all sites, which are not there"):
        sc.prune_(model, sc.Element(), Watching(), sc.global_threshold(sparsity=0.5), task, walk=sc.in_order())
    with pytest.raises(SecateursError, match="walk must give every site once"):
        sc.prune_(model, sc.Element(), Watching(), sc.uniform(sparsity=0.5), task, walk=lambda sites: [_first(sites)])
    with pytest.raises(SecateursError, match="in_order: blocks is 3, but must be names"):
        sc.in_order(3)  # type: ignore[arg-type]
    assert functional.relu(model[0].weight).sum() > 0


def _first(sites: Sites) -> Sites:
    from dataclasses import replace

    return replace(sites, found=sites.found[:1])
