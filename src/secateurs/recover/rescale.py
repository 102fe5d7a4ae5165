"""One number for each unit that stays, so that the sums behind the layers are again what they were in the dense model."""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateurs.batch import run_batch, split
from secateurs.evidence import patches
from secateurs.forward import evaluating, modules_in
from secateurs.given import MASKS, MODEL, TASK, require
from secateurs.graph import SAME_NUMBERS, Seen, Trace, seen, summands
from secateurs.masks import Masks
from secateurs.patterns import Channel, Selection, find_sites, weight_of
from secateurs.progress import track
from secateurs.recover.biases import require_beside
from secateurs.solve import scales
from secateurs.tried import taken_back_on_error
from secateurs.types import Member, Pattern, SecateursError, Site, Task, TaskError
from secateurs.watch import cut_short, until_given

_LARGEST = 10.0
"""No unit is to count more than so many times: where a fit says so, its data are too few (as in the paper's code)."""


def rescale_(
    model: nn.Module,
    dense: nn.Module,
    task: Task,
    masks: Masks,
    *,
    damping: float = 1.0,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> None:
    """Multiply each head, unit or channel that stays by a number, folded into the linear layer or convolution that reads it, layer after
    layer in the order of the pass (2204.09656: mask tuning; there of transformers).

    The numbers of a layer are those of least squares: with what the pruned model gives it by then, the residual sum behind it (its
    answer, where that is added to nothing as it is) is to be that of the ``dense`` model, a copy made before the pruning; so it also
    makes up for what those before it lost. ``damping``, a part of the mean square of what the units add, holds the numbers near 1. Where
    one would be beyond ±10 all of its site stay 1, with a warning. ``pattern``, ``only`` and ``skip`` are those of the pruning. After an
    error the model is as it was.

    Raises `SecateursError` where units are not read by one linear layer or convolution without groups, `TaskError` where there are no
    batches.

    >>> import copy
    >>> from secateurs import TopK, magnitude, prune_, uniform
    >>> _ = torch.manual_seed(0)
    >>> model, data = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(256, 4)
    >>> dense, task = copy.deepcopy(model), Task(data, calibration=[(data, None)])
    >>> masks = prune_(model, Channel(), TopK(magnitude()), uniform(sparsity=0.25), task)
    >>> pruned = (model(data) - dense(data)).square().mean()
    >>> rescale_(model, dense, task, masks)
    >>> bool((model(data) - dense(data)).square().mean() < pruned)
    True
    """
    for name, value, kind in (("model", model, MODEL), ("dense", dense, MODEL), ("task", task, TASK), ("masks", masks, MASKS)):
        require("rescale_", name, value, kind)
    require_beside("rescale_", model, dense)
    sites = find_sites(model, pattern, task.example, only=only, skip=skip, masks=masks.named_as_in(model))
    places = [_place(site, sites.structure.trace) for site in sites]
    with taken_back_on_error(model), evaluating(model), evaluating(dense):
        for site, place in zip(sites, track(places, "rescaling"), strict=True):
            _rescale_(site, place, *_products(model, dense, task, place), damping)


@dataclass(frozen=True)
class _Place:
    """The layer that reads a site's units, which member that is, and where the sum behind it can be seen."""

    index: int
    reader: str
    behind: Seen | None


def _place(site: Site, trace: Trace) -> _Place:
    readers = [(index, member) for index, member in enumerate(site.members) if member.role == "consumer"]
    index, member = readers[0] if readers else (0, site.members[0])
    plain = isinstance(member.module, nn.Linear) or (isinstance(member.module, _ConvNd) and not member.module.transposed)
    if len(readers) != 1 or member.shape[0] != 1 or not (plain or member.weight.ndim == 2):
        raise SecateursError(
            f"{site.name}: rescale_ needs units that one linear layer or convolution (without groups) reads, as heads and inner units of "
            "transformers and channels within the blocks of convolutional networks are, and these are read by "
            f"{', '.join(each.parameter for _, each in readers) or 'none'}: skip it with skip=[{site.name!r}]"
        )
    reader = member.parameter.rpartition(".")[0]
    value = next((each.gives[0] for each in trace.passes if each.module == reader and each.gives), None)
    while value is not None and len(reading := trace.readers.get(value, [])) == 1:
        (op,) = reading
        if summands(op) is not None and op.argument("alpha", 1) == 1:
            return _Place(index, reader, seen(trace.passes, op.outputs[0]))
        value = op.outputs[0] if op.name in SAME_NUMBERS and op.outputs[0].shape == value.shape else None
    return _Place(index, reader, None)


def _shown(model: nn.Module, place: _Place, inputs: Any, example: Any) -> dict[str, Tensor]:
    """What the reader is given and answers for one batch, and the sum behind it, each ``(rows, features)``."""
    found: dict[str, Tensor] = {}

    def at_reader(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found["given"], found["answer"] = _given(module, args[0]), _rows(module, output)
        if place.behind is None:
            enough()

    with ExitStack() as stack:
        enough = stack.enter_context(cut_short())
        sums = [] if place.behind is None else stack.enter_context(until_given(model, place.behind.module, place.behind.number))
        stack.callback(modules_in(model, again=True)[place.reader].register_forward_hook(at_reader).remove)
        run_batch(model, inputs, "a calibration batch", example)
    reader = modules_in(model, again=True)[place.reader]
    return {**found, "sum": _rows(reader, sums[0]) if sums else found["answer"]}


def _given(module: nn.Module, values: Tensor) -> Tensor:
    """What a layer multiplies its weight with, ``(rows, features)``: of a convolution, the patches that it looks at."""
    return patches(module, values)[0] if isinstance(module, _ConvNd) else values.flatten(0, -2)


def _rows(module: nn.Module, answer: Tensor) -> Tensor:
    """What a layer answers, ``(rows, features)``."""
    if isinstance(module, _ConvNd):
        answer = answer.movedim(answer.ndim - 1 - len(module.kernel_size), -1)
    return answer.flatten(0, -2)


def _products(model: nn.Module, dense: nn.Module, task: Task, place: _Place) -> tuple[Tensor, Tensor]:
    """Σ x·xᵀ of what the reader is given, and Σ x·tᵀ with what it should answer, its bias included: both with a constant 1 behind x."""
    batches = task.calibration if task.calibration is not None else task.train
    gram = meeting = None
    for batch in batches if batches is not None else ():
        inputs, _ = split(model, task, batch)
        then, now = (_shown(each, place, inputs, task.example) for each in (dense, model))
        rows = torch.cat([now["given"], now["given"].new_ones(len(now["given"]), 1)], dim=1).double()
        wanted = (now["answer"] + then["sum"] - now["sum"]).double()
        gram = rows.T @ rows if gram is None else gram + rows.T @ rows
        meeting = rows.T @ wanted if meeting is None else meeting + rows.T @ wanted
    if gram is None or meeting is None:
        raise TaskError("rescale_ needs batches that show what the layers are given: give Task(calibration=...) or Task(train=...)")
    return gram, meeting


def _rescale_(site: Site, place: _Place, gram: Tensor, meeting: Tensor, damping: float) -> None:
    member = site.members[place.index]
    numbers = scales(site, place.index, gram, meeting, damping)
    if (largest := float(numbers.abs().max())) > _LARGEST:
        warnings.warn(
            f"{site.name}: its units stay as they are, as the fit would count one {largest:.0f} times: give more data, or a larger "
            "damping=",
            stacklevel=4,
        )
        return
    _multiply_(member, numbers)


@torch.no_grad()
def _multiply_(member: Member, numbers: Tensor) -> None:
    weight = weight_of(member).clone()
    view = member.cut(member.canonical(weight))
    view.mul_(numbers.to(view).reshape(-1, *(1,) * (view.ndim - 1)))
    member.weight.copy_(weight)
