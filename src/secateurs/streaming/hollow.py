"""A model without weights, made from its configuration, into which they are loaded module by module and freed again."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import parameters_in
from secateurs.streaming.shards import FLOATS, Shards
from secateurs.types import FileError

_IN_MEMORY = "load it in memory (from_pretrained), prune it there, and save it (save_pretrained)"


class Hollow:
    """A model whose weights are zeros that take no memory, until they are read from the shards, as float32."""

    def __init__(self, folder: Path) -> None:
        self.shards = Shards.of(folder)
        self.model = _made(folder).eval()
        names = parameters_in(self.model, again=True)
        self.parameters = parameters_in(self.model)
        self.keys = _keys(folder, self.model, self.shards, names, self.parameters)
        self._fill_buffers(folder)

    def _fill_buffers(self, folder: Path) -> None:
        for name, buffer in self.model.named_buffers():
            if name in self.shards.entries and self.shards.entries[name].dtype in FLOATS:
                buffer.copy_(self.shards.read(name))
            elif name in self.model.state_dict():
                raise FileError(f"{folder} holds no {name} that could be read: {_IN_MEMORY}")

    def inside(self, module: str) -> list[str]:
        """The parameters in a module, also those that others share and are called by."""
        found = {id(parameter) for parameter in self.model.get_submodule(module).parameters()}
        return [name for name, parameter in self.parameters.items() if id(parameter) in found]

    def shared(self, module: str) -> str | None:
        """A parameter in a module that is held outside it too, by its name there."""
        found = {id(parameter) for parameter in self.model.get_submodule(module).parameters()}
        everywhere = parameters_in(self.model, again=True).items()
        return next((name for name, held in everywhere if id(held) in found and not name.startswith(f"{module}.")), None)

    def load_(self, names: Iterable[str], folder: Path | None = None) -> None:
        """Read parameters from the shards, or from those of another folder with the same files."""
        for name in names:
            self.parameters[name].data = self.shards.read(self.keys[name], folder).float()

    def free_(self, names: Iterable[str]) -> None:
        for name in names:
            self.parameters[name].data = _nothing(self.parameters[name])

    def round_(self, name: str) -> None:
        """What the weight will be once it is written."""
        weight = self.parameters[name]
        weight.data = weight.data.to(FLOATS[self.shards.entries[self.keys[name]].dtype]).float()


def _nothing(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float32).expand(like.shape)


def _made(folder: Path) -> Any:
    """The class that a folder's configuration names, with weights that take no memory."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise FileError("a Hugging Face folder needs transformers: pip install transformers") from error
    path = folder / "config.json"
    try:
        said = json.loads(path.read_bytes())
        if said.get("quantization_config"):
            raise FileError(
                f"{folder}: its weights are quantised ({path.name} has a quantization_config): prune the model it was made of"
            )
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except FileError:
        raise
    except (OSError, ValueError, KeyError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise FileError(f"{path} is no configuration that transformers can read: {first}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise FileError(f"{folder} is an encoder with a decoder, of which no block runs by itself alone: {_IN_MEMORY}")
    kind = getattr(transformers, (getattr(config, "architectures", None) or [""])[0] or "AutoModelForCausalLM", None)
    if kind is None or not isinstance(kind, type):
        raise FileError(f"{path} names {config.architectures[0]}, which transformers {transformers.__version__} does not have")
    with _without_weights():
        model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    _hollow_(model)
    return model


@contextmanager
def _without_weights() -> Iterator[None]:
    """Modules that are made get parameters on the meta device, which initialising does not touch; buffers are real."""
    before, default = nn.Module.register_parameter, torch.get_default_dtype()

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        before(self, name, param)
        if param is not None and not param.is_meta:
            self._parameters[name] = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        nn.Module.register_parameter = before  # type: ignore[method-assign]
        torch.set_default_dtype(default)


def _hollow_(model: nn.Module) -> None:
    """Zeros that take no memory for every parameter; those that are tied stay so."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                hollow = made.setdefault(id(parameter), nn.Parameter(_nothing(parameter), requires_grad=True))
                module._parameters[name] = hollow


def _keys(
    folder: Path, model: nn.Module, shards: Shards, names: dict[str, nn.Parameter], once: dict[str, nn.Parameter]
) -> dict[str, str]:
    """Parameter → what it is called in the shards: as in the model, or as in the model without its head."""
    base = getattr(model, "base_model_prefix", "") or ""
    also: dict[int, list[str]] = {}
    for name, parameter in names.items():
        also.setdefault(id(parameter), []).append(name)
    found: dict[str, str] = {}
    for name, parameter in once.items():
        own = also[id(parameter)]
        key = next((key for each in own for key in (each, each.removeprefix(f"{base}.")) if key in shards.entries), None)
        if key is None:
            raise FileError(
                f"{folder} holds no {name}: its tensors have other names than {type(model).__name__}'s, as where transformers convert "
                f"them while loading: {_IN_MEMORY}"
            )
        entry = shards.entries[key]
        if entry.shape != tuple(parameter.shape):
            raise FileError(
                f"{folder}: {key} is {entry.shape}, but {type(model).__name__} wants {tuple(parameter.shape)}: {_IN_MEMORY}"
            )
        if entry.dtype not in FLOATS:
            raise FileError(f"{folder}: {key} is {entry.dtype}, a quantised weight: prune the model that it was made of")
        found[name] = key
    return found
