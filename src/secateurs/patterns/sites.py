"""From a model and a pattern to sites: which layers take part, which are left alone, and why."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from torch import Tensor, nn

from secateurs.forward import run_example
from secateurs.patterns.canonical import Weight, find_weights
from secateurs.patterns.coupled import coupled_sites, extents_without, names_of, with_alive
from secateurs.patterns.cut import cut, misfit
from secateurs.patterns.units import as_units
from secateurs.types import Coupling, Member, Pattern, PatternError, Site, Sites, Skipped, Tiling

Selection = str | Iterable[str] | Callable[[str, nn.Module], bool]
"""Layers by name (a container's name means all inside it), by glob (``"layer?.*"``), or by predicate ``(name, module) → bool``."""


def find_sites(
    model: nn.Module,
    pattern: Pattern,
    example: Any = None,
    *,
    only: Selection | None = None,
    skip: Selection | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Sites:
    """The sites of a pattern on a model's weights, in the order in which the example passes them.

    For `Channel` and `Head` the model is traced, and a site is an axis with all that is coupled to it; ``print(sites)`` shows them,
    and what was left alone and why. ``only`` and ``skip`` then mean sites by their names or by the layers that make them.

    For patterns on single weights: without ``only`` and ``skip``, three kinds of weights are left alone and listed: embeddings; the
    first layer and the classifier where the pattern does not fit them; and the classifier where a unit is a whole output, since its
    outputs are the answer. ``only`` names what takes part, ``skip`` what does not (``skip=()`` skips nothing). ``masks`` are those
    of an earlier pruning: what they removed stays removed.

    Raises `PatternError` where no site is left, a name is unknown, or the pattern does not fit a chosen layer; `TaskError` where
    the model rejects the example.

    >>> from secateurs.patterns import Element
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [(site.name, site.units) for site in find_sites(model, Element(), only="0")]
    [('0', 32)]
    """
    if isinstance(pattern, Coupling):
        return _coupled(model, pattern, example, only, skip, masks)
    if not isinstance(pattern, Tiling):
        raise PatternError(f"{pattern!r} is no pattern: neither a Tiling of single weights nor a Coupling (see secateurs.types)")
    weights, skipped = find_weights(model, example)
    if not weights:
        raise PatternError(f"{type(model).__name__} has no prunable weight; {_listed(skipped)}")
    weights = _in_order(model, weights, example)
    chosen = _chosen(weights, only)
    left_alone = _skipped_by_name(weights, skip) if skip is not None else _skipped_by_default(weights, pattern, only is not None)
    skipped += [Skipped(weight.name, "not named in only=") for weight in weights if weight.name not in chosen]
    skipped += [Skipped(name, reason) for name, reason in left_alone.items() if name in chosen]
    taking_part = [weight for weight in weights if weight.name in chosen and weight.name not in left_alone]
    _require_fit(pattern, taking_part)
    if not taking_part:
        raise PatternError(
            f"{pattern} finds no site in {type(model).__name__}; {_listed(skipped)}; "
            "pass only=[...] to choose layers yourself, or skip=() to skip none"
        )
    found = tuple(_with_alive(_site(weight, pattern), masks) for weight in taking_part)
    return Sites(found, tuple(skipped), model, example)


def _coupled(
    model: nn.Module,
    pattern: Coupling,
    example: Any,
    only: Selection | None,
    skip: Selection | None,
    masks: Mapping[str, Tensor] | None,
) -> Sites:
    """The sites of a pattern on axes, of those that the caller chose."""
    sites = coupled_sites(model, pattern, example, None if only is None else lambda site: _selected(site, only))
    for selection in (only, skip):
        _require_known(sites, selection)
    left_alone = [Skipped(site.name, "not named in only=") for site in sites if only is not None and not _selected(site, only)]
    left_alone += [Skipped(site.name, "named in skip=") for site in sites if skip is not None and _selected(site, skip)]
    gone = {item.name for item in left_alone}
    found = tuple(with_alive(site, masks) for site in sites if site.name not in gone)
    skipped = (*sites.skipped, *left_alone)
    if not found:
        why = "it multiplies no activations" if pattern.only_heads and not skipped else _listed(list(skipped))
        raise PatternError(f"{pattern} finds no site in {type(model).__name__}; {why}{_way_out(pattern, skipped)}")
    whole = {site.name: site.units for site in sites if site.name in gone}
    return replace(sites, found=found, skipped=skipped, extents=extents_without(sites.extents, whole))


def _way_out(pattern: Coupling, skipped: Iterable[Skipped]) -> str:
    """What to do where nothing but a normalisation or a softmax is in the way."""
    approximate = any(item.reason.startswith("approximate: ") for item in skipped)
    if pattern.only_heads or not approximate:
        return ""
    return (
        "; Channel(approximate=True) prunes what a normalisation or a softmax runs over as well: removing is not quite the same as "
        "zeroing there, so train afterwards"
    )


def _selected(site: Site, selection: Selection) -> bool:
    if callable(selection):
        return selection(site.name, site.members[0].module)
    wanted = [selection] if isinstance(selection, str) else list(selection)
    return any(means(each, names_of(site)) for each in wanted)


def _require_known(sites: Sites, selection: Selection | None) -> None:
    """Raise `PatternError` for a name that means neither a site nor anything that was left alone."""
    if selection is None or callable(selection):
        return
    for wanted in [selection] if isinstance(selection, str) else list(selection):
        known = [site.name for site in sites] + [item.name for item in sites.skipped]
        if not any(means(wanted, names_of(site)) for site in sites) and not means(wanted, known):
            close = difflib.get_close_matches(wanted, known, n=3) or known[:5]
            raise PatternError(f"no site is called {wanted!r}; did you mean {', '.join(close)}?")


def means(wanted: str, names: Iterable[str]) -> bool:
    """Whether a name, the name of a container or a glob means one of the names."""
    return any(name == wanted or name.startswith((wanted + ".", wanted + ":")) or fnmatchcase(name, wanted) for name in names)


def _in_order(model: nn.Module, weights: list[Weight], example: Any) -> list[Weight]:
    """Weights in the order in which their layers are called.

    A layer that is never called itself stands with the one around it where that has weights too (an attention applies its output
    projection without calling it), else at the end.
    """
    if example is None:
        return weights
    called: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: Any) -> None:
        called.setdefault(module, len(called))

    hooks = [module.register_forward_pre_hook(note) for module in {weight.module for weight in weights}]
    try:
        run_example(model, example)
    finally:
        for hook in hooks:
            hook.remove()

    def place(weight: Weight) -> int:
        around = model.get_submodule(weight.parameter.rpartition(".")[0].rpartition(".")[0])
        return called.get(weight.module, called.get(around, len(called)))

    return sorted(weights, key=place)


def _chosen(weights: list[Weight], only: Selection | None) -> set[str]:
    return {weight.name for weight in weights} if only is None else set(select(weights, only))


def _skipped_by_name(weights: list[Weight], skip: Selection) -> dict[str, str]:
    return dict.fromkeys(select(weights, skip), "named in skip=")


def select(weights: list[Weight], selection: Selection) -> list[str]:
    """Names of the weights that a selection means; raises `PatternError` for a name that means none."""
    if callable(selection):
        return [weight.name for weight in weights if selection(weight.name, weight.module)]
    names: list[str] = []
    for wanted in [selection] if isinstance(selection, str) else list(selection):
        matches = [weight.name for weight in weights if means(wanted, (weight.name, weight.parameter))]
        if not matches:
            known = [weight.name for weight in weights]
            close = difflib.get_close_matches(wanted, known, n=3) or known[:5]
            raise PatternError(f"no prunable layer is called {wanted!r}; did you mean {', '.join(close)}?")
        names += matches
    return names


def _skipped_by_default(weights: list[Weight], pattern: Tiling, named: bool) -> dict[str, str]:
    """The layers that are left alone unless the caller chooses for himself."""
    if named:
        return {}
    reasons: dict[str, str] = {}
    for weight in weights:
        if isinstance(weight.module, (nn.Embedding, nn.EmbeddingBag)):
            reasons[weight.name] = "an embedding: a table to look up, without MACs; name it in only= to prune it"
    layers = [weight for weight in weights if weight.name not in reasons]
    for weight, role in [(layers[0], "first layer"), (layers[-1], "classifier")] if layers else []:
        reason = misfit(pattern, weight.shape)
        if reason is not None:
            reasons[weight.name] = f"the {role}, which the pattern does not fit: {reason}"
        elif role == "classifier" and _is_whole_output(pattern, weight.shape):
            reasons[weight.name] = "the classifier: its outputs are the model's answer; name it in only= to prune it"
    return reasons


def _is_whole_output(pattern: Tiling, shape: tuple[int, ...]) -> bool:
    return pattern.tile(shape)[1:] == shape[2:] and prod(shape[2:]) > 1


def _require_fit(pattern: Tiling, weights: list[Weight]) -> None:
    misfits = {weight.name: reason for weight in weights if (reason := misfit(pattern, weight.shape)) is not None}
    if misfits:
        name, reason = next(iter(misfits.items()))
        others = f" ({len(misfits) - 1} more layers do not fit)" if len(misfits) > 1 else ""
        raise PatternError(f"{name}: {reason}; or skip with skip={list(misfits)}{others}")


def _site(weight: Weight, pattern: Tiling) -> Site:
    falls = cut(pattern, weight.shape)
    layout, kind = weight.layout, f"{type(weight.module).__name__}.{weight.attribute}"
    member = Member(weight.parameter, weight.module, weight.attribute, layout.canonical, falls.view, stacked=layout.stacked)
    return Site(weight.name, (member,), falls.contests, falls.competitors, prod(falls.elements), pattern, kind=kind)


def _with_alive(site: Site, masks: Mapping[str, Tensor] | None) -> Site:
    mask = None if masks is None else masks.get(site.members[0].parameter)
    if mask is None:
        return site
    member = site.members[0]
    if mask.shape != member.weight.shape:
        raise PatternError(
            f"{member.parameter}: the earlier mask is of shape {tuple(mask.shape)}, but the weight of {tuple(member.weight.shape)}: "
            "the masks belong to another model"
        )
    units = as_units(site, mask)
    return replace(site, alive=units.flatten(2).any(dim=2) if units.ndim > 2 else units)


def _listed(skipped: list[Skipped]) -> str:
    if not skipped:
        return "it has no parameters"
    shown = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:5])
    return f"left alone: {shown}" + (f"; and {len(skipped) - 5} more" if len(skipped) > 5 else "")
