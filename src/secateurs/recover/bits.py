"""Weights on few levels, where the number of bits is learned beside them: BitPruning (2002.03090)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from secateurs.costs import workload
from secateurs.given import NUMBER, require
from secateurs.patterns import Element, Selection
from secateurs.ranks import from_shard, is_sharded, shard_of, sharded_as, whole
from secateurs.recover.inner import inside
from secateurs.recover.reparametrised import Beside, Chance, Learner, Reparametrised, Values, Where, added
from secateurs.recover.strength import Strength
from secateurs.types import Hook, Member, Run, SecateursError, Sites

_MOST = 16  # bits: what float32 tells apart with room to spare

# ---------------------------------------------------------------- levels


@dataclass(frozen=True)
class _Ranges:
    """Of each group of numbers the least and the largest, and whether zero is among them."""

    low: Tensor
    high: Tensor
    zero: Tensor

    @staticmethod
    def of(weight: Tensor, index: Tensor, count: int) -> _Ranges:
        """``index`` says of each number in which group it is; it has size 1 where that does not depend on a dimension."""
        dims = [dim for dim in range(weight.ndim) if index.shape[dim] == 1]

        def least(numbers: Tensor) -> Tensor:
            few = numbers.amin(dims, keepdim=True) if dims else numbers
            groups = few.new_full((count,), torch.inf)
            return groups.scatter_reduce(0, index.expand(few.shape).reshape(-1), few.reshape(-1), "amin")

        return _Ranges(least(weight), -least(-weight), least(weight.abs()) == 0)

    def at(self, index: Tensor) -> _Ranges:
        return _Ranges(self.low[index], self.high[index], self.zero[index])

    def levels(self, weight: Tensor, bits: Tensor) -> Tensor:
        """Each number as the nearest of 2^bits levels, as far apart as fills the range of its group."""
        steps = torch.exp2(bits).round() - 1
        apart = (self.high - self.low) / steps
        scale = torch.where(apart > 0, apart, 1)
        zero = (-self.low / scale).round()
        plain = self.low + ((weight - self.low) / scale).round().clamp(min=0).minimum(steps) * scale
        through_zero = (((weight / scale).round() + zero).clamp(min=0).minimum(steps) - zero) * scale
        return torch.where(self.zero, through_zero, torch.where(apart > 0, plain, self.low))


def _between(weight: Tensor, bits: Tensor, ranges: _Ranges) -> Tensor:
    fewer = bits.detach().floor()
    with torch.no_grad():
        base = ranges.levels(weight, fewer)
        more = ranges.levels(weight, fewer + 1) - base
    return base + (bits - fewer) * more + (weight - weight.detach())  # what is added is 0 to the bit, and passes the gradient on


def quantised(weight: Tensor, bits: Tensor) -> Tensor:
    """(1 − α)·Q(w, ⌊n⌋) + α·Q(w, ⌊n⌋ + 1), α = n − ⌊n⌋: a weight at a number of bits n that may lie between two (2002.03090, §3.2).

    Q(w, b) is the nearest of 2^b levels, evenly from the least number to the largest. Where a number is zero, as those are that masks hold,
    the levels are moved by up to half their distance so that zero is one of them, and it stays zero. Of n with one number it is that
    of the whole weight, of n with as many as the weight has rows each row has levels of its own. The gradient of w passes straight
    through, that of n is the sum over g·(Q(w, ⌊n⌋ + 1) − Q(w, ⌊n⌋)).

    >>> quantised(torch.tensor([[-1.0, -0.2, 0.3, 2.0]]), torch.tensor(1.0))
    tensor([[-1., -1., -1.,  2.]])
    >>> quantised(torch.tensor([[-1.0, 0.0, 0.3, 2.0]]), torch.tensor(1.5))
    tensor([[-0.5000,  0.0000,  0.0000,  2.5000]])
    """
    if bits.numel() not in (1, len(weight)) or bits.ndim > 1:
        raise SecateursError(
            f"quantised: bits are of shape {tuple(bits.shape)}, but must be one number, or {len(weight)}, one a row"
        )
    if not weight.numel():
        return weight
    index = torch.arange(bits.numel(), device=weight.device).view(-1, *(1,) * (weight.ndim - 1))
    ranges = _Ranges.of(weight.detach(), index, bits.numel())
    return _between(weight, bits.view(-1)[index], ranges.at(index))


# ---------------------------------------------------------------- the hook


def learned_bits(
    *,
    strength: float | None = None,
    target: float | None = None,
    target_bytes: float | None = None,
    reach: float = 0.7,
    per: Literal["layer", "channel"] = "layer",
    weigh: Literal["weights", "macs"] = "weights",
    start: float = 8.0,
    bits: dict[str, Tensor] | None = None,
    end: int | None = None,
    strict: bool = False,
    learner: Learner | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that learns how many bits each layer's weights need, or each output channel's (BitPruning, 2002.03090).

    The network computes with `quantised` weights, at n bits that need not be whole, from ``start`` on and never below 1 or above 16;
    ``strength`` · Σ λ·n is added to the loss (not to the one that is told), where λ is the share of the weights, or of the MACs
    (``weigh``), so that the sum is the mean number of bits. ``target``: the mean for which the strength is found, by ``reach`` of the
    training; ``target_bytes``: what the numbers are to take, zeros too. At the start of epoch `end`, or at the end, n is rounded up,
    and the weights learn on at these bits. Where the target was not reached, a warning says so, or with ``strict=True`` those lose a bit
    that were nearest to having one less. At the end the model holds 2^n different numbers a group at most; zeros that come of
    rounding are no masks. ``bits``, a dict, is told after each epoch, and at the end, weight → the numbers of bits (one, or one a channel),
    and ``run.history`` the mean. ``learner`` makes the optimizer of n, by default Adam of rate 0.05.

    Raises `SecateursError` without strength and target, for numbers out of range, and with an optimizer that computes several
    gradients in one step.

    >>> learned_bits(target=4.0).name
    'learned_bits'
    """
    if per not in ("layer", "channel") or weigh not in ("weights", "macs"):
        raise SecateursError(f'learned_bits: per={per!r} is "layer" or "channel", and weigh={weigh!r} "weights" or "macs"')
    if not 1 < start <= _MOST:
        raise SecateursError(f"learned_bits: start={start}, the bits at first, must be above 1, and {_MOST} at most")
    if strength is None and target is None and target_bytes is None:
        raise SecateursError(
            "learned_bits: give strength=..., how strongly few bits are pressed for, target=..., the mean number of bits for which it is "
            "found, or target_bytes=..."
        )
    if target_bytes is not None and (target is not None or weigh == "macs"):
        raise SecateursError(
            'learned_bits: target_bytes= goes with neither target= nor weigh="macs": the bits of a mean are then other ones'
        )
    if target is not None:
        require("learned_bits", "target", target, NUMBER)
        _require_between(target, start, f"target={target}")
    searched = target is not None or target_bytes is not None
    strengths = Strength.of("learned_bits", strength, 0.5 if searched else None, first=1e-2, reach=reach)
    if target is not None:
        strengths.target = 1 - target / start
    made = learner or (lambda values: torch.optim.Adam(values, lr=0.05))
    told = {} if bits is None else bits
    return _Lengths(per, weigh, start, target_bytes, strict, strengths, told).hook(made, Where(Element(), only, skip), end)


def _require_between(mean: float, start: float, what: str) -> None:
    if not (isfinite(mean) and 1 <= mean < start):
        raise SecateursError(
            f"learned_bits: {what} is a mean of {mean:.4g} bits a number, which must be from 1 to below start={start}"
        )


@dataclass(eq=False)
class _Lengths:
    """The bits of each group of each weight, and what they are told by."""

    per: str
    weigh: str
    start: float
    target_bytes: float | None
    strict: bool
    strength: Strength
    told: dict[str, Tensor]
    macs: Mapping[str, int] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)

    def hook(self, learner: Learner, where: Where, end: int | None) -> Hook:
        learning = Reparametrised("learned_bits", where, self._begin, _bounded(learner), self.strength, end, self.strict)
        hook = learning.hook()

        def start(run: Run) -> None:
            self.macs = _macs(run) if self.weigh == "macs" else {}
            hook.start(run)

        def tell(run: Run, then: Callable[[Run], None]) -> None:
            then(run)
            if learning.beside is not None:
                self.told.update({name: n.detach().ceil().to(torch.int64).cpu() for name, n in learning.beside.values.items()})

        return replace(hook, start=start, epoch_end=lambda run: tell(run, hook.epoch_end), end=lambda run: tell(run, hook.end))

    def _begin(self, sites: Sites, chance: Chance) -> Beside:
        members = {member.parameter: member for site in sites for member in site.members}
        groups = {name: _Groups.of(member, self.per == "channel") for name, member in members.items()}
        sizes = {name: each.sizes(members[name].weight) * self._price(name) for name, each in groups.items()}
        total = float(added(each.sum() for each in sizes.values()))
        if not total:
            raise SecateursError(
                'learned_bits: no weight that takes part has MACs in the pass of the example: take weigh="weights"'
            )
        self.shares = {name: (each / total).to(torch.float32) for name, each in sizes.items()}
        if self.target_bytes is not None:
            mean = 8 * self.target_bytes / total
            _require_between(mean, self.start, f"target_bytes={self.target_bytes} for {total:,.0f} numbers")
            self.strength.target = 1 - mean / self.start
        values = {name: torch.full((each.count,), self.start, device=members[name].weight.device) for name, each in groups.items()}

        def weight(name: str, v: Tensor, values: Values, noise: Values) -> Tensor:
            return groups[name].quantised(v, values[name], members[name].weight)

        return Beside(
            values,
            {name: (name,) for name in values},
            weight,
            shared=True,
            penalty=self._mean,
            expected=lambda values: self._mean(values).item() / self.start,
            left=lambda values: self._mean({name: n.detach().ceil() for name, n in values.items()}).item() / self.start,
            final=self._round_up,
            tell=lambda values: {"bits": self._mean(values).item()},
        )

    def _price(self, name: str) -> float:
        """What one number of a weight counts."""
        return float(self.macs.get(name, 0)) if self.weigh == "macs" else 1.0

    def _mean(self, values: Values) -> Tensor:
        return added((self.shares[name] * n).sum() for name, n in values.items())

    def _round_up(self, values: Values) -> None:
        """Whole bits; where the target is missed by that, fewer where they are missed least, or a warning."""
        learned = {name: n.clone() for name, n in values.items()}
        for n in values.values():
            n.ceil_()
        wanted = None if self.strength.target is None else (1 - self.strength.target) * self.start
        reached = self._mean(values).item()
        if wanted is None or reached <= wanted * (1 + 1e-6):
            return
        if self.strict:
            self._cut(learned, values, wanted)
        elif reached > 1.02 * wanted:
            warnings.warn(
                f"learned_bits: the target of {wanted:.4g} bits was not reached, but {reached:.4g}, rounded up to whole bits: train for "
                "longer, begin with a larger strength=, or give strict=True, which takes more bits where they are missed least",
                stacklevel=2,
            )

    def _cut(self, learned: Values, values: Values, wanted: float) -> None:
        """A bit less, again and again, where the bits then lie least below those that were learned."""
        found = [(name, group, float(n)) for name, each in learned.items() for group, n in enumerate(each.tolist())]
        shares = {name: share.tolist() for name, share in self.shares.items()}
        now = {name: n.tolist() for name, n in values.items()}
        steps = sorted(
            (n - bits, name, group)
            for name, group, n in found
            for bits in range(1, int(now[name][group]))
            if shares[name][group] > 0
        )
        mean = self._mean(values).item()
        for _, name, group in steps:  # of one group those of more bits come first
            if mean <= wanted * (1 + 1e-6):
                break
            now[name][group] -= 1
            mean -= shares[name][group]
        for name, n in values.items():
            n.copy_(torch.tensor(now[name]))


def _bounded(learner: Learner) -> Learner:
    """An optimizer whose values stay between 1 and the most bits."""

    def made(values: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = learner(values)

        @torch.no_grad()
        def bound(*_: object) -> None:
            for value in values:
                value.clamp_(1, _MOST)

        optimizer.register_step_post_hook(bound)
        return optimizer

    return made


def _macs(run: Run) -> dict[str, int]:
    """How often each number of a weight is multiplied in one pass of the example."""
    found = dict[str, int]()
    for layer in workload(inside(run.model), run.task.example).under(None):
        if layer.parameter is not None:
            found[layer.parameter] = found.get(layer.parameter, 0) + layer.left({}).positions
    return found


@dataclass(frozen=True)
class _Groups:
    """Which numbers of a weight share their levels: ``index`` of the whole weight, and of the part that lies here."""

    index: Tensor
    here: Tensor
    count: int

    @staticmethod
    def of(member: Member, channels: bool) -> _Groups:
        weight = member.weight
        if not channels:
            index = torch.zeros((1,) * weight.ndim, dtype=torch.int64, device=weight.device)
            return _Groups(index, index, 1)
        index = torch.empty(weight.shape, dtype=torch.int64, device=weight.device)
        view = member.canonical(index)
        count = view.shape[0] * view.shape[1]
        view.copy_(torch.arange(count, device=weight.device).view(*view.shape[:2], *(1,) * (view.ndim - 2)).expand(view.shape))
        here = shard_of(sharded_as(index, weight)) if is_sharded(weight) else None
        for dim in range(index.ndim):
            first = index.narrow(dim, 0, min(1, index.shape[dim]))
            if torch.equal(index, first.expand(index.shape)):
                index = first
        return _Groups(index, index if here is None else here, count)

    def sizes(self, weight: Tensor) -> Tensor:
        """How many numbers each group has."""
        places = self.index.reshape(-1)
        each = torch.bincount(places, minlength=self.count).to(torch.float64)
        return each * (weight.numel() / places.numel() if places.numel() else 0)

    def quantised(self, v: Tensor, bits: Tensor, like: Tensor) -> Tensor:
        if not like.numel():
            return v
        wide = v.to(torch.promote_types(v.dtype, torch.float32))
        ranges = _Ranges.of(whole(from_shard(wide.detach(), like)), self.index, self.count)
        return _between(wide, bits[self.here], ranges.at(self.here))
