"""Controls for lottery tickets: as many weights, somewhere else."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

import torch
from torch import Tensor, nn

from secateurs.given import MASKS, MODEL, require
from secateurs.masks import Masks
from secateurs.ranks import whole
from secateurs.types import SecateursError


def shuffled(masks: Masks, model: nn.Module, *, seed: int = 0) -> Masks:
    """Masks that keep as many weights of each parameter, at random places; not applied yet. The model and the masks stay as they are.

    The control of 1803.03635: does it matter which connections stay, or only how many in each layer? What is drawn depends on seed and
    name alone. Raises `SecateursError` for masks of coupled units, whose places in several weights go together.

    >>> layer = nn.Linear(4, 2)
    >>> masks = Masks({"weight": torch.arange(8).view(2, 4) < 3}, layer)
    >>> int(shuffled(masks, layer, seed=1)["weight"].sum()), bool((shuffled(masks, layer, seed=1)["weight"] == masks["weight"]).all())
    (3, False)
    """
    require("shuffled", "masks", masks, MASKS)
    require("shuffled", "model", model, MODEL)
    if masks.plan is not None and masks.plan.extents:
        raise SecateursError(
            f"shuffled: these masks are of coupled units ({masks.pattern}), which lie in several weights: prune as many at random instead, "
            "prune_(model, pattern, TopK(random(seed)), masks.plan, task)"
        )
    origin = replace(masks.origin.forgetting(), plan=None, pattern=f"{masks.pattern or 'masks'}, shuffled")
    return Masks({name: _shuffled(name, whole(mask), seed) for name, mask in masks.items()}, model, origin)


def _shuffled(name: str, mask: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(crc32(f"{seed} {name}".encode()))
    order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
    return mask.flatten()[order].view(mask.shape)
