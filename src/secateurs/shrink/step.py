"""The record of one shrinking: everything that it takes to do it again on a model as it was before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import isfinite
from typing import Any

from secateurs.types import FileError


@dataclass(frozen=True)
class Rewrite:
    """One number in a call: ``path`` is where it stands, ``given`` what the code writes, ``new`` what it must be.

    ``ordinal`` counts the calls that take sizes within one forward pass of the module, where it matters which of them it is. A split
    whose parts are no longer equal has the path ``("pieces",)``, and the new length of each part. ``told`` says whether a size gave
    the number, so that another one, which only happens to be as large at some size of the input, is left alone.
    """

    ordinal: int | None
    name: str
    path: tuple[int | str, ...]
    given: Any
    new: Any
    told: bool | None = None


@dataclass(frozen=True)
class Factors:
    """A layer that became two, with a middle of width ``rank``; ``sparse``: and a third beside them, of which most is zero."""

    rank: int
    sparse: bool = False


@dataclass(frozen=True)
class Step:
    """One shrinking: everything that it takes to do it again on a model as it was before.

    ``identities`` and ``zeros`` are modules that do nothing any more and were taken out; ``factors`` are layers that became two;
    ``fried`` are linear layers in whose place Fastfood layers are, with their seeds; ``entries`` are those that stay of a list of modules,
    and ``configs`` what the configuration of a module says then: key → [old, new].
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    rewrites: dict[str, list[Rewrite]] = field(default_factory=dict)
    identities: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)
    factors: dict[str, Factors] = field(default_factory=dict)
    entries: dict[str, list[int]] = field(default_factory=dict)
    configs: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    fried: dict[str, int] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """What JSON can hold; lists of kept indices that occur again and again are written once."""
        lists: list[list[int]] = []
        cuts = {name: {str(dim): _place(lists, indices) for dim, indices in by_dim.items()} for name, by_dim in self.cuts.items()}
        told = {**asdict(self), "cuts": cuts, "kept": lists}
        for key in ("factors", "entries", "configs", "fried"):
            if not told[key]:
                del told[key]
        return told

    @staticmethod
    def from_document(document: Any) -> Step:
        """Raises `FileError` where it is not what `to_document` made."""
        try:
            lists = [_ascending(indices) for indices in document["kept"]]
            cuts = {
                str(name): {_natural(int(dim)): lists[_natural(place)] for dim, place in by_dim.items()}
                for name, by_dim in document["cuts"].items()
            }
            rewrites = {str(name): [_rewrite(each) for each in entries] for name, entries in document["rewrites"].items()}
            attributes = {
                str(name): {str(key): [_size(old), _size(new)] for key, (old, new) in changes.items()}
                for name, changes in document["attributes"].items()
            }
            shapes = {str(name): [_natural(size) for size in shape] for name, shape in document["shapes"].items()}
            identities, zeros = ([str(name) for name in document[key]] for key in ("identities", "zeros"))
            factors = {str(name): _factors(entry) for name, entry in document.get("factors", {}).items()}
            entries = {str(name): _ascending(stay) for name, stay in document.get("entries", {}).items()}
            configs = {
                str(name): {str(key): [_said(old), _said(new)] for key, (old, new) in changes.items()}
                for name, changes in document.get("configs", {}).items()
            }
            fried = {str(name): _natural(seed) for name, seed in document.get("fried", {}).items()}
            return Step(shapes, cuts, attributes, rewrites, identities, zeros, factors, entries, configs, fried)
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            raise FileError(f"the record of how the model was shrunk is damaged ({repr(error)[:200]})") from error


def _place(lists: list[list[int]], indices: list[int]) -> int:
    if indices not in lists:
        lists.append(indices)
    return lists.index(indices)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no index")
    return value


def _ascending(indices: Any) -> list[int]:
    """Indices that are kept: each once, in order, so that no list can make a tensor larger."""
    if not isinstance(indices, list) or not indices or any(b <= a for a, b in pairwise(map(_natural, indices))):
        raise ValueError("what is kept is no ascending list of indices")
    return indices


def _size(value: Any) -> Any:
    """Attributes hold whole numbers, sequences of them, or a normalisation's ε."""
    if not all(type(item) in (int, float, type(None)) for item in (value if isinstance(value, list) else [value])):
        raise ValueError(f"{value!r} is no size")
    return value


def _said(value: Any) -> Any:
    """Configurations say whole numbers, and lists of numbers and words, one for each block."""
    if type(value) is not int and not (isinstance(value, list) and all(type(item) in (str, int, float, bool) for item in value)):
        raise ValueError(f"{value!r} counts no blocks")
    return value


def _factors(entry: Any) -> Factors:
    if set(entry) != {"rank", "sparse"} or type(entry["sparse"]) is not bool:
        raise ValueError(f"{entry!r} tells no rank")
    return Factors(_natural(entry["rank"]), entry["sparse"])


def _rewrite(entry: Any) -> Rewrite:
    ordinal, name, given, new = (entry[key] for key in ("ordinal", "name", "given", "new"))
    path = tuple(entry["path"])
    if path == ("pieces",):
        _natural(given)
        if not isinstance(new, list) or sum(map(_natural, new)) > given:
            raise ValueError(f"{new!r} are no pieces of {given}")
    elif isinstance(given, list) and isinstance(new, list):  # a list of indices, from the front or from the end
        if not _is_place(path) or len(new) > len(given) or not all(type(index) is int for index in (*given, *new)):
            raise ValueError(f"{given!r} at {path!r} cannot become {new!r}")
    elif not _is_place(path) or not _is_number(new) or not (given is None or _is_number(given)):
        raise ValueError(f"{given!r} at {path!r} cannot become {new!r}")
    if (told := entry.get("told")) not in (None, True, False):
        raise ValueError(f"{told!r} does not say whether a size gave the number")
    return Rewrite(None if ordinal is None else _natural(ordinal), str(name), path, given, new, told)


def _is_number(value: Any) -> bool:
    """A size, or the scale of an attention."""
    return type(value) is int or (type(value) is float and isfinite(value))


def _is_place(path: tuple[Any, ...]) -> bool:
    """A position or a keyword, then positions within it, or an end of a slice."""
    positions = [type(part) is int and part >= 0 for part in path]
    return (
        bool(path)
        and (positions[0] or type(path[0]) is str)
        and all(position or part in ("start", "stop") for part, position in zip(path[1:], positions[1:], strict=True))
    )
