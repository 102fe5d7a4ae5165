"""Inputs that an early classifier is sure of go no further (BranchyNet, 1709.01686)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import modules_in, run_example
from secateurs.given import MODEL, NUMBER, require, require_values
from secateurs.per_input.attached import PerInput, attaching, require_fraction
from secateurs.types import Hook, Run, SecateursError, TaskError
from secateurs.watch import cut_short

CHILD = "exit"
"""What a classifier is called in the module behind which it stands."""


class Exit(nn.Module):
    """A linear classifier on the mean of a module's answer over its places; of tokens, on the first."""

    def __init__(self, features: int, classes: int, like: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        weight = torch.randn(classes, features, generator=generator) / features**0.5
        self.weight = nn.Parameter(weight.to(like))
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0]))

    def forward(self, answer: Tensor) -> Tensor:
        """Logits ``(n, classes)``."""
        return nn.functional.linear(_features(answer), self.weight, self.bias)


def _features(answer: Tensor) -> Tensor:
    if answer.ndim == 3:
        return answer[:, 0]
    return answer.flatten(2).mean(2) if answer.ndim > 3 else answer


@dataclass
class Point:
    """A module behind which an input may leave."""

    exits: Exits
    inner: list[Any] = field(default_factory=list)
    classifier: Exit | None = None

    @property
    def on(self) -> bool:
        """Whether inputs may leave."""
        return self.exits.on

    @on.setter
    def on(self, value: bool) -> None:
        self.exits.on = value

    def run_module(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the module: an input by itself ends its pass here where the classifier is sure."""
        answer = self.inner[0](*args, **kwargs)
        found = self.exits.found
        if found is not None and self.classifier is not None:
            found.append(self.classifier(answer[0] if isinstance(answer, tuple) else answer))
            if self.exits.alone and bool(self.exits.sure(found[-1])[0]):
                self.exits.enough()
        return answer


@dataclass
class Exits:
    """The exits of a model, and those that the pass in hand has come by."""

    model: nn.Module
    confidence: float
    inner: list[Any] = field(default_factory=list)
    on: bool = True
    found: list[Tensor] | None = None
    alone: bool = False
    enough: Any = None
    left: Tensor | None = None

    def sure(self, logits: Tensor) -> Tensor:
        """Of which inputs the most likely class is likely enough."""
        return logits.detach().softmax(1).amax(1) > self.confidence

    def run_model(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the model: each input's answer is that of the first exit which is sure, else of the end."""
        if not self.on:
            return self.inner[0](*args, **kwargs)
        deciding = not self.model.training and not torch.is_grad_enabled()
        self.found, answer = [], None
        try:
            self.alone = deciding and _inputs(args, kwargs) == 1
            with cut_short() as self.enough:
                answer = self.inner[0](*args, **kwargs)
            return self._answer(answer) if deciding else answer
        finally:
            self.found, self.enough = None, None

    def _answer(self, answer: Any) -> Any:
        found = self.found or []
        if answer is None:
            self.left = torch.tensor([len(found) - 1])
            return _Logits({"logits": found[-1]}) if self.named else found[-1]
        logits = _logits(answer).clone()
        self.left = torch.full((len(logits),), len(found))
        for place in reversed(range(len(found))):
            sure = self.sure(found[place])
            logits[sure] = found[place][sure].to(logits.dtype)
            self.left[sure.cpu()] = place
        if self.named:
            answer["logits"] = logits
            return answer
        return logits

    named: bool = False


class _Logits(dict[str, Tensor]):
    """An answer that has nothing but logits, by name as in Hugging Face's."""

    @property
    def logits(self) -> Tensor:
        """The logits of the exit."""
        return self["logits"]


def _inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many inputs a call has."""
    first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.ndim), None)
    return 0 if first is None else len(first)


def _logits(answer: Any) -> Any:
    return answer if isinstance(answer, Tensor) else getattr(answer, "logits", None)


def exit_early_(model: nn.Module, example: Any, after: Sequence[str], *, confidence: float, seed: int = 0) -> PerInput:
    """Put a linear classifier behind some modules; an input of which one is sure gets its answer, and goes no further (1709.01686).

    ``after`` are names of modules in the order in which they run, such as ``["layer1", "layer2"]``. A classifier sees the mean of
    an answer ``(n, channels, …)`` over its places, or the first token of ``(n, tokens, width)``; it is sure where the softmax of
    its largest logit is above ``confidence``. Train it with `exit_losses`: its parameters are the model's, called
    ``layer1.exit.weight`` (of a Sequential, those of its last module). In evaluation without gradients a batch of one input ends
    there; of a larger one all is computed, and each input has the answer that it would have by itself. With ``confidence=1``
    nothing leaves. Where inputs left: `left_at`. Files hold the classifiers: ``load(path, lambda: exit_early_(make(), …).model)``.

    Raises `SecateursError` where confidence is outside (0, 1], a name is none of a module that the example passes once, or the
    model's answer is no tensor of logits ``(n, classes)`` (by itself or called ``logits``).

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> attached = exit_early_(model, torch.randn(1, 3), ["1"], confidence=0.5)
    >>> with torch.no_grad():
    ...     _ = model(torch.randn(4, 3))
    >>> left_at(attached)
    tensor([0, 0, 0, 0])
    """
    who = "exit_early_"
    require(who, "model", model, MODEL)
    require_values(who, model)
    confidence = require_fraction(who, "confidence", confidence)
    modules, answers = modules_in(model), dict[str, list[Any]]()
    if isinstance(after, str) or not after or any(name not in modules or not name for name in after):
        wrong = after if isinstance(after, str) else next((name for name in after if name not in modules or not name), "empty")
        raise SecateursError(
            f"{who}: after is {wrong!r}: give names of modules within {type(model).__name__}, for example {[*modules][1:3]}"
        )
    after = [_innermost(modules, name) for name in after]
    with _noted(modules, after, answers):
        output = run_example(model, example)
    logits = _logits(output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise SecateursError(f"{who}: {type(model).__name__} answers with {shape}, but must give logits (n, classes)")
    generator = torch.Generator().manual_seed(seed)
    with attaching(PerInput(model)) as attached:
        exits = Exits(model, confidence, named=logits is not output)
        for name in after:
            found = answers.get(name, [])
            if len(found) != 1 or not isinstance(found[0], Tensor) or found[0].ndim < 2:
                raise SecateursError(
                    f"{who}: {name} is called {len(found)} times with the example, or gives no tensor: name another module"
                )
            point = Point(exits, classifier=Exit(_features(found[0]).shape[1], logits.shape[1], found[0], generator))
            assert point.classifier is not None
            attached.add_child(modules[name], CHILD, point.classifier.train(modules[name].training))
            attached.parts[name] = point
            point.inner.append(attached.take_over(modules[name], point.run_module))
        exits.inner.append(attached.take_over(model, exits.run_model))
    return attached


def _innermost(modules: Mapping[str, nn.Module], name: str) -> str:
    """The module whose answer is that of a Sequential, which would run a classifier among its own modules."""
    while isinstance(modules[name], nn.Sequential) and len(modules[name]._modules):
        name = f"{name}.{list(modules[name]._modules)[-1]}"
    return name


@contextmanager
def _noted(modules: Mapping[str, nn.Module], names: Sequence[str], answers: dict[str, list[Any]]) -> Any:
    def noting(name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            answers.setdefault(name, []).append(output[0] if isinstance(output, tuple) else output)

        return note

    handles = [modules[name].register_forward_hook(noting(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def left_at(attached: PerInput) -> Tensor:
    """Behind which exit each input of the last pass left ``(n,)``, counted from 0; as many as there are exits for the model's end.

    Raises `SecateursError` where there was no pass in evaluation.
    """
    point = next(iter(attached.parts.values()), None)
    if not isinstance(point, Point) or point.exits.left is None:
        raise SecateursError("left_at: no pass was made, in evaluation without gradients, with what exit_early_ returned")
    return point.exits.left


def exit_losses(weight: float = 1.0) -> Hook:
    """Adds ``weight`` times the task's loss of each exit of `exit_early_` to the loss (1709.01686, eq. 1).

    In a loop of your own, hooks on the modules of kind ``Exit`` see their logits. Raises `SecateursError` for a weight that is not
    above 0 or where the model has no exits, `TaskError` where the task has no loss.

    >>> exit_losses(0.5).name
    'exit_losses'
    """
    require("exit_losses", "weight", weight, NUMBER)
    if not 0 < weight < float("inf"):
        raise SecateursError(f"exit_losses: weight={weight} must be above 0")
    seen: list[Tensor] = []
    handles: list[Any] = []

    def start(run: Run) -> None:
        exits = [module for module in modules_in(run.model).values() if isinstance(module, Exit)]
        if not exits:
            raise SecateursError(
                f"exit_losses: {type(run.model).__name__} has no exits: call exit_early_(model, example, after, ...) first"
            )
        if run.task.loss is None:
            raise TaskError("exit_losses: exits are trained with the task's loss: give Task(loss=...)")
        handles.extend(each.register_forward_hook(lambda module, args, output: seen.append(output)) for each in exits)

    def loss(run: Run) -> Tensor | None:
        losses = [run.task.loss(logits, run.target) for logits in seen] if run.task.loss is not None else []
        seen.clear()
        return weight * torch.stack(losses).sum() if losses else None

    def epoch_end(run: Run) -> None:
        seen.clear()  # of the validation

    def close(run: Run) -> None:
        for handle in handles:
            handle.remove()
        handles.clear()
        seen.clear()

    return Hook("exit_losses", start=start, loss=loss, epoch_end=epoch_end, close=close)
