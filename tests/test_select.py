"""The k-th largest, against sorting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secateurs import select
from secateurs.select import Threshold, kth_largest

# Few distinct values make ties; the extremes of float32 make brackets that cannot be halved by their mean.
ordinary = st.floats(width=32, allow_nan=False)
awkward = st.sampled_from([0.0, -0.0, 1.0, -1.0, inf, -inf, 1e-45, -1e-45, 3.4028234663852886e38, -3.4028234663852886e38])
pieces_of_numbers = st.lists(st.lists(awkward | ordinary, max_size=40), min_size=1, max_size=5).filter(any)


def by_sorting(pieces: list[torch.Tensor], k: int) -> Threshold:
    ordered = torch.cat(pieces).sort(descending=True).values
    value = ordered[k - 1]
    return Threshold(float(value), int((ordered > value).sum()))


@contextmanager
def bracketing(few: int) -> Iterator[None]:
    """The path of very many numbers, for few: the bracket is narrowed until it holds `few` at most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_FEW", few)
        patch.setattr(select, "_SAMPLE", 4)
        yield


each_path = pytest.mark.parametrize("few", [0, 1, 3, 8, select._FEW])


@each_path
@settings(max_examples=150)
@given(data=st.data(), numbers=pieces_of_numbers)
def test_the_kth_largest_is_what_sorting_finds(few, data, numbers):
    pieces = [torch.tensor(piece, dtype=torch.float32) for piece in numbers]
    total = sum(map(len, numbers))
    k = data.draw(st.integers(1, total))
    with bracketing(few):
        assert kth_largest(lambda: iter(pieces), k, total) == by_sorting(pieces, k)


@each_path
@given(k=st.integers(1, 300), seed=st.integers(0, 2**20))
def test_the_kth_largest_is_found_wherever_the_sample_falls(few, k, seed):
    numbers = torch.randn(300, generator=torch.Generator().manual_seed(seed))
    with bracketing(few):
        assert kth_largest(lambda: [numbers[:7], numbers[7:]], k, 300) == by_sorting([numbers], k)


@each_path
@pytest.mark.parametrize("value", [0.0, -0.0, inf, -inf, 5.0])
def test_the_kth_largest_of_equal_numbers_is_their_value_with_none_above(few, value):
    with bracketing(few):
        assert kth_largest(lambda: [torch.full((50,), value)], 20, 50) == Threshold(value, above=0)


@each_path
def test_zero_and_minus_zero_are_ties(few):
    numbers = torch.tensor([0.0, -0.0] * 10 + [1.0])
    with bracketing(few):
        assert kth_largest(lambda: [numbers], 5, 21) == Threshold(0.0, above=1)


@each_path
def test_pieces_may_have_any_shape_and_be_empty(few):
    numbers = torch.randn(4, 5, 3)
    with bracketing(few):
        assert kth_largest(lambda: [numbers, numbers[:0]], 11, 60) == by_sorting([numbers.flatten()], 11)


@given(data=st.data(), numbers=st.lists(awkward | ordinary, min_size=12, max_size=60))
def test_a_bracket_knows_how_many_numbers_it_holds_and_how_many_are_above(data, numbers):
    pieces, narrow = [torch.tensor(numbers, dtype=torch.float32)], select._narrow

    def checked(*arguments):
        narrowed = narrow(*arguments)
        if isinstance(narrowed, select._Bracket):
            inside = (pieces[0] >= narrowed.low) & (pieces[0] <= narrowed.high)
            assert (narrowed.inside, narrowed.above) == (int(inside.sum()), int((pieces[0] > narrowed.high).sum()))
        return narrowed

    with bracketing(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_narrow", checked)
        k = data.draw(st.integers(1, len(numbers)))
        assert kth_largest(lambda: pieces, k, len(numbers)) == by_sorting(pieces, k)


@example(-inf, inf)
@example(0.0, 2.0**-149)
@example(-(2.0**-149), 0.0)
@example(-0.0, 0.0)
@given(ordinary, ordinary)
def test_the_middle_lies_between_and_halves_the_float32s_in_between(one, other):
    low, high = sorted([one, other])
    middle = select._middle(low, high)
    assert low <= middle <= high
    assert select._middle(low, low) == low


def test_halving_the_whole_range_ends_after_32_rounds():
    low, rounds = -inf, 0
    while low < inf:
        low, rounds = select._next(select._middle(low, inf), inf), rounds + 1
    assert rounds <= 34


@pytest.mark.parametrize("k", [0, -1, 4])
def test_there_is_no_such_rank(k):
    with pytest.raises(ValueError, match=rf"k = {k} is not in 1..3"):
        kth_largest(lambda: [torch.zeros(3)], k, 3)


def test_three_passes_are_enough_for_many_ordinary_numbers(monkeypatch):
    monkeypatch.setattr(select, "_FEW", 5_000)
    monkeypatch.setattr(select, "_SAMPLE", 20_000)
    numbers, passes = torch.randn(100_000), []

    def pieces():
        passes.append(1)
        return numbers.split(10_000)

    for k in (10, 50_000, 99_990):
        passes.clear()
        assert kth_largest(pieces, k, 100_000) == by_sorting([numbers], k)
        assert len(passes) == 3
