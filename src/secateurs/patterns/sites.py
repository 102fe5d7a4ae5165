"""From a model and a pattern to sites: which layers take part, which are left alone, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor, nn

from secateurs.forward import modules_in, run_example
from secateurs.given import MODEL, require, told
from secateurs.graph import analyse
from secateurs.patterns.canonical import Weight, find_weights
from secateurs.patterns.coupled import coupled_sites, extents_without, with_alive
from secateurs.patterns.cut import cut, misfit
from secateurs.patterns.selection import Axes, Selection, select
from secateurs.patterns.units import as_units
from secateurs.ranks import whole
from secateurs.types import Coupling, KindError, Member, Pattern, PatternError, Site, Sites, Skipped, Tiling


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
    and what was left alone and why. ``only`` then means sites by their names, or by the layers that make them: all of a site's, or
    one of some that stand side by side (gate and up projection of one MLP). ``skip`` leaves every site that a named layer makes.

    For patterns on single weights: without ``only``, three kinds of weights are left alone and listed: embeddings; the first layer
    and the classifier where the pattern does not fit them; and the classifier where a unit is a whole output, since its outputs are
    the answer. ``only`` names what takes part (``only="*"``: everything), ``skip`` what else does not. ``masks`` are those of an
    earlier pruning: what they removed stays removed.

    Raises `PatternError` where no site is left, a name means nothing in the model, or the pattern does not fit a chosen layer;
    `TaskError` where the model rejects the example.

    >>> from secateurs.patterns import Element
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> [(site.name, site.units) for site in find_sites(model, Element(), only="0")]
    [('0', 32)]
    """
    require("find_sites", "model", model, MODEL)
    if isinstance(pattern, type) or not isinstance(pattern, (Coupling, Tiling)):
        raise KindError(
            f"find_sites: pattern is {told(pattern)}, but must be a pattern, for example Element(), NofM(2, 4) or Channel()"
        )
    if isinstance(pattern, Coupling):
        return _coupled(model, pattern, example, only, skip, masks)
    weights, skipped = find_weights(model, example)
    if not weights:
        raise PatternError(f"{type(model).__name__} has no prunable weight; {_listed(skipped)}")
    weights = _in_order(model, weights, example)
    chosen = {weight.name for weight in weights} if only is None else set(select(model, weights, only, "only="))
    left_alone = _skipped_by_default(weights, pattern, only is not None)
    if skip is not None:
        left_alone |= select(model, weights, skip, "skip=")
    skipped += [Skipped(weight.name, "not named in only=") for weight in weights if weight.name not in chosen]
    skipped += [Skipped(name, reason) for name, reason in left_alone.items() if name in chosen]
    taking_part = [weight for weight in weights if weight.name in chosen and weight.name not in left_alone]
    _require_fit(pattern, taking_part)
    if not taking_part:
        raise PatternError(
            f"{pattern} finds no site in {type(model).__name__}; {_listed(skipped)}; "
            'pass only=[...] to choose layers yourself, or only="*" for all of them'
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
    structure = analyse(model, example)
    sites = coupled_sites(model, pattern, example, structure)
    known = [site.name for site in sites] + [item.name for item in sites.skipped]
    left_alone = []
    if only is not None:
        chosen = Axes(model, only, "only=", known)
        sites = coupled_sites(model, pattern, example, structure, chosen.ask)
        left_alone += [Skipped(site.name, _unchosen(site, chosen)) for site in sites if not chosen.choose(site)]
    if skip is not None:
        touched = Axes(model, skip, "skip=", known)
        left_alone += [Skipped(site.name, "named in skip=") for site in sites if touched.touch(site)]
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


def _unchosen(site: Site, chosen: Axes) -> str:
    """Why ``only`` did not choose a site."""
    makers = [member.parameter.removesuffix(".weight") for member in site.members if member.role == "producer"]
    if not chosen.touch(site):
        return "not named in only="
    return f"made by more layers than only= names ({', '.join(makers[:3])}, …); name {site.name} in only= to prune it"


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


def output_head(model: nn.Module, example: Any) -> list[str]:
    """The parameters of the last prunable layer that the example passes, by name: where the model's answer is made.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> output_head(model, torch.zeros(1, 4))
    ['1.weight']
    """
    weights = {id(weight.value): weight.parameter for weight in find_weights(model, example)[0]}
    held = {
        module: [weights[id(each)] for each in module._parameters.values() if id(each) in weights]
        for module in modules_in(model).values()
    }
    last: list[str] = []

    def note(module: nn.Module, _: Any) -> None:
        last[:] = held[module]

    hooks = [module.register_forward_pre_hook(note) for module, names in held.items() if names]
    try:
        run_example(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return last


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
    member = Member(weight.parameter, weight.module, weight.attribute, layout, falls.view, stacked=layout.stacked)
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
    units = as_units(site, whole(mask))
    return replace(site, alive=units.flatten(2).any(dim=2) if units.ndim > 2 else units)


def _listed(skipped: list[Skipped]) -> str:
    if not skipped:
        return "it has no parameters"
    shown = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:5])
    return f"left alone: {shown}" + (f"; and {len(skipped) - 5} more" if len(skipped) > 5 else "")
