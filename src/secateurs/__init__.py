"""Secateurs: finds what a trained network does not need, removes it, recovers the accuracy, and proves what that bought.

>>> import secateurs as sc
>>> sc.NofM(2, 4)
NofM(2, 4)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from secateurs import export, run
from secateurs.allocate import as_pattern, by_layer, erdos_renyi, global_threshold, uniform, within_budget
from secateurs.apply import Dead, Masks, Saved, Shrunk, bytes_, find_dead, load, load_masks, read_saved, save, shrink_, zero_dead_
from secateurs.costs import file_bytes, macs, nonzero_macs, nonzero_params, params, trace_macs
from secateurs.criteria import magnitude, random
from secateurs.observe import input_norm, observe
from secateurs.patterns import Block, Channel, Element, Filter, Head, Kernel, NofM, Vector, find_sites
from secateurs.prune import prune_
from secateurs.ranks import alone
from secateurs.recover import (
    adjust_dropout_,
    clip_gradients,
    cubic,
    distill,
    dropout_rates,
    evaluate,
    geometric,
    gradual,
    linear,
    one_shot,
    penalty,
    per_step,
    rewind_,
    train_,
)
from secateurs.solve import TopK
from secateurs.types import (
    Budget,
    Cost,
    Criterion,
    Evidence,
    FileError,
    Hook,
    KindError,
    NonFiniteError,
    PatternError,
    Plan,
    PlanError,
    Run,
    SecateursError,
    Statistic,
    Task,
    TaskError,
    WriteError,
)

if TYPE_CHECKING:
    from secateurs import methods, models, report, tasks, testing

__version__ = "0.1.0"

_WHEN_ASKED_FOR = ("methods", "models", "report", "tasks", "testing")

__all__ = [
    "Block",
    "Budget",
    "Channel",
    "Cost",
    "Criterion",
    "Dead",
    "Element",
    "Evidence",
    "FileError",
    "Filter",
    "Head",
    "Hook",
    "Kernel",
    "KindError",
    "Masks",
    "NofM",
    "NonFiniteError",
    "PatternError",
    "Plan",
    "PlanError",
    "Run",
    "Saved",
    "SecateursError",
    "Shrunk",
    "Statistic",
    "Task",
    "TaskError",
    "TopK",
    "Vector",
    "WriteError",
    "adjust_dropout_",
    "alone",
    "as_pattern",
    "by_layer",
    "bytes_",
    "clip_gradients",
    "cubic",
    "distill",
    "dropout_rates",
    "erdos_renyi",
    "evaluate",
    "export",
    "file_bytes",
    "find_dead",
    "find_sites",
    "geometric",
    "global_threshold",
    "gradual",
    "input_norm",
    "linear",
    "load",
    "load_masks",
    "macs",
    "magnitude",
    "methods",
    "models",
    "nonzero_macs",
    "nonzero_params",
    "observe",
    "one_shot",
    "params",
    "penalty",
    "per_step",
    "prune_",
    "random",
    "read_saved",
    "report",
    "rewind_",
    "run",
    "save",
    "shrink_",
    "tasks",
    "testing",
    "trace_macs",
    "train_",
    "uniform",
    "within_budget",
    "zero_dead_",
]


def __getattr__(name: str) -> Any:
    """The rooms that not everybody needs are imported when they are asked for."""
    if name in _WHEN_ASKED_FOR:
        return importlib.import_module(f"secateurs.{name}")
    raise AttributeError(f"module 'secateurs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHEN_ASKED_FOR})
