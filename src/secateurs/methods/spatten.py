"""Wang et al. 2020: SpAtten, tokens and heads that fall out in a cascade, input by input (2012.09852)."""

from __future__ import annotations

from math import ceil
from typing import Any

from torch import nn

from secateurs.graph import blocks_of
from secateurs.per_input import PerInput, drop_tokens_
from secateurs.per_input.attached import require_fraction


def spatten_(model: nn.Module, example: Any, *, keep: float, heads: float = 1.0, **how: Any) -> PerInput:
    """Drop tokens and heads of a transformer by `drop_tokens_`, on the schedule of the paper (§III.C), without training.

    The first 15 % of the blocks work on all tokens, the first 30 % with all heads; over the others, fractions fall on a straight
    line whose mean is ``keep`` (``heads``). The paper does not tell its ends: here it goes half as far as it could. ``how`` goes to
    `drop_tokens_`. Progressive quantisation, the paper's third part, is none of this. Raises as `drop_tokens_` does.

    >>> import torch
    >>> fractions(8, 0.5, 0.15)
    [1.0, 1.0, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25]
    """
    keep, heads = require_fraction("spatten_", "keep", keep), require_fraction("spatten_", "heads", heads)
    number = len(blocks_of(model, example))
    return drop_tokens_(model, example, keep=fractions(number, keep, 0.15), heads=fractions(number, heads, 0.30), **how)


def fractions(blocks: int, mean: float, front: float) -> list[float]:
    """What each block works on: all in the front ones, at least in the first, and a falling line over the others."""
    first = max(1, ceil(round(front * blocks, 9)))
    rest, reach = blocks - first, min(mean, 1 - mean) / 2
    line = [mean + reach * (1 - 2 * place / max(1, rest - 1)) for place in range(rest)]
    return [1.0] * first + ([mean] if rest == 1 else [round(each, 9) for each in line])
