"""Stochastic depth, which the deeper networks share."""

from __future__ import annotations

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """In training, sets each example to zero with ``probability`` and scales the others up; else, does nothing.

    At the end of a residual branch it leaves the branch out. Huang et al. 2016, arXiv:1603.09382. Input and output
    ``(n, ...)``.

    >>> import torch
    >>> drop = StochasticDepth(0.5)
    >>> sorted({tuple(row) for row in drop(torch.ones(99, 2)).tolist()})
    [(0.0, 0.0), (2.0, 2.0)]
    >>> drop.eval()(torch.ones(1, 2)).tolist()
    [[1.0, 1.0]]
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep) / keep
