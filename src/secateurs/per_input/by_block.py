"""Thresholds that share a block's sparsity out among its layers, by what that does to the block's answer (TEAL, 2408.14690)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from secateurs.batch import run_batch
from secateurs.forward import evaluating, modules_in
from secateurs.graph import blocks_of
from secateurs.nested import changed, tensors_in
from secateurs.per_input.small import calibration, linear_layers, samples_of, skip_small_, threshold_at, weights_of
from secateurs.progress import track
from secateurs.ranks import count
from secateurs.types import SecateursError, Selection, Task

MOST = 0.95
"""No layer loses more of its inputs."""


def small_inputs_by_block(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float,
    step: float = 0.01,
    only: Selection | None = None,
    skip: Selection | None = None,
    seed: int = 0,
    show: bool = False,
) -> dict[str, float]:
    """Layer → threshold as `small_inputs` gives, but each block chooses which of its layers lose more (2408.14690, algorithm 1).

    In each step the layer is taken whose further zeros change the block's answer least in L2, given the inputs of the dense model;
    its sparsity rises so far that ``step`` of the block's weights are not read any more, until ``sparsity`` of them are not. Layers
    of one block lose at most 95 %. All calibration batches are held as each block gets them: give few.

    Raises as `small_inputs` does, and `SecateursError` where step is outside (0, 1], the model has no blocks, or under several
    processes.

    >>> import torch
    >>> from secateurs.types import Task
    >>> block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> model, x = nn.Sequential(block(), block()), torch.randn(32, 4)
    >>> list(small_inputs_by_block(model, Task(example=x, calibration=[(x, None)]), sparsity=0.4, step=0.1))
    ['0.0', '0.2', '1.0', '1.2']
    """
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step <= 1:
        raise SecateursError(f"small_inputs_by_block: step={step!r} must be a fraction in (0, 1]")
    if not 0 <= sparsity <= MOST:
        raise SecateursError(f"small_inputs_by_block: sparsity={sparsity!r} must be a fraction in [0, {MOST}]")
    if count() > 1:
        raise SecateursError(
            "small_inputs_by_block is for one process: run it in one, within secateurs.alone(), and share the thresholds"
        )
    names, blocks = linear_layers(model, task, only, skip), blocks_of(model, task.example)
    samples, calls = samples_of(model, task, names, seed), _calls(model, task, list(blocks))
    attached = skip_small_(model, dict.fromkeys(names, 0.0))
    try:
        found: dict[str, float] = {}
        for block in track(list(blocks), "thresholds", show=show):
            inside = [name for name in names if blocks.of(name) == block]
            if inside:
                search = _Search(modules_in(model)[block], calls[block], {name: attached.parts[name] for name in inside}, samples)
                found |= search.run(weights_of(model, inside), sparsity, step)
    finally:
        attached.remove()
    return found


def _calls(model: nn.Module, task: Task, blocks: Sequence[str]) -> dict[str, list[tuple[Any, Any]]]:
    """Block → what the dense model calls it with, for each calibration batch."""
    modules, found = modules_in(model), {name: list[tuple[Any, Any]]() for name in blocks}

    def noting(name: str) -> Any:
        return lambda module, args, kwargs: found[name].append((changed(args, Tensor.detach), changed(kwargs, Tensor.detach)))

    with evaluating(model), ExitStack() as hooks:
        for name in blocks:
            hooks.callback(modules[name].register_forward_pre_hook(noting(name), with_kwargs=True).remove)
        for inputs in calibration(model, task):
            run_batch(model, inputs, "a calibration batch", task.example)
    return found


class _Search:
    """One block, and how its layers share out what is not read."""

    def __init__(
        self, block: nn.Module, calls: list[tuple[Any, Any]], parts: Mapping[str, Any], samples: Mapping[str, Tensor]
    ) -> None:
        self.block, self.calls, self.parts, self.samples = block, calls, parts, samples
        self.dense = self._answers()

    def run(self, sizes: Mapping[str, int], sparsity: float, step: float) -> dict[str, float]:
        """Thresholds at which ``sparsity`` of the block's weights are not read."""
        shares = {name: size / sum(sizes.values()) for name, size in sizes.items()}
        lost = dict.fromkeys(sizes, 0.0)
        while (left := sparsity - sum(shares[name] * lost[name] for name in sizes)) > 1e-9:
            further = {name: min(MOST, lost[name] + min(step, left) / shares[name]) for name in sizes if lost[name] < MOST - 1e-9}
            if not further:
                break
            errors = {name: self._error({**lost, name: value}) for name, value in further.items()}
            best = min(errors, key=errors.__getitem__)
            lost[best] = further[best]
        return {name: threshold_at(self.samples[name], value) for name, value in lost.items()}

    def _error(self, lost: Mapping[str, float]) -> float:
        for name, value in lost.items():
            self.parts[name].threshold.fill_(threshold_at(self.samples[name], value))
        pairs = zip(self._answers(), self.dense, strict=True)
        return sum(float((now.float() - before.float()).square().sum()) for now, before in pairs)

    def _answers(self) -> list[Tensor]:
        """The first tensor that the block gives, for each call."""
        with evaluating(self.block):
            return [next(iter(tensors_in(self.block(*args, **kwargs)))) for args, kwargs in self.calls]
