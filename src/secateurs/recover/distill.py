"""Learning from a network that knows: what the dense network answers tells a pruned one more than labels do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from secateurs.forward import call, evaluating
from secateurs.types import Hook, Run, SecateursError


def distill(teacher: nn.Module, *, temperature: float = 4.0, weight: float = 1.0, dim: int | None = None) -> Hook:
    """Adds ``weight · T² · KL(p ‖ q)``, of teacher's and model's probabilities at temperature T, to the loss (1503.02531).

    T² keeps gradients of the same size at any temperature. Teacher and model see the same inputs; both return logits, or an output with
    ``logits`` in it as models of Hugging Face do. Classes are along `dim`: by default 1, and the last of those logits that are
    ``(batch, positions, words)``. Where the inputs have an ``attention_mask`` of the positions, padded ones do not count. The teacher
    answers in evaluation mode, learns nothing, and belongs to no checkpoint: where training goes on from one, give the same teacher
    again. To teach a pruned model by itself before the pruning, keep a copy first: ``teacher = copy.deepcopy(model)``.

    Raises `SecateursError` for a temperature that is not positive, a negative weight, a teacher that shares parameters with the
    model that is trained, or logits that do not fit each other.

    >>> from secateurs import Task, train_
    >>> teacher, model = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> task = Task(torch.zeros(1, 2), train=[(torch.randn(8, 2), torch.zeros(8).long())], loss=nn.functional.cross_entropy)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> run = train_(model, task, optimizer, epochs=2, hooks=[distill(teacher, weight=10)])
    >>> run.history[-1]["loss"] < run.history[0]["loss"]
    True
    """
    if not (0 < temperature < float("inf") and 0 <= weight < float("inf")):
        raise SecateursError(f"distill(temperature={temperature}, weight={weight}): temperature must be above 0, weight at least 0")

    def start(run: Run) -> None:
        trained = {id(parameter) for parameter in run.model.parameters() if parameter.requires_grad}
        if any(id(parameter) in trained for parameter in teacher.parameters()):
            raise SecateursError(
                "distill: the teacher shares parameters with the model that is trained; "
                "keep a copy before pruning: teacher = copy.deepcopy(model)"
            )

    def loss(run: Run) -> Tensor:
        with evaluating(teacher):
            answer = call(teacher, run.inputs)
        along = _classes(answer) if dim is None else dim
        known, learnt = _log_probabilities(_logits(answer), _logits(run.output), temperature, along)
        divergence = kl_div(learnt, known, reduction="none", log_target=True).sum(along)
        return weight * temperature**2 * _mean(divergence, run.inputs)

    return Hook("distill", start=start, loss=loss)


def _logits(answer: Any) -> Any:
    """The logits of an answer that has them by that name; else the answer itself."""
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    return answer if named is None else named


def _classes(answer: Any) -> int:
    """In which dimension classes are where nobody says it: of named logits of each position of a text in the last."""
    logits = _logits(answer)
    return -1 if logits is not answer and isinstance(logits, Tensor) and logits.ndim == 3 else 1


def _mean(divergence: Tensor, inputs: Any) -> Tensor:
    """The mean over all positions, or over those that are no padding."""
    there = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(there, Tensor) or there.shape != divergence.shape:
        return divergence.mean()
    counted = there != 0
    return divergence.masked_fill(~counted, 0).sum() / counted.sum().clamp_min(1)


def _log_probabilities(answer: Any, output: Any, temperature: float, dim: int) -> list[Tensor]:
    """Teacher's and model's, in float32 at least whatever the mixed precision."""
    shapes = [tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__ for logits in (answer, output)]
    if not isinstance(answer, Tensor) or shapes[0] != shapes[1] or not -answer.ndim <= dim < answer.ndim:
        raise SecateursError(
            f"distill(dim={dim}): teacher and model must return logits of one shape, with classes along that dimension, but the "
            f"teacher returned {shapes[0]} and the model {shapes[1]}; wrap one of them, give another dim=, or write a Hook(loss=...)"
        )
    return [
        torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, dim)
        for logits in (answer, output)
    ]
