"""Builds and runs every subject of the zoo twice, and prints a table: `python benchmarks/check_zoo.py [part of a name ...]`."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from zoo import CLASSIC, HAND_WRITTEN, TRANSFORMERS, Subject

from secateurs.forward import call


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested sequences, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        yield from tensors([getattr(value, field.name) for field in fields(value)])


@torch.no_grad()
def check(subject: Subject) -> tuple[int, float]:
    """Parameters, and seconds of the second run; raises `ValueError` where the subject does not keep its promises."""
    model = subject.make()
    first = [t.clone() for t in tensors(call(model, subject.example()))]
    start = time.perf_counter()
    second = list(tensors(call(model, subject.example())))
    seconds = time.perf_counter() - start
    third = list(tensors(call(subject.make(), subject.example())))
    if not first or len(first) != len(second) or len(first) != len(third):
        raise ValueError(f"{subject.name}: {len(first)}, {len(second)} and {len(third)} output tensors")
    if any(module.training for module in model.modules()):
        raise ValueError(f"{subject.name}: in training mode")
    for a, b, c in zip(first, second, third, strict=True):
        if not torch.equal(a, b) or not torch.equal(a, c):
            raise ValueError(f"{subject.name}: two runs differ")
        if not a.isfinite().all():
            raise ValueError(f"{subject.name}: an output is not finite")
    logits = first[0].float()
    if not 1e-3 < logits.abs().max() < 1e3 or logits.std() < 1e-4:
        raise ValueError(f"{subject.name}: outputs from {logits.min():.3g} to {logits.max():.3g}, deviation {logits.std():.3g}")
    if any(p.dtype != torch.float32 for p in model.parameters()):
        raise ValueError(f"{subject.name}: not in float32")
    return sum(p.numel() for p in model.parameters()), seconds


def main() -> None:
    """Check all subjects whose name contains one of the arguments."""
    torch.set_num_threads(1)
    subjects = [*TRANSFORMERS, *HAND_WRITTEN, *CLASSIC]
    if len({subject.name for subject in subjects}) < len(subjects):
        raise SystemExit("two subjects have the same name")
    wanted = [s for s in subjects if not sys.argv[1:] or any(part in s.name for part in sys.argv[1:])]
    failed = 0
    for subject in wanted:
        try:
            parameters, seconds = check(subject)
            print(f"{subject.family:16} {subject.name:28} {parameters:12,} {seconds:8.4f} s", flush=True)
        except Exception:
            failed += 1
            print(f"{subject.family:16} {subject.name:28} FAILED\n{traceback.format_exc(limit=-2)}", flush=True)
    print(f"{len(wanted) - failed} of {len(wanted)} run")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
