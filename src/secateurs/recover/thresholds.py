"""Weights that are pruned by a threshold, or by an indicator of their own, which the loss itself moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from secateurs.criteria import learned
from secateurs.patterns import Element, Selection
from secateurs.ranks import from_shard, shard_of, whole
from secateurs.recover.reparametrised import Beside, Chance, Learner, Reparametrised, Values, Where, added
from secateurs.recover.strength import Strength
from secateurs.types import Criterion, Hook, SecateursError, Sites

_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "exp": torch.exp}


def soft_thresholded(weight: Tensor, threshold: Tensor) -> Tensor:
    """sign(w) · relu(|w| − t): what is below the threshold is zero, the rest comes nearer to zero by as much (2002.03231, eq. 2).

    >>> soft_thresholded(torch.tensor([-3.0, 0.5, 2.0]), torch.tensor(1.0))
    tensor([-2.,  0.,  1.])
    """
    return weight.sign() * torch.relu(weight.abs() - threshold)


def soft_threshold(
    *,
    strength: float | None = None,
    target: float | None = None,
    reach: float = 0.7,
    shape: Literal["sigmoid", "exp"] = "sigmoid",
    per: Literal["layer", "model"] = "layer",
    start: float = -7.0,
    end: int | None = None,
    strict: bool = False,
    learner: Learner | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that learns for each layer, or for the whole model, below which size weights are zero (STR, 2002.03231).

    The network computes with sign(v) · relu(|v| − g(s)), where v are the whole weights, which the optimizer trains, and g is the
    sigmoid, or exp, of one number s a layer, which begins at ``start``. The gradient tells s where it is worth while to prune; what makes
    the threshold grow is the decay of s towards 0, ``strength · s`` in each gradient, as decay of v makes weights small: the paper takes
    one number for both. ``target``: the sparsity for which the strength is found, by ``reach`` of the training (`Strength` states how).

    Up to the start of epoch `end`, by default to the end, thresholds are learned; then zeros become masks, and training goes on with
    them. Where the target was not reached, a warning says so, or with ``strict=True`` the smallest weights go until it is. ``learner``
    makes the optimizer of s, by default SGD with momentum 0.9 and learning rate 0.1, which goes up and down with that of the weights.

    Raises `SecateursError` without strength and target, for numbers out of range, when everything is pruned, and with an optimizer
    that computes several gradients in one step.

    >>> soft_threshold(target=0.9).name
    'soft_threshold'
    """
    if shape not in _SHAPES or per not in ("layer", "model"):
        raise SecateursError(f'soft_threshold: shape={shape!r} is "sigmoid" or "exp", and per={per!r} "layer" or "model"')
    strengths = Strength.of("soft_threshold", strength, target, first=1e-2, reach=reach)
    made = learner or (lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.9))
    begin = partial(_thresholds, _SHAPES[shape], per == "model", start)
    where = Where(Element(), only, skip)
    return Reparametrised("soft_threshold", where, begin, made, strengths, end, strict).hook()


def _thresholds(shape: Callable[[Tensor], Tensor], one: bool, start: float, sites: Sites, chance: Chance) -> Beside:
    weights = {member.parameter: member.weight for site in sites for member in site.members}
    of = {name: "model" if one else name for name in weights}
    beside = dict(zip(of.values(), weights.values(), strict=True))
    values = {key: torch.full((), start, device=weight.device) for key, weight in beside.items()}

    def weight(name: str, v: Tensor, values: Values, noise: Values) -> Tensor:
        return soft_thresholded(v, shape(values[of[name]].to(v.device)))

    def scores(v: Values, values: Values) -> Criterion:
        sizes = {name: v[name].abs() - shape(values[of[name]].to(v[name].device)) for name in v}
        return learned({name: whole(from_shard(size, weights[name])) for name, size in sizes.items()}, "soft_threshold")

    def decay(values: Values) -> Tensor:
        return added(value.square() / 2 for value in values.values())

    return Beside(values, {name: (key,) for name, key in of.items()}, weight, shared=True, penalty=decay, scores=scores)


# ---------------------------------------------------------------- one indicator a weight


class _Indicated(torch.autograd.Function):
    """v · h(m), h the indicator of m > 0, with AutoPrune's coarse gradients."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, m: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(v, m)
        ctx.slope = slope
        return v * (m > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        v, m = ctx.saved_tensors
        return gradient * (m > 0).to(v.dtype), gradient.float() * v.sign() * ctx.slope(m), None


def indicated(weight: Tensor, beside: Tensor, coarse: Literal["leaky", "softplus"] = "leaky") -> Tensor:
    """w · h(m): the weights beside which a number above zero stands, w its gradient only there.

    The indicator h has no gradient of its own; m has that of w·h(m) times sign(w) times the slope of a leaky ReLU (1, below zero 0.1), or
    of softplus, at m: so it grows where growing of |w| helps, whatever the size of w is.

    >>> m = torch.tensor([0.5, -0.5], requires_grad=True)
    >>> indicated(torch.tensor([-3.0, 2.0]), m).sum().backward()
    >>> m.grad
    tensor([-1.0000,  0.1000])
    """
    return _Indicated.apply(weight, beside, _SLOPES[coarse])  # type: ignore[no-untyped-call]


def _leaky(m: Tensor) -> Tensor:
    return torch.where(m > 0, 1.0, 0.1)


_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {"leaky": _leaky, "softplus": torch.sigmoid}


class _Open(torch.autograd.Function):
    """h(m), with the coarse gradient."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(m)
        ctx.slope = slope
        return (m > 0).to(m.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (m,) = ctx.saved_tensors
        return gradient * ctx.slope(m), None


def indicators(
    *,
    strength: float | None = None,
    target: float | None = None,
    reach: float = 0.35,
    coarse: Literal["leaky", "softplus"] = "leaky",
    start: float = 0.1,
    end: int | None = None,
    strict: bool = False,
    learner: Learner | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that learns beside each weight whether it is there (AutoPrune, Xiao, Wang and Rajasekaran, NeurIPS 2019)."""
    if coarse not in _SLOPES:
        raise SecateursError(f'indicators: coarse={coarse!r} is "leaky" or "softplus"')
    strengths = Strength.of("indicators", strength, target, first=0.1, reach=reach)
    made = learner or (lambda values: torch.optim.Adam(values, lr=1e-2))
    where = Where(Element(), only, skip)
    begin = partial(_indicators, coarse, start)
    return Reparametrised("indicators", where, begin, made, strengths, end, strict).hook()


def _indicators(coarse: Literal["leaky", "softplus"], start: float, sites: Sites, chance: Chance) -> Beside:
    weights = {member.parameter: member.weight for site in sites for member in site.members}
    total = sum(weight.numel() for weight in weights.values())
    values = {name: torch.full_like(shard_of(weight.detach()), start, dtype=torch.float32) for name, weight in weights.items()}

    def weight(name: str, v: Tensor, values: Values, noise: Values) -> Tensor:
        return indicated(v, values[name], coarse)

    def penalty(values: Values) -> Tensor:
        return added(_Open.apply(value, _SLOPES[coarse]).sum() / total for value in values.values())  # type: ignore[no-untyped-call]

    def scores(v: Values, values: Values) -> Criterion:
        return learned({name: whole(from_shard(value, weights[name])) for name, value in values.items()}, "indicators")

    return Beside(values, {name: (name,) for name in weights}, weight, penalty=penalty, scores=scores)


# ---------------------------------------------------------------- soft movement


class _Moved(torch.autograd.Function):
    """v · [σ(S) > τ], straight through to S."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, scores: Tensor, threshold: float) -> Tensor:
        mask = (torch.sigmoid(scores) > threshold).to(v.dtype)
        ctx.save_for_backward(v, mask)
        return v * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        v, mask = ctx.saved_tensors
        return gradient * mask, gradient.float() * v, None


def soft_movement(
    *,
    strength: float | None = None,
    target: float | None = None,
    reach: float = 0.7,
    threshold: float = 0.1,
    end: int | None = None,
    strict: bool = False,
    learner: Learner | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that prunes weights whose learned score is low, as many as the loss lets go (soft movement pruning, 2005.07683).

    The network computes with v ⊙ [σ(S) > τ], where S, a score beside each weight, is 0 at first, and τ the ``threshold``. S takes the
    gradient of the product times v, straight through the mask, so that it falls where the loss moves a weight towards zero; and
    ``strength`` times the mean of σ(S) is added to the loss (not to the one that is told; the paper's λ is for the sum). ``target``: the
    sparsity for which the strength is found, by ``reach`` of the training (`Strength` states how). At the start of epoch `end`, or at
    the end, the choice becomes masks; a target that was not reached is told, or with ``strict=True`` met by the lowest scores.
    ``learner`` makes the optimizer of S, by default Adam of rate 0.01, which goes up and down with that of the weights.

    Raises `SecateursError` without strength and target, for numbers out of range, when everything is pruned, and with an optimizer
    that computes several gradients in one step.

    >>> soft_movement(target=0.9).name
    'soft_movement'
    """
    if not 0 < threshold < 0.5:
        raise SecateursError(f"soft_movement: threshold={threshold} must be in (0, 0.5), below what scores of 0 come to")
    strengths = Strength.of("soft_movement", strength, target, first=0.1, reach=reach)
    made = learner or (lambda values: torch.optim.Adam(values, lr=1e-2))
    begin, where = partial(_scores_that_move, threshold), Where(Element(), only, skip)
    return Reparametrised("soft_movement", where, begin, made, strengths, end, strict).hook()


def _scores_that_move(threshold: float, sites: Sites, chance: Chance) -> Beside:
    weights = {member.parameter: member.weight for site in sites for member in site.members}
    total = sum(weight.numel() for weight in weights.values())
    values = {name: torch.zeros_like(shard_of(weight.detach()), dtype=torch.float32) for name, weight in weights.items()}

    def scores(v: Values, values: Values) -> Criterion:
        return learned({name: whole(from_shard(value, weights[name])) for name, value in values.items()}, "soft_movement")

    return Beside(
        values,
        {name: (name,) for name in weights},
        lambda name, v, values, noise: _Moved.apply(v, values[name], threshold),  # type: ignore[no-untyped-call]
        penalty=lambda values: added(torch.sigmoid(value).sum() / total for value in values.values()),
        scores=scores,
    )
