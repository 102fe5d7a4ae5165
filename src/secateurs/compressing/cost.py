"""What a model takes in a compressed file: coded and counted of the model as it is, estimated of a plan."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from secateurs.coding import FAST, Levels, levels_in
from secateurs.compressing.compressed import compress
from secateurs.costs import EntropyCoded, stored_bytes
from secateurs.costs.workload import workload
from secateurs.forward import parameters_in
from secateurs.given import COUNT, require
from secateurs.types import Cost, Plan, SecateursError

_OVERHEAD = 512
"""Bytes for magic, names and checksums, and for what a plan takes among them."""

_A_TENSOR = 48
"""Bytes that the index has for each tensor, once it is deflated."""


def compressed_bytes_at(bits: int | None = None) -> Cost:
    """Bytes of the file that `compress` writes, with weights that share ``2 ** bits`` values a layer; needs the example.

    Of the model as it is, it is coded and its bytes are counted, whatever its weights are. A plan is told before there are masks: weights
    take `bits` bits each (``None``: as many as tell apart the values that they have now, up to their dtype's), with a table of values a
    layer, and where they are takes what `EntropyCoded` says of chance. The file is smaller still where values come unequally
    often, or zeros lie in rows and columns. Biases and all else are as they are. A budget in it is met by the file on disk.

    Raises `SecateursError` for bits that are no whole number from 1 to 16.

    >>> import torch
    >>> layer = nn.Linear(100, 100)
    >>> _ = layer.weight.data.mul_(40).round_().div_(40).add_(0.0)
    >>> cost = compressed_bytes_at(5)
    >>> cost(layer, torch.zeros(1, 100)) < 0.2 * 4 * layer.weight.numel()
    True
    """
    if bits is not None:
        require("compressed_bytes_at", "bits", bits, COUNT)
        if not 1 <= bits <= 16:
            raise SecateursError(f"compressed_bytes_at: bits={bits}, but weights share 2 to 65,536 values: 1 to 16 bits")

    def prepare(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
        if bits is None:
            planned, tables = _as_they_are(model, example)
        else:
            planned, tables = stored_bytes(EntropyCoded(), bits, codebook=True).prepare(model, example), 0
        rest = tables + _OVERHEAD + _A_TENSOR * len(model.state_dict())
        return lambda plan: float(_coded(model)) if plan is None else planned(plan) + rest

    return Cost("compressed_bytes" if bits is None else f"compressed_bytes_at({bits})", "bytes", prepare)


def _as_they_are(model: nn.Module, example: Any) -> tuple[Callable[[Plan | None], float], int]:
    """What a plan takes where weights keep the values that they have, and the bytes of the tables of these."""
    parameters = parameters_in(model)
    found = {name: levels_in(parameters[name].detach().cpu()) for name in workload(model, example).stored(None)}
    bits = {name: 8 * parameters[name].element_size() if each is None else _bits_of(each) for name, each in found.items()}
    tables = [each.table for each in found.values() if each is not None and each.table is not None]
    scales = [each.scale for each in found.values() if each is not None and each.scale is not None]
    return stored_bytes(EntropyCoded(), bits).prepare(model, example), sum(4 * each.numel() for each in (*tables, *scales))


def _bits_of(levels: Levels) -> int:
    """Bits that tell apart as many numbers as these levels may be."""
    return max(1, ceil(log2(int(levels.numbers.max()) - int(levels.numbers.min()) + 1)))


def _coded(model: nn.Module) -> int:
    with TemporaryDirectory() as folder:
        return compress(model, Path(folder) / "model.scz", codecs=FAST).bytes


compressed_bytes = compressed_bytes_at()
"""Bytes of the file that `compress` writes: of the model as it is, coded and counted; of a plan, what `compressed_bytes_at` says."""
