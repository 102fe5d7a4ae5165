"""Blocks trained one after the other to give what they gave before the pruning: less error, the same zeros, the parts by structure."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from language_models import FAMILIES, family

import secateurs as sc
from secateurs.graph import blocks_of, halves_of, trace_of
from secateurs.recover import reconstruct
from secateurs.types import FileError, NonFiniteError, SecateursError, TaskError

WHOLE = ("phi", "gpt_neox", "falcon", "falcon_alibi")  # attention and feed-forward side by side


QUICK = ("llama", "mixtral", "gpt2", "falcon_alibi", "bert", "t5")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES])
def test_blocks_are_cut_at_their_residual_sums(name):
    model, example, _ = family(name)
    trace = trace_of(model, example)
    for stack in blocks_of(model, example).stacks:
        for block in stack:
            halves = halves_of(trace, block)
            assert len(halves) == (1 if name in WHOLE else 3 if "decoder.block" in block else 2), block
            names = [each for half in halves for each in half.parameters]
            assert sorted(names) == sorted({each for each in trace.parameters if each.startswith(f"{block}.")})
            attends = [["att" in each.lower() or "qkv" in each.lower() for each in half.parameters] for half in halves]
            assert any(attends[0]) and (
                len(halves) == 1
                or all("norm" in n or "ln" in n for n, a in zip(halves[-1].parameters, attends[-1], strict=True) if a)
            )


class Around(nn.Module):
    """A block of other width, in which something goes round the sum."""

    def __init__(self, around: bool) -> None:
        super().__init__()
        self.fc, self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.skip = nn.Linear(3, 4) if around else None

    def forward(self, x: Tensor) -> Tensor:
        x, given = self.fc(x), x
        x = x + self.inner(x)
        return x + (self.last(x) if self.skip is None else self.skip(given))


@pytest.mark.parametrize("around", [False, True])
def test_a_block_of_other_width_is_cut_where_nothing_goes_round_the_sum_alone(around):
    trace = trace_of(nn.Sequential(Around(around)), torch.zeros(2, 3))
    assert [half.result and half.result.module for half in halves_of(trace, "0")] == (
        [None] if around else ["0.inner", "0.last", None]
    )


class Half(nn.Module):
    def __init__(self, width: int, after: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.tanh(self.first(self.norm(x))))


class Network(nn.Module):
    def __init__(self, width: int = 8, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(Half(width), Half(width)) for _ in range(blocks)))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def pruned(dtype: torch.dtype = torch.float32) -> tuple[Network, Network, sc.Task, sc.Masks, Tensor]:
    """A pruned network, as it was, batches to calibrate and one apart."""
    torch.manual_seed(0)
    model, data = Network().to(dtype), torch.randn(17, 32, 8, dtype=dtype)
    task = sc.Task(example=data[0], calibration=[(batch, None) for batch in data[1:]])
    dense = copy.deepcopy(model)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.6), task, only="blocks", skip="*norm*")
    return model, dense, task, masks, data[0]


def error(model: nn.Module, dense: nn.Module, data: Tensor) -> float:
    with torch.no_grad():
        return float((model(data) - dense(data)).float().square().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_answers_come_back_on_data_that_was_not_seen_and_masks_hold_to_the_bit(dtype):
    model, dense, task, masks, apart = pruned(dtype)
    zeros, before, head = (
        {name: mask.clone() for name, mask in masks.items()},
        error(model, dense, apart),
        copy.deepcopy(model.head),
    )
    found = sc.reconstruct_(model, dense, task, masks=masks, steps=40, lr=0.02)
    assert error(model, dense, apart) < before / 4
    assert [part.block for part in found] == [f"blocks.{number}" for number in (0, 0, 1, 1, 2, 2)]
    assert all(part.after < part.before for part in found)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        if name in zeros:
            assert torch.equal(masks[name], zeros[name]) and not parameter[~zeros[name]].any()
    assert torch.equal(model.head.weight, head.weight)


def test_training_is_adam_on_the_relative_error_of_each_half():
    """The first half of the first block, by a plain loop."""
    model, dense, task, masks, _ = pruned()
    plain = copy.deepcopy(model)
    sc.reconstruct_(model, dense, task, masks=masks, steps=5, lr=0.01, seed=3)
    half, goal = plain.blocks[0][0], dense.blocks[0][0]
    optimizer, order = torch.optim.Adam(half.parameters(), lr=0.01), random.Random(3).sample(range(14), 14)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 5)
        data = task.calibration[order.pop()][0]
        wanted = goal(data).detach()
        optimizer.zero_grad()
        ((half(data) - wanted).square().sum(1) / wanted.square().sum(1)).mean().backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in half.named_parameters():
                parameter *= masks.get(f"blocks.0.0.{name}", torch.ones(()))
    assert all(
        torch.allclose(one, other, atol=1e-6) for one, other in zip(model.blocks[0][0].parameters(), half.parameters(), strict=True)
    )


def test_a_block_is_given_what_those_before_it_make_by_then_and_aims_at_what_the_dense_ones_make():
    model, dense, task, masks, _ = pruned()
    plain = copy.deepcopy(model)
    found = sc.reconstruct_(model, dense, task, masks=masks, steps=20, lr=0.01)
    apart = [batch for batch, _ in task.calibration[-2:]]
    with torch.no_grad():
        begun = [
            reconstruct.relative_error(plain.blocks[1][0](model.blocks[0](x)), dense.blocks[1][0](dense.blocks[0](x)))
            for x in apart
        ]
        ended = [reconstruct.relative_error(model.blocks[:2](x), dense.blocks[:2](x)) for x in apart]
    assert found[2].before == pytest.approx(float(sum(begun)) / 2) and found[3].after == pytest.approx(float(sum(ended)) / 2)


def test_a_run_that_was_stopped_goes_on_behind_the_last_block_to_the_bit(tmp_path, monkeypatch):
    whole, dense, task, masks, _ = pruned()
    expected = sc.reconstruct_(whole, dense, task, masks=masks, steps=10, lr=0.01)
    model, dense, task, masks, _ = pruned()
    before, trained = copy.deepcopy(model.state_dict()), reconstruct.BlockTraining.part_

    def stopped(self, *given):
        if self.name == "blocks.2":
            raise KeyboardInterrupt
        return trained(self, *given)

    monkeypatch.setattr(reconstruct.BlockTraining, "part_", stopped)
    with pytest.raises(KeyboardInterrupt):
        sc.reconstruct_(model, dense, task, masks=masks, steps=10, lr=0.01, checkpoint=tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    monkeypatch.setattr(
        reconstruct.BlockTraining, "part_", lambda self, *given: trained(self, *given) if self.name == "blocks.2" else None
    )
    assert sc.reconstruct_(model, dense, task, masks=masks, steps=10, lr=0.01, checkpoint=tmp_path) == expected
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(FileError, match="belongs to another pruning: its weights is"):
        sc.reconstruct_(model, dense, task, masks=masks, steps=10, lr=0.01, checkpoint=tmp_path)


def test_what_gets_no_better_stays_and_what_needs_no_gradient_too():
    model, dense, task, masks, _ = pruned()
    before = copy.deepcopy(model.state_dict())
    found = sc.reconstruct_(model, dense, task, masks=masks, steps=2, lr=1e6)
    assert all(part.before == part.after for part in found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.blocks[1][0].first.weight.requires_grad_(True)
    sc.reconstruct_(model, dense, task, masks=masks, steps=5, lr=0.01)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["blocks.1.0.first.weight"]
    assert [name for name, each in model.named_parameters() if each.requires_grad] == changed


def test_stages_of_convolutions_by_name_and_whole_blocks():
    torch.manual_seed(0)
    stage = lambda width: nn.Sequential(nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())  # noqa: E731
    model, data = (
        nn.Sequential(nn.Sequential(stage(3), stage(8)), nn.Flatten(), nn.Linear(128, 2)).eval(),
        nn.functional.avg_pool2d(torch.randn(64, 3, 6, 6), 3, 1).view(4, 16, 3, 4, 4),
    )
    task, dense = sc.Task(example=data[0], calibration=[(batch, None) for batch in data]), copy.deepcopy(model)
    masks = sc.prune_(
        model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task, only="0", skip="*.1.*", recalibrate=False
    )
    first = sc.reconstruct_(model, dense, task, masks=masks, steps=60, lr=0.003, blocks="0")
    assert [(part.block, part.after < part.before) for part in first] == [("0.0", True), ("0.1", True)]
    assert torch.equal(model[0][0][1].running_mean, dense[0][0][1].running_mean)
    model, dense, task, masks, _ = pruned()
    assert len(sc.reconstruct_(model, dense, task, masks=masks, steps=1, halves=False)) == 3


def test_what_cannot_be_reconstructed_is_said():
    model, dense, task, masks, _ = pruned()
    call = lambda **named: sc.reconstruct_(**{"model": model, "dense": dense, "task": task, "masks": masks, **named})  # noqa: E731
    with pytest.raises(SecateursError, match=r"the dense model shares blocks\.0\.0\.first\.weight.*copy\.deepcopy\(model\)"):
        call(dense=model)
    with pytest.raises(SecateursError, match=r"has no parameter blocks\.0\.0\.first\.weight of the pruned one's shape"):
        call(dense=Network(width=4))
    with pytest.raises(SecateursError, match=r"steps=0, lr=0\.001: give at least one step"):
        call(steps=0)
    with pytest.raises(SecateursError, match="a learning rate above 0"):
        call(lr=-1.0)
    with pytest.raises(TaskError, match=r"give Task\(calibration=\.\.\.\)"):
        call(task=sc.Task(example=task.example))
    with pytest.raises(SecateursError, match="has no stack of blocks"):
        sc.reconstruct_(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)), sc.Task(example=torch.zeros(1, 2)))
    with pytest.raises(NonFiniteError, match=r"blocks\.0: what the pruned or the dense model gives there is NaN"):
        call(task=sc.Task(example=task.example, calibration=[(torch.full((2, 8), torch.inf), None)] * 2))


@pytest.mark.parametrize("name", ["mixtral", "bert"])
def test_decoders_and_encoders_learn_in_every_part(name):
    model, example, _ = family(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # so that blocks do something
    dense, task = copy.deepcopy(model), sc.Task(example, calibration=[example] * 2)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task, walk=sc.in_blocks())
    found = sc.reconstruct_(model, dense, task, masks=masks, steps=4, lr=3e-3)
    assert [part.block for part in found if part.after < part.before] == [part.block for part in found]
    assert all(not model.get_parameter(name)[~mask].any() for name, mask in masks.items())
