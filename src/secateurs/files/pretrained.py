"""Models of Hugging Face's transformers: which path is a folder, and a config.json that makes the model as small as it is.

No architecture is known here. Which of a configuration's numbers makes which dimension is found out by making the class, without
values, with another number in its place; that a changed configuration means the same model is tried on numbers before it is written.
"""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateurs.answers import alike
from secateurs.forward import buffers_in, device_of, evaluating, to_device
from secateurs.nested import tensors_in
from secateurs.shrink.step import Step
from secateurs.types import FileError, SecateursError

Sizes = Mapping[str, tuple[int, ...]]
"""Tensor → its shape."""

_ANY = 64
"""Tried for a number that a configuration leaves open, as GPT-2 does with its inner width."""

_CLOSE = 1e-5
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


def configurations(model: Any, steps: Sequence[Step], tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any] | None]:
    """The configuration to write beside a model's tensors, and, where it was made smaller, the one that its class began with.

    It has the new sizes where transformers make of it, and of the tensors, a model that answers as this one; else it is the class's
    own, with a warning, as loading that fails. Raises `SecateursError` where loading that would not fail, and answer otherwise.
    """
    if not steps:
        return model.config, None
    before = json.loads(model.config.to_json_string())
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    whole = _sizes(model, model.config)
    answer = _answer(model, model)
    for config in _candidates(model, steps, whole, here):
        if _sizes(model, config) == here and _answers_alike(model, answer, config, tensors):
            return config, before
    kind = type(model).__name__
    if whole is not None and all(whole[name] == here[name] for name in whole.keys() & here.keys()):
        if _answers_alike(model, answer, model.config, tensors):
            return model.config, before
        raise SecateursError(
            f"{kind}.from_pretrained would load this folder without an error and may not answer as the model does, as its config cannot "
            f'say what was pruned: name a file, sc.save(model, "small.safetensors"), which sc.load("small.safetensors", a {kind} as it '
            "was before shrink_) reads"
        )
    warnings.warn(
        f"{kind}.from_pretrained will not load this folder, as no config of its class makes the small model: "
        f"sc.load(folder, {kind}) does",
        UserWarning,
        stacklevel=4,
    )
    return model.config, before


def _candidates(model: Any, steps: Sequence[Step], whole: Sizes | None, here: Sizes) -> Iterator[Any]:
    """Configurations that may make the small model: first those with one size for all layers."""
    if whole is None or whole.keys() != here.keys():
        return
    config = _with_attributes(model.config, steps)
    found = _values(model, whole, here)
    differing = set(_moved(whole, here))
    explaining = [
        {key: found[key] for key in chosen}
        for chosen in _subsets(found)
        if differing == differing & {place for key in chosen for place in found[key]}
    ]
    for layered in (False, True):
        for chosen in explaining:
            if layered == any(len(set(places.values())) > 1 for places in chosen.values()):
                sized = _by_layer(config, chosen)
                if sized is not None:
                    yield sized


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


def _subsets(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for size in range(1, len(found) + 1):
        yield from combinations(found, size)


def _answers_alike(model: Any, answer: Tensor | None, config: Any, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the model that transformers make of a configuration and the tensors of a file answers as this one."""
    loaded = _loaded(model, config, tensors)
    theirs = None if loaded is None else _answer(model, loaded)
    if loaded is None or answer is None or theirs is None:
        return False
    ours, others = buffers_in(model), buffers_in(loaded)  # positions and frequencies say more than one short example
    return _is_close(answer, theirs) and all(_is_close(ours[name], others[name]) for name in ours.keys() & others.keys())


def _loaded(model: Any, config: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``from_pretrained`` makes of a folder with them, or ``None`` where it fails: buffers that are not saved are its own."""
    try:
        with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), _quiet():
            config.save_pretrained(folder)  # many classes refuse to write, or to read, that heads differ from layer to layer
            read = type(config).from_pretrained(folder)
            way = {"attn_implementation": getattr(model.config, "_attn_implementation", None), "dtype": model.dtype}
            return type(model).from_pretrained(None, config=read, state_dict=dict(tensors), **way).to(device_of(model))
    except Exception:  # of any kind, as the class checks what it likes
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, and its report of what a trial does not load."""
    logging = importlib.import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _answer(model: Any, one: nn.Module) -> Tensor | None:
    """What a model answers on the example that this one's class has, or ``None`` where the class has no place for it."""
    try:
        with evaluating(one):
            return next(tensors_in(one(**to_device(model.dummy_inputs, device_of(model)))))
    except Exception:  # as above; nothing can be said
        return None


def _is_close(ours: Tensor, theirs: Tensor) -> bool:
    return alike(ours, theirs, max(_CLOSE, 4 * torch.finfo(ours.dtype).eps) if ours.is_floating_point() else 0.0)


def _by_layer(config: Any, found: Mapping[str, Mapping[tuple[str, int], int]]) -> Any:
    """The configuration with other sizes, those that differ for single layers; ``None`` where they are not those of layers."""
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
    return _changed(config, {**alike, "per_layer_config": layers} if layers else alike)
