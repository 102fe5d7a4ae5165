"""What training costs: multiply-accumulates of all its steps, as sparse as its masks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateurs.batch import size_of
from secateurs.costs import MacsTrace, trace_macs
from secateurs.ranks import summed, whole
from secateurs.recover.as_large import AsLarge
from secateurs.types import FileError, Hook, Run


def step_macs(sparse: float, dense: float, dense_gradient: bool = False) -> float:
    """MACs of one training step for one sample, from those of a forward pass: 3·f_S, or 2·f_S + f_D (1911.11134, appendix H).

    Forward, the gradient by activations and that by weights take as much each; where removed weights have a gradient as well, the last
    is that of the ``dense`` network.

    >>> step_macs(10.0, 100.0), step_macs(10.0, 100.0, dense_gradient=True)
    (30.0, 120.0)
    """
    return 2 * sparse + (dense if dense_gradient else sparse)


def training_macs() -> Hook:
    """A hook that counts what the run costs: ``run.history[i]["training_macs"]``, MACs of all steps up to the end of that epoch.

    They are what a perfect sparse machine would do, no measured time: weights that masks hold at zero cost nothing, in each step as they
    are then, except where a hook looks at the gradient of removed weights too (``run.dense_gradient``, as `rigl` sets it). A forward
    pass is counted on the task's example, and a batch as so many samples; samples of all processes count. That the first layer needs
    no gradient by its inputs is left out, as in the paper.

    >>> from secateurs.recover import train_
    >>> from secateurs.types import Task
    >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 3
    >>> model, task = torch.nn.Linear(2, 1), Task(torch.zeros(1, 2), train=data, loss=torch.nn.functional.mse_loss)
    >>> run = train_(model, task, torch.optim.SGD(model.parameters(), lr=0.1), 2, hooks=[training_macs()])
    >>> [epoch["training_macs"] for epoch in run.history]
    [72.0, 144.0]
    """
    return _Counted().hook()


@dataclass
class _Counted:
    total: float = 0.0
    here: float = 0.0
    samples: int = 0
    trace: MacsTrace | None = None
    per_sample: int = 1
    seen: dict[str, Tensor] = field(default_factory=dict)
    sparse: float = 0.0
    size: AsLarge = field(default_factory=AsLarge)

    def hook(self) -> Hook:
        return Hook(
            "training_macs",
            start=self._start,
            loss=self._loss,
            stepped=self._stepped,
            epoch_end=self._epoch_end,
            state=lambda: {"total": self.total},
            restore=self._restore,
        )

    def _start(self, run: Run) -> None:
        self._trace(run)
        self.samples, self.here = 0, 0.0
        self.total = 0.0 if run.step == 0 else self.total

    def _trace(self, run: Run) -> None:
        self.size.look(run)
        self.trace, self.per_sample = trace_macs(run.model, run.task.example), max(1, size_of(run.task.example, None))
        self.seen, self.sparse = {}, 0.0

    def _loss(self, run: Run) -> None:
        self.samples += size_of(run.inputs, run.target)

    def _stepped(self, run: Run) -> None:
        if self.trace is None or not self.size.still(run):
            self._trace(run)
        assert self.trace is not None
        dense = self.trace.total / self.per_sample
        self.here += self.samples * step_macs(self._forward(run, self.trace), dense, run.dense_gradient)
        self.samples = 0

    def _forward(self, run: Run, trace: MacsTrace) -> float:
        """MACs of a forward pass of one sample with the masks as they are; computed anew where they have changed."""
        masks = dict(run.masks or {})
        if not self.sparse or masks.keys() != self.seen.keys() or any(masks[name] is not self.seen[name] for name in masks):
            self.seen = masks
            named = run.masks.named_as_in(run.model) if masks else {}
            kept = {name: int(torch.count_nonzero(whole(mask))) / max(1, mask.numel()) for name, mask in named.items()}
            of_weights = sum(macs * kept.get(name, 1.0) for name, macs in trace.by_parameter.items())
            self.sparse = (of_weights + trace.between_activations) / self.per_sample
        return self.sparse

    def _epoch_end(self, run: Run) -> None:
        self.total += float(summed({"": torch.tensor(self.here, dtype=torch.float64)})[""])
        self.here = 0.0
        run.history[-1]["training_macs"] = self.total

    def _restore(self, state: Mapping[str, Any]) -> None:
        if type(state.get("total")) not in (int, float):
            raise FileError("training_macs: the checkpoint holds no state of this hook")
        self.total = float(state["total"])
