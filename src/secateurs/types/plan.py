"""How many units each site keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Protocol

from secateurs.types.choice import Scores
from secateurs.types.errors import PlanError
from secateurs.types.extents import Extents, Product
from secateurs.types.units import Sites


@dataclass(frozen=True)
class Share:
    """One site's part of a plan: how many of its units stay, and what one unit holds of each parameter.

    ``bits``, where it is given, is what each number of these parameters is to take.
    """

    units: int
    kept: int
    elements: Mapping[str, int]
    bits: int | None = None

    @property
    def sparsity(self) -> float:
        return 1 - self.kept / self.units


@dataclass(frozen=True)
class Plan(Mapping[str, int]):
    """Site name → whole number of units kept; JSON in and out. It can be called as an `Allocator`, and then is what it says.

    >>> plan = Plan({"fc1": Share(units=10, kept=3, elements={"fc1.weight": 1})})
    >>> plan["fc1"], round(plan.sparsity, 3)
    (3, 0.7)
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    shares: Mapping[str, Share]
    promised: Mapping[str, float] = field(default_factory=dict)
    extents: Extents = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.shares[name].kept

    def __call__(self, sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan:
        """Itself: whoever prunes compares it with the sites."""
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(self.shares)

    def __len__(self) -> int:
        return len(self.shares)

    @property
    def sparsity(self) -> float:
        """Fraction of the elements of all sites that the plan removes."""
        if self.extents:
            names = {name for share in self.shares.values() for name in share.elements}
            whole = sum(self.size(name, whole=True) for name in names)
            return 1 - sum(self.size(name) for name in names) / whole if whole else 0.0
        sizes = [(share.units, share.kept, sum(share.elements.values())) for share in self.shares.values()]
        total = sum(units * size for units, _, size in sizes)
        return 1 - sum(kept * size for _, kept, size in sizes) / total if total else 0.0

    def size(self, name: str, whole: bool = False) -> int:
        """What the plan leaves of a thing in ``extents``; ``whole=True``: what there was before."""
        counts = {site: share.units if whole else share.kept for site, share in self.shares.items()}
        return sum(
            prod(sum(number * prod(counts[site] for site in sites) for number, sites in dim) for dim in product)
            for product in self.extents[name]
        )

    def removed(self, parameter: str) -> int:
        """How many elements of one parameter the plan removes."""
        if parameter in self.extents:
            return self.size(parameter, whole=True) - self.size(parameter)
        shares = [share for share in self.shares.values() if parameter in share.elements]
        return sum((share.units - share.kept) * share.elements[parameter] for share in shares)

    def bits_of(self, parameter: str) -> int | None:
        """Bits that a number of a parameter takes: the most that a site in which it lies gives it, ``None`` where none says anything."""
        return max((share.bits for share in self.shares.values() if share.bits and parameter in share.elements), default=None)

    def with_counts(self, counts: Mapping[str, int]) -> Plan:
        """The plan that keeps so many units instead, and promises nothing; sites that are not named keep what they have."""
        shares = {name: replace(share, kept=counts.get(name, share.kept)) for name, share in self.shares.items()}
        return Plan(shares, extents=self.extents)

    def to_json(self) -> str:
        shares = {name: _entry(share) for name, share in self.shares.items()}
        document = {"shares": shares, "promised": dict(self.promised)}
        return json.dumps({**document, "extents": self.extents} if self.extents else document)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Raises `PlanError` where the text is not a plan."""
        try:
            document = json.loads(text)
            shares = {str(name): _share(entry) for name, entry in document["shares"].items()}
            extents = {str(name): _extent(entry, shares) for name, entry in document.get("extents", {}).items()}
            measured = {name for share in shares.values() for name in share.elements} - extents.keys() if extents else ()
            if measured:
                raise ValueError(f"says nothing of the size of {min(measured)!r}")
            return Plan(shares, {str(unit): _number(value) for unit, value in document["promised"].items()}, extents)
        except (TypeError, KeyError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise PlanError(f"this is not a plan ({repr(error)[:200]}): expected what Plan.to_json() wrote") from error


_LARGEST = 2**63
_MOST_BITS = 64


def _entry(share: Share) -> dict[str, Any]:
    entry = {"units": share.units, "kept": share.kept, "elements": dict(share.elements)}
    return entry if share.bits is None else {**entry, "bits": share.bits}


def _share(entry: Mapping[str, Any]) -> Share:
    elements = {str(name): _whole(n) for name, n in entry["elements"].items()}
    share = Share(_whole(entry["units"]), _whole(entry["kept"]), elements, _whole(entry["bits"]) if "bits" in entry else None)
    if share.kept > share.units:
        raise ValueError(f"keeps {share.kept} of {share.units} units")
    if share.bits is not None and not 1 <= share.bits <= _MOST_BITS:
        raise ValueError(f"gives a number {share.bits} bits, not 1 to {_MOST_BITS}")
    return share


def _extent(entry: Any, sites: Mapping[str, Share]) -> tuple[Product, ...]:
    found = tuple(tuple(tuple((_whole(n), tuple(map(str, names))) for n, names in dim) for dim in product) for product in entry)
    unknown = {name for product in found for dim in product for _, names in dim for name in names} - sites.keys()
    if unknown:
        raise ValueError(f"measures by {min(unknown)!r}, of which it says nothing")
    for product in found:
        _bounded(sum(n * _bounded(sites[name].units for name in names) for n, names in dim) for dim in product)
    return found


def _bounded(factors: Iterable[int]) -> int:
    """A product, or `ValueError` before it is larger than any model."""
    known, product = list(factors), 1
    for factor in () if 0 in known else known:
        product *= factor
        if product >= _LARGEST:
            raise ValueError("speaks of more numbers than any model has")
    return 0 if 0 in known else product


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError(f"{value!r} is no whole number of a size that a model can have")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is no number")
    return float(value)  # type: ignore[arg-type]


class Allocator(Protocol):
    """Decides how many units each site keeps; ``scores`` may be called again and again, and then computes again."""

    def __call__(self, sites: Sites, scores: Callable[[], Iterator[Scores]]) -> Plan: ...
