"""Baselines: as many parameters as promised, they learn, they are saved and loaded, and what they cannot do they say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.comparing.baselines import made_anew
from secateurs.methods import dense_of_size_, memory_bounded_, random_start_, svd_, width_of_size
from secateurs.models import digits_cnn
from secateurs.tasks import digits
from secateurs.types import FileError, SecateursError


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def net(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 3))


def task() -> sc.Task:
    generator = torch.Generator().manual_seed(0)
    inputs, target = torch.randn(3, 8, 5, generator=generator), torch.randint(3, (3, 8), generator=generator)
    return sc.Task(inputs[0], train=list(zip(inputs, target, strict=True)), loss=nn.functional.cross_entropy)


def of_digits() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def test_each_meets_the_budget_and_learns_beside_a_pruned_network() -> None:
    torch.manual_seed(0)
    mine = sc.Recipe("mine", sc.Pruning(sc.Element(), sc.TopK(sc.magnitude()), cost=sc.params), epochs=2)
    beside = sc.baselines(epochs=2, of=mine, lr=0.02)
    done = sc.compare([mine, *beside], of_digits, digits(), keep=0.3, processes=1, optimizer=adam, show=False)
    rows = {row.recipe: row for row in done.rows}
    total = count(of_digits())
    assert len(rows) == 8 and total == 8970
    for name, row in rows.items():
        left, tuned = row.mean("parameters"), row.mean("tuned")
        assert left is not None and tuned is not None and left <= 0.3 * total, (name, left)
        assert tuned > 0.3, (name, tuned)  # chance is 0.1
    exact = {name: rows[name].mean("parameters") for name in ("mine", "random", "random start", "memory bounded")}
    assert set(exact.values()) == {int(0.3 * total)}, exact
    assert rows["Fastfood"].mean("parameters") == total - 2 * (64 * 64 - 3 * 64)
    assert all(rows[name].mean("parameters") > 0.27 * total for name in ("low rank", "merged", "dense, same size"))  # type: ignore[operator]


@pytest.mark.parametrize("keep", [0.35, 0.5, 0.7])
def test_low_rank_gives_the_budget_to_the_directions_that_hold_most(keep: float) -> None:
    """Against a naive search: no other direction that holds more for its weights, and none more that the budget bears."""
    torch.manual_seed(0)
    model = net(40)
    total = count(model)
    weights = {name: model.get_parameter(f"{name}.weight").detach().double() for name in ("0", "3", "5")}
    found = svd_(model, task(), keep=keep, weighted=False)
    assert found.parameters == (total, count(model)) and count(model) <= keep * total
    ends = {name: sum(weight.shape) for name, weight in weights.items()}
    worth = {
        name: (torch.linalg.svdvals(weight) ** 2 / weight.square().sum() / ends[name]).tolist() for name, weight in weights.items()
    }
    taken = {name: found.ranks.get(name, len(worth[name])) for name in worth}
    least = min(worth[name][taken[name] - 1] for name in worth if taken[name] > 1)
    left_out = [(worth[name][taken[name]], name) for name in worth if taken[name] < len(worth[name])]
    assert left_out and max(left_out)[0] <= least
    name = max(left_out)[1]
    more = min(weights[name].numel(), (taken[name] + 1) * ends[name]) - taken[name] * ends[name]
    assert count(model) + more > keep * total


def test_low_rank_says_what_it_can_do() -> None:
    model = net()
    with pytest.raises(SecateursError, match=r"total=0\.01 is 3 of \d+ parameters, .* ask for total=0\.\d+ or more"):
        svd_(model, task(), keep=0.01)
    assert count(model) == count(net())


def test_a_dense_network_of_the_size_is_saved_loaded_and_fresh(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, before = net(), count(net())
    old = model.get_parameter("0.weight").detach().clone()
    dense_of_size_(model, task(), keep=0.4, seed=3)
    assert 0.3 * before < count(model) <= 0.4 * before
    assert not any(bool((row == model.get_parameter("0.weight")).all(1).any()) for row in old)
    assert bool((model.get_parameter("1.weight") == 1).all()) and not model.get_parameter("1.bias").any()
    sc.save(model, tmp_path / "small.safetensors")
    again = sc.load(tmp_path / "small.safetensors", net)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    alike = net()
    alike.load_state_dict(net().state_dict())
    dense_of_size_(alike, task(), keep=0.4, seed=3)
    assert [p.shape for p in alike.parameters()] == [p.shape for p in model.parameters()]


def test_a_random_start_keeps_the_masks_and_nothing_else() -> None:
    torch.manual_seed(0)
    model, state = net(), torch.get_rng_state()
    old = model.get_parameter("0.weight").detach().clone()
    prune = lambda model, task: sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)  # noqa: E731
    state = torch.get_rng_state()
    masks = random_start_(model, task(), prune, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert masks is not None and masks.sparsity == 0.5
    weight = model.get_parameter("0.weight")
    assert bool(((weight == 0) == ~masks["0.weight"]).all())
    assert not bool(((weight == old) & (weight != 0)).any())
    alike = net()
    sc.restart_(alike, seed=1)
    assert torch.equal(weight, alike.get_parameter("0.weight") * masks["0.weight"])


def test_to_begin_anew_is_not_to_begin_as_once() -> None:
    """With the seed that the model was made with: a pruned network at its first weights is a lottery ticket, and no control."""
    torch.manual_seed(3)
    model = net()
    first = [parameter.detach().clone() for parameter in model.parameters() if parameter.ndim > 1]
    for fresh in (None, made_anew(net, 3)):
        sc.restart_(model, seed=3, fresh=fresh)
        assert not any(
            bool((one == other).any()) for one, other in zip(first, (p for p in model.parameters() if p.ndim > 1), strict=True)
        )


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.full((4,), 7.0)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


def test_a_model_that_does_not_say_how_it_begins_takes_it_from_a_fresh_one() -> None:
    model = Own()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(SecateursError, match=r"restart_: Own: it has parameters or buffers of its own, .*give fresh="):
        sc.restart_(model)
    with pytest.raises(SecateursError, match=r"scale is \(4,\), and fresh has none of that name"):
        sc.restart_(model, fresh=nn.Linear(4, 4))
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    fresh = Own()
    sc.restart_(model, fresh=fresh)
    assert all(torch.equal(one, other) for one, other in zip(fresh.parameters(), model.parameters(), strict=True))


def test_a_shrunk_model_takes_what_stayed_of_a_fresh_one() -> None:
    torch.manual_seed(0)
    model, fresh = net(), net()
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task())
    stays = [masks[f"{name}.weight"].flatten(1).any(1) for name in ("0", "3")]
    sc.shrink_(model, masks)
    sc.restart_(model, fresh=fresh)
    assert torch.equal(model[0].weight, fresh[0].weight[stays[0]])  # type: ignore[arg-type, index]
    assert torch.equal(model[3].weight, fresh[3].weight[stays[1]][:, stays[0]])  # type: ignore[arg-type, index]


# ---------------------------------------------------------------- memory bounded


def test_weights_may_come_back_until_they_may_not() -> None:
    torch.manual_seed(0)
    model, zeros = net(), []

    def look(run: Any) -> None:
        zeros.append(torch.cat([p.detach().flatten() == 0 for p in model.parameters() if p.ndim > 1]))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    hooks = [sc.hard_threshold(0.5, every=1, until=4), sc.Hook("look", stepped=look)]
    run = sc.train_(model, task(), optimizer, 6, hooks=hooks)
    assert all(int(each.sum()) == len(each) // 2 for each in zeros[:12])
    assert any(bool((one & ~other).any()) for one, other in pairwise(zeros[:12]))
    assert all(torch.equal(each, zeros[12]) for each in zeros[12:]) and run.masks.sparsity == 0.5


def stopping(after: int) -> sc.Hook:
    return sc.Hook("stop", epoch_end=lambda run: setattr(run, "stop", run.epoch + 1 == after))


def test_memory_bounded_training_goes_on_to_the_bit_and_leaves_earlier_masks(tmp_path: Path) -> None:
    states = []
    for stops in ((4,), (1, 4), (3, 4)):
        for until in stops:
            torch.manual_seed(0)
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            masks = sc.Masks({"0.weight": torch.arange(80).view(16, 5) % 3 > 0}, model)
            hooks = [sc.hard_threshold(0.6, every=2), stopping(until)]
            path = tmp_path / f"{stops[0]}.safetensors"
            run = sc.train_(model, task(), optimizer, 4, masks=masks, hooks=hooks, checkpoint=path)
        assert not model.get_parameter("0.weight")[torch.arange(80).view(16, 5) % 3 == 0].any()
        assert run.masks.sparsity == pytest.approx(0.6, abs=0.01)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], other[name]) for other in states[1:] for name in other)


def test_shrinking_towards_zero_ends_at_the_same_sparsity() -> None:
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = memory_bounded_(model, task(), optimizer, 4, sparsity=0.5, strength=0.05)
    zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1)
    assert run.masks.sparsity == 0.5 and zeros == 154
    with pytest.raises(SecateursError, match="until=1 must come before the last of 1 epochs"):
        memory_bounded_(model, task(), optimizer, 1, sparsity=0.5, strength=0.05)


def test_settings_that_make_no_sense() -> None:
    wrong: list[dict[str, Any]] = [{"sparsity": 1.0}, {"sparsity": 0.5, "every": 0}, {"sparsity": 0.5, "until": 0}]
    for options in wrong:
        with pytest.raises(SecateursError, match=r"sparsity must be in \(0, 1\), the others at least 1"):
            sc.hard_threshold(**options)
    with pytest.raises(FileError, match="no state of this hook"):
        sc.hard_threshold(0.5).restore({"over": 3})
    with pytest.raises(SecateursError, match="names nothing, but there are low rank, merged"):
        sc.baselines(only="nothing")
    rounds = sc.Recipe("r", sc.Pruning(sc.Element(), sc.TopK(sc.magnitude())), epochs=1, rounds=2)
    with pytest.raises(SecateursError, match=r"in 2 rounds it would prune what was begun anew"):
        sc.baselines(of=rounds)
    model = net()
    with pytest.raises(SecateursError, match="sparsity must be in"):
        memory_bounded_(model, task(), adam(model.parameters()), 1, sparsity=0)


def test_no_width_is_small_enough_for_hardly_any_parameters() -> None:
    with pytest.raises(
        SecateursError, match=r"^5 parameters are too few for a dense network of the same shape: at a width of 0\.01 it has \d+"
    ):
        width_of_size(lambda width: digits_cnn(width=width), 5)
