"""What a weight is computed by while its values are shared: few numbers, and the level of each weight, which stays or is asked for anew.

With levels that stay, weights lie in a space of as few dimensions as there are values: w = A·θ, where a column of A marks the weights of
one value, or holds the levels that a scale is multiplied with. Whatever an optimizer makes of single weights v, θ is what comes closest to
it, (AᵀA)⁻¹Aᵀv: the mean of a cluster, the scale of least squares. So the user's own optimizer trains the values, with its rates, its
momentum and its decay; one step of SGD with the gradient of the weights g is one of θ with (AᵀA)⁻¹Aᵀg, the mean over the members, or, with
the factor AᵀA put back before, with the sum Aᵀg of Deep Compression (1510.00149, eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from secateurs.coding import Levels
from secateurs.compressing.levelled import levelled
from secateurs.compressing.quantisers import Per, in_rows, ternary_signs
from secateurs.types import FileError

Gradient = Literal["mean", "sum"]

_ULPS = 3
_NONE = torch.empty(0)


class Tie(Protocol):
    """How one weight is computed of whole numbers v, and of values that are learned beside them."""

    shape: torch.Size
    latent: Tensor | None

    def values(self) -> Tensor | None:
        """What is learned beside, if anything, as it is now."""

    def weight(self, v: Tensor, values: Tensor | None) -> Tensor:
        """The weight, differentiable in both."""

    def remove_(self, gone: Tensor) -> None:
        """These are zero from now on (bool, of the weight's shape)."""

    def levels(self) -> Levels:
        """The levels that the weight had when it was computed last."""

    def adopt(self, weight: Tensor) -> bool:
        """Have the values of a weight whose numbers share them in the same way: an earlier state, say. Whether it is such a one."""

    def to_(self, device: torch.device) -> None:
        """Be where a weight is."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class _Along(torch.autograd.Function):
    """The weights closest to v of those that a tie allows."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, tie: Fixed) -> Tensor:
        ctx.tie = tie
        return tie.closest(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.tie.along(gradient), None


@dataclass(eq=False)
class Fixed:
    """Levels that stay as they are, and values that are trained (or, with ``held``, stay too).

    ``places`` are the numbers that are not zero, in the order of the flat weight, and ``group`` tells of which value each is: those of a
    run stand together, ``width`` a run. Of a scale, one a run, ``factor`` tells the level. ``now`` are the values, float64. ``untouched``:
    the levels, as long as nobody has asked for any of these.
    """

    shape: torch.Size
    dtype: torch.dtype
    runs: int
    gradient: Gradient
    held: bool
    untouched: Levels | None = None
    width: int = 1
    places: Tensor = _NONE
    group: Tensor = _NONE
    factor: Tensor | None = None
    norms: Tensor = _NONE
    now: Tensor = _NONE
    latent: Tensor | None = None

    @staticmethod
    def of(levels: Levels, gradient: Gradient, held: bool) -> Fixed:
        """A group for each value of each run, or, of a scale, for each run; told apart when they are first asked for."""
        return Fixed(levels.numbers.shape, levels.dtype, levels.runs, gradient, held, levels)

    def _open_(self) -> None:
        """Tell the groups apart: several times the memory of levels, for which many never ask."""
        if self.untouched is None:
            return
        levels, self.untouched = self.untouched, None
        flat = levels.numbers.reshape(-1).long()
        self.places = flat.nonzero()[:, 0]
        run, number = self.places // max(1, flat.numel() // self.runs), flat[self.places]
        if levels.table is None:
            assert levels.scale is not None
            self.group, self.factor, self.now = run, number.double(), levels.scale.double()
        else:
            self.width = levels.table.shape[1]
            self.group, self.now = run * self.width + number - levels.lowest, levels.table.double().reshape(-1)
        self._weigh_()

    def _weigh_(self) -> None:
        ones = torch.ones_like(self.group, dtype=torch.float64) if self.factor is None else self.factor.square()
        self.norms = self._summed(ones)

    def _summed(self, each: Tensor) -> Tensor:
        """The sum over each group, in float64."""
        sums = torch.zeros(len(self.now), dtype=torch.float64, device=each.device)
        if each.device.type == "cpu":
            return sums.scatter_add_(0, self.group, each)
        return sums.index_put_((self.group,), each, accumulate=True)  # in the same order each time, which scatter_add_ is not

    def _fitted(self, v: Tensor) -> Tensor:
        """Aᵀv divided by AᵀA."""
        there = v.detach().reshape(-1)[self.places].double()
        return self._summed(there if self.factor is None else there * self.factor) / torch.where(self.norms > 0, self.norms, 1)

    def closest(self, v: Tensor) -> Tensor:
        """The weight of the values that come closest to v."""
        self._open_()
        if not self.held:
            fitted = self._fitted(v)
            self.now = fitted if self.factor is None else fitted.float().double()
        values = self.now.to(self.dtype if self.factor is None else torch.float32)[self.group]
        return self._placed(values if self.factor is None else (self.factor.float() * values).to(self.dtype))

    def _placed(self, each: Tensor) -> Tensor:
        return each.new_zeros(self.shape.numel()).index_copy_(0, self.places, each).reshape(self.shape)

    def along(self, gradient: Tensor) -> Tensor:
        """The gradient of v: what the members of a value have in common, or their sum."""
        if self.held:
            return torch.zeros_like(gradient)
        common = self._fitted(gradient)
        if self.gradient == "sum":
            common = common * self.norms
        each = common[self.group]
        return self._placed((each if self.factor is None else each * self.factor).to(gradient.dtype))

    # ------------------------------------------------------------ as a tie

    def values(self) -> None:
        return None

    def weight(self, v: Tensor, values: Tensor | None) -> Tensor:
        return _Along.apply(v, self)  # type: ignore[no-untyped-call]

    def remove_(self, gone: Tensor) -> None:
        self._open_()
        stays = ~gone.reshape(-1)[self.places]
        if bool(stays.all()):
            return
        self.places, self.group = self.places[stays], self.group[stays]
        self.factor = None if self.factor is None else self.factor[stays]
        self._weigh_()

    def levels(self) -> Levels:
        if self.untouched is not None:
            found = self.untouched
            table, scale = (None if each is None else each.cpu() for each in (found.table, found.scale))
            return Levels(found.numbers.cpu(), table, found.lowest, scale, found.dtype)
        if self.factor is None:
            inside = self._placed(self.group % self.width + 1).reshape(self.runs, -1).cpu()
            values = self.now.reshape(self.runs, self.width).to(self.dtype).cpu()
            return levelled(inside, torch.cat([values.new_zeros(self.runs, 1), values], 1), self.shape, zero=0)
        numbers = self._placed((self.factor * torch.sign(self.now)[self.group]).to(torch.int32))
        return Levels(numbers.cpu(), scale=self.now.abs().float().cpu(), dtype=self.dtype)

    def adopt(self, weight: Tensor) -> bool:
        if self.held or not weight.numel():
            return torch.equal(self.levels().values(), weight)
        self.closest(weight)
        fitted = self.now
        if self.factor is None:
            return torch.equal(self.levels().values(), weight)
        best = torch.zeros_like(fitted)
        for ulps in sorted(range(-_ULPS, _ULPS + 1), key=abs, reverse=True):  # of least squares, which rounding may have moved
            self.now = (fitted.float().view(torch.int32) + ulps).view(torch.float32).double()
            fits = (self.levels().values() == weight).reshape(self.runs, -1).all(1)
            best = torch.where(fits, self.now, best)
        self.now = best
        return torch.equal(self.levels().values(), weight)

    def to_(self, device: torch.device) -> None:
        self._open_()
        for name in ("places", "group", "factor", "norms", "now"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))

    def state(self) -> dict[str, Any]:
        self._open_()
        return {"places": self.places, "group": self.group, "factor": self.factor, "now": self.now}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, value in self.state().items():
            saved = state.get(name)
            fits = saved is None if value is None else isinstance(saved, Tensor) and saved.dtype == value.dtype
            if not fits or (name == "now" and saved.shape != value.shape):  # type: ignore[union-attr]
                raise FileError(f"the checkpoint holds other levels ({name})")
        places, group = state["places"], state["group"]
        if len(places) != len(group) or not _within(places, self.shape.numel()) or not _within(group, len(self.now)):
            raise FileError("the checkpoint holds other levels (places)")
        self.places, self.group, self.factor, self.now = places, group, state["factor"], state["now"]
        self._weigh_()


def _within(numbers: Tensor, below: int) -> bool:
    return not numbers.numel() or (int(numbers.min()) >= 0 and int(numbers.max()) < below)


class _Trained(torch.autograd.Function):
    """Values by sign, and their gradients and those of v as TTQ has them."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, parts: Tensor, tie: Ternary) -> Tensor:
        ctx.tie, ctx.parts = tie, parts.detach().clone()
        ctx.signs = tie.assigned(v)
        return tie.spread(ctx.signs, ctx.parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows = in_rows(gradient, ctx.tie.per)
        sides = [ctx.signs == sign for sign in (-1, 1)]
        sums = torch.stack([torch.where(side, rows, 0).double().sum(1) for side in sides], 1)
        factor = torch.ones_like(rows)
        for column, side in enumerate(sides):
            factor = torch.where(side, ctx.parts[:, column : column + 1].abs().to(rows.dtype), factor)
        return (rows * factor).reshape(gradient.shape), (sums * ctx.tie.first).float(), None


@dataclass(eq=False)
class Ternary:
    """Two values a row, one for each sign, that are trained; which weights get them is asked anew in each step (TTQ, 1612.01064).

    ``first`` are the values at first, ``(runs, 2)``, and ``parts``, which are learned, what of them there is now: 1 at first. The gradient
    of a value is the sum over its members (eq. 7); that of a whole weight is its own, times ``parts`` where it has a value (eq. 8, where
    the paper's factors begin at 1 as well).
    """

    shape: torch.Size
    dtype: torch.dtype
    per: Per
    threshold: tuple[float, Literal["mean", "max"]]
    first: Tensor
    parts: Tensor
    signs: Tensor
    latent: Tensor | None

    @staticmethod
    def of(levels: Levels, per: Per, threshold: tuple[float, Literal["mean", "max"]], latent: Tensor) -> Ternary:
        """Of levels that `ternary` has made, and the weights that they were made of."""
        rows = levels.numbers.reshape(levels.runs, -1)
        assert levels.table is not None
        first = torch.zeros(levels.runs, 2, dtype=torch.float64, device=rows.device)
        for column, sign in enumerate((-1, 1)):
            if levels.lowest <= sign < levels.table.shape[1] + levels.lowest:
                first[:, column] = levels.table[:, sign - levels.lowest].double()
        spare = first.abs().amax(1)
        for column, sign in enumerate((-1, 1)):  # a sign that no weight has yet
            first[:, column] = torch.where(first[:, column] == 0, sign * spare, first[:, column])
        parts = torch.ones_like(first, dtype=torch.float32)
        return Ternary(levels.numbers.shape, levels.dtype, per, threshold, first, parts, rows.double(), latent)

    def assigned(self, v: Tensor) -> Tensor:
        """The sign of each weight of v, or 0, in rows."""
        rows = in_rows(v.detach().double(), self.per)
        return ternary_signs(rows, rows != 0, *self.threshold)

    def spread(self, signs: Tensor, parts: Tensor) -> Tensor:
        """The weight of which these are the signs."""
        self.signs, self.parts = signs, parts
        values = (self.first * parts.double()).to(self.dtype)
        return torch.where(signs < 0, values[:, :1], torch.where(signs > 0, values[:, 1:], 0)).reshape(self.shape)

    # ------------------------------------------------------------ as a tie

    def values(self) -> Tensor:
        return self.parts.clone()

    def weight(self, v: Tensor, values: Tensor | None) -> Tensor:
        return _Trained.apply(v, values, self)  # type: ignore[no-untyped-call]

    def remove_(self, gone: Tensor) -> None:
        self.signs = torch.where(gone.reshape(self.signs.shape), 0, self.signs)  # v is zero there, and gets no sign any more

    def levels(self) -> Levels:
        values = (self.first * self.parts.double()).to(self.dtype).cpu()
        table = torch.stack([values[:, 0], torch.zeros_like(values[:, 0]), values[:, 1]], 1)
        return levelled(self.signs.long().cpu() + 1, table, self.shape, zero=1)

    def adopt(self, weight: Tensor) -> bool:
        rows = in_rows(weight.double(), self.per)
        low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
        found = torch.stack([torch.where(low < 0, low, self.first[:, 0]), torch.where(high > 0, high, self.first[:, 1])], 1)
        self.first, self.parts, self.signs = found, torch.ones_like(self.parts), rows.sign()
        return torch.equal(self.levels().values(), weight)

    def to_(self, device: torch.device) -> None:
        self.first, self.parts, self.signs = (each.to(device) for each in (self.first, self.parts, self.signs))

    def state(self) -> dict[str, Any]:
        return {"first": self.first, "parts": self.parts, "signs": self.signs}

    def restore(self, state: Mapping[str, Any]) -> None:
        here = self.state()
        for name, value in here.items():
            saved = state.get(name)
            if not isinstance(saved, Tensor) or saved.shape != value.shape or saved.dtype != value.dtype:
                raise FileError(f"the checkpoint holds other levels ({name})")
        self.first, self.parts, self.signs = (state[name] for name in here)
