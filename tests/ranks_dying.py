"""One of two processes of which one dies while they train: ``torchrun --nproc-per-node 2 --max-restarts 1 ranks_dying.py FOLDER``.

Each method is trained for two of four epochs, and the second process dies in the third. torchrun starts both anew, and each goes on from
its checkpoint; beside it, the same training that was never stopped. What came of it is written to ``RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks_worker import network, same, task
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import secateurs as sc

EPOCHS, DIES_IN = 4, 2
half = sc.uniform(sparsity=0.5)
METHODS: dict[str, Callable[[], list[sc.Hook]]] = {
    "gradual": lambda: [sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold, sc.cubic(0.6), end=3)],
    "rigl": lambda: [sc.rigl(half, start=sc.magnitude(), every=2)],
    "both": lambda: [sc.gradual_regrowth(sc.linear(0.6), every=2)],
    "by turns": lambda: [sc.ac_dc(half, phase=1)],
    "by chance": lambda: [sc.sparse_evolutionary(half, start=sc.magnitude())],
}


class Stop(Exception):
    """Training ends here, in all processes."""


def trained(name: str, rank: int, checkpoint: Path | None, *more: sc.Hook) -> tuple[nn.Module, sc.Run]:
    """A network trained by a method, its data those of the process."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    hooks = [*METHODS[name](), *more]
    return model, sc.train_(model, task(rank), optimizer, EPOCHS, hooks=hooks, checkpoint=checkpoint, seed=7, show=False)


def interrupted(name: str, rank: int, folder: Path, dies: bool) -> None:
    """Train until the third epoch: there the second process dies, or both stop."""

    def end(run: sc.Run) -> None:
        if run.epoch == DIES_IN and dies and rank == 1:
            os._exit(9)
        if run.epoch == DIES_IN and not dies:
            raise Stop

    try:
        trained(name, rank, folder / f"{name}.safetensors", sc.Hook("end", loss=end))
    except Stop:
        return


def main() -> None:
    torch.set_num_threads(1)
    rank, attempt, folder = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"]), Path(sys.argv[1])
    # gloo hangs now and then where processes that are started again meet in the store in which those that died had met
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{attempt}", rank=rank, world_size=2)
    if attempt == 0:
        last = list(METHODS)[-1]
        for name in METHODS:
            interrupted(name, rank, folder, dies=name == last)
    found: dict[str, Any] = {"started again": attempt}
    for name in METHODS:
        model, run = trained(name, rank, folder / f"{name}.safetensors", sc.Hook("end"))
        never, _ = trained(name, rank, None)
        found[name] = same(model.state_dict(), never.state_dict()), len(run.history), run.masks.sparsity
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # all is written and told; taken down in order, gloo's threads hang now and then, for good


if __name__ == "__main__":
    main()
