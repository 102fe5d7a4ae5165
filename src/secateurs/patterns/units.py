"""Between a weight and its units: seeing, scoring and marking them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite, prod

import torch
from torch import Tensor

from secateurs.ranks import whole
from secateurs.types import Criterion, Evidence, Member, NonFiniteError, PatternError, Scores, Site


def weight_of(member: Member) -> Tensor:
    """The numbers that a member's layer computes with: all shards of them; what a mask of `torch.nn.utils.prune` hides is zero.

    >>> from torch.nn.utils import prune
    >>> from secateurs.patterns import Element, find_sites
    >>> member = find_sites(prune.l1_unstructured(torch.nn.Linear(2, 2), "bias", 1), Element())[0].members[0]
    >>> bool((weight_of(member) == member.weight).all())
    True
    """
    weight, attribute = whole(member.weight.detach()), member.attribute
    hidden = member.module._buffers.get(attribute.removesuffix("_orig") + "_mask") if attribute.endswith("_orig") else None
    return weight if hidden is None else weight * hidden


def finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; makes no tensor of that size.

    >>> finite(torch.ones(3)), finite(torch.tensor([1.0, torch.nan])), finite(torch.tensor([1.0, -torch.inf]))
    (True, False, False)
    """
    return tensor.numel() == 0 or all(isfinite(float(each)) for each in torch.aminmax(tensor))


def finite_weight_of(member: Member) -> Tensor:
    """As `weight_of`; raises `NonFiniteError` that names the parameter where a number is NaN or infinite."""
    weight = weight_of(member)
    if not finite(weight):
        raise NonFiniteError(f"{member.parameter}: a weight is NaN or infinite; restore a checkpoint from before they diverged")
    return weight


def as_units(site: Site, tensor: Tensor, member: int = 0) -> Tensor:
    """A tensor of a member's shape as ``(contests, competitors, *elements)``; copies only where the view cannot be flattened.

    >>> from torch import nn
    >>> from secateurs.patterns import Block, find_sites
    >>> site = find_sites(nn.Linear(8, 4), Block(2, 2), only="*")[0]
    >>> as_units(site, torch.zeros(4, 8)).shape
    torch.Size([1, 8, 2, 2])
    """
    part = site.members[member]
    view = part.cut(part.canonical(tensor))
    elements = view.shape[len(site.contests) + len(site.competitors) :]
    return view.reshape(site.contest_count, prod(site.competitors), *elements)


def with_alive(site: Site, masks: Mapping[str, Tensor] | None) -> Site:
    """The site with the units that earlier masks have left: those of which anything is left in any member."""
    alive: Tensor | None = None
    for index, member in enumerate(site.members):
        mask = None if masks is None else masks.get(member.parameter)
        if mask is None:
            continue
        if mask.shape != member.weight.shape:
            raise PatternError(
                f"{member.parameter}: the earlier mask is of shape {tuple(mask.shape)}, but the weight of {tuple(member.weight.shape)}: "
                "the masks belong to another model"
            )
        units = as_units(site, whole(mask), index)
        left = units.flatten(2).any(dim=2) if units.ndim > 2 else units
        alive = left if alive is None else alive | left.to(alive.device)
    return site if alive is None else replace(site, alive=alive)


def spread(site: Site, kept: Tensor, mask: Tensor, member: int = 0) -> None:
    """Write a choice of units, ``(contests, competitors)``, through to a mask of the member's shape, in place."""
    view, wide = _aligned(site, kept, mask, member)
    view.copy_(wide)


def marked(site: Site, kept: Tensor, member: int = 0) -> Tensor:
    """A mask of the member's shape that a choice of units, ``(contests, competitors)``, means; what lies in no unit is kept."""
    weight = site.members[member].weight
    mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
    view, wide = _aligned(site, kept, mask, member)
    if view.numel() < mask.numel():
        mask.fill_(True)
    view.copy_(wide)
    return mask


def restrict(site: Site, kept: Tensor, mask: Tensor, member: int = 0) -> None:
    """As `spread`, but what the mask has removed already stays removed."""
    view, wide = _aligned(site, kept, mask, member)
    view.view(torch.uint8).mul_(wide.view(torch.uint8))  # many times faster than logical_and_ on strided views


def _aligned(site: Site, kept: Tensor, mask: Tensor, member: int) -> tuple[Tensor, Tensor]:
    part = site.members[member]
    view = part.cut(part.canonical(mask))
    leading = (*site.contests, *site.competitors)
    strides = view.stride()
    least = min(strides[: len(leading)])
    # What lies side by side in memory is spelled out: whole stretches are many times faster than one short run after the other.
    beside = [size if stride < least else 1 for size, stride in zip(view.shape, strides, strict=True)][len(leading) :]
    return view, kept.view(*leading, *(1,) * len(beside)).expand(*leading, *beside).contiguous()


def unit_scores(site: Site, criterion: Criterion, evidence: Evidence, member: int = 0) -> Scores:
    """What a criterion says of each unit, ``(contests, competitors)``: single weights scored, then joined unit by unit.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.criteria import magnitude
    >>> from secateurs.patterns import Filter, find_sites
    >>> site = find_sites(nn.Linear(2, 2), Filter(), only="*")[0]
    >>> unit_scores(site, magnitude(p=1), Evidence("w", torch.tensor([[[3.0, -4.0], [1.0, 0.0]]])))
    tensor([[7., 1.]])
    """
    values = unit_elements(site, criterion, evidence, member)
    elements = tuple(range(len(site.contests) + len(site.competitors), values.ndim))
    joined = criterion.reduce(values, elements) if elements else values
    return joined.reshape(site.contest_count, prod(site.competitors))


def unit_elements(site: Site, criterion: Criterion, evidence: Evidence, member: int = 0) -> Tensor:
    """Scores of a member's single weights as ``(*contests, *competitors, *elements)``, before a unit's are joined.

    Those of a criterion that scores by `size` are the weights themselves where several make a unit.
    """
    part = site.members[member]
    if criterion.element is size and (values := part.cut(evidence.weight)).ndim > len(site.contests) + len(site.competitors):
        return values
    return part.cut(criterion.element(evidence).expand(evidence.weight.shape))


def size(evidence: Evidence) -> Tensor:
    """The absolute values of the weights: the ``element`` of a criterion whose ``reduce`` does not look at signs.

    Where several weights make a unit they are reduced as they are, without a copy of them all that has no signs.

    >>> size(Evidence("fc", torch.tensor([-2.0, 1.0])))
    tensor([2., 1.])
    """
    return evidence.weight.abs()


def joined_scores(site: Site, criterion: Criterion, evidence: Iterable[tuple[int, Evidence]]) -> Scores:
    """Scores of units that lie in several weights: the elements of all the members given, as one row for each unit.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.criteria import magnitude
    >>> from secateurs.patterns import Channel, find_sites
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> site = find_sites(model, Channel(), torch.zeros(1, 1))[0]
    >>> [member.parameter for member in site.members]
    ['0.weight', '2.weight', '0.bias']
    >>> joined_scores(site, magnitude(p=1), [(0, Evidence("a", torch.tensor([[[3.0], [1.0]]]))), (2, Evidence("b", torch.ones(2)))])
    tensor([[4., 2.]])
    """
    units = (site.contest_count, prod(site.competitors))
    rows = [unit_elements(site, criterion, each, member).reshape(*units, -1) for member, each in evidence]
    return criterion.reduce(rows[0] if len(rows) == 1 else torch.cat(rows, dim=2), (2,))
