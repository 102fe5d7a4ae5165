"""The pattern whose units are the experts of mixtures, with the rows of the router that choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import modules_in, parameters_in
from secateurs.graph import Routed, mixtures_of
from secateurs.patterns.canonical import layout_of
from secateurs.patterns.depth import AsOne, as_it_is
from secateurs.patterns.selection import among, listed
from secateurs.patterns.shapes import written
from secateurs.patterns.units import with_alive
from secateurs.types import Chosen, Cut, Extents, Member, Mixture, PatternError, Role, Site, Sites, Within


@dataclass(frozen=True)
class Expert:
    """Experts of mixtures, each with all its matrices and the row of the router that chooses it (2510.13999).

    Routed where an example's tokens are sent to the highest of a router's scores (``topk``): experts whose matrices lie in one parameter,
    as those of current transformers, are the units of one site; those of a list of modules are a site each. Experts of one mixture
    compete, or with ``within="model"`` all. No mixture keeps fewer than each token is sent to. A masked expert gives zeros but may
    still be chosen: it is gone, and tokens go to others, after `shrink_`, which checks that against routers that never choose it.

    >>> Expert(within="model")
    Expert(within='model')
    """

    within: Within = "isomorphic"

    __repr__ = written
    removable = True

    def __post_init__(self) -> None:
        if self.within not in ("isomorphic", "model"):
            raise PatternError(f'Expert: within is "isomorphic" (the experts of one mixture) or "model", not {self.within!r}')

    @property
    def kept_of_each(self) -> None:
        return None

    def cut(self, shape: Sequence[int]) -> Cut:
        """Cuts no weight; always raises `PatternError`."""
        raise PatternError(f"{self} removes whole experts, not parts of one weight: print(find_sites(...)) shows them")

    def sites(self, model: nn.Module, example: Any, chosen: Chosen, masks: Mapping[str, Tensor] | None) -> Sites:
        """A site a mixture, or of a list an expert.

        Raises `PatternError` where there is none, `TaskError` where the model rejects the example.
        """
        found, skipped = mixtures_of(model, example)
        sites = [site for each in found for site in _sites(self, each, modules_in(model))]
        every = Sites(tuple(sites), tuple(skipped), model, example, _extents(sites))
        left = among(every, chosen)
        if not left:
            wanted = "no router that sends each token to some of several experts"
            raise PatternError(f"{self} finds no site in {type(model).__name__}; {listed(left.skipped, wanted)}")
        return replace(left, found=tuple(with_alive(site, masks) for site in left))


# ---------------------------------------------------------------- sites


@dataclass(frozen=True)
class Row:
    """One index of a dimension as one unit."""

    index: int
    dim: int = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """``(1, *elements)``; what is written to it is written to the tensor."""
        return tensor.narrow(self.dim, self.index, 1).movedim(self.dim, 0)


@dataclass(frozen=True)
class Rows:
    """The indices of a dimension as units."""

    dim: int = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """``(units, *elements)``; what is written to it is written to the tensor."""
        return tensor.movedim(self.dim, 0)


def _sites(pattern: Expert, found: Routed, held: Mapping[str, nn.Module]) -> Iterator[Site]:
    kind = f"experts of {found.name or 'the model'}"
    routers = [(name, _dim(name, found, held)) for name in found.router if _attribute(name, held) is not None]
    if not found.listed:
        inside = [key for key, value in held[found.experts]._parameters.items() if value is not None and len(value) == found.count]
        members = [_member(f"{found.experts}.{key}".strip("."), held, Rows(), "producer") for key in inside]
        members += [_member(name, held, Rows(dim), "scale") for name, dim in routers]
        size = sum(member.weight.numel() for member in members) // found.count
        where = Mixture(found.experts, None, found.top)
        yield Site(found.name or "experts", tuple(members), (), (found.count,), size, pattern, kind=kind, note=_NOTE, mixture=where)
        return
    for index in range(found.count):
        path = f"{found.experts}.{index}"
        inside = list(parameters_in(held[path]))
        members = [_member(f"{path}.{name}", held, AsOne(), "producer") for name in inside]
        members += [_member(name, held, Row(index, dim), "scale") for name, dim in routers]
        size = sum(member.cut(torch.empty(member.shape, device="meta")).numel() for member in members)
        where = Mixture(found.experts, index, found.top)
        yield Site(path, tuple(members), (), (1,), size, pattern, kind=kind, note=_NOTE, whole=True, mixture=where)


_NOTE = "approximate: who is not there cannot be chosen"


def _attribute(name: str, held: Mapping[str, nn.Module]) -> Any:
    path, _, key = name.rpartition(".")
    return held[path]._parameters.get(key)


def _dim(name: str, found: Routed, held: Mapping[str, nn.Module]) -> int:
    """The dimension of a router's weight that counts the experts."""
    return 0 if len(_attribute(name, held)) == found.count else 1


def _member(name: str, held: Mapping[str, nn.Module], cut: Any, role: Role) -> Member:
    path, _, attribute = name.rpartition(".")
    layout = layout_of(held[path], attribute) if role == "producer" and isinstance(cut, (AsOne, Rows)) else None
    stacked = layout is not None and layout.stacked
    canonical = layout if layout is not None and (stacked or isinstance(cut, AsOne)) else as_it_is
    return Member(name, held[path], attribute, canonical, cut, role, stacked)


def _extents(sites: Sequence[Site]) -> Extents:
    """Sizes of the parameters in numbers of kept units."""
    found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for site in sites:
        for member in site.members:
            view = member.cut(torch.empty(member.shape, device="meta"))
            found.setdefault(member.parameter, []).append((view.numel() // site.units, (site.name,)))
    return {name: ((tuple(terms),),) for name, terms in found.items()}
