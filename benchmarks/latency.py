"""Milliseconds as `latency_ms` predicts them for random plans of channels, heads and inner units, beside what is measured of the model
that was really pruned so, shrunk and compiled.

python benchmarks/latency.py [PLANS] [MODEL ...]     (20 plans of each of three models; what is in results/latency.json is not done again)
"""

from __future__ import annotations

import copy
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tables import markdown, write
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import secateurs as sc
from secateurs.models import mobilenet_v2, resnet_56
from secateurs.replacing import beside
from secateurs.run.clock.timing import measure
from secateurs.run.compiled import compile
from secateurs.run.forecast.latency import latency
from secateurs.types import Plan

THREADS = 1
KEPT = Path(__file__).parent / "results" / "latency.json"
AIM = 0.10


class Encoder(nn.Module):
    """A BERT-like encoder of 4 layers, 256 wide, and a classifier on its first token."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024, vocab_size=1000)
        self.bert, self.classify = BertModel(config, add_pooling_layer=False), nn.Linear(256, 2)  # type: ignore[no-untyped-call]

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classify(self.bert(tokens).last_hidden_state[:, 0])


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "ResNet-56, 3x32x32": (resnet_56, torch.zeros(1, 3, 32, 32)),
    "MobileNetV2, 3x96x96": (partial(mobilenet_v2, classes=10), torch.zeros(1, 3, 96, 96)),
    "BERT-like, 4 x 256, 128 tokens": (Encoder, torch.arange(128)[None]),
}


def random_plan(dense: Plan, seed: int) -> Plan:
    """Each site keeps another fraction, around one that is the plan's own."""
    chance = random.Random(seed)
    middle = chance.uniform(0.25, 0.95)
    return dense.with_counts(
        {name: max(1, round(share.units * min(1.0, middle * chance.uniform(0.6, 1.4)))) for name, share in dense.shares.items()}
    )


def compared(model: nn.Module, example: Tensor, plan: Plan, promised: float) -> dict[str, Any]:
    """What was promised of a plan, and the milliseconds of what it leaves: the fastest of up to 61 calls, since others may be at work."""
    small = copy.deepcopy(model)
    masks = sc.prune_(small, sc.Channel(), sc.TopK(sc.random(0)), plan, sc.Task(example=example))
    sc.shrink_(small, masks, example)
    fast = compile(small, example, threads=THREADS)
    found = measure({"it": partial(fast, example)}, rounds=61, seconds=6, threads=THREADS)["it"]
    return {
        "promised": promised,
        "measured": 1e3 * min(found.samples),
        "median": 1e3 * found.median,
        "runs": fast.explain().chosen,
        "kept": sum(plan.values()) / sum(share.units for share in plan.shares.values()),
        "load": os.getloadavg()[0],
    }


def kept() -> dict[str, Any]:
    """What was measured before."""
    return dict(json.loads(KEPT.read_text())) if KEPT.exists() else {}


def keep(results: dict[str, Any]) -> None:
    """Write it whole or not at all."""
    with beside(KEPT) as folder:
        part = folder / KEPT.name
        part.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        os.replace(part, KEPT)


def run(name: str, plans: int) -> None:
    """Those of a model's plans that were not measured yet."""
    results = kept()
    missing = [seed for seed in range(plans) if f"{name} {seed}" not in results]
    if not missing:
        return
    torch.manual_seed(0)
    build, example = MODELS[name]
    model = build().eval()
    prepared = latency(threads=THREADS).prepare(model, example)
    sites = sc.find_sites(model, sc.Channel(), example)
    dense = sc.uniform(keep=1.0)(sites, lambda: iter([]))
    fast = compile(model, example, threads=THREADS)
    whole = measure({"it": partial(fast, example)}, rounds=61, seconds=6, threads=THREADS)["it"]
    results[f"{name} dense"] = {"promised": prepared(None), "measured": 1e3 * min(whole.samples), "runs": fast.explain().chosen}
    for seed in missing:
        plan = random_plan(dense, seed)
        results[f"{name} {seed}"] = compared(model, example, plan, prepared(plan))
        keep(results)
        print(name, seed, results[f"{name} {seed}"], flush=True)


def page(results: dict[str, Any]) -> None:
    """A row a plan, and above them the median error of each model."""
    rows: list[list[str]] = []
    summary: list[list[str]] = []
    for name in MODELS:
        found = [(seed, results[key]) for seed in range(1000) if (key := f"{name} {seed}") in results]
        if not found:
            continue
        errors = [each["promised"] / each["measured"] - 1 for _, each in found]
        dense, middle = results[f"{name} dense"], statistics.median(map(abs, errors))
        loads = [each["load"] for _, each in found]
        errors_told = (f"{100 * middle:.1f} %", f"{100 * statistics.median(errors):+.1f} %", f"{100 * max(map(abs, errors)):.0f} %")
        as_it_is = (f"{dense['promised']:.2f}", f"{dense['measured']:.2f}", dense["runs"])
        summary.append([name, str(len(found)), *errors_told, *as_it_is, f"{min(loads):.1f} to {max(loads):.1f}"])
        for (seed, each), error in zip(found, errors, strict=True):
            numbers = (f"{each[part]:.2f}" for part in ("promised", "measured"))
            rows.append([name, str(seed), f"{100 * each['kept']:.0f} %", *numbers, each["runs"], f"{100 * error:+.0f} %"])
    headings = ["model", "plans", "median error", "median deviation", "largest", "dense ms, predicted", "measured", "runs", "load"]
    about = (
        f"{THREADS} thread, batch 1. Each site keeps a random fraction of its channels, heads or inner units. Predicted: `latency_ms` of "
        "the plan, before anything is pruned. Measured: the model that was pruned so, shrunk and compiled, the fastest of up to 61 calls. "
        f"The aim is a median error below {100 * AIM:.0f} % for each model. Load: how many processes wanted the machine's "
        f"{os.cpu_count()} cores meanwhile; above their number, what is measured is not to be trusted.\n\n"
        + markdown(headings, summary)
    )
    write(
        "latency",
        "# Latency of random plans, predicted and measured",
        about,
        markdown(["model", "plan", "units kept", "predicted ms", "measured ms", "runs", "deviation"], rows),
    )


def main(plans: int = 20, *names: str) -> None:
    """Measure what is missing, and write the page."""
    for name in MODELS:
        if not names or any(name.lower().startswith(each.lower()) for each in names):
            run(name, plans)
    page(kept())


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 20, *sys.argv[2:])
