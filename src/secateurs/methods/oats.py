"""Zhang & Papyan 2024: OATS, outlier-aware pruning through sparse and low rank decomposition (2409.13652)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateurs.answers import telling
from secateurs.evidence import input_norm, observe
from secateurs.masks import Masks
from secateurs.methods.wanda import without_head
from secateurs.patterns import Selection
from secateurs.progress import track
from secateurs.shrink.factors import Parts, put_in_place_
from secateurs.shrink.low_rank import cuttable, path_of
from secateurs.shrink.undo import Undo
from secateurs.solve import highest
from secateurs.types import SecateursError, Site, Stats, Task


def oats_(
    model: nn.Module,
    task: Task,
    *,
    sparsity: float = 0.5,
    low_rank: float = 0.25,
    iterations: int = 80,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> Masks:
    """Make each layer the sum of a sparse one and of two with a narrow middle, which together hold ``1 - sparsity`` of its weights.

    ``low_rank`` in (0, 1) is the part of what stays that goes into the narrow layers. The weight, scaled by the norms of its inputs, is
    split by turns: the best low rank of what the sparse part leaves, then in each row the largest of what that leaves. Each layer
    becomes a `SparsePlusLowRank`. Embeddings and the output head stay dense unless ``only`` names them. Returns the masks of the sparse
    parts, whose own sparsity is higher than that of both together. Raises `SecateursError` for a layer of which too little would be left.

    >>> from secateurs.models import digits_cnn
    >>> from secateurs.tasks import digits
    >>> model = digits_cnn()
    >>> masks = oats_(model, digits(), sparsity=0.5, iterations=5, only="fc1")
    >>> masks["fc1.sparse.weight"].shape, int(masks["fc1.sparse.weight"].sum(1)[0]), model.fc1.low_rank[0].weight.shape[0]
    (torch.Size([64, 512]), 192, 7)
    """
    for name, part in (("sparsity", sparsity), ("low_rank", low_rank)):
        if not (isinstance(part, (int, float)) and 0 < part < 1):
            raise SecateursError(f"oats_: {name}={part!r} is not in (0, 1); 0.25 is a quarter")
    if type(iterations) is not int or iterations < 1:
        raise SecateursError(f"oats_: iterations is {iterations!r}, but must be a whole number of at least 1; the paper's is 80")
    sites, _ = cuttable(model, task, only, without_head(model, task, only, skip, "OATS"))
    norms = observe(model, sites, [input_norm()], task)
    split = {path_of(site): _split(site, norms, 1 - sparsity, low_rank, iterations) for site in track(sites, "splitting")}
    undo = Undo()
    try:
        refused = put_in_place_(model, split, telling(task.example), undo)
        if refused:
            raise SecateursError("oats_: " + "; ".join(f"{name}: {reason}" for name, reason in refused.items()))
        masks = {f"{name}.sparse.weight": _nonzero(model, name) for name in split}
        return Masks(masks, model).apply_()
    except BaseException:
        undo()
        raise


def _nonzero(model: nn.Module, name: str) -> Tensor:
    weight: Any = model.get_submodule(f"{name}.sparse").weight
    return weight.detach() != 0


def _split(site: Site, stats: Stats, keep: float, low_rank: float, iterations: int) -> Parts:
    """A layer's weight, scaled by the norms of its inputs, as a sum: by turns the best of either kind for what the other leaves."""
    member = site.members[0]
    rows = member.weight.detach().double().flatten(1)
    norms = stats[member.parameter][input_norm()].double().expand(member.shape)[0, 0].flatten()
    scale = norms.clamp_min(float(norms.max()) * 1e-6 or 1.0)
    scaled, (outputs, features) = rows * scale, rows.shape
    rank = int(low_rank * keep * outputs * features / (outputs + features))
    each = round((1 - low_rank) * keep * features)
    if not rank or not each:
        raise SecateursError(
            f"{site.name}: of its {outputs} x {features} weights sparsity={1 - keep:g} and low_rank={low_rank:g} leave "
            f"{'no rank' if not rank else 'none in a row'}: lower the sparsity, raise or lower low_rank, or skip=[{site.name!r}]"
        )
    sparse = torch.zeros_like(scaled)
    for _ in range(iterations):
        last = _directions(scaled - sparse, rank)
        first = last.T @ (scaled - sparse)
        left = scaled - last @ first
        sparse = torch.where(highest(left.abs(), each), left, 0)
    return Parts(first / scale, last, None, sparse / scale)


def _directions(rows: Tensor, rank: int) -> Tensor:
    """The first left singular vectors, ``(outputs, rank)``, from the products of the shorter side."""
    if len(rows) <= rows.shape[1]:
        return torch.linalg.eigh(rows @ rows.T)[1][:, -rank:]
    right = torch.linalg.eigh(rows.T @ rows)[1][:, -rank:]
    return torch.linalg.qr(rows @ right)[0]
