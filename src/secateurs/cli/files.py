"""Compressed files on the command line: written, looked into, and turned back."""

from __future__ import annotations

from pathlib import Path

from secateurs.cli.found import factory_named, with_weights
from secateurs.cli.terminal import say
from secateurs.coding import FAST
from secateurs.coding.file import is_compressed
from secateurs.compressing import compress, read_compressed, recode, share_
from secateurs.types import SecateursError

_PLAIN = ".safetensors"


def compress_(source: str, out: Path, *, weights: Path | None = None, bits: int | None = None, fast: bool = False) -> None:
    """Write a model, or a file with weights, in the fewest bytes from which it comes back to the bit, and show what each tensor takes.

    Parameters
    ----------
    source
        A file (.safetensors, or .pt with a state_dict), such as the pruned.safetensors of a run; or a built-in model (lenet_5 …) or
        package.module:factory.
    out
        The file to write, such as small.scz.
    weights
        A file to load into the model, where SOURCE is one.
    bits
        Give each weight of the model 2 to the power of so many values first, by k-means, beside zero. Nothing is trained: see
        `secateurs.share_` for that.
    fast
        Only coders that are read at some 100 MB of float32 a second, as for models of more than 16 million numbers anyway.
    """
    if out.suffix == _PLAIN:
        raise SecateursError(f"{out}: a compressed file does not end in {_PLAIN}; name one that ends in .scz")
    codecs = FAST if fast else None
    if Path(source).is_file():
        if weights is not None:
            raise SecateursError(f"--weights {weights}: {source} is a file, and has weights of its own; give one of them")
        if bits is not None:
            raise SecateursError(
                f"--bits {bits}: which weights may share values is told by their model; name it, with --weights {source}"
            )
        told = recode(source, out, codecs=codecs)
    else:
        model = with_weights(factory_named(source), weights)
        if bits is not None:
            share_(model, bits)
        told = compress(model, out, codecs=codecs)
    say(told)  # type: ignore[arg-type]


def extract(source: Path, out: Path) -> None:
    """Write the tensors of a compressed file, with all that it tells, as a .safetensors file that any program reads.

    Parameters
    ----------
    source
        A compressed file.
    out
        The .safetensors file to write.
    """
    if out.suffix != _PLAIN:
        raise SecateursError(f"{out}: name a file that ends in {_PLAIN}")
    if not source.is_file():
        raise SecateursError(f"{source} is a folder: name the file in it" if source.is_dir() else f"there is no file {source}")
    if not is_compressed(source):
        raise SecateursError(f"{source} is no compressed file: there is nothing to extract")
    say(f"{out}: {recode(source, out):,} bytes")


def show_compressed(path: Path) -> None:
    """What is in a compressed file."""
    say(read_compressed(path))
