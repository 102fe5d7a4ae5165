"""From the axes of a model to sites: what dies together, wherever it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from torch import Tensor, nn

from secateurs.forward import modules_in
from secateurs.graph import Axis, Place, Structure, View, analyse, axis_names, extent, keys_and_values
from secateurs.patterns.canonical import Layout, layout_of, quantised
from secateurs.patterns.selection import Axes, among, listed
from secateurs.patterns.units import with_alive
from secateurs.types import KEYS_AND_VALUES, Chosen, Coupling, Cut, Extents, Member, PatternError, Product, Site, Sites, Skipped


def sites_on_axes(
    pattern: Coupling,
    model: nn.Module,
    example: Any,
    chosen: Chosen,
    masks: Mapping[str, Tensor] | None,
) -> Sites:
    """A site an axis, with everything that is coupled to it: the ``sites`` of a pattern on axes.

    Raises `PatternError` where no site is left or a name means nothing in the model, `TaskError` where it rejects the example.
    """
    structure = analyse(model, example)
    sites = coupled_sites(model, pattern, example, structure)
    if chosen.only is not None:
        known = [site.name for site in sites] + [item.name for item in sites.skipped]
        sites = coupled_sites(model, pattern, example, structure, Axes(model, chosen.only, "only=", known).ask)
    sites = among(sites, chosen)
    if not sites:
        skipped = sites.skipped
        why = "it multiplies no activations" if pattern.only_heads and not skipped else listed(skipped)
        raise PatternError(f"{pattern} finds no site in {type(model).__name__}; {why}{_way_out(pattern, skipped)}")
    return replace(sites, found=tuple(with_alive(site, masks) for site in sites))


def _way_out(pattern: Coupling, skipped: Iterable[Skipped]) -> str:
    """What to do where nothing but a normalisation or a softmax is in the way."""
    approximate = any(item.reason.startswith("approximate: ") for item in skipped)
    if pattern.only_heads or not approximate:
        return ""
    return (
        "; Channel(approximate=True) prunes what a normalisation or a softmax runs over as well: removing is not quite the same as "
        "zeroing there, so train afterwards"
    )


def in_no_weight(pattern: Coupling, shape: Sequence[int]) -> Cut:
    """The ``cut`` of a pattern on axes: none; always raises `PatternError`."""
    raise PatternError(
        f"{pattern} removes what is coupled in many weights, not parts of one: print(find_sites(...)) shows what that is"
    )


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
    extents |= kept_of_keys_and_values(structure, known)
    extents["macs"] = tuple(tuple(extent(dim, known) for dim in product) for product in structure.typing.products)
    return extents


def kept_of_keys_and_values(structure: Structure, known: Mapping[Axis, str]) -> Extents:
    """The bytes of keys and values of one place of a sequence, in numbers of kept units; nothing where no site counts them."""
    products = [tuple([extent(dim, known) for dim in dims] + [((size, ()),)]) for _, size, dims in keys_and_values(structure)]
    return {KEYS_AND_VALUES: tuple(products)} if any(sites for each in products for dim in each for _, sites in dim) else {}
