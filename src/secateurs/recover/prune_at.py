"""One pruning, in the middle of a training run."""

from __future__ import annotations

from secateurs.given import ALLOCATOR, PATTERN, SOLVER, require
from secateurs.patterns import Selection
from secateurs.recover.target import cut_
from secateurs.types import Allocator, Hook, Pattern, Run, SecateursError, Solver


def prune_at(
    epoch: int,
    pattern: Pattern,
    solver: Solver,
    allocate: Allocator | None,
    *,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Hook:
    """A hook that prunes once, at the start of an epoch counted from 0, as `prune_` does; what the run has pruned already stays so.

    In a loop of your own, ``hook.epoch(run)`` at the start of each epoch, with ``run.epoch`` its number. Raises `SecateursError` for an
    epoch that the run does not have.

    >>> from secateurs import Channel, TopK, above, magnitude
    >>> prune_at(10, Channel(), TopK(magnitude(members="all")), above(0.0)).name
    'prune_at(10)'
    """
    if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
        raise SecateursError(f"prune_at: epoch={epoch!r} must be a whole number, at least 0")
    require("prune_at", "pattern", pattern, PATTERN)
    require("prune_at", "solver", solver, SOLVER)
    if allocate is not None:
        require("prune_at", "allocate", allocate, ALLOCATOR)

    def require_epoch(run: Run) -> None:
        if epoch >= run.epochs > 0:
            raise SecateursError(
                f"prune_at: epoch {epoch} never begins, since training ends after {run.epochs}: train for more, or prune earlier"
            )

    def prune(run: Run) -> None:
        if run.epoch == epoch:
            cut_(run, pattern, solver, allocate, only=only, skip=skip)

    return Hook(f"prune_at({epoch})", start=require_epoch, epoch=prune)
