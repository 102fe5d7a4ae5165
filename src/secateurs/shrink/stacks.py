"""Whole blocks that pruning has left without effect leave the list that they are in, and a model's configuration counts one less."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from secateurs.forward import modules_in
from secateurs.graph import Knowing, Structure, interpret
from secateurs.patterns import gives_back
from secateurs.shrink.needed_units import Nonzero
from secateurs.shrink.step import Step
from secateurs.shrink.undo import Undo
from secateurs.types import FileError

# ---------------------------------------------------------------- which


def idle_entries(model: nn.Module, structure: Structure, there: Nonzero) -> dict[str, list[int]]:
    """Module list → the entries that stay, of those with entries that give back what they are given, because weights within are zero.

    Only lists of one kind of module count, as others are read by place; of lists in each other, the outer. Proven for every input, but
    that a sum of two tensors of one shape is taken to be one whatever the input (`Knowing.evenly`). An entry from which anything is read
    but what it gives stays; so does one of each list.
    """
    modules = modules_in(model).items()
    lists = {name: each for name, each in modules if isinstance(each, nn.ModuleList) and len({type(entry) for entry in each}) == 1}
    hopeful = {name: [str(i) for i in range(len(each)) if _emptied(f"{name}.{i}", there)] for name, each in lists.items()}
    if not any(hopeful.values()):
        return {}
    knowing = interpret(model, structure, evenly=True)
    found: dict[str, list[int]] = {}
    for name, entries in hopeful.items():
        gone = {int(entry) for entry in entries if _is_idle(f"{name}.{entry}", structure, knowing)}
        stay = [index for index in range(len(lists[name])) if index not in gone] or [0]
        if len(stay) < len(lists[name]):
            found[name] = stay
    without = [f"{name}.{index}." for name, stay in found.items() for index in range(len(lists[name])) if index not in stay]
    return {name: stay for name, stay in found.items() if not any(f"{name}.".startswith(each) for each in without)}


def _emptied(entry: str, there: Nonzero) -> bool:
    """Whether a module has weights, and one of them is nothing but zeros."""
    inside = [name for name, weight in there.weights.items() if name.startswith(f"{entry}.") and weight.ndim > 1]
    return any(not there.anything(name) for name in inside)


def _is_idle(entry: str, structure: Structure, knowing: Knowing) -> bool:
    trace = structure.trace
    calls = [call for call in trace.calls if call.module == entry]
    if len(calls) != 1 or not gives_back(calls[0], knowing):
        return False
    inside = [op for op in trace.ops if op.module == entry or op.module.startswith(f"{entry}.")]
    within = {id(op) for op in inside}
    made = {value for op in inside for value in op.outputs} - {calls[0].output}
    ends = {*trace.outputs, *trace.written.values()}
    return not any(value in ends or any(id(op) not in within for op in trace.readers.get(value, ())) for value in made)


# ---------------------------------------------------------------- taking them out


def without_entries(model: nn.Module, stay: Mapping[str, list[int]]) -> Step:
    """The step that takes entries out of lists, with what a model's configuration must say then; the model is as it was afterwards."""
    undo = Undo()
    configs: dict[str, dict[str, list[Any]]] = {}
    try:
        for name, kept in stay.items():
            count = len(model.get_submodule(name)._modules)
            take_entries_(model, Step(entries={name: kept}), undo)
            for path, changes in _configured(model, name, kept, count):
                known = configs.setdefault(path, {})
                for key, (old, new) in changes.items():
                    known[key] = [known[key][0] if key in known else old, new]
                _configure_(model, {path: changes}, undo)
    finally:
        undo()
    return Step(entries=dict(stay), configs=configs)


def take_entries_(model: nn.Module, step: Step, undo: Undo) -> None:
    """Take entries out of lists: those that stay move up, and whatever in them is their place in the list follows."""
    for name, stay in step.entries.items():
        entries = model.get_submodule(name)._modules
        before = dict(entries)
        undo.add(partial(_refill, entries, before))
        _renumber_(list(before.values()), stay, undo)
        _refill(entries, {str(place): before[str(index)] for place, index in enumerate(stay)})
    _configure_(model, step.configs, undo)


def _refill(slots: dict[str, Any], content: Mapping[str, Any]) -> None:
    slots.clear()
    slots.update(content)


def _renumber_(entries: Sequence[Any], stay: Sequence[int], undo: Undo) -> None:
    """Attributes that are each entry's own place in the list, as caches of keys and values ask for it, wherever they lie in it."""
    inside = [modules_in(entry) for entry in entries]
    for path in set(inside[0]).intersection(*inside[1:]):
        keys = [key for key, value in inside[0][path].__dict__.items() if type(value) is int and value == 0]
        for key in keys:
            held = [module[path].__dict__ for module in inside]
            if all(type(slots.get(key)) is int and slots[key] == index for index, slots in enumerate(held)):
                for place, index in enumerate(stay):
                    undo.add(partial(held[index].__setitem__, key, index))
                    held[index][key] = place


def require_entries(model: nn.Module, step: Step) -> None:
    """Raise `FileError` where lists that a step shortens, or configurations that it changes, are not there."""
    modules = modules_in(model)
    for name, stay in step.entries.items():
        entries = modules.get(name)
        if not isinstance(entries, nn.ModuleList) or stay[-1] >= len(entries):
            raise FileError(f"the model was shrunk from one with a list of modules {name!r} of more than {stay[-1]} entries")
    for path, changes in step.configs.items():
        config = getattr(modules.get(path), "config", None)
        for key, (old, new) in changes.items():
            here = getattr(config, key, None)
            if here != old or not _is_less(old, new):
                raise FileError(f"the model was shrunk from one whose configuration says {key} = {old!r}, but here it is {here!r}")


def _is_less(old: Any, new: Any) -> bool:
    """Whether a number or a list became a smaller one."""
    if isinstance(old, list) and isinstance(new, list):
        rest = iter(old)
        return all(any(item == each for each in rest) for item in new)
    return type(old) is int and type(new) is int and 0 <= new <= old


# ---------------------------------------------------------------- configurations


def _configure_(model: nn.Module, configs: Mapping[str, Mapping[str, Sequence[Any]]], undo: Undo) -> None:
    modules = modules_in(model) if configs else {}
    for path, changes in configs.items():
        config: Any = modules[path].config
        for key, (old, new) in changes.items():
            undo.add(partial(setattr, config, key, old))
            setattr(config, key, new)


def configs_before(model: nn.Module, steps: Sequence[Step]) -> Undo:
    """Give a model's configurations what they said before it was shrunk; returns the way back."""
    undo = Undo()
    for step in reversed(steps):
        back = {path: {key: [new, old] for key, (old, new) in changes.items()} for path, changes in step.configs.items()}
        _configure_(model, back, undo)
    return undo


def _configured(model: nn.Module, name: str, kept: Sequence[int], count: int) -> Iterator[tuple[str, dict[str, tuple[Any, Any]]]]:
    """What the configurations of the modules around a list must say once it is shorter, from the innermost outwards, each once.

    What a number means is found out by making the class, without values, with the new one in its place.
    """
    modules = modules_in(model)
    parts = name.split(".")
    around = [".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)]
    first: dict[int, str] = {}
    for path in around:  # one object may be that of several: the outermost is its place
        if hasattr(config := getattr(modules[path], "config", None), "to_dict"):
            first[id(config)] = path
    for path in dict.fromkeys(first.values()):
        module: Any = modules[path]
        names = set(module.state_dict())
        if _names(type(module), module.config) == names:
            continue
        for changes in _candidates(module.config, kept, count):
            if _names(type(module), _changed(module.config, {key: new for key, (_, new) in changes.items()})) == names:
                yield path, changes
                break


def _candidates(config: Any, kept: Sequence[int], count: int) -> Iterator[dict[str, tuple[Any, Any]]]:
    """One of the numbers that count as many, with the lists that are as long: those of layers, all, or none."""
    known = {key: value for key, value in config.to_dict().items() if not key.startswith("_") and hasattr(config, key)}
    numbers = [key for key, value in known.items() if type(value) is int and value == count]
    lists = {key: (value, [value[index] for index in kept]) for key in known if _has(value := getattr(config, key), count)}
    of_layers = {key: change for key, change in lists.items() if "layer" in key}
    for cut in [of_layers, lists, {}] if of_layers != lists else [of_layers, {}]:
        for key in sorted(numbers, key=lambda key: "layer" not in key):
            yield {**cut, key: (count, len(kept))}


def _has(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(item) in (str, int, float, bool) for item in value)


def _changed(config: Any, values: Mapping[str, Any]) -> Any:
    other = copy.deepcopy(config)
    for key, value in values.items():
        setattr(other, key, value)
    return other


def _names(kind: Any, config: Any) -> set[str] | None:
    """The names of what a class makes of a configuration, or ``None`` where it cannot."""
    try:
        with torch.device("meta"):
            return set(kind(config).state_dict())
    except Exception:  # numbers that do not fit each other fail in as many ways as there are classes
        return None
