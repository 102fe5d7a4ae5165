"""What axes are called: plans name them so, and so do all who read plans."""

from __future__ import annotations

from secateurs.graph.axes import Axis, Dim, normal
from secateurs.graph.structure import Structure


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
