"""Masks of N in each M consecutive weights that are learned: refined through the straight path, or chosen among all that there are."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from secateurs.patterns import NofM, Selection, as_units, marked
from secateurs.ranks import any_sharded, from_shard, shard_of, sharded_as, whole
from secateurs.recover.reparametrised import Beside, Chance, Learner, Reparametrised, Values, Where
from secateurs.recover.strength import Strength
from secateurs.types import Hook, SecateursError, Site, Sites


class _Straight(torch.autograd.Function):
    """v ⊙ mask, whose gradient passes to v as if there were no mask."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, mask: Tensor) -> Tensor:
        return v * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def largest(site: Site, weight: Tensor) -> Tensor:
    """The mask of the N largest weights in each M, as the pattern of a site says.

    >>> from secateurs import find_sites
    >>> site = find_sites(torch.nn.Linear(4, 1), NofM(2, 4), only="*")[0]
    >>> largest(site, torch.tensor([[1.0, -3.0, 2.0, 0.5]]))
    tensor([[False,  True,  True, False]])
    """
    kept = site.pattern.kept_of_each
    assert kept is not None
    sizes = as_units(site, weight.detach().abs())
    chosen = torch.zeros_like(sizes, dtype=torch.bool).scatter_(1, sizes.topk(kept, dim=1).indices, True)
    return marked(site, chosen)


def sparse_refined(
    *,
    n: int = 2,
    m: int = 4,
    strength: float = 2e-4,
    end: int | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that trains with the N largest of each M weights, chosen anew in each step (SR-STE, 2102.04010).

    The network computes with v ⊙ M, where M marks the largest; the gradient passes straight through to all of v, so that weights which
    are not used go on learning, and those have a decay of their own, ``strength · (1 − M) ⊙ v`` (the paper's λ_W), which calms the
    choice. At the start of epoch `end`, or at the end, M becomes the masks. Raises `SecateursError` for a negative strength, and with an
    optimizer that computes several gradients in one step.

    >>> sparse_refined().name
    'sparse_refined'
    """
    strengths = Strength.of("sparse_refined", strength, None, first=strength)
    where = Where(NofM(n, m), only, skip)
    return Reparametrised("sparse_refined", where, _refined, _sgd, strengths, end).hook()


def _sgd(values: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(values, lr=0.1)


def _refined(sites: Sites, chance: Chance) -> Beside:
    site_of = {site.members[0].parameter: site for site in sites}

    def mask(name: str, v: Tensor) -> Tensor:
        site = site_of[name]
        like = site.members[0].weight
        return shard_of(sharded_as(largest(site, whole(from_shard(v.detach(), like))), like))

    def pull(name: str, v: Tensor, w: Tensor) -> Tensor:
        return v * ~mask(name, v)

    return Beside(
        {},
        dict.fromkeys(site_of, ()),
        lambda name, v, values, noise: _Straight.apply(v, mask(name, v)),  # type: ignore[no-untyped-call]
        pull=pull,
    )


# ---------------------------------------------------------------- a choice among all masks


def candidates(n: int, m: int) -> Tensor:
    """All masks of n in m, one a row: six of 2:4.

    >>> candidates(1, 3)
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 0., 1.]])
    """
    rows = [[float(place in chosen) for place in range(m)] for chosen in combinations(range(m), n)]
    return torch.tensor(rows)


def mixed_mask(logits: Tensor, masks: Tensor, gumbel: Tensor | None, scale: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Σ pᵢ·maskᵢ with p = softmax((κ·logits + gumbel) / τ), ``(groups, m)``; without noise the mask of the highest (2409.17481, eq. 5–7).

    >>> mixed_mask(torch.tensor([[0.0, 9.0, 0.0]]), candidates(1, 3), None)
    tensor([[0., 1., 0.]])
    """
    if gumbel is None:
        return masks[logits.argmax(1)]
    return torch.softmax((scale * logits + gumbel) / temperature, dim=1) @ masks


def learned_n_of_m(
    *,
    n: int = 2,
    m: int = 4,
    strength: float = 1e-5,
    prior: Mapping[str, Tensor] | None = None,
    trust: float = 3.0,
    frozen: bool = True,
    scales: tuple[float, float] = (100.0, 500.0),
    temperatures: tuple[float, float] = (4.0, 0.05),
    seed: int = 0,
    end: int | None = None,
    learner: Learner | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that learns which N of each M weights stay, a choice among all such masks (MaskLLM, 2409.17481).

    Beside each M weights stand logits, one for each of the C(M, N) masks. In training the network computes with v ⊙ Σ pᵢ·maskᵢ, where p is
    the softmax of (κ · logits + Gumbel noise) / τ; κ grows and τ falls along lines, from the first to the second of ``scales`` and
    ``temperatures``, so that the choice becomes one. In evaluation, and at the end, it is the mask of the highest logit.
    −``strength`` · Σ w² is added to the loss (not to the one that is told), which keeps large weights. The logits begin as noise of
    standard deviation 0.01, and ``trust`` times that for each weight that a mask shares with the ``prior`` masks (those of SparseGPT or
    Wanda, say; by default of the largest). ``frozen``: the weights stay as they are, only the masks are learned; the optimizer must know
    them all the same, as their gradients are needed. ``learner`` makes the optimizer of the logits, by default Adam of rate 0.001.

    Raises `SecateursError` for numbers that make no sense, for sharded weights, for more than 10,000 masks to choose among, and with an
    optimizer that computes several gradients in one step.

    >>> learned_n_of_m().name
    'learned_n_of_m'
    """
    if min(*scales, *temperatures) <= 0 or trust < 0:
        raise SecateursError(
            f"learned_n_of_m: scales={scales} and temperatures={temperatures} must be above 0, trust={trust} not below"
        )
    masks = _some(n, m)
    strengths = Strength.of("learned_n_of_m", strength, None, first=strength)
    made = learner or (lambda values: torch.optim.Adam(values, lr=1e-3))

    def begin(sites: Sites, chance: Chance) -> Beside:
        return _choices(sites, Chance(seed), masks, prior, trust, scales, temperatures)

    where = Where(NofM(n, m), only, skip)
    return Reparametrised("learned_n_of_m", where, begin, made, strengths, end, frozen=frozen, chance=Chance(seed + 1)).hook()


def _some(n: int, m: int) -> Tensor:
    NofM(n, m)  # says what is wrong with them
    if sum(1 for _, _ in zip(combinations(range(m), n), range(10_001), strict=False)) > 10_000:
        raise SecateursError(f"learned_n_of_m: there are more than 10,000 masks of {n} in {m} to choose among: take a smaller m")
    return candidates(n, m)


def _choices(
    sites: Sites,
    chance: Chance,
    masks: Tensor,
    prior: Mapping[str, Tensor] | None,
    trust: float,
    scales: tuple[float, float],
    temperatures: tuple[float, float],
) -> Beside:
    site_of = {site.members[0].parameter: site for site in sites}
    weights = {name: site.members[0].weight for name, site in site_of.items()}
    if any_sharded(weights.values()):
        raise SecateursError(
            "learned_n_of_m: the model is sharded (fully_shard), and groups of weights may be too: learn masks first, then shard"
        )
    values = {}
    for name, site in site_of.items():
        if prior is not None and name not in prior:
            raise SecateursError(
                f"learned_n_of_m: the prior masks say nothing of {name}; they are of {', '.join(prior) or 'nothing'}"
            )
        before = largest(site, weights[name]) if prior is None else prior[name].to(weights[name].device)
        shared = as_units(site, before.float()) @ masks.T.to(before.device)
        values[name] = 0.01 * (chance.normal(shared.shape, before) + trust * (shared - shared.mean(1, keepdim=True)))

    def between(ends: tuple[float, float], progress: Tensor | float) -> float:
        return ends[0] + (ends[1] - ends[0]) * float(progress)

    def weight(name: str, v: Tensor, values: Values, noise: Values) -> Tensor:
        over = masks.to(v.device)
        gumbel, progress = noise.get(name), noise.get("", 0.0)
        mixed = mixed_mask(values[name], over, gumbel, between(scales, progress), between(temperatures, progress))
        member, mask = site_of[name].members[0], torch.ones_like(v)
        view = member.cut(member.canonical(mask))
        view.copy_(mixed.view(view.shape))
        return v * mask

    def noise(chance: Chance, progress: float) -> dict[str, Tensor]:
        drawn = {name: chance.uniform(value.shape, value).clamp(1e-10, 1 - 1e-7) for name, value in values.items()}
        return {"": torch.tensor(progress), **{name: -torch.log(-torch.log(u)) for name, u in drawn.items()}}

    return Beside(values, {name: (name,) for name in values}, weight, noise=noise, lean=lambda name, w: -2 * w)
