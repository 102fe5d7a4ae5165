"""Networks that teach: what a teacher answers to a batch, and what it computes on the way, once for all who learn from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import call, describe, evaluating
from secateurs.given import told
from secateurs.ranks import any_sharded
from secateurs.recover.inner import Looks, inside
from secateurs.shrink.remembered import steps_of
from secateurs.types import FileError, KindError, Run, SecateursError, TaskError

_KEEP = "keep the dense one before pruning, teacher = secateurs.teacher_of(model), and give it"


def teacher_of(model: nn.Module) -> nn.Module:
    """A frozen copy of a model as it is now, in evaluation mode: made before `prune_`, it can teach the pruned one.

    What wraps the model (DistributedDataParallel, compile) is not copied. Raises `SecateursError` where it cannot be copied, as a
    model in shards.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    >>> teacher = teacher_of(model)
    >>> teacher.training, teacher[0].weight.requires_grad, bool((teacher[0].weight == model[0].weight).all())
    (False, False, True)
    """
    within = inside(model)
    if any_sharded(within.parameters()):
        raise SecateursError(
            f"{type(within).__name__} is sharded (fully_shard), and a model in shards cannot be copied: copy it before sharding, "
            "teacher = secateurs.teacher_of(model), shard the copy alike if it is large, and give it"
        )
    try:
        return copy.deepcopy(within).eval().requires_grad_(False)
    except Exception as error:
        raise SecateursError(
            f"{type(within).__name__} cannot be copied ({type(error).__name__}: {error}): make the teacher as you made the model, load "
            "its weights, and give it"
        ) from error


@dataclass
class Teacher:
    """A network that several hooks learn from: it runs once a batch for all of them, in evaluation mode, and learns nothing.

    Without a model, it is a copy of the one that is trained, as that is when training begins: dense, so begin without masks (`gradual`
    prunes after that), else it is an error. Such a copy goes into the checkpoint with the first hook that has it; a model that is given
    does not, so give the same one again where training goes on.

    >>> from secateurs.recover import Teacher, distill, distill_features
    >>> teacher = Teacher()
    >>> hooks = [distill(teacher), distill_features(teacher, "layer*", weight=0.1)]
    """

    model: nn.Module | None = None
    _made: bool = field(default=False, repr=False)
    _keeper: str = field(default="", repr=False)
    _begun: bool = field(default=False, repr=False)
    _given: Run | None = field(default=None, repr=False)
    _weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _learners: dict[str, Looks | None] = field(default_factory=dict, repr=False)
    _batch: Any = field(default=None, repr=False)
    _lessons: dict[str, tuple[Any, dict[str, list[Tensor]]]] = field(default_factory=dict, repr=False)

    def made(self, run: Run) -> None:
        """Copy the model where there is no teacher yet: a checkpoint may make it smaller, and have the weights that it had."""
        if self.model is None or (self._made and not self._begun and self._given is not run):
            self.model, self._made, self._given = teacher_of(run.model), True, run

    def begin(self, run: Run, who: str) -> nn.Module:
        """The teacher of this run for one more hook, made where none was given.

        Raises `SecateursError` where it could teach nothing, or shares parameters with the model that is trained; `FileError` where the
        checkpoint's teacher is another model.
        """
        if (self.model is None or self._made) and not self._weights and not self._begun:
            _require_dense(run, who)
        if self.model is None:
            self.made(run)
        assert self.model is not None
        if self._made and not self._begun:
            _with(self.model, self._weights, who)
        trained = {id(parameter) for parameter in run.model.parameters() if parameter.requires_grad}
        if any(id(parameter) in trained for parameter in self.model.parameters()):
            raise SecateursError(f"{who}: the teacher shares parameters with the model that is trained: {_KEEP}")
        self._learners[who] = None
        self._keeper, self._begun = self._keeper or who, True
        return self.model

    def look(self, who: str, looks: Looks) -> None:
        """Let a hook see what is computed within."""
        self._learners[who] = looks

    def lesson(self, run: Run, who: str) -> tuple[Any, dict[str, list[Tensor]]]:
        """What the teacher answers to the batch, and what a hook sees within: computed for all hooks, until one of them asks again."""
        if self.model is None:
            raise SecateursError(f"{who}: there is no teacher yet: begin with hook.start(run), as train_ does")
        self._learners.setdefault(who, None)
        if run.inputs is not self._batch or who not in self._lessons:
            self._teach(self.model, run.inputs)
        lesson = self._lessons.pop(who)
        if not self._lessons:
            self._batch = None
        return lesson

    def _teach(self, model: nn.Module, inputs: Any) -> None:
        looking = {who: looks for who, looks in self._learners.items() if looks is not None}
        try:
            for looks in looking.values():
                looks.watch(model)
            with evaluating(model):
                answer = _answer(model, inputs, ", ".join(self._learners))
            self._lessons = {who: (answer, looks.take() if looks else {}) for who, looks in self._learners.items()}
        finally:
            for looks in looking.values():
                looks.close()
        self._batch = inputs

    def close(self, who: str) -> None:
        """A hook learns no more."""
        self._learners.pop(who, None)
        self._lessons, self._batch, self._given = {}, None, None

    def state(self, who: str) -> dict[str, Any]:
        """For the checkpoint: the weights of a teacher that was made here, with the first of its hooks."""
        mine = self._made and self._keeper == who
        return {"teacher": dict(self.model.state_dict())} if mine and self.model is not None else {}

    def restore(self, state: Mapping[str, Any], who: str) -> None:
        """Take what `state` gave; raises `FileError` for anything else."""
        weights = state.get("teacher", {})
        if not isinstance(weights, Mapping) or not all(isinstance(each, Tensor) for each in weights.values()):
            raise FileError(f"{who}: the checkpoint holds no teacher")
        if weights and self._begun and self._made and self.model is not None:
            _with(self.model, weights, who)
        self._weights = dict(weights) or self._weights


def teacher_for(who: str, given: object) -> Teacher:
    """What a hook was given as its teacher, as one. Raises `KindError` where it is neither a model, nor a `Teacher`, nor nothing.

    >>> teacher_for("distill", nn.Linear)
    Traceback (most recent call last):
    secateurs.types.KindError: distill: teacher is the class Linear, not one made of it, but must be a torch.nn.Module, a Teacher, or ...
    """
    if isinstance(given, Teacher):
        return given
    if given is not None and not isinstance(given, nn.Module):
        raise KindError(
            f"{who}: teacher is {told(given)}, but must be a torch.nn.Module, a Teacher, or None for the model as training begins"
        )
    return Teacher(given)


def _answer(teacher: nn.Module, inputs: Any, who: str) -> Any:
    """What a teacher makes of a batch; raises `TaskError` that carries its own complaint where it rejects it."""
    try:
        return call(teacher, inputs)
    except (SecateursError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise TaskError(
            f"{who}: the teacher rejects a training batch ({describe(inputs)}): {type(error).__name__}: {first_line}; it must take the "
            "inputs of the model as they are, on the same device and in the same dtype (teacher.to(...))"
        ) from error


def _with(teacher: nn.Module, weights: Mapping[str, Tensor], who: str) -> nn.Module:
    if weights:
        try:
            teacher.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise FileError(
                f"{who}: the teacher in the checkpoint is another model than the one that is trained "
                f"({str(error).strip().splitlines()[-1].strip()}): where that was shrunk since, give the teacher"
            ) from error
    return teacher


def _require_dense(run: Run, who: str) -> None:
    """Raise `SecateursError` where a copy of the model would know no more than it does."""
    pruned = f"masks with a sparsity of {run.masks.sparsity:.2f}" if run.masks and run.masks.sparsity else ""
    pruned = pruned or ("been shrunk" if steps_of(inside(run.model)) else "")
    if pruned:
        raise SecateursError(
            f"{who}: the teacher would be a copy of the model as training begins, and that has {pruned} already, so that the copy knows "
            f"no more than the model: {_KEEP}"
        )
