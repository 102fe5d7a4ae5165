"""Between a weight and its units: seeing, scoring and marking them."""

from __future__ import annotations

from math import prod

from torch import Tensor

from secateurs.types import Criterion, Evidence, Scores, Site


def as_units(site: Site, tensor: Tensor, member: int = 0) -> Tensor:
    """A tensor of a member's shape as ``(contests, competitors, *elements)``; copies only where the view cannot be flattened.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.patterns import Block, find_sites
    >>> site = find_sites(nn.Linear(8, 4), Block(2, 2), skip=())[0]
    >>> as_units(site, torch.zeros(4, 8)).shape
    torch.Size([1, 8, 2, 2])
    """
    part = site.members[member]
    view = part.cut(part.canonical(tensor))
    elements = view.shape[len(site.contests) + len(site.competitors) :]
    return view.reshape(site.contest_count, prod(site.competitors), *elements)


def spread(site: Site, kept: Tensor, mask: Tensor, member: int = 0) -> None:
    """Write a choice of units, ``(contests, competitors)``, through to a mask of the member's shape, in place."""
    part = site.members[member]
    view = part.cut(part.canonical(mask))
    leading = (*site.contests, *site.competitors)
    view.copy_(kept.view(*leading, *(1,) * (view.ndim - len(leading))).expand_as(view))


def unit_scores(site: Site, criterion: Criterion, evidence: Evidence, member: int = 0) -> Scores:
    """What a criterion says of each unit, ``(contests, competitors)``: single weights scored, then joined unit by unit.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.criteria import magnitude
    >>> from secateurs.patterns import Filter, find_sites
    >>> site = find_sites(nn.Linear(2, 2), Filter(), skip=())[0]
    >>> unit_scores(site, magnitude(p=1), Evidence("w", torch.tensor([[[3.0, -4.0], [1.0, 0.0]]])))
    tensor([[7., 1.]])
    """
    values = site.members[member].cut(criterion.element(evidence).expand(evidence.weight.shape))
    elements = tuple(range(len(site.contests) + len(site.competitors), values.ndim))
    joined = criterion.reduce(values, elements) if elements else values
    return joined.reshape(site.contest_count, prod(site.competitors))
