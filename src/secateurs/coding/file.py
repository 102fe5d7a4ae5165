"""The .scz file: an index, and each tensor in few bytes behind it; docs/compressed_format.md says what every byte means."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import Tensor

from secateurs.coding.fields import field
from secateurs.coding.levels import Levels
from secateurs.coding.tensors import DTYPES, NAMES, Codecs, decode, encode, levels_of
from secateurs.documents import DEEPEST, nests_too_deep
from secateurs.progress import track
from secateurs.replacing import replacing
from secateurs.types import FileError, SecateursError

MAGIC = b"\x89SCZ\r\n\x1a\n"
VERSION = 1

NUMBERS_A_BYTE = 2048
"""A file has at most so many numbers for each of its bytes: how large it gets in memory is known from its length, before any is taken."""

_HEAD = struct.Struct("<8sIIII")
"""Magic, version, bytes of the deflated index, of the index, and the checksum of the deflated index and of these three."""

_LARGEST_INDEX = 1 << 26
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class Section:
    """A tensor in a file: how it is coded, and where."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    codec: Mapping[str, Any]
    length: int
    start: int = 0

    @property
    def numbers(self) -> int:
        """How many numbers the tensor has."""
        return torch.Size(self.shape).numel()

    def document(self) -> dict[str, Any]:
        """What the index says."""
        return {
            "name": self.name,
            "dtype": NAMES[self.dtype],
            "shape": list(self.shape),
            "bytes": self.length,
            "codec": dict(self.codec),
        }


# ---------------------------------------------------------------- write


def write(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    document: Mapping[str, Any],
    codecs: Codecs | None = None,
    levels: Mapping[str, Levels] = MappingProxyType({}),
    told: Callable[[Section, Tensor, Levels | None], None] = lambda section, tensor, levels: None,
) -> None:
    """Write tensors and a JSON document as one file, whole or not at all.

    `levels` of tensors of which they are known already; `told` is called with each tensor once it is coded, and with its levels. One
    tensor after the other is coded and checked to come back to the bit: no more than one is in memory beside the model.

    Raises `WriteError` where the disk or the folder does not let it, `SecateursError` where the format has no place for a tensor.
    """
    with replacing(path) as temporary, TemporaryFile(dir=temporary.parent) as spool:
        sections, start = [], 0
        for name, tensor in track(tensors.items(), "compressing", len(tensors)):
            plain = _plain(name, tensor)
            coded = encode(name, plain, codecs, levels.get(name))
            spool.write(coded.payload + _CHECKSUM.pack(zlib.crc32(coded.payload)))
            sections.append(Section(name, plain.dtype, tuple(plain.shape), coded.document, len(coded.payload), start))
            told(sections[-1], plain, coded.levels)
            start += len(coded.payload) + _CHECKSUM.size
        head, padding = _filled(document, sections, -(-sum(each.numbers for each in sections) // NUMBERS_A_BYTE) - start)
        spool.seek(0)
        with open(temporary, "wb") as out:
            out.write(head)
            while piece := spool.read(1 << 20):
                out.write(piece)
            out.write(bytes(padding))


def _plain(name: str, tensor: Tensor) -> Tensor:
    """The tensor's values in row-major order on the CPU."""
    if tensor.is_meta:
        raise SecateursError(f"{name} is on the meta device and has no values to compress")
    if tensor.layout != torch.strided or tensor.is_quantized:
        what = "quantised" if tensor.is_quantized else str(tensor.layout)
        raise SecateursError(f"{name} is {what}, and files hold plain tensors; make it one first (to_dense, dequantize)")
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _head(document: Mapping[str, Any], sections: list[Section], padding: int) -> bytes:
    index = {"document": document, "tensors": [each.document() for each in sections], "padding": padding}
    if nests_too_deep(index):
        raise SecateursError(f"lists and dicts nest more than {DEEPEST} deep in what is to be saved")
    text = json.dumps(index, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(text) > _LARGEST_INDEX:
        raise SecateursError(
            f"the names and the plan take {len(text):,} bytes, and at most {_LARGEST_INDEX:,} have a place: compress without the plan "
            "(no masks=), or the model in parts"
        )
    packed = zlib.compress(text, 9)
    return _HEAD.pack(MAGIC, VERSION, len(packed), len(text), _checksum(len(packed), len(text), packed)) + packed


def _filled(document: Mapping[str, Any], sections: list[Section], needed: int) -> tuple[bytes, int]:
    """The head, and how many zeros bring the file to what its numbers need: a head that tells of more may be shorter once it is packed."""
    head, padding = _head(document, sections, 0), 0
    while needed - len(head) > padding:
        padding = needed - len(head)
        head = _head(document, sections, padding)
    return head, padding


def _checksum(packed: int, size: int, index: bytes) -> int:
    return zlib.crc32(index, zlib.crc32(struct.pack("<III", VERSION, packed, size)))


# ---------------------------------------------------------------- read


def is_compressed(path: str | Path) -> bool:
    """Whether a file says of itself that it is one of these."""
    try:
        with open(path, "rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class Reader:
    """An open file: its document, and its tensors one by one, each read and decoded when it is asked for.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write(f"{folder}/small.scz", {"w": torch.eye(64)}, {"model": "mine"})
    ...     with opened(f"{folder}/small.scz") as reader:
    ...         reader.document, torch.equal(reader.tensor("w"), torch.eye(64))
    ({'model': 'mine'}, True)
    """

    def __init__(self, path: str | Path, file: IO[bytes], verify: bool = True) -> None:
        self.path, self._file, self._verify = str(path), file, verify
        self.bytes = os.fstat(file.fileno()).st_size
        self.index_bytes, index = self._index()
        document = field(index, "document", dict)
        self.document: dict[str, Any] = document
        self.padding: int = field(index, "padding", int, 0)
        self.sections = {each.name: each for each in self._sections(field(index, "tensors", list))}
        self._require_whole()

    def tensor(self, name: str) -> Tensor:
        """A tensor's values; raises `FileError` where they are not what was written."""
        one = self.sections[name]
        return self._told(lambda: decode(name, one.codec, self._payload(one), one.shape, one.dtype))

    def decoded(self, name: str) -> tuple[Tensor, Levels | None]:
        """A tensor's values, and its levels where it is coded by them."""
        one = self.sections[name]
        levels = self._told(lambda: levels_of(name, one.codec, self._payload(one), one.shape, one.dtype))
        return self.tensor(name) if levels is None else levels.values(), levels

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors, in the order in which they lie there."""
        for name in self.sections:
            yield name, self.tensor(name)

    def _told(self, found: Any) -> Any:
        try:
            return found()
        except FileError as error:
            raise FileError(f"{self.path}: {error}") from error

    def _payload(self, section: Section) -> memoryview:
        self._file.seek(section.start)
        data = self._file.read(section.length + _CHECKSUM.size)
        payload = memoryview(data)[: section.length]
        if len(data) < section.length + _CHECKSUM.size:
            raise FileError(f"{section.name} is cut off; the file is damaged")
        if self._verify and _CHECKSUM.unpack(data[section.length :])[0] != zlib.crc32(payload):
            raise FileError(
                f"{section.name} is not what was written (its checksum differs): the file is damaged; get it again (or read it with "
                "verify=False)"
            )
        return payload

    def _index(self) -> tuple[int, Any]:
        head = self._file.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(MAGIC):
            raise FileError(f"{self.path} is no compressed model, or it is cut off: its first bytes are {head[:8]!r}")
        _, version, packed, size, checksum = _HEAD.unpack(head)
        if version != VERSION:
            raise FileError(f"{self.path} is of version {version}; this version reads {VERSION}: update secateurs")
        if packed > self.bytes - _HEAD.size or size > _LARGEST_INDEX:
            raise FileError(
                f"{self.path}: its index has {packed:,} bytes, {size:,} unpacked, and the file {self.bytes:,}; at most {_LARGEST_INDEX:,} "
                "have a place, and the file is damaged or cut off"
            )
        data = self._file.read(packed)
        if self._verify and checksum != _checksum(packed, size, data):
            raise FileError(
                f"{self.path}: its index is not what was written (its checksum differs): the file is damaged; get it again"
            )
        return _HEAD.size + packed, self._parsed(data, size)

    def _parsed(self, data: bytes, size: int) -> Any:
        inflater = zlib.decompressobj()
        try:
            text = inflater.decompress(data, size + 1)
            index = json.loads(text.decode("utf-8", "surrogatepass")) if len(text) == size and inflater.eof else None
        except (zlib.error, ValueError, RecursionError) as error:
            raise FileError(f"{self.path}: its index is damaged ({type(error).__name__})") from error
        if not isinstance(index, dict) or inflater.unused_data or nests_too_deep(index):
            raise FileError(f"{self.path}: its index is damaged")
        return index

    def _sections(self, told: list[Any]) -> Iterator[Section]:
        start, seen = self.index_bytes, set()
        for entry in told:
            try:
                section = _section(entry, start)
            except FileError as error:
                raise FileError(f"{self.path}: {error}") from error
            if section.name in seen:
                raise FileError(f"{self.path}: {section.name} is there twice; the file is damaged")
            seen.add(section.name)
            yield section
            start += section.length + _CHECKSUM.size

    def _require_whole(self) -> None:
        """Raise `FileError` where the file is longer or shorter than told, or would take more memory than its length lets it."""
        end = self.index_bytes + self.padding + sum(each.length + _CHECKSUM.size for each in self.sections.values())
        if end != self.bytes:
            raise FileError(f"{self.path} has {self.bytes:,} bytes, and its index tells of {end:,}: it is cut off, or damaged")
        self._file.seek(end - self.padding)
        if self._verify and self._file.read(self.padding).strip(b"\0"):
            raise FileError(f"{self.path}: what fills it up is not zeros; the file is damaged")
        numbers = sum(each.numbers for each in self.sections.values())
        if numbers > NUMBERS_A_BYTE * self.bytes:
            raise FileError(
                f"{self.path}: its index tells of {numbers:,} numbers, and a file of {self.bytes:,} bytes has at most "
                f"{NUMBERS_A_BYTE * self.bytes:,} ({NUMBERS_A_BYTE} a byte); nothing was read"
            )


def _section(entry: Any, start: int) -> Section:
    name, dtype = field(entry, "name", str), field(entry, "dtype", str)
    shape, codec = field(entry, "shape", list), field(entry, "codec", dict)
    if dtype not in DTYPES:
        raise FileError(f"{name[:80]} is {dtype[:40]}, which this version does not know: update secateurs, or the file is damaged")
    count = 1
    for size in shape if len(shape) <= 64 else [-1]:
        if type(size) is not int or not 0 <= size < 1 << 62 or count * max(size, 1) >= 1 << 62:
            raise FileError(f"{name[:80]}: no tensor has the shape {str(shape)[:80]}; the file is damaged")
        count *= max(size, 1)
    return Section(name, DTYPES[dtype], tuple(shape), codec, field(entry, "bytes", int, 0), start)


@contextmanager
def opened(path: str | Path, verify: bool = True) -> Iterator[Reader]:
    """A file to read from, closed at the end; raises `FileError` where it is missing, damaged, or of a later version."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    with file:
        yield Reader(path, file, verify)


def read(path: str | Path, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the document of a file; ``verify=False`` reads also what its checksums say is damaged, as far as it can be."""
    with opened(path, verify) as reader:
        return dict(reader.tensors()), reader.document
