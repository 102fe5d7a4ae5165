"""Castellano, Fanelli & Pelillo 1997: an iterative pruning algorithm for feedforward neural networks (IEEE TNN 8(3))."""

from __future__ import annotations

from torch import nn

from secateurs.allocate import fraction_kept, global_threshold
from secateurs.criteria import activation, magnitude
from secateurs.masks import Masks
from secateurs.patterns import Channel, Selection, find_sites
from secateurs.progress import track
from secateurs.prune import prune_
from secateurs.solve import LeastSquares, TopK
from secateurs.tried import taken_back_on_error
from secateurs.types import Task


def castellano_(
    model: nn.Module, task: Task, *, sparsity: float, only: Selection | None = None, skip: Selection | None = None
) -> Masks:
    """Remove hidden units one by one, always the one that adds least to the layers that read it, and let the others make up for it.

    What a unit adds is the norm of its answers times that of the weights that read them; then the weights that read the others are
    those of least squares. Each removal looks at the calibration batches anew, so this is for small networks; `ZipLM` comes to as
    much in one look at each layer. ``sparsity`` is the fraction of the units of the whole model.

    >>> import torch
    >>> model, data = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1)), torch.randn(64, 4)
    >>> castellano_(model, Task(data, calibration=[(data, None)]), sparsity=0.75).plan["0"]
    3
    """
    keep, masks = fraction_kept("castellano_", sparsity, None), None
    solver, pattern = LeastSquares(TopK(activation(p=2) * magnitude(members="consumers"))), Channel(within="model")
    units = sum(site.units for site in find_sites(model, pattern, task.example, only=only, skip=skip))
    with taken_back_on_error(model):
        for left in track(range(units - 1, max(1, round(keep * units)) - 1, -1), "pruning"):
            masks = prune_(model, pattern, solver, global_threshold(keep=left / units), task, only=only, skip=skip, masks=masks)
    return masks or prune_(model, pattern, solver, global_threshold(keep=1.0), task, only=only, skip=skip)
