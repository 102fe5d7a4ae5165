"""What foretells in the mixed coder: the mixer of many probabilities, and the predictor of the next number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateurs.coding.coders.around import moved
from secateurs.coding.coders.payload import Shape
from secateurs.coding.coders.ranges import Chance, Coder, sure
from secateurs.coding.coders.tables import SHARE, STRETCH, clamp, squash

CONTEXTS, PREDICTIONS = 6, 3
TRUST = (0, 6, 10, 12, 13, 14, 15, 16)
POSITIONS = 64


@dataclass
class Corrected:
    """A probability in 2^-32, and how often it was asked."""

    p: int
    seen: int = 0

    def learn(self, yes: bool) -> None:
        """Moves towards what was decided."""
        self.p = moved(self.p, 0xFFFFFFFF if yes else 0, self.seen + 3)
        self.seen += self.seen < 250


@dataclass
class Weights:
    """How much each input counts; learns fast at first."""

    values: list[int]
    seen: int = 0

    def logit(self, inputs: Sequence[int]) -> int:
        """What the inputs say together."""
        return clamp(sum(a * b for a, b in zip(inputs, self.values, strict=True)) >> 16, -2047, 2047)

    def learn(self, inputs: Sequence[int], logit: int, yes: bool) -> None:
        """Moves against the error."""
        error, rate = (65535 if yes else 0) - squash(logit), 8 + (160 * SHARE[min(self.seen // 8, 1023)] >> 16)
        self.seen = min(self.seen + 1, 65535)
        moved_by = [(each * error >> 10) * rate >> 10 for each in inputs]
        self.values = [clamp(a + b, -(1 << 19), 1 << 19) for a, b in zip(self.values, moved_by, strict=True)]


class Mixer:
    """Probabilities in, a decision coded, everything learned from it."""

    def __init__(self) -> None:
        self._chances: dict[tuple[int, int, int], Chance] = {}
        self._corrected: dict[tuple[int, int, int], Corrected] = {}
        self._weights: dict[tuple[int, int], Weights] = {}

    def decide(
        self,
        coder: Coder,
        yes: bool,
        context: Sequence[int],
        nodes: tuple[int, int],
        guesses: Sequence[int],
        placed: Sequence[int],
        kind: int,
        choice: int,
    ) -> bool:
        """One decision.

        ``context``: a class for each of the six; ``nodes``: what is decided, with and without the number's sign; ``guesses`` go in as they
        are, and corrected by the places that ``placed`` has; ``kind`` and ``choice`` choose the weights.
        """
        keys = [(at, context[at], nodes[at == 3]) for at in range(CONTEXTS)]
        chances = [self._chances.setdefault(key, Chance()) for key in keys]
        inputs = [STRETCH[each.p >> 10] * TRUST[min(each.seen, 7)] >> 4 for each in chances]
        corrected = []
        for at in range(PREDICTIONS):
            low, part = placed[at] + 2048 >> 7, placed[at] + 2048 & 127
            first, second = (self._correction(at, nodes[0], low + each) for each in range(2))
            corrected.append(second if part >= 64 else first)
            inputs += [guesses[at], STRETCH[first.p * (128 - part) + second.p * part >> 27]]
        sets = [self._weights_of(kind, -1), self._weights_of(kind, choice)]
        logits = [each.logit(inputs) for each in sets]
        yes = coder.code(yes, sure(squash(sum(logits) >> 1)))
        for each, logit in zip(sets, logits, strict=True):
            each.learn(inputs, logit, yes)
        for chance in chances:
            chance.learn(yes, 1023)
        for correction in corrected:
            correction.learn(yes)
        return yes

    def _correction(self, prediction: int, node: int, place: int) -> Corrected:
        return self._corrected.setdefault((prediction, node, place), Corrected(squash(place * 128 - 2048) << 16))

    def _weights_of(self, kind: int, choice: int) -> Weights:
        return self._weights.setdefault((kind, choice), Weights([4000] * CONTEXTS + [12000] * 2 * PREDICTIONS))


@dataclass
class _Means:
    slow: int = 0
    fast: int = 0
    seen: int = 0


@dataclass
class _Filter:
    weights: list[int]
    seen: int = 0

    def predict(self, around: Sequence[int]) -> int:
        return clamp(sum(a * b for a, b in zip(self.weights, around, strict=True)) >> 16, -8191, 8191)

    def learn(self, around: Sequence[int], power: int, error: int) -> None:
        """Normalised least mean squares, by 1/4 of the error at first."""
        shift = 2 if self.seen < 100 else 3 if self.seen < 400 else 4 if self.seen < 1600 else 5
        self.seen += 1
        step = (abs(error) << 20) // power * (-1 if error < 0 else 1)
        moved_by = [step * each >> (4 + shift) for each in around]
        self.weights = [clamp(a + b, -(1 << 20), 1 << 20) for a, b in zip(self.weights, moved_by, strict=True)]


class Predictor:
    """Predicts numbers in normal units (the largest is near 4096) by linear filters over what stands around.

    One filter is for all, and each position of a kernel has one of its own.
    """

    def __init__(self, shape: Shape, side: int) -> None:
        self._inner, self._apart = shape.inner, shape.inner if shape.inner > 1 else 3
        self._means = [_Means() for _ in range(shape.columns * shape.inner)]
        self._back = list(range(1, min(shape.inner, 12)))
        if shape.inner > 12 and side:
            self._back = [1, 2, 3, side - 1, side, side + 1, 2 * side - 1, 2 * side, 2 * side + 1, 3 * side]
        self._across = [0] + [1, -1] * (shape.inner > 1) + [side, -side] * (side > 1)
        count = len(self._back) + len(self._across) + 7
        self._all = _Filter([0] * count)
        self._own = [_Filter([0] * count) for _ in range(min(shape.inner, POSITIONS))]
        self.predicted = [0, 0]

    def look(self, rows: Sequence[list[int]], at: int, place: int, position: int) -> None:
        """Predicts the number at ``at`` of the first of three rows."""
        row, above, second = rows
        means, inner = self._means[place], self._inner
        self._place, self._position = place, min(position, POSITIONS - 1)
        around = [row[at - back] if position >= back else 0 for back in self._back]
        around += [row[at + step - self._apart] if 0 <= position + step < inner else 0 for step in self._across]
        around += [row[at - 2 * self._apart], above[at], second[at], means.slow >> 2, means.fast >> 2]
        around.append(above[at + 1] if position + 1 < inner else row[at - 2] if inner == 1 else 0)
        self._around = [*around, 256]
        self._power = (1 << 17) + sum(each * each for each in self._around)
        self.predicted = [each.predict(self._around) for each in (self._own[self._position], self._all)]

    def know(self, number: int) -> None:
        """Learns what it was, where it was not 0."""
        for each, predicted in zip((self._own[self._position], self._all), self.predicted, strict=True):
            each.learn(self._around, self._power, number - predicted)
        means = self._means[self._place]
        means.slow = moved(means.slow, number * 4, min(means.seen, 20) + 1)
        means.fast = moved(means.fast, number * 4, min(means.seen, 2) + 1)
        means.seen = min(means.seen + 1, 255)
