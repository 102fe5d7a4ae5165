"""Frantar & Alistarh 2023: large language models can be pruned in one shot, layer by layer, without retraining (2301.00774)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from secateurs.allocate import uniform
from secateurs.blockwise import in_blocks
from secateurs.evidence import in_order
from secateurs.masks import Masks
from secateurs.methods.wanda import without_head
from secateurs.patterns import Element, Selection
from secateurs.prune import prune_
from secateurs.solve import SparseGPT
from secateurs.types import Pattern, Task


def sparsegpt_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float | None = 0.5,
    pattern: Pattern = Element(),  # noqa: B008 (frozen)
    solver: SparseGPT = SparseGPT(),  # noqa: B008 (frozen)
    only: Selection | None = None,
    skip: Selection | None = None,
    blocks: str | Iterable[str] | None = None,
    checkpoint: str | Path | None = None,
) -> Masks:
    """Remove weights in the order of execution, each layer observed with what comes before it pruned; those that stay make up.

    A model with a stack of blocks, as language models are, goes block by block, as in the paper: each runs twice on its own inputs, which
    alone are in memory (`in_blocks`; ``blocks="model.layers"`` says by hand where they are). Any other goes layer by layer, and the
    calibration batches are walked once a layer. ``pattern=NofM(2, 4), sparsity=None`` gives 2:4. ``solver`` has the paper's block and
    damping. As in the paper, embeddings and the output head stay dense unless ``only`` names them. ``checkpoint`` is as in `prune_`.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> masks = sparsegpt_(digits_cnn(), digits(), sparsity=0.5)
    >>> int(masks["fc1.weight"].sum()), "fc2.weight" in masks
    (16384, False)
    """
    skip = without_head(model, task, only, skip, "SparseGPT")
    allocate = uniform(sparsity=sparsity) if sparsity is not None else None
    walk = in_blocks(blocks, otherwise=in_order())
    return prune_(model, pattern, solver, allocate, task, only=only, skip=skip, walk=walk, checkpoint=checkpoint)
