"""Weights that come back, and weights that go in their place: what masks check, and write, when they change while a network trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.patterns import as_units, marked, restrict, with_alive
from secateurs.ranks import shard_of, sharded_as, whole
from secateurs.types import KindError, SecateursError, Site


@dataclass(frozen=True)
class Change:
    """What becomes of one parameter: its mask, and which of its weights go, and come back; in shards where the parameter is."""

    name: str
    parameter: nn.Parameter
    mask: Tensor
    gone: Tensor
    back: Tensor
    value: Tensor

    @property
    def some(self) -> bool:
        """Whether anything comes back here, in this process."""
        return bool(shard_of(self.back).any())


def changed(
    name: str, parameter: nn.Parameter, mask: Tensor, gone: Tensor | None, back: Tensor | None, value: Tensor | None
) -> Change:
    """What becomes of a parameter; raises `SecateursError` where what goes is gone already, or what comes back is not gone."""
    off, on = (_marks(name, what, marks, parameter) for what, marks in (("goes", gone), ("comes back", back)))
    here, lost, found = shard_of(mask.to(parameter.device)), shard_of(off), shard_of(on)
    if count := int((lost & ~here).sum()):
        raise SecateursError(f"{name}: {count} of the weights that are to go are gone already: mark weights that the masks keep")
    if count := int((found & here).sum()):
        raise SecateursError(
            f"{name}: {count} of the weights that are to come back are there still: mark weights that the masks removed (~masks[{name!r}])"
        )
    if value is None:
        new = torch.zeros_like(parameter.detach())
    elif not isinstance(value, Tensor) or value.shape != parameter.shape:
        given = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise SecateursError(f"{name}: the values of what comes back are {given}, but the weight is {tuple(parameter.shape)}")
    else:
        new = sharded_as(value.detach().to(parameter), parameter)
    if not bool(shard_of(new)[found].isfinite().all()):
        raise SecateursError(f"{name}: a value of what comes back is NaN or infinite")
    kept = sharded_as(mask.to(parameter.device), parameter).clone()
    shard_of(kept).copy_((here | found) & ~lost)
    return Change(name, parameter, kept, off, on, new)


def _marks(name: str, what: str, marks: Tensor | None, parameter: nn.Parameter) -> Tensor:
    if marks is None:
        return torch.zeros_like(parameter.detach(), dtype=torch.bool)
    if not isinstance(marks, Tensor) or marks.dtype != torch.bool or marks.shape != parameter.shape:
        given = f"{marks.dtype} of shape {tuple(marks.shape)}" if isinstance(marks, Tensor) else repr(marks)
        raise KindError(f"{name}: what {what} must be marked by a bool tensor of shape {tuple(parameter.shape)}, not {given}")
    return sharded_as(marks.to(parameter.device), parameter)


@torch.no_grad()
def write_(changes: Sequence[Change], optimizer: torch.optim.Optimizer | None) -> None:
    """Write weights, and what the optimizer remembers of those that come back; where it is interrupted, all is as it was."""
    before: list[tuple[Tensor, Tensor]] = []

    def put_(tensor: Tensor, marks: Tensor, value: Tensor | float) -> None:
        here, chosen = shard_of(tensor), shard_of(marks)
        before.append((here, here.clone()))
        here.copy_(torch.where(chosen, torch.as_tensor(value, dtype=here.dtype, device=here.device), here))

    try:
        for each in changes:
            put_(each.parameter.detach(), each.gone, 0.0)
            put_(each.parameter.detach(), each.back, shard_of(each.value))
            for state, value in () if optimizer is None or not each.some else _remembered(optimizer, each):
                put_(state, each.back, value)
    except BaseException:
        for tensor, value in reversed(before):
            tensor.copy_(value)
        raise


def _remembered(optimizer: torch.optim.Optimizer, change: Change) -> Iterable[tuple[Tensor, Tensor | float]]:
    """What an optimizer remembers of each weight of a parameter, and what it remembers of a weight that it never saw."""
    group = next((each for each in optimizer.param_groups if any(one is change.parameter for one in each["params"])), {})
    at_first: dict[str, Any] = {
        "sum": group.get("initial_accumulator_value", 0.0),  # Adagrad
        "step_size": group.get("lr", 0.0),  # Rprop
        "ax": shard_of(change.value),  # ASGD: the mean of the weight
    }
    for key, state in optimizer.state.get(change.parameter, {}).items():
        if isinstance(state, Tensor) and state.shape == change.parameter.shape:
            yield state, at_first.get(key, 0.0)


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer within what wraps it (accelerate's passes its steps on to one, without the hooks)."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{type(optimizer).__name__} is no torch.optim.Optimizer; call masks.apply_() after each of its steps")
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def require_forgetful(optimizer: torch.optim.Optimizer) -> None:
    """Raise `SecateursError` where what an optimizer remembers does not fall into parts of single weights."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise SecateursError(
            "L-BFGS remembers steps of all weights together, so it cannot forget those that come back: take another optimizer, or "
            "optimizer=None and a new one afterwards"
        )


# ---------------------------------------------------------------- whole units


def whole_units(sites: Iterable[Site], masks: Mapping[str, Tensor], units: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What comes back of each parameter where units come back as a whole, in every weight and bias in which they lie.

    ``units`` maps names of sites to bool tensors ``(contests, competitors)``. For ``masks.regrow_(back, sites=sites)``. What another
    site removes of a weight (the channels before it) stays gone.

    >>> from secateurs.patterns import Channel, find_sites
    >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> masks = {"0.weight": torch.zeros(2, 1) > 0, "0.bias": torch.zeros(2) > 0, "2.weight": torch.zeros(1, 2) > 0}
    >>> back = whole_units(find_sites(model, Channel(), torch.zeros(1, 1)), masks, {"0": torch.tensor([[True, False]])})
    >>> [back[name].flatten().tolist() for name in sorted(masks)]
    [[True, False], [True, False], [True, False]]
    """
    alive: dict[str, Tensor] = {}
    known = list(sites)
    for site in known:
        here = with_alive(site, masks).alive
        if site.name in units:
            mine = units[site.name].view(site.contest_count, -1)
            here = mine if here is None else here | mine.to(here.device)
        if here is not None:
            alive[site.name] = here
    return {name: mask & ~whole(masks[name]).to(mask.device) for name, mask in _of_units(known, alive).items() if name in masks}


def _of_units(sites: Iterable[Site], alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks that units mean that are there."""
    found: dict[str, Tensor] = {}
    for site in sites:
        for index, member in enumerate(site.members) if site.name in alive else ():
            if member.parameter in found:
                restrict(site, alive[site.name].to(found[member.parameter].device), found[member.parameter], index)
            else:
                found[member.parameter] = marked(site, alive[site.name].to(member.weight.device), index)
    return found


def require_whole_units(sites: Iterable[Site], before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raise `SecateursError` that names the unit where one would come back, or go, in part."""
    then = [with_alive(replace(site, alive=None), before) for site in sites]
    now = [with_alive(replace(site, alive=None), after) for site in then]
    meant = _of_units(now, {site.name: site.alive for site in now if site.alive is not None})
    for old, site in zip(then, now, strict=True):
        if site.alive is None:
            continue
        new = site.alive if old.alive is None else site.alive & ~old.alive.to(site.alive.device)
        for index, member in enumerate(site.members):
            name = member.parameter
            if name not in after:
                raise SecateursError(f"{name}: there is no mask for it, but the units of {site.name} lie in it")
            missing = as_units(site, meant[name] & ~after[name].to(meant[name].device), index).flatten(2)
            lost = as_units(site, meant[name] & ~after[name] & before[name], index).flatten(2)
            bad = (missing.any(2) & new) | lost.any(2) if missing.ndim > 2 else (missing & new) | lost
            if bool(bad.any()):
                unit = int(bad.flatten().nonzero()[0])
                raise SecateursError(
                    f"{site.name}: unit {unit} would come back, or go, in part: it lies in "
                    f"{', '.join(dict.fromkeys(each.parameter for each in site.members))}, and {name} would not be as the others; "
                    "secateurs.masks.whole_units(sites, masks, units) marks whole ones"
                )
