"""Granularity: how a weight is cut into units, and which of a model's weights take part."""

from secateurs.patterns.axes import in_no_weight, sites_on_axes
from secateurs.patterns.canonical import LAYOUTS, NORMALISATIONS, Layout, Weight, find_weights, layout_of
from secateurs.patterns.coupled import Channel, Head
from secateurs.patterns.cut import misfit, tiled
from secateurs.patterns.depth import Depth, gives_back
from secateurs.patterns.expert import Expert
from secateurs.patterns.selection import among, find_parameters, select
from secateurs.patterns.shapes import Block, Element, Filter, Kernel, NofM, Vector
from secateurs.patterns.sites import find_sites
from secateurs.patterns.units import (
    as_units,
    finite,
    finite_weight_of,
    joined_scores,
    marked,
    restrict,
    size,
    spread,
    unit_elements,
    unit_scores,
    weight_of,
    with_alive,
)
from secateurs.patterns.weights import output_head, sites_in_weights
from secateurs.types import Selection

__all__ = [
    "LAYOUTS",
    "NORMALISATIONS",
    "Block",
    "Channel",
    "Depth",
    "Element",
    "Expert",
    "Filter",
    "Head",
    "Kernel",
    "Layout",
    "NofM",
    "Selection",
    "Vector",
    "Weight",
    "among",
    "as_units",
    "find_parameters",
    "find_sites",
    "find_weights",
    "finite",
    "finite_weight_of",
    "gives_back",
    "in_no_weight",
    "joined_scores",
    "layout_of",
    "marked",
    "misfit",
    "output_head",
    "restrict",
    "select",
    "sites_in_weights",
    "sites_on_axes",
    "size",
    "spread",
    "tiled",
    "unit_elements",
    "unit_scores",
    "weight_of",
    "with_alive",
]
