"""Whole layers that pruning has left without effect: residual blocks whose branch is gone, and branches that add nothing."""

from __future__ import annotations

from torch import nn

from secateurs.forward import modules_in
from secateurs.graph import Knowing, ModuleCall, Structure
from secateurs.shrink.needed_units import Nonzero
from secateurs.shrink.step import Step


def idle_modules(model: nn.Module, structure: Structure, knowing: Knowing, there: Nonzero) -> Step:
    """Modules that give back their input for every input, or zeros of its shape, because weights within are all zero: proven.

    ``there`` tells where weights are not zero. Only modules that are called once, with one tensor, and return one count; of nested
    ones, the outermost.

    >>> from secateurs.shrink.needed_units import Nonzero
    >>> from secateurs.graph import analyse, interpret
    >>> import torch
    >>> block = nn.Sequential(nn.Linear(2, 2))
    >>> _ = nn.init.zeros_(block[0].weight), nn.init.zeros_(block[0].bias)
    >>> model = nn.Sequential(nn.Linear(2, 2), block)
    >>> structure = analyse(model, torch.ones(1, 2))
    >>> idle_modules(model, structure, interpret(model, structure), Nonzero.of(model)).zeros
    ['1']
    """
    weights = {name: weight for name, weight in there.weights.items() if weight.ndim and not name.endswith("bias")}
    gone = [name for name, weight in weights.items() if weight.numel() and not there.anything(name)]
    around = {name[:place] for name in gone for place, letter in enumerate(name) if letter == "."}
    calls: dict[str, list[ModuleCall]] = {}
    for call in structure.trace.calls:
        calls.setdefault(call.module, []).append(call)
    verdicts = {
        name: _verdict(calls[name][0], knowing) for name in modules_in(model) if name in around and len(calls.get(name, ())) == 1
    }
    idle = {name: what for name, what in verdicts.items() if what is not None}
    outermost = {name: what for name, what in idle.items() if not any(name.startswith(f"{other}.") for other in idle)}
    return Step(
        identities=[name for name, what in outermost.items() if what == "identity"],
        zeros=[name for name, what in outermost.items() if what == "zero"],
    )


def _verdict(call: ModuleCall, knowing: Knowing) -> str | None:
    """Whether a module gives back what it is given, or zeros like it, at any size."""
    if call.input is None or not call.alone or call.overwrites or call.input.dtype != call.output.dtype:
        return None
    given, made = knowing.of(call.input), knowing.of(call.output)
    if given.sizes != made.sizes:
        return None
    if made.all_zero:
        return "zero"
    same = (made.same or call.output) is (given.same or call.input)
    return "identity" if same and not call.overwritten else None
