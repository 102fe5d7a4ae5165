"""How well a language model tells what comes next."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.batch import run_batch, split
from secateurs.forward import evaluating
from secateurs.nested import changed
from secateurs.progress import track
from secateurs.tasks.language import exponential, logits_in, next_token_loss
from secateurs.types import Task, TaskError

_AGREE = 1e-4  # of the largest logit: sums of floats differ so little, not what is told by one who sees


def perplexity(model: nn.Module, data: Task | Tensor | Iterable[Any]) -> float:
    """exp of the mean of −log p over all tokens that are told from those before them in their window; lower is better.

    ``data`` is a task made by `tasks.text` (its test data, else validation, else calibration), tokens ``(windows, tokens)``, or batches
    ``(inputs, tokens)``. Nats are summed over all tokens that are told, so windows may differ in length.

    Raises `TaskError` where there is no batch, a window is longer than the model's ``config.max_position_embeddings``, or the model sees
    the tokens that it is to tell: another last token of the first windows changes what it tells of those before.

    >>> import torch
    >>> class Fair(nn.Module):
    ...     def forward(self, tokens):
    ...         return torch.zeros(*tokens.shape, 6)
    >>> round(perplexity(Fair(), torch.randint(0, 6, (3, 8))), 4)
    6.0
    """
    task = data if isinstance(data, Task) else Task(None)
    given = _of(task) if isinstance(data, Task) else _apart(data) if isinstance(data, Tensor) else data
    total, count = 0.0, 0
    with evaluating(model), closing(track(given, "evaluating")) as batches:
        for batch in batches:
            inputs, tokens = split(model, task, (batch, batch) if isinstance(batch, Tensor) else batch, "perplexity")
            if tokens.ndim != 2:
                raise TaskError(
                    f"perplexity: tokens are (windows, tokens), not {tuple(tokens.shape)}; of one window give tokens[None]"
                )
            require_window(model, tokens.shape[-1])
            told = tokens[:, 1:].numel()
            if not told:
                continue
            output = run_batch(model, inputs, "a window")
            nats = float(next_token_loss(output, tokens))
            if not count:
                _require_causal(model, inputs, tokens, output)
            total += nats * told
            count += told
    if not count:
        raise TaskError("perplexity: there is no window of at least two tokens")
    return exponential(total / count)


def require_window(model: nn.Module, window: int) -> None:
    """Raise `TaskError` for a window that is longer than a model's configuration allows."""
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(longest, int) and window > longest:
        raise TaskError(
            f"windows of {window} tokens are longer than the {longest} that {type(model).__name__} allows (max_position_embeddings): take "
            f"window={longest} or less"
        )


def _require_causal(model: nn.Module, inputs: Any, tokens: Tensor, output: Any) -> None:
    """Raise where the last token of a window changes what is told of those before it. Of inputs that do not hold the tokens nothing is
    known."""
    first, last = tokens[:, 0], tokens[:, -1]
    other = tokens.clone()
    other[:, -1] = torch.where(first != last, first, (last == 0).to(last.dtype))

    def replaced(each: Tensor) -> Tensor:
        return other if each.shape == tokens.shape and each.dtype == tokens.dtype and torch.equal(each, tokens) else each

    answers = logits_in(output), logits_in(run_batch(model, changed(inputs, replaced), "a window"))
    one, two = (each[:, :-1] for each in answers if each is not None)
    largest = float(one.abs().nan_to_num(0, 0, 0).max())
    if not torch.allclose(one, two, rtol=0, atol=_AGREE * largest, equal_nan=True):
        raise TaskError(
            f"perplexity: {type(model).__name__} sees the words that it is to tell, so that its perplexity says nothing: give a causal "
            "model (of BERT's kind one with is_decoder in config.json)"
        )


def _apart(tokens: Tensor) -> Iterable[Tensor]:
    return tokens.split(1) if tokens.ndim == 2 else [tokens]


def _of(task: Task) -> Iterable[Any]:
    found = next((part for part in (task.test, task.validation, task.calibration, task.train) if part is not None), None)
    if found is None:
        raise TaskError("perplexity: the task has no batches: make it with secateurs.tasks.text(path, tokenizer)")
    return found
