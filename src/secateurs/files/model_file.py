"""Saving and loading a pruned model: safetensors and JSON, never pickle (docs/format.md is the format's one page)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from secateurs.files import container
from secateurs.files.layouts import BITS, Lying, Read, decoded, encoded, plain
from secateurs.files.pretrained import configurations, is_folder, remade
from secateurs.forward import modules_in
from secateurs.given import COUNT, MASKS, METRIC, MODEL, MODEL_OR_MAKER, PATH, require
from secateurs.masks.masks import Masks
from secateurs.masks.origin import UNKNOWN, Origin
from secateurs.ranks import any_sharded, by_first, shard_of, sharded_as, whole
from secateurs.shrink.remembered import steps_of
from secateurs.shrink.replay import replay_
from secateurs.shrink.step import Step
from secateurs.shrink.undo import Undo
from secateurs.types import FileError, Plan, PlanError, SecateursError, WriteError

Model = TypeVar("Model", bound=nn.Module)
Told = TypeVar("Told")

WEIGHTS = "model.safetensors"
"""The file with the weights in a folder of a Hugging Face model."""

COMPRESSED = "model.scz"
"""The same, where they were compressed."""


@dataclass(frozen=True)
class Saved:
    """What a file tells beside the weights. ``masks`` has the names of the masked parameters."""

    model: str = ""
    pattern: str = ""
    plan: Plan | None = None
    masks: tuple[str, ...] = ()
    metric: dict[str, float] = field(default_factory=dict)
    seed: int | None = None


def save(
    model: nn.Module,
    path: str | Path,
    masks: Masks | None = None,
    *,
    sparse: bool = False,
    metric: Mapping[str, float] | None = None,
    seed: int | None = None,
) -> int:
    """Write a model's weights and buffers, with masks, plan, metric and seed beside them; returns the file's size in bytes.

    Of a Hugging Face model a path without a file's suffix is a folder, made if it is not there, which gets ``model.safetensors`` and
    ``config.json``; `load` reads both, given the class. After `shrink_` the configuration has the new sizes where ``from_pretrained`` makes
    the small model of them by itself, which is tried; else it is the class's own, and a `UserWarning` says that only `load` reads it.
    By default every tensor lies there whole, so that any reader of safetensors can use the file. ``sparse=True`` writes only the
    weights that the masks keep, and one bit for each weight: smaller from about 4 % sparsity on, read by `load` alone. Of a sharded
    model (`fully_shard`) every process must call it; the first one writes the whole.

    Raises `KindError` where an argument is of another kind (or the two are swapped), `WriteError` where the file cannot be written (the
    old one stays), `SecateursError` where the state has no values or is
    not made of tensors that the format can hold, where the masks are of another model or another copy of it, where ``sparse=True``
    would lose weights (masked ones that are not zero), or where ``from_pretrained`` would read the folder without an error as another
    model.

    >>> import tempfile
    >>> model = nn.Linear(64, 64)
    >>> masks = Masks({"weight": torch.arange(4096).view(64, 64) % 10 == 0}, model).apply_()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dense = save(model, f"{folder}/dense.safetensors", masks)
    ...     dense // save(model, f"{folder}/sparse.safetensors", masks, sparse=True)
    5
    """
    contents = contents_of("save", model, path, masks, sparse=sparse, metric=metric, seed=seed)

    def write(target: Path) -> int:
        container.write(target, contents.stored, contents.document)
        return target.stat().st_size

    return contents.put(write, WEIGHTS)


@dataclass(frozen=True)
class Contents:
    """What a model's file is to hold, and where it goes: into a folder with these configurations, where it has any."""

    model: nn.Module
    path: Path
    stored: dict[str, Tensor]
    document: dict[str, Any]
    configs: tuple[Any, ...] | None

    def put(self, write: Callable[[Path], Told], name: str) -> Told:
        """Have the file written, under `name` where it goes into a folder; by one process, where several hold the model."""

        def put() -> Told:
            if self.configs is None:
                return write(self.path)
            return _into_folder(self.path / name, write, self.configs)

        return by_first(put) if any_sharded(self.model.parameters()) else put()


def contents_of(
    who: str,
    model: nn.Module,
    path: str | Path,
    masks: Masks | None = None,
    *,
    sparse: bool = False,
    metric: Mapping[str, float] | None = None,
    seed: int | None = None,
) -> Contents:
    """What the file of a model holds, as `save` writes it and as `compress` does; raises what these raise for their arguments."""
    require(f"{who}(model, path)", "model", model, MODEL)
    require(f"{who}(model, path)", "path", path, PATH)
    for argument, value, kind in (("masks", masks, MASKS), ("metric", metric, METRIC), ("seed", seed, COUNT)):
        if value is not None:
            require(who, argument, value, kind)
    if masks is not None:
        masks.require_of(model)
    origin = masks.origin if masks is not None else UNKNOWN
    tensors, tied = _distinct(model)
    stored, layouts = _laid_out(tensors, _masks_of_state(masks, model, tied), sparse)
    document = document_of(
        model,
        pattern=origin.pattern,
        plan=origin.plan,
        layouts=layouts,
        tied=tied,
        metric={key: float(value) for key, value in (metric or {}).items()},
        seed=seed,
        steps=[step.to_document() for step in steps_of(model)],
    )
    configs = None
    if is_folder(model, path):
        configs = (_config_for(model, path, document, tensors), *_of_generation(model))
    return Contents(model, Path(path), stored, document, configs)


def _laid_out(
    tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], sparse: bool
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The tensors of the file, and what its document says of those that have a mask."""
    stored: dict[str, Tensor] = {}
    layouts: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.endswith(BITS) and name.removesuffix(BITS) in masks:
            raise SecateursError(f"{name} is where the mask of {name.removesuffix(BITS)} is to be stored; rename it in the model")
        parts, entry = encoded(name, tensor, whole(masks[name]).cpu() if name in masks else None, sparse)
        stored.update(parts)
        if entry:
            layouts[name] = entry
    return stored, layouts


def _config_for(model: Any, path: str | Path, document: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The configuration for a folder; the one that the class began with goes into the document, where it is another."""
    if not hasattr(getattr(model, "config", None), "save_pretrained"):
        raise WriteError(
            f"could not write {path}: it is a folder, and {type(model).__name__} has no Hugging Face config to put there; name a file"
        )
    config, before = configurations(model, steps_of(model), tensors)
    if before is not None:
        document["config"] = before
    return config


def _of_generation(model: Any) -> list[Any]:
    """How the model's answers are drawn, where it writes text: transformers look for it in the folder."""
    own = getattr(model, "generation_config", None)
    return [own] if hasattr(own, "save_pretrained") else []


def _into_folder(target: Path, write: Callable[[Path], Told], configs: Sequence[Any]) -> Told:
    """Write the weights and ``config.json`` to a folder, which is made if it is not there, and not left behind empty."""
    folder, made = target.parent, not target.parent.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        told = write(target)
        for config in configs:
            config.save_pretrained(folder)
    except OSError as error:
        if made and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        raise WriteError(f"could not write {folder}: {error}") from error
    return told


def document_of(
    model: nn.Module,
    *,
    pattern: str = "",
    plan: Plan | None = None,
    layouts: Mapping[str, Any] = MappingProxyType({}),
    tied: Mapping[str, str] = MappingProxyType({}),
    metric: Mapping[str, float] = MappingProxyType({}),
    seed: int | None = None,
    steps: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What a file tells beside its tensors."""
    document = {
        "model": type(model).__name__,
        "pattern": pattern,
        "plan": plan.to_json() if plan else None,
        "masks": dict(layouts),
        "tied": dict(tied),
        "metric": dict(metric),
        "seed": seed,
    }
    return {**document, "shrunk": list(steps)} if steps else document


def _weights_in(path: str | Path) -> Path:
    """The file itself, or the one with the weights in a folder as Hugging Face's ``save_pretrained`` makes it."""
    folder = Path(path)
    if not folder.is_dir():
        return folder
    if not (folder / COMPRESSED).exists():
        return folder / WEIGHTS
    if (folder / WEIGHTS).exists():
        raise FileError(
            f"{folder} has {WEIGHTS} and {COMPRESSED}, which may hold different weights: name one of them, or remove the other"
        )
    return folder / COMPRESSED


def _made(model: Any, path: str | Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A model as it is, or as a class or function makes it: a Hugging Face class from the configuration in the folder."""
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, type) and Path(path).is_dir() and hasattr(model, "config_class"):
        return _with_dtypes_(remade(model, path, document.get("config")), tensors)
    name = getattr(model, "__name__", model)
    try:
        made = model()
    except TypeError as error:
        raise SecateursError(
            f"{name}() makes no model ({error}): give a function that makes one, for example lambda: {name}(...), or a model; a Hugging "
            "Face class alone is enough where the path is a folder with its config.json"
        ) from error
    require(f"load: what {name}() makes", "the model", made, MODEL)
    return cast(nn.Module, made)


def _with_dtypes_(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give a model the floating dtypes of a file; buffers that are not saved keep theirs, as in transformers."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in tensors and tensor.is_floating_point() and tensors[name].is_floating_point():
            tensor.data = tensor.data.to(tensors[name].dtype)
    return model


def _distinct(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The values of the state, each tensor once and in memory of its own, and which further names are tied to which."""
    tensors, tied = stored_once(model)
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if is_lazy(tensor) or tensor.is_meta:
            raise SecateursError(f"{name} is {'lazy' if is_lazy(tensor) else 'on the meta device'} and has no values to save")
        if tensor.layout != torch.strided:
            raise SecateursError(f"{name} is {tensor.layout}; only dense tensors can be saved: make it one first, with to_dense()")
        storage = shard_of(tensor.detach()).untyped_storage()._cdata
        value = whole(tensor.detach()).cpu().contiguous()
        tensors[name] = value.clone() if storage in storages else value  # the container wants no shared memory
        storages.add(storage)
    return tensors, tied


def stored_once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the state, each once, and which further names are tied to which."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise SecateursError(f"{name}: the model's state has a {type(tensor).__name__} there; only tensors can be saved")
        key = _identity(tensor)
        if key is not None and key in seen:
            tied[name] = seen[key]
        else:
            tensors[name] = tensor
            if key is not None:
                seen[key] = name
    return tensors, tied


def _identity(tensor: Tensor) -> tuple[Any, ...] | None:
    """The same for two tensors that are the same memory, seen in the same way; none where there is none."""
    if is_lazy(tensor) or tensor.layout != torch.strided or not tensor.numel():
        return None
    here = shard_of(tensor.detach())
    place = here.untyped_storage()._cdata, here.storage_offset(), here.shape, here.stride()
    return (*place, here.dtype, here.is_conj(), here.is_neg())


def _masks_of_state(masks: Masks | None, model: nn.Module, tied: Mapping[str, str]) -> dict[str, Tensor]:
    """The masks under the names that the file has for their tensors; raises `SecateursError` for one that belongs nowhere."""
    named: dict[str, Tensor] = {}
    for name, mask in (masks.named_as_in(model) if masks else {}).items():
        owner = tied.get(name, name)
        named[owner] = mask & named[owner].to(mask.device) if owner in named else mask
    return named


def load(path: str | Path, model: Model | Callable[[], Model], *, verify: bool = True) -> Model:
    """Load a file into a model, or into one that a class or function makes first; returns the model.

    A model that was shrunk before it was saved comes back as small as it was: the same is done to the fresh one of its class.
    Everything is checked before the first weight is touched: a model that was passed in is loaded whole or left as it was. Plain
    safetensors files of other programs load too, and the weights in a ``.pt`` or ``.pth`` file (no other object is ever made of it).
    Where a file does not tell how many batches a normalisation has seen, the model keeps its number. ``verify=False`` loads also what
    is no longer what was written, by its checksums.

    Raises `FileError` where the file is damaged or belongs to another model; the first difference is named. `KindError` where an argument
    is of another kind (or the two are swapped). `SecateursError` where the model has no memory for values (lazy, or on the meta device).

    >>> import tempfile
    >>> model = nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(model, f"{folder}/model.safetensors")
    ...     loaded = load(f"{folder}/model.safetensors", lambda: nn.Linear(3, 2))
    >>> torch.equal(loaded.weight, model.weight)
    True
    """
    require("load(path, model)", "path", path, PATH)
    if not isinstance(model, type):
        require("load(path, model)", "model", model, MODEL_OR_MAKER)
    tensors, document = container.read(_weights_in(path), verify)
    loaded = cast(Model, _made(model, path, document, tensors))
    undo = _as_small_(loaded, str(path), document, tensors)
    try:
        return _filled(loaded, str(path), tensors, document)
    except BaseException:
        undo()
        raise


def _as_small_(model: nn.Module, path: str, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Undo:
    """Make a model as small as the one that was saved; raises `FileError` where it is not of the same class."""
    entries = document.get("shrunk", [])
    if not isinstance(entries, list):
        raise FileError(f"{path}: its secateurs document is damaged")
    steps, known = [Step.from_document(entry) for entry in entries], steps_of(model)
    whole = any(_length(model, name) > len(stay) for step in steps for name, stay in step.entries.items())
    if known == steps or ("config" in document and not whole and _has_shapes_of(model, tensors)):
        return Undo()
    if known:
        raise FileError(f"{path} belongs to another model: this one was shrunk already, in another way; load into a fresh one")
    try:
        return replay_(model, steps)
    except FileError as error:
        raise FileError(f"{path} belongs to another model: {error}") from error


def _length(model: nn.Module, name: str) -> int:
    """How many modules are in the list of that name in a model."""
    found = modules_in(model).get(name)
    return len(found) if isinstance(found, nn.ModuleList) else 0


def _has_shapes_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a model was made small already, by its class, from the configuration beside the file."""
    state = model.state_dict()
    return all(name in state and state[name].shape == tensor.shape for name, tensor in tensors.items() if not name.endswith(BITS))


def _filled(loaded: Model, path: str, tensors: dict[str, Tensor], document: Mapping[str, Any]) -> Model:
    """The model with a file's values in it; whatever is wrong is found before the first one is written."""
    state = loaded.state_dict()
    for name, tensor in state.items():
        _require_writable(name, tensor)
    read = _decoded(path, tensors, document)
    _require_same(path, read, state, stored_once(loaded)[1])
    values = {name: each.whole() for name, each in read.items()}
    with torch.no_grad():
        for name, value in values.items():
            state[name].copy_(sharded_as(value, state[name]))
    return loaded


def _require_writable(name: str, tensor: Any) -> None:
    """Raise `SecateursError` where a tensor of a model's state cannot take values."""
    if not isinstance(tensor, Tensor):
        raise SecateursError(f"{name}: the model's state has a {type(tensor).__name__} there; only tensors can be loaded")
    if is_lazy(tensor) or tensor.is_meta:
        raise SecateursError(
            f"{name} has no memory to load values into: give a model that is neither lazy nor on the meta device "
            '(model.to_empty(device="cpu") first)'
        )
    strides = tensor.stride() if tensor.numel() and tensor.layout == torch.strided else ()
    if any(size > 1 and not step for size, step in zip(tensor.shape, strides, strict=False)):
        raise SecateursError(f"{name} is expanded, many of its numbers in one place of memory; give it its own, with clone()")


def load_masks(path: str | Path, model: nn.Module, *, verify: bool = True) -> Masks:
    """The masks that a file holds, for the model that it was loaded into: attach them, and training goes on.

    >>> import tempfile
    >>> model = nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(model, f"{folder}/model.safetensors", Masks({"weight": torch.tensor([[True, False]])}, model).apply_())
    ...     load_masks(f"{folder}/model.safetensors", model)["weight"]
    tensor([[ True, False]])
    """
    require("load_masks(path, model)", "path", path, PATH)
    require("load_masks(path, model)", "model", model, MODEL)
    tensors, document = container.read(_weights_in(path), verify)
    read = _decoded(str(path), tensors, document)
    masks = {name: each.mask() for name, each in read.items() if each.mask is not None}
    told = _told(str(path), document)
    try:
        return Masks(masks, model, Origin(told.plan, told.pattern))
    except SecateursError as error:
        raise FileError(f"{path} belongs to another model: {error}") from error


def read_saved(path: str | Path, *, verify: bool = True) -> Saved:
    """What a file tells beside the weights: pattern, plan, metric, seed."""
    require("read_saved", "path", path, PATH)
    return _told(str(path), container.read_document(_weights_in(path), verify))


def _told(path: str, document: Mapping[str, Any]) -> Saved:
    metric, seed = document.get("metric", {}), document.get("seed")
    layouts = document.get("masks", {})
    model, pattern = document.get("model", ""), document.get("pattern", "")
    sound = isinstance(metric, dict) and all(type(value) in (int, float) for value in metric.values())
    sound &= isinstance(layouts, dict) and isinstance(model, str) and isinstance(pattern, str)
    if not sound or not (seed is None or type(seed) is int):
        raise FileError(f"{path}: its secateurs document is damaged")
    return Saved(model, pattern, _plan(document), tuple(layouts), metric, seed)


def _plan(document: Mapping[str, Any]) -> Plan | None:
    text = document.get("plan")
    try:
        return Plan.from_json(text) if text is not None else None
    except PlanError as error:
        raise FileError(f"the file's plan is damaged: {error}") from error


def _decoded(path: str, tensors: dict[str, Tensor], document: Mapping[str, Any]) -> dict[str, Read]:
    """Every parameter and buffer as the file has it; nothing of a size that the document claims is made yet."""
    layouts, tied = document.get("masks", {}), document.get("tied", {})
    if not isinstance(layouts, dict) or not isinstance(tied, dict):
        raise FileError(f"{path}: its secateurs document is damaged")
    bits = {name + BITS for name in layouts}
    read = {name: plain(tensor) for name, tensor in tensors.items() if name not in bits}
    for name, entry in layouts.items():
        if name not in read:
            raise FileError(f"{path}: there is a mask for {name}, but no such tensor; the file is damaged")
        read[name] = decoded(Lying(name, tensors[name], tensors.get(name + BITS), entry))
    for name, owner in tied.items():
        if not isinstance(owner, str) or owner not in read or name in read:
            raise FileError(f"{path}: {name} is tied to a tensor that is not there, or is there itself; the file is damaged")
    return read | {name: read[owner] for name, owner in tied.items()}


_WRAPPERS = {"module.": "torch.nn.DataParallel(model)", "_orig_mod.": "torch.compile(model)"}
"""What names begin with in a wrapper, and how to make one around a model."""


def _wrapped(file: Collection[str], model: Collection[str]) -> str:
    """The way out where names differ by nothing but the prefix that a wrapper puts before them."""
    for prefix, made in _WRAPPERS.items():
        if {prefix + name for name in model} == set(file):
            return (
                f": its names begin with {prefix!r}, as those of {made.replace('(model)', '')} and its like do; sc.load(path, {made}) "
                "loads the model within"
            )
        if {prefix + name for name in file} == set(model):
            return f": it is of the model within this wrapper; sc.load(path, model.{prefix.removesuffix('.')}) loads that"
    return ""


def _require_same(path: str, read: Mapping[str, Read], state: Mapping[str, Tensor], tied: Mapping[str, str]) -> None:
    """Raise `FileError` at the first difference between what a file holds and what a model expects."""
    # How many batches a normalisation has seen: files from before torch 0.4.1, and of other programs, do not say.
    missing = {name for name in state.keys() - read.keys() if name.rpartition(".")[2] != "num_batches_tracked"}
    missing -= {name for name in missing if tied.get(name, name) in read}
    unexpected = read.keys() - state.keys()
    if missing or unexpected:
        name, problem = (min(missing), "lacks") if missing else (min(unexpected), "has, and the model does not have,")
        raise FileError(
            f"{path} belongs to another model: it {problem} {name} ({len(missing)} tensors are missing, {len(unexpected)} are not "
            f"expected){_wrapped(read.keys(), state.keys())}"
        )
    for name, there in read.items():
        if there.shape != tuple(state[name].shape):
            here = tuple(state[name].shape)
            raise FileError(f"{path} belongs to another model: {name} is {there.shape} in the file and {here} in the model")
        if there.dtype != state[name].dtype:
            raise FileError(
                f"{path}: {name} is {there.dtype} in the file and {state[name].dtype} in the model; "
                f"convert the model first: model.to({there.dtype})"
            )
