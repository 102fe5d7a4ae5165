"""The units of some sites as groups of weights that a penalty brings to zero together: their norms, and what shrinks them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from secateurs.patterns import NORMALISATIONS, as_units
from secateurs.ranks import is_sharded, sharded_as, whole
from secateurs.types import Counted, PatternError, SecateursError, Site


@dataclass(frozen=True)
class Groups:
    """The groups of one site: each unit, or all of them ``as_one``, over those of its members that count and are trained."""

    site: Site
    members: tuple[int, ...]
    as_one: bool = False

    @property
    def size(self) -> int:
        """How many weights one group has."""
        shapes = (as_units(self.site, torch.empty(self.weight(index).shape, device="meta"), index).shape for index in self.members)
        sizes = sum(shape[2:].numel() for shape in shapes)
        return sizes * self.site.units if self.as_one else sizes

    @property
    def count(self) -> int:
        return 1 if self.as_one else self.site.units

    def weight(self, index: int) -> nn.Parameter:
        """The weight of a member."""
        return self.site.members[index].weight

    def norms(self) -> Tensor:
        """‖unit‖₂ as ``(contests, competitors)``, in float32 at least; of all ``as_one``: ``(1, 1)``. Its gradient at zero is zero."""
        return self._joined([whole(self.weight(index)) for index in self.members])

    def _joined(self, weights: Sequence[Tensor]) -> Tensor:
        rows: list[Tensor] = []
        for index, weight in zip(self.members, weights, strict=True):
            units = as_units(self.site, weight, index)
            dtype = torch.promote_types(units.dtype, torch.float32)
            dims = tuple(range(2, units.ndim))
            rows.append(torch.linalg.vector_norm(units, dim=dims, dtype=dtype) if dims else units.to(dtype).abs())
        norms = rows[0]
        if len(rows) > 1:
            norms = torch.linalg.vector_norm(torch.stack([row.to(norms.device) for row in rows]), dim=0)
        return torch.linalg.vector_norm(norms).view(1, 1) if self.as_one else norms

    @torch.no_grad()
    def scale_(self, factors: Callable[[Tensor], Tensor]) -> None:
        """Multiply each group with what is made of the norms, in place."""
        weights = [whole(self.weight(index).detach()) for index in self.members]
        by = factors(self._joined(weights))
        if self.as_one:
            by = by.expand(self.site.contest_count, self.site.units // self.site.contest_count)
        leading = (*self.site.contests, *self.site.competitors)
        for index, weight in zip(self.members, weights, strict=True):
            part = self.site.members[index]
            view = part.cut(part.canonical(weight))
            view.mul_(by.reshape(*leading, *(1,) * (view.ndim - len(leading))).to(device=view.device, dtype=view.dtype))
            if is_sharded(part.weight):
                part.weight.detach().copy_(sharded_as(weight, part.weight))


def groups_of(sites: Sequence[Site], members: Counted, as_one: bool, trained: Container[int], who: str) -> tuple[Groups, ...]:
    """The groups of each site that has any; ``trained`` are the ids of the parameters that the optimizer trains.

    Warns of weights that are not trained, which the groups then go without. Raises `PatternError` where no site has such members,
    `SecateursError` where none of their weights is trained.
    """
    counted = [(site, tuple(_counted(site, members))) for site in sites]
    if not any(indices for _, indices in counted):
        raise PatternError(
            f"{who}: of {', '.join(site.name for site in sites[:5])} no unit lies in a member of the kind {members!r}: take "
            'members="all", or Channel() on a model that has such layers'
        )
    left_out: list[str] = []
    found: list[Groups] = []
    for site, indices in counted:
        used = tuple(index for index in indices if id(site.members[index].weight) in trained)
        left_out += [site.members[index].parameter for index in indices if index not in used]
        if used:
            found.append(Groups(site, used, as_one))
    require_trained(who, left_out, bool(found))
    return tuple(found)


def require_trained(who: str, left_out: Sequence[str], any_trained: bool) -> None:
    """Warn of the parameters that are not trained; raise `SecateursError` where no other is left."""
    names = list(dict.fromkeys(left_out))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if not any_trained:
        raise SecateursError(
            f"{who}: all that it is to make smaller is frozen (requires_grad=False) or not given to the optimizer: {shown}; train it, or "
            "choose other weights with only="
        )
    if names:
        warnings.warn(
            f"{who}: {shown} are frozen (requires_grad=False) or not given to the optimizer, so that nothing makes them smaller: they "
            "are left out of the penalty; choose with only= or skip=",
            stacklevel=4,
        )


def _counted(site: Site, members: Counted) -> Iterator[int]:
    """The members of a kind. Of a site in one weight alone that is the one whatever the kind, but for the scales."""
    for index, member in enumerate(site.members):
        scale = isinstance(member.module, NORMALISATIONS) and member.attribute == "weight"
        match members:
            case "all":
                counts = True
            case "norms":
                counts = scale
            case "producers":
                counts = member.role == "producer" and member.weight.ndim > 1
            case "consumers":
                counts = member.role == "consumer" and member.weight.ndim > 1
        if counts and member.weight.numel():
            yield index


def root_mean_squares(groups: Sequence[Groups]) -> Tensor:
    """The root mean square of the weights of each group, of all sites in one row, on the device of the first."""
    with torch.no_grad():
        rows = [each.norms().flatten() / sqrt(each.size) for each in groups]
    return torch.cat([row.to(rows[0].device) for row in rows])
