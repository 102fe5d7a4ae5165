"""Sun et al. 2023: a simple and effective pruning approach, |w|·‖x‖ within each row, without retraining (2306.11695)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from secateurs.allocate import uniform
from secateurs.blockwise import in_blocks
from secateurs.criteria import magnitude
from secateurs.evidence import at_once, input_norm
from secateurs.masks import Masks
from secateurs.patterns import Element, Selection, find_weights, output_head, select
from secateurs.prune import prune_
from secateurs.solve import TopK
from secateurs.types import Pattern, Task


def wanda_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = 0.5,
    pattern: Pattern = Element(within="row"),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    blocks: str | Iterable[str] | None = None,
    checkpoint: str | Path | None = None,
) -> Masks:
    """Remove from each output row the weights with the smallest |w|·‖x‖₂, the norm of their input over calibration batches.

    A model with a stack of blocks, as language models are, goes block by block, as in the paper: each is observed with those before it
    pruned (`in_blocks`; ``blocks="model.layers"`` says by hand where they are). Of any other, all layers are observed at once.
    ``pattern=NofM(2, 4), sparsity=None`` gives the paper's structured variant. As in the paper, embeddings and the output head stay dense
    unless ``only`` names them. ``checkpoint`` is as in `prune_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> masks = wanda_(digits_cnn(), digits(), sparsity=0.5)
    >>> masks["fc1.weight"].sum(1).unique(), "fc2.weight" in masks
    (tensor([256]), False)
    """
    skip = without_head(model, task, only, skip, "Wanda")
    allocate = uniform(sparsity=sparsity) if sparsity is not None else None
    solver, walk = TopK(magnitude(p=1) * input_norm()), in_blocks(blocks, otherwise=at_once)
    return prune_(model, pattern, solver, allocate, task, only=only, skip=skip, walk=walk, checkpoint=checkpoint)


def without_head(model: nn.Module, task: Task, only: Selection | None, skip: Selection | None, who: str) -> Selection | None:
    """What is skipped, and the output head with it where nothing is said of what takes part."""
    if only is not None:
        return skip
    head = dict.fromkeys(
        output_head(model, task.example), f"the output head, which {who} leaves dense; name it in only= to prune it"
    )
    named: dict[str, str] = {} if skip is None else select(model, find_weights(model, task.example)[0], skip, "skip=")
    return head | named
