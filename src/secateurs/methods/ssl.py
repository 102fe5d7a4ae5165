"""Wen et al. 2016: structured sparsity learning, filters and input channels that a group LASSO brings to zero (1608.03665)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.allocate import above
from secateurs.criteria import magnitude
from secateurs.patterns import Channel, Selection
from secateurs.recover import Target, group_lasso, prune_at, train_
from secateurs.solve import TopK
from secateurs.types import Allocator, Counted, Pattern, Run, SecateursError, Task

_SIDES: tuple[Counted, ...] = ("producers", "consumers")


def ssl_(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    *,
    sparse_epochs: int,
    epochs: int,
    strength: float | None = None,
    target: float | Target | None = None,
    allocate: Allocator | None = None,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    **training: Any,
) -> Run:
    """Train for `sparse_epochs` with a group LASSO on filters and one on the input channels that read them, cut, and fine-tune.

    Of each channel the weights that make it cost ``strength · √size · ‖·‖``, and those that read it as well, in proximal steps, so that
    they become exactly zero. A channel goes where its filter or its readers are at zero, or with ``allocate`` (a budget, say) those that
    are smallest, by the product of both norms. In place of a strength, ``target`` is the fraction of the channels that is to be at zero
    (`group_lasso`): then all that is coupled is one group. For blocks and shapes, see `group_lasso`. ``training`` goes to `train_`;
    `shrink_` takes out what was removed.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> torch.manual_seed(0) and None
    >>> model = digits_cnn()
    >>> run = ssl_(model, digits(), torch.optim.Adam(model.parameters()), target=0.5, sparse_epochs=4, epochs=1, show=False)
    >>> sum(run.masks.plan.values())
    56
    """
    if sparse_epochs < 1 or epochs < 1:
        raise SecateursError(f"ssl_: sparse_epochs={sparse_epochs} and epochs={epochs} must both be at least 1")
    if (strength is None) == (target is None) or (target is not None and allocate is not None):
        raise SecateursError(f"ssl_: give strength={strength}, with allocate= or without, or target={target}, one of them")
    chosen: dict[str, Any] = {"only": only, "skip": skip}
    if target is not None:
        hooks = [group_lasso(pattern, target=target, until=sparse_epochs, **chosen)]
    else:
        makes, reads = (group_lasso(pattern, strength, members=each, until=sparse_epochs, **chosen) for each in _SIDES)
        both = TopK(magnitude(members="producers") * magnitude(members="consumers"))
        hooks = [makes, reads, prune_at(sparse_epochs, pattern, both, allocate or above(0.0), **chosen)]
    return train_(model, task, optimizer, sparse_epochs + epochs, hooks=hooks, **training)
