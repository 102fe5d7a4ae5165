"""Granularity: how a weight is cut into units, and which of a model's weights take part."""

from secateurs.patterns.canonical import LAYOUTS, Layout, Weight, find_weights, layout_of
from secateurs.patterns.coupled import Channel, Head, axis_names
from secateurs.patterns.cut import Cut, cut, misfit
from secateurs.patterns.selection import Selection, select
from secateurs.patterns.shapes import Block, Element, Filter, Kernel, NofM, Vector
from secateurs.patterns.sites import find_sites, output_head
from secateurs.patterns.units import as_units, joined_scores, marked, restrict, size, spread, unit_scores, weight_of

__all__ = [
    "LAYOUTS",
    "Block",
    "Channel",
    "Cut",
    "Element",
    "Filter",
    "Head",
    "Kernel",
    "Layout",
    "NofM",
    "Selection",
    "Vector",
    "Weight",
    "as_units",
    "axis_names",
    "cut",
    "find_sites",
    "find_weights",
    "joined_scores",
    "layout_of",
    "marked",
    "misfit",
    "output_head",
    "restrict",
    "select",
    "size",
    "spread",
    "unit_scores",
    "weight_of",
]
