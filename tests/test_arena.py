"""One arena: against all orders, all offsets and all choices of what is overwritten, in networks that are small enough for that."""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations, product
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateurs.firmware import arena as arena_module
from secateurs.firmware import packing
from secateurs.firmware.arena import Arena, Slot, Step, arena_of, lay_out, step_of
from secateurs.firmware.call import Call
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.packing import Box, most_alive, pack
from secateurs.integers.layers import Array, Conv, Face, Network, Table, View


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
        if sizes[root[name]] >= sizes[step.writes[0]]
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
                old = boxes.get(whole, (sizes[whole], first, last))
                boxes[whole] = (sizes[whole], min(old[1], first), max(old[2], last))
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
        assert place == Slot(arena.places[root[name]].offset, sizes[name], *spans[root[name]])
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


GAP = [
    (2, 0, 0),
    (3, 0, 1),
    (1, 1, 2),
    (1, 2, 2),
    (1, 1, 3),
    (2, 2, 3),
    (2, 3, 4),
    (3, 4, 4),
]  # at each step 5 bytes, yet 5 are too few


@st.composite
def full(draw):
    """Boxes that leave no byte free at any step."""
    random, boxes = Random(draw(st.integers(0, 10**6))), []

    def parts(total, first):
        while total:
            alive.append((min(total, random.randint(1, 3)), first))
            total -= alive[-1][0]

    alive, last = [], random.randint(1, 3)
    parts(random.randint(3, 5), 0)
    for step in range(1, last + 1):
        gone = random.sample(alive, random.randint(1, min(2, len(alive))))
        alive = [each for each in alive if not any(each is other for other in gone)]
        boxes += [(size, first, step - 1) for size, first in gone]
        parts(sum(size for size, _ in gone), step)
    return boxes + [(size, first, last) for size, first in alive]


@settings(max_examples=100, deadline=None)
@given(full())
def test_the_search_alone_finds_what_trying_all_offsets_finds(boxes):
    made = [Box(*box) for box in boxes]
    offsets, size = packing._Search(made, most_alive(made), [], 10**9).found()
    assert size == max(at + box.bytes for box, at in zip(made, offsets, strict=True))
    assert fits(boxes, size)
    assert not fits(boxes, size - 1)


def test_an_arena_may_have_to_be_larger_than_what_is_alive():
    made = [Box(*box) for box in GAP]
    assert most_alive(made) == 5
    assert pack(made)[1] == 6
    assert not fits(GAP, 5)


def test_changes_to_the_sequence_find_what_no_first_sequence_does():
    boxes = [Box(*each) for each in NEEDS_CHANGES]
    together = [[j for j, b in enumerate(boxes) if j != i and b.first <= a.last and a.first <= b.last] for i, a in enumerate(boxes)]
    tops = [packing.first_fit(boxes, each, together)[1] for each in packing._sequences(boxes)]
    assert len(boxes) > packing.EXACT
    assert min(tops) > most_alive(boxes) == pack(boxes)[1]


def many(count, seed):
    random = Random(seed)
    for _ in range(count):
        first = random.randrange(count)
        yield random.randrange(1, 10), first, min(count - 1, first + random.randrange(4))


NEEDS_CHANGES = list(many(48, 6))


def test_the_search_finds_what_changes_to_the_sequence_do_not(monkeypatch):
    boxes = [Box(*each) for each in NEEDS_SEARCH]
    assert pack(boxes)[1] == most_alive(boxes) == 13
    monkeypatch.setattr(packing, "EXACT", 0)
    assert pack(boxes)[1] == 14


NEEDS_SEARCH = [
    *(
        (2, 0, 0),
        (2, 0, 0),
        (2, 0, 1),
        (3, 0, 2),
        (3, 1, 2),
        (3, 0, 2),
        (1, 3, 3),
        (1, 3, 3),
        (1, 2, 3),
        (3, 3, 4),
        (2, 3, 4),
        (2, 3, 4),
    ),
    *(
        (1, 1, 5),
        (2, 5, 5),
        (2, 5, 6),
        (1, 0, 7),
        (1, 2, 7),
        (3, 4, 7),
        (1, 5, 7),
        (2, 5, 7),
        (1, 6, 7),
        (1, 6, 7),
        (1, 6, 7),
        (2, 7, 7),
    ),
]


def test_another_order_with_as_much_alive_may_lie_closer(monkeypatch):
    steps = [
        Step("s0", (), ("b0", "b1", "b3", "b7")),
        Step("s1", (), ("b2", "b6")),
        Step("s2", ("b3",), ("b4", "b8", "t2")),
        Step("s3", ("b6", "t2"), ("b5",)),
        Step("s4", ("b7", "b8"), ("b9", "t4")),
    ]
    sizes = {"t2": 0, "t4": 0, "b0": 2, "b1": 2, "b2": 3, "b3": 1, "b4": 1, "b5": 2, "b6": 1, "b7": 1, "b8": 2, "b9": 3}
    arena = lay_out(steps, sizes, [], ["t4"], alignment=1)
    check(arena, steps, sizes, [], ["t4"], 1)
    assert arena.bytes == arena.bound == 6
    monkeypatch.setattr(arena_module, "MOVES", 0)
    assert lay_out(steps, sizes, [], ["t4"], alignment=1).bytes == 7


def test_not_overwriting_what_could_be_may_lie_closer(monkeypatch):
    steps = [
        Step("s0", (), ("b0", "b2", "b5", "t0")),
        Step("s1", ("t0",), ("b1", "b3", "t1")),
        Step("s2", ("b2", "b3", "t1"), ("b8", "b6", "t2"), in_place=("b3",)),
        Step("s3", ("b8", "t2"), ("b4", "t3")),
        Step("s4", ("b5", "b6", "t3"), ("b7", "t4")),
    ]
    sizes = {
        **{f"t{step}": 0 for step in range(5)},
        "b0": 3,
        "b1": 2,
        "b2": 1,
        "b3": 1,
        "b4": 2,
        "b5": 1,
        "b6": 1,
        "b7": 3,
        "b8": 1,
    }
    arena = lay_out(steps, sizes, [], ["t4"], alignment=1)
    check(arena, steps, sizes, [], ["t4"], 1)
    assert arena.bytes == arena.bound == 5
    assert arena.places["b8"].offset != arena.places["b3"].offset
    monkeypatch.setattr(arena_module, "CHOICES", 1)
    assert lay_out(steps, sizes, [], ["t4"], alignment=1).bytes == 6


def test_branches_run_in_the_order_that_needs_least():
    """Two branches, each of which grows before it shrinks: one after the other, not side by side."""
    steps, sizes = [], {"x": 10, "y": 2}
    for branch in "ab":
        steps += [
            Step(f"grow {branch}", ("x",), (f"big {branch}",)),
            Step(f"shrink {branch}", (f"big {branch}",), (f"small {branch}",)),
        ]
        sizes |= {f"big {branch}": 100, f"small {branch}": 1}
    side_by_side = [steps[0], steps[2], steps[1], steps[3], Step("join", ("small a", "small b"), ("y",))]
    arena = lay_out(side_by_side, sizes, ["x"], ["y"], alignment=1)
    assert arena.bytes == arena.bound == 10 + 1 + 100
    assert lay_out(side_by_side, sizes, ["x"], ["y"], alignment=1, reorder=False).bytes == 10 + 2 * 100


@pytest.mark.parametrize("width", [1, 4, 12])
def test_a_hundred_steps_are_planned_well(width):
    random, names, sizes, steps = Random(width), ["x"], {"x": 3000}, []
    for number in range(100):
        reads = tuple(random.sample(names[-width:], min(len(names[-width:]), random.choice([1, 1, 2]))))
        steps.append(Step(f"s{number}", reads, (f"a{number}",), random.randrange(300), reads[:1]))
        names.append(f"a{number}")
        sizes[names[-1]] = random.randrange(10, 5000)
    arena = lay_out(steps, sizes, ["x"], names[-1:])
    check(arena, steps, sizes, ["x"], names[-1:], 4)
    assert arena.bytes <= 1.3 * arena.bound


def network():
    x, a, b, y = (
        Array("x", (4, 4, 3), "int8"),
        Array("a", (4, 4, 8), "int8"),
        Array("b", (4, 4, 8), "int8"),
        Array("y", (1, 1, 128), "int8"),
    )
    weight = np.zeros((8, 1, 1, 3), np.int8)
    layers = (Conv("conv", x, a, weight, np.zeros(8, np.int32)), Table("relu", a, b, "relu"), View("flatten", b, y))
    return Network((Face("x", x, (3, 4, 4), (1, 2, 0), True),), (Face("y", y, (128,), (0,), True),), layers)


def test_a_network_needs_less_where_layers_overwrite():
    net = network()
    calls = [
        Call(layer, (), (), "", scratch, in_place)
        for layer, scratch, in_place in zip(net.layers, (16, 0, 0), (None, "x", None), strict=True)
    ]
    assert [step_of(layer, calls).in_place for layer in net.layers] == [(), ("a",), ()]
    assert [step_of(layer, calls).view for layer in net.layers] == [False, False, True]
    plain, overwriting = arena_of(net), arena_of(net, calls)
    assert (plain.bytes, overwriting.bytes) == (128 + 128, 48 + 16 + 128)
    assert len({overwriting.places[name].offset for name in "aby"}) == 1
    assert overwriting.scratch == {"conv": Slot(overwriting.scratch["conv"].offset, 16, 0, 0)}
    assert [overwriting.alive(moment) for moment in range(3)] == [192, 128, 128]


def test_nothing_to_do():
    assert lay_out([], {"x": 5}, ["x"], ["x"]) == Arena((), {"x": Slot(0, 5, 0, 0)}, {}, 8, 8)
    assert lay_out([], {}, [], []).bytes == 0
    empty = lay_out([Step("s", ("x",), ("y",))], {"x": 0, "y": 0}, ["x"], ["y"])
    assert (empty.bytes, empty.places["y"]) == (0, Slot(0, 0, 0, 0))


def test_an_input_that_nobody_reads_is_never_overwritten():
    arena = lay_out(
        [Step("s", ("x",), ("y",)), Step("t", ("y",), ("z",))], {"x": 4, "unread": 4, "y": 4, "z": 4}, ["x", "unread"], ["z"]
    )
    assert arena.places["unread"].last == 1
    assert arena.bytes == 12


SIZES = {"x": 4, "y": 4, "z": 8}
ONE = Step("one", ("x",), ("y",))


@pytest.mark.parametrize(
    ("steps", "outputs", "changed", "message"),
    [
        (
            [Step("two", ("y",), ("z",)), ONE],
            ["z"],
            {},
            "two: reads 'y', which is no input and is written by none of the steps before",
        ),
        ([ONE, Step("two", ("x",), ("y",))], ["y"], {}, "two: writes 'y', which is there already"),
        ([ONE, Step("two", ("y",), ("x",))], ["y"], {}, "two: writes 'x', which is there already"),
        ([ONE, Step("one", ("y",), ("z",))], ["z"], {}, "two steps are called 'one'"),
        ([ONE], ["z"], {}, "the output 'z' is no input and is written by no step"),
        ([Step("one", ("x",), ("w",))], ["w"], {}, "sizes=None of 'w'"),
        ([Step("one", ("x",), ("y",), scratch=-1)], ["y"], {}, "one: scratch=-1"),
        ([ONE, Step("two", ("x",), ("z",), in_place=("y",))], ["z"], {}, "two: in_place='y', but it reads x"),
        ([Step("one", ("x",), ("z",), view=True)], ["z"], {}, "one: a view has as many bytes as what it views, 4"),
        ([ONE], ["y"], {"alignment": 3}, "alignment=3, but must be a power of two"),
        ([ONE], ["y"], {"inputs": ["x", "x"]}, "'x' is an input twice"),
    ],
)
def test_what_cannot_be_planned_is_said(steps, outputs, changed, message):
    with pytest.raises(FirmwareError, match=message):
        lay_out(**{"steps": steps, "sizes": SIZES, "inputs": ["x"], "outputs": outputs, **changed})
