"""Least squares: what the weights that stay become, so that a layer's answers to the calibration data change least."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.evidence import input_gram
from secateurs.given import SOLVER, require
from secateurs.patterns import as_units, finite, marked, weight_of
from secateurs.types import Member, NonFiniteError, Scores, SecateursError, Site, Solution, Solver, Statistic, Stats

GRAM = input_gram("consumers")
"""What a reconstruction needs: the products of the inputs of the layers that read the units, or of the weight that is pruned by itself."""

_ROWS = 1 << 26  # numbers of the systems that are solved at once


@dataclass(frozen=True)
class LeastSquares:
    """After any choice, the weights that stay minimise ‖Z − Ẑ‖², the change of what their layer answers to the calibration data.

    Of single weights those that stay in each row; of coupled units the weights of all layers that read them, and their biases
    (1707.06168's second step; Castellano 1997 for neurons; the ridge folded into weights and biases as in 2602.05243). ``damping`` is
    the ridge, as a part of the mean square of the features: small data sets want more. Layers whose inputs cannot be seen stay as they are.

    >>> from torch import nn
    >>> from secateurs import Channel, Task, TopK, magnitude, prune_, uniform
    >>> _ = torch.manual_seed(0)
    >>> model, data = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(256, 4)
    >>> before, task = model(data), Task(data, calibration=[(data, None)])
    >>> masks = prune_(model, Channel(), LeastSquares(TopK(magnitude())), uniform(sparsity=0.5), task)
    >>> bool((model(data) - before).square().mean() < 0.1 * before.var())
    True
    """

    choice: Solver
    damping: float = 1e-4

    def __post_init__(self) -> None:
        require("LeastSquares", "choice", self.choice, SOLVER)
        require_damping("LeastSquares", self.damping)

    @property
    def needs(self) -> tuple[Statistic, ...]:
        return tuple(dict.fromkeys((*self.choice.needs, GRAM)))

    def scores(self, sites: Iterable[Site], stats: Stats) -> Iterator[Scores]:
        """Those of the choice."""
        return self.choice.scores(sites, stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        solution = self.choice(site, kept, stats)
        return Solution(solution.kept, {**solution.weights, **reconstructed(site, solution, stats, self.damping)})


def require_damping(who: str, damping: float) -> None:
    """Raise `SecateursError` for a damping that is no ridge."""
    if not 0 <= damping < float("inf"):
        raise SecateursError(
            f"{who}: damping={damping} is no part of the mean square of the features: give a number from 0, such as 1e-4"
        )


def reconstructed(site: Site, solution: Solution, stats: Stats, damping: float) -> dict[str, Tensor]:
    """What the weights (and biases) that read or make up the units become, for a choice of units."""
    found: dict[str, Tensor] = {}
    for index in readers(site, stats):
        member = site.members[index]
        gram = gram_of(member, stats)
        dense = weight_of(member).double()  # whatever the choice made of it: its answers are to stay as they were
        stays = marked(site, solution.kept.to(dense.device), index)
        if site.alive is not None:
            stays &= dense != 0  # what an earlier pruning removed
        found |= _solved(member, dense, stays, gram, damping)
    if not found and len(site.members) > 1:
        raise SecateursError(
            f"{site.name}: none of the layers that read its units shows its inputs, so nothing can be reconstructed: take a solver that "
            f"does not, such as TopK, or skip it with skip=[{site.name!r}]"
        )
    return found


def readers(site: Site, stats: Stats) -> list[int]:
    """The members whose outputs are to stay as they are, and whose inputs were observed."""
    readers = [index for index, member in enumerate(site.members) if member.role == "consumer" or len(site.members) == 1]
    return [index for index in readers if GRAM in stats.get(site.members[index].parameter, {})]


def known_readers(site: Site, stats: Stats) -> list[int]:
    """As `readers`; raises `SecateursError` where there is none, so that what the units add is not known."""
    known = readers(site, stats)
    if not known:
        raise SecateursError(
            f"{site.name}: none of the layers that read its units shows its inputs, so what they add is not known: take another solver, "
            f"such as TopK, or skip it with skip=[{site.name!r}]"
        )
    return known


def gram_of(member: Member, stats: Stats, dtype: torch.dtype = torch.float64) -> Tensor:
    """The products of a weight's inputs, ``(groups, features + 1, features + 1)``; raises where they are not finite."""
    gram = stats[member.parameter][GRAM].to(dtype)
    if not finite(gram):
        raise NonFiniteError(f"{member.parameter}: the products of its inputs are NaN or infinite: look at the calibration batches")
    return gram.expand(member.shape[0], -1, -1)


def _solved(member: Member, dense: Tensor, stays: Tensor, gram: Tensor, damping: float) -> Mapping[str, Tensor]:
    """A weight, and its bias where it has one, with least squares for what stays."""
    bias = getattr(member.module, "bias", None) if member.attribute == "weight" else None
    view, mask = member.canonical(dense), member.canonical(stays)
    rows, kept = view.flatten(2), mask.flatten(2)
    if isinstance(bias, Tensor):
        ones = torch.ones(*rows.shape[:2], 1, dtype=torch.bool, device=kept.device)
        rows = torch.cat([rows, bias.detach().double().view(*rows.shape[:2], 1)], dim=2)
        kept = torch.cat([kept, ones], dim=2)
    else:
        gram = gram[:, :-1, :-1]
    solved = torch.stack([least_squares(*parts, damping, member.parameter) for parts in zip(rows, kept, gram, strict=True)])
    made = torch.empty_like(dense)
    member.canonical(made).copy_(solved[:, :, : view.flatten(2).shape[2]].reshape(view.shape))
    found = {member.parameter: made.to(member.weight.dtype)}
    if isinstance(bias, Tensor):
        path = member.parameter.rpartition(".")[0]
        found[f"{path}.bias" if path else "bias"] = solved[:, :, -1].reshape(-1).to(bias.dtype)
    return found


def least_squares(rows: Tensor, kept: Tensor, gram: Tensor, damping: float, name: str) -> Tensor:
    """The rows ``(outputs, features)`` that are nearest to the given ones in the metric of the inputs, zero where they are not kept.

    >>> gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    >>> least_squares(torch.ones(1, 2).double(), torch.tensor([[True, False]]), gram, 0.0, "w")
    tensor([[1.5000, 0.0000]], dtype=torch.float64)
    """
    ridge = damping * gram.diagonal().mean()
    wanted = rows @ gram + ridge * rows  # towards the weights as they are, where the data do not tell
    system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if bool((kept == kept[:1]).all()):  # whole columns: one system for all rows
        columns = kept[0]
        solved = torch.zeros_like(rows)
        if bool(columns.any()):
            solved[:, columns] = _cholesky_solve(system[columns][:, columns], wanted[:, columns].T, name).T
        return solved
    step, solved = max(1, _ROWS // len(gram) ** 2), torch.zeros_like(rows)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        most = int(kept[part].sum(1).max())  # what stays of each row first: the others need no equations
        there, index = kept[part].int().sort(dim=1, descending=True, stable=True)
        there, index = there[:, :most].bool(), index[:, :most]
        both = there[:, :, None] & there[:, None, :]
        eye = torch.eye(most, dtype=gram.dtype, device=gram.device)
        systems = torch.where(both, system[index[:, :, None], index[:, None]], eye)
        found = _cholesky_solve(systems, (wanted[part].gather(1, index) * there)[:, :, None], name)[:, :, 0]
        solved[part] = torch.zeros_like(solved[part]).scatter_(1, index, found * there)
    return solved


def _cholesky_solve(systems: Tensor, wanted: Tensor, name: str) -> Tensor:
    """Solve symmetric systems; where one is not positive definite the ridge is raised, with a warning."""
    eye, extra = torch.eye(systems.shape[-1], dtype=systems.dtype, device=systems.device), 0.0
    scale = float(systems.diagonal(dim1=-2, dim2=-1).mean()) or 1.0
    for _ in range(12):
        factor, failed = torch.linalg.cholesky_ex(systems + extra * scale * eye)
        if not bool(failed.any()):
            if extra:
                warnings.warn(
                    f"{name}: its inputs depend on each other, so damping was raised by {extra:.0e}: give more data", stacklevel=2
                )
            return torch.cholesky_solve(wanted, factor)
        extra = extra * 10 or 1e-10
    raise SecateursError(f"{name}: the products of its inputs are no Gram matrix (not positive definite even with damping 10)")


def unit_products(site: Site, stats: Stats) -> Tensor:
    """What the units add to the answers of those who read them, in products: ``Q[i, j] = Σ⟨Zᵢ, Zⱼ⟩`` over all readers, ``(units, units)``.

    The answers without some units change by the sum of Q over them. Raises `SecateursError` where no reader's inputs were observed.
    """
    total = torch.zeros(site.units, site.units, dtype=torch.float64)
    for index in known_readers(site, stats):
        member = site.members[index]
        gram = gram_of(member, stats)[:, :-1, :-1]
        rows = member.canonical(weight_of(member)).flatten(2).double()
        total += _summed(site, index, (rows.transpose(1, 2) @ rows) * gram).to(total.device)
    return total


def scales(site: Site, index: int, gram: Tensor, meeting: Tensor, damping: float) -> Tensor:
    """What each unit that is left is to be multiplied by, ``(units,)``, so that the one linear layer that reads it, member `index`, answers
    by least squares what is wanted: ``gram`` is Σ x·xᵀ and ``meeting`` Σ x·tᵀ, x with a constant 1 behind it, t what is wanted, with bias.

    Numbers of units that are gone are 1; ``damping``, a part of the mean square of what the units add, holds the others near 1.
    """
    member = site.members[index]
    rows, bias = member.canonical(weight_of(member)).flatten(2)[0].double(), getattr(member.module, "bias", None)
    added = meeting[:-1] - gram[:-1, -1:] * bias.detach().double() if isinstance(bias, Tensor) else meeting[:-1]
    products = _summed(site, index, ((rows.T @ rows) * gram[:-1, :-1])[None])
    wanted = (rows.T * added).sum(1)[columns_of(site, index).to(rows.device)].sum(1)
    stay = (torch.ones(site.units, dtype=torch.bool) if site.alive is None else site.alive[0]).to(rows.device)
    numbers, count = torch.ones_like(wanted), int(stay.sum())
    ridge = damping * (float(products.diagonal().mean()) or 1.0)
    system = products[stay][:, stay] + ridge * torch.eye(count, dtype=products.dtype, device=products.device)
    if count:
        numbers[stay] = _cholesky_solve(system, (wanted[stay] + ridge)[:, None], site.name)[:, 0]
    return numbers


def _summed(site: Site, index: int, products: Tensor) -> Tensor:
    """Products of features ``(groups, features, features)`` added up by unit; those of different groups never meet."""
    units = columns_of(site, index).to(products.device)
    groups, features = products.shape[:2]
    belongs = torch.zeros(site.units, groups * features, dtype=products.dtype, device=products.device)
    belongs.scatter_(1, units, 1.0)
    by_group = belongs.view(site.units, groups, features).transpose(0, 1)
    return (by_group @ products @ by_group.transpose(1, 2)).sum(0)


def columns_of(site: Site, index: int) -> Tensor:
    """Unit → the columns of a member's canonical view that read it, counted through its groups.

    >>> from torch import nn
    >>> from secateurs.patterns import Channel, find_sites
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, (1, 2)))
    >>> columns_of(find_sites(model, Channel(), torch.zeros(1, 1, 2, 2))[0], 1)
    tensor([[0, 1],
            [2, 3]])
    """
    member = site.members[index]
    numbers = torch.zeros(member.weight.shape, dtype=torch.int64)
    view = member.canonical(numbers)
    groups, features = view.shape[0], view[0, 0].numel()
    view.copy_(torch.arange(groups * features).view(groups, 1, *view.shape[2:]).expand(view.shape))
    return torch.stack([row.unique() for row in as_units(site, numbers, index).reshape(site.units, -1)])
