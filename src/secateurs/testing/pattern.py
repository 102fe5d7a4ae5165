"""The laws of patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from secateurs import patterns
from secateurs.patterns import Weight, find_sites, find_weights, misfit, spread
from secateurs.testing.specimens import LAYERS, Specimen
from secateurs.types import Pattern, PatternError, Site, Tiling

_AWKWARD = ((1, 7, 13), (3, 7, 13), (1, 7, 13, 3), (2, 5, 11, 2, 3), (1, 7, 13, 1, 2, 3))


def check_pattern(pattern: Tiling, *, on: Sequence[Specimen] | None = None) -> None:
    """Raise `AssertionError` where a pattern breaks a law, on small layers of each kind (``on=`` to choose others).

    - the cut of a weight is a view of the weight: what is written through it, is written to the weight
    - each element that is covered belongs to exactly one unit; a unit is a box of the tile's size and never straddles groups
    - contests x competitors x elements is what is covered, and a contest is what ``within`` says
    - the default ``tail`` raises `PatternError` with the pattern and the dimension's size in it; ``tail="keep"`` leaves exactly
      the rest alone
    - where the pattern does not fit there is a reason; it fits at least one kind of layer
    - ``eval(repr(pattern)) == pattern``, and equal patterns have equal hashes

    >>> from secateurs.patterns import NofM
    >>> check_pattern(NofM(2, 4))
    """
    assert isinstance(pattern, Tiling), f"{pattern!r} lacks one of {', '.join(asked_of(Tiling))}: see secateurs.types.Tiling"
    check_repr(pattern)
    fitting = 0
    for specimen in on or LAYERS:
        model = specimen.model()
        for weight in find_weights(model)[0]:
            reason = misfit(pattern, weight.shape)
            if reason is not None:
                _check_reason(pattern, weight.shape, reason)
                continue
            fitting += 1
            site = find_sites(model, pattern, only=[weight.parameter])[0]
            _check_site(pattern, site, weight, f"{pattern!r} on {specimen.name}, {weight.parameter} {weight.shape}")
    assert fitting or on, f"{pattern!r} fits none of the layers {[specimen.name for specimen in LAYERS]}"
    for shape in _AWKWARD:
        _check_tail(pattern, shape)


def asked_of(protocol: type) -> list[str]:
    """What a pattern of a kind must have."""
    return [name for kind in protocol.__mro__ for name in vars(kind) if not name.startswith("_")]


def check_repr(pattern: Pattern) -> None:
    """Raise `AssertionError` where ``repr`` does not make an equal pattern again, or equal patterns have unequal hashes."""
    names: dict[str, Any] = {**vars(patterns), type(pattern).__name__: type(pattern)}
    try:
        again = eval(repr(pattern), names)
    except Exception as error:
        raise AssertionError(f"{pattern!r}: its repr cannot be evaluated ({error})") from error
    assert again == pattern, f"{pattern!r}: its repr means {again!r}, another pattern"
    assert hash(again) == hash(pattern), f"{pattern!r}: an equal pattern has another hash"


def _check_reason(pattern: Tiling, shape: Sequence[int], reason: str) -> None:
    assert reason.strip(), f"{pattern!r} does not fit {tuple(shape)} and gives no reason"


def _check_site(pattern: Tiling, site: Site, weight: Weight, where: str) -> None:
    assert site.pattern == pattern, f"{where}: the site is of another pattern, {site.pattern!r}"
    tile = pattern.tile(weight.shape)
    sizes = len(tile) == len(weight.shape) - 1 and all(isinstance(size, int) and size > 0 for size in tile)
    assert sizes, f"{where}: tile gives {tile}, not one whole number for each of (outputs, inputs, *kernel)"
    view = site.members[0].cut(site.members[0].canonical(weight.value))
    assert view.untyped_storage().data_ptr() == weight.value.untyped_storage().data_ptr(), f"{where}: the cut is a copy, not a view"
    leading = (*site.contests, *site.competitors)
    assert view.shape[: len(leading)] == leading, f"{where}: the cut {tuple(view.shape)} does not begin with {leading}"
    assert prod(view.shape[len(leading) :]) == site.elements_per_unit == prod(tile), (
        f"{where}: a unit has {prod(view.shape[len(leading) :])} elements in the cut, {site.elements_per_unit} in the site, "
        f"{prod(tile)} in the tile"
    )
    unit_of = torch.full(weight.value.shape, -1)
    try:
        spread(site, torch.arange(site.units).view(site.contest_count, -1), unit_of)
    except RuntimeError as error:
        raise AssertionError(f"{where}: units cannot be written through the cut, do two share an element? ({error})") from error
    _check_units(site, weight.layout.canonical(unit_of), tile, pattern.tail, where)
    _check_contests(site, weight.layout.canonical(unit_of), tile, where)


def _check_units(site: Site, unit_of: Tensor, tile: Sequence[int], tail: str, where: str) -> None:
    covered = unit_of >= 0
    assert covered.all() or tail == "keep", f"{where}: {int((~covered).sum())} elements belong to no unit"
    sizes = torch.bincount(unit_of[covered], minlength=site.units)
    assert (sizes == site.elements_per_unit).all(), (
        f"{where}: units have {sorted(set(sizes.tolist()))} elements, not {site.elements_per_unit} each: "
        "two units share an element, or the cut is no view"
    )
    extents = _extents(unit_of, site.units)
    expected = torch.tensor([1, *tile])
    assert (extents == expected).all(), (
        f"{where}: a unit is no box of {tuple(tile)} in one group, but reaches over {extents[0].tolist()}"
    )


def _check_contests(site: Site, unit_of: Tensor, tile: Sequence[int], where: str) -> None:
    within, competitors = site.pattern.within, prod(site.competitors)
    kept_of_each = site.pattern.kept_of_each
    assert kept_of_each is None or 0 < kept_of_each < competitors, f"{where}: keeps {kept_of_each} of each {competitors} units"
    if within in ("model", "isomorphic", "layer"):
        assert site.contest_count == 1, f"{where}: {site.contest_count} contests, though units compete within the {within}"
        return
    contest_of = torch.where(unit_of >= 0, unit_of // competitors, -1)
    groups, outputs, inputs, *_ = _extents(contest_of, site.contest_count).max(0).values.tolist()
    assert groups == 1, f"{where}: a contest reaches over {groups} groups"
    assert outputs == tile[0], f"{where}: a contest within {within!r} reaches over {outputs} outputs, not the {tile[0]} of a unit"
    if isinstance(within, int):
        assert competitors == within, f"{where}: {competitors} units compete, not {within}"
        assert inputs == within * tile[1], f"{where}: a contest is not {within} consecutive units, but reaches over {inputs} inputs"


def _extents(label: Tensor, count: int) -> Tensor:
    """How far the elements of each label from 0 to `count` reach along each dimension: ``(count, dimensions)``."""
    places = label.flatten() >= 0
    extents = []
    for dim, length in enumerate(label.shape):
        along = torch.arange(length).view(*(1,) * dim, -1, *(1,) * (label.ndim - dim - 1)).expand(label.shape)
        labels, positions = label.flatten()[places], along.flatten()[places]
        first = torch.full((count,), length).scatter_reduce(0, labels, positions, "amin")
        last = torch.full((count,), -1).scatter_reduce(0, labels, positions, "amax")
        extents.append(last - first + 1)
    return torch.stack(extents, 1)


def _check_tail(pattern: Tiling, shape: tuple[int, ...]) -> None:
    """On a shape of primes: with ``tail="error"`` a clear error, with ``tail="keep"`` all but the rest."""
    anything: Any = pattern
    if not is_dataclass(anything) or isinstance(anything, type) or "tail" not in {item.name for item in fields(anything)}:
        return
    both: Any = replace(anything, tail="error"), replace(anything, tail="keep")
    strict, lenient = both
    steps = _steps(strict, shape)
    if steps is None:
        return
    rests = [length % step for length, step in zip(shape[1:], steps, strict=True)]
    if not any(rests):
        assert misfit(strict, shape) is None, f"{strict!r} divides {shape} evenly, but raises: {misfit(strict, shape)}"
        return
    reason = misfit(strict, shape)
    assert reason is not None, f'{strict!r}: tail="error", but a rest of {shape} is passed over in silence'
    length = next(length for length, rest in zip(shape[1:], rests, strict=True) if rest)
    assert repr(strict) in reason, f"{strict!r}: the error on {shape} does not name the pattern: {reason}"
    assert str(length) in reason, f"{strict!r}: the error on {shape} does not name the dimension's size: {reason}"
    if misfit(lenient, shape) is None:
        touched = torch.zeros(shape, dtype=torch.bool)
        lenient.cut(shape).view(touched).fill_(True)
        whole = torch.zeros(shape, dtype=torch.bool)
        covered = (slice(None), *(slice(length - rest) for length, rest in zip(shape[1:], rests, strict=True)))
        whole[covered] = True
        assert torch.equal(touched, whole), f'{lenient!r} on {shape}: tail="keep" must leave exactly the rest alone'


def _steps(pattern: Tiling, shape: tuple[int, ...]) -> list[int] | None:
    try:
        steps = list(pattern.tile(shape))
    except PatternError:
        return None
    if isinstance(pattern.within, int):
        steps[1] *= pattern.within
    return steps
