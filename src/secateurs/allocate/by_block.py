"""More for some blocks of layers than for others: by outliers among the scores, or by the spectra of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf, isfinite

import torch
from torch import Tensor

from secateurs.allocate.apportion import apportion, fraction_kept, limits_of, plan_of
from secateurs.allocate.within import refuse_model_wide, total_of
from secateurs.graph import blocks_of
from secateurs.patterns import finite_weight_of
from secateurs.types import Allocator, KindError, Member, Plan, PlanError, Scores, SecateursError, Site, Sites

ScoresOf = Callable[[], Iterator[Scores]]


def owl(
    *,
    sparsity: float | None = None,
    keep: float | None = None,
    blocks: str | Iterable[str] | None = None,
    times: float = 5.0,
    spread: float = 0.08,
    floor: int = 1,
    ceiling: float = 1.0,
) -> Allocator:
    """More stays in blocks with many outliers: units that score above `times` the mean of their block (OWL, 2310.05175).

    What a block keeps lies within ± `spread` of the fraction asked for, in proportion to how its share of outliers differs from the mean of
    all; the total is exact. Blocks are those of `blocks_of` with ``blocks``; a site in none of them is a block by itself, and so is each
    where nothing is said and the model has no stack of blocks. No block keeps less than half of what is asked for, so at extreme
    sparsities they differ by less.

    The scores are those of the solver, with the published method |w|·‖x‖ (``TopK(magnitude(p=1) * input_norm())``). They are computed
    twice, one site in memory at a time. To prune with another solver, or in order, make the plan first: see `planned`. Raises `PlanError`
    for scores whose mean over a block is not positive, as there is nothing to be above.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> sites = find_sites(nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 8)), Element(), only="*")
    >>> scores = [torch.ones(1, 8), torch.tensor([[50.0, 1, 1, 1, 1, 1, 1, 1]])]
    >>> dict(owl(keep=0.5, spread=0.25)(sites, lambda: iter(scores)))
    {'0': 2, '1': 6}
    """
    fraction = fraction_kept("owl", sparsity, keep)
    _require_number("owl", "times", times, 0, inf)
    _require_number("owl", "spread", spread, 0, 1)

    def allocate(sites: Sites, scores: ScoresOf) -> Plan:
        refuse_model_wide(sites, "owl")
        outliers = _outliers(sites, scores, _block_names(sites, blocks), times)
        away = _without_mean(sites, outliers)
        furthest = max(map(abs, away)) or 1.0
        lean = [spread * each / furthest for each in away]
        return _leaning(sites, fraction, lean, floor, ceiling, f"owl(keep={fraction:g})")

    return allocate


def _block_names(sites: Sites, blocks: str | Iterable[str] | None) -> list[str]:
    """For each site the block in which it lies, or its own name."""
    if blocks is None and sites.example is None:
        return [site.name for site in sites]
    try:
        found = blocks_of(sites.model, sites.example, blocks)
    except SecateursError:
        if blocks is not None:
            raise
        return [site.name for site in sites]
    return [found.of(site.name) or site.name for site in sites]


def _outliers(sites: Sites, scores: ScoresOf, block_of: Sequence[str], times: float) -> list[float]:
    """For each site the share of outliers in its block."""
    sums, counts, above = (dict.fromkeys(block_of, 0.0) for _ in range(3))
    for block, piece in zip(block_of, scores(), strict=True):
        left = piece > -inf  # what an earlier pruning removed is neither an outlier nor none
        sums[block] += float(piece.masked_fill(~left, 0).sum(dtype=torch.float64))
        counts[block] += int(left.sum())
    low = next((block for block, total in sums.items() if not total > 0), None)
    if low is not None:
        first = sites[list(block_of).index(low)].name
        raise PlanError(
            f"{first}: owl counts scores above {times:g} times the mean of their block, but that mean is "
            f"{sums[low] / max(1, counts[low]):g}: take a criterion whose scores are positive, such as magnitude(p=1) * input_norm(), or "
            f"skip=[{first!r}]"
        )
    for block, piece in zip(block_of, scores(), strict=True):
        above[block] += int((piece > times * sums[block] / counts[block]).sum())
    return [above[block] / counts[block] for block in block_of]


def alpha_pruning(
    *,
    sparsity: float | None = None,
    keep: float | None = None,
    blocks: str | Iterable[str] | None = None,
    spread: float = 0.3,
    tail: float = 0.5,
    floor: int = 1,
    ceiling: float = 1.0,
) -> Allocator:
    """More stays in blocks whose weights have heavy-tailed spectra, which training has shaped most (AlphaPruning, 2410.10912).

    The largest eigenvalues of WᵀW follow a power law, whose exponent Hill's estimator finds in the largest fraction `tail` of them; a
    block's is the mean of its sites'. Sparsities go linearly from ``1 - spread`` times a common factor, for the smallest exponent, to
    ``1 + spread`` times it, for the largest; the total is exact, and no block keeps less than half of what is asked for. ``blocks`` as in
    `owl`.

    Needs neither data nor scores, so that it decides for ``walk=in_order()`` too. A convolution is the matrix of its filters, each expert
    of a stack has one of its own. (For language models the authors begin the tail at the peak of the spectrum.)

    Raises `PlanError` for weights that are all zero or have less than two rows or columns, `NonFiniteError` for NaN.

    >>> from torch import nn
    >>> from secateurs.patterns import Element, find_sites
    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    >>> for layer, spectrum in zip(model, ([8.0, 4.0, 2.0, 1.0], [1.3, 1.2, 1.1, 1.0])):
    ...     layer.weight.data = torch.diag(torch.tensor(spectrum))
    >>> dict(alpha_pruning(sparsity=0.5, spread=0.25)(find_sites(model, Element(), only="*"), lambda: iter([])))
    {'0': 10, '1': 6}
    """
    fraction = fraction_kept("alpha_pruning", sparsity, keep)
    _require_number("alpha_pruning", "spread", spread, 0, 1)
    _require_number("alpha_pruning", "tail", tail, 0, 1)

    def allocate(sites: Sites, scores: ScoresOf) -> Plan:
        refuse_model_wide(sites, "alpha_pruning")
        block_of, exponents = _block_names(sites, blocks), [_exponent(site, tail) for site in sites]
        of_block = {block: _mean(e for e, b in zip(exponents, block_of, strict=True) if b == block) for block in block_of}
        low, high = min(of_block.values()), max(of_block.values())
        places = [(of_block[block] - low) / (high - low) if high > low else 0.5 for block in block_of]
        sparser = [1 + spread * (2 * place - 1) for place in places]
        mean = sum(site.units * each for site, each in zip(sites, sparser, strict=True)) / sum(site.units for site in sites)
        lean = [(1 - fraction) * (1 - each / mean) for each in sparser]
        return _leaning(sites, fraction, lean, floor, ceiling, f"alpha_pruning(keep={fraction:g})")

    return allocate


def _exponent(site: Site, tail: float) -> float:
    """The exponent of the power law of the spectra of a site's weights, by Hill's estimator."""
    makers = [member for member in site.members if member.role == "producer" and member.weight.ndim > 1]
    return _mean(_hill(values, tail) for member in makers or site.members for values in _spectra(site, member))


def _spectra(site: Site, member: Member) -> Iterator[Tensor]:
    """The eigenvalues of WᵀW of each matrix of a weight, ascending, float64."""
    weight = member.canonical(finite_weight_of(member))
    for matrix in weight.flatten(2) if member.stacked else [weight.flatten(0, 1).flatten(1)]:
        if matrix.ndim != 2 or min(matrix.shape) < 2:
            raise PlanError(
                f"{site.name}: {member.parameter} is {tuple(member.weight.shape)}, of which alpha_pruning sees one eigenvalue, but a power "
                f"law needs two at least: skip=[{site.name!r}], or take uniform(...)"
            )
        if not matrix.any():
            raise PlanError(
                f"{site.name}: all of {member.parameter} is zero, so alpha_pruning sees no spectrum: load the weights first, or "
                f"skip=[{site.name!r}]"
            )
        matrix = matrix.double()
        yield torch.linalg.eigvalsh(matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix)


def _hill(values: Tensor, tail: float) -> float:
    many = min(max(1, int(tail * len(values))), len(values) - 1)
    values = values.clamp_min(values[-1].clamp_min(torch.finfo(values.dtype).tiny) * 1e-12)  # a matrix of low rank
    above = (values[-many:] / values[-many - 1]).log().sum()
    return 1 + many / max(float(above), 1e-6)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _without_mean(sites: Sites, values: Sequence[float]) -> list[float]:
    """By how much each value differs from their mean over all units."""
    units = [site.units for site in sites]
    mean = sum(n * value for n, value in zip(units, values, strict=True)) / sum(units)
    return [value - mean for value in values]


def _leaning(sites: Sites, fraction: float, lean: Sequence[float], floor: int, ceiling: float, who: str) -> Plan:
    """The plan in which each site keeps `fraction` and what it leans to either side, which is zero in the mean over all units."""
    most, least = max(0.0, *lean), -min(0.0, *lean)
    shrunk = min(1.0, (1 - fraction) / most if most else 1.0, fraction / 2 / least if least else 1.0)
    weights = [site.units * (fraction + shrunk * each) for site, each in zip(sites, lean, strict=True)]
    return plan_of(sites, apportion(sites, weights, total_of(sites, fraction), limits_of(sites, floor, ceiling), who))


def _require_number(who: str, name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise KindError(f"{who}: {name} is {value!r}, but must be a number")
    if not (isfinite(value) and low < value <= high):
        raise SecateursError(f"{who}: {name}={value} is not above {low:g}" + (f" and at most {high:g}" if isfinite(high) else ""))
