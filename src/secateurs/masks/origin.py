"""How masks came about: one value, handed on from masks to masks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from secateurs.graph import Snapshot, Structure
from secateurs.types import Plan, Skipped


@dataclass(frozen=True)
class Origin:
    """How masks came about: the plan, the pattern in words, what was left alone and why, the example input, and the BatchNorms
    of which the statistics were taken anew.

    Beside them what was found out about the model's structure on the way, for as long as it holds.

    >>> Origin(pattern="Element()").structure_of(nn.Linear(1, 1), None) is None
    True
    """

    plan: Plan | None = None
    pattern: str = ""
    skipped: tuple[Skipped, ...] = ()
    example: Any = None
    recalibrated: tuple[str, ...] = ()
    _found: tuple[Structure, Snapshot] | None = field(default=None, repr=False, compare=False)

    def remembering(self, model: nn.Module, structure: Structure | None) -> Origin:
        """The same with a model's structure; what was seen on real numbers is not kept, as it may not hold for others."""
        if structure is None or not structure.trace.fake:
            return self
        return replace(self, _found=(structure, Snapshot(model, self.example)))

    def structure_of(self, model: nn.Module, example: Any) -> Structure | None:
        """What was kept of a model's structure, if nothing but the numbers in its tensors has changed since."""
        if self._found is None or not self._found[1].holds(model, example):
            return None
        return self._found[0]

    def forgetting(self) -> Origin:
        """The same without the structure of a model that is not as it was any more."""
        return replace(self, _found=None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": None}  # holds for this model alone


UNKNOWN = Origin()
"""Nothing is known of how masks came about: somebody made them."""
