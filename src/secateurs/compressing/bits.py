"""How many bits each layer gets, so that all together fit and the least is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import closing

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.allocate.weighed import by_table
from secateurs.compressing.quantisers import Quantiser, k_means
from secateurs.compressing.share import Found, found_levels
from secateurs.compressing.shared import Size
from secateurs.evidence import observe, squared_gradient
from secateurs.given import NUMBER, TASK, Kind, require
from secateurs.masks import Masks
from secateurs.patterns import Element, Selection, find_sites
from secateurs.progress import track
from secateurs.ranks import whole
from secateurs.types import NonFiniteError, PlanError, SecateursError, Task

BITS = Kind(
    "numbers of bits to choose from, for example (2, 3, 4)",
    lambda value: isinstance(value, Iterable) and not isinstance(value, str),
)

_STATES = 20_000


def importance(model: nn.Module, task: Task, *, only: Selection | None = None, skip: Selection | None = None) -> dict[str, Tensor]:
    """How much the squared error of each number of each weight counts: the mean over the calibration batches of its squared gradient.

    With batches of one sample it is the diagonal of the empirical Fisher information, and half of the sum of importance times squared
    error tells the rise of the loss of a trained network to second order. Parameter → tensor of its shape. Raises what `observe` raises.

    >>> task = Task(torch.zeros(1, 2), train=[(torch.ones(1, 2), torch.zeros(1, 1))], loss=lambda output, target: output.sum())
    >>> importance(nn.Linear(2, 1), task)
    {'weight': tensor([[1., 1.]])}
    """
    require("importance", "task", task, TASK)
    sites, statistic = find_sites(model, Element(), task.example, only=only, skip=skip), squared_gradient()
    stats, found = observe(model, sites, [statistic], task), dict[str, Tensor]()
    for site in sites:
        member = site.members[0]
        found[member.parameter] = torch.empty(member.weight.shape, device=member.weight.device)
        view = member.canonical(found[member.parameter])
        view.copy_(whole(stats[member.parameter][statistic]).expand(view.shape))
    return found


def bits_within(
    model: nn.Module,
    limit: float,
    task: Task | None = None,
    *,
    bits: Iterable[int] = range(1, 9),
    quantiser: Callable[[int], Quantiser] | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    masks: Masks | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    show: bool = True,
) -> dict[str, int]:
    """The numbers of bits of each weight with which all take at most ``limit`` bytes and the least is lost: what `share_` takes as
    ``bits``.

    What a weight takes is estimated: the zeroth-order entropy of its levels, and its table (`Size`). What is lost is the sum over weights
    of their squared error, each number's by its `importance`, for which the ``task`` is needed; without one all count the same. Or
    ``measure(model)``, a loss that is asked for with each weight alone at each number of bits, and counts as it rises from the least.
    ``quantiser(bits)`` makes the quantiser, by default `k_means`. The choice is the best of all by dynamic programming (`dynamic`). The
    model is left as it was.

    Raises `PlanError` where the fewest bits everywhere take more than the limit.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2))
    >>> with torch.no_grad():
    ...     _ = model[2].weight.mul_(10)  # its errors are ten times as large
    >>> bits_within(model, limit=450)
    {'0.weight': 2, '2.weight': 5}
    """
    require("bits_within", "limit", limit, NUMBER)
    require("bits_within", "bits", bits, BITS)
    numbers = sorted(set(bits))
    if not numbers:
        raise SecateursError("bits_within: bits= names no number of bits to choose from")
    make = quantiser or (lambda each: k_means(bits=each))
    weighs = {} if task is None or measure is not None else importance(model, task, only=only, skip=skip)
    lost, sizes = dict[str, list[float]](), dict[str, list[float]]()
    with closing(track(numbers, "bits of each layer", show=show)) as each_number:
        for number in each_number:
            found, _ = found_levels("bits_within", model, make(number), masks, only, skip, None, told=False)
            for name, each in found.items():
                loss = _error(each, weighs.get(name)) if measure is None else _measured(model, each, measure)
                lost.setdefault(name, []).append(loss)
                sizes.setdefault(name, []).append(float(Size.of(each.levels).bytes))
    choice = by_table(
        [np.array(each) - min(each) for each in lost.values()],
        [np.array(each)[:, None] for each in sizes.values()],
        np.array([float(limit)]),
        _STATES,
    )
    if choice is None:
        least = sum(min(each) for each in sizes.values())
        raise PlanError(
            f"bits_within: limit={limit:,.0f} bytes cannot be met: with {numbers[0]} bits everywhere it is {least:,.0f}; raise the "
            "limit, prune more, or leave layers out with skip="
        )
    return {name: numbers[place] for name, place in zip(lost, choice, strict=True)}


def _error(found: Found, weighs: Tensor | None) -> float:
    error = (found.levels.values().double() - found.kept()).square()
    return float((error if weighs is None else error * weighs.to(error.device)).sum())


def number_of(who: str, measured: float) -> float:
    """What was measured of a model, as a number; raises `NonFiniteError` where it is NaN, which is neither less nor more than any other."""
    number = float(measured)
    if math.isnan(number):
        raise NonFiniteError(f"{who}: measure(model) gave NaN; have it give a number, which may be infinite")
    return number


@torch.no_grad()
def _measured(model: nn.Module, found: Found, measure: Callable[[nn.Module], float]) -> float:
    """The loss with one weight on its levels."""
    before = found.weight.detach().clone()
    try:
        found.weight.copy_(found.levels.values())
        return number_of("bits_within", measure(model))
    finally:
        found.weight.copy_(before)
