"""Which pattern to use on a class of hardware, and why, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateurs.allocate import as_pattern, uniform
from secateurs.forward import run_example
from secateurs.given import MODEL, Kind, require
from secateurs.patterns import find_sites
from secateurs.run.forecast.latency import BETWEEN, CALL
from secateurs.targets.hardware import Target
from secateurs.types import Alternatives, Cost, Pattern, PatternError, Plan, PlanError, SecateursError, Sites, Term

TARGET = Kind("a target, for example targets.cpu()", lambda value: isinstance(value, Target))
PAYS = 1.05
"""From how many times as fast on a pattern is said to pay: less drowns in what else the machine does."""
_HALVINGS = 12


@dataclass(frozen=True)
class Option:
    """What one pattern would come to: the cost of a plan of it, as ``speed_up`` times as fast as dense, and the fraction of the weights
    that take part which it removes. ``reason``: why there is no such plan, or what becomes of the pattern there. ``over``: what the
    model would not fit into."""

    pattern: Pattern
    reason: str
    cost: float | None = None
    speed_up: float = 0.0
    sparsity: float = 0.0
    over: tuple[str, ...] = ()

    @property
    def pays(self) -> bool:
        """Whether it is worth a training."""
        return self.speed_up >= PAYS


@dataclass(frozen=True)
class LayerAdvice:
    """Of one layer: what it costs dense, and how many times as fast it is with each pattern that reaches it."""

    layer: str
    cost: float
    speed_ups: Mapping[Pattern, float]

    @property
    def best(self) -> Pattern | None:
        """The pattern with which it is fastest; None where none pays."""
        found = max(self.speed_ups, key=lambda pattern: self.speed_ups[pattern], default=None)
        return found if found is not None and self.speed_ups[found] >= PAYS else None


@dataclass(frozen=True)
class Recommendation:
    """What `recommend` found: printed, it says which pattern to use, and why."""

    target: str
    sparsity: float
    unit: str
    dense: float
    options: tuple[Option, ...]
    layers: tuple[LayerAdvice, ...]

    @property
    def best(self) -> Option | None:
        """The option that is fastest among those that pay, of those that fit into memory if there are any; None where none pays."""
        paying = [option for option in self.options if option.pays]
        fitting = [option for option in paying if not option.over]
        return max(fitting or paying, key=lambda option: option.speed_up, default=None)

    def __str__(self) -> str:
        lines = [self._verdict(), f"dense: {self.dense:.4g} {self.unit}"]
        lines += [f"  {_told(option, self.unit)}" for option in self.options]
        lines.append("layer by layer, times as fast as dense:")
        width = max((len(each.layer) for each in self.layers), default=0)
        for each in self.layers:
            found = ", ".join(f"{pattern} {speed:.2f}" for pattern, speed in each.speed_ups.items())
            share = f"{100 * each.cost / self.dense:4.1f} %" if self.dense else ""
            lines.append(
                f"  {each.layer:<{width}}  {share} of dense   {f'use {each.best}' if each.best else 'leave dense'}   ({found})"
            )
        return "\n".join(lines)

    def _verdict(self) -> str:
        best, asked = self.best, f"{self.target}, {100 * self.sparsity:g} % of the weights removed"
        if best is None:
            return f"{asked}: leave the model dense, no pattern pays here"
        over = f", but it does not fit: {'; '.join(best.over)}" if best.over else ""
        return f"{asked}: use {best.pattern}, {best.speed_up:.2f} times as fast as dense ({best.reason}){over}"


def recommend(model: nn.Module, target: Target, example: Any, *, sparsity: float = 0.5) -> Recommendation:
    """Which of a target's patterns to use, and why: predicted for plans that remove the same fraction of the weights that take part.

    Each pattern gets an equal share of every layer. A sparse pattern's time is that of sparse kernels, also where these are slower than
    dense ones and would not be used. A pattern that leaves no choice (2:4) removes what it removes. The model stays as it is.

    Raises `SecateursError` for a sparsity that is none, `KindError` for what is no model and no target, `TaskError` for the example.

    >>> import torch
    >>> from secateurs.targets import microcontroller
    >>> model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    >>> found = recommend(model, microcontroller(), torch.zeros(1, 64), sparsity=0.5)
    >>> [(str(option.pattern), round(option.speed_up, 1)) for option in found.options]
    [('Element()', 1.0), ("Vector('inputs', length=2, tail='keep')", 1.2), ('Channel()', 2.0)]
    >>> found.best.pattern
    Channel()
    """
    require("recommend", "model", model, MODEL)
    require("recommend", "target", target, TARGET)
    if not 0 < sparsity < 1:
        raise SecateursError(f"recommend: sparsity={sparsity} is not in (0, 1)")
    run_example(model, example)
    dense = target.cost(None)
    now, layers = dense.prepare(model, example)(None), dense.by_layer(model, example)
    options, found = [], dict[Pattern, Mapping[str, float]]()
    for pattern in target.patterns:
        option, by_layer = _tried(model, target, example, pattern, sparsity, now)
        options.append(option)
        if by_layer:
            found[pattern] = by_layer
    return Recommendation(target.name, sparsity, dense.unit, now, tuple(options), _advice(layers, found))


def _advice(layers: Mapping[str, float], found: Mapping[Pattern, Mapping[str, float]]) -> tuple[LayerAdvice, ...]:
    """A row a layer that any pattern changes, in the order of the pass."""
    advice = []
    for layer, cost in layers.items():
        if layer in (BETWEEN, CALL):
            continue
        speeds = {pattern: cost / by[layer] for pattern, by in found.items() if by.get(layer)}
        if cost and any(abs(speed - 1) > 1e-6 for speed in speeds.values()):
            advice.append(LayerAdvice(layer, cost, speeds))
    return tuple(advice)


def _tried(
    model: nn.Module, target: Target, example: Any, pattern: Pattern, sparsity: float, dense: float
) -> tuple[Option, Mapping[str, float]]:
    """What a pattern comes to, and what each layer costs then."""
    try:
        plan = _plan(find_sites(model, pattern, example), sparsity)
    except (PatternError, PlanError) as error:
        return Option(pattern, f"does not fit: {error}"), {}
    by_layer = _by_layer(target.cost(pattern), model, example, plan)
    cost = sum(by_layer.values())
    over = []
    for budget in target.limits(pattern):
        needed = budget.cost(model, example, plan)
        if needed > budget.limit_for(model, example):
            over.append(f"{needed:,.0f} {budget.cost.unit} of {budget.cost.name}, {budget.limit:,.0f} are there")
    return Option(pattern, target.why(pattern), cost, dense / cost if cost else 0.0, plan.sparsity, tuple(over)), by_layer


def _by_layer(cost: Cost, model: nn.Module, example: Any, plan: Plan) -> dict[str, float]:
    """By the sums that look at what the plan keeps: those of dense runtimes do not see zeros."""
    prepared = cost.prepare(model, example)
    if not isinstance(prepared, Alternatives):
        return cost.by_layer(model, example, plan)
    sums: Sequence[Sequence[Term]] = [terms for terms in prepared.sums(plan) if any(term.sites for term in terms)]
    counts, found = dict(plan), list[dict[str, float]]()
    for terms in sums or prepared.sums(plan):
        by_layer: dict[str, float] = {}
        for term in terms:
            by_layer[term.layer] = by_layer.get(term.layer, 0.0) + term.value(counts)
        found.append(by_layer)
    return min(found, key=lambda each: sum(each.values()))


def _plan(sites: Sites, sparsity: float) -> Plan:
    """An equal share of every site, so much that at least this fraction of their weights goes, where the pattern leaves a choice."""
    pattern = sites[0].pattern
    if pattern.kept_of_each is not None:
        return as_pattern()(sites, lambda: iter([]))
    if not pattern.removable:
        return uniform(sparsity=sparsity)(sites, lambda: iter([]))
    low, high = 0.0, 1.0  # of channels that are coupled, weights go from both sides
    plan = None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        try:
            tried = uniform(keep=middle)(sites, lambda: iter([]))
        except PlanError:
            low = middle
            continue
        if tried.sparsity >= sparsity:
            low, plan = middle, tried
        else:
            high = middle
    if plan is None:
        raise PlanError(f"{pattern} cannot remove {100 * sparsity:g} % of the weights that take part: some of each site must stay")
    return plan


def _told(option: Option, unit: str) -> str:
    if option.cost is None:
        return f"{option.pattern}: {option.reason}"
    pays = "" if option.pays else ", does not pay"
    over = f"; does not fit: {'; '.join(option.over)}" if option.over else ""
    removed = f"{100 * option.sparsity:.0f} % removed"
    return (
        f"{option.pattern}, {removed}: {option.cost:.4g} {unit}, {option.speed_up:.2f} times as fast{pays}: {option.reason}{over}"
    )
