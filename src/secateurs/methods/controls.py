"""Controls: networks as small as the pruned one that owe nothing to what it had learnt, or nothing to how it was pruned."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from secateurs.allocate import uniform, within_budget
from secateurs.costs import params
from secateurs.criteria import random
from secateurs.masks import Masks
from secateurs.patterns import Channel, Selection
from secateurs.prune import prune_
from secateurs.recover import restart_
from secateurs.shrink import shrink_
from secateurs.solve import TopK
from secateurs.types import Budget, Pattern, SecateursError, Task


def dense_of_size_(
    model: nn.Module,
    task: Task,
    *,
    keep: float,
    seed: int = 0,
    fresh: nn.Module | None = None,
    pattern: Pattern = Channel(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
) -> None:
    """Make a dense network of the same shape with at most ``keep`` of the parameters, all layers narrower alike, and begin it anew.

    Which channels are taken out is drawn, which does not matter: all weights are fresh (`restart_`, with its ``fresh``). To be trained for
    as long as the pruned one and its dense network together.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> dense_of_size_(model, digits(), keep=0.25)
    >>> params(model) <= 0.25 * params(digits_cnn())
    True
    """
    allocate = within_budget(Budget(params, keep=keep), uniform)
    masks = prune_(model, pattern, TopK(random(seed)), allocate, task, only=only, skip=skip)
    shrink_(model, masks, task.example)
    restart_(model, seed=seed, fresh=fresh)


def width_of_size(make: Callable[[float], nn.Module], parameters: float) -> float:
    """The largest width, in hundredths up to 1, at which ``make(width)`` has no more than so many parameters: a dense network of a size
    for models that take a width, to be made by ``make`` and trained from scratch.

    Raises `SecateursError` where one of the least width has more.

    >>> from secateurs.models import digits_cnn
    >>> width_of_size(lambda width: digits_cnn(width=width), 0.25 * params(digits_cnn()))
    0.49
    """
    sizes = {step / 100: params(make(step / 100)) for step in range(1, 101)}
    widths = [width for width, size in sizes.items() if size <= parameters]
    if not widths:
        raise SecateursError(
            f"{parameters:,.0f} parameters are too few for a dense network of the same shape: at a width of 0.01 it has {sizes[0.01]:,.0f}"
        )
    return max(widths)


def random_start_(
    model: nn.Module,
    task: Task,
    prune: Callable[[nn.Module, Task], Masks | None],
    *,
    seed: int = 0,
    fresh: nn.Module | None = None,
) -> Masks | None:
    """Prune by ``prune(model, task)``, then begin anew what is left: the pruned architecture without the weights (1810.05270).

    Returns the masks, which go on holding.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> from secateurs.methods import snip_
    >>> masks = random_start_(digits_cnn(), digits(), lambda model, task: snip_(model, task, sparsity=0.9))
    >>> round(masks.sparsity, 2)
    0.9
    """
    masks = prune(model, task)
    restart_(model, masks, seed=seed, fresh=fresh)
    return masks
