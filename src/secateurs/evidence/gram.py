"""Products of the inputs of a layer: all that a reconstruction of its outputs needs to know of the data."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.weak import WeakIdKeyDictionary

from secateurs.evidence.norms import require_shows_inputs
from secateurs.types import Counted, Member, SecateursError, Seen, Statistic


def input_gram(members: Counted = "producers") -> Statistic:
    """The mean of x·xᵀ over all rows of input, x with a constant 1 behind its features: ``(groups or 1, features + 1, features + 1)``.

    Features are those of a row of the weight in its canonical view, ``inputs * kernel``: of a convolution the patches that it looks at. The
    last row holds the means of the features, so that what a layer answers to the data can be told with its bias:
    ‖WX − ŴX‖² is the trace of (W − Ŵ) G (W − Ŵ)ᵀ. Float32, 4·(features + 1)² bytes a group.

    Raises `SecateursError` for transposed convolutions, and where inputs cannot be seen, as `input_norm` does.

    >>> from secateurs.evidence import observe
    >>> from secateurs.patterns import Element, find_sites
    >>> from secateurs.types import Task
    >>> model, batch = nn.Linear(2, 1), (torch.tensor([[1.0, 2.0], [3.0, 0.0]]), None)
    >>> observe(model, find_sites(model, Element()), [input_gram()], Task(batch[0], calibration=[batch]))["weight"][input_gram()]
    tensor([[[5., 1., 2.],
             [1., 2., 1.],
             [2., 1., 1.]]])
    """
    return Statistic("input_gram", _start, "inputs", members=members)


def _start(member: Member) -> _Gram:
    require_shows_inputs(member)
    if isinstance(member.module, _ConvTransposeNd):
        raise SecateursError(
            f"{member.parameter}: the inputs of a transposed convolution are not patches, so it cannot be reconstructed; "
            "skip it with skip=[...]"
        )
    return _Gram(member)


_LAST: Any = WeakIdKeyDictionary()
"""Input of a layer, while it lives → its version, its products and its rows."""


def _products_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
    return rows.transpose(1, 2) @ rows, torch.tensor(float(rows.shape[1]))


@dataclass
class _Gram:
    """Σ x·xᵀ, and how many rows there were."""

    member: Member
    total: Tensor | None = None
    rows: Tensor | None = None

    sums: ClassVar = ("total", "rows")

    def add(self, seen: Seen) -> None:
        found, count = self._products(seen)
        self.total = found.clone() if self.total is None else self.total.add_(found)
        self.rows = count if self.rows is None else self.rows + count

    def _products(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Those of one call; of several layers that are given one tensor (queries, keys and values, say) they are computed once."""
        given = seen.inputs[0] if seen.inputs else None
        if (
            not isinstance(given, Tensor)
            or given.is_inference()
            or isinstance(self.member.module, (_ConvNd, nn.MultiheadAttention))
        ):
            return _products_of(input_rows(self.member, seen))
        version, known = _LAST.get(given, (None, None))
        if known is None or version != given._version:
            known = _products_of(input_rows(self.member, seen))
            _LAST[given] = given._version, known
        return known

    def result(self) -> Tensor:
        if self.total is None or self.rows is None:
            raise SecateursError(
                f"{self.member.parameter}: no calibration batch passed this layer, so its inputs are unknown; "
                "skip it with skip=[...]"
            )
        return self.total / float(self.rows)


def input_rows(member: Member, seen: Seen) -> Tensor:
    """What a layer multiplies the rows of its weight with, ``(groups or 1, rows, inputs * kernel)``, float32.

    >>> from secateurs.patterns import Element, find_sites
    >>> member = find_sites(nn.Conv1d(2, 1, 3, padding=1), Element(), only="*")[0].members[0]
    >>> input_rows(member, Seen((torch.arange(8.0).view(1, 2, 4),)))[0, 0]
    tensor([0., 0., 1., 0., 4., 5.])
    """
    module, inputs = member.module, seen.inputs
    if isinstance(module, _ConvNd):
        return patches(module, inputs[0].detach().float())
    if isinstance(module, nn.MultiheadAttention):
        if len(inputs) < 3:
            raise SecateursError(
                f"{member.parameter}: its layer is called with keyword arguments, so its inputs cannot be told apart; "
                "pass them by position, or skip it with skip=[...]"
            )
        return torch.stack([each.detach().float().reshape(-1, each.shape[-1]) for each in inputs[:3]])
    values = inputs[0].detach().float()
    return values.reshape(1, -1, values.shape[-1])


def patches(module: _ConvNd, values: Tensor) -> Tensor:
    """Every patch that a convolution looks at: ``(groups, places, inputs * kernel)``."""
    kernel = module.kernel_size
    if values.ndim < len(kernel) + 2:
        values = values.unsqueeze(0)
    padding = list(module._reversed_padding_repeated_twice)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    values = functional.pad(values, padding, mode=mode) if any(padding) else values
    for place, (size, step, gap) in enumerate(zip(kernel, module.stride, module.dilation, strict=True)):
        values = values.unfold(2 + place, gap * (size - 1) + 1, step)[..., ::gap]
    # (samples, channels, *places, *kernel) → (places, channels, *kernel)
    dims = len(kernel)
    order = (0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    rows = values.permute(order).reshape(-1, module.groups, values.shape[1] // module.groups * prod(kernel))
    return rows.transpose(0, 1)
