"""Comparing models that draw noise or round: what two of them answer differs though nothing is wrong.

A smaller tensor gets other random numbers than the larger one; and what a model rounds to few bits may fall on either side of a half,
when sums run in another order. Both leave zero where it is, or are the same for all channels, so that comparing does without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

_ROUNDING = {
    aten.fake_quantize_per_tensor_affine,
    aten.fake_quantize_per_tensor_affine_cachemask,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams,
    aten.fake_quantize_per_channel_affine,
    aten.fake_quantize_per_channel_affine_cachemask,
    aten._fake_quantize_learnable_per_tensor_affine,
    aten._fake_quantize_learnable_per_channel_affine,
    aten._fused_moving_avg_obs_fq_helper,
    aten.native_dropout,
}
"""Operations that give their first operand, rounded or thinned out, and where they left it alone."""

_NOISE = {
    aten.rand: 0.5,
    aten.rand_like: 0.5,
    aten.uniform_: 0.5,
    aten.randn: 0.7,
    aten.randn_like: 0.7,
    aten.normal_: 0.7,
    aten.normal: 0.7,
    aten.exponential_: 1.0,
    aten.bernoulli: 1.0,
    aten.bernoulli_: 1.0,
}
"""Operations that draw numbers that do not depend on an index, and what is drawn instead."""


class Stilled(TorchDispatchMode):
    """No noise and no rounding while a model runs: every number drawn is the same.

    >>> with Stilled():
    ...     torch.randn(3)
    tensor([0.7000, 0.7000, 0.7000])
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, getattr(func, "overloadpacket", None)
        if packet in _ROUNDING:
            whole = args[0].clone()
            return (whole, torch.ones_like(whole, dtype=torch.bool)) if len(func._schema.returns) == 2 else whole
        out = func(*args, **kwargs)
        if packet in _NOISE and isinstance(out, Tensor):
            out.fill_(_NOISE[packet])
        return out
