"""What hooks share that compare what two models compute on the way: which module with which, once a batch, and what the two gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from secateurs.recover.descent import Descent, name_before
from secateurs.recover.inner import Looks, chosen, inside
from secateurs.recover.teacher import Teacher
from secateurs.shrink.remembered import steps_of
from secateurs.types import Hook, Run, SecateursError

Modules = str | Iterable[str] | Mapping[str, str]
"""Names or globs of modules of the model that is trained; or a dict, from its names to the teacher's."""


@dataclass(frozen=True)
class Pair:
    """What a module of the model gave, and one of the teacher, in one of its calls; ``descent`` says how the one came from the other."""

    who: str
    module: str
    of_teacher: str
    call: int
    found: Tensor
    wanted: Tensor
    descent: Descent

    def told(self) -> str:
        """Both with their shapes, for messages."""
        call = f" (call {self.call + 1})" if self.call else ""
        theirs = f"{self.of_teacher or 'the whole'} of the teacher gives {tuple(self.wanted.shape)}"
        return f"{self.module or 'the model'}{call} gives {tuple(self.found.shape)}, and {theirs}"


@dataclass
class Within:
    """Compares what chosen modules of model and teacher give, in each batch, and adds ``weight`` times the sum of it to the loss.

    ``looks`` makes what looks at modules, ``compare`` what a pair adds, and ``modules`` may be a function of the model and its example.
    """

    who: str
    teacher: Teacher
    modules: Modules | Callable[[Any, Any], list[str]]
    looks: Callable[[Iterable[str], bool], Looks]
    compare: Callable[[Run, Pair], Tensor]
    weight: float
    also: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _ours: Looks | None = None
    _descent: Descent | None = None
    _handle: RemovableHandle | None = None

    def hook(self) -> Hook:
        """As the training loop takes it."""
        parts: dict[str, Any] = {"state": self._state, "restore": self._restore, **self._own()}
        return Hook(
            self.who, made=self.teacher.made, start=self._start, epoch=self._look, loss=self._loss, close=self._close, **parts
        )

    def _own(self) -> dict[str, Any]:
        return {name: part for name, part in self.also.items() if name not in ("state", "restore")}

    def _start(self, run: Run) -> None:
        self.teacher.begin(run, self.who)
        self._pairs(run)

    def _pairs(self, run: Run) -> dict[str, str]:
        """Module of the model → module of the teacher. Raises `SecateursError` for a name that means nothing in its model."""
        model, teacher = inside(run.model), inside(self.teacher.model or run.model)
        wanted = self.modules(model, run.task.example) if callable(self.modules) else self.modules
        if isinstance(wanted, Mapping):
            pairs = {chosen(self.who, model, ours)[0]: theirs for ours, theirs in wanted.items()}
        else:
            pairs = {name: name_before(name, steps_of(model)) for name in chosen(self.who, model, wanted)}
        for name in pairs.values():
            chosen(f"{self.who} (the teacher)", teacher, name)
        return pairs

    def _look(self, run: Run) -> None:
        """Look at both models from now on, and anew where one is shrunk."""
        self._stop()
        self._names = self._pairs(run)
        self._ours = self.looks(list(self._names), True)
        self._ours.watch(run.model)
        self.teacher.look(self.who, self.looks(list(dict.fromkeys(self._names.values())), False))
        model = inside(run.model)
        self._descent = Descent(inside(self.teacher.model or model), model, run.task.example)
        self._handle = run.model.register_forward_pre_hook(partial(self._again, run, len(steps_of(model))))

    def _again(self, run: Run, steps: int, *_: Any) -> None:
        if len(steps_of(inside(run.model))) != steps:
            self._look(run)

    def _loss(self, run: Run) -> Tensor | None:
        if self._ours is None or self._descent is None:
            raise SecateursError(f"{self.who}: begin with hook.start(run), and hook.epoch(run) before each epoch, as train_ does")
        ours = self._ours.take()
        _, theirs = self.teacher.lesson(run, self.who)
        total: Tensor | None = None
        for name, of_teacher in self._names.items():
            found, wanted = ours.get(name, []), theirs.get(of_teacher, [])
            self._require_seen(name, of_teacher, len(found), len(wanted))
            for call, (one, other) in enumerate(zip(found, wanted, strict=True)):
                pair = Pair(self.who, name, of_teacher, call, one, other.detach(), self._descent)
                with torch.autocast(one.device.type, enabled=False):
                    part = self.weight * self.compare(run, pair)
                total = part if total is None else total + part
        return total

    def _require_seen(self, name: str, of_teacher: str, found: int, wanted: int) -> None:
        if not found or not wanted:
            whose = f"{name or 'the whole'} of the model" if not found else f"{of_teacher or 'the whole'} of the teacher"
            raise SecateursError(
                f"{self.who}: {whose} gave nothing to compare in this batch: choose a module that is called and gives a tensor; "
                "where the model has run compiled before, torch.compiler.reset() lets it be compiled anew, with what looks on"
            )
        if found != wanted:
            raise SecateursError(
                f"{self.who}: {name or 'the model'} gave {found} tensors in this batch, and {of_teacher or 'the teacher'} of the teacher "
                f"{wanted}: choose modules that are called as often in both, or say which belong together, modules={{ours: theirs}}"
            )

    def _stop(self) -> None:
        if self._ours is not None:
            self._ours.close()
        if self._handle is not None:
            self._handle.remove()
        self._ours = self._handle = None

    def _close(self, run: Run) -> None:
        self._stop()
        self.teacher.close(self.who)

    def _state(self) -> dict[str, Any]:
        own = self.also["state"]() if "state" in self.also else {}
        return {**self.teacher.state(self.who), **own}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.teacher.restore(state, self.who)
        if "restore" in self.also:
            self.also["restore"](state)
