"""Whether a model is as large as it was when a hook looked for its units: `gradual` with ``shrink=True`` may have made it smaller."""

from __future__ import annotations

from dataclasses import dataclass

from secateurs.recover.inner import inside
from secateurs.shrink.remembered import steps_of
from secateurs.types import Run, SecateursError


@dataclass
class AsLarge:
    """Remembers how often a model was shrunk.

    >>> from torch import nn
    >>> size, run = AsLarge(), Run(nn.Linear(2, 2), None, None, 1)
    >>> size.look(run)
    >>> size.still(run)
    True
    """

    steps: int = 0

    def look(self, run: Run) -> None:
        self.steps = len(steps_of(inside(run.model)))

    def still(self, run: Run) -> bool:
        return len(steps_of(inside(run.model))) == self.steps

    def require(self, run: Run, who: str) -> None:
        """Raise `SecateursError` where the units that a hook counts on have gone for good."""
        if not self.still(run):
            raise SecateursError(
                f"{who}: the model has become smaller by epoch {run.epoch + 1} (gradual with shrink=True), and the units that this "
                "hook looks at are those of before: give shrink=False, and call shrink_ once training is over, or use this hook afterwards"
            )
