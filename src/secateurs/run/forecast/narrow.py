"""Seconds of a layer that is narrower than it is now: measured at its real width, or between two near ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod

from secateurs.costs import Layer, Work
from secateurs.run.forecast.predict import Weighted, narrowed
from secateurs.run.network.nodes import Conv

_EACH = 16
"""Widths up to this are measured one by one."""
_STEP = 4
"""The least step between those above; from 32 on it is an eighth to a quarter of the width."""

Sizes = tuple[int, int, int]
"""Groups, outputs and inputs of each."""


def near(width: int, whole: int) -> tuple[tuple[int, float], ...]:
    """The measured widths beside one, and their weights: each up to 16, then multiples of a step and what follows them, where a cliff is.

    The step is 4 up to 31 and then a quarter of the power of two below, so that two widths between which a straight line is drawn are a
    quarter apart at the most. The layer's own width is measured itself.

    >>> near(7, 64), near(16, 64), near(17, 64), near(64, 64)
    (((7, 1.0),), ((16, 1.0),), ((17, 1.0),), ((64, 1.0),))
    >>> near(18, 64)
    ((17, 0.6666666666666667), (20, 0.3333333333333333))
    """
    step = max(_STEP, 2 ** (width.bit_length() - 1) // 4)
    below, over = width // step * step, width % step
    if width <= _EACH or over <= 1 or width >= whole:
        return ((width, 1.0),)
    low, high = below + 1, min(below + step, whole)
    part = (width - low) / (high - low)
    return ((low, 1 - part), (high, part))


@dataclass(frozen=True)
class Narrow:
    """Seconds of one layer for what a plan leaves of it; ``dense`` is what it does now, and ``seconds`` times a layer in some runtime.

    Nothing is measured twice, and what is not asked for not at all.
    """

    layer: Weighted
    dense: Work
    seconds: Callable[[Weighted], float]
    _known: dict[Sizes, float] = field(default_factory=dict)

    def __call__(self, work: Work) -> float:
        """Of weights that are gone, nothing; of experts that go, and where the number of positions changes, in proportion."""
        if not work.nonzeros:
            return 0.0
        return self._at(self._sizes(work)) * work.positions / max(1, self.dense.positions) * min(1.0, work.density)

    def _sizes(self, work: Work) -> Sizes:
        """A layer that lowering cut out of a larger one (queries, of a projection of all three) has its share of that one's outputs."""
        outputs, inputs, *_ = self.layer.weight.shape
        made, whole = work.groups * work.outputs, max(1, self.dense.groups * self.dense.outputs)
        groups = work.groups if isinstance(self.layer, Conv) and self.layer.groups > 1 else 1
        left = round(outputs * made / whole), round(inputs * work.inputs / max(1, self.dense.inputs))
        return max(1, groups), max(1, left[0] // max(1, groups)), max(1, left[1])

    def _at(self, sizes: Sizes) -> float:
        whole = self._sizes(self.dense)
        if sizes == whole:
            return self._measured(sizes)
        near_by = product(*(near(size, limit) for size, limit in zip(sizes, whole, strict=True)))
        return sum(self._measured((g[0], o[0], i[0])) * prod((g[1], o[1], i[1])) for g, o, i in near_by)

    def _measured(self, sizes: Sizes) -> float:
        if sizes not in self._known:
            groups, outputs, inputs = sizes
            own = sizes == self._sizes(self.dense)
            self._known[sizes] = self.seconds(self.layer if own else narrowed(self.layer, groups * outputs, inputs, groups))
        return self._known[sizes]


def matched(owners: Mapping[Weighted, str], products: tuple[Layer, ...]) -> dict[Weighted, int]:
    """Layer of the runtime → the place of the product of the pass that it is: by the parameter, and by the order of its uses."""
    places: dict[str, list[int]] = {}
    for place, each in enumerate(products):
        if each.parameter is not None:
            places.setdefault(each.parameter, []).append(place)
    used: dict[str, int] = {}
    found: dict[Weighted, int] = {}
    for layer, name in owners.items():
        if name in places:
            turn = used.get(name, 0)
            found[layer] = places[name][min(turn, len(places[name]) - 1)]
            used[name] = turn + 1
    return found
