"""What allocators ask of sites: how many units are asked for, and among whom they compete."""

from __future__ import annotations

from secateurs.types import PlanError, Sites


def total_of(sites: Sites, fraction: float) -> int:
    """How many units that fraction of all is."""
    return round(fraction * sum(site.units for site in sites))


def refuse_model_wide(sites: Sites, who: str) -> None:
    """Raise `PlanError` where units of several layers compete, and the allocator decides layer by layer."""
    if sites[0].pattern.within in ("model", "isomorphic"):
        raise PlanError(
            f"{who} decides layer by layer, but {sites[0].pattern} lets units of several layers compete: "
            'use within="layer", or global_threshold(...)'
        )
