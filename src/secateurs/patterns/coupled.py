"""The patterns whose units are indices of an axis, with everything that is coupled to them: channels, neurons, heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

from torch import Tensor, nn

from secateurs.forward import modules_in
from secateurs.graph import Axis, Dim, Place, Structure, View, extent, normal
from secateurs.patterns.canonical import Layout, layout_of, quantised
from secateurs.patterns.shapes import check_length, check_within, written
from secateurs.types import Coupling, Extents, Member, PatternError, Product, Site, Sites, Skipped, Within


@dataclass(frozen=True)
class Channel:
    """Channels, neurons, heads and groups, each removed from every weight where it lies (2301.12900, found by type inference).

    ``round_to`` keeps widths multiples of a number that the hardware likes. ``approximate=True`` lets axes take part over which a
    normalisation or a softmax runs: removing them is not the same as zeroing them. ``within="isomorphic"`` compares sites that are
    coupled in the same way (2407.04616), ``"model"`` all of them.

    >>> Channel(round_to=8)
    Channel(round_to=8)
    """

    within: Within = "layer"
    round_to: int = 1
    approximate: bool = False

    __repr__ = written

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kept_of_each(self) -> None:
        return None

    @property
    def only_heads(self) -> bool:
        return False


@dataclass(frozen=True)
class Head:
    """Attention heads, with their part of every projection (1905.10650); key and value heads with all the queries that share them.

    >>> Head(within="model")
    Head(within='model')
    """

    within: Within = "layer"

    __repr__ = written

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kept_of_each(self) -> None:
        return None

    @property
    def round_to(self) -> int:
        return 1

    @property
    def approximate(self) -> bool:
        return False

    @property
    def only_heads(self) -> bool:
        return True


def _check(pattern: Coupling) -> None:
    check_within(pattern, pattern.within)
    check_length(pattern, "round_to", pattern.round_to)
    if pattern.within == "row" or isinstance(pattern.within, int):
        raise PatternError(f'{pattern}: whole channels compete within "layer", "isomorphic" or "model"')


# ---------------------------------------------------------------- from axes to sites


def coupled_sites(
    model: nn.Module, pattern: Coupling, example: Any, structure: Structure, asked: Callable[[Site], bool] | None = None
) -> Sites:
    """Every site of a pattern on a model's axes, and what stays as it is. ``asked`` tells which were named themselves.

    Raises `TaskError` where the model rejects the example.
    """
    names = axis_names(structure)
    modules = modules_in(model)
    found: dict[Axis, Site] = {}
    skipped: list[Skipped] = [
        Skipped(f"operation {name}", f"no rule is known for it, so what it touches is pinned (first at {where})")
        for name, where in structure.typing.unknown.items()
    ]
    skipped += [Skipped("trace", note) for note in structure.trace.notes] + quantised(model)
    for axis in structure.axes:
        if axis not in names or (pattern.only_heads and axis.heads is None):
            continue
        reason = axis.pinned or (None if pattern.approximate or not axis.approximate else f"approximate: {axis.approximate}")
        if reason is not None:
            skipped.append(Skipped(names[axis], reason))
            continue
        site = _site(pattern, axis, names[axis], structure.places[axis], modules)
        named = asked is not None and asked(site)
        if axis in structure.inner and not named and structure.inner[axis] in names and not pattern.only_heads:
            outer = names[structure.inner[axis]]
            skipped.append(Skipped(site.name, f"lies within each unit of {outer}; name it in only= to prune it"))
        else:
            found[axis] = site
    return Sites(tuple(found.values()), tuple(skipped), model, example, _extents(structure, names, found), structure)


def axis_names(structure: Structure) -> dict[Axis, str]:
    """A name for each axis that a weight makes: the layer's, with what part of it the axis is where it is not the whole."""
    names: dict[Axis, str] = {}
    for axis in structure.axes:
        makers = structure.producers.get(axis, [])
        if axis.size == 1 or axis not in structure.places or not makers:
            continue
        base = makers[0].removesuffix(".weight")
        part = _part(axis, structure.parameters[makers[0]])
        if axis.heads is not None and part is None:
            name = f"{axis.heads}:heads" if axis.heads else "heads"
        else:
            name = base + (f":{axis.size}" if part is None else part)
        taken = sum(each == name or each.startswith(f"{name}#") for each in names.values())
        names[axis] = name if not taken else f"{name}#{taken + 1}"
    return names


def _part(axis: Axis, dims: list[Dim]) -> str | None:
    """Nothing where an axis is the whole of some dimension, its stretch where it is a part, ``None`` where it is only a factor."""
    for dim in dims:
        start, terms = 0, normal(dim).terms
        for term in terms:
            size = Dim((term,)).size
            if term == (axis,):
                return "" if len(terms) == 1 else f"[{start}:{start + size}]"
            start += size
    return None


def _site(pattern: Coupling, axis: Axis, name: str, places: list[Place], modules: Mapping[str, nn.Module]) -> Site:
    members = tuple(_member(place, modules) for place in places)
    shapes = [member.weight.shape for member in members]
    width = places[0].view.width  # indices that one unit takes: the width of a head
    kinds = Counter(
        f"{type(member.module).__name__}.{member.attribute}:{member.role}:{place.dim}"
        for member, place in zip(members, places, strict=True)
    )
    note = f"approximate: {axis.approximate}" if axis.approximate else "exact"
    return Site(
        name,
        members,
        (),
        (axis.size,),
        sum(shape.numel() // shape[place.dim] * place.view.width for shape, place in zip(shapes, places, strict=True)),
        pattern,
        step=pattern.round_to // gcd(pattern.round_to, width),
        kind=", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())),
        note=note,
    )


def _member(place: Place, modules: Mapping[str, nn.Module]) -> Member:
    path, _, attribute = place.parameter.rpartition(".")
    module = modules[path]
    layout = layout_of(module, attribute)
    canonical, stacked = (_as_it_is, False) if layout is None else (layout, layout.stacked)
    return Member(place.parameter, module, attribute, canonical, Slices(place.view, place.dim, layout), place.role, stacked)


@dataclass(frozen=True)
class Slices:
    """A canonical view as units: the slices along an axis, where it lies in a dimension of the parameter."""

    where: View
    dim: int
    layout: Layout | None

    def __call__(self, tensor: Tensor) -> Tensor:
        """``(units, *elements)``; what is written to it is written to the tensor."""
        return self.where(tensor if self.layout is None else self.layout.restore(tensor), self.dim)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _extents(structure: Structure, names: Mapping[Axis, str], found: Mapping[Axis, Site]) -> Extents:
    """Sizes of every tensor that the sites reach, and the MACs of the model, in numbers of kept units."""
    known = {axis: names[axis] for axis in found}
    extents: dict[str, tuple[Product, ...]] = {}
    for name, dims in {**structure.parameters, **structure.buffers}.items():
        product = tuple([extent(dim, known) for dim in dims])
        if any(sites for dim in product for _, sites in dim):
            extents[name] = (product,)
    extents["macs"] = tuple(tuple(extent(dim, known) for dim in product) for product in structure.typing.products)
    return extents


def extents_without(extents: Extents, whole: Mapping[str, int]) -> Extents:
    """Extents in which sites that take no part any more keep all their units: name → how many there are.

    >>> extents_without({"macs": ((((3, ("a", "b")),),),)}, {"b": 5})
    {'macs': ((((15, ('a',)),),),)}
    """

    if not whole:
        return extents

    def kept_whole(number: int, sites: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        return number * prod(whole.get(site, 1) for site in sites), tuple(site for site in sites if site not in whole)

    return {
        name: tuple(tuple(tuple(kept_whole(*term) for term in dim) for dim in product) for product in products)
        for name, products in extents.items()
    }


def with_alive(site: Site, masks: Mapping[str, Tensor] | None) -> Site:
    """The site with the units that earlier masks have left."""
    parts = [
        member.cut(member.canonical(masks[member.parameter])) for member in site.members if masks and member.parameter in masks
    ]
    if not parts:
        return site
    alive = parts[0].flatten(1).any(1)
    for part in parts[1:]:
        alive = alive | part.flatten(1).any(1).to(alive.device)
    return replace(site, alive=alive[None])
