"""One way to write a file and one way to read it: safetensors with a JSON document, written whole or not at all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from secateurs.coding import file
from secateurs.documents import DEEPEST, nests_too_deep
from secateurs.replacing import replacing
from secateurs.types import FileError, SecateursError

_KEY = "secateurs"
FORMAT = 1

_TORCH = (".pt", ".pth")
"""What files are called that torch.save wrote."""


# ---------------------------------------------------------------- tensors and a document


def write(path: str | Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and a JSON document as one safetensors file; the old file survives whatever goes wrong.

    Raises `WriteError` where the disk or the folder does not let it, `SecateursError` where the format has no place for a tensor.
    """
    _require_storable(tensors)
    plain = {name: tensor.detach().cpu().resolve_conj().resolve_neg().contiguous() for name, tensor in tensors.items()}
    whole = {"format": FORMAT, **document, "checksums": {name: _checksum(tensor) for name, tensor in plain.items()}}
    if nests_too_deep(whole):
        raise SecateursError(f"could not write {path}: lists and dicts nest more than {DEEPEST} deep in what is to be saved")
    text = _sealed(json.dumps(whole))
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata={_KEY: text})


def header_bytes(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> int:
    """How many bytes stand before the tensors in the file that `write` would make, to within eight; where they get smaller, at most."""
    whole = {"format": FORMAT, **document, "checksums": dict.fromkeys(tensors, "0" * 8)}
    header: dict[str, Any] = {"__metadata__": {_KEY: _sealed(json.dumps(whole))}}
    place = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        places = [place, place := place + tensor.numel() * tensor.element_size()]
        header[name] = {"dtype": _name_of(tensor.dtype), "shape": list(tensor.shape), "data_offsets": places}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return 8 + -(-length // 8) * 8


@cache
def _name_of(dtype: torch.dtype) -> str:
    """What safetensors call a dtype."""
    content = save({"": torch.empty(0, dtype=dtype)})
    return json.loads(content[8:].rstrip())[""]["dtype"]


def read(path: str | Path, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and document of a file; the document is empty where another program wrote the file.

    ``verify=False`` reads also what is not what was written, by its checksums. Of torch's own files (``.pt``, ``.pth``) only tensors
    are read, never other objects.

    Raises `FileError` where the file is missing, truncated, corrupted or of a later format.
    """
    if _is_torchs(path):
        return _torch_state(path), {}
    if file.is_compressed(path):
        with file.opened(path, verify) as reader:
            return dict(reader.tensors()), _of_format(path, reader.document)
    with _opened(path) as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    document, checksums = _document(path, metadata, verify)
    if verify and checksums is not None:
        _require_as_written(path, tensors, checksums)
    return tensors, document


def read_document(path: str | Path, verify: bool = True) -> dict[str, Any]:
    """The document alone, as `read` gives it."""
    if _is_torchs(path):
        _torch_state(path)
        return {}
    if file.is_compressed(path):
        with file.opened(path, verify) as reader:
            return _of_format(path, reader.document)
    with _opened(path) as opened:
        metadata = opened.metadata() or {}
    return _document(path, metadata, verify)[0]


def _is_torchs(path: str | Path) -> bool:
    """Whether a file is one of torch.save, by its name, and because safetensors have a JSON object after eight bytes."""
    try:
        with open(path, "rb") as opened:
            return Path(path).suffix in _TORCH and opened.read(9)[8:] != b"{"
    except OSError:
        return False


def _torch_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save(model.state_dict(), path)`` wrote."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles fail in every way that there is
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise FileError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}: {first_line[:200]}): only what "
            "torch.save(model.state_dict(), path) wrote is; whole pickled models run code of their own and are never loaded"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) and isinstance(state[name], Tensor) for name in state):
        inside = (
            f"it has {', '.join(map(repr, list(state)[:5]))}" if isinstance(state, Mapping) else f"it is a {type(state).__name__}"
        )
        raise FileError(
            f"{path} is no state_dict, but {inside}: if one of these is the state_dict, give that one to "
            "model.load_state_dict(torch.load(path, weights_only=True)[...])"
        )
    return dict(state)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as opened:
            yield opened
    except (OSError, SafetensorError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise FileError(f"{path} is no readable safetensors file ({error}): is it complete, and the right file?") from error


def _document(path: str | Path, metadata: Mapping[str, str], verify: bool) -> tuple[dict[str, Any], Any]:
    """The document, and the checksums of the tensors."""
    if _KEY not in metadata:
        return {}, None
    text = metadata[_KEY]
    try:
        document = json.loads(text)
        document["format"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise FileError(f"{path}: its secateurs document is damaged ({type(error).__name__})") from error
    _of_format(path, document)
    if nests_too_deep(document):
        raise FileError(f"{path}: its secateurs document is damaged (it nests more than {DEEPEST} deep)")
    if verify and "checksum" in document and text != _sealed(text[:_UNSEALED] + "}"):
        raise FileError(f"{path}: its secateurs document {_NOT_AS_WRITTEN}")
    document.pop("checksum", None)
    return document, document.pop("checksums", None)


def _of_format(path: str | Path, document: Any) -> dict[str, Any]:
    """A document, if this version can read it."""
    version = document.get("format") if isinstance(document, dict) else None
    if type(version) is not int:
        raise FileError(f"{path}: its secateurs document is damaged (its format is no number)")
    if version != FORMAT:
        raise FileError(f"{path} is of format {str(version)[:20]}; this version reads format {FORMAT}: update secateurs")
    return cast(dict[str, Any], document)


def _require_storable(tensors: Mapping[str, Tensor]) -> None:
    """Raise `SecateursError` for names and kinds of tensors that a safetensors file cannot give back."""
    known: set[torch.dtype] = set()
    for name, tensor in tensors.items():
        if name == "__metadata__" or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise SecateursError(f"a tensor cannot be called {name!r} in a safetensors file; rename it in the model")
        if tensor.layout != torch.strided or tensor.is_quantized:
            what = "quantised" if tensor.is_quantized else str(tensor.layout)
            raise SecateursError(
                f"{name} is {what}, and safetensors files hold plain tensors; make it one first (to_dense, dequantize)"
            )
        if tensor.dtype not in known:
            try:
                save({"": torch.empty(0, dtype=tensor.dtype)})
            except Exception as error:  # which one, depends on the version of safetensors
                raise SecateursError(f"{name} is {tensor.dtype}, which safetensors files cannot hold; convert it first") from error
            known.add(tensor.dtype)


# ---------------------------------------------------------------- checksums

_NOT_AS_WRITTEN = "is not what was written (its checksum differs): the file is damaged; get it again (load takes verify=False)"
_UNSEALED = -len(', "checksum": "00000000"}')


def _sealed(text: str) -> str:
    """A JSON object with the checksum of all that stands before it."""
    return f'{text[:-1]}, "checksum": "{zlib.crc32(text[:-1].encode("utf-8", "surrogatepass")):08x}"}}'


def _checksum(tensor: Tensor) -> str:
    """CRC-32 of a contiguous tensor's bytes."""
    content = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return f"{zlib.crc32(content.numpy().data):08x}"


def _require_as_written(path: str | Path, tensors: Mapping[str, Tensor], checksums: Any) -> None:
    if not isinstance(checksums, dict) or checksums.keys() != tensors.keys():
        raise FileError(f"{path}: its checksums are not those of its tensors; the file is damaged")
    for name, tensor in tensors.items():
        if checksums[name] != _checksum(tensor):
            raise FileError(f"{path}: {name} {_NOT_AS_WRITTEN}")
