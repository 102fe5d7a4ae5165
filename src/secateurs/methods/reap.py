"""Lasby et al. 2025: router-weighted expert activation pruning, experts of mixtures removed in one shot (2510.13999)."""

from __future__ import annotations

from torch import nn

from secateurs.allocate import uniform
from secateurs.criteria import reap
from secateurs.patterns import Expert, Selection
from secateurs.prune import prune_
from secateurs.shrink import Shrunk, shrink_
from secateurs.solve import TopK
from secateurs.tried import taken_back_on_error
from secateurs.types import Criterion, Task


def reap_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float = 0.5,
    criterion: Criterion = reap(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Shrunk:
    """Remove the fraction `sparsity` of the experts of each mixture, with the rows of the routers, and shrink the model.

    Both at once, as a masked expert may still be chosen, and gives zeros to the tokens that are sent to it. Every mixture keeps the same
    number where all had the same, so that a model of transformers is saved as an ordinary folder. Raises `PlanError` where fewer would
    be left than each token is sent to.

    >>> import torch
    >>> class Mixture(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.router, self.experts = nn.Linear(4, 6), nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
    ...     def forward(self, x):
    ...         weights, chosen = self.router(x).softmax(-1).topk(2)
    ...         total = torch.zeros_like(x)
    ...         for number, expert in enumerate(self.experts):
    ...             rows, places = torch.where(chosen == number)
    ...             total = total.index_add(0, rows, expert(x[rows]) * weights[rows, places, None])
    ...         return total
    >>> model, tokens = Mixture(), torch.randn(64, 4)
    >>> reap_(model, Task(tokens, calibration=[tokens])).sites, model.router.out_features
    ({'experts': (6, 3)}, 3)
    """
    with taken_back_on_error(model):
        masks = prune_(model, Expert(), TopK(criterion), uniform(sparsity=sparsity), task, only=only, skip=skip)
        return shrink_(model, masks, task.example)
