"""Plans under which all blocks of a stack are alike, so that the numbers of a model's configuration can say its sizes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from secateurs.allocate.apportion import Bounds, Limits, apportion, limits_of, plan_of
from secateurs.forward import modules_in
from secateurs.types import Plan, PlanError, Site, Sites

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def equal_in_blocks(sites: Sites, plan: Plan, floor: int = 1, ceiling: float = 1.0) -> Plan:
    """A plan's counts made equal over the blocks of a stack: what stands at the same place in each keeps the same number of units.

    A block is a module with modules in it that stands in a list beside others of its class; lists within it (experts) count as well.
    Sites correspond that stand at one place of blocks of one class and have as many units. Together they keep what they did before, less
    than one unit in every block apart; sites that stand in no block keep their own.

    Raises `PlanError` where a layer of one block takes no part that does in others.

    >>> from secateurs.allocate import by_layer
    >>> from secateurs.patterns import Channel, find_sites
    >>> model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2)))
    >>> sites = find_sites(model, Channel(), torch.zeros(1, 8), only=["0.0", "1.0"])
    >>> plan = by_layer({"0.0": 0.25, "1.0": 0.75})(sites, lambda: iter([]))
    >>> dict(plan), dict(equal_in_blocks(sites, plan))
    ({'0.0': 9, '1.0': 3}, {'0.0': 6, '1.0': 6})
    """
    groups, own = [group for group in corresponding(sites) if len(group) > 1], limits_of(sites, floor, ceiling)
    merged = replace(sites, found=tuple(as_one(group, own) for group in groups))
    limits = {whole.name: bounds_of_group(whole, group, own) for whole, group in zip(merged, groups, strict=True)}
    wanted = [float(sum(plan[site.name] for site in group)) for group in groups]
    low, high = sum(limit.low for limit in limits.values()), sum(limit.high for limit in limits.values())
    counts = apportion(merged, wanted, min(max(int(sum(wanted)), low), high), limits, "same_in_every_block") if groups else {}
    kept = dict(plan)
    for whole, group in zip(merged, groups, strict=True):
        each = whole.each_of(counts[whole.name])
        kept.update((site.name, site.kept_by(each)) for site in group)
    return replace(plan_of(sites, kept), promised=plan.promised)


Group = tuple[Site, ...]
"""Sites that stand at the same place of the blocks of a stack; one that stands in none is alone."""


def corresponding(sites: Sites) -> list[Group]:
    """The sites by the place at which they stand; raises `PlanError` where one is missing."""
    modules = modules_in(sites.model, again=True)
    kinds = _blocks(modules)
    groups: dict[Hashable, list[Site]] = {}
    places: dict[tuple[str, str], dict[str, Site]] = {}
    for site in sites:
        block, place = _where(site.name, kinds)
        groups.setdefault((kinds[block], place, site.units, site.contests) if block else site.name, []).append(site)
        if block:
            places.setdefault((kinds[block], _TAIL.sub("", site.name.removeprefix(f"{block}."))), {})[block] = site
    outermost = [path for path in kinds if _where(path, kinds) == (path, "")]
    for (kind, place), there in places.items():
        blocks = [path for path in outermost if kinds[path] == kind and f"{path}.{place}" in modules]
        _require_everywhere(blocks, place, there, sites)
    return [tuple(group) for group in groups.values()]


_TAIL = re.compile(r"[:\[#].*")
"""What the name of a site says behind that of its layer."""


def _blocks(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Path → class of each module that is one of several of its class in a list, and has modules in it: a layer alone is no block."""
    found: dict[str, str] = {}
    for path, holding in modules.items():
        if isinstance(holding, _LISTS):
            alike = Counter(type(child) for child in holding.children())
            blocks = [(name, each) for name, each in holding.named_children() if alike[type(each)] > 1 and len(each._modules)]
            found.update((f"{path}.{name}" if path else name, f"<{type(each).__name__}>") for name, each in blocks)
    return found


def _where(name: str, kinds: Mapping[str, str]) -> tuple[str, str]:
    """The outermost block in which a site lies, "" for none, and its place within it, blocks within told by their class."""
    block, path, place = "", "", list[str]()
    for part in name.split("."):
        path = f"{path}.{part}" if path else part
        if path in kinds and not block:
            block, place = path, []
        else:
            place.append(kinds.get(path, part))
    return block, ".".join(place)


def _require_everywhere(blocks: Sequence[str], place: str, there: Mapping[str, Site], sites: Sites) -> None:
    """Raise `PlanError` where one of the blocks with the layer of a site has no such site: it would stay as wide as it is."""
    missing = next((path for path in blocks if path not in there), None)
    if missing is None:
        return
    known = next(iter(there.values())).name
    reason = next((item.reason for item in sites.skipped if item.name.startswith(f"{missing}.{place}")), "")
    raise PlanError(
        f"{missing}.{place} takes no part{f' ({reason})' if reason else ''}, so same_in_every_block=True cannot make it as small as "
        f'{known}: let the layer take part in every block or in none (only="*.{place}*", skip="*.{place}*"), or leave '
        "same_in_every_block away"
    )


def as_one(group: Group, own: Limits) -> Site:
    """The sites of a group as one whose contests are those of all: they keep the same number each."""
    first, alive = group[0], None
    if any(site.alive is not None for site in group):
        most, numbers = _each_at_most(group, own), torch.arange(torch.Size(first.competitors).numel())
        whole = torch.full((first.contest_count,), len(numbers))
        counts = torch.cat([whole if site.alive is None else site.alive.sum(1).cpu() for site in group])
        alive = numbers < counts.clamp(max=most)[:, None]
    return replace(first, contests=(len(group), *first.contests), alive=alive)


def _each_at_most(group: Group, own: Limits) -> int:
    """What a contest may keep in each of the sites."""
    return min(site.each_of(own[site.name].high) for site in group)


def bounds_of_group(whole: Site, group: Group, own: Limits) -> Bounds:
    """What all sites of a group together may keep, where each keeps the same."""
    least = max(site.each_of(own[site.name].low) for site in group)
    most = max(least, _each_at_most(group, own))
    return Bounds(whole.kept_by(least), whole.kept_by(most), own[group[0].name].step, whole)
