"""Learning from a network that knows: what the dense network answers tells a pruned one more than labels do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from secateurs.given import NUMBER, require
from secateurs.recover.counted import counted_in, mean_over
from secateurs.recover.teacher import Teacher, teacher_for
from secateurs.types import Hook, Run, SecateursError


def distill(
    teacher: nn.Module | Teacher | None = None,
    *,
    temperature: float = 4.0,
    weight: float = 1.0,
    dim: int | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    name: str = "distill",
) -> Hook:
    """Adds ``weight · T² · KL(p ‖ q)``, of teacher's and model's probabilities at temperature T, to the loss (1503.02531).

    T² keeps gradients of the same size at any temperature. Teacher and model see the same inputs; both return logits, or an output with
    ``logits`` in it as models of Hugging Face do, or ``logits(output)`` takes them from what they return. Classes are along `dim`: by
    default 1, and the last of those logits that are ``(batch, positions, words)``. Where the inputs have an ``attention_mask`` of the
    positions, padded ones do not count. The teacher answers in evaluation mode and learns nothing. Without one it is a copy of the model
    as training begins, which `gradual` prunes only then, and goes into the checkpoint; one that is given belongs to no checkpoint, so
    give the same again where training goes on. For a model that is pruned already, keep it first: ``teacher = teacher_of(model)``.
    Several hooks may share a `Teacher`, and need names of their own.

    In a loop of your own: ``hook.start(run)`` with a `Run`, and ``hook.loss(run)`` once ``run.inputs`` and ``run.output`` are those of
    the batch, to be added to the loss.

    Raises `SecateursError` for a temperature that is not positive, a negative weight, a teacher that shares parameters with the
    model that is trained or would be a copy of a pruned one, or logits that do not fit each other.

    >>> from secateurs import Task, train_
    >>> teacher, model = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> task = Task(torch.zeros(1, 2), train=[(torch.randn(8, 2), torch.zeros(8).long())], loss=nn.functional.cross_entropy)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> run = train_(model, task, optimizer, epochs=2, hooks=[distill(teacher, weight=10)])
    >>> run.history[-1]["loss"] < run.history[0]["loss"]
    True
    """
    require(name, "temperature", temperature, NUMBER)
    require(name, "weight", weight, NUMBER)
    if not (0 < temperature < float("inf") and 0 <= weight < float("inf")):
        raise SecateursError(f"{name}(temperature={temperature}, weight={weight}): temperature must be above 0, weight at least 0")

    source = teacher_for(name, teacher)

    def loss(run: Run) -> Tensor:
        answer, _ = source.lesson(run, name)
        along = _classes(answer) if dim is None else dim
        of_teacher, own = (_logits(each) if logits is None else logits(each) for each in (answer, run.output))
        known, learnt = _log_probabilities(of_teacher, own, temperature, along, name)
        divergence = kl_div(learnt, known, reduction="none", log_target=True).sum(along)
        there = counted_in(run.inputs, divergence.shape, None)
        return weight * temperature**2 * mean_over(divergence, there)

    def start(run: Run) -> None:
        source.begin(run, name)

    return Hook(
        name,
        made=source.made,
        start=start,
        loss=loss,
        close=lambda run: source.close(name),
        state=lambda: source.state(name),
        restore=lambda state: source.restore(state, name),
    )


def _logits(answer: Any) -> Any:
    """The logits of an answer that has them by that name; else the answer itself."""
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    return answer if named is None else named


def _classes(answer: Any) -> int:
    """In which dimension classes are where nobody says it: of named logits of each position of a text in the last."""
    logits = _logits(answer)
    return -1 if logits is not answer and isinstance(logits, Tensor) and logits.ndim == 3 else 1


def _log_probabilities(answer: Any, output: Any, temperature: float, dim: int, who: str) -> list[Tensor]:
    """Teacher's and model's, in float32 at least whatever the mixed precision."""
    shapes = [tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__ for logits in (answer, output)]
    if not isinstance(answer, Tensor) or shapes[0] != shapes[1] or not -answer.ndim <= dim < answer.ndim:
        raise SecateursError(
            f"{who}(dim={dim}): teacher and model must return logits of one shape, with classes along that dimension, but the "
            f"teacher returned {shapes[0]} and the model {shapes[1]}; wrap one of them, give another dim=, or say with "
            "logits=lambda output: ... what of an output is compared (output[0] of a tuple, the classes that both have)"
        )
    return [
        torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim)
        for logits in (answer, output)
    ]
