"""Giving a model's weights few values: by clusters, or by any quantiser."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from secateurs.coding import Levels
from secateurs.compressing.means import Start
from secateurs.compressing.quantisers import Per, Quantiser, k_means
from secateurs.compressing.shared import Shared, Weights
from secateurs.compressing.tied import Fixed, Gradient, Ternary, Tie
from secateurs.forward import parameters_in
from secateurs.given import COUNT, MASKS, MODEL, Kind, require, require_values
from secateurs.masks import Masks
from secateurs.patterns import Element, Selection, find_sites
from secateurs.patterns.selection import means
from secateurs.ranks import is_sharded
from secateurs.recover.reparametrised import Learner
from secateurs.types import Hook, Plan, SecateursError, Skipped

QUANTISER = Kind(
    "a quantiser, for example k_means(bits=5), or a dict of layers with one each",
    lambda value: (
        isinstance(value, Quantiser)
        or (isinstance(value, Mapping) and len(value) > 0 and all(isinstance(each, Quantiser) for each in value.values()))
    ),
)


def share_(
    model: nn.Module,
    bits: int | Mapping[str, int] | Plan | None = 5,
    *,
    clusters: int | Mapping[str, int] | None = None,
    masks: Masks | None = None,
    per: Per = "layer",
    start: Start | None = None,
    seed: int = 0,
    gradient: Gradient = "mean",
    only: Selection | None = None,
    skip: Selection | None = None,
    example: Any = None,
) -> Shared:
    """Give each weight few values, in place: the means of 2 ** ``bits`` clusters of its numbers, or of so many ``clusters``, beside zero.

    Deep Compression (1510.00149); `k_means` tells of ``per``, ``start`` and ``seed``. ``bits`` and ``clusters`` may be said by layer, name
    or glob → number, the first that means a layer; layers that none means are left alone; of a plan, the bits of its numbers count.
    Prunable weights take part as in `prune_`, those of two dimensions or more and no embeddings, or those named in ``only=`` and not in
    ``skip=``; a weight that several layers have is shared once. Weights that are zero, and what ``masks`` hold, stay zero and count for
    nothing.

    What is returned is a hook of `train_` that trains the values and tells the levels (`Shared`). ``gradient="mean"``: in a step
    each value goes where its weights would go on average, at the rates of single weights. "sum" is the paper's gradient of a value: so many
    times larger as it has weights, and takes a learning rate so much smaller with SGD; with Adam and its like both do about the same.

    Raises what `quantise_` does, and `SecateursError` for numbers of bits or clusters out of range.

    >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> shared = share_(model, bits={"0": 3, "*": 1})
    >>> {name: size.values for name, size in shared.sizes.items()}
    {'0.weight': 8, '2.weight': 2}
    """
    if clusters is not None and bits not in (None, 5):
        raise SecateursError(f"share_: give bits={bits!r} or clusters={clusters!r}, not both")
    word, asked = ("bits", _of_plan(bits) if isinstance(bits, Plan) else bits) if clusters is None else ("clusters", clusters)
    if not isinstance(asked, Mapping):
        require("share_", word, asked, COUNT)
    by = asked if isinstance(asked, Mapping) else {"": asked}
    made: dict[str, Quantiser] = {}
    for name, number in by.items():
        require("share_", f"{word} of {name}" if name else word, number, COUNT)
        made[name] = k_means(**{word: number}, per=per, start=start, seed=seed)
    chosen = made if isinstance(asked, Mapping) else made[""]
    require_gradient("share_", gradient)
    found, skipped = found_levels("share_", model, chosen, masks, only, skip, example)
    return write_("share_", model, found, skipped, lambda each: each.fixed(gradient))


def _of_plan(plan: Plan) -> dict[str, int]:
    """Parameter → the bits of its numbers, where a plan says them."""
    found = {name: plan.bits_of(name) for share in plan.shares.values() for name in share.elements}
    told = {name: bits for name, bits in found.items() if bits is not None}
    if not told:
        raise SecateursError("share_: this plan says of no number how many bits it takes; give bits=5, or by layer bits={...}")
    return told


def quantise_(
    model: nn.Module,
    quantiser: Quantiser | Mapping[str, Quantiser],
    *,
    masks: Masks | None = None,
    train_values: bool = True,
    gradient: Gradient = "mean",
    reassign: bool = False,
    learner: Learner | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    example: Any = None,
) -> Shared:
    """Give each weight the values that a quantiser makes, in place; returns the hook of `train_` that keeps them so, as `share_` does.

    ``quantiser``: one for all, or layer name or glob → quantiser, the first that means a layer. In training, values of tables and scales
    follow the gradient as in `share_`, those of `powers_of_two` and all with ``train_values=False`` stay, and the other parameters learn.
    Weights keep their levels, but with ``reassign=True``, for `ternary` alone, weights are kept whole beside, learn by the gradient that
    passes straight through, and get zero or the value of their sign anew in each step (TTQ, 1612.01064); ``learner`` then makes the
    optimizer of the values, which are parts of those at first; by default Adam of rate 0.001.

    Raises `PatternError` where no weight is chosen and for names that mean nothing; `NonFiniteError` for NaN and infinities;
    `SecateursError` for meta and sharded weights, and those that do not fall into a quantiser's groups. After an error the model is as it
    was. Warns where a layer has no more different numbers than values are asked for: these stay as they are.

    >>> from secateurs.compressing import uniform
    >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 2))
    >>> print(quantise_(model, uniform(bits=4, per="channel")).levels["2.weight"].numbers.abs().max())
    tensor(7, dtype=torch.int32)
    """
    require("quantise_", "quantiser", quantiser, QUANTISER)
    require_gradient("quantise_", gradient)
    found, skipped = found_levels("quantise_", model, quantiser, masks, only, skip, example)
    if not reassign:
        return write_("quantise_", model, found, skipped, lambda each: each.fixed(gradient, train_values), learner)
    other = next((name for name, each in found.items() if each.quantiser.thresholds is None), None)
    if other is not None or not train_values:
        what = f"{other} has {found[other].quantiser!r}" if other is not None else "train_values=False"
        raise SecateursError(f"quantise_: reassign=True trains the values of ternary(), and {what}: leave reassign out")
    return write_("quantise_", model, found, skipped, Found.ternary, learner)


def require_gradient(who: str, gradient: str) -> None:
    """Raise `SecateursError` where something is no way to join gradients.

    >>> require_gradient("mine", "sum")
    """
    if gradient not in get_args(Gradient):
        raise SecateursError(f'{who}: gradient={gradient!r} is neither "mean" nor "sum"')


@dataclass(frozen=True)
class Found:
    """A weight, what is kept of it, and the levels that a quantiser has made of that."""

    weight: nn.Parameter
    mask: Tensor | None
    quantiser: Quantiser
    levels: Levels

    def fixed(self, gradient: Gradient, train_values: bool = True) -> Tie:
        """Levels that stay, and values that are trained where that is wished and possible."""
        return Fixed.of(self.levels, gradient, held=not (train_values and self.quantiser.trained))

    def ternary(self) -> Tie:
        """Levels that are asked for anew in each step."""
        assert self.quantiser.thresholds is not None
        whole = self.weight.detach().clone()
        if self.mask is not None:
            whole.masked_fill_(~self.mask.to(whole.device), 0)
        return Ternary.of(self.levels, self.quantiser.per, self.quantiser.thresholds, whole)

    def kept(self) -> Tensor:
        """The weight without what masks hold, float64."""
        wide = self.weight.detach().double()
        return wide if self.mask is None else torch.where(self.mask.to(wide.device), wide, 0.0)

    def error(self) -> float:
        """The root of the squared error, as a part of that of the squares of what is kept."""
        kept = self.kept()
        size = float(kept.square().sum())
        return float((self.levels.values().to(kept.device).double() - kept).square().sum() / size) ** 0.5 if size else 0.0


def found_levels(
    who: str,
    model: nn.Module,
    quantiser: Quantiser | Mapping[str, Quantiser],
    masks: Masks | None,
    only: Selection | None,
    skip: Selection | None,
    example: Any,
    told: bool = True,
) -> tuple[dict[str, Found], list[Skipped]]:
    """The levels of each weight that takes part, by parameter, and what is left alone; the model stays as it is."""
    require(who, "model", model, MODEL)
    require_values(who, model)
    if masks is not None:
        require(who, "masks", masks, MASKS)
    kept = {} if masks is None else masks.named_as_in(model)
    sites = find_sites(model, Element(), example, only=only, skip=skip)
    chosen = chosen_by(who, [(site.name, site.members[0].parameter) for site in sites], quantiser)
    parameters, skipped = parameters_in(model), list(sites.skipped)
    found: dict[str, Found] = {}
    for site in sites:
        name = site.members[0].parameter
        if name not in chosen:
            skipped.append(Skipped(site.name, f"not named in what {who} is given by layer"))
            continue
        weight, mask = parameters[name], kept.get(name)
        if is_sharded(weight):
            raise SecateursError(f"{who}: {name} is sharded over processes (fully_shard): give it its values before it is sharded")
        if any(size > 1 and not step for size, step in zip(weight.shape, weight.stride(), strict=True)):
            raise SecateursError(
                f"{who}: {name} is expanded, many of its numbers in one place of memory; give it its own, with clone()"
            )
        found[name] = Found(weight, mask, chosen[name], chosen[name](weight, mask, layer=name))
    if told:
        _tell_fewer(who, found)
    return found, skipped


T = TypeVar("T")


def chosen_by(who: str, layers: Sequence[tuple[str, str]], given: T | Mapping[str, T]) -> dict[str, T]:
    """Parameter → what is said of it: one thing for all, or layer name, parameter or glob → thing, of which the first that means it counts.

    Raises `SecateursError` for a key that means none.

    >>> chosen_by("mine", [("conv1", "conv1.weight"), ("fc", "fc.weight")], {"conv*": 8, "*": 5})
    {'conv1.weight': 8, 'fc.weight': 5}
    """
    if not isinstance(given, Mapping):
        return {parameter: given for _, parameter in layers}
    for key in given:
        if not any(means(key, names) for names in layers):
            known = [name for name, _ in layers]
            close = difflib.get_close_matches(key, known, n=3) or known[:5]
            raise SecateursError(f"{who}: no layer that takes part is called {key!r}; did you mean {', '.join(close)}?")
    first = {names[1]: next((value for key, value in given.items() if means(key, names)), None) for names in layers}
    return {name: value for name, value in first.items() if value is not None}


def _tell_fewer(who: str, found: Mapping[str, Found]) -> None:
    """Warn of weights that have fewer different numbers than values were asked for."""
    fewer = [
        f"{name} ({len(torch.unique(each.levels.numbers[each.levels.numbers != 0]))} of {each.quantiser.count})"
        for name, each in found.items()
        if each.quantiser.count is not None
        and each.levels.runs == 1
        and len(torch.unique(each.levels.numbers[each.levels.numbers != 0])) < each.quantiser.count
    ]
    if fewer:
        more = f" and {len(fewer) - 3} more" if len(fewer) > 3 else ""
        warnings.warn(
            f"{who}: no more different numbers than values asked for, so that these stay as they are: {', '.join(fewer[:3])}{more}",
            stacklevel=4,
        )


def write_(
    who: str,
    model: nn.Module,
    found: Mapping[str, Found],
    skipped: Sequence[Skipped],
    tie: Callable[[Found], Tie],
    learner: Learner | None = None,
) -> Shared:
    """The model's weights become the values of their levels; returns what keeps them so."""
    ties = {name: tie(each) for name, each in found.items()}
    errors = {name: each.error() for name, each in found.items()}
    weights = Weights({name: each.weight for name, each in found.items()}, ties, errors)
    hook = weights.hook(who, learner or (lambda values: torch.optim.Adam(values, lr=1e-3)))
    with torch.no_grad():
        for each in found.values():
            each.weight.copy_(each.levels.values())
    return Shared(**{part.name: getattr(hook, part.name) for part in fields(Hook)}, weights=weights, skipped=tuple(skipped))
