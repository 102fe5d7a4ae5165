"""The record of one shrinking: everything that it takes to do it again on a model as it was before."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from secateurs.types import FileError


@dataclass(frozen=True)
class Rewrite:
    """One number in a call: ``path`` is where it stands, ``given`` what the code writes, ``new`` what it must be.

    ``ordinal`` counts the calls that take sizes within one forward pass of the module, where it matters which of them it is. A split
    whose parts are no longer equal has the path ``("pieces",)``, and the new length of each part.
    """

    ordinal: int | None
    name: str
    path: tuple[int | str, ...]
    given: Any
    new: Any


@dataclass(frozen=True)
class Step:
    """One shrinking: everything that it takes to do it again on a model as it was before.

    ``identities`` and ``zeros`` are modules that do nothing any more and were taken out.
    """

    shapes: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    rewrites: dict[str, list[Rewrite]] = field(default_factory=dict)
    identities: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, Any]:
        """What JSON can hold; lists of kept indices that occur again and again are written once."""
        lists: list[list[int]] = []
        cuts = {name: {str(dim): _place(lists, indices) for dim, indices in by_dim.items()} for name, by_dim in self.cuts.items()}
        return {**asdict(self), "cuts": cuts, "kept": lists}

    @staticmethod
    def from_document(document: Any) -> Step:
        """Raises `FileError` where it is not what `to_document` made."""
        try:
            lists = [[_natural(index) for index in indices] for indices in document["kept"]]
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
            gone = [[str(name) for name in document[key]] for key in ("identities", "zeros")]
            return Step(shapes, cuts, attributes, rewrites, *gone)
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            raise FileError(f"the record of how the model was shrunk is damaged ({error!r})") from error


def _place(lists: list[list[int]], indices: list[int]) -> int:
    if indices not in lists:
        lists.append(indices)
    return lists.index(indices)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no index")
    return value


def _size(value: Any) -> Any:
    """Attributes hold whole numbers, sequences of them, or a normalisation's ε."""
    if isinstance(value, list):
        return [_size(item) for item in value]
    if type(value) not in (int, float, type(None)):
        raise ValueError(f"{value!r} is no size")
    return value


def _rewrite(entry: Any) -> Rewrite:
    path = tuple(entry["path"])
    if not all(isinstance(part, (int, str)) for part in path):
        raise ValueError(f"{path!r} is no path")
    ordinal = entry["ordinal"]
    return Rewrite(None if ordinal is None else _natural(ordinal), str(entry["name"]), path, entry["given"], entry["new"])
