"""A network with all that is decided about it: a call for each layer, and a place for each array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from secateurs.firmware.arena import Arena, Step, arena_of, step_of
from secateurs.firmware.call import Call
from secateurs.firmware.error import FirmwareError
from secateurs.integers.layers import Array, Layer, Network, View

_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """auto break case char const continue default do double else enum extern float for goto if inline int long register restrict
        return short signed sizeof static struct switch typedef union unsigned void volatile while main""",
    )
)
_FILES = ("main", "start")
"""Names of the C files that are there for each network; some systems do not tell capitals apart."""
TYPES = {"int8": "int8_t", "int16": "int16_t", "float32": "float"}


@dataclass(frozen=True)
class Program:
    """A network as C would run it: ``calls`` one for each layer, in the order of the network; ``arena`` tells in which order they run, and
    ``moments`` for which steps it was planned.

    ``name`` begins whatever the C code shows: an identifier.
    """

    name: str
    network: Network
    calls: tuple[Call, ...]
    arena: Arena
    moments: tuple[Step, ...] = ()

    @property
    def steps(self) -> tuple[Call, ...]:
        """The calls in the order in which they run, views left out."""
        return tuple(self.calls[number] for number in self.arena.order if self.calls[number].statement)

    @property
    def constants(self) -> int:
        """Bytes of weights and whatever else kernels read from flash; code comes on top."""
        return sum(call.flash for call in self.calls)

    def pointer(self, array: Array) -> str:
        """C for where an array lies, in the arena that is called ``arena``."""
        return f"({TYPES[array.kind]} *)(void *)(arena + {self.arena.places[array.name].offset})"

    def statement(self, call: Call) -> str:
        """The C of a call, its arrays in their places."""
        scratch = self.arena.scratch.get(call.layer.name)
        names = {"scratch": "(void *)arena" if scratch is None else f"(void *)(arena + {scratch.offset})"}
        for name, array in arrays_of(call.layer):
            names[name] = "0" if array is None else self.pointer(array)
        return call.statement.format(**names)


def arrays_of(layer: Layer) -> list[tuple[str, Array | None]]:
    """The arrays of a layer by the names of its fields; those of a tuple have a number behind it."""
    found: list[tuple[str, Array | None]] = []
    for each in fields(layer):
        part = getattr(layer, each.name)
        if isinstance(part, Array):
            found.append((each.name, part))
        elif isinstance(part, tuple) and each.name in ("parts", "start", "last"):
            found += [(f"{each.name}_{place}", array) for place, array in enumerate(part) if not isinstance(array, int)]
    return found


def planned(network: Network, calls: Sequence[Call], name: str) -> Program:
    """The calls of a network, one for each of its layers, placed in the smallest arena that is found.

    Raises `FirmwareError` where the name is no identifier of C.
    """
    return Program(
        identifier(name), network, tuple(calls), arena_of(network, calls), tuple(step_of(call.layer, calls) for call in calls)
    )


def view_call(layer: View) -> Call:
    """No code at all: the numbers are where they are."""
    return Call(layer, (), (), "", label="a view")


def identifier(name: str) -> str:
    """A name, where C can have it.

    Raises `FirmwareError` where it cannot; the message has one that would do.

    >>> identifier("kws")
    'kws'
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", name) and _is_free(name):
        return name
    would = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:36]
    would = would if would[:1].isalpha() and _is_free(would) else f"net_{would}".rstrip("_")
    raise FirmwareError(
        f"name={name!r} cannot begin names in C: letters, digits and underscores, a letter first, no word of C, and "
        f"neither main nor start, whose files are in the folder; {would!r} would do"
    )


def _is_free(name: str) -> bool:
    """Whether neither C, nor kernels, nor files of ours are called so."""
    return name not in _KEYWORDS and not name.startswith("sec_") and name.lower() not in _FILES
