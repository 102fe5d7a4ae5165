"""The sites of patterns that cut single weights: which layers take part, which are left alone, and why."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import modules_in, run_example
from secateurs.patterns.canonical import Weight, find_weights
from secateurs.patterns.cut import misfit
from secateurs.patterns.selection import listed, select
from secateurs.patterns.units import with_alive
from secateurs.types import Chosen, Member, Pattern, PatternError, Site, Sites, Skipped


def sites_in_weights(
    pattern: Pattern,
    model: nn.Module,
    example: Any,
    chosen: Chosen,
    masks: Mapping[str, Tensor] | None,
) -> Sites:
    """A site a weight, each as the pattern cuts it, in the order in which the example passes them: the ``sites`` of such a pattern.

    Raises `PatternError` where no site is left, a name means nothing in the model, or the pattern does not fit a chosen layer.
    """
    weights, skipped = find_weights(model, example)
    if not weights:
        raise PatternError(f"{type(model).__name__} has no prunable weight; {listed(skipped)}")
    weights = _in_order(model, weights, example)
    only, skip = chosen.only, chosen.skip
    named = {weight.name for weight in weights} if only is None else set(select(model, weights, only, "only="))
    left_alone = _skipped_by_default(weights, pattern, only is not None)
    if skip is not None:
        left_alone |= select(model, weights, skip, "skip=")
    skipped += [Skipped(weight.name, "not named in only=") for weight in weights if weight.name not in named]
    skipped += [Skipped(name, reason) for name, reason in left_alone.items() if name in named]
    taking_part = [weight for weight in weights if weight.name in named and weight.name not in left_alone]
    _require_fit(pattern, taking_part)
    if not taking_part:
        raise PatternError(
            f"{pattern} finds no site in {type(model).__name__}; {listed(skipped)}; "
            'pass only=[...] to choose layers yourself, or only="*" for all of them'
        )
    found = tuple(with_alive(_site(weight, pattern), masks) for weight in taking_part)
    return Sites(found, tuple(skipped), model, example)


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


def _skipped_by_default(weights: list[Weight], pattern: Pattern, named: bool) -> dict[str, str]:
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


def _is_whole_output(pattern: Pattern, shape: tuple[int, ...]) -> bool:
    cut, output = pattern.cut(shape), prod(shape[2:])
    view = cut.view(torch.empty(shape, device="meta"))
    elements = zip(view.shape, view.stride(), strict=True)
    inside = [size for size, stride in list(elements)[len(cut.contests) + len(cut.competitors) :] if stride < output]
    return prod(inside) == output > 1


def _require_fit(pattern: Pattern, weights: list[Weight]) -> None:
    misfits = {weight.name: reason for weight in weights if (reason := misfit(pattern, weight.shape)) is not None}
    if misfits:
        name, reason = next(iter(misfits.items()))
        others = f" ({len(misfits) - 1} more layers do not fit)" if len(misfits) > 1 else ""
        raise PatternError(f"{name}: {reason}; or skip with skip={list(misfits)}{others}")


def _site(weight: Weight, pattern: Pattern) -> Site:
    falls = pattern.cut(weight.shape)
    layout, kind = weight.layout, f"{type(weight.module).__name__}.{weight.attribute}"
    member = Member(weight.parameter, weight.module, weight.attribute, layout, falls.view, stacked=layout.stacked)
    return Site(weight.name, (member,), falls.contests, falls.competitors, prod(falls.elements), pattern, kind=kind)
