"""The algebra of dimensions: sums of products of axes, their unification, and what a choice of units means for indices."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from secateurs.graph import Axis, Dim, extent, kept, normal, occurrences, unify
from secateurs.graph.axes import ONE, Conflict, approximate, mark_heads, part, pin, split

# ------------------------------------------------------------------------------------------------ random dimensions


@st.composite
def dims(draw: st.DrawFn, pool: list[Axis], depth: int = 2) -> Dim:
    """A sum of products of axes of a pool, which may occur in it more than once; a factor may be a sum itself."""
    factor = st.sampled_from(pool)
    if depth:
        factor = st.one_of(factor, dims(pool, depth - 1))
    terms = draw(st.lists(st.lists(factor, min_size=1, max_size=2), min_size=1, max_size=2))
    return Dim(tuple(map(tuple, terms)))


@st.composite
def chosen_dims(draw: st.DrawFn) -> tuple[list[Axis], Dim, dict[Axis, Tensor]]:
    """Axes, a dimension of them, and a choice of units for some of them."""
    pool = [Axis(size) for size in draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))]
    dim = draw(dims(pool))
    assume(dim.size <= 400)
    chosen = [axis for axis in pool if axis.size > 1 and draw(st.booleans())]
    return pool, dim, {axis: torch.tensor([draw(st.booleans()) for _ in range(axis.size)]) for axis in chosen}


def indices(dim: Dim) -> Iterator[list[tuple[Axis, int]]]:
    """Which index of which axis each index of a dimension means, spelt out: a sum in turn, a product with the last factor fastest."""
    for term in dim.terms:
        for places in product(*(list(of_factor(factor)) for factor in term)):
            yield [each for place in places for each in place]


def of_factor(factor: Axis | Dim) -> Iterator[list[tuple[Axis, int]]]:
    if isinstance(factor, Dim):
        yield from indices(factor)
    elif factor.bound is not None:
        yield from indices(factor.bound)
    else:
        yield from ([(factor, i)] for i in range(factor.size))


@given(chosen_dims())
def test_an_index_stays_where_all_units_that_make_it_stay(drawn):
    _, dim, choice = drawn
    expected = [all(bool(choice[axis][i]) for axis, i in index if axis in choice) for index in indices(dim)]
    assert kept(dim, choice).tolist() == expected


@given(chosen_dims())
def test_the_normal_form_means_the_same_indices(drawn):
    _, dim, _ = drawn

    def without_ones(dim: Dim) -> list[list[tuple[Axis, int]]]:
        return [[(axis, i) for axis, i in index if axis.size > 1] for index in indices(dim)]

    assert without_ones(normal(dim)) == without_ones(dim)
    assert normal(normal(dim)) == normal(dim)
    assert normal(dim).size == dim.size


@given(chosen_dims())
def test_the_occurrences_of_an_axis_are_its_indices_wherever_they_lie(drawn):
    """Each unit marks its elements through the views; what is marked are the indices that the unit is part of, each time it is."""
    pool, dim, _ = drawn
    for axis in (axis for axis in pool if axis.size > 1):
        marks = torch.zeros(2, dim.size, 3, dtype=torch.long)
        for view in occurrences(dim, axis):
            seen = view(marks, 1)
            assert seen.shape[0] == axis.size and seen[0].numel() == 6 * view.width
            seen += (10 ** torch.arange(axis.size)).view(-1, *(1,) * (seen.ndim - 1))
        expected = [sum(10**i for other, i in index if other is axis) for index in indices(dim)]
        assert marks.unique(dim=0).shape[0] == 1 and marks.unique(dim=2).shape[2] == 1
        assert marks[0, :, 0].tolist() == expected


def test_views_write_through():
    heads, width = Axis(2), Axis(3)
    weight = torch.zeros(6, 4)
    [view] = occurrences(Dim.product(heads, width), width)
    view(weight, 0)[1] = 7
    assert weight[:, 0].tolist() == [0, 7, 0, 0, 7, 0]


@given(chosen_dims())
def test_the_extent_is_the_number_of_indices_that_stay(drawn):
    pool, dim, choice = drawn
    names = {axis: f"axis {place}" for place, axis in enumerate(pool) if axis in choice}
    counts = {names[axis]: int(stay.sum()) for axis, stay in choice.items()}
    expected = int(kept(dim, choice).sum())
    assume(all(len({id(axis) for axis, _ in index}) == len(index) for index in indices(dim)))  # no square of an axis
    assert sum(number * prod(counts[site] for site in sites) for number, sites in extent(dim, names)) == expected
    assert extent(dim, {}) == ((dim.size, ()),)


# ------------------------------------------------------------------------------------------------ unification


def cuts(sizes: list[int]) -> Dim:
    return Dim.sum(*(Dim.fresh(size) for size in sizes))


@st.composite
def factorised(draw: st.DrawFn, size: int) -> Dim:
    """A dimension of a given size as a sum of products of fresh axes."""
    places = sorted(draw(st.sets(st.integers(1, max(1, size - 1)), max_size=3)) - {size} if size > 1 else set())
    sizes = [b - a for a, b in zip([0, *places], [*places, size], strict=True)]
    terms = []
    for length in sizes:
        inner = draw(st.sampled_from([n for n in range(1, length + 1) if length % n == 0]))
        terms.append(tuple(Axis(n) for n in (length // inner, inner) if n > 1))
    return Dim(tuple(terms))


def shape_of(dim: Dim) -> str:
    return repr(normal(dim))


def same_units(dim: Dim, other: Dim) -> bool:
    return list(indices(normal(dim))) == list(indices(normal(other)))


@given(st.integers(1, 24), st.randoms(use_true_random=False), st.data())
def test_unification_is_symmetric_and_keeps_sizes(size, random, data):
    one, other = data.draw(factorised(size)), data.draw(factorised(size))
    plans = [repr(one), repr(other)]

    def again(dim: Dim) -> Dim:
        return Dim(tuple(tuple(Axis(factor.size) for factor in term) for term in dim.terms))

    mirrored = again(other), again(one)
    outcomes = []
    for a, b in ((one, other), mirrored):
        try:
            unify(a, b)
        except Conflict:
            outcomes.append(None)
        else:
            assert a.size == b.size == size
            assert same_units(a, b), f"{plans} became {normal(a)} and {normal(b)}"
            outcomes.append(shape_of(a))
    assert outcomes[0] == outcomes[1]


@given(st.integers(2, 24), st.data())
def test_a_dimension_of_which_nothing_is_known_becomes_whatever_it_is_unified_with(size, data):
    known = data.draw(factorised(size))
    unknown, before = Dim.fresh(size), normal(known)
    unify(unknown, known)
    assert normal(unknown) == normal(known) == before


@given(chosen_dims())
def test_a_dimension_is_itself(drawn):
    _, dim, _ = drawn
    before = normal(dim)
    unify(dim, dim)
    assert normal(dim) == before


def test_a_chain_of_equalities_is_one_axis():
    first, *others = [Dim.fresh(5) for _ in range(6)]
    for a, b in zip([first, *others], others, strict=False):
        unify(b, a)
    assert len({axis for dim in (first, *others) for axis in dim.axes()}) == 1


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (Dim.fresh(4), Dim.fresh(6), "sizes 4 and 6"),
        (Dim.product(Axis(2), Axis(3)), Dim.product(Axis(3), Axis(2)), "3 is no multiple of 2"),
        (Dim.sum(Dim.product(Axis(2), Axis(3)), Dim.fresh(2)), cuts([4, 4]), "2x3 cannot be cut after 4"),
        (Dim.product(Axis(2), cuts([3, 5])), cuts([3, 13]), "cannot be cut after 3"),
    ],
    ids=["sizes", "factors", "a cut within a factor", "a cut within a sum that is repeated"],
)
def test_what_does_not_fit_is_a_conflict(one, other, message):
    with pytest.raises(Conflict, match=message):
        unify(one, other)


def test_fused_projections_are_cut_and_each_part_is_factored():
    fused, heads, width = Dim.fresh(36), Axis(3), Axis(4)
    q, k, v = (part(fused, start, start + 12) for start in (0, 12, 24))
    for each in (q, k):
        unify(each, Dim.product(heads, width))
    assert shape_of(fused) == "3x4 + 3x4 + 12"
    unify(split(v, 4)[0], Dim.product(heads))
    stay = kept(fused, {heads: torch.tensor([True, False, True])})
    assert stay.view(3, 3, 4).any(2).tolist() == [[True, False, True]] * 3


def test_queries_that_share_keys_are_keys_times_queries():
    """Grouped queries: 6 query heads of 4 beside 2 key heads of 4, each repeated 3 times."""
    query, key = Dim.fresh(24), Dim.fresh(8)
    heads, width = split(query, 4)
    shared, also = split(key, 4)
    unify(heads, Dim.product(shared, Dim.fresh(3)))
    unify(width, also)
    assert shape_of(query) == "2x3x4" and shape_of(key) == "2x4"
    [one, _] = normal(key).terms[0]
    assert kept(query, {one: torch.tensor([False, True])}).tolist() == [False] * 12 + [True] * 12


# ------------------------------------------------------------------------------------------------ parts


@given(st.integers(1, 24), st.data())
def test_parts_join_to_the_whole(size, data):
    dim = data.draw(factorised(size))
    start, stop = sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size))))
    try:
        parts = [part(dim, a, b) for a, b in ((0, start), (start, stop), (stop, size))]
    except Conflict:
        return
    assert [each.size for each in parts] == [start, stop - start, size - stop]
    assert same_units(Dim.sum(*parts), dim)


def test_a_free_axis_can_be_cut_anywhere():
    whole = Dim.fresh(10)
    assert [part(whole, start, start + 1).size for start in range(10)] == [1] * 10
    assert normal(whole).size == 10


def test_no_part_begins_within_a_unit():
    with pytest.raises(Conflict, match=r"2x3 cannot be cut after 4"):
        part(Dim.product(Axis(2), Axis(3)), 0, 4)


@given(st.integers(1, 6), st.integers(1, 6))
def test_a_split_multiplies_out_to_the_whole(outer, inner):
    whole = Dim.fresh(outer * inner)
    slow, fast = split(whole, inner)
    assert (slow.size, fast.size) == (outer, inner)
    assert same_units(Dim.product(*slow.axes(), *fast.axes()), whole)


def test_a_sum_is_split_part_by_part():
    whole = cuts([8, 12])
    outer, inner = split(whole, 4)
    assert shape_of(whole) == "2x4 + 3x4" and shape_of(outer) == "2 + 3" and shape_of(inner) == "4"


def test_one_has_no_axes():
    assert Dim.fresh(1) is ONE and list(ONE.axes()) == [] and kept(ONE, {}).tolist() == [True]
    assert Dim.product(Axis(1), Axis(3)) != Dim.product(Axis(3)) and repr(Dim.product(Axis(1), Axis(3))) == "3"


# ------------------------------------------------------------------------------------------------ what is known of an axis


@pytest.mark.parametrize("late", [False, True])
def test_marks_travel_to_the_parts(late):
    whole = Dim.fresh(24)

    def mark() -> None:
        pin(whole, "the model's output")
        approximate(whole, "a norm")
        mark_heads(whole, "attention")

    if not late:
        mark()
    unify(whole, Dim.sum(Dim.product(Axis(2), Axis(6)), Dim.fresh(12)))
    if late:
        mark()
    found = list(whole.axes())
    assert [axis.size for axis in found] == [2, 6, 12]
    assert {(axis.pinned, axis.approximate, axis.heads) for axis in found} == {("the model's output", "a norm", "attention")}


@pytest.mark.parametrize("first", [0, 1])
def test_marks_travel_to_whatever_is_the_same(first):
    dims = [Dim.fresh(4), Dim.fresh(4)]
    pin(dims[first], "looked up")
    unify(*dims)
    assert [axis.pinned for dim in dims for axis in dim.axes()] == ["looked up"] * 2


def test_a_divided_axis_hands_its_marks_to_both_factors():
    whole, inner = Dim.fresh(12), Axis(4)
    pin(whole, "the model's input")
    unify(Dim.product(whole.terms[0][0], Axis(5)), Dim.product(Axis(3), inner, Axis(5)))
    assert [axis.pinned for axis in whole.axes()] == ["the model's input"] * 2


def test_the_first_reason_stays():
    dim = Dim.fresh(3)
    pin(dim, "first")
    pin(dim, "second")
    assert [axis.pinned for axis in dim.axes()] == ["first"]
    assert repr(dim) == "3!"
