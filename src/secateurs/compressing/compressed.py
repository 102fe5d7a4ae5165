"""Models in compressed files, back to the bit; and what each stage and each tensor takes there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from secateurs.coding import FAST, SMALLEST, Codecs, Levels, file
from secateurs.coding.bits import BITS_OF
from secateurs.coding.file import Section
from secateurs.coding.found import levels_in
from secateurs.files import container, load
from secateurs.files.model_file import COMPRESSED, contents_of
from secateurs.given import MODEL_OR_MAKER, PATH, Kind, require
from secateurs.masks.masks import Masks
from secateurs.types import FileError, SecateursError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

Model = TypeVar("Model", bound=nn.Module)

_SMALL = 1 << 24
"""Numbers of a model that the slowest coders take a quarter of a minute for."""

CODECS = Kind("what coding.FAST or coding.SMALLEST is", lambda value: isinstance(value, Codecs))
LEVELS = Kind(
    "levels by the names of their weights, for example Shared.levels",
    lambda value: isinstance(value, Mapping) and all(isinstance(each, Levels) for each in value.values()),
)

_WIDE = 120
_FOR_WIDE = ("shape", "pruned", "shared")
"""Columns that a narrow terminal does without; the sums below the table are there."""


@dataclass(frozen=True)
class CompressedTensor:
    """What a tensor takes, in bytes: as it is; without its zeros; with so few values that a number says which; coded, as in the file.

    Positions are those of a bitmap, or of relative indices of 4 bits where these take less. Without few values, ``shared`` is ``pruned``.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    values: int | None
    dense: int
    pruned: int
    shared: int
    coded: int
    codec: str


@dataclass(frozen=True)
class Compressed:
    """What is in a compressed file: printed, a table of its tensors and of the stages. ``bytes`` is the size of the file, all counted."""

    path: Path
    bytes: int
    tensors: tuple[CompressedTensor, ...]
    document: Mapping[str, Any]

    @property
    def dense(self) -> int:
        """Bytes of the tensors as they are, in the model's dtypes."""
        return sum(each.dense for each in self.tensors)

    @property
    def pruned(self) -> int:
        """Bytes of what is not zero, and of where it is."""
        return sum(each.pruned for each in self.tensors)

    @property
    def shared(self) -> int:
        """Bytes of which value each of these has, of the values, and of the places."""
        return sum(each.shared for each in self.tensors)

    @property
    def coded(self) -> int:
        """Bytes of the tensors in the file."""
        return sum(each.coded for each in self.tensors)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
        rows = [_row(each) for each in self.tensors]
        for heading in rows[0] if rows else ():
            if options.max_width < _WIDE and heading in _FOR_WIDE:
                continue
            text = heading in ("tensor", "shape", "coder")
            table.add_column(heading, justify="left" if text else "right", no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(*(Text(cell) for heading, cell in row.items() if options.max_width >= _WIDE or heading not in _FOR_WIDE))
        yield table
        rest = self.bytes - self.coded
        compared = f"{_times(self.dense, self.bytes)} smaller" if self.bytes <= self.dense else "larger"
        yield Text(
            f"{self.path}: {self.bytes:,} bytes, {compared} than {self.dense:,} dense; "
            f"pruned {self.pruned:,}, shared {self.shared:,}, coded {self.coded:,}, index and checksums {rest:,}"
        )


def _row(tensor: CompressedTensor) -> dict[str, str]:
    """A tensor's cells by their headings."""
    return {
        "tensor": tensor.name,
        "shape": "x".join(map(str, tensor.shape)) or "1",
        "sparsity": f"{tensor.sparsity:.1%}",
        "values": "" if tensor.values is None else f"{tensor.values:,}",
        "dense": f"{tensor.dense:,}",
        "pruned": f"{tensor.pruned:,}",
        "shared": f"{tensor.shared:,}",
        "coded": f"{tensor.coded:,}",
        "times": _times(tensor.dense, tensor.coded),
        "coder": tensor.codec,
    }


def _times(before: int, after: int) -> str:
    return f"{before / after:.1f}x" if after else ""


def compress(
    model: nn.Module,
    path: str | Path,
    masks: Masks | None = None,
    *,
    levels: Mapping[str, Levels] = MappingProxyType({}),
    codecs: Codecs | None = None,
    metric: Mapping[str, float] | None = None,
    seed: int | None = None,
) -> Compressed:
    """Write a model in the fewest bytes from which it comes back to the bit; printed, what is returned tells where they are.

    Tensors with few values (of `share_`, or quantised by any program) are found and coded by their values; zeros cost next to nothing
    where they are many; floats of any values lose only what repeats itself in their exponents. Masks, plan, metric, seed and what
    `shrink_` did are in the file as `save` has them, tied weights once, and `load` reads it as it does a ``.safetensors``. Of a Hugging
    Face model, a path without a suffix is a folder. ``levels`` are those of quantised weights by their names in the model, where they
    are known (``Shared.levels``). ``codecs`` is what is tried: `coding.SMALLEST`, of which a million numbers are read in a second, or
    `coding.FAST`, some 100 MB a second; by default the first for models of up to 16 million numbers, and the second for larger ones.

    Raises `SecateursError` for a model without values or with tensors that have no name in the format, for masks of another model, and
    for levels that are not a weight's; `WriteError` where the file cannot be written: the old one stays.

    >>> import tempfile, torch
    >>> model = nn.Linear(64, 64)
    >>> _ = model.weight.data.mul_(4).round_().div_(4).add_(0.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     told = compress(model, f"{folder}/small.scz")
    ...     again = decompress(f"{folder}/small.scz", lambda: nn.Linear(64, 64))
    >>> torch.equal(again.weight, model.weight), told.bytes < told.dense / 8
    (True, True)
    """
    contents = contents_of("compress", model, path, masks, metric=metric, seed=seed)
    require("compress", "levels", levels, LEVELS)
    if codecs is not None:
        require("compress", "codecs", codecs, CODECS)
    unknown = sorted(levels.keys() - contents.stored.keys() - contents.document["tied"].keys())
    if unknown:
        raise SecateursError(
            f"compress: there are levels of {unknown[0]}, and the model has no such tensor; give them by its names"
        )
    document = {"format": container.FORMAT, **contents.document}

    return contents.put(lambda target: _written(target, contents.stored, document, codecs, levels), COMPRESSED)


def _written(
    target: Path,
    tensors: Mapping[str, Tensor],
    document: Mapping[str, Any],
    codecs: Codecs | None,
    levels: Mapping[str, Levels] = MappingProxyType({}),
) -> Compressed:
    told: list[CompressedTensor] = []
    if codecs is None:
        codecs = SMALLEST if sum(tensor.numel() for tensor in tensors.values()) <= _SMALL else FAST

    def one(section: Section, tensor: Tensor, found: Levels | None) -> None:
        told.append(_tensor(section, tensor, found))
        minus = int(((tensor == 0) & torch.signbit(tensor)).sum()) if tensor.dtype in BITS_OF else 0
        if minus > tensor.numel() / 100:
            warnings.warn(
                f"{section.name} has {minus:,} minus zeros, as a product with a mask leaves them; they come back, and cost bytes: "
                "add_(0.0) makes them zeros",
                UserWarning,
                stacklevel=2,
            )

    file.write(target, tensors, document, codecs, levels, one)
    return Compressed(target, target.stat().st_size, tuple(told), document)


def decompress(path: str | Path, model: Model | Callable[[], Model], *, verify: bool = True) -> Model:
    """Load a compressed file into a model, or into one that a class or function makes, as `load` does; returns the model.

    Raises `FileError` where the file is no compressed one, is damaged, or belongs to another model; and what `load` raises.
    """
    require("decompress(path, model)", "path", path, PATH)
    if not isinstance(model, type):
        require("decompress(path, model)", "model", model, MODEL_OR_MAKER)
    within = Path(path) / COMPRESSED if Path(path).is_dir() else Path(path)
    if within.exists() and not file.is_compressed(within):
        raise FileError(f"{path} is no compressed file; load(path, model) reads safetensors and the weights in .pt files")
    return load(path, model, verify=verify)


def read_compressed(path: str | Path, *, verify: bool = True) -> Compressed:
    """What is in a compressed file: its tensors are decoded one by one, and what each takes is told."""
    require("read_compressed", "path", path, PATH)
    with file.opened(path, verify) as reader:
        tensors = tuple(_tensor(section, *_with_levels(*reader.decoded(name))) for name, section in reader.sections.items())
        return Compressed(Path(path), reader.bytes, tensors, reader.document)


def _with_levels(tensor: Tensor, levels: Levels | None) -> tuple[Tensor, Levels | None]:
    """The levels that a tensor is of, as when it was written, though it may be coded otherwise."""
    small_floats = tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1  # are whole numbers to the coders
    return tensor, levels if levels is not None else levels_in(tensor.view(torch.uint8) if small_floats else tensor)


def recode(source: str | Path, target: str | Path, *, codecs: Codecs | None = None) -> Compressed | int:
    """Write a ``.safetensors`` file as a compressed one, or, where `target` ends in ``.safetensors``, a compressed one as that.

    No model is needed: tensors, masks, plan and all else that the document tells go from one to the other as they are. Returns what is in
    the compressed file, or the bytes of the other.

    Raises `FileError` where the source cannot be read, `WriteError` where the target cannot be written.
    """
    require("recode(source, target)", "source", source, PATH)
    require("recode(source, target)", "target", target, PATH)
    if codecs is not None:
        require("recode", "codecs", codecs, CODECS)
    tensors, document = container.read(source)
    document = {"format": container.FORMAT, **document}
    if Path(target).suffix == ".safetensors":
        container.write(target, tensors, document)
        return Path(target).stat().st_size
    return _written(Path(target), tensors, document, codecs)


# ---------------------------------------------------------------- what it takes


def _tensor(section: Section, tensor: Tensor, levels: Levels | None) -> CompressedTensor:
    width = section.dtype.itemsize
    numbers = levels.numbers if levels is not None else tensor.view(torch.uint8) if width == 1 else tensor
    there = numbers.reshape(-1) != 0
    kept = int(there.sum())
    places = _bytes_of_places(there, kept)
    pruned = min(section.numbers * width, kept * width + places)
    values, shared = None, pruned
    if levels is not None:
        values = (
            int(numbers.unique().numel()) if levels.runs == 1 else (levels.table.shape[1] if levels.table is not None else None)
        )
        largest = int(numbers.max()) - int(numbers.min()) + 1 if len(there) else 1
        book = (levels.table.numel() if levels.table is not None else levels.runs if levels.scale is not None else 0) * width
        shared = min(pruned, ceil(kept * ceil(log2(max(2, largest))) / 8) + places + book)
    sparsity = 1 - kept / section.numbers if section.numbers else 0.0
    return CompressedTensor(
        section.name,
        section.shape,
        sparsity,
        values,
        section.numbers * width,
        pruned,
        shared,
        section.length,
        _codec(section.codec),
    )


def _bytes_of_places(there: Tensor, kept: int) -> int:
    """Bytes of a bitmap, of 4-bit relative indices with their fillers, or of nothing where all are there."""
    count = len(there)
    if kept == count:
        return 0
    gaps = there.nonzero().reshape(-1).diff(prepend=there.new_full((1,), -1, dtype=torch.int64))
    return min(ceil(count / 8), ceil(int(((gaps + 15) // 16).sum()) / 2))


def _codec(document: Mapping[str, Any]) -> str:
    """How a tensor is coded, in a few words."""
    kind = document.get("is")
    if kind != "levels":
        return str(kind)
    positions = document.get("positions")
    return f"{positions['is']} + {document['numbers']}" if positions else str(document["numbers"])
