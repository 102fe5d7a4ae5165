"""Numbers on a line, and the few means that stand for them: k-means in one dimension, by iteration or exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Start = Literal["linear", "density", "random", "optimal"]
"""Where the means begin: evenly over the range, over the numbers in their order, at numbers by chance; or the best there is."""

_MOST_ITERATIONS = 1_000
_EXACT = 1 << 18
"""Numbers times means up to which the exact way is taken as it is; above, of cells of neighbouring numbers in their place."""

_MOST_CELLS = 8_192

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]


def means_of(values: Tensor, there: Tensor, count: int, start: Start, seed: int = 0) -> Tensor:
    """The means of clusters of each row's numbers, ascending, ``(rows, count)``, float64.

    ``values`` is ``(rows, numbers)``, float64, of which ``there`` marks those that count. After the start, which "optimal" alone does not
    leave to iteration, each number goes to the nearest mean and each mean to the middle of its numbers, until nothing changes (Lloyd's
    algorithm); a mean without numbers goes to the number that lies furthest from its own. Where a row has no more different numbers
    than means, these are they, and what is left over repeats one of them.

    >>> means_of(torch.tensor([[1.0, 2.0, 9.0, 11.0]]).double(), torch.ones(1, 4).bool(), 2, "linear")
    tensor([[ 1.5000, 10.0000]], dtype=torch.float64)
    """
    if not values.numel():
        return values.new_zeros(len(values), count)
    line = _Line.of(values, there)
    return _iterated(line, _starts(line, count, start, seed))


def nearest(values: Tensor, means: Tensor) -> Tensor:
    """The place of each number's nearest mean in its row of ascending means, the upper one of two: ``(rows, numbers)``, int64.

    >>> nearest(torch.tensor([[0.0, 5.0]]), torch.tensor([[0.0, 4.0]]))
    tensor([[0, 1]])
    """
    return torch.searchsorted((means[:, 1:] + means[:, :-1]).div(2).contiguous(), values.contiguous(), right=True)


class _Line:
    """The numbers of each row in their order, those that do not count at the end as infinities, and the sums up to each."""

    def __init__(self, ascending: Tensor, numbers: Tensor) -> None:
        self.ascending, self.numbers = ascending, numbers
        finite = torch.where(torch.isfinite(ascending), ascending, 0)
        nothing = finite.new_zeros(len(finite), 1)
        self.sums = torch.cat([nothing, finite.cumsum(1)], 1)

    @staticmethod
    def of(values: Tensor, there: Tensor) -> _Line:
        return _Line(torch.where(there, values, torch.inf).sort(1).values, there.sum(1))

    def at(self, places: Tensor) -> Tensor:
        """The numbers at some places of each row, which are held within it; zeros in rows without numbers."""
        within = places.clamp(min=0).minimum((self.numbers - 1).clamp(min=0)[:, None])
        return torch.where(self.numbers[:, None] > 0, self.ascending.gather(1, within), 0.0)

    def edges(self, means: Tensor) -> Tensor:
        """Where the numbers of each mean begin, and where the last one's end: ``(rows, means + 1)``."""
        between = torch.searchsorted(self.ascending, (means[:, 1:] + means[:, :-1]).div(2).contiguous())
        return torch.cat([torch.zeros_like(self.numbers)[:, None], between, self.numbers[:, None]], 1)


# ---------------------------------------------------------------- starts


def _starts(line: _Line, count: int, start: Start, seed: int) -> Tensor:
    rows, device = len(line.ascending), line.ascending.device
    if start == "optimal":
        found = [_best(row[:n].cpu().numpy(), count) for row, n in zip(line.ascending, line.numbers.tolist(), strict=True)]
        return torch.from_numpy(np.stack(found)).to(device)
    if start == "linear":
        low, high = line.at(torch.zeros_like(line.numbers)[:, None]), line.at(line.numbers[:, None] - 1)
        return low + (high - low) * torch.linspace(0, 1, count, dtype=torch.float64, device=device)
    if start == "density":
        share = (torch.arange(count, device=device) + 0.5) / count
        return line.at((share * line.numbers[:, None]).long())
    chance = torch.rand(rows, line.ascending.shape[1], generator=torch.Generator().manual_seed(seed)).to(device)
    first = torch.where(torch.isfinite(line.ascending), chance, 2.0).argsort(1)[:, :count].sort(1).values
    missing = count - first.shape[1]
    return line.at(torch.cat([first, first[:, -1:].expand(-1, missing)], 1) if missing > 0 else first)


# ---------------------------------------------------------------- by iteration


def _iterated(line: _Line, means: Tensor) -> Tensor:
    for _ in range(_MOST_ITERATIONS):
        edges = line.edges(means)
        counts = edges.diff(dim=1)
        middle = torch.where(counts > 0, line.sums.gather(1, edges).diff(dim=1) / counts.clamp(min=1), means)
        middle = _without_idle(line, middle, edges, counts)
        if torch.equal(middle, means):
            break
        means = middle
    return means


def _without_idle(line: _Line, means: Tensor, edges: Tensor, counts: Tensor) -> Tensor:
    """In each row, one mean that has no numbers goes to the number that lies furthest from its own mean."""
    idle = (counts == 0) & (line.numbers > 0)[:, None]
    if not bool(idle.any()):
        return means
    ends = torch.cat([edges[:, :-1], edges[:, 1:] - 1], 1)
    away = torch.where(torch.cat([counts, counts], 1) > 0, (line.at(ends) - torch.cat([means, means], 1)).abs(), 0.0)
    distance, furthest = away.max(1)
    size = means.abs().amax(1)
    moves = idle.any(1) & (distance > 1e-12 * size)
    there = line.at(ends.gather(1, furthest[:, None]))
    place = idle.to(torch.int8).argmax(1, keepdim=True)
    moved = means.scatter(1, place, there).sort(1).values
    return torch.where(moves[:, None], moved, means)


# ---------------------------------------------------------------- the best there is


def _best(ascending: Numbers, count: int) -> Numbers:
    """The means of the clusters with the least sum of squared distances, by dynamic programming; of very many numbers, of cells of them.

    Clusters are stretches of the ordered numbers. The best last stretch of the first i numbers begins no earlier than that of the first
    i − 1, so all of one length are found in n·log n: the middle ones first, and then those between within what these leave.
    """
    values, weights = np.unique(ascending, return_counts=True)
    if len(values) <= count:
        last = values[-1] if len(values) else 0.0
        return np.concatenate([values, np.full(count - len(values), last)])
    sums = _Sums.of(values, weights)
    if len(values) * count > _EXACT:
        sums = sums.of_cells(values, min(_MOST_CELLS, max(_EXACT // count, 4 * count)))
    n = len(sums.weight) - 1
    least = sums.within(np.zeros(n + 1, dtype=np.int64), np.arange(n + 1))
    begins = list[Places]()
    for clusters in range(2, count + 1):
        least, begin = _one_more(least, clusters, sums.within)
        begins.append(begin)
    edges = [n]
    for begin in reversed(begins):
        edges.append(int(begin[edges[-1]]))
    places = np.array([*edges, 0])[::-1]
    return np.diff(sums.total[places]) / np.diff(sums.weight[places]) + sums.middle


@dataclass(frozen=True)
class _Sums:
    """Sums up to each number, around their middle, by which the squared distances within any stretch are told."""

    weight: Numbers
    total: Numbers
    square: Numbers
    middle: float

    @staticmethod
    def of(values: Numbers, weights: Any) -> _Sums:
        middle = float(np.average(values, weights=weights))
        around = values - middle
        weight, total, square = (np.concatenate([[0.0], np.cumsum(weights * around**power)]) for power in (0, 1, 2))
        return _Sums(weight, total, square, middle)

    def within(self, begin: Places, end: Places) -> Numbers:
        """The sum of squared distances to the mean, of the numbers from ``begin`` to before ``end``."""
        weight = np.maximum(self.weight[end] - self.weight[begin], 1e-300)
        return np.maximum(self.square[end] - self.square[begin] - (self.total[end] - self.total[begin]) ** 2 / weight, 0.0)

    def of_cells(self, values: Numbers, cells: int) -> _Sums:
        """The same sums, told only at the ends of cells: half of them equally wide, half with equally many numbers."""
        wide = np.searchsorted(values, np.linspace(values[0], values[-1], cells // 2))
        many = np.searchsorted(self.weight, np.linspace(0, self.weight[-1], cells // 2))
        places = np.unique(np.concatenate([[0], wide, many, [len(values)]]))
        return _Sums(self.weight[places], self.total[places], self.square[places], self.middle)


def _one_more(least: Numbers, clusters: int, within: Callable[[Places, Places], Numbers]) -> tuple[Numbers, Places]:
    """The least sums of the first i numbers in one cluster more, for each i, and where the last one begins."""
    n = len(least) - 1
    found, begin = np.full(n + 1, np.inf), np.full(n + 1, clusters - 1, dtype=np.int64)
    stride = 1 << max(0, (n - clusters).bit_length())
    while True:
        asked = np.arange(clusters, n + 1, stride)
        asked = asked[~np.isfinite(found[asked])]
        before, after = asked - stride, asked + stride
        low = np.where(before >= clusters, begin[np.maximum(before, clusters)], clusters - 1)
        high = np.where((after <= n) & np.isfinite(found[np.minimum(after, n)]), begin[np.minimum(after, n)], asked - 1)
        high = np.minimum(high, asked - 1)
        sizes = high - low + 1
        starts = np.cumsum(sizes) - sizes
        tried = np.arange(int(sizes.sum())) - np.repeat(starts - low, sizes)
        sums = least[tried] + within(tried, np.repeat(asked, sizes))
        smallest = np.minimum.reduceat(sums, starts)
        first = np.flatnonzero(sums == np.repeat(smallest, sizes))
        owner = np.repeat(np.arange(len(asked)), sizes)[first]
        _, which = np.unique(owner, return_index=True)
        found[asked], begin[asked] = smallest, tried[first[which]]
        if stride == 1:
            return found, begin
        stride //= 2
