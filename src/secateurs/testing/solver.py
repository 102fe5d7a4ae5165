"""The laws of solvers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateurs.allocate import uniform
from secateurs.patterns import Channel, Element, Filter, NofM, find_sites, misfit
from secateurs.patterns.canonical import find_weights
from secateurs.prune import biases_beside, masks_of, prune_
from secateurs.testing.specimens import COUPLED, LAYERS, Specimen, earlier_masks, sites_of, unchanged, with_evidence
from secateurs.types import (
    NonFiniteError,
    Pattern,
    PatternError,
    PlanError,
    Scores,
    SecateursError,
    Site,
    Sites,
    Solution,
    Solver,
    Statistic,
    Stats,
    Task,
    Tiling,
)

_PATTERNS: tuple[Tiling, ...] = (Element(), Element(within="row"), NofM(2, 4), Filter())

# What the weights are made of before the solver looks at them: nothing, many ties, nothing but ties.
_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "distinct weights": lambda weight: weight,
    "weights with many ties": lambda weight: weight.mul(2).round() / 2,
    "equal weights": torch.ones_like,
}


def check_solver(
    solver: Solver, *, by_score: bool = True, on: Sequence[Specimen] | None = None, coupled: Sequence[Specimen] | None = None
) -> None:
    """Raise `AssertionError` where a solver breaks a law, on small layers of each kind and on coupled weights (``on=`` to choose others).

    ``coupled=`` are the networks whose coupled weights are checked, where they are not those of ``on``.

    - it keeps exactly as many units as it is told, from none to all, the same number in each contest, whatever the ties
    - the units kept score at least as high as those removed, of equal ones the first stay (``by_score=False`` where choice and
      adjustment are interleaved)
    - units that an earlier pruning removed stay removed; more units than are left are a `PlanError`
    - a `SecateursError` is a fair answer to coupled weights, a `PatternError` to units for which it is not defined
    - the same site gives the same solution, new weights are finite and of the parameter's shape, and the model is untouched
    - where sites have a weight in common, `prune_` asks for each with what it wrote for those before in place, so nothing is lost

    >>> from secateurs.criteria import magnitude
    >>> from secateurs.solve import TopK
    >>> check_solver(TopK(magnitude()), on=LAYERS[:1])
    """
    checked = 0
    for specimen in on or LAYERS:
        for pattern in _PATTERNS:
            for earlier in (False, True):
                checked += _check_sites(solver, specimen, pattern, _fitting(specimen.model(), pattern, earlier), by_score)
    for specimen in coupled or on or COUPLED:
        for earlier in (False, True):
            checked += _check_sites(solver, specimen, Channel(), sites_of(specimen, Channel(), earlier), by_score)
        _check_shared(solver, specimen)
    assert checked, f"{solver!r}: what it needs can be observed on none of {[specimen.name for specimen in on or LAYERS]}"


def _check_sites(solver: Solver, specimen: Specimen, pattern: Pattern, sites: Sites | None, by_score: bool) -> int:
    """Check the sites that can be observed with weights of each kind; returns how many there were."""
    if sites is None:
        return 0
    checked = 0
    drawn = {name: weight.clone() for name, weight in sites.model.state_dict().items()}
    for kind, make in _WEIGHTS.items():
        sites.model.load_state_dict(drawn)
        _redraw_(sites.model, make)
        for site, stats in with_evidence(specimen, sites, solver.needs):
            if _refuses(solver, site, stats):
                continue
            where = f"{solver!r} with {pattern!r} on {specimen.name}, {site.name}, {kind}"
            with unchanged(sites.model, where):
                _check_site(solver, site, stats, by_score, where)
            checked += 1
    return checked


def _refuses(solver: Solver, site: Site, stats: Stats) -> bool:
    try:
        list(solver.scores([site], stats))
    except SecateursError as error:
        return isinstance(error, PatternError) or (len(site.members) > 1 and not isinstance(error, NonFiniteError))
    return False


def _redraw_(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(make(parameter))


def _fitting(model: nn.Module, pattern: Tiling, earlier: bool) -> Sites | None:
    names = [weight.parameter for weight in find_weights(model)[0] if misfit(pattern, weight.shape) is None]
    masks = earlier_masks(model, [name for name, _ in model.named_parameters()]) if earlier else None
    return find_sites(model, pattern, only=names, masks=masks) if names else None


def _check_site(solver: Solver, site: Site, stats: Stats, by_score: bool, where: str) -> None:
    shape = (site.contest_count, site.units // site.contest_count)
    (scores,) = solver.scores([site], stats)
    assert scores.shape == shape, f"{where}: scores of shape {tuple(scores.shape)}, not {shape}"
    assert not torch.isnan(scores).any(), f"{where}: a score is NaN"
    alive = torch.ones(shape, dtype=torch.bool) if site.alive is None else site.alive
    left = alive.sum(1)
    most = min(int(left.max()), site.pattern.kept_of_each or shape[1])
    for each in sorted({0, min(1, most), most // 2, most}):
        said = f"{where}, {each} of each {shape[1]}"
        expected = left.clamp(max=each)
        solution = solver(site, int(expected.sum()), stats)
        _check_solution(solution, site, said)
        kept = solution.kept
        assert not (kept & ~alive).any(), f"{said}: units that an earlier pruning removed came back"
        got = kept.sum(1)
        assert torch.equal(got, expected), f"{said}: it keeps {got.tolist()} in the contests, not {expected.tolist()}"
        assert torch.equal(kept, solver(site, int(expected.sum()), stats).kept), f"{said}: another solution at the second call"
        if by_score:
            lowest_kept = scores.masked_fill(~kept, torch.inf).amin(1)
            highest_removed = scores.masked_fill(kept | ~alive, -torch.inf).amax(1)
            assert (lowest_kept >= highest_removed).all(), f"{said}: a unit that it removes scores higher than one that it keeps"
            tied = (scores == lowest_kept[:, None]) & alive
            passed_over = (tied & ~kept).cumsum(1) > 0
            assert not (tied & kept & passed_over).any(), f"{said}: of units that score the same, the first must stay"
    try:
        solver(site, int(left.clamp(max=most).sum()) + 1, stats)
    except PlanError:
        return
    raise AssertionError(f"{where}: to keep more units than there are must be a PlanError")


@dataclass(frozen=True)
class _Watched:
    """A solver that is seen at work: which weights it found, and what it made of them."""

    solver: Solver
    written: dict[str, Tensor] = field(default_factory=dict)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return self.solver.needs

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """Those of the solver."""
        return self.solver.scores(sites, stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        for member in site.members:
            before = self.written.get(member.parameter, member.weight)
            assert torch.equal(before, member.weight), (
                f"{self.solver!r}: {site.name} is solved without what was written to {member.parameter} for a site before"
            )
        solution = self.solver(site, kept, stats)
        masks = masks_of(site, solution)
        for name, value in solution.weights.items():
            self.written[name] = (torch.where(masks[name], value, 0) if name in masks else value).detach()
        return solution


def _check_shared(solver: Solver, specimen: Specimen) -> None:
    """What it writes for two sites that have a weight in common stays, from the first to the last."""
    model, task = specimen.model(), Task(example=specimen.example, calibration=[(specimen.example, None)])
    watched = _Watched(solver)
    try:
        masks = prune_(model, Channel(), watched, uniform(keep=0.5), task)
    except SecateursError:  # a fair answer to coupled weights
        return
    parameters = dict(model.named_parameters())
    for name, value in watched.written.items():
        left = torch.where(masks[name], value, 0) if name in masks else value
        assert torch.equal(parameters[name], left), f"{solver!r} on the {specimen.name}: what it wrote to {name} is lost"


def _check_solution(solution: Solution, site: Site, where: str) -> None:
    shape = (site.contest_count, site.units // site.contest_count)
    assert solution.kept.dtype == torch.bool, f"{where}: kept is {solution.kept.dtype}, not torch.bool"
    assert solution.kept.shape == shape, f"{where}: kept is of shape {tuple(solution.kept.shape)}, not {shape}"
    weights = {**biases_beside(site), **{member.parameter: member.weight for member in site.members}}
    for name, value in solution.weights.items():
        assert name in weights, f"{where}: it writes {name}, which is no part of the site, nor a bias beside it"
        assert value.shape == weights[name].shape, f"{where}: its {name} is of shape {tuple(value.shape)}"
        assert torch.isfinite(value).all(), f"{where}: its {name} has values that are NaN or infinite"
