"""The laws of quantisers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from secateurs.coding import Levels
from secateurs.compressing import Quantiser
from secateurs.types import SecateursError

_SHAPES = ((4, 6), (6, 2, 3, 3), (8,), (3, 0))
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_quantiser(quantiser: Quantiser, *, scales: bool = True) -> None:
    """Raise `AssertionError` where a quantiser breaks a law, on weights of each dtype, whole and masked, with ties and without.

    - levels are int32 in the weight's shape; their values are finite and of the weight's dtype
    - what is zero or masked is level 0, which stands for 0.0, whatever number a mask hides
    - the sign of a level is that of its value, and of one row the larger level has the larger value, never the same
    - the values are nearer to the weight than zeros are, all in all
    - the same weight gives the same levels, and stays as it is; twice the weight gives twice the values (``scales=False`` where not)
    - a `SecateursError` is a fair answer to a weight that does not fall into its groups

    >>> from secateurs.compressing import k_means
    >>> check_quantiser(k_means(bits=2))
    """
    checked = 0
    for kind, weight, mask in _weights():
        where = f"{quantiser!r}, on {kind} of shape {tuple(weight.shape)}, {weight.dtype}"
        before = weight.clone()
        try:
            levels = quantiser(weight, mask)
        except SecateursError:
            continue
        checked += bool(weight.numel())
        _check_levels(where, levels, weight, mask)
        again = quantiser(weight, mask)
        assert torch.equal(weight, before), f"{where}: the weight was changed"
        assert torch.equal(levels.numbers, again.numbers) and torch.equal(levels.values(), again.values()), (
            f"{where}: asked again, it gives other levels"
        )
        if mask is not None:
            hidden = quantiser(weight.masked_fill(~mask, torch.nan), mask)
            assert torch.equal(levels.values(), hidden.values()), f"{where}: it looks at what the mask hides"
        if scales:
            twice = quantiser(2 * weight, mask).values()
            assert torch.equal(2 * levels.values(), twice), f"{where}: twice the weight does not give twice the values"
    assert checked, f"{quantiser!r}: it takes no weight of {', '.join(map(str, _SHAPES))}"


def _check_levels(where: str, levels: Levels, weight: Tensor, mask: Tensor | None) -> None:
    values, numbers = levels.values(), levels.numbers
    assert numbers.shape == weight.shape, f"{where}: levels of shape {tuple(numbers.shape)}"
    assert values.dtype == weight.dtype and bool(torch.isfinite(values).all()), f"{where}: values {values.dtype}, or not finite"
    gone = (weight == 0) if mask is None else (weight == 0) | ~mask
    assert not numbers[gone].any(), f"{where}: what is zero or masked has levels other than 0"
    assert not (values[numbers == 0] != 0).any() and not torch.signbit(values[numbers == 0]).any(), f"{where}: level 0 is not 0.0"
    assert torch.equal(numbers.sign(), values.sign().int()), f"{where}: the sign of a level is not that of its value"
    for row, level in zip(values.reshape(levels.runs, -1).double(), numbers.reshape(levels.runs, -1), strict=True):
        order = level.argsort()
        apart = level[order].diff() > 0
        rises = row[order].diff()
        assert bool((rises[apart] > 0).all()) and bool((rises[~apart] == 0).all()), f"{where}: larger levels have no larger values"
    kept = torch.where(gone, 0, weight.double())
    error, size = (values.double() - kept).square().sum(), kept.square().sum()
    assert float(error) <= float(size), f"{where}: the values are further from the weight than zeros are"


def _weights() -> Iterator[tuple[str, Tensor, Tensor | None]]:
    chance = torch.Generator().manual_seed(0)
    for shape in _SHAPES:
        drawn, mask = torch.randn(shape, generator=chance), torch.rand(shape, generator=chance) > 0.5
        for dtype in _DTYPES:
            weight = drawn.to(dtype)
            yield "distinct weights", weight, None
            yield "masked weights", weight, mask
        yield "weights with many ties", (2 * drawn).round() / 2, mask
        yield "equal weights", torch.ones(shape), None
        yield "nothing", torch.zeros(shape), None
