"""Projection: after some steps only the largest weights stay, and the others may come back until they no longer may."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from secateurs.allocate import global_threshold
from secateurs.criteria import magnitude
from secateurs.given import NUMBER, require
from secateurs.masks import Masks
from secateurs.patterns import Element, Selection
from secateurs.prune import prune_
from secateurs.solve import TopK
from secateurs.types import Allocator, FileError, Hook, Pattern, Run, SecateursError


def hard_threshold(
    sparsity: float,
    *,
    every: int = 10,
    until: int | None = None,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    allocate: Callable[..., Allocator] = global_threshold,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that sets all but the largest weights to zero after each `every`-th step: the proximal step of ℓ0 (1412.1442, §3.2).

    They learn on, and may come back before the next. At the start of epoch `until` (by default after three quarters of all) those that
    are zero then are gone for good, as masks of the run, which has exactly ``sparsity``. Masks of an earlier pruning hold throughout.

    Raises `SecateursError` for a sparsity outside (0, 1), or steps and epochs below 1.

    >>> hard_threshold(0.9, every=5).name
    'hard_threshold'
    """
    for argument, value in (("sparsity", sparsity), ("every", every), ("until", 1 if until is None else until)):
        require("hard_threshold", argument, value, NUMBER)
    if not 0 < sparsity < 1 or every < 1 or (until is not None and until < 1):
        raise SecateursError(
            f"hard_threshold(sparsity={sparsity}, every={every}, until={until}): sparsity must be in (0, 1), the others at least 1"
        )
    over: list[bool] = []
    restored: list[bool] = []

    def start(run: Run) -> None:
        if not restored:  # it may be over in an earlier run of this hook, and begins anew in this one
            over.clear()
        restored.clear()

    def project(run: Run) -> Masks:
        solver, amount = TopK(magnitude()), allocate(sparsity=sparsity)
        return prune_(run.model, pattern, solver, amount, run.task, only=only, skip=skip, masks=run.masks or None)

    def settle(run: Run) -> None:
        last = max(1, run.epochs * 3 // 4) if until is None else min(until, run.epochs)
        if not over and run.epoch >= last:
            finish(run)

    def finish(run: Run) -> None:
        if not over:
            over.append(True)
            run.masks.replace_(project(run))

    def stepped(run: Run) -> None:
        if not over and run.step % every == 0:
            project(run)

    def restore(state: Mapping[str, Any]) -> None:
        if type(state.get("over")) is not bool:
            raise FileError("hard_threshold: the checkpoint holds no state of this hook")
        over[:] = [True] if state["over"] else []
        restored[:] = [True]

    state = lambda: {"over": bool(over)}  # noqa: E731
    return Hook("hard_threshold", start=start, epoch=settle, stepped=stepped, end=finish, state=state, restore=restore)
