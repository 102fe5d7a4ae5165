"""Rewinding to weights that lie in a file, and prunings that would never happen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import secateurs as sc


def trained(model: nn.Module, task: sc.Task, epochs: int, **options: object) -> sc.Run:
    return sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.05), epochs, **options)


@pytest.mark.parametrize("kind", ["checkpoint", "saved"])
def test_what_is_left_goes_back_to_the_weights_of_a_file(
    kind: str, small_cnn: nn.Module, cnn_task: sc.Task, tmp_path: Path
) -> None:
    path = tmp_path / "early.safetensors"
    if kind == "checkpoint":
        trained(small_cnn, cnn_task, 1, checkpoint=path)
    else:
        trained(small_cnn, cnn_task, 1)
        sc.save(small_cnn, path)
    early = {name: tensor.clone() for name, tensor in small_cnn.state_dict().items()}
    trained(small_cnn, cnn_task, 2)
    masks = sc.prune_(small_cnn, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), cnn_task)
    sc.rewind_(small_cnn, path, masks)
    for name, tensor in small_cnn.state_dict().items():
        expected = torch.where(masks[name], early[name], 0) if name in masks else early[name]
        assert torch.equal(tensor, expected)


def test_gradual_rewinds_to_a_file_at_each_pruning(small_cnn: nn.Module, cnn_task: sc.Task, tmp_path: Path) -> None:
    path = tmp_path / "early.safetensors"
    sc.save(small_cnn, path)
    early = small_cnn[0].weight.detach().clone()
    seen: list[torch.Tensor] = []
    prune = sc.gradual(
        sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.linear(0.5), begin=1, rewind="weights", rewind_to=path, dead=False
    )
    watch = sc.Hook("watch", epoch=lambda run: seen.append(run.model[0].weight.detach().clone()))
    run = trained(small_cnn, cnn_task, 3, hooks=[prune, watch])
    assert torch.equal(seen[0], early)
    for later in seen[1:]:
        kept = later != 0
        assert torch.equal(later[kept], early[kept])
    assert run.masks.sparsity == pytest.approx(0.5, abs=1e-3)


def test_a_file_of_another_model_is_refused_and_nothing_changes(small_cnn: nn.Module, cnn_task: sc.Task, tmp_path: Path) -> None:
    other = nn.Linear(3, 2)
    batch = [(torch.ones(4, 3), torch.zeros(4, 2))]
    task = sc.Task(torch.zeros(1, 3), train=batch, loss=nn.functional.mse_loss)
    trained(other, task, 1, checkpoint=tmp_path / "other.safetensors")
    before = {name: tensor.clone() for name, tensor in small_cnn.state_dict().items()}
    with pytest.raises(sc.FileError, match=r"belongs to another model: they differ in 0\.weight"):
        sc.rewind_(small_cnn, tmp_path / "other.safetensors", sc.Masks({}, small_cnn))
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_cnn.state_dict().items())


def test_training_that_ends_before_the_first_pruning_is_an_error(small_cnn: nn.Module, cnn_task: sc.Task) -> None:
    prune = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.linear(0.5), begin=3)
    with pytest.raises(sc.SecateursError, match="first pruning is at epoch 3, but training ends after 3"):
        trained(small_cnn, cnn_task, 3, hooks=[prune])
