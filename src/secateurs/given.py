"""Whether an argument is the kind of thing that is asked for: the first mistakes, told in a sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from secateurs.forward import buffers_in, parameters_in
from secateurs.types import Budget, Cost, Criterion, Hook, KindError, Pattern, Plan, SecateursError, Task


@dataclass(frozen=True)
class Kind:
    """What an argument must be: in words, with an example, and as a test."""

    words: str
    holds: Callable[[Any], bool]


def require(who: str, argument: str, value: object, kind: Kind) -> None:
    """Raise `KindError` where a value is of another kind.

    >>> require("prune_", "solver", 0.5, SOLVER)
    Traceback (most recent call last):
    secateurs.types.KindError: prune_: solver is 0.5, but must be a solver, for example TopK(magnitude())
    """
    if isinstance(value, type) or not kind.holds(value):
        raise KindError(f"{who}: {argument} is {told(value)}, but must be {kind.words}")


def told(value: object) -> str:
    """A value in a few words.

    >>> told(torch.zeros(2, 3)), told(nn.Linear), told(0.5)
    ('a tensor of shape (2, 3)', 'the class Linear, not one made of it', '0.5')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}, not one made of it"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    named = getattr(value, "__qualname__", "")
    return (
        f"the function {named.partition('.')[0]}" if inspect.isfunction(value) and "<" not in named else f"a {type(value).__name__}"
    )


def require_values(who: str, model: nn.Module) -> None:
    """Raise `SecateursError` where a model is lazy still, or has no numbers at all because it is on the meta device.

    >>> require_values("prune_", nn.LazyLinear(2))
    Traceback (most recent call last):
    secateurs.types.SecateursError: prune_: weight is lazy and has no shape yet; run the model once on an input of its first
    """
    tensors = {**parameters_in(model), **buffers_in(model)}
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise SecateursError(f"{who}: {name} is lazy and has no shape yet; run the model once on an input of its first")
    if tensors and all(tensor.is_meta for tensor in tensors.values()):
        raise SecateursError(
            f"{who}: {next(iter(tensors))} is on the meta device and has no values, like all that this {type(model).__name__} "
            'holds; give it memory with model.to_empty(device="cpu") and load its weights first'
        )


def require_costs(who: str, argument: str, costs: Sequence[Cost]) -> None:
    """Raise `KindError` where something is no costs, `SecateursError` where two have one name, by which only one could be told.

    >>> from secateurs.costs import macs, params
    >>> require_costs("mine", "costs", [macs, params, macs])
    """
    require(who, argument, costs, COSTS)
    known: dict[str, Cost] = {}
    for cost in costs:
        require(who, "a cost", cost, COST)
        if known.setdefault(cost.name, cost) != cost:
            raise SecateursError(
                f"{who}: two costs are called {cost.name}: give one of them another name, as dataclasses.replace(cost, "
                f'name="{cost.name}, the other") does'
            )


def _are_numbers(value: Any) -> bool:
    """Whether a thing has numbers, or tensors of one number, by name."""
    numbers = (Real, Tensor)
    return isinstance(value, Mapping) and all(isinstance(key, str) and isinstance(each, numbers) for key, each in value.items())


def _takes(*arguments: Any, **named: Any) -> Callable[[Any], bool]:
    """Whether a thing can be called with such arguments."""

    def holds(value: Any) -> bool:
        try:
            inspect.signature(value).bind(*arguments, **named)
        except TypeError:
            return False
        except ValueError:  # a callable of C, which does not tell
            return True
        return True

    return holds


PATH = Kind('a path, for example "model.safetensors"', lambda value: isinstance(value, (str, PathLike)))
MODEL = Kind("a torch.nn.Module", lambda value: isinstance(value, nn.Module))
MODEL_OR_MAKER = Kind(
    "a torch.nn.Module, or a class or function that makes one", lambda value: isinstance(value, nn.Module) or callable(value)
)
TASK = Kind(
    "a Task, for example Task(example=torch.zeros(1, 3, 32, 32), train=loader, loss=...)", lambda value: isinstance(value, Task)
)
PATTERN = Kind("a pattern, for example Element(), NofM(2, 4) or Channel()", lambda value: isinstance(value, Pattern))
CRITERION = Kind("a criterion, for example magnitude()", lambda value: isinstance(value, Criterion))
SOLVER = Kind(
    "a solver, for example TopK(magnitude())",
    lambda value: all(hasattr(value, name) for name in ("needs", "scores")) and callable(value),
)
ALLOCATOR = Kind(
    "an allocator, for example uniform(sparsity=0.5), or within_budget(Budget(macs, keep=0.5), uniform)", _takes(None, None)
)
ALLOCATORS = Kind("a function that makes allocators, for example uniform (not uniform(sparsity=0.5))", _takes(keep=0.5, floor=1))
ALLOCATORS_OR_BUDGETED = Kind(
    "a function that makes allocators, for example uniform (not uniform(sparsity=0.5)), or that takes budgets, for example marginal",
    lambda value: ALLOCATORS.holds(value) or _takes(None)(value),
)
BY_SPARSITY = Kind("a function that makes allocators, for example uniform (not uniform(sparsity=0.5))", _takes(sparsity=0.5))
SCHEDULE = Kind("a function of the progress in (0, 1], for example cubic(0.9)", _takes(0.5))
COST = Kind("a cost, for example macs", lambda value: isinstance(value, Cost))
COSTS = Kind("costs, for example [macs, params]", lambda value: isinstance(value, (list, tuple)))
PLANS = Kind("plans, for example [plan]", lambda value: isinstance(value, Iterable) and not isinstance(value, (Plan, str)))
BUDGET = Kind("a budget, for example Budget(macs, keep=0.5)", lambda value: isinstance(value, Budget))
BUDGETS = Kind(
    "a budget, for example Budget(macs, keep=0.5), or a list of them",
    lambda value: (
        isinstance(value, Budget)
        or (isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(each, Budget) for each in value))
    ),
)
OPTIMIZER = Kind(
    "a torch optimizer, for example torch.optim.SGD(model.parameters(), lr=0.1)",
    lambda value: isinstance(value, torch.optim.Optimizer),
)
MASKS = Kind("the Masks that prune_ returned", lambda value: isinstance(value, Mapping) and hasattr(value, "bind"))
HOOKS = Kind(
    "a list of hooks, for example [clip_gradients(1.0)]",
    lambda value: isinstance(value, (list, tuple)) and all(isinstance(each, Hook) for each in value),
)
CONSTRAINTS = Kind(
    "a list of constraints, each with a name, apply_, state and restore (secateurs.types.Constraint); masks are given as masks=",
    lambda value: (
        isinstance(value, (list, tuple))
        and all(hasattr(each, name) for each in value for name in ("name", "apply_", "state", "restore"))
    ),
)
NUMBER_TYPE = Kind("torch.bfloat16 or torch.float16", lambda value: isinstance(value, torch.dtype))
METRIC = Kind('names with numbers, for example {"accuracy": 0.98}', lambda value: _are_numbers(value))
SWITCH = Kind("True, False or None", lambda value: value is None or isinstance(value, bool))
NUMBER = Kind("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool))
COUNT = Kind("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
STATISTICS = Kind(
    "a list of statistics, for example [input_norm()]",
    lambda value: isinstance(value, (list, tuple)) and all(hasattr(each, "start") for each in value),
)
