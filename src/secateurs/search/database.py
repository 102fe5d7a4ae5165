"""Every site pruned to every level beforehand, so that a plan is tried by putting weights together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from secateurs.evidence import observe
from secateurs.files.partway import Kept, Partway
from secateurs.progress import track
from secateurs.prune import masks_of
from secateurs.search.genes import Gene
from secateurs.types import PatternError, Site, Sites, Solver, Stats, Task


class Database:
    """What each site's weights become at each number of units kept: in memory, or in a folder with a file for each site and number.

    All are solved with what was observed of the model as it is, in the parts that `walk` makes; what is in the folder already is not
    solved again. Raises `PatternError` where a weight lies in two sites, as then one cannot be pruned without the other.
    """

    def __init__(self, model: nn.Module, sites: Sites, solver: Solver, folder: Path | None, about: Mapping[str, str]) -> None:
        self._model, self._sites, self._solver = model, sites, solver
        self._files = None if folder is None else Partway(folder, about)
        self._held: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        owners: dict[str, str] = {}
        for site in sites:
            for name in {member.parameter for member in site.members}:
                if owners.setdefault(name, site.name) != site.name:
                    raise PatternError(
                        f"{name} lies in {owners[name]} and in {site.name}, which cannot be pruned apart: evolve searches over patterns on "
                        "single weights, such as Element()"
                    )

    def fill(self, genes: Sequence[Gene], task: Task, walk: Callable[[Sites], Sequence[Sites]]) -> None:
        """Solve every site at every level of its gene."""
        wanted = {
            name: sorted({counts[name] for counts in gene.counts.values()})
            for gene in genes
            for name in next(iter(gene.counts.values()))
        }
        for name in wanted:
            for count in wanted[name]:
                self._numbers[name, count] = len(self._numbers)
        for part in track(walk(self._sites), "pruning to every level"):
            missing = [(site, count) for site in part for count in wanted[site.name] if not self._is_there(site, count)]
            if missing:
                stats = observe(self._model, part, self._solver.needs, task)
                for site, count in missing:
                    self._keep(site, count, self._solved(site, count, stats))

    def weights(self, name: str, kept: int) -> Mapping[str, Tensor]:
        """Parameter → what it is where a site keeps so many units."""
        if self._files is None:
            return self._held[name, kept]
        found = self._files.kept(self._numbers[name, kept], _said(name, kept))
        assert found is not None
        return found.weights

    def _is_there(self, site: Site, kept: int) -> bool:
        return self._files is not None and self._files.kept(self._numbers[site.name, kept], _said(site.name, kept)) is not None

    def _keep(self, site: Site, kept: int, weights: dict[str, Tensor]) -> None:
        if self._files is None:
            self._held[site.name, kept] = weights
        else:
            self._files.keep(self._numbers[site.name, kept], _said(site.name, kept), Kept(weights, {}))

    @torch.no_grad()
    def _solved(self, site: Site, kept: int, stats: Stats) -> dict[str, Tensor]:
        solution = self._solver(site, kept, stats)
        masks = masks_of(site, solution)
        own = {member.parameter: member.weight.detach() for member in site.members}
        found = {name: solution.weights.get(name, weight).to(weight.dtype) for name, weight in own.items()}
        beside = {name: value for name, value in solution.weights.items() if name not in own}
        return {**beside, **{name: value.masked_fill(~masks[name], 0) for name, value in found.items()}}


def _said(name: str, kept: int) -> Iterable[str]:
    return (name, f"{kept} units")
