"""The checks must fail: each law is broken on purpose, and the check must say which one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateurs.allocate import bounds, plan_of, uniform
from secateurs.costs import params
from secateurs.criteria import magnitude
from secateurs.evidence import input_norm
from secateurs.patterns import Block, Channel, Element, Head, Vector, in_no_weight, sites_in_weights, sites_on_axes, tiled
from secateurs.patterns.canonical import LAYOUTS, Layout
from secateurs.shrink import Shrunk
from secateurs.solve import TopK
from secateurs.testing import (
    COUPLED,
    LAYERS,
    Specimen,
    check_allocator,
    check_cost,
    check_coupling,
    check_criterion,
    check_pattern,
    check_solver,
)
from secateurs.types import Cost, Criterion, Evidence, PatternError, Plan, Site, Sites, Skipped, Solution, Statistic

calls = count()
CUT = import_module("secateurs.patterns.cut")
LINEAR = [specimen for specimen in LAYERS if specimen.name == "Linear"]

# ------------------------------------------------------------------------------------------------ specimens


def test_specimens_have_no_zero_and_are_the_same_each_time():
    for specimen in (*LAYERS, *COUPLED):
        first, second = specimen.model().state_dict(), specimen.model().state_dict()
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert all((parameter != 0).all() for parameter in specimen.model().parameters())


def test_making_a_specimen_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    LAYERS[0].model()
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------------------ patterns


@dataclass(frozen=True)
class Odd:
    """A pattern whose parts can be replaced by broken ones."""

    kind: str = "fine"
    within: Any = "layer"
    tail: str = "error"
    kept_of_each: Any = None
    removable = False
    cut = tiled
    sites = sites_in_weights

    def tile(self, shape):
        match self.kind:
            case "not a whole number":
                return (1.0,) * (len(shape) - 1)
            case "too short":
                return (1,) * (len(shape) - 2)
            case "fits nothing":
                raise PatternError(f"{self} fits nothing")
            case "no reason":
                raise PatternError("")
        return (1,) * (len(shape) - 1)


def test_a_pattern_of_ones_own_passes():
    assert check_pattern(Odd()) is None


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (object(), "lacks one of tail, tile, within, kept_of_each, removable, cut, sites"),
        (Odd("fits nothing"), "fits none of the layers"),
        (Odd("no reason"), "gives no reason"),
        (Odd(within=4, kept_of_each=4), "keeps 4 of each 4"),
        (Odd(within=4, kept_of_each=0), "keeps 0 of each 4"),
    ],
)
def test_a_broken_pattern_is_found(pattern, said):
    with pytest.raises(AssertionError, match=said):
        check_pattern(pattern)


class Nameless(Odd):
    def __repr__(self) -> str:
        return "<a pattern>"


class Misnamed(Odd):
    def __repr__(self) -> str:
        return "Element()"


class Unequal(Odd):
    def __hash__(self) -> int:
        return next(calls)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [(Nameless(), "cannot be evaluated"), (Misnamed(), "another pattern"), (Unequal(), "another hash")],
)
def test_a_repr_or_hash_that_lies_is_found(pattern, said):
    with pytest.raises(AssertionError, match=said):
        check_pattern(pattern)


class Own(nn.Module):
    """A layer of one's own, whose layout can be broken."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Copying(Layout):
    def canonical(self, tensor: Tensor) -> Tensor:
        return super().canonical(tensor).clone()


class Sharing(Layout):
    def canonical(self, tensor: Tensor) -> Tensor:
        return tensor[:1].expand(1, 4, 8)[None, 0]


@pytest.mark.parametrize(("layout", "said"), [(Copying(), "a copy, not a view"), (Sharing(), "do two share an element")])
def test_a_layout_that_copies_or_overlaps_is_found(monkeypatch, layout, said):
    monkeypatch.setitem(LAYOUTS, Own, lambda module, attribute: layout)
    with pytest.raises(AssertionError, match=said):
        check_pattern(Element(), on=[Specimen("own", Own, torch.zeros(1, 8))])


def broken_cut(change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda pattern, shape: change(tiled(pattern, shape))


BROKEN_CUTS: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "the view is a copy": (Element(), lambda it: replace(it, view=lambda t: it.view(t).clone()), "a copy, not a view"),
    "a part is left out": (
        Element(),
        lambda it: replace(it, view=lambda t: it.view(t)[:, :, :1].expand_as(it.view(t))),
        "do two share an element",
    ),
    "elements are miscounted": (Element(), lambda it: replace(it, elements=(2,)), "elements in the cut"),
    "the shape is another": (Element(), lambda it: replace(it, competitors=it.competitors[::-1]), "does not begin with"),
    "rows compete": (
        Element(),
        lambda it: replace(it, contests=it.competitors[:2], competitors=it.competitors[2:]),
        "contests, though",
    ),
    "columns compete": (
        Element(within="row"),
        lambda it: replace(
            it, view=lambda t: it.view(t).transpose(1, 2), contests=(1, *it.competitors), competitors=it.contests[1:]
        ),
        "reaches over 8 outputs",
    ),
    "not consecutive": (
        Element(within=4),
        lambda it: replace(it, view=lambda t: t.unflatten(2, (4, t.shape[2] // 4)).transpose(2, 3)),
        "not 4 consecutive",
    ),
    "outputs compete": (
        Element(within=4),
        lambda it: replace(it, view=lambda t: t.unflatten(1, (2, 4)).movedim(2, -1), contests=(1, 2, 16), competitors=(4,)),
        "reaches over 4 outputs",
    ),
}


@pytest.mark.parametrize("law", BROKEN_CUTS)
def test_a_broken_cut_is_found(monkeypatch, law):
    pattern, change, said = BROKEN_CUTS[law]
    monkeypatch.setattr(type(pattern), "cut", broken_cut(change))
    with pytest.raises(AssertionError, match=said):
        check_pattern(pattern, on=LINEAR)


def test_units_that_straddle_groups_are_found(monkeypatch):
    straddling = broken_cut(lambda right: replace(right, view=lambda t: right.view(t).transpose(0, -1)))
    monkeypatch.setattr(Vector, "cut", straddling)
    grouped = [specimen for specimen in LAYERS if specimen.name == "Conv2d, grouped"]
    with pytest.raises(AssertionError, match="no box"):
        check_pattern(Vector("outputs", 2), on=grouped)


def test_a_rest_that_is_dropped_in_silence_is_found(monkeypatch):
    monkeypatch.setattr(CUT, "_covered", lambda pattern, shape, sizes: [n // s * s for n, s in zip(shape, sizes, strict=True)])
    with pytest.raises(AssertionError, match="passed over in silence"):
        check_pattern(Block(2, 2), on=LINEAR)
    with pytest.raises(AssertionError, match="belong to no unit"):
        check_pattern(Block(2, 2))


def test_a_tail_that_keeps_more_than_the_rest_is_found(monkeypatch):
    def one_step_less(pattern, shape, sizes):
        covered = right(pattern, shape, sizes)
        return [n - s if pattern.tail == "keep" and n > s > 1 else n for n, s in zip(covered, sizes, strict=True)]

    right = CUT._covered
    monkeypatch.setattr(CUT, "_covered", one_step_less)
    assert Block(2, 2).cut((1, 4, 4)).competitors == (1, 2, 2)
    with pytest.raises(AssertionError, match="exactly the rest"):
        check_pattern(Block(2, 2))


# ------------------------------------------------------------------------------------------------ patterns on axes

PERCEPTRON, ATTENTION = COUPLED[:1], COUPLED[-1:]
COUPLING = import_module("secateurs.testing.coupling")


@dataclass(frozen=True)
class Neurons:
    """A pattern of one's own: what `Channel` asks for, and nothing else."""

    within: Any = "layer"
    round_to: int = 1
    approximate: bool = False
    only_heads: bool = False
    kept_of_each: Any = None
    removable = True
    cut = in_no_weight
    sites = sites_on_axes


class NamelessAxis(Neurons):
    def __repr__(self) -> str:
        return "<a pattern>"


class MisnamedAxis(Neurons):
    def __repr__(self) -> str:
        return "Channel()"


class UnequalAxis(Neurons):
    def __hash__(self) -> int:
        return next(calls)


def test_a_pattern_on_axes_of_ones_own_passes():
    assert check_coupling(Neurons(), on=PERCEPTRON) is None
    assert check_coupling(Head(), on=PERCEPTRON) is None  # has no heads


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (object(), "lacks one of round_to"),
        (Element(), "lacks one of round_to"),
        (NamelessAxis(), "cannot be evaluated"),
        (MisnamedAxis(), "another pattern"),
        (UnequalAxis(), "another hash"),
    ],
)
def test_a_broken_pattern_on_axes_is_found(pattern, said):
    with pytest.raises(AssertionError, match=said):
        check_coupling(pattern, on=PERCEPTRON)


def test_a_pattern_on_axes_that_finds_nothing_is_found(monkeypatch):
    def nothing(*_: Any) -> Sites:
        raise PatternError("nothing here")

    monkeypatch.setattr(COUPLING, "find_sites", nothing)
    with pytest.raises(AssertionError, match="finds a site in none of"):
        check_coupling(Channel())


def looking(look: Callable[[nn.Module], object]) -> Callable[[Sites], Sites]:
    def change(sites: Sites) -> Sites:
        look(sites.model)
        return sites

    return change


def each(change: Callable[[Site], Site]) -> Callable[[Sites], Sites]:
    return lambda sites: replace(sites, found=tuple(map(change, sites)))


BROKEN_SITES: dict[str, tuple[Callable[[Sites], Sites], str]] = {
    "writes": (looking(lambda model: next(model.parameters()).data.mul_(2)), "find_sites changed 0.weight"),
    "leaves a buffer": (looking(lambda model: model.register_buffer("seen", torch.ones(1))), "changed the names"),
    "leaves another mode": (looking(lambda model: model.eval()), "between training and evaluation"),
    "one name": (each(lambda site: replace(site, name="the site")), "two sites have one name"),
    "no maker": (each(lambda site: replace(site, members=site.members[1:])), "no weight makes its units"),
    "many contests": (each(lambda site: replace(site, contests=(2,))), "2 contests"),
    "gone at first": (each(lambda site: replace(site, alive=torch.ones(1, site.units, dtype=torch.bool))), "before any pruning"),
}


@pytest.mark.parametrize("law", BROKEN_SITES)
def test_broken_sites_of_axes_are_found(monkeypatch, law):
    change, said = BROKEN_SITES[law]
    right = COUPLING.find_sites
    monkeypatch.setattr(COUPLING, "find_sites", lambda *given, **named: change(right(*given, **named)))
    with pytest.raises(AssertionError, match=said):
        check_coupling(Channel(), on=PERCEPTRON)


def without_last(site: Site) -> Site:
    left = site.members[:-1]
    elements = sum(member.cut(member.canonical(member.weight))[0].numel() for member in left)
    return replace(site, members=left, elements_per_unit=elements)


def with_cut(change: Callable[[Tensor], Tensor]) -> Callable[[Site], Site]:
    def changed_site(site: Site) -> Site:
        first, *others = site.members
        return replace(site, members=(replace(first, cut=lambda view: change(first.cut(view))), *others))

    return changed_site


BROKEN_COUPLINGS: dict[str, tuple[Callable[[Site], Site], str]] = {
    "the view is a copy": (with_cut(lambda view: view.clone()), "a copy, not a view"),
    "units are not in front": (with_cut(lambda view: view.movedim(0, -1)), "does not begin with the units"),
    "units overlap": (with_cut(lambda view: view[:1].expand_as(view)), "two units share an element"),
    "masks are copied": (with_cut(lambda view: view.clone() if view.dtype == torch.bool else view), "reaches 0 elements of 192"),
    "elements are miscounted": (lambda site: replace(site, elements_per_unit=1), "but the site says 1"),
    "a member is missing": (without_last, "change the model's answers: a member is missing"),
    "rounds to nothing": (lambda site: replace(site, step=1), "no multiple of round_to=2"),
}


@pytest.mark.parametrize("law", BROKEN_COUPLINGS)
def test_a_broken_coupling_is_found(monkeypatch, law):
    change, said = BROKEN_COUPLINGS[law]
    axes = import_module("secateurs.patterns.axes")
    right = axes._site
    monkeypatch.setattr(axes, "_site", lambda *given: change(right(*given)))
    with pytest.raises(AssertionError, match=said):
        check_coupling(Channel(round_to=2), on=PERCEPTRON)


def inverted(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda site, solution: right(site, Solution(~solution.kept))


def first_weight_alone(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda site, solution: dict(list(right(site, solution).items())[:1])


def emptying(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda keep: lambda sites, scores: plan_of(sites, dict.fromkeys((site.name for site in sites), 0))


def shrinking(change: Callable[..., Any]) -> Callable[..., Any]:
    def broken(right: Callable[..., Any]) -> Callable[..., Any]:
        return lambda model, masks: change(model, right(model, masks))

    return broken


def spoiled(model: nn.Module, shrunk: Any) -> Any:
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    return shrunk


def grown(model: nn.Module, shrunk: Any) -> Any:
    model.register_parameter("more", nn.Parameter(torch.ones(7)))
    return shrunk


BROKEN_ROOMS: dict[str, tuple[str, Callable[[Callable[..., Any]], Callable[..., Any]], str]] = {
    "masks the wrong units": ("masks_of", inverted, "the mask of 0.weight is wrong in 192 places"),
    "masks one weight": ("masks_of", first_weight_alone, "masks of .*, not of"),
    "empties": ("uniform", emptying, "the site is emptied"),
    "spoils": ("shrink_", shrinking(spoiled), "answers otherwise than the masked one"),
    "grows": ("shrink_", shrinking(grown), "promises .* parameters, but the shrunk model has"),
    "shrinks nothing": ("shrink_", lambda right: lambda model, masks: Shrunk(), "keeps {}, but the plan {'0': "),
    "gives up": (
        "shrink_",
        shrinking(lambda model, shrunk: replace(shrunk, skipped=(Skipped("2", "too hard"),))),
        "left .*too hard",
    ),
}


@pytest.mark.parametrize("law", BROKEN_ROOMS)
def test_what_is_broken_behind_a_coupling_is_found(monkeypatch, law):
    name, change, said = BROKEN_ROOMS[law]
    monkeypatch.setattr(COUPLING, name, change(getattr(COUPLING, name)))
    with pytest.raises(AssertionError, match=said):
        check_coupling(Channel(), on=PERCEPTRON)


@pytest.mark.parametrize(("cost", "said"), [("macs", "MACs, but"), ("0.bias", "parameters, but")])
def test_a_promise_of_coupled_sites_that_is_not_kept_is_found(monkeypatch, cost, said):
    axes = import_module("secateurs.patterns.axes")
    right = axes._extents
    fixed = {"macs": (((100, ()),),), "0.bias": (((12, ()),),)}  # as if nothing were coupled to it
    monkeypatch.setattr(axes, "_extents", lambda *given: {**right(*given), cost: (fixed[cost],)})
    with pytest.raises(AssertionError, match=said):
        check_coupling(Channel(), on=PERCEPTRON)


def test_earlier_masks_that_are_forgotten_are_found(monkeypatch):
    monkeypatch.setattr("secateurs.patterns.axes.with_alive", lambda site, masks: site)
    with pytest.raises(AssertionError, match="after masks of every second unit of 0, 12 of 12 units of 0 are left, not 6"):
        check_coupling(Channel(), on=PERCEPTRON)


def test_scores_that_do_not_move_with_their_units_are_found(monkeypatch):
    monkeypatch.setattr(COUPLING, "_CRITERIA", (Criterion("by place", by_place, summed),))
    with pytest.raises(AssertionError, match=r"must take their scores with them \(by place\)"):
        check_coupling(Channel(), on=PERCEPTRON)


def test_a_normalisation_that_is_taken_for_exact_is_found(monkeypatch):
    """LayerNorm's width: the shrunk model answers otherwise, and a pattern that does not ask for that must not touch it."""

    axes = import_module("secateurs.patterns.axes")
    right = axes.coupled_sites
    monkeypatch.setattr(
        "secateurs.patterns.axes.coupled_sites",
        lambda model, pattern, *given: right(model, replace(pattern, approximate=True), *given),
    )
    with pytest.raises(AssertionError, match="answers otherwise than the masked one"):
        check_coupling(Neurons(), on=ATTENTION)


# ------------------------------------------------------------------------------------------------ criteria


def absolute(evidence: Evidence) -> Tensor:
    return evidence.weight.abs()


def summed(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    return values.sum(dims)


def drawn(evidence: Evidence) -> Tensor:
    return torch.rand(evidence.weight.shape)


def by_place(evidence: Evidence) -> Tensor:
    return torch.arange(evidence.weight.numel(), dtype=torch.float32).view(evidence.weight.shape)


def spoiling(evidence: Evidence) -> Tensor:
    return evidence.weight.abs_()


def summed_from_the_front(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    return values.sum(tuple(range(len(dims))))


STATISTIC = input_norm()


def spoiling_statistic(evidence: Evidence) -> Tensor:
    return evidence.weight.abs() * evidence[STATISTIC].mul_(2)


CRITERIA: list[tuple[Criterion, str]] = [
    (Criterion("double", lambda e: e.weight.double().abs(), summed), "not torch.float32"),
    (Criterion("logarithm of nothing", lambda e: (e.weight * 0).log(), summed), "NaN or infinite"),
    (Criterion("drawn anew", drawn, summed), "one call to the next"),
    (Criterion("by place", by_place, summed), "take their scores with them"),
    (Criterion("spoiling", spoiling, summed), "changed weight"),
    (
        Criterion("spoiling the statistic", spoiling_statistic, summed, (STATISTIC,)),
        "one call to the next|changed the statistic",
    ),
    (Criterion("keeps dims", absolute, lambda v, dims: v.sum(dims, keepdim=True)), "it must remove"),
    (Criterion("wrong dims", absolute, summed_from_the_front), "no score for each unit|it must remove"),
    (Criterion("whole", lambda e: e.weight.abs().flatten(), summed), "must broadcast"),
]


@pytest.mark.parametrize(("criterion", "said"), CRITERIA, ids=lambda value: getattr(value, "name", ""))
def test_a_broken_criterion_is_found(criterion, said):
    with pytest.raises(AssertionError, match=said):
        check_criterion(criterion)


def test_scores_of_coupled_weights_that_do_not_move_with_their_units_are_found():
    by_place_of_biases = Criterion(
        "by place of biases", lambda e: by_place(e) if e.weight.ndim == 1 else e.weight.abs(), summed, members="all"
    )
    with pytest.raises(AssertionError, match="change places in every weight"):
        check_criterion(by_place_of_biases)


def test_random_draws_by_layer_pass_when_they_say_so_and_not_otherwise():
    from secateurs.criteria import random

    assert check_criterion(random(), permutes=False) is None
    with pytest.raises(AssertionError, match="permutes=False"):
        check_criterion(random())


def test_an_order_that_depends_on_the_scale_is_found():
    humped = Criterion("nearest to one half", lambda e: -(e.weight.abs() - 0.5).abs(), summed)
    assert check_criterion(humped) is None
    with pytest.raises(AssertionError, match="another order"):
        check_criterion(humped, keeps_order_when_scaled=True)


def test_a_product_after_the_reduction_is_found():
    class Late(Criterion):
        def __mul__(self, other: Any) -> Criterion:
            return self

    with pytest.raises(AssertionError, match="before the reduction"):
        check_criterion(Late("late", absolute, summed))


def test_a_criterion_that_nothing_can_be_observed_for_is_found():
    embedding = [specimen for specimen in LAYERS if specimen.name == "Embedding"]
    with pytest.raises(AssertionError, match="can be observed on none"):
        check_criterion(magnitude() * input_norm(), on=embedding)


def test_evidence_can_be_given_by_hand():
    given = Statistic("given", lambda member: None)
    criterion = magnitude(p=1) * given
    assert check_criterion(criterion, stats={"weight": {given: torch.ones(1, 1, 16)}}, on=LINEAR) is None
    with pytest.raises(AssertionError, match="NaN or infinite"):
        check_criterion(criterion, stats={"weight": {given: torch.full((1, 1, 16), torch.nan)}}, on=LINEAR)


# ------------------------------------------------------------------------------------------------ solvers


@dataclass(frozen=True)
class OwnSolver:
    """TopK, with one part replaced."""

    choose: Callable[[Any, int, Tensor], Any] | None = None
    score: Callable[[Any, Tensor], Tensor] | None = None
    needs: tuple[Statistic, ...] = ()

    def scores(self, sites: Iterable[Any], stats: Any) -> Iterator[Tensor]:
        for site in sites:
            (scores,) = TopK(magnitude()).scores([site], stats)
            yield scores if self.score is None else self.score(site, scores)

    def __call__(self, site: Any, kept: int, stats: Any) -> Any:
        solution = TopK(magnitude())(site, kept, stats)
        return solution if self.choose is None else self.choose(site, kept, solution.kept)


def exactly(scores: Tensor, site: Any, kept: int) -> Tensor:
    """As many of each contest as wanted, the lowest first, of those that are alive."""
    alive = torch.ones(scores.shape, dtype=torch.bool) if site.alive is None else site.alive
    order = torch.where(alive, scores, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return (order < site.each_of(kept)) & alive


def lowest_first(site: Any, kept: int, chosen: Tensor) -> Solution:
    (scores,) = TopK(magnitude()).scores([site], {})
    return Solution(exactly(scores, site, kept))


def with_ties(site: Any, kept: int, chosen: Tensor) -> Solution:
    (scores,) = TopK(magnitude()).scores([site], {})
    return Solution(scores >= scores.masked_fill(~chosen, torch.inf).amin(1, keepdim=True)) if kept else Solution(chosen)


def reviving(site: Any, kept: int, chosen: Tensor) -> Solution:
    return Solution(~site.alive) if site.alive is not None and kept else Solution(chosen)


def one_less(site: Any, kept: int, chosen: Tensor) -> Solution:
    return TopK(magnitude())(site, site.kept_by(max(site.each_of(kept) - 1, 0)), {})


def changing(site: Any, kept: int, chosen: Tensor) -> Solution:
    with torch.no_grad():
        site.members[0].weight.mul_(0.5)
    return Solution(chosen)


def last_of_ties(site: Any, kept: int, chosen: Tensor) -> Solution:
    (scores,) = TopK(magnitude()).scores([site], {})
    return Solution(exactly(-scores.flip(1), replace(site, alive=None if site.alive is None else site.alive.flip(1)), kept).flip(1))


def one_less_of_coupled(site: Any, kept: int, chosen: Tensor) -> Solution:
    return TopK(magnitude())(site, max(kept - 1, 0), {}) if len(site.members) > 1 else Solution(chosen)


def shuffled(site: Any, kept: int, chosen: Tensor) -> Solution:
    (scores,) = TopK(magnitude()).scores([site], {})
    return Solution(exactly(torch.rand(scores.shape), site, kept))


def writing(values: Callable[[Any], dict[str, Tensor]]) -> Callable[[Any, int, Tensor], Solution]:
    return lambda site, kept, chosen: Solution(chosen, values(site))


SOLVERS: dict[str, tuple[OwnSolver, str]] = {
    "lowest first": (OwnSolver(lowest_first), "scores higher than one that it keeps"),
    "ties all kept": (OwnSolver(with_ties), "equal weights.*it keeps|many ties.*it keeps"),
    "one less": (OwnSolver(one_less), "it keeps"),
    "the last of ties": (OwnSolver(last_of_ties), "of units that score the same, the first must stay"),
    "reviving": (OwnSolver(reviving), "came back"),
    "changing the model": (OwnSolver(changing), "changed weight"),
    "numbers, not bools": (OwnSolver(lambda site, kept, chosen: Solution(chosen.float())), "not torch.bool"),
    "another shape": (OwnSolver(lambda site, kept, chosen: Solution(chosen.T)), "of shape"),
    "a stranger's weight": (OwnSolver(writing(lambda site: {"other": torch.ones(1)})), "no part of the site"),
    "a weight of another shape": (OwnSolver(writing(lambda site: {"weight": torch.ones(1)})), "its weight is of shape"),
    "a weight that is NaN": (OwnSolver(writing(lambda site: {"weight": site.members[0].weight * torch.nan})), "NaN or inf"),
    "scores of another shape": (OwnSolver(score=lambda site, scores: scores.T), "scores of shape"),
    "scores that are NaN": (OwnSolver(score=lambda site, scores: scores * torch.nan), "score is NaN"),
}


def test_a_solver_of_ones_own_passes():
    assert check_solver(OwnSolver()) is None
    assert check_solver(OwnSolver(writing(lambda site: {"weight": site.members[0].weight * 2})), on=LINEAR) is None


@pytest.mark.parametrize("law", SOLVERS)
def test_a_broken_solver_is_found(law):
    solver, said = SOLVERS[law]
    with pytest.raises(AssertionError, match=said):
        check_solver(solver, on=LINEAR)


def test_a_solver_that_is_broken_on_coupled_weights_alone_is_found():
    assert check_solver(OwnSolver(one_less_of_coupled), on=LINEAR) is None
    with pytest.raises(AssertionError, match=r"with Channel\(\) on perceptron, 0, .* it keeps"):
        check_solver(OwnSolver(one_less_of_coupled))


def test_a_solver_may_refuse_coupled_weights_and_nothing_else():
    def refusing(refused: Callable[[Any], bool]) -> Callable[[Any, Tensor], Tensor]:
        def score(site: Any, scores: Tensor) -> Tensor:
            if refused(site):
                raise PatternError("not this one")
            return scores

        return score

    assert check_solver(OwnSolver(score=refusing(lambda site: len(site.members) > 1))) is None
    with pytest.raises(AssertionError, match="can be observed on none of"):
        check_solver(OwnSolver(score=refusing(lambda site: True)))


def test_a_solver_that_is_not_deterministic_is_found_even_where_choice_is_not_by_score():
    with pytest.raises(AssertionError, match="another solution"):
        check_solver(OwnSolver(shuffled), by_score=False, on=LINEAR)


def test_a_solver_that_keeps_more_than_there_are_is_found():
    class Lenient(OwnSolver):
        def __call__(self, site: Any, kept: int, stats: Any) -> Any:
            return super().__call__(site, min(kept, site.available), stats)

    with pytest.raises(AssertionError, match="must be a PlanError"):
        check_solver(Lenient(), on=LINEAR)


# ------------------------------------------------------------------------------------------------ allocators


def changed(change: Callable[[Plan, Sites], Plan]) -> Callable[..., Any]:
    """`uniform` with its plans changed."""

    def make(**fraction: float) -> Any:
        right = uniform(**fraction)
        return lambda sites, scores: change(right(sites, scores), sites)

    return make


def with_counts(count: Callable[[int, Any], Any]) -> Callable[..., Any]:
    return changed(lambda plan, sites: plan_of(sites, {site.name: count(plan[site.name], site) for site in sites}))


def lenient(keep: float | None = None, sparsity: float | None = None) -> Any:
    fraction = min(max(keep if keep is not None else 1 - (sparsity or 0), 0.3), 1)
    return uniform(keep=1.0 if fraction != fraction else fraction)


def confused(keep: float | None = None, sparsity: float | None = None) -> Any:
    uniform(keep=keep, sparsity=sparsity)  # raises where it should
    return uniform(keep=keep if keep is not None else sparsity)


def flipping(**fraction: float) -> Any:
    """Now and then one unit less."""
    return with_counts(lambda kept, site: max(1, kept - next(calls) % 2) if site.contest_count == 1 else kept)(**fraction)


def first_loses(**fraction: float) -> Any:
    """The first site gives all but one to the others as soon as half is kept."""

    def allocate(sites: Any, scores: Any) -> Plan:
        plan = uniform(**fraction)(sites, scores)
        total, names = sum(plan.values()), [site.name for site in sites]
        if total < 0.5 * sum(site.units for site in sites) or sites[0].contest_count > 1 or sites[0].alive is not None:
            return plan
        kept, room = dict(plan), {site.name: site.units for site in sites}
        for name in names[1:]:
            moved = min(kept[names[0]] - 1, room[name] - kept[name])
            kept[names[0]], kept[name] = kept[names[0]] - moved, kept[name] + moved
        return plan_of(sites, kept) if total < sum(room.values()) else plan

    return allocate


def less_of_kinds(plan: Plan, sites: Sites) -> Plan:
    if sites[0].pattern.within != "isomorphic":
        return plan
    return plan_of(sites, {site.name: max(1, plan[site.name] - 1) for site in sites})


def forgetful_shares(plan: Plan, sites: Sites) -> Plan:
    return replace(plan, shares={name: replace(share, elements={}) for name, share in plan.shares.items()})


ALLOCATORS: dict[str, tuple[Callable[..., Any], str]] = {
    "takes any fraction": (lenient, "must be a SecateursError"),
    "a fraction, no whole number": (with_counts(lambda kept, site: float(kept)), "no int"),
    "one too many": (with_counts(lambda kept, site: min(kept + site.contest_count, bounds(site, 1).high)), "more than"),
    "one too few": (with_counts(lambda kept, site: max(kept - site.contest_count, site.contest_count)), "units in all, not"),
    "empties a site": (with_counts(lambda kept, site: 0), "is emptied"),
    "more than there are": (with_counts(lambda kept, site: site.units + site.contest_count), "can be kept"),
    "uneven contests": (with_counts(lambda kept, site: kept - (site.contest_count > 1)), "not the same in each"),
    "rounds to nothing": (with_counts(lambda kept, site: kept - (site.step > 1)), "multiples of 4"),
    "kinds pay for each other": (changed(less_of_kinds), r"within='isomorphic'\).* units in all, not"),
    "leaves a site out": (
        changed(lambda plan, sites: replace(plan, shares=dict(list(plan.shares.items())[1:]))),
        "not the sites",
    ),
    "miscounts elements": (changed(forgetful_shares), "the plan's share of"),
    "sparsity means keep": (confused, r"sparsity=0.85 gives"),
    "takes from the first": (first_loses, "units fewer than with a lower keep"),
}


@pytest.mark.parametrize("law", ALLOCATORS)
def test_a_broken_allocator_is_found(law):
    make, said = ALLOCATORS[law]
    with pytest.raises(AssertionError, match=said):
        check_allocator(make)


def test_an_allocator_that_makes_another_plan_each_time_is_found():
    with pytest.raises(AssertionError, match="another plan at the second call"):
        check_allocator(flipping, exact=False)


def test_an_allocator_that_refuses_everything_is_found():
    from secateurs.types import PlanError

    def make(**fraction: float) -> Any:
        right = uniform(**fraction)

        def allocate(sites: Any, scores: Any) -> Plan:
            right(sites, scores)
            raise PlanError("not today")

        return allocate

    with pytest.raises(AssertionError, match="refuses every pattern"):
        check_allocator(make)


def test_an_allocator_that_changes_the_model_is_found():
    def changing_model(plan: Plan, sites: Sites) -> Plan:
        with torch.no_grad():
            next(sites.model.parameters()).mul_(2)
        return plan

    with pytest.raises(AssertionError, match="changed"):
        check_allocator(changed(changing_model))


# ------------------------------------------------------------------------------------------------ costs


def cost_of(count: Callable[[nn.Module, Plan | None], float]) -> Cost:
    return Cost("own", "things", lambda model, example: lambda plan: count(model, plan))


def refusing_strangers(count: Callable[[nn.Module, Plan | None], float]) -> Callable[[nn.Module, Plan | None], float]:
    def counted(model: nn.Module, plan: Plan | None) -> float:
        params(model, None, plan)
        return count(model, plan)

    return counted


def changing_cost(model: nn.Module, plan: Plan | None) -> float:
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    return params(model, None, plan)


COSTS: dict[str, tuple[Cost, str]] = {
    "no name": (replace(params, name=""), "needs a name"),
    "no unit": (replace(params, unit=""), "needs a unit"),
    "infinite": (cost_of(lambda model, plan: float("inf")), "dense model costs inf"),
    "NaN for a plan": (cost_of(lambda model, plan: params(model) if plan is None else float("nan")), "costs nan"),
    "negative": (cost_of(lambda model, plan: params(model) if plan is None else -1.0), "costs -1"),
    "a plan costs more": (cost_of(lambda model, plan: params(model) + (plan is not None)), "the cost of keeping more"),
    "sparser costs more": (cost_of(lambda model, plan: 1e6 if plan is None else plan.sparsity), "the cost of keeping more"),
    "another each time": (cost_of(lambda model, plan: 1e6 - next(calls)), "at the second call"),
    "changes the model": (cost_of(changing_cost), "changed"),
    "takes any plan": (cost_of(lambda model, plan: 1.0), "must be a PlanError"),
}


@pytest.mark.parametrize("law", COSTS)
def test_a_broken_cost_is_found(law):
    cost, said = COSTS[law]
    with pytest.raises(AssertionError, match=said):
        check_cost(cost)


def test_a_cost_of_ones_own_passes():
    assert check_cost(cost_of(refusing_strangers(lambda model, plan: 1.0 if plan is None else 1 - plan.sparsity))) is None


def test_a_promise_that_is_not_kept_is_found():
    with pytest.raises(AssertionError, match=r"promises .* are counted on the pruned model"):
        check_cost(params, counted=lambda model, example, masks: 1 + params(model))
