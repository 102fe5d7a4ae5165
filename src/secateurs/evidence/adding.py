"""Where several processes train one model, what each has seen becomes what all have seen."""

from __future__ import annotations

from collections.abc import Mapping

from secateurs.ranks import WAY_OUT, count, summed
from secateurs.types import Accumulator, SecateursError, Statistic

Accumulators = Mapping[Statistic, Accumulator]


def add_up_(accumulators: Mapping[str, Accumulators]) -> None:
    """Add up over all processes what the accumulators, which must be of the same names in all, have gathered.

    Raises `SecateursError` for one whose class does not name its sums.
    """
    places = {
        f"{name} {need.name} {attribute}": (value, attribute)
        for name, found in accumulators.items()
        for need, value in found.items()
        for attribute in _sums(need, value)
    }
    parts = {place: getattr(value, attribute) for place, (value, attribute) in places.items()}
    for place, added in summed({place: part for place, part in parts.items() if part is not None}).items():
        value, attribute = places[place]
        setattr(value, attribute, added)


def _sums(need: Statistic, accumulator: Accumulator) -> tuple[str, ...]:
    names = getattr(accumulator, "sums", None)
    if names is None:
        raise SecateursError(
            f"{need.name} cannot be added up over {count()} processes: the class of its accumulator must name its sums "
            f"(see secateurs.types.Accumulator); {WAY_OUT}"
        )
    return tuple(names)
