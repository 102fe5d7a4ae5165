"""Gradients of the loss by whatever is watched, in one backward pass that leaves the parameters' own gradients alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateurs.evidence.second_order import Curvatures, Parts
from secateurs.ranks import is_sharded
from secateurs.types import Accumulator, Curvature, Member, SecateursError, Seen

Deliver = Callable[[list[Tensor], int], None]
"""What becomes of gradients, and of the number of samples that the loss is the mean of."""


@dataclass
class Backward:
    """The tensors by which gradients are wanted: ``joint``, weights in every batch, and ``caught``, what passed in this one; ``curved``,
    those by which second derivatives are."""

    joint: list[tuple[list[Tensor], Deliver]] = field(default_factory=list)
    caught: list[tuple[Tensor, Callable[[Tensor, int], None]]] = field(default_factory=list)
    curved: Curvatures = field(default_factory=Curvatures)

    def __call__(self, loss: Tensor, output: Any, samples: int) -> None:
        """Gradients by all of them; what the loss does not depend on has zeros."""
        self.curved(loss, output, samples)
        caught, self.caught = self.caught, []
        wanted = {id(tensor): tensor for tensors, _ in self.joint for tensor in tensors}
        wanted |= {id(tensor): tensor for tensor, _ in caught}
        found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True) if wanted else ()
        gradients = dict(zip(wanted, found, strict=True))

        def of(tensor: Tensor) -> Tensor:
            gradient = gradients[id(tensor)]
            return torch.zeros_like(tensor) if gradient is None else gradient

        with torch.no_grad():
            for tensors, deliver in self.joint:
                deliver([of(tensor) for tensor in tensors], samples)
            for tensor, give in caught:
                give(of(tensor), samples)

    def of_weight(self, member: Member, accumulators: Sequence[Accumulator]) -> None:
        """Once a batch, the gradient by a weight in its canonical view."""

        def deliver(gradients: list[Tensor], samples: int) -> None:
            seen = Seen(gradient=member.canonical(gradients[0]).float(), samples=samples)
            for accumulator in accumulators:
                accumulator.add(seen)

        self.joint.append(([member.weight], deliver))

    def of_curvature(self, member: Member, curvature: Curvature, accumulator: Accumulator) -> None:
        """Once a batch, second derivatives by a weight in its canonical view."""

        def give(found: Tensor, samples: int) -> None:
            with torch.no_grad():
                accumulator.add(Seen(curvature=member.canonical(found).float(), samples=samples))

        self.curved.add(curvature, member.weight, give)

    def of_units(self, units: Parts, curvature: Curvature, shape: tuple[int, int], accumulator: Accumulator) -> None:
        """Once a batch, wᵀHw of the units of a site, of shape ``(contests, competitors)``."""

        def give(found: Tensor, samples: int) -> None:
            with torch.no_grad():
                accumulator.add(Seen(curvature=found.reshape(shape), samples=samples))

        self.curved.add_units(curvature, units, give)

    def of_output(self, inputs: tuple[Any, ...], output: Any, accumulators: Sequence[Accumulator]) -> Any:
        """What a layer answers, copied, so that nothing writes into what is caught here; of several tensors the first."""
        several = isinstance(output, (tuple, list))
        caught = needing_gradient(output[0] if several else output)

        def deliver(gradient: Tensor, samples: int) -> None:
            seen = Seen(inputs, caught.detach(), gradient=gradient, samples=samples)
            for accumulator in accumulators:
                accumulator.add(seen)

        self.caught.append((caught, deliver))
        return type(output)((caught.clone(), *output[1:])) if several else caught.clone()


def needing_gradient(tensor: Tensor) -> Tensor:
    """A tensor by which a gradient can be asked for: itself, or where nothing before it is trained, its numbers as a beginning."""
    return tensor if tensor.requires_grad else tensor.detach().clone().requires_grad_()


def require_gradients(member: Member) -> None:
    """Raise `SecateursError` where a weight has no gradient, or only a shard of it."""
    if not member.weight.requires_grad:
        raise SecateursError(
            f"{member.parameter} is frozen (requires_grad=False), so the loss has no gradient by it: unfreeze it with "
            "requires_grad_(True), skip it with skip=[...], or take a criterion without gradients"
        )
    if is_sharded(member.weight):
        raise SecateursError(
            f"{member.parameter} is sharded (fully_shard), and gradients of shards are not observed: prune before sharding, or take a "
            "criterion without gradients"
        )
