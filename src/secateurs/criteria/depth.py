"""Whole blocks and branches: what they do to the stream that passes, and what the loss becomes without them."""

from __future__ import annotations

from secateurs.criteria.parts import total, weights_alone
from secateurs.evidence import loss_rise, stream_change
from secateurs.types import Criterion, Statistic


def block_influence() -> Criterion:
    """1 − the mean cosine of the stream before a block and behind it, over all places of a sequence or an image (2403.03853).

    For `Depth`: a block that leaves the direction of what it is given as it is can go. Of a branch it is the stream that it reads, and
    the same with what it adds.

    >>> block_influence().needs[0].watches
    'stream'
    """
    return _of("block_influence()", stream_change())


def loss_without() -> Criterion:
    """How much the mean loss over the calibration batches rises where a unit is removed, each in turn (2406.15786's and older practice).

    For any units, but it takes as many walks over the batches as there are units: take few units (`Depth`, `Head`), few batches. Needs
    the task's loss.

    >>> loss_without().name
    'loss_without()'
    """
    return _of("loss_without()", loss_rise())


def _of(name: str, statistic: Statistic) -> Criterion:
    return Criterion(name, weights_alone, total, (statistic,), units=statistic)
