"""Quantisers: which few values a weight is to have, and which of them each of its numbers gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from secateurs.coding import Levels
from secateurs.compressing.levelled import levelled
from secateurs.compressing.means import Start, means_of, nearest
from secateurs.given import COUNT, NUMBER, require
from secateurs.types import KindError, NonFiniteError, SecateursError

Per = Literal["layer", "channel"] | int
"""Which numbers share their values: all of a weight, those of each index of its first dimension, or so many that follow each other."""

_MOST_BITS = 16
_MOST_LEVELS = (1 << 23) - 1  # what float32 tells apart
_LEAST_SCALE = 0.1  # of the one that reaches the largest number: what is tried where the mean squared error decides
_SCALES = 24
_MOST_SEEN = 1 << 16  # numbers of a row by which its scale is chosen
_AT_ONCE = 1 << 17


@dataclass(frozen=True, repr=False)
class Quantiser:
    """What makes `Levels` of a weight: a name, and ``choose(rows, there)``.

    ``choose`` gets the weight as rows that share their values, ``(runs, numbers)``, float64, with zeros where nothing is, and which of the
    numbers are there (bool): a zero, or what masks hold, is none and must become level 0. It returns `Levels` of that shape and of
    float32 or float64. ``trained``: whether the values may change in training; those of powers of two may not. ``per`` says which rows,
    ``count`` how many values beside zero are asked for, where no fewer should come; ``thresholds`` are those of `ternary`, which may be
    asked again in training.

    Called with a weight of floats, and the mask of what is kept of it (bool, of its shape, ``True`` = kept) where there is one, it
    returns its `Levels`, in which what is zero or not kept is level 0. Raises `NonFiniteError` for NaN and infinities, `SecateursError`
    for whole numbers, tensors without values (meta), and weights that do not fall into groups.

    >>> k_means(bits=1)(torch.tensor([[1.0, 2.0, 0.0, 9.0]])).values()
    tensor([[1.5000, 1.5000, 0.0000, 9.0000]])
    """

    name: str
    choose: Callable[[Tensor, Tensor], Levels]
    per: Per = "layer"
    trained: bool = True
    count: int | None = None
    thresholds: tuple[float, Literal["mean", "max"]] | None = None

    def __repr__(self) -> str:
        return self.name

    @torch.no_grad()
    def __call__(self, weight: Tensor, mask: Tensor | None = None, *, layer: str = "the weight") -> Levels:
        rows = _rows(f"{layer}: {self.name}", weight, mask, self.per)
        found = self.choose(rows, rows != 0)
        if found.numbers.shape != rows.shape:
            raise SecateursError(
                f"{layer}: {self.name} made levels of shape {tuple(found.numbers.shape)} of rows of shape {tuple(rows.shape)}"
            )
        numbers = found.numbers.reshape(weight.shape)
        if found.table is None:
            return Levels(numbers, scale=found.scale, dtype=weight.dtype)
        return levelled(found.numbers - found.lowest, found.table.to(weight.dtype), weight.shape, zero=-found.lowest)


def _rows(who: str, weight: Tensor, mask: Tensor | None, per: Per) -> Tensor:
    """A weight as rows that share their values, with zeros where masks hold."""
    if not weight.is_floating_point():
        raise SecateursError(f"{who} needs floating-point numbers, not {weight.dtype}, which are levels already: leave it out")
    if weight.is_meta:
        raise SecateursError(
            f'{who}: it is on the meta device and has no values; give the model memory with to_empty(device="cpu")'
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise SecateursError(
            f"{who}: the mask is {mask.dtype} of shape {tuple(mask.shape)}, but must be torch.bool of {tuple(weight.shape)}"
        )
    wide = weight.detach().double()
    wide = wide if mask is None else torch.where(mask.to(wide.device), wide, 0.0)
    bad = wide.numel() - int(torch.isfinite(wide).sum())
    if bad:
        raise NonFiniteError(f"{who}: {bad} numbers are NaN or infinite; restore a checkpoint from before they diverged")
    return in_rows(wide, per, who)


def in_rows(weight: Tensor, per: Per, who: str = "the weight") -> Tensor:
    """A weight as rows that share their values; raises `SecateursError` where it does not fall into groups.

    >>> in_rows(torch.zeros(4, 6), 8).shape
    torch.Size([3, 8])
    """
    if per == "layer" or not weight.numel():
        return weight.reshape(1, -1)
    if per == "channel":
        return weight.reshape(len(weight) if weight.ndim else 1, -1)
    if weight.numel() % per:
        raise SecateursError(
            f'{who}: {weight.numel()} numbers do not fall into groups of {per}; take per="channel", or leave it out with skip='
        )
    return weight.reshape(-1, per)


def _require_per(who: str, per: object) -> None:
    if per not in ("layer", "channel") and (isinstance(per, bool) or not isinstance(per, int) or per < 1):
        raise KindError(f'{who}: per={per!r} must be "layer", "channel" or a number, how many weights in a row share their values')


def _require_bits(who: str, bits: object, least: int, most: int = _MOST_BITS) -> int:
    require(who, "bits", bits, COUNT)
    assert isinstance(bits, int)
    if not least <= bits <= most:
        raise SecateursError(f"{who}: bits={bits} must be from {least} to {most}")
    return bits


def _named(who: str, per: Per, **arguments: Any) -> str:
    """How a quantiser was made, without what is as it is by default."""
    given = {**arguments, **({} if per == "layer" else {"per": per})}
    return f"{who}({', '.join(f'{key}={value!r}' for key, value in given.items() if value is not None)})"


# ---------------------------------------------------------------- tables


def k_means(
    *, bits: int | None = None, clusters: int | None = None, per: Per = "layer", start: Start | None = None, seed: int = 0
) -> Quantiser:
    """2 ** ``bits`` values beside zero, or so many ``clusters``, each the mean of its weights (Deep Compression, 1510.00149).

    ``start="optimal"``, where nothing is said that of whole layers, finds the values with the least squared error by dynamic programming;
    of more different numbers than that is affordable for it does so of cells of neighbouring ones, and Lloyd's algorithm does the rest.
    "linear" (evenly over the range: the paper's choice), "density" (over the weights in their order, the default for channels and groups)
    and "random" (at weights by chance, ``seed``) are the paper's starts of Lloyd's algorithm. What is not zero does not become zero.
    Where there are no more different weights than values, they stay as they are.

    Raises `SecateursError` without bits or clusters, with both, or for numbers of them out of range.

    >>> k_means(bits=2, start="linear")(torch.tensor([[-3.0, -1.0, 0.0, 1.0, 2.0, 9.0]])).table
    tensor([[-3.0000, -1.0000,  0.0000,  1.5000,  9.0000]])
    """
    if (bits is None) == (clusters is None):
        raise SecateursError("k_means: give bits=..., of which 2 ** bits values are made, or clusters=..., how many")
    count = clusters if bits is None else 1 << _require_bits("k_means", bits, 0)
    require("k_means", "clusters", count, COUNT)
    assert count is not None
    if not 1 <= count <= 1 << _MOST_BITS:
        raise SecateursError(f"k_means: clusters={count} must be from 1 to {1 << _MOST_BITS}")
    chosen: Start = start or ("optimal" if per == "layer" else "density")
    if chosen not in get_args(Start):
        raise SecateursError(f"k_means: start={start!r} is none of {', '.join(map(repr, get_args(Start)))}")
    _require_per("k_means", per)

    def choose(rows: Tensor, there: Tensor) -> Levels:
        means = means_of(rows, there, count, chosen, seed)
        return _by_table(torch.where(there, nearest(rows, means), count), means)

    how = {"start": start, "seed": seed if start == "random" else None}
    return Quantiser(_named("k_means", per, bits=bits, clusters=clusters, **how), choose, per, count=count)


def _by_table(places: Tensor, values: Tensor) -> Levels:
    """Levels of rows, each number's place among the values of its row; one place more stands for zero."""
    table = torch.cat([values, values.new_zeros(len(values), 1)], 1)
    return Levels((places - values.shape[1]).to(torch.int32), table, -values.shape[1], dtype=values.dtype)


def powers_of_two(*, bits: int = 4, per: Per = "layer") -> Quantiser:
    """Zero and ±2^e, for 2 ** (bits − 1) − 1 exponents from the largest that the weights need downwards: a shift multiplies (1702.03044).

    Each weight goes to the nearest of them; those below half of the least become zero. The values are not trained.

    Raises `SecateursError` for fewer than 2 or more than 8 bits.

    >>> powers_of_two(bits=3)(torch.tensor([[0.9, -0.3, 0.1, 0.2]])).values()
    tensor([[ 1.0000, -0.2500,  0.0000,  0.2500]])
    """
    count = (1 << (_require_bits("powers_of_two", bits, 2, 8) - 1)) - 1
    _require_per("powers_of_two", per)

    def choose(rows: Tensor, there: Tensor) -> Levels:
        sizes = rows.abs()
        exponents = torch.frexp(sizes * (4 / 3)).exponent - 1  # 2^e is nearest from 3/4 of it to 3/2
        top = torch.where(there, exponents, -126).amax(1, keepdim=True) if rows.numel() else exponents.new_zeros(len(rows), 1)
        least = (top - count + 1).clamp(min=-126)
        rank = torch.where(sizes >= torch.exp2(least.double()) / 2, (exponents - least).clamp(min=0) + 1, 0)
        signed = torch.where(there, rank * rows.sign().long(), 0)
        sizes_of = torch.exp2((least + torch.arange(count, device=rows.device)).double())
        table = torch.cat([-sizes_of.flip(1), sizes_of.new_zeros(len(rows), 1), sizes_of], 1)
        return Levels(signed.to(torch.int32), table, -count, dtype=torch.float64)

    return Quantiser(_named("powers_of_two", per, bits=bits), choose, per, trained=False)


def ternary(*, per: Per = "layer", threshold: float = 0.7, of: Literal["mean", "max"] = "mean") -> Quantiser:
    """Zero where a weight is small, else one value for each sign, the mean of those that get it (TTQ, 1612.01064).

    Small is what is at most ``threshold`` times the mean size of the weights (0.7, about the least squared error: TWN, 1605.04711), or of
    their largest (``of="max"``, for which TTQ takes 0.05).

    Raises `SecateursError` for a threshold that is not in [0, 1) of the largest, or below 0.

    >>> ternary()(torch.tensor([[2.0, 4.0, -3.0, 0.1]])).values()
    tensor([[ 3.,  3., -3.,  0.]])
    """
    require("ternary", "threshold", threshold, NUMBER)
    if of not in ("mean", "max") or not 0 <= threshold < (1 if of == "max" else float("inf")):
        raise SecateursError(
            f'ternary: threshold={threshold}, of={of!r}: a threshold is at least 0, of="mean" or of="max", and of the largest below 1'
        )
    _require_per("ternary", per)

    def choose(rows: Tensor, there: Tensor) -> Levels:
        signs = ternary_signs(rows, there, threshold, of)
        values = [torch.where(signs == sign, rows, 0).sum(1) / (signs == sign).sum(1).clamp(min=1) for sign in (-1, 1)]
        table = torch.stack([values[0], torch.zeros_like(values[0]), values[1]], 1)
        return Levels(signs.to(torch.int32), table, -1, dtype=torch.float64)

    shown = {"threshold": None if (threshold, of) == (0.7, "mean") else threshold, "of": None if of == "mean" else of}
    return Quantiser(_named("ternary", per, **shown), choose, per, thresholds=(threshold, of))


def ternary_signs(rows: Tensor, there: Tensor, threshold: float, of: Literal["mean", "max"]) -> Tensor:
    """−1, 0 or 1 for each number: its sign where it is above the threshold of its row. Where none is, the largest are.

    >>> ternary_signs(torch.tensor([[2.0, -3.0, 0.1]]), torch.ones(1, 3).bool(), 0.7, "mean")
    tensor([[ 1., -1.,  0.]])
    """
    if not rows.numel():
        return rows
    sizes = torch.where(there, rows, 0).abs()
    largest = sizes.amax(1, keepdim=True)
    scale = largest if of == "max" else sizes.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    above = (sizes > threshold * scale) | (sizes == largest)
    return torch.where(above & there, rows.sign(), 0)


# ---------------------------------------------------------------- scales


def uniform(
    *, bits: int | None = None, step: float | None = None, per: Per = "layer", clip: Literal["max", "mse"] = "max"
) -> Quantiser:
    """Whole numbers from −(2 ** (bits − 1) − 1) to as much, times a scale: as integer arithmetic has them, zero among them; 8 bits by
    default.

    ``clip="max"``: the scale is such that the largest weight is the largest level. "mse": the scale from a tenth of that up to it with the
    least squared error; larger weights become the largest level. Weights below half a scale become zero. ``step`` in place of bits is
    the scale itself, of all weights, with as many levels as they need.

    Raises `SecateursError` for fewer than 2 or more than 16 bits, and for a step of 0 or less, or one beside bits.

    >>> levels = uniform(bits=3)(torch.tensor([[0.6, -0.5, 0.05, 0.19]]))
    >>> levels.numbers, levels.scale
    (tensor([[ 3, -2,  0,  1]], dtype=torch.int32), tensor([0.2000]))
    """
    if step is not None:
        require("uniform", "step", step, NUMBER)
        if not 0 < step < float("inf") or bits is not None or clip != "max":
            raise SecateursError(f"uniform: step={step} must be above 0, and goes without bits= and clip=")
    most = (1 << (_require_bits("uniform", 8 if bits is None else bits, 2) - 1)) - 1 if step is None else _MOST_LEVELS
    if clip not in ("max", "mse"):
        raise SecateursError(f'uniform: clip={clip!r} is neither "max" nor "mse"')
    _require_per("uniform", per)

    def choose(rows: Tensor, there: Tensor) -> Levels:
        largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(len(rows))
        full = largest / most if step is None else torch.full_like(largest, step)
        scale = full.float() if clip == "max" or not rows.numel() else _least_error(rows, full, most)
        return Levels(multiples(rows, scale, most), scale=scale, dtype=torch.float64)

    shown = {"clip": None if clip == "max" else clip, "step": step}
    return Quantiser(_named("uniform", per, bits=8 if bits is None and step is None else bits, **shown), choose, per)


def multiples(rows: Tensor, scale: Tensor, most: int) -> Tensor:
    """The nearest whole number of scales to each number of a row, half to even, at most so many.

    >>> multiples(torch.tensor([[0.35, 9.0]]), torch.tensor([0.2]), 7)
    tensor([[2, 7]], dtype=torch.int32)
    """
    wide = scale.double()[:, None]
    return torch.where(wide > 0, rows / torch.where(wide > 0, wide, 1), 0.0).round().clamp(-most, most).to(torch.int32)


def _least_error(rows: Tensor, full: Tensor, most: int) -> Tensor:
    """The scale of each row with the least squared error: of some, and then of some around the best of these."""
    seen = rows[:, :: max(1, rows.shape[1] // _MOST_SEEN)].float()
    at_once = max(1, _AT_ONCE // seen.shape[1])
    parts = [_best_part(some, of.float(), most) for some, of in zip(seen.split(at_once), full.split(at_once), strict=True)]
    return (torch.cat(parts) * full).float()


def _best_part(rows: Tensor, full: Tensor, most: int) -> Tensor:
    """The part of the full scale that each row is best served with; so few rows at once that they stay in the processor's cache."""
    best, least = torch.ones_like(full), torch.full_like(full, torch.inf)

    def try_(part: Tensor) -> None:
        nonlocal best, least
        scale = (part * full).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        error = (rows / scale).round_().clamp_(-most, most).mul_(scale).sub_(rows).square_().sum(1)
        best, least = torch.where(error < least, part, best), torch.minimum(error, least)

    for part in torch.linspace(_LEAST_SCALE, 1, _SCALES).tolist():
        try_(torch.full_like(full, part))
    around, step = best, (1 - _LEAST_SCALE) / (_SCALES - 1)
    for part in torch.linspace(-0.8, 0.8, 9).tolist():
        try_((around + part * step).clamp(max=1))
    return best


# ---------------------------------------------------------------- as it is


def as_it_is(*, most: int = 1 << 14) -> Quantiser:
    """The values that a weight has already, each a level: of one trained with `secateurs.learned_bits`, say, or shared and loaded again.

    Raises `SecateursError` where a weight has more than ``most`` different values.

    >>> as_it_is()(torch.tensor([[0.5, 0.0, -2.0, 0.5]])).table
    tensor([[-2.0000,  0.0000,  0.5000]])
    """
    require("as_it_is", "most", most, COUNT)

    def choose(rows: Tensor, there: Tensor) -> Levels:
        values, places = torch.unique(rows, return_inverse=True)
        if len(values) > most:
            raise SecateursError(
                f"as_it_is: the weight has {len(values)} different values, more than {most}, and is not shared: give a quantiser that "
                "makes values, for example k_means(bits=5)"
            )
        return _by_table(torch.where(there, places, len(values)), values[None])

    return Quantiser("as_it_is()", choose)
