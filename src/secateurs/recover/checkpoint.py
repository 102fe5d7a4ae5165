"""The whole state of a training run in one file without pickle, so that it goes on to the bit after it was killed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.apply import Masks, container, load, tree
from secateurs.types import FileError, Hook, Plan, Run, Skipped


def write_checkpoint(path: str | Path, run: Run, hooks: Sequence[Hook], scaler: Any, epochs_done: int) -> None:
    """Write model, masks, optimizer, scheduler, gradient scaler, hooks, random states and history; the old file survives failures."""
    state = {
        "epochs_done": epochs_done,
        "step": run.step,
        "model": dict(run.model.state_dict()),
        "masks": dict(run.masks),
        "pruning": _pruning(run.masks),
        "kinds": _kinds(run),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict() if run.scheduler is not None else None,
        "scaler": scaler.state_dict(),
        "hooks": {hook.name: hook.state() for hook in hooks},
        "history": run.history,
        "random": tree.random_state(),
        "generators": [generator.get_state() for generator in _generators(run.task.train)],
    }
    tensors, document = tree.pack(_plain(state))
    container.write(path, tensors, {"checkpoint": document})


def read_checkpoint(path: str | Path, run: Run, hooks: Sequence[Hook], scaler: Any) -> int:
    """Restore what `write_checkpoint` wrote, and return the number of epochs that are done.

    Raises `FileError` where the file is damaged or belongs to another model, optimizer or set of hooks.
    """
    tensors, document = container.read(path)
    if "checkpoint" not in document:
        raise FileError(f"{path} is no checkpoint of a training run; give another checkpoint= path")
    try:
        state = tree.unpack(tensors, document["checkpoint"])
        _require_same_run(path, state, run, hooks)
        run.optimizer.load_state_dict(state["optimizer"])
        if run.scheduler is not None:
            run.scheduler.load_state_dict(state["scheduler"])
        scaler.load_state_dict(state["scaler"])
        for hook in hooks:
            hook.restore(state["hooks"][hook.name])
        run.step, run.history = state["step"], state["history"]
        for generator, saved in zip(_generators(run.task.train), state["generators"], strict=True):
            generator.set_state(saved)
        tree.restore_random_state(state["random"])
        done, masks = int(state["epochs_done"]), _masks(state, run.model)
        run.model.load_state_dict(state["model"])
        run.masks.replace_(masks)
        return done
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{path} belongs to another training run, or is damaged ({error}); give another checkpoint= path"
        ) from error


def _require_same_run(path: str | Path, state: Mapping[str, Any], run: Run, hooks: Sequence[Hook]) -> None:
    _require_same_state(path, run.model.state_dict(), state["model"])
    if state["kinds"] != _kinds(run):
        raise FileError(
            f"{path} was written with {' and '.join(state['kinds'])}, not {' and '.join(_kinds(run))}; "
            "use the same, or give another checkpoint= path"
        )
    if sorted(state["hooks"]) != sorted(hook.name for hook in hooks):
        raise FileError(
            f"{path} was written with the hooks {sorted(state['hooks'])}, not {sorted(hook.name for hook in hooks)}; "
            "use the same hooks, or give another checkpoint= path"
        )


def _require_same_state(path: str | Path, here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    for name in [*here, *there]:
        same = name in here and name in there and (here[name].shape, here[name].dtype) == (there[name].shape, there[name].dtype)
        if not same:
            raise FileError(f"{path} belongs to another model: they differ in {name}; give the path of another checkpoint")


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
    return Masks(state["masks"], model, plan, how["pattern"], tuple(Skipped(name, reason) for name, reason in how["skipped"]))


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
    tensors, document = container.read(path)
    if "checkpoint" not in document:
        load(path, model)
        return
    try:
        weights = tree.unpack(tensors, document["checkpoint"])["model"]
        _require_same_state(path, model.state_dict(), weights)
        model.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: the checkpoint is damaged ({error!r})") from error
