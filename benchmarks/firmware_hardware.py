"""The same patterns on other machines: this one's CPU, measured; a GPU, reckoned. And what a pass takes by two models of energy."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import firmware_scalpel as scalpel
import torch
from torch import nn

import secateurs as sc
from secateurs.costs import Dense, Relative
from secateurs.run.clock.timing import measure

SINGLE, BLOCKS, NARROWER = "single weights", "blocks", "channels and nodes"


def hardware(network: str, sparsity: float) -> dict[str, Any]:
    """How many times as fast as dense each pattern is on this CPU, all measured in turns, and on a GPU as `sc.recommend` reckons."""
    make, shape = scalpel.NETWORKS[network]
    torch.manual_seed(0)
    dense, x = make().eval(), torch.randn(shape)
    cpu = sc.targets.cpu(threads=1)
    patterns = {SINGLE: sc.Element(), BLOCKS: cpu.block, NARROWER: sc.Channel()}
    fast = {"dense": sc.run.compile(dense, x, threads=1)}
    for name, pattern in patterns.items():
        fast[name] = sc.run.compile(without(dense, pattern, sparsity, x), x, threads=1)
    timings = measure({name: partial(each, x) for name, each in fast.items()}, threads=1)
    gpu = sc.recommend(dense, sc.targets.gpu(), x, sparsity=sparsity)
    return {
        "cpu": {name: timings[name].speed_over(timings["dense"]) for name in patterns},
        "milliseconds": 1e3 * timings["dense"].median,
        "lanes": cpu.lanes,
        "gpu": {str(each.pattern): each.speed_up for each in gpu.options},
        "gpu best": None if gpu.best is None else str(gpu.best.pattern),
    }


def without(dense: nn.Module, pattern: Any, sparsity: float, x: torch.Tensor) -> nn.Module:
    """A copy without so large a fraction of its weights, by magnitude; of channels and nodes narrower, with as many weights left."""
    model, task = copy.deepcopy(dense), sc.Task(x)
    allocate = sc.uniform(sparsity=sparsity)
    if pattern.removable:
        allocate = sc.within_budget(sc.Budget(sc.params, keep=1 - sparsity), sc.uniform)
    masks = sc.prune_(model, pattern, sc.TopK(sc.magnitude()), allocate, task)
    if pattern.removable:
        sc.shrink_(model, masks)
    return model


def energies(model: nn.Module, example: Any) -> dict[str, float]:
    """A pass by two models, in which zeros of the weights count: memories (Eyeriss, 1611.05128) and references to them; bytes stored."""
    return {
        "energy": sc.energy_on(weight_bits=8, activation_bits=8)(model, example),
        "references": sc.memory_references()(model, example),
        "stored": sc.stored_bytes(Dense(), value_bits=8)(model, example),
        "stored, relative": sc.stored_bytes(Relative(4), value_bits=8)(model, example),
        "macs": sc.nonzero_macs(model, example),
        "weights": sc.nonzero_params(model),
    }
