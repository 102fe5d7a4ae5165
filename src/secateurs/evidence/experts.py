"""Experts of a mixture lie in one parameter and are observed one by one, each with the tokens that reach it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateurs.evidence.adding import Accumulators
from secateurs.products import Product, Products
from secateurs.ranks import gathered
from secateurs.types import Member, SecateursError, Seen, Statistic


def watched(stacks: Mapping[str, Stack]) -> Any:
    """While it is entered, each product of a stack's matrix feeds the accumulators of that matrix."""
    if not stacks:
        return nullcontext()
    return Products({name: stack.member.weight for name, stack in stacks.items()}, lambda seen: stacks[seen.parameter].add(seen))


class Stack:
    """The accumulators of matrices that lie in one parameter and meet inputs of their own."""

    def __init__(self, member: Member, needs: Sequence[Statistic]) -> None:
        self.member, self.needs = member, needs
        self.parts: dict[int, Accumulators] = {}

    def add(self, seen: Product) -> None:
        for accumulator in self._part(seen.index).values():
            accumulator.add(Seen((seen.inputs,), seen.output))

    def _part(self, index: int) -> Accumulators:
        if index not in self.parts:
            one = replace(self.member, canonical=lambda tensor: self.member.canonical(tensor)[index : index + 1])
            self.parts[index] = {need: need.start(one) for need in self.needs}
        return self.parts[index]

    def of_all(self) -> Mapping[int, Accumulators]:
        """The accumulators of each matrix that any process has seen at work."""
        for indices in gathered(list(self.parts)):
            for index in indices:
                self._part(index)
        return self.parts

    def results(self) -> dict[Statistic, Tensor]:
        count, name = self.member.weight.shape[0], self.member.parameter
        if not self.parts:
            raise SecateursError(
                f"{name}: none of its {count} matrices was seen at work, so its inputs are unknown: fused kernels hide them (in "
                'Hugging Face, model.set_experts_implementation("eager") does not), or skip it with skip=[...]'
            )
        if len(self.parts) < count:
            unreached = [index for index in range(count) if index not in self.parts]
            shown = ", ".join(map(str, unreached[:8])) + (", …" if len(unreached) > 8 else "")
            warnings.warn(
                f"{name}: no calibration token reached {len(unreached)} of {count} experts ({shown}); the mean of the others stands "
                "for them: observe more or other batches",
                stacklevel=5,
            )
        return {need: self._joined({index: part[need].result() for index, part in self.parts.items()}) for need in self.needs}

    def _joined(self, results: Mapping[int, Tensor]) -> Tensor:
        mean = torch.stack(list(results.values())).mean(0)
        return torch.cat([results.get(index, mean) for index in range(self.member.weight.shape[0])])
