"""Whether an optimizer and a scheduler can go on with states that a file holds: tried on stand-ins, before the real ones are touched."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.types import FileError


def require_alike(here: Any, there: Any, where: str) -> None:
    """Raise `FileError` where data from a file cannot take the place of what is here: text for a number, another shape, a missing key.

    What is ``None`` here may be anything, sequences may have other lengths, and further keys may be there.

    >>> require_alike({"lr": 0.1}, {"lr": "0.1"}, "optimizer")
    Traceback (most recent call last):
    secateurs.types.FileError: optimizer/lr is '0.1' there, and 0.1 here
    """
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for key, value in here.items():
            if key not in there:
                raise FileError(f"{where}/{key} is not there")
            require_alike(value, there[key], f"{where}/{key}")
    elif isinstance(here, (list, tuple)) and type(here) is type(there):
        for place, (value, other) in enumerate(zip(here, there, strict=False)):
            require_alike(value, other, f"{where}/{place}")
    elif not _same_kind(here, there):
        raise FileError(f"{where} is {_shown(there)} there, and {_shown(here)} here")


def _same_kind(here: Any, there: Any) -> bool:
    if isinstance(here, Tensor) and isinstance(there, Tensor):
        return here.shape == there.shape and here.dtype == there.dtype
    if isinstance(here, (str, bool)):
        return type(there) is type(here) or (there is None and not isinstance(here, str))
    if isinstance(here, (int, float, Tensor)):
        return type(there) in (int, float) or (isinstance(there, Tensor) and there.numel() == 1)
    return here is None or not isinstance(here, (list, tuple, Mapping))


def _shown(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]


# ---------------------------------------------------------------- optimizers


def require_optimizer_goes_on(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raise, whatever it is, where an optimizer cannot take a state, or cannot take a step with it.

    The step is taken by one of the same class with one parameter's copy at a time. Only torch's own
    optimizers are tried so: what a step of others does beside, nobody knows.
    """
    here = optimizer.state_dict()["param_groups"]
    groups, states = state["param_groups"], state["state"]
    if [group["params"] for group in groups] != [group["params"] for group in here]:
        raise FileError("its optimizer has other groups of parameters")
    require_alike(here, groups, "optimizer")
    parameters = {
        index: parameter
        for told, group in zip(here, optimizer.param_groups, strict=True)
        for index, parameter in zip(told["params"], group["params"], strict=True)
    }
    if not states.keys() <= parameters.keys():
        raise FileError("its optimizer has states of parameters that are not there")
    if not type(optimizer).__module__.startswith("torch.optim."):
        return
    kind = type(optimizer)
    for own, group in zip(here, groups, strict=True):
        together = [group["params"]] if needs_closure(optimizer) else [[index] for index in group["params"]]
        for indices in together:
            concerned = [parameters[index] for index in indices]
            if not all(type(parameter) in (nn.Parameter, Tensor) for parameter in concerned):
                continue
            try:
                _step(kind, group, concerned, [states.get(index) for index in indices])
            except Exception:
                if _takes_steps(kind, own, concerned):
                    raise


def _takes_steps(kind: Any, group: Mapping[str, Any], parameters: Sequence[Tensor]) -> bool:
    """Whether an optimizer as it is here, without any state, takes a step with such gradients at all."""
    try:
        _step(kind, group, parameters, [None] * len(parameters))
    except Exception:
        return False
    return True


def _step(kind: Any, group: Mapping[str, Any], parameters: Sequence[Tensor], states: Sequence[Any]) -> None:
    """One step with copies of some parameters and of their states."""
    copies = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    for each in copies:
        each.grad = torch.ones_like(each)
    known = {place: copy.deepcopy(state) for place, state in enumerate(states) if state is not None}
    twin = kind([{**copy.deepcopy({**group, "params": []}), "params": copies}])
    if known:
        twin.load_state_dict({"state": known, "param_groups": [{**group, "params": list(range(len(copies)))}]})
    twin.step(*((lambda: torch.zeros(())),) if needs_closure(twin) else ())


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether each step of an optimizer evaluates the loss itself, as that of L-BFGS does."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


# ---------------------------------------------------------------- schedulers


def require_scheduler_goes_on(scheduler: Any, state: Mapping[str, Any]) -> None:
    """Raise, whatever it is, where a scheduler cannot take a state, or cannot take a step with it.

    The step is taken by a copy, with learning rates of its own. That a schedule is at its end is no fault of its state.
    """
    require_alike(scheduler.state_dict(), state, "scheduler")
    try:
        twin = _twin(scheduler)
    except Exception:  # what cannot be copied cannot be tried
        return
    twin.load_state_dict(copy.deepcopy(dict(state)))
    plateau = isinstance(twin, torch.optim.lr_scheduler.ReduceLROnPlateau)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            twin.step(*(0.0,) if plateau else ())
        except ValueError:
            pass


def _twin(scheduler: Any) -> Any:
    optimizer = scheduler.optimizer
    stand_in = copy.copy(optimizer)
    stand_in.param_groups = [
        {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    return copy.deepcopy(scheduler, {id(optimizer): stand_in})
