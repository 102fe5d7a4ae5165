"""GRUs as one operation each, where torch records an addition, a split and a product for every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@torch.library.custom_op("secateurs::gru", mutates_args=())
def gru(
    x: Tensor, hidden: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, recurrent_bias: Tensor, backwards: bool
) -> tuple[Tensor, Tensor]:
    """One layer in one direction: ``x`` (steps, rows, inputs), ``hidden`` (rows, units); all hidden states, and the last.

    >>> weights = torch.zeros(9, 2), torch.zeros(9, 3), torch.zeros(9), torch.zeros(9)
    >>> torch.ops.secateurs.gru(torch.zeros(5, 1, 2), torch.zeros(1, 3), *weights, False)[0].shape
    torch.Size([5, 1, 3])
    """
    numbers = [weight, recurrent, bias, recurrent_bias]
    found, last = torch.gru(x.flip(0) if backwards else x, hidden[None].contiguous(), numbers, True, 1, 0.0, False, False, False)
    return (found.flip(0) if backwards else found.clone()), last[0].clone()


class Whole(TorchFunctionMode):
    """Within it, GRUs and their cells call `gru`, once for each layer and direction; the models stay as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.gru and isinstance(args[2], (list, tuple)):  # else a packed sequence, which has no fixed shape
            return _layers(*args, **(kwargs or {}))
        if func is torch.gru_cell:
            return _cell(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layers(
    x: Tensor,
    start: Tensor,
    numbers: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """`torch.gru` as several calls of `gru`; dropout is nothing in evaluation mode."""
    directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
    x = x.transpose(0, 1) if batch_first else x
    last = []
    for layer in range(num_layers):
        found = []
        for direction in range(directions):
            place = layer * directions + direction
            weight, recurrent, *biases = numbers[place * each : (place + 1) * each]
            biases = biases or list(torch.zeros(2, weight.shape[0]))
            out, end = torch.ops.secateurs.gru(x, start[place], weight, recurrent, *biases, bool(direction))
            found.append(out)
            last.append(end)
        x = torch.cat(found, 2) if bidirectional else found[0]
    return (x.transpose(0, 1) if batch_first else x), torch.stack(last)


def _cell(
    x: Tensor, hidden: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor | None = None, recurrent_bias: Tensor | None = None
) -> Tensor:
    zeros = torch.zeros(weight.shape[0])
    biases = [zeros if each is None else each for each in (bias, recurrent_bias)]
    found: Tensor = torch.ops.secateurs.gru(x[None], hidden, weight, recurrent, *biases, False)[1]
    return found


def refused(model: nn.Module) -> list[str]:
    """Recurrent layers of kinds that have no kernels, a line each.

    >>> refused(nn.ModuleDict({"lstm": nn.LSTM(4, 8, proj_size=2)}))
    ['lstm: an LSTM whose hidden state is projected (proj_size=2)']
    """
    return [
        f"{name or 'the model itself'}: an LSTM whose hidden state is projected (proj_size={module.proj_size})"
        for name, module in model.named_modules()
        if isinstance(module, nn.LSTM) and module.proj_size
    ]
