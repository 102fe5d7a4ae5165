"""In which parts the evidence is gathered: of all sites at once, or of one after the other while those before are pruned already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

from secateurs.types import KindError, Sites, Statistic, Stats, Task


@runtime_checkable
class Observing(Protocol):
    """Parts of a walk that know themselves how they are observed: what it gives is asked for each part's number, in order."""

    def observing(self, needs: Sequence[Statistic], task: Task) -> Callable[[int], Stats]: ...


def at_once(sites: Sites) -> list[Sites]:
    """All sites together: one walk over the batches, and the statistics of all of them in memory.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> len(at_once(find_sites(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), Element())))
    1
    """
    return [sites]


@dataclass(frozen=True)
class _InOrder:
    blocks: tuple[str, ...]

    def __call__(self, sites: Sites) -> list[Sites]:
        parts: dict[str, list[int]] = {}
        for index, site in enumerate(sites):
            parts.setdefault(self._block(site.name), []).append(index)
        return [replace(sites, found=tuple(sites[index] for index in part)) for part in parts.values()]

    def _block(self, name: str) -> str:
        """The block in which a site lies, or the site itself."""
        path = name.split(":")[0].split("[")[0].split(".")
        for block in self.blocks:
            start = ".".join(path[: block.count(".") + 1])
            if fnmatchcase(start, block):
                return f"{start}."  # no site is called so
        return name


def in_order(blocks: str | Iterable[str] = ()) -> _InOrder:
    """One site after the other, in the order in which the example passes them: each is observed with all before it pruned already.

    ``blocks`` are names with wildcards of modules that go together, such as ``"model.layers.*"``. Only the statistics of one part are in
    memory; the calibration batches are walked once a part.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> sites = find_sites(nn.Sequential(block(), block(), nn.Linear(2, 2)), Element())
    >>> [[site.name for site in part] for part in in_order("*")(sites)], len(in_order()(sites))
    ([['0.0', '0.1'], ['1.0', '1.1'], ['2']], 5)
    """
    if not isinstance(blocks, str) and not (isinstance(blocks, Iterable) and all(isinstance(each, str) for each in blocks)):
        raise KindError(
            f"in_order: blocks is {blocks!r}, but must be names of modules with wildcards, for example 'model.layers.*'"
        )
    return _InOrder((blocks,) if isinstance(blocks, str) else tuple(blocks))
