"""SparseGPT: one sweep over the columns of a weight, in which those still to come make up for what has gone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secateurs.solve.columns import remove_columns
from secateurs.solve.layer import COLUMNS, LAYER, Layer, layer_of
from secateurs.solve.reconstruct import GRAM, require_damping
from secateurs.types import Scores, SecateursError, Site, Solution, Statistic, Stats

_NARROW = 16  # columns whose errors are handed on one by one
_FEW = 8


@dataclass(frozen=True)
class SparseGPT:
    """Single weights of one layer, chosen column by column while all columns still to come, and the bias, make up for what has gone
    (2301.00774); whole columns one after the other, always the one whose loss the others make up for best (OBC, 2208.11580).

    Of each ``block`` of columns (within a layer or a row) the same fraction of what is there goes, as near as whole numbers allow, so that
    the sum is what the plan says; of N:M each group is chosen when the sweep reaches it. ``damping`` is added to the diagonal of the
    products of the inputs, as a part of its mean; ``order="activation"`` starts with the columns of the largest inputs (of N:M with such
    groups). Columns whose input is always zero go first. Solved in float32, each group of a convolution and each expert by itself.
    Filters, kernels, blocks, and what is coupled, are a `PatternError`.

    >>> from torch import nn
    >>> from secateurs import Element, Task, magnitude, prune_, uniform
    >>> _ = torch.manual_seed(0)
    >>> layer, data = nn.Linear(16, 8), torch.randn(256, 4) @ torch.randn(4, 16)
    >>> before, task = layer(data), Task(data, calibration=[(data, None)])
    >>> masks = prune_(layer, Element(), SparseGPT(), uniform(sparsity=0.5), task, only="*")
    >>> masks.kept, bool((layer(data) - before).square().mean() < 0.01 * before.var())
    (64, True)
    """

    block: int = 128
    damping: float = 0.01
    order: Literal["given", "activation"] = "given"

    def __post_init__(self) -> None:
        require_damping("SparseGPT", self.damping)
        if not isinstance(self.block, int) or isinstance(self.block, bool) or self.block < 1:
            raise SecateursError(
                f"SparseGPT: block={self.block!r} is no number of columns: give a whole number from 1, such as 128"
            )
        if self.order not in ("given", "activation"):
            raise SecateursError(f'SparseGPT: order={self.order!r} is none of "given" and "activation"')

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return (GRAM,)

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """By how much a layer's answers change in mean square when one unit goes and the others make up for it, w²/[H⁻¹]ⱼⱼ."""
        for site in sites:
            yield losses_alone(layer_of(site, stats, "SparseGPT"), self.damping)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        each, layer = site.each_of(kept), layer_of(site, stats, "SparseGPT")
        if layer.among is COLUMNS:
            return remove_columns(layer, each, factor(damped(layer, self.damping), site.name))
        return _Sweep(layer, self).solution(each)


def losses_alone(layer: Layer, damping: float) -> Scores:
    """By how much the answers change in mean square when one unit goes and all others make up for it, ``(contests, competitors)``."""
    inverse = torch.cholesky_inverse(factor(damped(layer, damping), layer.site.name)).diagonal(dim1=1, dim2=2)
    return layer.scores(layer.weight.square() / inverse[:, None, : layer.weight.shape[2]])


def damped(layer: Layer, damping: float) -> Tensor:
    """The products of the inputs, with the constant only where there is a bias, and the damping on their diagonal; of features that are
    always zero, one."""
    size = layer.weight.shape[2]
    end = size + (layer.bias is not None)
    system = layer.gram[:, :end, :end].clone()
    diagonal = system.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    diagonal += damping * diagonal[:, :size].mean(1, keepdim=True)
    diagonal[dead] = 1.0
    return system


def factor(system: Tensor, name: str) -> Tensor:
    """The lower Cholesky factors of systems ``(groups, n, n)``; where one is not positive definite damping is raised, with a warning."""
    diagonal = system.diagonal(dim1=1, dim2=2)
    scale, extra = diagonal.mean(1, keepdim=True), 0.0
    for _ in range(9):
        found, failed = torch.linalg.cholesky_ex(system)
        if not bool(failed.any()):
            if extra:
                warnings.warn(
                    f"{name}: its inputs depend on each other, so damping was raised by {extra:.0e}: give more data", stacklevel=2
                )
            return found
        more = extra * 10 or 1e-6
        diagonal += (more - extra) * scale
        extra = more
    raise SecateursError(f"{name}: the products of its inputs are no Gram matrix (not positive definite even with damping 10)")


class _Sweep:
    """The sweep over the columns of one layer, in their order. Arrays are ``(groups, columns, outputs)``: each column in one piece.

    With H = R·Rᵀ, R upper triangular, what the others make of a column by the time that the sweep reaches it follows from R and the
    changes of the columns before it, so that no inverse of H is needed, but for the blocks on the diagonal of R.
    """

    def __init__(self, layer: Layer, how: SparseGPT) -> None:
        self.step = layer.among.shape[1] if isinstance(layer.among, Tensor) else 0
        self.block = max(self.step, how.block // self.step * self.step) if self.step else how.block
        self.narrow = self.step * max(1, _NARROW // self.step) if self.step else _NARROW
        self.layer, self.order = layer, _order(layer, how.order)
        weight = layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias[:, :, None]], dim=2)
        self.weight = self._arranged(weight.transpose(1, 2))
        self.candidates, self.gone = self._marked(layer.candidates), self._marked(~layer.alive)
        dead = layer.gram.diagonal(dim1=1, dim2=2)[:, : weight.shape[2], None] == 0
        self.dead = self._arranged(dead) if bool(dead.any()) else None
        system = damped(layer, how.damping)
        system = system if self.order is None else self._arranged(self._arranged(system).transpose(1, 2))
        self.upper = factor(system.flip(1, 2), layer.site.name).flip(1, 2)

    def _marked(self, marks: Tensor) -> Tensor:
        """Marks ``(groups, outputs, features)`` in the order of the sweep; the bias has none."""
        found = torch.zeros(self.weight.shape, dtype=torch.bool, device=marks.device)
        size = marks.shape[2]
        if bool(marks.all()):  # nothing to turn
            found[:, :size] = True
        elif bool(marks.any()):
            found[:, :size] = marks.transpose(1, 2)
        return self._arranged(found)

    def _arranged(self, columns: Tensor) -> Tensor:
        """``(groups, columns, …)`` in the order of the sweep, in one piece."""
        return columns.contiguous() if self.order is None else columns.gather(1, self.order[:, :, None].expand(columns.shape))

    def solution(self, each: int) -> Solution:
        """What becomes of the layer where every contest keeps `each` units, or all that it has."""
        upper, columns = self.upper, self.weight.shape[1]
        removals, changes = _Removals(self, each), torch.empty_like(self.weight)
        for start in range(0, columns, self.block):
            here = slice(start, min(columns, start + self.block))
            eye = torch.eye(here.stop - start, dtype=upper.dtype, device=upper.device)
            inverse = torch.linalg.solve_triangular(upper[:, here, here], eye, upper=True)
            before = upper[:, :start, here].transpose(1, 2) @ changes[:, :start]
            now = torch.baddbmm(self.weight[:, here], inverse.transpose(1, 2), before)
            self._remove(now, inverse, here, removals)
            torch.sub(self.weight[:, here], now, out=changes[:, here])
        found = (self.weight - changes).masked_fill_(self.gone, 0)
        stays, weight = self._back(~self.gone), self._back(found)
        size = self.layer.weight.shape[2]
        bias = weight[:, :, size] if self.layer.bias is not None else None
        return self.layer.solution(stays[:, :, :size], weight[:, :, :size], bias)

    def _remove(self, now: Tensor, inverse: Tensor, here: slice, removals: _Removals) -> None:
        """Choose within a block of columns, and let those after each column in it make up for what goes; ``now`` is changed."""
        width, gone = now.shape[1], self.gone[:, here]
        errors, scale = torch.empty_like(now), inverse.diagonal(dim1=1, dim2=2)[:, :, None].reciprocal()
        for first in range(0, width, self.narrow):
            last = min(width, first + self.narrow)
            for column in range(first, last):
                if column % (self.step or width) == 0:
                    some = slice(column, min(width, column + (self.step or width)))
                    removals.choose(now[:, some] * scale[:, some], slice(here.start + some.start, here.start + some.stop))
                torch.mul(now[:, column] * scale[:, column], gone[:, column], out=errors[:, column])
                rest = slice(column + 1, last)
                now[:, rest].addcmul_(inverse[:, column, rest, None], errors[:, column, None], value=-1)
            now[:, last:] -= inverse[:, first:last, last:].transpose(1, 2) @ errors[:, first:last]
        now.masked_fill_(gone, 0)

    def _back(self, columns: Tensor) -> Tensor:
        """``(groups, outputs, columns)`` in the layer's own order."""
        if self.order is not None:
            columns = torch.empty_like(columns).scatter_(1, self.order[:, :, None].expand(columns.shape), columns)
        return columns.transpose(1, 2)


class _Removals:
    """How many units each contest still has to lose, and which ones; ``sweep.gone`` is written."""

    def __init__(self, sweep: _Sweep, each: int) -> None:
        self.sweep, self.each = sweep, each
        self.over = None if sweep.layer.among is LAYER else 1  # the contests' own dimension: columns of one row
        self.left = self._count(sweep.candidates)
        self.due = (self.left - each).clamp(min=0)

    def _count(self, candidates: Tensor) -> Tensor:
        return candidates.sum() if self.over is None else candidates.sum(1)

    def choose(self, values: Tensor, columns: slice) -> None:
        """Mark what goes of some columns ``(groups, columns, outputs)``, given the square roots of the losses."""
        sweep, candidates = self.sweep, self.sweep.candidates[:, columns]
        here = self._count(candidates)
        if sweep.step:
            number = (here - self.each).clamp(min=0)
        else:  # the same fraction of what is there in every block; what is over goes with the next
            number = torch.where(self.left > 0, (self.due * here + self.left - 1) // self.left.clamp(min=1), 0)
            self.left, self.due = self.left - here, self.due - number
        losses = values.square()
        if sweep.dead is not None:
            losses.masked_fill_(sweep.dead[:, columns], 0)
        losses.masked_fill_(~candidates, torch.inf)
        sweep.gone[:, columns] |= lowest(losses, number)


def lowest(losses: Tensor, number: Tensor) -> Tensor:
    """Marks the lowest of ``(groups, columns, outputs)``: so many of all, or so many of the columns of each output ``(groups, outputs)``.

    >>> lowest(torch.tensor([[[3.0], [1.0], [2.0]]]), torch.tensor([[2]])).flatten().tolist()
    [False, True, True]
    """
    if number.ndim == 0:
        return _lowest_of_all(losses, int(number))
    places = torch.arange(losses.shape[1], device=losses.device)[:, None]
    if len(places) <= _FEW:  # each with each: of N:M several times faster than to sort
        one, other = losses[:, :, None], losses[:, None]
        ahead = torch.where((places < places.T)[:, :, None], one <= other, one < other)
        return ahead.sum(1) < number[:, None]
    order = losses.argsort(dim=1, stable=True)
    return torch.zeros_like(losses, dtype=torch.bool).scatter_(1, order, places < number[:, None])


def _lowest_of_all(losses: Tensor, number: int) -> Tensor:
    if number == 0:
        return torch.zeros_like(losses, dtype=torch.bool)
    last = losses.flatten().kthvalue(number).values
    found = losses < last
    ties = (losses == last).flatten().nonzero()[: number - int(torch.count_nonzero(found)), 0]
    found.view(-1)[ties] = True
    return found


def _order(layer: Layer, order: str) -> Tensor | None:
    """The columns in the order of the sweep, ``(groups, features, and the bias)``; ``None`` where it is the given one."""
    groups, _, size = layer.weight.shape
    columns, device = torch.arange(size + (layer.bias is not None), device=layer.weight.device), layer.weight.device
    inputs = layer.gram.diagonal(dim1=1, dim2=2)[:, :size]
    if isinstance(layer.among, Tensor):
        contests = layer.among.to(device)
        others = columns[~torch.isin(columns, contests)].expand(groups, -1)
        chosen = contests.expand(groups, -1, -1)
        if order == "activation":
            first = inputs[:, contests].sum(2).argsort(dim=1, descending=True, stable=True)
            chosen = chosen.gather(1, first[:, :, None].expand(chosen.shape))
        found = torch.cat([chosen.flatten(1), others], dim=1)
    elif order == "activation":
        found = torch.cat([inputs.argsort(dim=1, descending=True, stable=True), columns[size:].expand(groups, -1)], dim=1)
    else:
        return None
    return None if bool((found == columns).all()) else found
