"""What a search may change: genes, each a site or the sites of a block, at levels of how much stays."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secateurs.allocate import bounds
from secateurs.graph import Blocks
from secateurs.types import Plan, PlanError, Site, Sites

Levels = tuple[int, ...]
"""For each gene its level; 0 is what the start keeps, one more keeps a step more."""


@dataclass(frozen=True)
class Gene:
    """One site, or the sites of one block, and what each keeps at each level; genes of one ``kind`` may exchange levels, as one level more
    of one is as many units as one level less of another."""

    name: str
    kind: tuple[object, ...]
    counts: Mapping[int, Mapping[str, int]]


def genes_of(sites: Sites, start: Plan, blocks: Blocks | None, step: float, reach: int) -> list[Gene]:
    """The genes of a model, in order; raises `PlanError` where no two can exchange anything."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        _require_free(site)
        groups.setdefault((blocks.of(site.name) if blocks is not None else None) or site.name, []).append(site)
    genes = [_gene(name, group, start, step, reach) for name, group in groups.items()]
    if not pairs_of(genes, (0,) * len(genes)):
        raise PlanError(
            f"evolve: none of {len(genes)} {'sites' if blocks is None else 'blocks'} can give another of the same size {step:g} of its "
            "units: take a smaller step=, or a start that neither keeps nor removes nearly everything"
        )
    return genes


def _require_free(site: Site) -> None:
    if site.pattern.kept_of_each is not None:
        raise PlanError(
            f"{site.name}: {site.pattern} decides by itself how much stays, so there is nothing to search: take Element() or "
            f"Element(within={site.pattern.within})"
        )
    if site.alive is not None and site.contest_count > 1:
        raise PlanError(
            f"{site.name}: an earlier pruning left its {site.contest_count} groups unlike, so that levels are no equal steps: search "
            'from the dense model, or with units that compete within="layer"'
        )


def _gene(name: str, group: Sequence[Site], start: Plan, step: float, reach: int) -> Gene:
    steps = {site.name: _units_of_step(site, step) for site in group}
    allowed = {site.name: bounds(site, floor=1) for site in group}
    counts = {}
    for level in range(-reach, reach + 1):
        kept = {site.name: start[site.name] + level * steps[site.name] for site in group}
        if level == 0 or all(allowed[each].low <= count <= allowed[each].high for each, count in kept.items()):
            counts[level] = kept
    kind = tuple((site.units, site.contest_count, site.elements_per_unit, len(site.members), steps[site.name]) for site in group)
    return Gene(name, kind, counts)


def _units_of_step(site: Site, step: float) -> int:
    """How many units a level is: the same number in each contest, a multiple of the site's step."""
    each = step * site.units / site.contest_count
    return max(1, round(each / site.step)) * site.step * site.contest_count


def pairs_of(genes: Sequence[Gene], levels: Levels) -> list[tuple[int, int]]:
    """Who can give a level to whom."""
    giving = [place for place, (gene, level) in enumerate(zip(genes, levels, strict=True)) if level - 1 in gene.counts]
    taking = [place for place, (gene, level) in enumerate(zip(genes, levels, strict=True)) if level + 1 in gene.counts]
    return [(one, other) for one in giving for other in taking if one != other and genes[one].kind == genes[other].kind]


def mutated(genes: Sequence[Gene], levels: Levels, chance: random.Random) -> Levels:
    """One to three exchanges of a level between two genes of a kind, mostly few."""
    found = list(levels)
    for _ in range(min(chance.randint(1, 3), chance.randint(1, 3))):
        pairs = pairs_of(genes, tuple(found))
        if not pairs:
            break
        giver, taker = chance.choice(pairs)
        found[giver] -= 1
        found[taker] += 1
    return tuple(found)


def kept_at(genes: Sequence[Gene], levels: Levels) -> dict[str, int]:
    """How many units each site keeps."""
    return {name: count for gene, level in zip(genes, levels, strict=True) for name, count in gene.counts[level].items()}
