"""Training runs that are killed again and again while they write checkpoints, and go on to the bit."""

from __future__ import annotations

import os
import signal
import time
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from attacks.mutants import trainer
from attacks.verdict import Verdict
from secateurs.files import container, nested_state

KILLS = 4
"""Times that a run is killed at most."""

_EPOCHS = 25


def kill(seed: str) -> Verdict:
    """One run that is killed at times of chance until it is through; then it and its folder are looked at."""
    chance, verdict = Random(seed), Verdict()
    whole, seconds = _uninterrupted()
    with TemporaryDirectory() as folder:
        for _ in range(KILLS):
            child = _started(Path(folder))
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            verdict.add("killed" if os.WIFSIGNALED(status) else "was through before")
            if any(name.endswith(".part") for name in os.listdir(folder)):
                verdict.counts["left a temporary folder"] += 1
            if not os.WIFSIGNALED(status):
                break
        status = os.waitpid(_started(Path(folder)), 0)[1]
        result, left = Path(folder) / "result", sorted(os.listdir(folder))
        if status:
            verdict.add("faults", f"{seed}: ended with {status} when it was resumed")
        elif result.read_bytes() != whole:
            verdict.add("faults", f"{seed}: resumed to other bits")
        elif left != ["checkpoint", "result"]:
            verdict.add("faults", f"{seed}: left {left}")
        else:
            verdict.add("runs resumed to the same bits")
    return verdict


@cache
def _uninterrupted() -> tuple[bytes, float]:
    """The result of a run that nobody kills, and how long it takes."""
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        os.waitpid(_started(Path(folder)), 0)
        return (Path(folder) / "result").read_bytes(), time.perf_counter() - start


def _started(folder: Path) -> int:
    """The process of a run that writes its result beside its checkpoint."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        taking_part, go = trainer()
        run = go(folder / "checkpoint", _EPOCHS)
        states = {name: taking_part[name].state_dict() for name in ("model", "optimizer", "scheduler")}
        tensors, document = nested_state.pack({**states, "masks": dict(run.masks), "history": run.history})
        container.write(folder / "result", tensors, {"result": document})
        status = 0
    finally:
        os._exit(status)
