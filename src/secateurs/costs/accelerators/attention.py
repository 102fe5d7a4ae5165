"""SpAtten (2012.09852): tokens and heads that matter little are left out, for good, from one layer to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from secateurs.types import SecateursError


@dataclass(frozen=True)
class Attending:
    """The multiplications of one layer of a transformer, and the numbers that it fetches."""

    projections: float
    products: float
    feed_forward: float
    fetched: float

    @property
    def macs(self) -> float:
        return self.projections + self.products + self.feed_forward


@dataclass(frozen=True)
class CascadePruning:
    """A transformer of ``layers`` layers, in which layer i works with a fraction ``tokens[i]`` of the tokens and ``heads[i]`` of the heads.

    What is left out in a layer is left out in all that follow (a cascade): fractions never rise. Queries, keys and values are made of the
    tokens that are there for the heads that are there; scores and sums over values go with tokens², and feed-forward layers with tokens.
    ``fetched`` are the keys, values and queries that attention reads. What SpAtten publishes depends on schedules that data decide: what is
    counted here is what a schedule comes to.

    Raises `SecateursError` where a fraction is none or rises, or there is not one for each layer.

    >>> half = CascadePruning(layers=4, width=64, heads_in_all=4, inner=256, tokens=(1.0, 0.75, 0.5, 0.25), heads=(1.0, 1.0, 0.5, 0.5))
    >>> [round(each.products / half.layer(0, 128).products, 4) for each in half.pass_of(128)]
    [1.0, 0.5625, 0.125, 0.0312]
    """

    layers: int
    width: int
    heads_in_all: int
    inner: int
    tokens: Sequence[float]
    heads: Sequence[float]

    def __post_init__(self) -> None:
        for name, given in (("tokens", self.tokens), ("heads", self.heads)):
            if len(given) != self.layers:
                raise SecateursError(
                    f"CascadePruning: {name} has {len(given)} fractions for {self.layers} layers: give one for each"
                )
            if not all(0 < each <= 1 for each in given) or any(later > earlier for earlier, later in pairwise(given)):
                raise SecateursError(
                    f"CascadePruning: {name}={tuple(given)}: fractions are in (0, 1] and never rise, as what is left out stays out"
                )

    def layer(self, place: int, sequence: int) -> Attending:
        """What one layer does with a sequence of so many tokens at the beginning."""
        tokens = max(1, round(self.tokens[place] * sequence))
        heads = max(1, round(self.heads[place] * self.heads_in_all))
        made = heads * self.width // self.heads_in_all
        return Attending(
            projections=4.0 * tokens * self.width * made,
            products=2.0 * tokens * tokens * made,
            feed_forward=2.0 * tokens * self.width * self.inner,
            fetched=3.0 * tokens * made,
        )

    def pass_of(self, sequence: int) -> tuple[Attending, ...]:
        """Layer by layer."""
        return tuple(self.layer(place, sequence) for place in range(self.layers))

    def macs(self, sequence: int) -> float:
        """Of a whole pass."""
        return sum(each.macs for each in self.pass_of(sequence))
