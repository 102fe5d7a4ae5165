"""Low rank: a layer's weight as the product of two thin ones, so that the layer becomes two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.answers import telling
from secateurs.evidence import input_gram, observe
from secateurs.given import MODEL, TASK, require, require_values
from secateurs.patterns import Element, Selection, find_sites, finite_weight_of
from secateurs.progress import track
from secateurs.shrink.factors import Parts, most_of_rank, put_in_place_, reason_against
from secateurs.shrink.undo import Undo
from secateurs.types import NonFiniteError, SecateursError, Site, Sites, Skipped, Task


@dataclass(frozen=True)
class LowRank:
    """What `low_rank_` did: the rank of each layer that became two, parameters before and after, and what was left alone, and why."""

    ranks: dict[str, int] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    skipped: tuple[Skipped, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.parameters[0]:,} -> {self.parameters[1]:,} parameters"]
        lines += [f"  {name}: two layers of rank {rank}" for name, rank in self.ranks.items()]
        return "\n".join([*lines, *(f"  left as it was: {item.name}: {item.reason}" for item in self.skipped)])


def low_rank_(
    model: nn.Module,
    task: Task,
    *,
    keep: float | None = None,
    energy: float | None = None,
    ranks: Mapping[str, int] | None = None,
    total: float | None = None,
    weighted: bool | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
) -> LowRank:
    """Make two layers of one: the best weight of lower rank, as the product of two (1404.0736, by singular value decomposition).

    Give one of: ``keep``, the fraction of each layer's weights that stays; ``energy`` in (0, 1], the part of the answers' energy that the
    rank must hold; ``ranks``, of each layer by name; ``total``, the fraction of all the model's parameters that may be left, which goes to
    the directions that hold most of their layer's energy for their weights, until the next would be too much.

    ``weighted=True`` asks for the best answers to the calibration batches instead of the best weight (1505.06798, with the layer's own
    inputs), and moves what goes with the mean into the bias; by default so where the task has batches. Linear layers and convolutions of
    one group take part, those whose two would be no smaller do not. The small model is saved, loaded, exported and compiled as any;
    optimizers are made anew.

    Raises `SecateursError` where no layer can become two, or the numbers are none.

    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> print(low_rank_(model, Task(torch.zeros(1, 64)), keep=0.5))
    4,680 -> 2,336 parameters
      0: two layers of rank 16
      2: two layers of rank 3
    """
    require("low_rank_", "model", model, MODEL)
    require("low_rank_", "task", task, TASK)
    require_values("low_rank_", model)
    _require_amount(keep, energy, ranks, total)
    batches = task.calibration if task.calibration is not None else task.train
    weighted = batches is not None if weighted is None else weighted
    sites, skipped = cuttable(model, task, only, skip)
    _require_known(ranks, sites)
    before = sum(parameter.numel() for parameter in model.parameters())
    stats = observe(model, sites, [input_gram()], task) if weighted else {}
    parts: dict[str, Parts] = {}

    def spectrum_of(site: Site) -> _Spectrum:
        return _spectrum(site, stats.get(site.members[0].parameter, {}).get(input_gram()))

    if total is not None:
        ranks = _within({site.name: spectrum_of(site) for site in sites}, before, total)
    for site in track(sites, "factoring"):
        spectrum = spectrum_of(site)
        rank = _rank(site, spectrum, keep, energy, ranks)
        if reason := _too_large(site, rank):
            skipped.append(Skipped(site.name, reason))
        else:
            parts[path_of(site)] = _parts(site, spectrum, rank)
    undo = Undo()
    try:
        refused = put_in_place_(model, parts, telling(task.example), undo)
    except BaseException:
        undo()
        raise
    skipped += [Skipped(name, reason) for name, reason in refused.items()]
    found = {name: each.factors.rank for name, each in parts.items() if name not in refused}
    after = sum(parameter.numel() for parameter in model.parameters())
    if not found:
        raise SecateursError("low_rank_: no layer became two: " + "; ".join(f"{item.name}: {item.reason}" for item in skipped[:5]))
    return LowRank(found, (before, after), tuple(skipped))


def _require_amount(keep: float | None, energy: float | None, ranks: Mapping[str, int] | None, total: float | None) -> None:
    given = {"keep": keep, "energy": energy, "ranks": ranks, "total": total}
    said = [name for name, value in given.items() if value is not None]
    if len(said) != 1:
        raise SecateursError(
            f"low_rank_: say how much stays with one of keep, energy, ranks and total, not with {' and '.join(said) or 'none'}"
        )
    for name, part in (("keep", keep), ("energy", energy), ("total", total)):
        if part is not None and not (isinstance(part, (int, float)) and 0 < part <= 1):
            raise SecateursError(f"low_rank_: {name}={part!r} is not in (0, 1]; 0.5 is half")
    for name, rank in (ranks or {}).items():
        if type(rank) is not int or rank < 1:
            raise SecateursError(f"low_rank_: the rank of {name} is {rank!r}, but must be a whole number of at least 1")


def _require_known(ranks: Mapping[str, int] | None, sites: Sites) -> None:
    unknown = set(ranks or {}) - {site.name for site in sites}
    if unknown:
        raise SecateursError(
            f"low_rank_: ranks names {', '.join(sorted(unknown))}, but the layers are {', '.join(s.name for s in sites)}"
        )


def cuttable(model: nn.Module, task: Task, only: Selection | None, skip: Selection | None) -> tuple[Sites, list[Skipped]]:
    """The layers that can become two, and what was left alone, and why. Raises `SecateursError` where there is none."""
    sites: Sites = find_sites(model, Element(), task.example, only=only, skip=skip)
    found, skipped = [], list(sites.skipped)
    for site in sites:
        member = site.members[0]
        reason = (
            reason_against(member.module) if member.attribute == "weight" else "it is no weight of a linear layer or convolution"
        )
        reason = reason or _asked_for_weight(model, path_of(site))
        reason = reason or ("" if path_of(site) else "it is the whole model, in whose place nothing can be put")
        shared = sum(parameter is member.weight for parameter in _all_parameters(model)) > 1
        reason = reason or ("its weight is another layer's too" if shared else "")
        if reason:
            skipped.append(Skipped(site.name, reason))
        else:
            finite_weight_of(member)
            found.append(site)
    if not found:
        raise SecateursError("no layer can become two: " + "; ".join(f"{item.name}: {item.reason}" for item in skipped[:5]))
    return replace(sites, found=tuple(found)), skipped


def _asked_for_weight(model: nn.Module, path: str) -> str:
    """Why a layer must stay one whose surrounding layer reads its weight itself, at least in evaluation mode."""
    around = model.get_submodule(path.rpartition(".")[0]) if path else None
    return "torch's TransformerEncoderLayer reads its weight itself" if isinstance(around, nn.TransformerEncoderLayer) else ""


def _all_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Each under every name, those of shared modules once."""
    return [parameter for module in model.modules() for parameter in module._parameters.values() if parameter is not None]


# ---------------------------------------------------------------- one layer


@dataclass(frozen=True)
class _Spectrum:
    """A weight ``(outputs, features)``, the directions of its answers, best first, their energies, and the means of its inputs."""

    rows: Tensor
    directions: Tensor
    energies: Tensor
    means: Tensor | None


def _spectrum(site: Site, gram: Tensor | None) -> _Spectrum:
    """Of the weight itself, or of its answers: those of rank r that differ least lie in the first r directions."""
    member = site.members[0]
    rows = member.weight.detach().double().flatten(1)
    if gram is None:
        directions, values, _ = torch.linalg.svd(rows, full_matrices=False)
        return _Spectrum(rows, directions, values.square(), None)
    products = gram[0].double()
    if not bool(torch.isfinite(products).all()):
        raise NonFiniteError(f"{site.name}: the products of its inputs are NaN or infinite: look at the calibration batches")
    has_bias = isinstance(getattr(member.module, "bias", None), Tensor)
    means = products[-1, :-1] if has_bias else torch.zeros_like(products[-1, :-1])
    covariance = products[:-1, :-1] - means[:, None] * means
    # A little of the weight itself decides where the data tell nothing.
    ridge = 1e-6 * float(covariance.diagonal().mean()) or 1.0
    answers = rows @ covariance @ rows.T + ridge * rows @ rows.T
    energies, directions = torch.linalg.eigh(answers)
    return _Spectrum(rows, directions.flip(1), energies.flip(0).clamp_min(0), means if has_bias else None)


def _rank(site: Site, spectrum: _Spectrum, keep: float | None, energy: float | None, ranks: Mapping[str, int] | None) -> int:
    outputs, features = spectrum.rows.shape
    if ranks is not None:
        return ranks.get(site.name, 0)
    if keep is not None:
        return max(1, int(keep * outputs * features / (outputs + features)))
    held = spectrum.energies.cumsum(0) / spectrum.energies.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return min(int((held < (energy or 0) - 1e-12).sum()) + 1, min(outputs, features))


def _within(spectra: Mapping[str, _Spectrum], before: int, total: float) -> dict[str, int]:
    """The ranks of the directions that hold most of their layer's energy for their weights, as many as the parameters are enough for.

    Each layer has one; a layer that would be no smaller as two stays one, and has no rank.
    """
    sizes = {name: tuple(spectrum.rows.shape) for name, spectrum in spectra.items()}
    least = before - sum(outputs * features - min(outputs * features, outputs + features) for outputs, features in sizes.values())
    left, ranks = int(total * before) - least, dict.fromkeys(sizes, 1)
    if left < 0:
        raise SecateursError(
            f"low_rank_: total={total} is {int(total * before):,} of {before:,} parameters, but rank 1 everywhere leaves {least:,}: ask "
            f"for total={least / before:.3f} or more"
        )
    worth = [
        (-float(energy) / sum(sizes[name]), place, name)
        for name, spectrum in spectra.items()
        for place, energy in enumerate((spectrum.energies / spectrum.energies.sum().clamp_min(1e-300)).tolist())
        if place
    ]
    for _, rank, name in sorted(worth):
        (outputs, features), more = sizes[name], sum(sizes[name])
        cost = min(outputs * features, (rank + 1) * more) - min(outputs * features, rank * more)
        if cost > left:
            break
        left, ranks[name] = left - cost, rank + 1
    return {name: rank for name, rank in ranks.items() if rank * sum(sizes[name]) < sizes[name][0] * sizes[name][1]}


def _too_large(site: Site, rank: int) -> str:
    if rank == 0:
        return "no rank was given for it, or its whole one"
    module: Any = site.members[0].module
    most = most_of_rank(module)
    return "" if rank <= most else f"two layers of rank {rank} would be no smaller than the one, those of rank {most} would"


def _parts(site: Site, spectrum: _Spectrum, rank: int) -> Parts:
    """The weight in the best directions alone; what the others answer on the average goes into the bias."""
    last = spectrum.directions[:, :rank]
    first = last.T @ spectrum.rows
    bias = getattr(site.members[0].module, "bias", None)
    bias = bias.detach().double() if isinstance(bias, Tensor) else None
    if bias is not None and spectrum.means is not None:
        bias = bias + (spectrum.rows - last @ first) @ spectrum.means
    return Parts(first, last, bias)


def path_of(site: Site) -> str:
    """The name of the layer that holds a site's only weight."""
    return site.members[0].parameter.rpartition(".")[0]
