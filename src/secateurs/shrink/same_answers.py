"""Whether a smaller model still gives the same answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.answers import difference, in_float64, widened
from secateurs.forward import describe, parameters_in, run_example
from secateurs.nested import tensors_in
from secateurs.shrink.other_inputs import other_inputs
from secateurs.shrink.stilled import Stilled
from secateurs.types import SecateursError, TaskError
from secateurs.watch import plain, untouched

_SMALL, _LARGE = 10_000_000, 200_000_000
_TOLERANCE = 3e-6
_TOLERANCES = {torch.float64: _TOLERANCE, torch.float32: 2e-4}


@dataclass
class Check:
    """Whether a model that is made smaller answers as it did: in float64 where that is feasible.

    It is asked with the example and, where it accepts them, with other numbers, another batch size and another size of images or
    sequences.

    Models of more than ten million parameters are compared in float32 first, within the tolerance of float64, which what float32 rounds
    off hardly ever exceeds; where it does, float64 decides. What the model answered before is computed once. ``tolerance`` is that of the
    last comparison, where weights of few bits are written anew.
    """

    model: nn.Module
    inputs: Any
    _before: dict[bool, list[Tensor]] = field(default_factory=dict)
    _doubles: bool = True
    _others: list[Any] | None = None
    tolerance: float | None = None

    def ask(self) -> None:
        """Have the model answer as it is now. Raises `TaskError` where it cannot."""
        self._asked(self._precisions()[0])

    def same_after(self, change: Callable[[], Any], undo: Callable[[], Any]) -> tuple[Any, float]:
        """Change the model; what the change returned, and the largest difference of the answers as a part of the largest number.

        Raises `SecateursError`, with the model as it was, where the difference is no rounding error.
        """
        *tried, last = self._precisions()
        for double, tolerance in (*((each, _TOLERANCE) for each in tried), (last, self.tolerance)):
            before = self._asked(double)
            try:
                done = change()
                return done, require_same(before, self._answers(double), tolerance)
            except BaseException as problem:
                undo()
                if double is last or not isinstance(problem, Different):
                    raise
        raise AssertionError("a check ends with its last precision")

    def _asked(self, double: bool) -> list[Tensor]:
        if double not in self._before:
            self._before[double] = self._answers(double)
        return self._before[double]

    def _precisions(self) -> Sequence[bool]:
        """Whether to compare in float64, in the order in which to try."""
        parameters = parameters_in(self.model).values()
        size = sum(parameter.numel() for parameter in parameters)
        if size >= _LARGE:
            return (False,)
        single = all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters)
        return (False, True) if size >= _SMALL and single else (True,)

    def _answers(self, double: bool) -> list[Tensor]:
        """The model's outputs for every input, in float64 if so wished and the model can do that."""
        with untouched(self.model), plain(kernels=not double), Stilled():
            if double and self._doubles:
                try:
                    with in_float64(self.model):
                        return self._floats(widened)
                except SecateursError:
                    if double in self._before:
                        raise
                    self._doubles = False
            return self._floats(lambda inputs: inputs)

    def _floats(self, cast: Callable[[Any], Any]) -> list[Tensor]:
        """The numbers of the outputs for every input; the first time, other inputs than the example are found that the model accepts."""
        found = _floats(run_example(self.model, cast(self.inputs)))
        if self._others is None:
            all_at_once, *ways = other_inputs(self.inputs)
            first = self._first_accepted(all_at_once, cast, found)
            accepted = [first] if first is not None else [self._first_accepted(way, cast, found) for way in ways]
            self._others = [each[0] for each in accepted if each is not None]
            return found + [tensor for each in accepted if each is not None for tensor in each[1]]
        return found + [tensor for other in self._others for tensor in self._answers_to(other, cast)]

    def _answers_to(self, other: Any, cast: Callable[[Any], Any]) -> list[Tensor]:
        """What a model says to another input than the example, which the whole model takes."""
        try:
            return _floats(run_example(self.model, cast(other)))
        except TaskError as problem:
            reason = str(problem.__cause__ or problem).strip().splitlines()[0]
            raise Different(
                f"the smaller model fails at another size, which the masked one takes ({describe(other)}): {reason}"
            ) from problem

    def _first_accepted(
        self, way: Sequence[Any], cast: Callable[[Any], Any], usual: Sequence[Tensor]
    ) -> tuple[Any, list[Tensor]] | None:
        """The first input with which the model runs, and its answers: for as many samples as went in, if it is so for the example."""
        for inputs in way:
            try:
                found = _floats(run_example(self.model, cast(inputs)))
            except SecateursError:
                continue
            more = _samples(inputs) - _samples(self.inputs)
            here, there = ([tensor.shape[:1] for tensor in answers] for answers in (found, usual))
            if here == [torch.Size([size + more if size == _samples(self.inputs) else size for size in shape]) for shape in there]:
                return inputs, found
        return None


def _samples(inputs: Any) -> int:
    return next((tensor.shape[0] for tensor in tensors_in(inputs) if tensor.ndim), 0)


def _floats(output: Any) -> list[Tensor]:
    """The output's numbers; of a model that answers with whole numbers alone, these."""
    found = [tensor.clone() for tensor in tensors_in(output)]
    return [tensor for tensor in found if tensor.is_floating_point()] or [tensor.double() for tensor in found]


class Different(SecateursError):
    """A smaller model that answers otherwise."""


class Incomparable(Different):
    """Answers with no finite number, by which nothing can be told."""


def require_same(before: Sequence[Tensor], after: Sequence[Tensor], tolerance: float | None = None) -> float:
    """The largest difference, as a part of the largest number; raises `Different` where it is no rounding error.

    Raises `Incomparable` where there is no finite number before to compare with.

    What a rounding error may be depends on the answers' dtype, or is the tolerance given.
    """
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        raise Different("the smaller model's outputs are of other shapes")
    if not any(bool(torch.isfinite(tensor).any()) for tensor in before):
        found = "only NaN and infinite ones" if any(tensor.numel() for tensor in before) else "none at all"
        raise Incomparable(
            f"the answers could not be compared: the model's outputs have no finite numbers, {found}; give an example to which it answers "
            "with numbers, or see which weight is NaN or infinite"
        )
    largest = 0.0
    for one, other in zip(before, after, strict=True):
        apart = difference(one, other)
        if apart > (tolerance or _TOLERANCES.get(one.dtype, 2e-2)):
            raise Different(f"the smaller model's outputs differ from the masked one's by {apart:.1e} of the largest")
        largest = max(largest, apart)
    return largest
