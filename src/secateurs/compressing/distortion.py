"""Levels that weigh what each number loses against the bits that it takes: as many zeros, and as few rare levels, as are worth it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.coding import Levels, bits_of, rate_distortion
from secateurs.coding.tensors import shape_of
from secateurs.compressing.bits import number_of
from secateurs.compressing.levelled import levelled
from secateurs.compressing.quantisers import Quantiser
from secateurs.compressing.share import QUANTISER, Found, found_levels, require_gradient, write_
from secateurs.compressing.shared import Shared
from secateurs.compressing.tied import Gradient
from secateurs.given import COUNT, NUMBER, Kind, require
from secateurs.masks import Masks
from secateurs.patterns import Selection
from secateurs.progress import tell, track
from secateurs.types import PlanError, SecateursError

IMPORTANCE = Kind(
    "tensors by parameter, as secateurs.compressing.importance(model, task) makes them",
    lambda value: isinstance(value, Mapping) and all(isinstance(each, Tensor) for each in value.values()),
)
MEASURE = Kind("a function of the model that gives a number, a loss say", callable)

_DAMPING = 1.0
_WIDER = 8.0
_MOST_WIDER = 12


def rate_distortion_(
    model: nn.Module,
    quantiser: Quantiser | Mapping[str, Quantiser],
    *,
    price: float,
    importance: Mapping[str, Tensor] | None = None,
    damping: float = _DAMPING,
    rounds: int = 2,
    masks: Masks | None = None,
    gradient: Gradient = "mean",
    only: Selection | None = None,
    skip: Selection | None = None,
    example: Any = None,
) -> Shared:
    """As `quantise_`, but each weight gets the level that costs least in squared error and bits together (DeepCABAC, 1907.11900).

    The quantiser makes the values: `uniform` or `k_means`, whose bits are the more worth trying the fewer bytes are wanted (of the pruned
    LeNet-300-100, 3 bits lost less in 14 kB than 5). Then each number, in the order in which it is coded, goes to the nearest of them, one
    or two nearer to zero, or zero: where ``importance`` × squared error + ``price`` × bits is least, bits being what the context coder
    would spend on it at that moment. ``price`` is what a bit may cost of squared error or, with importance, of twice the loss;
    `price_within` finds it for a number of bytes or a loss. ``importance``: parameter → tensor of its shape, as
    `secateurs.compressing.importance` tells; the mean of the layer's, times ``damping``, is added to each. Then each value becomes the
    mean of its members, by importance, or each scale the one with the least error; all that ``rounds`` times.

    Zeros that come of it are no masks. Values of `powers_of_two` stay. What is returned trains the values as that of `quantise_` does.
    Raises what `quantise_` raises, and `SecateursError` for a price or a damping below 0 and importance that does not fit.

    >>> _ = torch.manual_seed(0)
    >>> from secateurs.compressing import uniform
    >>> layer = nn.Linear(100, 100)
    >>> shared = rate_distortion_(layer, uniform(bits=6), price=1e-4)
    >>> bool((layer.weight == 0).float().mean() > 0.1), torch.equal(shared.levels["weight"].values(), layer.weight)
    (True, True)
    """
    who = "rate_distortion_"
    require(who, "quantiser", quantiser, QUANTISER)
    require(who, "price", price, NUMBER)
    require_gradient(who, gradient)
    if not (math.isfinite(price) and price >= 0):
        raise SecateursError(f"{who}: price={price}, what a bit may cost, must be at least 0")
    found, skipped = found_levels(who, model, quantiser, masks, only, skip, example)
    weighing = _Weighing.of(who, found, importance, damping, rounds)
    priced = {name: replace(each, levels=weighing.levels(name, price)) for name, each in found.items()}
    return write_(who, model, priced, skipped, lambda each: each.fixed(gradient))


def price_within(
    model: nn.Module,
    quantiser: Quantiser | Mapping[str, Quantiser],
    *,
    limit: float | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    most: float | None = None,
    tries: int = 10,
    importance: Mapping[str, Tensor] | None = None,
    damping: float = _DAMPING,
    rounds: int = 2,
    masks: Masks | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    example: Any = None,
    show: bool = True,
) -> float:
    """The price for `rate_distortion_`: the least with which levels and tables take at most ``limit`` bytes, or the highest with which
    ``measure(model)``, a loss say, is at most ``most``.

    Found by halving, between two prices of which one is enough and the other not, ``tries`` times; each trial quantises the whole model,
    and is told. Bytes are those that the context coder would take, tables beside. The other arguments must be those that
    `rate_distortion_` is then given. The model is left as it was.

    Raises `PlanError` where no price is low or high enough, `SecateursError` without limit and measure, or with both.

    >>> _ = torch.manual_seed(0)
    >>> from secateurs.compressing import uniform
    >>> layer = nn.Linear(100, 100)
    >>> price = price_within(layer, uniform(bits=6), limit=4_000, show=False)
    >>> 3_900 < coded_bytes(rate_distortion_(layer, uniform(bits=6), price=price).levels["weight"]) <= 4_000
    True
    """
    who = "price_within"
    if (limit is None) == (measure is None) or (measure is None) != (most is None):
        raise SecateursError(f"{who}: give limit=..., a number of bytes, or measure=... and most=..., what it may be")
    require(who, "quantiser", quantiser, QUANTISER)
    require(who, "tries", tries, COUNT)
    for argument, number in (("limit", limit), ("most", most)):
        if number is not None:
            require(who, argument, number, NUMBER)
    if measure is not None:
        require(who, "measure", measure, MEASURE)
    found, _ = found_levels(who, model, quantiser, masks, only, skip, example, told=False)
    weighing = _Weighing.of(who, found, importance, damping, rounds)

    def good(price: float) -> bool:
        levels = {name: weighing.levels(name, price) for name in found}
        size = sum(map(coded_bytes, levels.values()))
        value = None if measure is None else _measured(model, found, levels, measure)
        tell(f"price {price:.4g}: {size:,} bytes{'' if value is None else f', {value:.5g}'}", show)
        return size <= (limit or 0.0) if value is None else value <= (0.0 if most is None else most)

    cheap, dear = _bracket(who, weighing.typical(), good, rising=measure is None)
    with closing(track(range(tries if cheap < dear else 0), "price of a bit", show=show)) as steps:
        for _ in steps:
            middle = math.sqrt(cheap * dear)
            if good(middle) is (measure is None):
                dear = middle
            else:
                cheap = middle
    return dear if measure is None else cheap


def _bracket(who: str, price: float, good: Callable[[float], bool], rising: bool) -> tuple[float, float]:
    """A lower and a higher price between which it changes whether one is good: from bad to good where that is ``rising``."""
    first = good(price)
    wider = _WIDER if first is not rising else 1 / _WIDER
    for _ in range(_MOST_WIDER):
        other = price * wider
        if good(other) is not first:
            return min(price, other), max(price, other)
        price = other
    if first:
        return price, price
    most_words = "the tables alone take more: raise limit=, or take a quantiser with fewer values, or skip= layers"
    what = most_words if rising else "it is more without any price: take a quantiser with more bits"
    raise PlanError(f"{who}: no price is enough: {what}")


@torch.no_grad()
def _measured(
    model: nn.Module, found: Mapping[str, Found], levels: Mapping[str, Levels], measure: Callable[[nn.Module], float]
) -> float:
    before = {name: each.weight.detach().clone() for name, each in found.items()}
    try:
        for name, each in found.items():
            each.weight.copy_(levels[name].values())
        return number_of("price_within", measure(model))
    finally:
        for name, each in found.items():
            each.weight.copy_(before[name])


# ---------------------------------------------------------------- one weight


def coded_bytes(levels: Levels) -> int:
    """The bytes that the context coder would take for levels, and for their table or scale as it is.

    >>> coded_bytes(Levels(torch.zeros(64, 64, dtype=torch.int32), scale=torch.ones(1)))
    5
    """
    shape = shape_of(levels.numbers.shape)
    bits = bits_of(np.ascontiguousarray(levels.numbers.cpu().numpy()).reshape(shape)) if levels.numbers.numel() else 0.0
    values = 32 * levels.runs if levels.table is None else 8 * levels.table.element_size() * int((levels.table != 0).sum())
    return math.ceil((bits + values) / 8)


@dataclass(frozen=True)
class _Weighing:
    """Weights and the levels of a quantiser, and what the squared error of each number counts."""

    found: Mapping[str, Found]
    counts: Mapping[str, Tensor]
    rounds: int

    @staticmethod
    def of(who: str, found: Mapping[str, Found], importance: Mapping[str, Tensor] | None, damping: float, rounds: int) -> _Weighing:
        if importance is not None:
            require(who, "importance", importance, IMPORTANCE)
        require(who, "rounds", rounds, COUNT)
        require(who, "damping", damping, NUMBER)
        if rounds < 1 or not damping >= 0:
            raise SecateursError(f"{who}: rounds={rounds} must be at least 1, and damping={damping} at least 0")
        counts = dict[str, Tensor]()
        for name, each in found.items() if importance is not None else ():
            told = (importance or {}).get(name)
            if told is None or told.shape != each.weight.shape or not bool((torch.isfinite(told) & (told >= 0)).all()):
                raise SecateursError(
                    f"{who}: importance must tell a number of at least 0 for each of {name}, a tensor of shape "
                    f"{tuple(each.weight.shape)}, as secateurs.compressing.importance(model, task) does"
                )
            counts[name] = told.double() + damping * told.double().mean() if told.numel() else told.double()
        return _Weighing(found, counts, rounds)

    def typical(self) -> float:
        """A price from which to look for others: a small part of what a weight's own removal costs on average."""
        total = numbers = 0.0
        for name, each in self.found.items():
            kept = each.kept()
            total += float((kept.square() * self._counts(name, kept)).sum())
            numbers += float(torch.count_nonzero(kept))
        return max(1e-2 * total / max(1.0, numbers), 1e-30)

    def levels(self, name: str, price: float) -> Levels:
        """Those of one weight at a price."""
        levels, kept = self.found[name].levels, self.found[name].kept().cpu()
        for _ in range(self.rounds if kept.numel() else 0):
            levels = self._refitted(name, kept, self._chosen(name, kept, levels, price))
        return levels

    def _counts(self, name: str, like: Tensor) -> Tensor:
        return self.counts[name].to(like.device) if name in self.counts else torch.ones_like(like)

    def _chosen(self, name: str, kept: Tensor, levels: Levels, price: float) -> Levels:
        values = kept.float().reshape(shape_of(kept.shape)).contiguous().numpy()
        counts = self._counts(name, kept).float().reshape(values.shape).contiguous().numpy() if name in self.counts else None
        if levels.table is None:
            assert levels.scale is not None
            most = max(1, int(levels.numbers.abs().max()))
            numbers = rate_distortion(values, scale=levels.scale.cpu().numpy(), most=most, price=price, weights=counts)
        else:
            numbers = rate_distortion(values, _ascending(levels).numpy(), levels.lowest, price=price, weights=counts)
        return replace(levels, numbers=torch.from_numpy(numbers).reshape(kept.shape))

    def _refitted(self, name: str, kept: Tensor, levels: Levels) -> Levels:
        """The same numbers, with the values that lose least."""
        if not self.found[name].quantiser.trained:
            return levels
        rows, numbers = kept.reshape(levels.runs, -1), levels.numbers.reshape(levels.runs, -1).long()
        counts = self._counts(name, kept).reshape(rows.shape)
        if levels.table is None:
            assert levels.scale is not None
            sizes = (counts * numbers.double().square()).sum(1)
            scale = (counts * rows * numbers).sum(1) / torch.where(sizes > 0, sizes, 1)
            return replace(levels, scale=torch.where((sizes > 0) & (scale > 0), scale.float(), levels.scale.cpu()))
        places, table = numbers - levels.lowest, levels.table.double().cpu()
        sums, sizes = (torch.zeros_like(table).scatter_add_(1, places, each) for each in (counts * rows, counts))
        fitted = torch.where(sizes > 0, sums / torch.where(sizes > 0, sizes, 1), table)
        return levelled(places, fitted.to(levels.dtype), kept.shape, zero=-levels.lowest)


def _ascending(levels: Levels) -> Tensor:
    """The table in float32, where what a row does not use repeats its outermost values."""
    assert levels.table is not None
    table = levels.table.float().cpu()
    below, above = table[:, : -levels.lowest], table[:, -levels.lowest :]
    upwards = above.cummax(1).values
    return torch.cat([-(-below.flip(1)).cummax(1).values.flip(1), upwards], 1) if below.shape[1] else upwards
