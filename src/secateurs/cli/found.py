"""Models, tasks and examples, by the names that a command line gives them."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from secateurs import models, tasks
from secateurs.files import load
from secateurs.nested import changed
from secateurs.types import SecateursError, Task

Made = TypeVar("Made")

_OF_FILES = (".scz", ".safetensors", ".pt", ".pth", ".bin")


def with_weights(make: Callable[[], nn.Module], weights: Path | None) -> nn.Module:
    """A model, with the weights of a file where one is given."""
    model = make()
    return load(weights, model) if weights is not None else model


@dataclass(frozen=True)
class NamedModel:
    """What makes a model by its name, with the weights of a file: such a thing goes to other processes."""

    name: str
    weights: Path | None

    def __call__(self) -> nn.Module:
        return with_weights(factory_named(self.name), self.weights)


@dataclass(frozen=True)
class NamedTask:
    """What makes a task by its name, of the seed where it is made of one."""

    name: str

    def __call__(self, seed: int) -> Task:
        factory = _found(self.name, tasks, "task")
        try:
            takes_seed = "seed" in inspect.signature(factory).parameters
        except (TypeError, ValueError):
            takes_seed = False
        return _made(self.name, functools.partial(factory, seed=seed) if takes_seed else factory, Task)


def is_new(make: Callable[[], nn.Module], network: nn.Module) -> bool:
    """Whether a factory gives other weights each time, so that what it gives is not trained."""
    with torch.random.fork_rng():
        torch.manual_seed(torch.initial_seed() + 1)
        other = make()
    return any(not torch.equal(one, two) for one, two in zip(network.parameters(), other.parameters(), strict=False))


def factory_named(name: str) -> Callable[[], nn.Module]:
    """What makes a model of ours, or of package.module:factory."""
    factory = _found(name, models, "model")
    return lambda: _made(name, factory, nn.Module)


def task_named(name: str) -> Task:
    """A task of ours, or of package.module:factory."""
    return _made(name, _found(name, tasks, "task"), Task)


def _made(name: str, factory: Any, kind: type[Made]) -> Made:
    try:
        made = factory()
    except SecateursError:
        raise
    except Exception as error:
        if isinstance(error, TypeError) and error.__traceback__ and error.__traceback__.tb_next is None:
            raise SecateursError(f"{name} cannot be called without arguments ({error}); name a function of none") from error
        raise SecateursError(f"{name} fails: {_blamed(error)}") from error
    if not isinstance(made, kind):
        raise SecateursError(f"{name} returned {type(made).__name__}, not a {kind.__module__.split('.')[0]} {kind.__name__}")
    return made


def _blamed(error: BaseException) -> str:
    """An error of the user's own code, and the place in it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line} ({place.filename}, line {place.lineno})"


def _require_no_file(name: str) -> None:
    """Raise `SecateursError` where what is named as a model is a file or a folder, or would be one."""
    path = Path(name)
    if path.is_dir():
        raise SecateursError(f"{name} is a folder, no model; compress takes a file in it, such as {path / 'model.safetensors'}")
    if path.is_file():
        raise SecateursError(f"{name} is a file, no model: name the model, and --weights {name}")
    if path.suffix in _OF_FILES:
        raise SecateursError(f"there is no file {name}")


def _found(name: str, built_in: ModuleType, what: str) -> Any:
    """A function of ours by its name, or anybody's as package.module:function."""
    if ":" not in name:
        own = [each for each in built_in.__all__ if each.islower() and each not in ("accuracy",)]
        if name not in own:
            if what == "model":
                _require_no_file(name)
            close = difflib.get_close_matches(name, own, n=3) or own
            raise SecateursError(
                f"there is no built-in {what} {name!r}; did you mean {', '.join(close)}? "
                f"A {what} of your own is given as package.module:factory"
            )
        return getattr(built_in, name)
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise SecateursError(f"{name!r} names no {what}: write package.module:factory, such as mine:net for net() in mine.py")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise SecateursError(f"cannot find the {what} {name!r}: {error}; it is looked for from the current folder") from error
    except Exception as error:
        raise SecateursError(f"cannot import the {what} {name!r}: {_blamed(error)}") from error


def example_for(task: str | None, input_shape: str | None) -> Any:
    """The example of a task, or zeros of a shape; None where neither is given."""
    if task is not None:
        return task_named(task).example
    if input_shape is None:
        return None
    try:
        return torch.zeros([int(size) for size in input_shape.split(",")])
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise SecateursError(f"--input-shape {input_shape!r} is no list of sizes such as 1,3,224,224") from error


def batched(example: Any, batch: int | None, at_random: bool) -> Any:
    """An example with so many samples; random numbers where it only tells the shape, since zeros have no error to show."""
    if example is None:
        raise SecateursError("a model is timed by running it: give --task or --input-shape")
    if at_random:
        example = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    if batch is None:
        return example
    if batch < 1:
        raise SecateursError(f"--batch {batch}: at least one sample is needed")
    return changed(example, lambda tensor: tensor[torch.arange(batch) % len(tensor)] if tensor.ndim else tensor)


def parsed_numbers(option: str, text: str) -> list[int]:
    """Whole numbers above 0 from a text such as 1,2."""
    numbers = [int(number) for number in text.split(",") if number.strip().isdecimal() and len(number) < 20]
    if len(numbers) != text.count(",") + 1 or 0 in numbers:
        raise SecateursError(f"{option} {text!r} is no list of numbers above 0 such as 1,2")
    return numbers
