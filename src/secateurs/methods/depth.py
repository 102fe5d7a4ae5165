"""Removing whole blocks one by one, each time the one that is missed least: greedy, as SLEB (2402.09025) does."""

from __future__ import annotations

from torch import nn

from secateurs.allocate import fraction_kept, global_threshold
from secateurs.criteria import loss_without
from secateurs.masks import Masks
from secateurs.patterns import Depth, Selection, find_sites
from secateurs.progress import track
from secateurs.prune import prune_
from secateurs.solve import TopK
from secateurs.tried import taken_back_on_error
from secateurs.types import Criterion, Pattern, Task


def depth_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    pattern: Pattern = Depth(),  # noqa: B008 (frozen)
    criterion: Criterion = loss_without(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Masks:
    """Remove the block that is missed least, look at all others anew without it, and so on, until the fraction `sparsity` is gone.

    By default a block is missed by what the loss on the calibration batches becomes without it. `shrink_` takes the blocks out.

    >>> import torch
    >>> from secateurs.models import resnet_20
    >>> model, image = resnet_20(), torch.randn(1, 3, 32, 32)
    >>> task = Task(image, calibration=[(image, torch.tensor([3]))], loss=nn.functional.cross_entropy)
    >>> sum(depth_(model, task, sparsity=0.3).plan.values())
    5
    """
    keep, masks = fraction_kept("depth_", sparsity, None), None
    units = sum(site.units for site in find_sites(model, pattern, task.example, only=only, skip=skip))
    with taken_back_on_error(model):
        for left in track(range(units - 1, max(1, round(keep * units)) - 1, -1), "pruning"):
            allocate = global_threshold(keep=left / units)
            masks = prune_(model, pattern, TopK(criterion), allocate, task, only=only, skip=skip, masks=masks)
    return masks or prune_(model, pattern, TopK(criterion), global_threshold(keep=1.0), task, only=only, skip=skip)
