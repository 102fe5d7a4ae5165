"""What a model multiplies for each input by itself, where some of its work is left out for some inputs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateurs.batch import split
from secateurs.costs import trace_macs
from secateurs.forward import describe
from secateurs.nested import changed, tensors_in
from secateurs.per_input.attached import PerInput
from secateurs.types import SecateursError, Task, TaskError

_COUNTING: list[list[float]] = []
"""What was not needed of the work in hand, one list for each count that is under way."""


def not_needed(macs: float) -> None:
    """A part tells of multiplications that it made, and that a machine which skips zeros would not."""
    if _COUNTING:
        _COUNTING[-1].append(macs)


@dataclass(frozen=True)
class WorkPerInput:
    """MACs of each input by itself, as it was run, and of the same input where nothing is left out.

    >>> work = WorkPerInput((2.0, 4.0), (8.0, 8.0))
    >>> work.keep, work.fractions
    (0.375, (0.25, 0.5))
    """

    macs: tuple[float, ...]
    dense: tuple[float, ...]

    @property
    def fractions(self) -> tuple[float, ...]:
        """Of each input, the fraction of its work that is done."""
        return tuple(done / whole if whole else 1.0 for done, whole in zip(self.macs, self.dense, strict=True))

    @property
    def keep(self) -> float:
        """The fraction of all work that is done."""
        return sum(self.macs) / whole if (whole := sum(self.dense)) else 1.0

    def quantile(self, at: float) -> float:
        """The fraction of its work below which so many of the inputs stay."""
        ordered = sorted(self.fractions)
        return ordered[min(len(ordered) - 1, int(at * len(ordered)))]

    def __str__(self) -> str:
        return (
            f"{len(self.macs)} inputs: {statistics.mean(self.macs):,.0f} MACs of {statistics.mean(self.dense):,.0f} on average "
            f"({self.keep:.1%}), from {min(self.fractions):.1%} to {max(self.fractions):.1%} of an input's own"
        )


def work_per_input(attached: PerInput | Sequence[PerInput], batches: Iterable[Any], *, task: Task | None = None) -> WorkPerInput:
    """Count the MACs of each input of some batches by itself, in batches of one, as the model really runs it (`trace_macs`).

    Channels that are not computed, tokens that are gathered out and layers after an exit are not there to be counted; the work of
    the parts that decide is. Only zeros among activations of several tokens at once (`skip_small_`) are multiplied and then taken
    off again, as a product that reads no columns of zeros would do without them. Batches are as in `train_`; rows of padding that
    an input has are counted as the model runs them.

    Raises `TaskError` where there is no input, `SecateursError` where several parts are of several models.

    >>> import torch
    >>> from torch import nn
    >>> from secateurs.per_input import skip_small_
    >>> attached = skip_small_(nn.Linear(4, 3), {"": 1.0})
    >>> print(work_per_input(attached, [torch.tensor([[2.0, 0, 0, 0], [2, 2, 2, 0]])]))
    2 inputs: 6 MACs of 12 on average (50.0%), from 25.0% to 75.0% of an input's own
    """
    parts = [attached] if isinstance(attached, PerInput) else list(attached)
    if not parts or any(each.model is not parts[0].model for each in parts):
        raise SecateursError(
            "work_per_input: give what boost_, drop_tokens_, skip_small_ or exit_early_ returned, all of one model"
        )
    model, done, whole = parts[0].model, [], []
    known: dict[str, float] = {}  # what a dense pass takes, which its shapes tell
    for row in _rows(parts[0], batches, task or Task(example=None)):
        with _counting() as unneeded:
            done.append(trace_macs(model, row).total - _of(unneeded))
        shape = describe(row)
        if shape not in known:
            with ExitStack() as off:
                for each in parts:
                    off.enter_context(each.off())
                known[shape] = trace_macs(model, row).total
        whole.append(known[shape])
    if not done:
        raise TaskError("work_per_input: there is no input: give batches, for example task.test")
    return WorkPerInput(tuple(done), tuple(whole))


def _of(unneeded: list[float]) -> float:
    return sum(unneeded)


@contextmanager
def _counting() -> Iterator[list[float]]:
    found: list[float] = []
    _COUNTING.append(found)
    try:
        yield found
    finally:
        _COUNTING.pop()


def _rows(attached: PerInput, batches: Iterable[Any], task: Task) -> Iterator[Any]:
    """Each input of some batches as a batch of one."""
    for batch in batches:
        inputs, _ = split(attached.model, task, batch)
        sizes = {len(tensor) for tensor in tensors_in(inputs) if tensor.ndim}
        if len(sizes) != 1:
            raise TaskError(
                f"work_per_input: a batch is {describe(inputs)}, whose first dimensions are not all the number of inputs"
            )
        for row in range(sizes.pop()):

            def of_row(tensor: Tensor, row: int = row) -> Tensor:
                return tensor[row : row + 1] if tensor.ndim else tensor

            yield changed(inputs, of_row)


def unpadded(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One sequence without its padding: what the ``attention_mask`` leaves of each tensor, for a count or a clock that sees no padding.

    >>> import torch
    >>> unpadded({"input_ids": torch.tensor([[5, 6, 0]]), "attention_mask": torch.tensor([[1, 1, 0]])})["input_ids"]
    tensor([[5, 6]])
    """
    there = inputs["attention_mask"][0].bool()
    return {name: tensor[:, there] if tensor.shape == inputs["attention_mask"].shape else tensor for name, tensor in inputs.items()}
