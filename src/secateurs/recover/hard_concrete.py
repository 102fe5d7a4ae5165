"""Gates on weights or on whole units, whose expected number is in the loss: L0 regularisation (1712.01312)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import log

import torch
from torch import Tensor

from secateurs.criteria import learned
from secateurs.patterns import Element, Selection
from secateurs.ranks import from_shard, over_shards, shard_of, sharded_as, whole
from secateurs.recover.reparametrised import Beside, Chance, Learner, Reparametrised, Values, Where, added
from secateurs.recover.strength import Strength
from secateurs.types import Criterion, Hook, Pattern, SecateursError, Site, Sites

_LOW, _HIGH, _TEMPERATURE = -0.1, 1.1, 2 / 3  # γ, ζ and β of the paper


def hard_concrete(log_alpha: Tensor, uniform: Tensor | None = None) -> Tensor:
    """A gate in [0, 1], often one of both to the bit: of uniform noise in (0, 1), or without, as in evaluation (1712.01312, eq. 10–13).

    min(1, max(0, s·(ζ − γ) + γ)), with s = σ((log u − log(1 − u) + log α) / β), in evaluation s = σ(log α); γ = −0.1, ζ = 1.1, β = 2/3.

    >>> hard_concrete(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    if uniform is None:
        s = torch.sigmoid(log_alpha)
    else:
        u = uniform.clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + log_alpha) / _TEMPERATURE)
    return (s * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """How probable it is that a gate is not zero: σ(log α − β·log(−γ/ζ)).

    >>> open_probability(torch.tensor([-2.0, 0.0, 2.0]))
    tensor([0.4010, 0.8318, 0.9734])
    """
    return torch.sigmoid(log_alpha - _TEMPERATURE * log(-_LOW / _HIGH))


def l0_gates(
    *,
    strength: float | None = None,
    target: float | None = None,
    reach: float = 0.7,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    start: float = 0.95,
    seed: int = 0,
    end: int | None = None,
    strict: bool = False,
    learner: Learner | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that learns a gate for each weight, or each unit of a pattern, with the expected number of open ones in the loss (1712.01312).

    The network computes with v · z. In training the gates z are drawn anew for each step (hard concrete: `hard_concrete`), in evaluation
    they are as they are most of the time. ``strength`` times the expected fraction of the units' weights whose gates are open is added
    to the loss (not to the one that is told). ``start`` is how probable it is at first that a gate is open. Gates of coupled units
    (`Channel`, `Head`) are on the weights that read them; when they close, all that makes them goes too.

    ``target``: the sparsity for which the strength is found, by `reach` of the training. At the start of epoch `end`, or at the end, closed
    gates become masks, and open ones part of the weights. Where the target was not reached, a warning says so, or with ``strict=True``
    the units of the lowest gates go until it is. ``learner`` makes the optimizer of the gates, by default Adam with learning rate 0.05,
    which goes up and down with that of the weights. The noise is that of a generator of its own, of ``seed``, alike in all processes.
    A loop of one's own must call the model itself, in training mode.

    Raises `SecateursError` without strength and target, for numbers out of range, when everything is pruned, and with an optimizer
    that computes several gradients in one step.

    >>> from secateurs import Filter
    >>> l0_gates(target=0.5, pattern=Filter()).name
    'l0_gates'
    """
    if not 0 < start < 1:
        raise SecateursError(f"l0_gates: start={start}, how probable it is that a gate is open at first, is not in (0, 1)")
    if pattern.kept_of_each is not None:
        raise SecateursError(f"l0_gates: {pattern} says itself how many units stay: take learned_n_of_m")
    strengths = Strength.of("l0_gates", strength, target, first=1.0, reach=reach)
    made = learner or (lambda values: torch.optim.Adam(values, lr=0.05))
    log_alpha = log(start / (1 - start)) + _TEMPERATURE * log(-_LOW / _HIGH)
    begin = partial(_gates, log_alpha)
    return Reparametrised("l0_gates", Where(pattern, only, skip), begin, made, strengths, end, strict, chance=Chance(seed)).hook()


@dataclass(frozen=True)
class _Gated:
    """One weight's units of one site: ``index`` tells of each of its numbers in which unit it lies, the last for those in none."""

    site: str
    index: Tensor

    def open(self, gates: Tensor) -> Tensor:
        return torch.cat([gates, gates.new_ones(1)]).to(self.index.device)[self.index]


def _gates(log_alpha: float, sites: Sites, chance: Chance) -> Beside:
    alone = all(len(site.members) == 1 and site.units == site.members[0].weight.numel() for site in sites)
    return (_of_weights if alone else _of_units)(log_alpha, sites)


def _of_weights(log_alpha: float, sites: Sites) -> Beside:
    """A gate for each weight."""
    weights = {site.members[0].parameter: site.members[0].weight for site in sites}
    total = sum(weight.numel() for weight in weights.values())
    values = {name: torch.full_like(shard_of(each.detach()), log_alpha, dtype=torch.float32) for name, each in weights.items()}

    def noise(chance: Chance, progress: float) -> dict[str, Tensor]:
        return {name: shard_of(sharded_as(chance.uniform(each.shape, each), each)) for name, each in weights.items()}

    def scores(v: Values, values: Values) -> Criterion:
        return learned({name: whole(from_shard(value, weights[name])) for name, value in values.items()}, "l0_gates")

    return Beside(
        values,
        {name: (name,) for name in weights},
        lambda name, v, values, noise: v * hard_concrete(values[name], noise.get(name)),
        penalty=lambda values: added(open_probability(value).sum() / total for value in values.values()),
        noise=noise,
        scores=scores,
        expected=lambda values: (
            float(added(over_shards(open_probability(values[name].detach()).sum(), weights[name]) for name in values)) / total
        ),
    )


def _of_units(log_alpha: float, sites: Sites) -> Beside:
    """A gate for each unit, which all weights share in which it is read (or made, where nothing reads it)."""
    gated: dict[str, list[_Gated]] = {}
    for site in sites:
        for number in _members(site):
            gated.setdefault(site.members[number].parameter, []).append(_Gated(site.name, _index(site, number)))
    first = {site.name: site.members[0].weight for site in sites}
    values = {site.name: torch.full((site.units,), log_alpha, device=first[site.name].device) for site in sites}
    shares = _shares(sites)

    def weight(name: str, v: Tensor, values: Values, noise: Values) -> Tensor:
        for each in gated[name]:
            v = v * each.open(hard_concrete(values[each.site], noise.get(each.site)))
        return v

    def kept(values: Values) -> Mapping[str, Tensor]:
        found = {site.name: (hard_concrete(values[site.name]) > 0).view(site.contest_count, -1) for site in sites}
        return {site.name: found[site.name] if site.alive is None else found[site.name] & site.alive for site in sites}

    return Beside(
        values,
        {name: tuple(dict.fromkeys(each.site for each in all_of_it)) for name, all_of_it in gated.items()},
        weight,
        shared=True,
        penalty=lambda values: added(open_probability(values[name]).sum() * share for name, share in shares.items()),
        noise=lambda chance, progress: {site.name: chance.uniform((site.units,), first[site.name]) for site in sites},
        scores=lambda v, values: learned(values, "l0_gates", of="units"),
        kept=kept,
        expected=lambda values: float(
            added(open_probability(values[name].detach()).sum() * share for name, share in shares.items())
        ),
    )


def _members(site: Site) -> list[int]:
    """The members that a gate is put on: those that read the units, or where none does, those that make them."""
    readers = [number for number, member in enumerate(site.members) if member.role == "consumer"]
    return readers or [number for number, member in enumerate(site.members) if member.role == "producer"]


def _index(site: Site, number: int) -> Tensor:
    member = site.members[number]
    index = torch.full(member.weight.shape, site.units, dtype=torch.int32, device=member.weight.device)
    view = member.cut(member.canonical(index))
    leading = (*site.contests, *site.competitors)
    units = torch.arange(site.units, dtype=torch.int32, device=index.device)
    view.copy_(units.view(*leading, *(1,) * (view.ndim - len(leading))).expand(view.shape))
    return shard_of(sharded_as(index, member.weight))


def _shares(sites: Sites) -> dict[str, float]:
    """What fraction of all sites' weights one unit of each is."""
    total = sum(site.units * site.elements_per_unit for site in sites)
    return {site.name: site.elements_per_unit / total for site in sites}
