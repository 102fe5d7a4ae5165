"""Models of Hugging Face's transformers: which path is a folder, and a config.json that makes the model as small as it is.

No architecture is known here. Which of a configuration's numbers makes which dimension is found out by making the class, without
values, with another number in its place; that a changed configuration means the same model is tried on numbers before it is written.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from secateurs.apply.step import Step
from secateurs.forward import buffers_in, device_of, evaluating, tensors_in, to_device
from secateurs.types import FileError

Sizes = Mapping[str, tuple[int, ...]]
"""Tensor → its shape."""

_ANY = 64
"""Tried for a number that a configuration leaves open, as GPT-2 does with its inner width."""

_CLOSE = 1e-4
"""How far two models' answers may differ, of the largest: they are computed in the same order, so this is rounding."""


def is_folder(model: nn.Module, path: str | Path) -> bool:
    """Whether a path means a folder: where one is there; of a Hugging Face model also where its name has no suffix of a file.

    >>> is_folder(nn.Linear(2, 1), "no-such-folder")
    False
    """
    target = Path(path)
    if target.exists() or not hasattr(getattr(model, "config", None), "save_pretrained"):
        return target.is_dir()
    return not target.suffix[1:2].isalpha()  # "llama-3.2-1B" is no file of a kind called "2-1B"


def remade(kind: Any, path: str | Path, config: Any) -> nn.Module:
    """A model of a Hugging Face class from a configuration that a file holds, else from the one in the folder."""
    if config is None:
        return cast(nn.Module, kind(kind.config_class.from_pretrained(path)))
    try:
        return cast(nn.Module, kind(kind.config_class.from_dict(config)))
    except Exception as error:  # which ones, is up to the class
        raise FileError(f"{path}: {kind.__name__} cannot be made of the configuration in the file ({error})") from error


def configurations(model: Any, steps: Sequence[Step]) -> tuple[Any, dict[str, Any] | None]:
    """The configuration to write beside a model's weights, and, where it was made smaller, the one that its class began with.

    It makes the small model where all layers are alike and the class's numbers can say so; where layers differ, it has their sizes as
    ``per_layer_config``; where transformers have no way to say either, it is the class's own.
    """
    if not steps:
        return model.config, None
    before = json.loads(model.config.to_json_string())
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    whole = _sizes(model, model.config)
    if whole is None or whole.keys() != here.keys():
        return model.config, before
    config = _with_attributes(model.config, steps)
    found = _values(model, whole, here)
    differing = set(_moved(whole, here))
    explaining = [
        chosen for chosen in _subsets(found) if differing == differing & {place for key in chosen for place in found[key]}
    ]
    for chosen in explaining:
        values = {key: set(found[key].values()) for key in chosen}
        if all(len(each) == 1 for each in values.values()):
            alike = {key: each.pop() for key, each in values.items()}
            if _sizes(model, config, alike) == here and _answers_alike(model, config, alike):
                return _changed(config, alike), before
    # Fewer heads or narrower ones have the same shapes; what a module still says of itself tells which it is.
    likely = sorted(explaining, key=lambda chosen: sum(_is_kept(model, key, found[key]) for key in chosen))[:1]
    for chosen in likely:
        differently = _by_layer(config, {key: found[key] for key in chosen})
        if differently is not None and _is_read_back(differently):
            return differently, before
    return model.config, before


def _sizes(model: nn.Module, config: Any, values: Mapping[str, int] = MappingProxyType({})) -> Sizes | None:
    """The shapes of a model as its class makes it of a configuration with these values, or ``None`` where it does not."""
    fresh = _fresh(model, config, values)
    return None if fresh is None else {name: tuple(tensor.shape) for name, tensor in fresh.state_dict().items()}


def _fresh(model: Any, config: Any, values: Mapping[str, int] = MappingProxyType({})) -> nn.Module | None:
    try:
        with torch.device("meta"):
            return cast(nn.Module, type(model)(_changed(config, values)))
    except Exception:  # numbers that do not fit each other fail in as many ways as there are classes
        return None


def _changed(config: Any, values: Mapping[str, Any]) -> Any:
    other = copy.deepcopy(config)
    for key, value in values.items():
        setattr(other, key, value)
    return other


def _with_attributes(config: Any, steps: Sequence[Step]) -> Any:
    """The configuration with the fractions (a normalisation's ε) that shrinking has changed, where all modules agree."""
    changes = {tuple(change) for step in steps for each in step.attributes.values() for change in each.values()}
    fractions = [(old, new) for old, new in changes if isinstance(old, float)]
    known = {key: value for key, value in config.to_dict().items() if isinstance(value, float)}
    return _changed(
        config, {key: new for key, value in known.items() for old, new in fractions if len(fractions) == 1 and old == value}
    )


def _values(model: Any, whole: Sizes, here: Sizes) -> dict[str, dict[tuple[str, int], int]]:
    """Number of the configuration → place that it makes → what it would have to be there; of those that explain all their places."""
    found: dict[str, dict[tuple[str, int], int]] = {}
    for key, value in model.config.to_dict().items():
        if not (value is None or (type(value) is int and value > 1)):
            continue
        one = value or _ANY
        first, second = (_sizes(model, model.config, {key: each}) for each in (one, 2 * one))
        if first is None or second is None or not first.keys() == second.keys() == whole.keys():
            continue
        wanted = {place: _solved(place, one, first, second, here) for place in _moved(first, second)}
        values = {value for value in wanted.values() if value is not None}
        if None not in wanted.values() and values and values != {value}:
            found[key] = {place: each for place, each in wanted.items() if each is not None}
    return found


def _solved(place: tuple[str, int], one: int, first: Sizes, second: Sizes, here: Sizes) -> int | None:
    """The number that makes a dimension as long as it is here, if `one` makes the first length and twice as much the second."""
    name, dim = place
    each = (second[name][dim] - first[name][dim]) // one
    count, rest = divmod(here[name][dim] - first[name][dim], each) if each else (0, 1)
    return None if rest or one + count < 1 else one + count


def _moved(first: Sizes, second: Sizes) -> list[tuple[str, int]]:
    """The dimensions in which sizes differ."""
    return [(name, dim) for name in first for dim, size in enumerate(first[name]) if second[name][dim] != size]


def _is_kept(model: nn.Module, key: str, places: Mapping[tuple[str, int], int]) -> bool:
    """Whether a module around what changes still has an attribute of that name with another value."""
    for (name, _), value in places.items():
        parts = name.split(".")[:-1]
        around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
        if any(type(held := module.__dict__.get(key)) is int and held != value for module in around):
            return True
    return False


def _subsets(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for size in range(1, len(found) + 1):
        yield from combinations(found, size)


def _answers_alike(model: Any, config: Any, values: Mapping[str, int]) -> bool:
    """Whether a model that transformers make of a configuration, with these weights, answers as this one, on the class's own example."""
    fresh = _fresh(model, config, values)
    if fresh is None or not _is_read_back(_changed(config, values)):
        return False
    try:
        fresh.load_state_dict(model.state_dict(), assign=True)
        _share_buffers_(fresh, model)
        inputs = to_device(model.dummy_inputs, device_of(model))
        with evaluating(model), evaluating(fresh):
            ours, theirs = (next(tensors_in(each(**inputs))) for each in (model, fresh))
    except Exception:  # an example that this class has no place for: nothing can be said
        return False
    return ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= _CLOSE * float(ours.abs().max())


def _share_buffers_(fresh: nn.Module, model: nn.Module) -> None:
    """Give a model without values the buffers that are not saved: positions, frequencies."""
    known = buffers_in(model)
    for path, module in fresh.named_modules():
        for key, tensor in module._buffers.items():
            name = f"{path}.{key}" if path else key
            if tensor is not None and tensor.is_meta and name in known:
                module._buffers[key] = known[name]


def _is_read_back(config: Any) -> bool:
    """Whether transformers write and read a configuration: many refuse that heads differ from layer to layer."""
    with TemporaryDirectory() as folder:
        try:
            config.save_pretrained(folder)
            type(config).from_pretrained(folder)
        except Exception:  # of any kind, as the class checks what it likes
            return False
    return True


def _by_layer(config: Any, found: Mapping[str, Mapping[tuple[str, int], int]]) -> Any:
    """The configuration with the sizes of single layers, or ``None`` where they are not those of layers."""
    layers: dict[int, dict[str, int]] = {}
    alike: dict[str, int] = {}
    for key, places in found.items():
        if len(set(places.values())) == 1:
            alike[key] = next(iter(places.values()))
            continue
        for (name, _), value in places.items():
            layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
            if layer is None or layers.setdefault(layer, {}).setdefault(key, value) != value:
                return None
    return _changed(config, {**alike, "per_layer_config": layers})
