"""One arena: against all orders, all offsets and all choices of what is overwritten, in networks that are small enough for that."""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations, product
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.firmware.arena import Arena, Place, Step, arena_of, lay_out, steps_of
from secateurs.firmware.call import Call
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.packing import Box, first_fit, most_alive, pack
from secateurs.integer.layers import Add, Array, Conv, Face, Network, Table, View


@st.composite
def small_graphs(draw, most=5):
    """Up to so many steps on arrays of a few numbers; some may overwrite, some are views, some need memory of their own."""
    names, sizes, steps = ["x"], {"x": draw(st.integers(1, 4))}, []
    for number in range(draw(st.integers(1, most))):
        reads = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)))
        name, view = f"a{number}", draw(st.integers(0, 5)) == 0
        sizes[name] = sizes[reads[0]] if view else draw(st.integers(1, 4))
        in_place = () if view else tuple(each for each in reads if draw(st.booleans()))
        steps.append(
            Step(f"s{number}", reads[:1] if view else reads, (name,), 0 if view else draw(st.integers(0, 2)), in_place, view)
        )
        names.append(name)
    outputs = draw(st.lists(st.sampled_from(names[1:]), min_size=1, max_size=2, unique=True))
    return steps, sizes, ["x"], outputs


def roots(steps, inputs):
    found = {name: name for name in inputs}
    for step in steps:
        found.update({name: found[step.reads[0]] if step.view else name for name in step.writes})
    return found


def needed(steps, order, inputs, outputs):
    """From when to when the memory of each array that is no view is needed, step by step as anybody would say it."""
    root, at = roots(steps, inputs), {number: moment for moment, number in enumerate(order)}
    spans = {}
    for piece in set(root.values()):
        writers = [at[n] for n, step in enumerate(steps) if piece in step.writes and not step.view]
        readers = [at[n] for n, step in enumerate(steps) if piece in {root[name] for name in step.reads}]
        to_the_end = piece in {root[name] for name in outputs} or (piece in inputs and not readers)
        first = 0 if piece in inputs else writers[0]
        spans[piece] = (first, len(steps) - 1 if to_the_end else max([first, *readers]))
    return spans


def may_overwrite(step, sizes, root, spans, moment, outputs):
    if step.view:
        return []
    kept = {root[name] for name in outputs}
    read = [root[name] for name in step.reads]
    return [
        root[name]
        for name in step.in_place
        if sizes[root[name]] == sizes[step.writes[0]]
        and root[name] not in kept
        and spans[root[name]][1] == moment
        and read.count(root[name]) == 1
    ]


def fits(boxes, size):
    """Whether boxes (bytes, first, last) have offsets in an arena: every offset of each is tried."""

    def place(rest, placed):
        if not rest:
            return True
        (count, first, last), *others = rest
        for offset in range(size - count + 1):
            if all(
                offset + count <= low or high <= offset or last < begin or end < first for low, high, begin, end in placed
            ) and place(others, [*placed, (offset, offset + count, first, last)]):
                return True
        return False

    return place(sorted(boxes, reverse=True), [])


fits_once = lru_cache(maxsize=None)(fits)


def can_be_smaller(steps, sizes, inputs, outputs, size):
    """Whether any order, choice of what is overwritten, and offsets need no more than this."""
    root = roots(steps, inputs)
    for order in permutations(range(len(steps))):
        at = {name: order.index(n) for n, step in enumerate(steps) for name in step.writes}
        if any(at.get(name, -1) >= moment for moment, n in enumerate(order) for name in steps[n].reads):
            continue
        spans = needed(steps, order, inputs, outputs)
        options = [[None, *may_overwrite(steps[n], sizes, root, spans, moment, outputs)] for moment, n in enumerate(order)]
        for chosen in product(*options):
            lies_in = {steps[n].writes[0]: piece for n, piece in zip(order, chosen, strict=True) if piece}
            boxes = {}
            for piece, (first, last) in spans.items():
                whole = piece
                while whole in lies_in:
                    whole = lies_in[whole]
                old = boxes.get(whole, (sizes[piece], first, last))
                boxes[whole] = (sizes[piece], min(old[1], first), max(old[2], last))
            own = [(steps[n].scratch, moment, moment) for moment, n in enumerate(order) if steps[n].scratch]
            if fits_once(tuple(sorted([*boxes.values(), *own])), size):
                return True
    return False


def check(arena: Arena, steps, sizes, inputs, outputs, alignment):
    """No two things overlap that are needed at once, but where a step overwrites what it may."""
    root, order = roots(steps, inputs), arena.order
    assert sorted(order) == list(range(len(steps)))
    spans = needed(steps, order, inputs, outputs)
    there = {}
    for name, place in arena.places.items():
        assert place.offset % alignment == 0
        assert place.bytes == sizes[name]
        assert place == Place(arena.places[root[name]].offset, sizes[name], *spans[root[name]])
        there[root[name]] = place
    for number, step in enumerate(steps):
        if step.scratch:
            there[step.name] = arena.scratch[step.name]
            assert there[step.name].first == there[step.name].last == order.index(number)
            assert there[step.name].bytes == step.scratch
    allowed = {
        (piece, steps[n].writes[0])
        for moment, n in enumerate(order)
        for piece in may_overwrite(steps[n], sizes, root, spans, moment, outputs)
    }
    for a, b in permutations(there, 2):
        p, q = there[a], there[b]
        if p.first <= q.last and q.first <= p.last and p.offset < q.offset + q.bytes and q.offset < p.offset + p.bytes:
            assert p.offset == q.offset and ((a, b) in allowed or (b, a) in allowed), (a, b)
    assert arena.bytes >= max(place.offset + place.bytes for place in there.values())
    assert arena.bound <= arena.bytes
    assert max(arena.alive(moment) for moment in range(len(steps))) <= arena.bytes


@settings(max_examples=150, deadline=None)
@given(small_graphs())
def test_no_order_and_no_offsets_need_less(graph):
    arena = lay_out(*graph, alignment=1)
    check(arena, *graph, 1)
    assert not can_be_smaller(*graph, arena.bytes - 1)
    assert can_be_smaller(*graph, arena.bytes)
    assert arena == lay_out(*graph, alignment=1)


@settings(max_examples=100, deadline=None)
@given(small_graphs(most=14), st.sampled_from([1, 4, 16]))
def test_nothing_overlaps_in_larger_graphs(graph, alignment):
    steps, sizes, inputs, outputs = graph
    sizes = {name: size * 7 for name, size in sizes.items()}
    for name in (name for step in steps if step.view for name in step.writes):
        sizes[name] = sizes[roots(steps, inputs)[name]]
    arena = lay_out(steps, sizes, inputs, outputs, alignment)
    check(arena, steps, sizes, inputs, outputs, alignment)
    as_given = lay_out(steps, sizes, inputs, outputs, alignment, reorder=False)
    check(as_given, steps, sizes, inputs, outputs, alignment)
    assert as_given.order == tuple(range(len(steps)))
    assert arena.bytes <= as_given.bytes


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=8))
def test_boxes_lie_as_close_as_they_can(given_boxes):
    boxes = [Box(size, first, first + more) for size, first, more in given_boxes]
    offsets, size = pack(boxes)
    for (a, at), (b, there) in permutations(zip(boxes, offsets, strict=True), 2):
        if a.first <= b.last and b.first <= a.last:
            assert at + a.bytes <= there or there + b.bytes <= at
    assert size == max(at + box.bytes for box, at in zip(boxes, offsets, strict=True))
    assert size >= most_alive(boxes)
    assert size == most_alive(boxes) or not fits([(box.bytes, box.first, box.last) for box in boxes], size - 1)
