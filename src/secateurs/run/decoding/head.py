"""The most likely word without all logits: whole numbers of eight bits tell which few words it can be, and only those are computed.

The rounding error of a row's product is at most the norm of what rounding removed from the row, times the norm of the vector. So no word is
left out that could be the one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateurs.run.kernels.machine import InstructionSet, native_module
from secateurs.run.network.nodes import Linear

_UNIT = 2.0**-23


class Screen:
    """Finds the largest of ``weight @ x + bias``, reading a quarter of the weights' bytes.

    >>> from secateurs.run.kernels.machine import available
    >>> if available():
    ...     weight, x = torch.eye(40)[:, :20] + 0.01, torch.linspace(0, 1, 20)
    ...     screen = Screen(Linear("head", None, None, weight, None), available()[0], threads=1)
    ...     assert screen.largest(x) == int((weight @ x).argmax())
    """

    def __init__(self, head: Linear, isa: InstructionSet, threads: int) -> None:
        weight = head.weight.detach().float().contiguous()
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        rounded = (weight / scale[:, None]).round()
        removed = (weight - rounded * scale[:, None]).norm(dim=1)
        # sums of so many products in float32, in any order, here and where the rows are computed
        sums = weight.norm(dim=1) * (2 * weight.shape[1] * _UNIT)
        self._weight, self._bias, self._threads = weight, head.bias, threads
        self._slack = ((removed + sums) * (1 + 1e-5)).numpy()
        self._bytes = rounded.to(torch.int8).numpy()
        self._found = torch.empty(len(weight))
        self._program: Any = native_module().Program()
        self._program.byte_rows(isa=isa.name, q=self._bytes, scale=scale.numpy(), x=(0, 0), y=(1, 0))

    def largest(self, x: Tensor) -> int:
        """The place of the largest product with a vector; the first where several are equal. All are computed if one is not finite."""
        x = x.contiguous()
        self._program.run([x.data_ptr(), self._found.data_ptr()], self._threads)
        found = self._found.numpy()
        if self._bias is not None:
            found = found + self._bias.numpy()
        slack = self._slack * float(x.norm()) + np.abs(found) * _UNIT
        least = (found - slack).max()
        places = np.flatnonzero(found + slack >= least) if np.isfinite(least) else np.arange(len(found))
        rows = torch.from_numpy(places)
        exact = self._weight[rows] @ x
        if self._bias is not None:
            exact = exact + self._bias[rows]
        return int(places[int(exact.argmax())])
