"""What loaders give, and what a model gets of it: one way for observing, training and evaluating."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from secateurs.batch import split
from secateurs.evidence import input_norm, observe
from secateurs.patterns import Element, find_sites
from secateurs.recover import evaluate, train_
from secateurs.types import Hook, Task, TaskError


class Words(nn.Module):
    """A language model as Hugging Face writes one: it makes its own loss where it is given labels."""

    @dataclass
    class Output:
        logits: Tensor
        loss: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(self.embed(input_ids))
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return self.Output(logits, loss)


IDS = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(0))
ALL = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}


def norms(model: nn.Module, batch) -> Tensor:
    statistic, sites = input_norm(), find_sites(model, Element())
    return observe(model, sites, [statistic], Task(example=None, calibration=[batch]))[sites[-1].members[0].parameter][statistic]


@pytest.mark.parametrize("keys", [["input_ids"], ["input_ids", "attention_mask"], list(ALL)])
def test_a_mapping_gives_the_model_its_arguments(keys):
    model = Words()
    assert norms(model, {key: ALL[key] for key in keys}).equal(norms(model, (IDS, None)))


def test_what_the_model_has_no_argument_for_stays_behind_and_is_the_target_where_it_is_alone():
    inputs, target = split(nn.Linear(2, 1), Task(None), {"input": torch.ones(2), "answer": 3})
    assert list(inputs) == ["input"]
    assert target == 3
    inputs, target = split(Words(), Task(None), ALL | {"id": 7})
    assert list(inputs) == list(ALL)
    assert target.equal(IDS)


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager"), torch.optim.swa_utils.AveragedModel])
def test_arguments_are_those_of_the_model_within_a_wrapper(wrap):
    assert list(split(wrap(Words()), Task(None), ALL | {"id": 7})[0]) == list(ALL)


def test_a_model_that_takes_anything_gets_everything():
    class Any(nn.Module):
        def forward(self, **batch):
            return batch

    assert list(split(Any(), Task(None), ALL)[0]) == list(ALL)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_tensor_is_inputs_and_never_taken_apart_row_by_row(rows):
    model, batch = nn.Linear(4, 2), torch.arange(4.0 * rows).view(rows, 4)
    assert norms(model, batch).equal(norms(model, (batch, None)))
    assert norms(model, [batch]).equal(norms(model, (batch, None)))


@pytest.mark.parametrize("batch", [(IDS, IDS, IDS), "text", (1,), 3.0, {"pixels": IDS}, {}])
def test_what_cannot_be_told_apart_is_refused_and_names_the_way_out(batch):
    with pytest.raises(TaskError, match=r"unpack="):
        split(Words(), Task(None), batch)


@pytest.mark.parametrize("batch", [IDS, [IDS], {"input_ids": IDS}, {"input_ids": IDS, "one": 1, "two": 2}])
def test_without_a_target_there_is_nothing_to_score(batch):
    def metric(output, target):
        raise AssertionError

    with pytest.raises(TaskError, match=r"Task\.metric needs .*unpack="):
        evaluate(Words(), Task(None, metric=metric), [batch])
    model = Words()
    with pytest.raises(TaskError, match=r"Task\.loss needs .*unpack="):
        train_(model, Task(None, train=[batch], loss=metric), torch.optim.SGD(model.parameters(), lr=0.1), 1)


def test_the_models_own_loss_is_trained_with_where_the_task_has_none():
    model = Words()
    run = train_(model, Task(None, train=[ALL]), torch.optim.SGD(model.parameters(), lr=0.5), 5)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    expected = nn.functional.cross_entropy(model(IDS).logits.flatten(0, 1), IDS.flatten())
    assert expected.item() < run.history[-1]["loss"]


def test_a_model_without_a_loss_is_refused_before_anything_happens():
    def never(run):
        raise AssertionError

    model = Words()
    with pytest.raises(TaskError, match=r"there is no loss .*Task\(loss=\.\.\.\).*output\.loss"):
        train_(model, Task(None, train=[IDS]), torch.optim.SGD(model.parameters(), lr=0.5), 1, hooks=[Hook("never", start=never)])


def test_labels_are_the_target_of_a_metric_too():
    task = Task(None, metric=lambda output, target: (output.logits.argmax(-1) == target).float().mean())
    model = Words()
    assert evaluate(model, task, [ALL]) == pytest.approx(float((model(IDS).logits.argmax(-1) == IDS).float().mean()))


def test_unpack_decides_and_must_return_a_pair():
    assert split(Words(), Task(None, unpack=lambda batch: (batch[2], batch[0])), (1, 2, 3)) == (3, 1)
    with pytest.raises(TaskError, match=r"Task\.unpack must return \(inputs, target\), but of a tuple of 3 .* it made a Tensor"):
        split(Words(), Task(None, unpack=lambda batch: batch[0]), (IDS, IDS, IDS))


def test_images_of_another_size_are_told_beside_the_example():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    example, other = torch.zeros(1, 4, 4), torch.zeros(3, 5, 5)
    loss, optimizer = nn.functional.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1)
    message = r"the model rejects {} \(tensor \(3, 5, 5\) .*the example that it takes is tensor \(1, 4, 4\)"
    with pytest.raises(TaskError, match=message.format("a training batch")):
        train_(model, Task(example, train=[(other, torch.zeros(3).long())], loss=loss), optimizer, 1)
    with pytest.raises(TaskError, match=message.format("an evaluation batch")):
        evaluate(model, Task(example, metric=loss), [(other, torch.zeros(3).long())])
    with pytest.raises(TaskError, match=message.format("a calibration batch")):
        observe(model, find_sites(model, Element()), [input_norm()], Task(example, calibration=[other]))
