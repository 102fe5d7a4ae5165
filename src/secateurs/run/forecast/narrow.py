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
_LANES = 8
"""Widths that are multiples of it, or of what the machine multiplies at once where that is more, are apart from others: runtimes that hold
channels in blocks take another way where these are not filled."""

Sizes = tuple[int, int, int]
"""Groups, outputs and inputs of each."""


def near(width: int, whole: int, lanes: int = _LANES) -> tuple[tuple[int, float], ...]:
    """The measured widths beside one, and their weights.

    Each up to 16 is measured, and the layer's own. Above, steps are those of ``lanes`` up to 63 and then a quarter of the power of two
    below. Multiples of ``lanes`` lie between multiples of a step, and other widths between those next to such multiples, so that no line is
    drawn over a cliff.

    >>> near(7, 64), near(64, 64), near(48, 64), near(72, 100)
    (((7, 1.0),), ((64, 1.0),), ((48, 1.0),), ((64, 0.5), (80, 0.5)))
    >>> near(18, 64), near(33, 64)
    (((17, 0.8333333333333334), (23, 0.16666666666666666)), ((33, 1.0),))
    """
    if width <= _EACH or width >= whole:
        return ((width, 1.0),)
    step = max(lanes, 2 ** (width.bit_length() - 1) // 4)
    below = width // step * step
    aside = 1 if width % lanes else 0
    low, high = below + aside, below + step - aside
    if high >= whole:  # the widest on this side of the cliff
        high = whole // lanes * lanes if not aside else whole if whole % lanes else whole - 1
    if low == width or high <= low:
        return ((width, 1.0),)
    part = (width - low) / (high - low)
    return ((high, 1.0),) if part == 1 else ((low, 1 - part), (high, part))


@dataclass(frozen=True)
class Narrow:
    """Seconds of one layer for what a plan leaves of it; ``dense`` is what it does now, and ``seconds`` times a layer in some runtime.

    Nothing is measured twice, and what is not asked for not at all.
    """

    layer: Weighted
    dense: Work
    seconds: Callable[[Weighted], float]
    lanes: int = _LANES
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
        near_by = product(*(near(size, limit, self.lanes) for size, limit in zip(sizes, whole, strict=True)))
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
