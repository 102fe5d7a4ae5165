"""How large things are, as sums of products of the units that sites keep."""

from __future__ import annotations

from collections.abc import Mapping

# ---------------------------------------------------------------- how much where


Product = tuple[tuple[tuple[int, tuple[str, ...]], ...], ...]
"""A product of dimensions, each a sum of numbers times the units that some sites keep: ``(((64, ("heads",)),), ((48, ()),))``."""


Extents = Mapping[str, tuple[Product, ...]]
"""Parameter or buffer → its number of elements; ``"macs"`` → those of the whole model: sums of products, where sites are coupled. And
``KEYS_AND_VALUES``, which is no name of a parameter → the bytes that attentions keep of one place of a sequence."""

KEYS_AND_VALUES = "bytes of keys and values"
