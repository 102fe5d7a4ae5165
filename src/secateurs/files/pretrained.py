"""Models of Hugging Face's transformers: which path is a folder, and a config.json that makes the model as small as it is.

No architecture is known here. Which of a configuration's numbers makes which dimension is found out by making the class, without
values, with another number in its place; that a changed configuration means the same model is tried on numbers before it is written.
"""

from __future__ import annotations

import copy
import importlib
import json
import re
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
from secateurs.shrink.stacks import configs_before
from secateurs.shrink.step import Step
from secateurs.types import FileError, SecateursError

Sizes = Mapping[str, tuple[int, ...]]
"""Tensor → its shape."""

Wanted = Mapping[str, Mapping[tuple[str, int], int | None]]
"""Number of a configuration → place that it makes → what it would have to be there, ``None`` where no value would do."""

_ANY = 64
"""Tried for a number that a configuration leaves open, as GPT-2 does with its inner width."""

_UNSAID = ("head_dim",)
"""What the modules of many classes take from a configuration where it is there, though the class itself (Qwen2's, ViT's) never says it:
without it, fewer heads would mean wider ones."""

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
    back = configs_before(model, steps)
    before = json.loads(model.config.to_json_string())
    back()
    here = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    whole = _sizes(model, model.config)
    answer = _answer(model, model)
    for base, wanted in _bases(model, whole, here):
        for config in _candidates(model, base, wanted, steps, here):
            if _sizes(model, config) == here and _answers_alike(model, answer, config, tensors):
                return config, before
    kind = type(model).__name__
    if whole is not None and all(whole[name] == here[name] for name in whole.keys() & here.keys()):
        blocks_alone = all(step == Step(entries=step.entries, configs=step.configs) for step in steps)
        if _answers_alike(model, answer, model.config, tensors) or (answer is None and blocks_alone and whole == here):
            return model.config, before
        raise SecateursError(
            f"{kind}.from_pretrained would load this folder without an error and may not answer as the model does, as its config cannot "
            f'say what was pruned: name a file, sc.save(model, "small.safetensors"), which sc.load("small.safetensors", a {kind} as it '
            "was before shrink_) reads"
        )
    warnings.warn(
        f"{kind}.from_pretrained will not load this folder, as no config of its class makes the small model{_unsaid(model, whole, here)}: "
        f"sc.load(folder, {kind}) does",
        UserWarning,
        stacklevel=4,
    )
    return model.config, before


def _bases(model: Any, whole: Sizes | None, here: Sizes) -> Iterator[tuple[Any, Wanted]]:
    """Configurations to start from, with what is wanted of their numbers: the class's own; those that say a number which it leaves to
    its modules; then those with one number as some places want it where others are made by several (a fused projection)."""
    if whole is None or whole.keys() != here.keys():
        return
    tried: list[tuple[Any, Wanted]] = []
    for key in ("", *_UNSAID):
        base = _said(model, key, whole) if key else model.config
        if base is not None:
            tried.append((base, _wanted(model, base, here)))
            yield tried[-1]
    for base, wanted in tried:
        for key, places in wanted.items():
            values = set(places.values()) - {None}
            if None in places.values() and len(values) == 1:
                again = _changed(base, {key: values.pop()})
                yield again, _wanted(model, again, here)


def _said(model: Any, key: str, whole: Sizes) -> Any:
    """The configuration with a number in it that it leaves open, as it makes the same sizes; ``None`` where it has it or none does."""
    if getattr(model.config, key, None) is not None:
        return None
    first, second = (_sizes(model, model.config, {key: each}) for each in (_ANY, 2 * _ANY))
    if first is None or second is None or not first.keys() == second.keys() == whole.keys():
        return None
    implied = {_solved(place, _ANY, first, second, whole) for place in _moved(first, second)}
    said = _changed(model.config, {key: implied.pop()}) if len(implied) == 1 else None
    return said if said is not None and _sizes(model, said) == whole else None


def _candidates(model: Any, base: Any, wanted: Wanted, steps: Sequence[Step], here: Sizes) -> Iterator[Any]:
    """Configurations that may make the small model: first those with one size for all layers."""
    sizes = _sizes(model, base)
    if sizes is None or sizes.keys() != here.keys():
        return
    config, found, differing = _with_attributes(base, steps), _values(base, wanted), set(_moved(sizes, here))
    if not differing:
        yield config
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


def _unsaid(model: Any, whole: Sizes | None, here: Sizes) -> str:
    """Which dimension no configuration can say, for a message: one that differs from block to block, or that no number makes."""
    if whole is None or whole.keys() != here.keys():
        return ""
    first: dict[tuple[str, int], str] = {}
    for name, dim in [(name, dim) for name, shape in here.items() for dim in range(len(shape))]:
        other = first.setdefault((re.sub(r"\.\d+\.", ".*.", name), dim), name)
        if whole[name] == whole[other] and here[name][dim] != here[other][dim]:
            return (
                f" ({name} is {here[name][dim]} long in dimension {dim}, and {other} is {here[other][dim]}: allocate with "
                "same_in_every_block=True)"
            )
    found = _values(model.config, _wanted(model, model.config, here))
    made = {place for places in found.values() if len(set(places.values())) == 1 for place in places}
    lacking, dim = next((place for place in _moved(whole, here) if place not in made), ("", 0))
    was = f"long in dimension {dim}, no more {whole[lacking][dim]}" if lacking else ""
    return f" (it has no number for {lacking}, {here[lacking][dim]} {was})" if lacking else ""


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


def _values(config: Any, wanted: Wanted) -> dict[str, dict[tuple[str, int], int]]:
    """What is wanted of those numbers that explain all their places."""
    found: dict[str, dict[tuple[str, int], int]] = {}
    for key, places in wanted.items():
        values = {place: each for place, each in places.items() if each is not None}
        if len(values) == len(places) and set(values.values()) != {getattr(config, key)}:
            found[key] = values
    return found


def _wanted(model: Any, config: Any, here: Sizes) -> Wanted:
    """What the sizes that are here want of a configuration's numbers."""
    found: dict[str, dict[tuple[str, int], int | None]] = {}
    for key, value in config.to_dict().items():
        if not (value is None or (type(value) is int and value > 1)):
            continue
        one = value or _ANY
        first, second = (_sizes(model, config, {key: each}) for each in (one, 2 * one))
        if first is None or second is None or not first.keys() == second.keys() == here.keys():
            continue
        if moved := _moved(first, second):
            found[key] = {place: _solved(place, one, first, second, here) for place in moved}
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
    """What a model answers on the example that this one's class has, else on noise of its images' size; ``None`` where neither fits."""
    for example in (_dummies, _images):
        try:
            with evaluating(one):
                return next(tensors_in(one(**to_device(example(model), device_of(model)))))
        except Exception:  # as above; nothing can be said
            continue
    return None


def _dummies(model: Any) -> dict[str, Tensor]:
    return {**model.dummy_inputs}


def _images(model: Any) -> dict[str, Tensor]:
    config, generator = model.config, torch.Generator().manual_seed(0)
    sides = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size, config.image_size)
    return {model.main_input_name: torch.randn(1, config.num_channels, *sides, generator=generator, dtype=model.dtype)}


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
