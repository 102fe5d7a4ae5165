"""Text for language models: cut into windows of tokens, with the loss and the perplexity of what comes next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from secateurs.tasks.batches import Batches
from secateurs.types import SecateursError, Task, TaskError

_AT_ONCE = 512  # positions whose probabilities are in memory together, where no gradient is needed


def text(
    path: str | Path,
    tokenizer: Any,
    window: int = 512,
    count: int | None = 64,
    *,
    seed: int | None = 0,
    batch_size: int = 1,
    validation: str | Path | None = None,
    test: str | Path | None = None,
) -> Task:
    """A language model's task: ``count`` windows of a text file to calibrate and to train on, each word told from those before it.

    The text is tokenised as one, as the tokenizer does it by itself, and cut into windows of ``window`` tokens without overlap; of
    these ``count`` are drawn without repetition (``seed=None``: the first ones; ``count=None``: all). Batches are ``(tokens, tokens)``,
    ``(batch_size, window)``, which the model gets as its first argument. ``validation`` and ``test`` are further files, of which all
    windows count. The loss is the mean of the cross entropy of all tokens but the first of each window, in nats; the metric is the
    perplexity, lower is better. ``tokenizer`` is one of ``transformers`` or of ``tokenizers``.

    Raises `SecateursError` where a file cannot be read as text, holds too little for so many windows, or a window is longer than the
    tokenizer says that its model allows.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp(), "text.txt")
    >>> _ = file.write_text("a b c d e f g h i")
    >>> letters = lambda text, **how: {"input_ids": [ord(word) for word in text.split()]}
    >>> task = text(file, letters, window=4, count=2, seed=None)
    >>> [tokens.tolist() for tokens, _ in task.calibration]
    [[[97, 98, 99, 100]], [[101, 102, 103, 104]]]
    """
    for name, value, least in (("window", window, 2), ("count", count, 1), ("batch_size", batch_size, 1)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise SecateursError(f"text: {name}={value!r} must be a whole number from {least}")
    if seed is not None and not isinstance(seed, int):
        raise SecateursError(f"text: seed={seed!r} must be a whole number, or None for the first windows")
    longest = getattr(tokenizer, "model_max_length", None)
    if isinstance(longest, int) and window > longest:
        raise SecateursError(f"text: window={window} is longer than the {longest} tokens that the tokenizer's model allows")
    windows = _windows(path, tokenizer, window, count, seed)
    held = [None if other is None else _windows(other, tokenizer, window, None, None) for other in (validation, test)]
    parts = [None if found is None else Batches(found, found, batch_size) for found in held]
    return Task(
        example=windows[:1],
        train=Batches(windows, windows, batch_size, shuffle=True),
        calibration=Batches(windows, windows, batch_size),
        validation=parts[0],
        test=parts[1],
        loss=next_token_loss,
        metric=next_token_loss,
        metric_name="perplexity",
        higher_is_better=False,
        summary=exponential,
        name=Path(path).stem,
    )


def next_token_loss(output: Any, target: Tensor) -> Tensor:
    """The mean cross entropy, in nats, of each token but the first under what a model tells of it from those before.

    ``output`` holds the logits ``(batch, tokens, vocabulary)``: the tensor itself, its ``logits``, or the first of a tuple; ``target`` are
    the tokens ``(batch, tokens)``. Raises `TaskError` where their shapes do not fit.

    >>> round(next_token_loss(torch.zeros(1, 3, 8), torch.tensor([[1, 5, 7]])).item(), 4) == round(math.log(8), 4)
    True
    """
    logits = logits_in(output)
    if logits is None or logits.ndim != 3 or logits.shape[:2] != target.shape:
        given = type(output).__name__ if logits is None else f"{tuple(logits.shape)}"
        raise TaskError(
            f"next_token_loss: the output is {given}, the target {tuple(target.shape)}: it needs logits (batch, tokens, vocabulary) of a "
            "causal language model, and the tokens"
        )
    logits, target = logits[:, :-1].flatten(0, 1), target[:, 1:].flatten()
    if logits.requires_grad:
        return functional.cross_entropy(logits.float(), target)
    parts = zip(logits.split(_AT_ONCE), target.split(_AT_ONCE), strict=True)
    return torch.stack([functional.cross_entropy(one.float(), other, reduction="sum") for one, other in parts]).sum() / len(target)


def exponential(nats: float) -> float:
    """exp, infinite where float cannot hold it."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def logits_in(output: Any) -> Tensor | None:
    """The tensor itself, its ``logits``, or the first of a tuple."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    found = found[0] if isinstance(found, (tuple, list)) and found else found
    return found if isinstance(found, Tensor) else None


def _windows(path: str | Path, tokenizer: Any, window: int, count: int | None, seed: int | None) -> Tensor:
    """Windows of the tokens of a file, ``(count, window)``."""
    tokens = tokenised(path, tokenizer)
    there = len(tokens) // window
    if not there or (count is not None and there < count):
        raise SecateursError(
            f"{path} has {len(tokens)} tokens, which make {there} windows of {window}, not {count or 1}: give more text, or a smaller "
            "window or count"
        )
    windows = tokens[: there * window].view(there, window)
    if count is None or seed is None:
        return windows[:count]
    chosen = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:count]
    return windows[chosen.sort().values]


def tokenised(path: str | Path, tokenizer: Any) -> Tensor:
    """The tokens of a text file, as one text."""
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SecateursError(f"{path} cannot be read as text (UTF-8): {error}") from error
    if not content.strip():
        raise SecateursError(f"{path} is empty: give a file with text")
    if callable(tokenizer):
        found = tokenizer(content, verbose=False)["input_ids"]
    elif hasattr(tokenizer, "encode") and not isinstance(tokenizer, str):
        found = tokenizer.encode(content)
        found = getattr(found, "ids", found)
    else:
        raise SecateursError(
            f"text: the tokenizer is {tokenizer!r}, but must be one of transformers (AutoTokenizer.from_pretrained(folder)) or of "
            "tokenizers"
        )
    return torch.tensor(list(found), dtype=torch.int64)
