"""Masks go on with the weights that they hold, once these are smaller."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from secateurs.forward import parameters_in
from secateurs.masks.masks import Masks
from secateurs.shrink.surgery import Indices, kept_of


def carry_(given: Masks | None, before: Mapping[str, nn.Parameter], model: nn.Module, cuts: Mapping[str, Indices]) -> None:
    """Cut every mask of these parameters as they were cut; one whose weight is gone, or that keeps all of a cut one, is none any more.

    ``before`` are the parameters that the model had, by the names that they had; ``cuts`` says by the names that they have now which
    indices stay. The masks ``given`` are then those of this model alone, and where they are by a plan of units that go for good, none
    that keeps everything; others may be of more.
    """
    for_good = given is not None and given.plan is not None and bool(given.plan.extents)
    now = parameters_in(model, again=True)
    concerned, here = {id(parameter) for parameter in before.values()}, {id(parameter) for parameter in now.values()}
    names = {id(parameter): name for name, parameter in reversed(now.items())}
    moved = {name: names[id(each)] for name, each in before.items() if id(each) in names and name not in now}
    moved |= {name: names[id(each)] for name, each in before.items() if id(each) in names and now.get(name) is not each}
    by_dim = {id(now[name]): cut for name, cut in cuts.items() if name in now}

    def gone(masks: Masks, parameter: nn.Parameter) -> bool:
        return id(parameter) not in here and (masks is given or id(parameter) in concerned)

    def left(masks: Masks, parameter: nn.Parameter, mask: Tensor) -> Tensor | None:
        if gone(masks, parameter):
            return None
        cut = by_dim.get(id(parameter), {} if masks is given and for_good else None)
        return mask if cut is None else None if _keeps(mask, cut) else kept_of(mask, cut)

    for masks in Masks.of_any(concerned):
        masks.follow_(partial(left, masks), partial(gone, masks), concerned, moved)


def _keeps(mask: Tensor, by_dim: Indices) -> bool:
    """Whether a mask keeps everything at these indices; dimension by dimension, so that what is left to look at is soon small."""
    if not mask.numel():
        return True
    least = mask.view(torch.uint8)
    for dim in range(max(by_dim, default=-1) + 1):
        least = (kept_of(least, {0: by_dim[dim]}) if dim in by_dim else least).amin(0)
    return bool(least.amin())
