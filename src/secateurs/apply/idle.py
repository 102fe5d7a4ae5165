"""Whole layers that pruning has left without effect: residual blocks whose branch is gone, and branches that add nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateurs.apply.present import Nonzero
from secateurs.apply.step import Step
from secateurs.forward import modules_in, run_example
from secateurs.graph import untouched


def idle_modules(model: nn.Module, there: Nonzero, examples: list[Any]) -> Step:
    """Modules that give back their input bit for bit, or zeros like it, on every example, because weights within are all zero.

    ``there`` tells where weights are not zero. Only modules that are called once, with one tensor, and return one count; of nested
    ones, the outermost.

    >>> from secateurs.apply.present import Nonzero
    >>> block = nn.Sequential(nn.Linear(2, 2))
    >>> _ = nn.init.zeros_(block[0].weight), nn.init.zeros_(block[0].bias)
    >>> model = nn.Sequential(nn.Linear(2, 2), block)
    >>> idle_modules(model, Nonzero.of(model), [torch.ones(1, 2)]).zeros
    ['1']
    """
    gone = [name for name, weight in there.weights.items() if weight.ndim > 1 and weight.numel() and not there.anything(name)]
    around = {name[:place] for name in gone for place, letter in enumerate(name) if letter == "."}
    candidates = {name: module for name, module in modules_in(model).items() if name in around}
    verdicts: dict[str, set[str]] = {name: set() for name in candidates}
    for example in examples if candidates else ():
        seen: dict[str, list[str]] = {name: [] for name in candidates}
        handles = [module.register_forward_hook(_judge(seen[name]), with_kwargs=True) for name, module in candidates.items()]
        try:
            with untouched(model):
                run_example(model, example)
        finally:
            for handle in handles:
                handle.remove()
        for name, found in seen.items():
            verdicts[name].add(found[0] if len(found) == 1 else "works")
    idle = {name: next(iter(verdict)) for name, verdict in verdicts.items() if len(verdict) == 1 and verdict != {"works"}}
    outermost = {name: what for name, what in idle.items() if not any(name.startswith(f"{other}.") for other in idle)}
    return Step(
        identities=[name for name, what in outermost.items() if what == "identity"],
        zeros=[name for name, what in outermost.items() if what == "zero"],
    )


def _judge(found: list[str]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if (
            len(inputs) != 1
            or named
            or not isinstance(inputs[0], Tensor)
            or not isinstance(output, Tensor)
            or output.shape != inputs[0].shape
            or output.dtype != inputs[0].dtype
        ):
            found.append("works")
        else:
            same, zero = torch.equal(output, inputs[0]), not bool(output.any())
            found.append("identity" if same else "zero" if zero else "works")

    return hook
