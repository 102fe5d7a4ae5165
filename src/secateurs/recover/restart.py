"""Begin anew: the architecture that pruning found, with weights that have learnt nothing. What a pruned network's weights are worth."""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import torch
from torch import Tensor, nn

from secateurs.forward import buffers_in, modules_in, parameters_in
from secateurs.masks import Masks
from secateurs.ranks import any_sharded
from secateurs.recover.descent import Descent, name_before
from secateurs.types import SecateursError

_RESETS = ("reset_parameters", "_reset_parameters")  # the second is that of nn.MultiheadAttention


def restart_(model: nn.Module, masks: Masks | None = None, *, seed: int = 0, fresh: nn.Module | None = None) -> None:
    """Give a model fresh weights, in place, drawn from `seed`; what masks hold stays zero (the control of 1810.05270).

    Each layer draws its own anew, as torch's do (``reset_parameters``). A model that draws its weights in another way, and one with
    parameters of its own, takes them from ``fresh``, the same model made anew: of one that `shrink_` made small, the channels that stayed.

    Raises `SecateursError` where a layer does not say how to begin, or ``fresh`` is another model; the model is then as it was.

    >>> layer = nn.Linear(2, 1)
    >>> masks = Masks({"weight": torch.tensor([[True, False]])}, layer)
    >>> before = layer.weight[0, 0].item()
    >>> restart_(layer, masks, seed=1)
    >>> layer.weight[0, 0].item() != before, layer.weight[0, 1].item()
    (True, 0.0)
    """
    if any_sharded(model.parameters()):
        raise SecateursError("restart_: the model is sharded (fully_shard): begin anew before sharding")
    if fresh is not None:
        new = dict(_taken(model, fresh))
        with torch.no_grad():
            for tensor, value in new.values():
                tensor.copy_(value)
    else:
        _reset_(model, seed)
    if masks is not None:
        masks.apply_(model)


def other_than(seed: int) -> int:
    """The seed to begin anew with: with the same one a model may well have been made, and would begin as it once did (a lottery ticket).

    >>> other_than(0) != 0, other_than(0) == other_than(0) != other_than(1)
    (True, True)
    """
    return crc32(f"anew {seed}".encode())


def _reset_(model: nn.Module, seed: int) -> None:
    owners = {name: module for name, module in modules_in(model).items() if _own(module)}
    unknown = [name for name, module in owners.items() if not any(hasattr(module, each) for each in _RESETS)]
    if unknown:
        names = ", ".join(name or type(model).__name__ for name in unknown[:3])
        raise SecateursError(
            f"restart_: {names}: it has parameters or buffers of its own, and does not say how they begin (reset_parameters): give "
            "fresh=, the model made anew"
        )
    with torch.random.fork_rng():
        torch.manual_seed(other_than(seed))
        for module in owners.values():
            getattr(module, next(each for each in _RESETS if hasattr(module, each)))()


def _own(module: nn.Module) -> bool:
    held = [*module._parameters.values(), *module._buffers.values()]
    return any(each is not None and each.is_floating_point() for each in held)


def _taken(model: nn.Module, fresh: nn.Module) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Each tensor of a model, and what a fresh one has in its place."""
    descent = Descent(fresh, model, None)
    theirs = {**parameters_in(fresh, again=True), **buffers_in(fresh, again=True)}
    for name, tensor in {**parameters_in(model), **buffers_in(model)}.items():
        before = name_before(name, descent.steps)
        value = theirs.get(before)
        for dim in range(0 if value is None else value.ndim):
            stays = descent.stays(before, dim, value.shape[dim]) if value is not None else None
            value = None if value is None or stays is None else value.index_select(dim, stays.nonzero().flatten().to(value.device))
        if value is None or value.shape != tensor.shape:
            there = "has none of that name" if before not in theirs else f"has {tuple(theirs[before].shape)}"
            raise SecateursError(f"restart_: {name} is {tuple(tensor.shape)}, and fresh {there}: make it as this model was made")
        yield name, (tensor, value.detach())
