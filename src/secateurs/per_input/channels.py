"""Channels that an input does not need are not computed for it: feature boosting and suppression (Gao et al., 1810.05331)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateurs.forward import modules_in
from secateurs.given import MODEL, NUMBER, require, require_values
from secateurs.graph.ops import Trace
from secateurs.graph.trace import trace_of
from secateurs.per_input.attached import PerInput, attaching, kept_of, require_fraction, selected, told
from secateurs.types import Hook, Run, SecateursError, Selection

CHILD = "gate"
"""What a gate is called in its convolution: files have ``conv1.gate.weight`` beside ``conv1.weight``."""


class Gate(nn.Module):
    """Says of an input how salient each output channel of a convolution is, and lets the ``keep`` most salient ones pass.

    The saliency of ``(n, outputs)`` channels is ``relu(s @ weight.T + bias)``, s the mean of |x| over the places of each input
    channel; the k largest multiply their channels behind the normalisation, the others' are zero.
    """

    def __init__(self, conv: _ConvNd, norm: _BatchNorm | None, keep: float, spread: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = conv.out_channels, conv.in_channels
        start = torch.randn(outputs, inputs, generator=generator) * (spread * sqrt(2 / inputs))
        self.weight = nn.Parameter(start.to(conv.weight))
        self.bias = nn.Parameter(torch.ones_like(self.weight[:, 0]))
        self.keep, self.on, self.skips = keep, True, True
        self._owners = (conv, norm)  # in a tuple: they are no parts of the gate
        self._inner: list[Any] = []
        self._now: tuple[Tensor, Tensor | None] | None = None

    def forward(self, squeezed: Tensor) -> Tensor:
        """Saliencies ``(n, outputs)`` of inputs ``(n, inputs)``."""
        return functional.relu(functional.linear(squeezed, self.weight, self.bias))

    def chosen(self, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """The k most salient channels of each input, of equal ones the first, and all saliencies with zeros for the others."""
        k = kept_of(self.keep, saliency.shape[1])
        winners = saliency.sort(dim=1, descending=True, stable=True).indices[:, :k]
        return winners, torch.zeros_like(saliency).scatter(1, winners, saliency.gather(1, winners))

    def convolve(self, x: Tensor) -> Tensor:
        """In place of the convolution."""
        conv, norm = self._owners
        if not self.on:
            return self._inner[0](x)
        if x.ndim != conv.weight.ndim:
            raise SecateursError(f"a gate takes a batch of inputs, not one of shape {tuple(x.shape)}: give x[None]")
        squeezed = x.abs().flatten(2).mean(2)
        winners, passed = self.chosen(self(squeezed))
        if self.skips and len(x) == 1 and not conv.training and not torch.is_grad_enabled() and conv.padding_mode == "zeros":
            return self._narrow(x, squeezed, winners, passed)
        y = self._inner[0](x)
        if norm is None:
            return _scaled(y, passed)
        self._now = passed, None
        return y

    def _narrow(self, x: Tensor, squeezed: Tensor, winners: Tensor, passed: Tensor) -> Tensor:
        """The chosen outputs of one input alone, from the input channels that are not all zero."""
        conv, norm = self._owners
        open_ = winners[0][passed[0, winners[0]] > 0].sort().values
        rows = open_ if len(open_) else winners[0, :1]  # where all are closed, one that is multiplied by zero
        weight = conv.weight[rows]
        live = squeezed[0].nonzero()[:, 0]
        if 0 < len(live) < x.shape[1]:
            x, weight = x[:, live], weight[:, live]
        bias = None if conv.bias is None else conv.bias[rows]
        y = conv._conv_forward(x, weight, bias)
        if norm is None:
            return _spread(_scaled(y, passed[:, rows]), rows, conv.out_channels)
        self._now = passed, rows
        return y

    def normalise(self, y: Tensor) -> Tensor:
        """In place of the normalisation behind the convolution."""
        now, self._now = self._now, None
        conv, norm = self._owners
        if not self.on or now is None:
            return self._inner[1](y)
        passed, rows = now
        if rows is None or norm is None:
            return _scaled(self._inner[1](y), passed)
        mean, variance, scale, shift = (
            None if each is None else each[rows] for each in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        y = functional.batch_norm(y, mean, variance, scale, shift, False, 0.0, norm.eps)
        return _spread(_scaled(y, passed[:, rows]), rows, conv.out_channels)


def _scaled(y: Tensor, by: Tensor) -> Tensor:
    return y * by.to(y.dtype).view(*by.shape, *(1,) * (y.ndim - 2))


def _spread(y: Tensor, rows: Tensor, channels: int) -> Tensor:
    """Some channels of one input among zeros."""
    return y.new_zeros(1, channels, *y.shape[2:]).index_copy(1, rows, y)


def boost_(
    model: nn.Module,
    example: Any,
    *,
    keep: float,
    spread: float = 0.1,
    only: Selection | None = None,
    skip: Selection | None = None,
    seed: int = 0,
) -> PerInput:
    """Put a gate before each convolution, which lets the ``keep`` most salient of its channels pass, input by input (1810.05331).

    A gate is a layer from the means of |x| of the input channels to a saliency for each output channel; behind the normalisation
    (found from the graph: the only reader of the convolution) channels are multiplied by it, or by zero. Train the gates with the
    model, with `saliency_penalty`: their parameters are the model's, called ``conv1.gate.weight``. They begin near 1: at ``weight``
    ~ N(0, spread² · 2 / inputs) and ``bias`` = 1, so that of ``spread=0`` with ``keep=1`` the model's answers come out to the bit;
    the paper has ``spread=1``. Unlike there, scales of the normalisation stay, so that the gates can be taken off again.

    In evaluation without gradients, a batch of one input really skips: channels that do not pass are not computed, and channels of
    zeros are not read by the next gated convolution. Of larger batches they are computed, and multiplied by zero: their answers are
    the same.

    Files of `save` hold the gates: ``load(path, lambda: boost_(make(), example, keep=0.5).model)``. Grouped and transposed
    convolutions are left alone (``attached.skipped``). Returns what takes the gates off again; ``attached.parts`` are the gates,
    whose ``keep`` may be changed.

    Raises `SecateursError` where keep is outside (0, 1] or no convolution can have a gate, `TaskError` where the model rejects the
    example.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> attached = boost_(model, torch.rand(1, 3, 6, 6), keep=0.25)
    >>> with torch.no_grad():
    ...     int((model(torch.rand(1, 3, 6, 6)).flatten(2).abs().sum(2) > 0).sum()) <= 2
    True
    """
    require("boost_", "model", model, MODEL)
    require_values("boost_", model)
    keep = require_fraction("boost_", "keep", keep)
    if not 0 <= spread < float("inf"):
        raise SecateursError(f"boost_: spread={spread} must be at least 0")
    if any(isinstance(module, Gate) for module in modules_in(model).values()):
        raise SecateursError(f"boost_: {type(model).__name__} has gates already: take them off first, with remove()")
    pairs, left = _pairs(model, trace_of(model, example))
    chosen = selected(model, pairs, only, skip)
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "it has none that the example passes"
        raise SecateursError(
            f"boost_: no convolution of {type(model).__name__} can have a gate ({reasons}); look at only= and skip="
        )
    modules, generator = modules_in(model), torch.Generator().manual_seed(seed)
    with attaching(PerInput(model, skipped=told(left))) as attached:
        for name in chosen:
            conv, norm = modules[name], None if pairs[name] is None else modules[pairs[name] or ""]
            gate = Gate(conv, norm, keep, spread, generator)  # type: ignore[arg-type]
            attached.add_child(conv, CHILD, gate.train(conv.training))
            attached.parts[name] = gate
            gate._inner.append(attached.take_over(conv, gate.convolve))
            if norm is not None:
                gate._inner.append(attached.take_over(norm, gate.normalise))
    return attached


def _pairs(model: nn.Module, trace: Trace) -> tuple[dict[str, str | None], dict[str, str]]:
    """Convolution → the normalisation that alone reads it, or none; and the convolutions that can have no gate, with the reason."""
    modules = modules_in(model)
    found: dict[str, str | None] = {}
    left: dict[str, str] = {}
    normalised = Counter(op.module for op in trace.ops if "batch_norm" in op.name)
    for op in (op for op in trace.ops if op.name == "convolution"):
        conv = modules.get(op.module)
        if op.module in found or op.module in left:
            found.pop(op.module, None)
            left[op.module] = "it is called more than once"
        elif not isinstance(conv, _ConvNd) or isinstance(conv, _ConvTransposeNd) or type(conv).__name__.startswith("Lazy"):
            left[op.module] = "it is no convolution layer that can be run with fewer outputs"
        elif conv.groups > 1:
            left[op.module] = f"its {conv.groups} groups have inputs of their own"
        elif trace.parameters.get(f"{op.module}.weight" if op.module else "weight") is not op.args[1]:
            left[op.module] = "its weight is computed from others"
        else:
            readers = trace.readers.get(op.outputs[0], [])
            norm = modules.get(readers[0].module) if len(readers) == 1 and "batch_norm" in readers[0].name else None
            fits = isinstance(norm, _BatchNorm) and norm.running_mean is not None
            if norm is not None and (not fits or normalised[readers[0].module] > 1):
                left[op.module] = f"{readers[0].module} behind it is used again, or has no running statistics"
            else:
                found[op.module] = readers[0].module if fits else None
    return found, left


# ---------------------------------------------------------------- training


@contextmanager
def saliencies(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within it each forward pass leaves the saliencies ``(n, channels)`` of each gate, by the name of its convolution.

    For a loop of your own: ``loss + strength * sum(each.mean(0).sum() for each in seen.values())``.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> attached = boost_(model, torch.rand(1, 3, 6, 6), keep=0.5)
    >>> with saliencies(model) as seen:
    ...     _ = model(torch.rand(4, 3, 6, 6))
    ...     seen["0"].shape
    torch.Size([4, 8])
    """
    seen: dict[str, Tensor] = {}
    handles = _watch(model, seen)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _watch(model: nn.Module, seen: dict[str, Tensor]) -> list[Any]:
    gates = {name: module for name, module in modules_in(model).items() if isinstance(module, Gate)}
    if not gates:
        raise SecateursError(f"saliency_penalty: {type(model).__name__} has no gates: call boost_(model, example, keep=...) first")

    def noting(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, output)

    return [gate.register_forward_hook(noting(name.removesuffix(CHILD).removesuffix("."))) for name, gate in gates.items()]


def saliency_penalty(strength: float = 1e-8) -> Hook:
    """Adds ``strength · Σ mean over inputs of ‖saliency‖₁`` over all gates of `boost_` to the loss (1810.05331, eq. 9).

    Raises `SecateursError` where strength is negative, where the model has no gates, and where all gates of a layer are closed for
    every input of a batch: its saliencies get no gradient then, and stay closed.

    >>> saliency_penalty(1e-8).name
    'saliency_penalty'
    """
    require("saliency_penalty", "strength", strength, NUMBER)
    if not 0 <= strength < float("inf"):
        raise SecateursError(f"saliency_penalty: strength={strength} must be at least 0")
    seen: dict[str, Tensor] = {}
    handles: list[Any] = []

    def start(run: Run) -> None:
        handles.extend(_watch(run.model, seen))

    def loss(run: Run) -> Tensor | None:
        total: Tensor | None = None
        for name, saliency in seen.items():
            size = saliency.float().mean(0).sum()
            if not float(size.detach()):
                raise SecateursError(
                    f"saliency_penalty: all gates of {name} are closed for a whole batch of {len(saliency)}, and nothing opens them again: "
                    f"lower strength={strength:g} or the learning rate, or begin anew with a larger keep"
                )
            total = size if total is None else total + size
        seen.clear()
        return None if total is None else strength * total

    def close(run: Run) -> None:
        for handle in handles:
            handle.remove()
        handles.clear()
        seen.clear()

    return Hook("saliency_penalty", start=start, loss=loss, close=close)
