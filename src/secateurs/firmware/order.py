"""In which order the steps of a network run, so that the fewest bytes are alive at once.

What is alive after some steps depends on which they are, not on their order: so the orders are paths through the sets of steps that are
done, and the best of them is the path whose highest point is lowest. It is found by going on from the set with the lowest peak so far;
where there are too many sets, only the best few of each size are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush, nsmallest

Order = tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """Steps and pieces of memory by number; sets of steps are bits of an integer.

    Of each step: the steps ``before`` it, the pieces that it ``reads`` and ``makes``, the bytes that it needs for itself while it runs, and
    the pieces that the first that it makes may ``take`` over where it is the last to read them. Of each piece: its bytes, the steps that
    read it, and whether it must ``stay`` to the end. ``given`` are the pieces that are there before the first step.
    """

    before: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    makes: tuple[tuple[int, ...], ...]
    own: tuple[int, ...]
    takes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    readers: tuple[int, ...]
    stays: tuple[bool, ...]
    given: tuple[int, ...]

    @property
    def start(self) -> int:
        """What is alive before the first step."""
        return sum(self.sizes[piece] for piece in self.given)

    def ready(self, done: int) -> Iterator[int]:
        """The steps that can run next."""
        return (step for step, before in enumerate(self.before) if not done >> step & 1 and before & ~done == 0)

    def ends(self, piece: int, done: int) -> bool:
        """Whether nobody needs a piece any more."""
        return not self.stays[piece] and self.readers[piece] & ~done == 0

    def taken(self, step: int, done: int) -> tuple[int, ...]:
        """The pieces that the first that a step makes may lie in, where ``done`` ran before it."""
        return tuple(piece for piece in self.takes[step] if self.ends(piece, done | 1 << step))

    def after(self, step: int, done: int, alive: int) -> tuple[int, int]:
        """The bytes that are alive while a step runs and after it, where ``alive`` were before."""
        done |= 1 << step
        made = sum(self.sizes[piece] for piece in self.makes[step])
        ended = sum(self.sizes[piece] for piece in (*self.reads[step], *self.makes[step]) if self.ends(piece, done))
        saved = self.sizes[self.makes[step][0]] if self.taken(step, done) else 0
        return alive + made + self.own[step] - saved, alive + made - ended


def peak(graph: Graph, order: Order) -> int:
    """The most bytes that are alive at once."""
    most = alive = graph.start
    done = 0
    for step in order:
        during, alive = graph.after(step, done, alive)
        done, most = done | 1 << step, max(most, during)
    return most


def best_order(graph: Graph, sets: int = 20_000, beam: int = 96) -> tuple[Order, int]:
    """An order with the smallest peak, and what no order's peak is below.

    Both belong together where at most so many ``sets`` of steps had to be looked at; else the order is the best that a search with so
    many sets of each size finds, or the given one.
    """
    order, bound = _lowest_path(graph, sets)
    if order is not None:
        return order, bound
    return min((tuple(range(len(graph.before))), _beam(graph, beam)), key=lambda found: peak(graph, found)), bound


def _lowest_path(graph: Graph, sets: int) -> tuple[Order | None, int]:
    """The order whose peak is smallest, if it is found within so many sets; else the peak that none is below."""
    full = (1 << len(graph.before)) - 1
    heap: list[tuple[int, int, int, int, Order]] = [(graph.start, 0, 0, graph.start, ())]
    seen = set[int]()
    while heap:
        most, _, done, alive, order = heappop(heap)
        if done == full:
            return order, most
        if done in seen:
            continue
        seen.add(done)
        if len(seen) > sets:
            return None, most
        for step, during, left in _worth_trying(graph, done, alive, most):
            after = done | 1 << step
            if after not in seen:
                heappush(heap, (max(most, during), -len(order) - 1, after, left, (*order, step)))
    raise AssertionError("steps wait for each other")


def _worth_trying(graph: Graph, done: int, alive: int, most: int) -> list[tuple[int, int, int]]:
    """The steps that may come next, with what is alive during and after them.

    One that leaves no more alive than before, without a new peak, is best taken at once: whatever comes first instead, the same memory or
    more would be alive there without it.
    """
    found = [(step, *graph.after(step, done, alive)) for step in graph.ready(done)]
    free = next((each for each in found if each[1] <= most and each[2] <= alive), None)
    return found if free is None else [free]


def _beam(graph: Graph, width: int) -> Order:
    """Step by step, from the so many sets with the smallest peaks, and of these with the fewest bytes alive."""
    kept: dict[int, tuple[int, int, Order]] = {0: (graph.start, graph.start, ())}
    for _ in graph.before:
        found: dict[int, tuple[int, int, Order]] = {}
        for done, (most, alive, order) in kept.items():
            for step, during, left in _worth_trying(graph, done, alive, most):
                after, state = done | 1 << step, (max(most, during), left, (*order, step))
                if after not in found or state < found[after]:
                    found[after] = state
        kept = dict(nsmallest(width, found.items(), key=lambda item: item[1]))
    return min(kept.values())[2]


def orders_below(graph: Graph, limit: int, moves: int) -> Iterator[Order]:
    """All orders whose peak is below a limit; at most so many ``moves`` are tried."""
    full = (1 << len(graph.before)) - 1
    stack: list[tuple[int, int, Order]] = [(0, graph.start, ())]
    while stack and moves > 0:
        done, alive, order = stack.pop()
        if done == full:
            yield order
            continue
        for step in reversed(tuple(graph.ready(done))):
            moves -= 1
            during, left = graph.after(step, done, alive)
            if during < limit:
                stack.append((done | 1 << step, left, (*order, step)))
