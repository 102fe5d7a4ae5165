"""How strongly a penalty presses: a number that stays, or one that is found so that a target sparsity is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Any

from secateurs.given import NUMBER, require
from secateurs.types import FileError, SecateursError


@dataclass
class Strength:
    """A strength, and where a ``target`` sparsity is given, how it gets there.

    What is to be left falls by the same fraction in equal times, from all to ``1 − target``, until ``reach`` of the training is over,
    and stays. The strength grows where the trend is to keep more than that a twentieth of the training later, and falls where it is to
    keep less: at once by the square of what is too much, and more as time goes on. So its first value matters little. Where more is gone
    than was wanted at that time, it is below zero, and calls weights back.

    Raises `SecateursError` for a strength below 0, a target outside (0, 1) or a reach outside (0, 1].

    >>> round(Strength.of("str", None, 0.9, first=1e-4).wanted(0.7), 6)
    0.1
    """

    start: float
    target: float | None = None
    reach: float = 0.7
    grown: float = 0.0
    lately: float = 0.0
    most: float = 0.0
    now: float = 0.0

    @staticmethod
    def of(who: str, strength: float | None, target: float | None, *, first: float, reach: float = 0.7) -> Strength:
        """As given, or ``first`` where only a target is."""
        if strength is None and target is None:
            raise SecateursError(
                f"{who}: give strength=..., how strongly sparsity is pressed for, or target=..., the sparsity for which it is found"
            )
        for argument, value in (("strength", strength), ("target", target), ("reach", reach)):
            if value is not None:
                require(who, argument, value, NUMBER)
        start = first if strength is None else strength
        if not (isfinite(start) and start >= 0) or (target is not None and start == 0):
            raise SecateursError(f"{who}: strength={start} must be at least 0, and above 0 where a target is to be reached by it")
        if target is not None and not 0 < target < 1:
            raise SecateursError(f"{who}: target={target} is not in (0, 1); 0.9 removes 90 %")
        if not 0 < reach <= 1:
            raise SecateursError(
                f"{who}: reach={reach}, when the target is to be reached, is not in (0, 1], a part of the training"
            )
        return Strength(start, target, reach, now=start)

    def wanted(self, progress: float) -> float:
        """The fraction that is to be left when so much of the training is over."""
        return float((1 - (self.target or 0.0)) ** min(1.0, progress / self.reach))

    def follow_(self, kept: float, progress: float, passed: float) -> None:
        """Be what the fraction that is left asks for, after another ``passed`` of the whole training."""
        if self.target is None:
            return
        ahead = log(max(kept, 1e-9) / self.wanted(progress))
        here = log(max(kept, 1e-9))
        self.lately += (here - self.lately) * min(1.0, passed / _LATELY)
        soon = here + (here - self.lately) * _SOON / _LATELY
        ahead = soon - log(self.wanted(progress + _SOON))
        self.grown = _within(_WIDEST, self.grown + _within(_A_STEP, _GAIN * ahead * passed))
        self.now = self.start * exp(_within(_WIDEST, self.grown) + _within(_WIDEST, _AT_ONCE * ahead))
        self.most = max(self.most, self.now)
        missing = log(self.wanted(progress)) - here
        if missing > _MISSED:
            self.now = -self.most * min(1.0, missing) / 2

    def forget_(self) -> None:
        """Be as in the beginning."""
        self.grown = self.lately = self.most = 0.0
        self.now = self.start

    def state(self) -> dict[str, Any]:
        return {"grown": self.grown, "lately": self.lately, "most": self.most, "now": self.now}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises `FileError` where it holds no numbers."""
        if not all(type(state.get(key)) in (int, float) for key in ("grown", "lately", "most", "now")):
            raise FileError("the checkpoint holds no strength of a penalty")
        self.grown, self.lately, self.most, self.now = (float(state[key]) for key in ("grown", "lately", "most", "now"))


_GAIN, _AT_ONCE = 60.0, 2.0
_A_STEP, _WIDEST = 0.3, 14.0  # the logarithm of the strength: how far it may go in one step, and at all
_MISSED = 0.05  # of what is wanted this fraction may be missing before weights are called back
_LATELY, _SOON = 0.03, 0.05  # fractions of the training: over which a trend is seen, and how far ahead it is looked


def _within(most: float, value: float) -> float:
    return min(most, max(-most, value))
