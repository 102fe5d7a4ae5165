"""The whole state of a training run in one file without pickle, so that it goes on to the bit after it was killed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.files import container, load, nested_state
from secateurs.masks import Masks, Origin
from secateurs.random_state import random_state, require_random_state, restore_random_state
from secateurs.ranks import by_first, count, gathered, rank
from secateurs.recover.trial import require_alike, require_optimizer_goes_on, require_scheduler_goes_on
from secateurs.replacing import tidy
from secateurs.shrink.remembered import steps_of
from secateurs.shrink.replay import replay_
from secateurs.shrink.step import Step
from secateurs.shrink.undo import Undo
from secateurs.types import FileError, Hook, Plan, Run, Skipped


def write_checkpoint(path: str | Path, run: Run, hooks: Sequence[Hook], scaler: Any, epochs_done: int) -> None:
    """Write model, masks, optimizer, scheduler, gradient scaler, hooks, random states and history; the old file survives failures.

    Where several processes train one model, each must call it: the first writes, with the random states of all.
    """
    chance = {"random": random_state(), "generators": [generator.get_state() for generator in _generators(run.task.train)]}
    processes = gathered(chance)
    state = {
        "epochs_done": epochs_done,
        "step": run.step,
        "model": dict(run.model.state_dict()),
        "masks": dict(run.masks),
        "pruning": _pruning(run.masks),
        "steps": json.dumps([step.to_document() for step in steps_of(run.model)]),
        "kinds": _kinds(run),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict() if run.scheduler is not None else None,
        "scaler": scaler.state_dict(),
        "hooks": {hook.name: hook.state() for hook in hooks},
        **({"constraints": {each.name: each.state() for each in run.constraints}} if run.constraints else {}),
        "history": run.history,
        **chance,
        **({"processes": processes} if len(processes) > 1 else {}),
    }
    tensors, document = nested_state.pack(_plain(state))
    by_first(lambda: container.write(path, tensors, {"checkpoint": document}))


def read_checkpoint(path: str | Path, run: Run, hooks: Sequence[Hook], scaler: Any, undo: Undo | None = None) -> int:
    """Restore what `write_checkpoint` wrote, and return the number of epochs that are done; ``undo`` learns the way back.

    Everything is checked first, optimizer and scheduler with a step on the side: where it is refused, all is as it was.

    Raises `FileError` where the file is damaged or belongs to another model, optimizer or set of hooks.
    """
    tidy(path)
    state, undo = _read(path), undo or Undo()
    try:
        state = {**state, **_own_chance(path, state)}
        _shrink_(path, state, run, undo)
        masks = _checked(path, state, run, hooks, scaler)
        _restore(state, run, hooks, scaler, undo)
        undo.add(run.masks.way_back())
        run.masks.replace_(masks)
    except Exception as error:  # a file may hold anything, and whom it is given may say anything to it
        undo()
        raise _refused(path, error, "belongs to another training run, or is damaged; give another checkpoint= path") from error
    except BaseException:
        undo()
        raise
    return int(state["epochs_done"])


def _read(path: str | Path) -> Any:
    tensors, document = container.read(path)
    if "checkpoint" not in document:
        raise FileError(f"{path} is no checkpoint of a training run; give another checkpoint= path")
    return nested_state.unpack(tensors, document["checkpoint"])


def _own_chance(path: str | Path, state: Any) -> dict[str, Any]:
    """The random states that this process had; those of the first where not as many processes go on as wrote the checkpoint."""
    processes = state.get("processes", [])
    if max(1, len(processes)) != count():
        warnings.warn(
            f"{path} was written by {max(1, len(processes))} processes, but {count()} go on: their random numbers will be others than "
            "those that would have come",
            stacklevel=4,
        )
        return {}
    return {key: processes[rank()][key] for key in ("random", "generators")} if processes else {}


def _shrink_(path: str | Path, state: Mapping[str, Any], run: Run, undo: Undo) -> None:
    """Make a model as small as it was in a run that shrank it while it trained."""
    steps, known = [Step.from_document(entry) for entry in json.loads(state.get("steps", "[]"))], steps_of(run.model)
    here = run.model.state_dict()
    if steps == known or all(name in here and _kind(here[name]) == _kind(value) for name, value in state["model"].items()):
        return  # or it has these sizes by other ways
    if steps[: len(known)] != known:
        raise FileError(
            f"{path} was written in a run whose model shrank in other ways than this one: give the model as it was when that run began"
        )
    if any(step.factors or step.fried for step in steps[len(known) :]):
        raise FileError(f"{path}: layers of its model became others while it trained, which no run does")
    undo.add(replay_(run.model, steps[len(known) :], run.optimizer))


def _refused(path: str | Path, error: Exception, what: str) -> FileError:
    if isinstance(error, FileError) and str(path) in str(error):
        return error
    told = (str(error).splitlines() or [""])[0][:200]
    return FileError(f"{path} {what} ({told if isinstance(error, FileError) else f'{type(error).__name__}: {told}'})")


def _checked(path: str | Path, state: Any, run: Run, hooks: Sequence[Hook], scaler: Any) -> Masks:
    """The masks of a checkpoint, all else of which fits the run; raises, whatever it is, where it does not. Changes nothing."""
    _require_same_run(path, state, run, hooks)
    for key in ("epochs_done", "step"):
        if type(state[key]) is not int or state[key] < 0:
            raise FileError(f"{key} is {str(state[key])[:60]!r}")
    _require_history(state["history"], state["epochs_done"])
    require_optimizer_goes_on(run.optimizer, state["optimizer"])
    if run.scheduler is not None:
        require_scheduler_goes_on(run.scheduler, state["scheduler"])
    require_alike(scaler.state_dict(), state["scaler"], "scaler")
    require_random_state(state["random"])
    for generator, saved in zip(_generators(run.task.train), state["generators"], strict=True):
        torch.Generator(generator.device).set_state(saved)
    return _masks(state, run.model)


def _require_history(history: Any, epochs_done: int) -> None:
    """One dict of numbers for each epoch that is done."""
    numbers = ("epoch", "loss", "lr", "sparsity", "validation", "params", "macs")
    if not isinstance(history, list) or len(history) != epochs_done or not all(isinstance(entry, dict) for entry in history):
        raise FileError(f"its history is not one of {epochs_done} epochs")
    for entry in history:
        if not all(type(entry[key]) in (int, float) for key in numbers if key in entry):
            raise FileError("its history holds what is no number")


def _restore(state: Mapping[str, Any], run: Run, hooks: Sequence[Hook], scaler: Any, undo: Undo) -> None:
    """Write a checkpoint's state into all that takes part in a run."""
    parts = [(run.optimizer, state["optimizer"]), (run.scheduler, state["scheduler"]), (scaler, state["scaler"])]
    for part, saved in parts:
        if part is not None:
            undo.add(partial(part.load_state_dict, part.state_dict()))
            part.load_state_dict(saved)
    for hook in hooks:
        undo.add(partial(hook.restore, hook.state()))
        hook.restore(state["hooks"][hook.name])
    for constraint in run.constraints:
        undo.add(partial(constraint.restore, constraint.state()))
        constraint.restore(state["constraints"][constraint.name])
    for key in ("step", "history"):
        undo.add(partial(setattr, run, key, getattr(run, key)))
        setattr(run, key, state[key])
    for generator, saved in zip(_generators(run.task.train), state["generators"], strict=True):
        undo.add(partial(generator.set_state, generator.get_state()))
        generator.set_state(saved)
    undo.add(partial(restore_random_state, random_state()))
    restore_random_state(state["random"])
    _load_state(run.model, state["model"], undo)


def _load_state(model: nn.Module, weights: Mapping[str, Any], undo: Undo) -> None:
    before = {name: value.clone() if isinstance(value, Tensor) else value for name, value in model.state_dict().items()}
    undo.add(partial(model.load_state_dict, before))
    model.load_state_dict(weights)


def _require_same_run(path: str | Path, state: Mapping[str, Any], run: Run, hooks: Sequence[Hook]) -> None:
    _require_same_state(path, run.model.state_dict(), state["model"])
    if state["kinds"] != _kinds(run):
        raise FileError(
            f"{path} was written with {' and '.join(state['kinds'])}, not {' and '.join(_kinds(run))}; "
            "use the same, or give another checkpoint= path"
        )
    for what, named in (("hooks", hooks), ("constraints", run.constraints)):
        there, here = sorted(state.get(what, {})), sorted(each.name for each in named)
        if there != here:
            raise FileError(
                f"{path} was written with the {what} {there}, not {here}; use the same {what}, or give another checkpoint= path"
            )


def _require_same_state(path: str | Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    for name in [*here, *there]:
        if name not in here or name not in there or _kind(here[name]) != _kind(there[name]):
            raise FileError(f"{path} belongs to another model: they differ in {name}; give the path of another checkpoint")


def _kind(value: Any) -> Any:
    """Shape and dtype of a tensor; a model's state may have other things as well."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def _kinds(run: Run) -> list[str]:
    """Which optimizer, and which scheduler if any."""
    return [type(run.optimizer).__name__, "no scheduler" if run.scheduler is None else type(run.scheduler).__name__]


def _pruning(masks: Masks) -> dict[str, Any]:
    """How the masks came about."""
    skipped = [[item.name, item.reason] for item in masks.skipped]
    return {"plan": masks.plan.to_json() if masks.plan else None, "pattern": masks.pattern, "skipped": skipped}


def _masks(state: Mapping[str, Any], model: nn.Module) -> Masks:
    how = state["pruning"]
    plan = Plan.from_json(how["plan"]) if how["plan"] is not None else None
    skipped = tuple(Skipped(name, reason) for name, reason in how["skipped"])
    return Masks(state["masks"], model, Origin(plan, how["pattern"], skipped))


def _generators(loader: Any) -> Iterable[torch.Generator]:
    """The random generators of its own that a data loader and its samplers may have."""
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())


def _plain(value: Any) -> Any:
    """Counters and ordered dicts as dicts, parameters as tensors, NumPy numbers as numbers: what a checkpoint's tree is made of."""
    if isinstance(value, nn.Parameter):
        return value.detach()
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") and not isinstance(value, (str, bytes)) else value


def load_weights(path: str | Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint of `train_`, or of a file of `save`, into a model; all of them, or none."""
    if "checkpoint" not in container.read_document(path):
        load(path, model)
        return
    undo = Undo()
    try:
        weights = _read(path)["model"]
        _require_same_state(path, model.state_dict(), weights)
        _load_state(model, weights, undo)
    except Exception as error:
        undo()
        raise _refused(path, error, "is damaged") from error
