"""The laws of patterns whose units are the indices of an axis."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.allocate import uniform
from secateurs.answers import alike, widened
from secateurs.costs import macs, params, tensor_bytes
from secateurs.criteria import magnitude
from secateurs.forward import run_example
from secateurs.masks import Masks
from secateurs.nested import tensors_in
from secateurs.patterns import find_sites
from secateurs.prune import masks_of, prune_
from secateurs.shrink import shrink_
from secateurs.solve import TopK
from secateurs.testing.pattern import asked_of, check_repr
from secateurs.testing.specimens import COUPLED, Specimen, unchanged
from secateurs.types import Coupling, Member, PatternError, Site, Sites, Solution, Task

_TOLERANCE = 2e-6
_KEEPS = (0.3, 0.5, 0.75)
_CRITERIA = (magnitude(), magnitude(p=1, mean=True), magnitude(members="all"))


def check_coupling(pattern: Coupling, *, on: Sequence[Specimen] | None = None) -> None:
    """Raise `AssertionError` where a pattern on axes breaks a law, on small networks (``on=`` to choose others).

    - ``eval(repr(pattern)) == pattern``, and equal patterns have equal hashes; finding sites leaves the model as it was
    - each member's cut is a view of its weight, units in front; no two units share an element of a member (where an axis occurs
      twice in a weight, that is two members)
    - the masks of a choice of units are zero on those units' slices and nowhere else, and are found again as units that are gone
    - units that change places in every member take their scores with them, and leave the model's answers as they were
    - kept numbers make widths that are multiples of ``round_to``, where the site has room for one
    - what a plan promises (``params``, ``macs``, ``tensor_bytes``) is what the shrunk model has, and that model answers as the masked one
      did (unless the pattern is ``approximate``)

    >>> from secateurs.patterns import Channel
    >>> check_coupling(Channel(round_to=2))
    """
    assert isinstance(pattern, Coupling), f"{pattern!r} lacks one of {', '.join(asked_of(Coupling))}: see secateurs.types.Coupling"
    check_repr(pattern)
    fitting = 0
    for specimen in on or COUPLED:
        where = f"{pattern!r} on the {specimen.name}"
        model, example = _in_double(specimen)
        with unchanged(model, f"{where}: find_sites"):
            sites = _found(pattern, model, example)
        if sites is None:
            continue
        fitting += 1
        _check_names(sites, where)
        for site in sites:
            _check_members(site, f"{where}, {site.name}")
            _check_masks(site, f"{where}, {site.name}")
        _check_earlier(sites, where)
        _check_permutation(sites, where)
        for keep in _KEEPS:
            _check_shrunk(pattern, specimen, keep, f"{where}, keep={keep}")
    assert fitting or on, f"{pattern!r} finds a site in none of {[specimen.name for specimen in COUPLED]}"


def _found(pattern: Coupling, model: nn.Module, example: Any) -> Sites | None:
    try:
        return find_sites(model, pattern, example)
    except PatternError:
        return None


def _in_double(specimen: Specimen) -> tuple[nn.Module, Any]:
    """A fresh model and its example in float64, so that answers are the same or clearly not."""
    return specimen.model().double(), widened(specimen.example)


def _check_names(sites: Sites, where: str) -> None:
    names = [site.name for site in sites]
    assert len(set(names)) == len(names), f"{where}: two sites have one name: {names}"
    for site in sites:
        assert site.members and site.members[0].role == "producer", f"{where}, {site.name}: no weight makes its units"
        assert site.contest_count == 1, f"{where}, {site.name}: {site.contest_count} contests, but the units of an axis are one"
        assert site.alive is None, f"{where}, {site.name}: units are gone before any pruning"


# ---------------------------------------------------------------- cuts and masks


def _places(member: Member, leading: int) -> Tensor:
    """Where in its weight each unit of a member lies: ``(units, elements)`` of indices into the flat weight."""
    numbers = torch.arange(member.weight.numel()).view(member.weight.shape)
    view = member.cut(member.canonical(numbers))
    return view.reshape(prod(view.shape[:leading]), -1)


def _check_members(site: Site, where: str) -> None:
    leading = (*site.contests, *site.competitors)
    elements = 0
    for member in site.members:
        said = f"{where}, {member.parameter}"
        weight = member.weight.detach()
        view = member.cut(member.canonical(weight))
        assert view.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr(), f"{said}: the cut is a copy, not a view"
        assert view.shape[: len(leading)] == leading, (
            f"{said}: the cut {tuple(view.shape)} does not begin with the units, {leading}"
        )
        places = _places(member, len(leading))
        assert places.unique().numel() == places.numel(), f"{said}: two units share an element"
        written = torch.zeros(member.weight.shape, dtype=torch.bool)
        member.cut(member.canonical(written)).fill_(True)
        assert int(written.sum()) == places.numel(), (
            f"{said}: writing through the cut reaches {int(written.sum())} elements of {places.numel()}"
        )
        elements += places.shape[1]
    assert elements == site.elements_per_unit, (
        f"{where}: a unit has {elements} elements, but the site says {site.elements_per_unit}"
    )


def _choices(site: Site) -> list[Tensor]:
    """A few choices of units to keep, ``(1, units)``: one, every second, all."""
    units = torch.arange(site.units)[None]
    return [units == site.units - 1, units % 2 == 0, units >= 0]


def _check_masks(site: Site, where: str) -> None:
    leading = len(site.contests) + len(site.competitors)
    for kept in _choices(site):
        expected = {member.parameter: torch.ones(member.weight.shape, dtype=torch.bool) for member in site.members}
        for member in site.members:
            expected[member.parameter].view(-1)[_places(member, leading)[~kept[0]].flatten()] = False
        found = masks_of(site, Solution(kept))
        assert found.keys() == expected.keys(), f"{where}: masks of {sorted(found)}, not of {sorted(expected)}"
        for name, mask in expected.items():
            wrong = int((found[name] != mask).sum())
            assert not wrong, (
                f"{where}: the mask of {name} is wrong in {wrong} places: it must be zero on the units that go, only there"
            )


def _check_earlier(sites: Sites, where: str) -> None:
    """What the masks of one site removed is gone from that site afterwards, and not from the others."""
    for pruned in sites:
        kept = _choices(pruned)[1]
        masks = masks_of(pruned, Solution(kept))
        for site in find_sites(sites.model, pruned.pattern, sites.example, masks=masks):
            left = torch.ones(1, site.units, dtype=torch.bool) if site.alive is None else site.alive
            expected = kept if site.name == pruned.name else torch.ones_like(left)
            assert torch.equal(left, expected), (
                f"{where}: after masks of every second unit of {pruned.name}, {int(left.sum())} of {site.units} units of {site.name} "
                f"are left, not {int(expected.sum())}"
            )


# ---------------------------------------------------------------- places of units


def _check_permutation(sites: Sites, where: str) -> None:
    for module in sites.model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()  # buffers are no members, so they must be the same for every unit
    before = _answers(sites.model, sites.example)
    for site in sites:
        order = torch.randperm(site.units, generator=torch.Generator().manual_seed(site.units))
        scores = [next(TopK(criterion).scores([site], {})) for criterion in _CRITERIA]
        with torch.no_grad():
            for member in site.members:
                view = member.cut(member.canonical(member.weight))
                view.copy_(view[order])
        for criterion, score in zip(_CRITERIA, scores, strict=True):
            moved = next(TopK(criterion).scores([site], {}))
            assert torch.allclose(moved, score[:, order], rtol=1e-4), (
                f"{where}, {site.name}: units that change places in every member must take their scores with them ({criterion.name})"
            )
        assert alike(before, _answers(sites.model, sites.example), _TOLERANCE), (
            f"{where}, {site.name}: units that change places in every member change the model's answers: "
            "a member is missing, or its units lie in another order"
        )


def _answers(model: nn.Module, example: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(run_example(model, example)) if tensor.is_floating_point()]


# ---------------------------------------------------------------- smaller models


def _check_shrunk(pattern: Coupling, specimen: Specimen, keep: float, where: str) -> None:
    model, example = _in_double(specimen)
    costs = [cost.prepare(model, example) for cost in (params, macs, tensor_bytes)]
    masks = prune_(model, pattern, TopK(magnitude()), uniform(keep=keep), Task(example=example))
    assert masks.plan is not None, f"{where}: masks without a plan"
    sites = find_sites(model, pattern, example)
    for site in sites:
        _check_round(pattern, site, masks.plan[site.name], f"{where}, {site.name}")
    promised = [cost(masks.plan) for cost in costs]
    planned = {site.name: masks.plan[site.name] for site in sites if masks.plan[site.name] < site.units}
    _check_answers(pattern, model, example, masks, planned, where)
    for cost, promise in zip((params, macs, tensor_bytes), promised, strict=True):
        found = cost(model, example)
        assert found == promise, f"{where}: the plan promises {promise:g} {cost.unit}, but the shrunk model has {found:g}"


def _check_answers(pattern: Coupling, model: nn.Module, example: Any, masks: Masks, planned: dict[str, int], where: str) -> None:
    before = _answers(model, example)
    shrunk = shrink_(model, masks)
    assert not shrunk.skipped, f"{where}: shrink_ left {', '.join(map(str, shrunk.skipped))}"
    found = {name: after for name, (_, after) in shrunk.sites.items()}
    assert found == planned, f"{where}: the shrunk model keeps {found}, but the plan {planned}"
    after = _answers(model, example)
    assert pattern.approximate or alike(before, after, _TOLERANCE), (
        f"{where}: the shrunk model answers otherwise than the masked one"
    )


def _check_round(pattern: Coupling, site: Site, kept: int, where: str) -> None:
    width, round_to = _width(site), pattern.round_to
    possible = any(number * width % round_to == 0 for number in range(1, site.units + 1))
    assert kept >= 1, f"{where}: the site is emptied"
    assert kept * width % round_to == 0 or not possible, (
        f"{where}: keeps {kept} units, a width of {kept * width}, which is no multiple of round_to={round_to}"
    )


def _width(site: Site) -> int:
    """How many indices of the first member's dimension one unit takes."""
    member = site.members[0]
    places = _places(member, len(site.contests) + len(site.competitors))
    everywhere, here = (torch.unravel_index(each, member.weight.shape) for each in (places, places[0]))
    spans = [(len(all_.unique()), len(one.unique())) for all_, one in zip(everywhere, here, strict=True)]
    return max(one for whole, one in spans if one < whole)
