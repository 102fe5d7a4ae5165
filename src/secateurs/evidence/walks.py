"""In which parts the evidence is gathered: of all sites at once, or of one after the other while those before are pruned already."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from secateurs.types import KindError, SecateursError, Site, Sites


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
        for index, name in enumerate(block_names(sites, self.blocks)):
            parts.setdefault(name, []).append(index)
        return [replace(sites, found=tuple(sites[index] for index in part)) for part in parts.values()]


def block_names(sites: Iterable[Site], blocks: str | Iterable[str]) -> list[str]:
    """For each site the block in which it lies, or its own name; ``blocks`` are names with wildcards of modules.

    Raises `SecateursError` for a name that means no site, so that a slip of the pen is not taken for a model without blocks.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    >>> block_names(find_sites(model, Element(), only="*"), "0")
    ['0.', '0.', '1']
    """
    given = (blocks,) if isinstance(blocks, str) else tuple(blocks)
    names = [site.name for site in sites]
    found = [_block(name, given) for name in names]
    for block in given:
        if not any(fnmatchcase(name.removesuffix("."), block) for name in found):
            raise SecateursError(f"blocks={block!r} means no module with a site; the sites are {', '.join(names[:4])}, …")
    return found


def _block(name: str, blocks: tuple[str, ...]) -> str:
    path = name.split(":")[0].split("[")[0].split(".")
    for block in blocks:
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
