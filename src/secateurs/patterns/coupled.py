"""The patterns whose units are indices of an axis, with everything that is coupled to them: channels, neurons, heads."""

from __future__ import annotations

from dataclasses import dataclass

from secateurs.patterns.axes import in_no_weight, sites_on_axes
from secateurs.patterns.shapes import check_length, check_within, written
from secateurs.types import Coupling, PatternError, Within


@dataclass(frozen=True)
class Channel:
    """Channels, neurons, heads and groups, each removed from every weight where it lies (2301.12900, found by type inference).

    ``round_to`` keeps widths multiples of a number that the hardware likes. ``approximate=True`` lets axes take part over which a
    normalisation or a softmax runs: removing them is not the same as zeroing them. ``within="isomorphic"`` compares sites that are
    coupled in the same way (2407.04616), ``"model"`` all of them.

    >>> Channel(round_to=8)
    Channel(round_to=8)
    """

    within: Within = "layer"
    round_to: int = 1
    approximate: bool = False

    __repr__ = written
    removable = True
    cut = in_no_weight
    sites = sites_on_axes

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kept_of_each(self) -> None:
        return None

    @property
    def only_heads(self) -> bool:
        return False


@dataclass(frozen=True)
class Head:
    """Attention heads, with their part of every projection (1905.10650); key and value heads with all the queries that share them.

    >>> Head(within="model")
    Head(within='model')
    """

    within: Within = "layer"

    __repr__ = written
    removable = True
    cut = in_no_weight
    sites = sites_on_axes

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kept_of_each(self) -> None:
        return None

    @property
    def round_to(self) -> int:
        return 1

    @property
    def approximate(self) -> bool:
        return False

    @property
    def only_heads(self) -> bool:
        return True


def _check(pattern: Coupling) -> None:
    check_within(pattern, pattern.within)
    check_length(pattern, "round_to", pattern.round_to)
    if pattern.within == "row" or isinstance(pattern.within, int):
        raise PatternError(f'{pattern}: whole channels compete within "layer", "isomorphic" or "model"')
