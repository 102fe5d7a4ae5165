"""A language model without some of its blocks: SmolLM2-135M, which of its 30 blocks go by each score, and what that costs.

    SECATEURS_DATA=... python benchmarks/depth.py build             # build/models as benchmarks/language.py says; an hour or two of a core
    SECATEURS_DATA=... python benchmarks/depth.py build --report    # only the page, from what is there
    SECATEURS_DATA=... python benchmarks/depth.py build --speed     # tokens per second of the shrunk models: on a quiet machine

It goes on where it was stopped. Calibration is on the first windows of ``wikitext2_valid.txt``, judged is the first 10 windows of 512
tokens of ``wikitext2_test.txt``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from language import network
from tables import RESULTS, markdown, write

import secateurs as sc
from secateurs.tasks.images import data_file

CELLS = RESULTS / "depth.json"
WINDOW, CALIBRATION, JUDGED, MOST = 512, 2, 10, 8
EXAMPLE = {"input_ids": torch.arange(16)[None], "use_cache": False}


def windows(tokenizer: Any, file: str, count: int) -> list[dict[str, Any]]:
    """The first windows of a text, each a batch with labels."""
    text = Path(data_file(file)).read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text[: count * WINDOW * 12])["input_ids"])
    return [{"input_ids": each[None], "labels": each[None], "use_cache": False} for each in ids.split(WINDOW)[:count]]


@torch.no_grad()
def perplexity(model: Any, batches: list[dict[str, Any]]) -> float:
    """Of all windows together, each with as many tokens."""
    return math.exp(statistics.mean(float(model(**batch).loss) for batch in batches))


SCORES: dict[str, sc.Criterion] = {
    "block influence": sc.block_influence(),
    "loss without it": sc.loss_without(),
    "loss without it, greedy": sc.loss_without(),
    "random 0": sc.random(seed=0),
    "random 1": sc.random(seed=1),
}


def ranked(criterion: sc.Criterion, model: Any, sites: Any, task: sc.Task) -> list[str]:
    """The names of the blocks, those that are missed least first."""
    if criterion.name.startswith("random"):  # each is a site of its own, so that one draw is made over all of them
        seed = int(criterion.name.removeprefix("random(seed=").removesuffix(")"))
        scores = torch.rand(len(sites), generator=torch.Generator().manual_seed(seed)).tolist()
    else:
        stats = sc.observe(model, sites, criterion.needs, task)
        scores = [float(each) for each in sc.TopK(criterion).scores(sites, stats)]
    return [sites[index].name for index in sorted(range(len(sites)), key=lambda index: scores[index])]


@torch.no_grad()
def zero(sites: Any, names: list[str]) -> None:
    """Blocks at zero, as masks leave them."""
    for site in sites:
        for member in site.members if site.name in names else ():
            member.weight.zero_()


def speed(model: Any, rounds: int = 5) -> float:
    """Tokens per second of generation with a cache: 64 tokens after 64, the median of some rounds."""
    ids, taken = torch.arange(64)[None] + 100, []
    for _ in range(rounds):
        start = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0
        )
        taken.append(time.perf_counter() - start)
    return 64 / statistics.median(taken)


def measure(build: Path, found: dict[str, Any]) -> None:
    """Everything that is not there yet: as prune_ and depth_ choose, without finding the blocks again. Goes on where it was stopped."""
    for score, criterion in SCORES.items():
        rows = found.setdefault(score, [])
        if len(rows) == MOST:
            continue
        model, tokenizer = network(build)
        judged = windows(tokenizer, "wikitext2_test.txt", JUDGED)
        found.setdefault("dense", None)
        found["dense"] = found["dense"] or perplexity(model, judged)
        task = sc.Task(EXAMPLE, calibration=windows(tokenizer, "wikitext2_valid.txt", CALIBRATION))
        sites, gone = sc.find_sites(model, sc.Depth(), EXAMPLE), rows[-1]["gone"] if rows else []
        zero(sites, gone)
        order = found.setdefault("orders", {}).get(score.removesuffix(", greedy"))
        while len(gone) < MOST:
            left = replace(sites, found=tuple(site for site in sites if site.name not in gone))
            if order is None or (gone and score.endswith("greedy")):
                order = gone + ranked(criterion, model, left, task)
                found["orders"].setdefault(score, order)
            gone = [*gone, order[len(gone)]]
            zero(sites, gone)
            rows.append({"gone": gone, "perplexity": perplexity(model, judged)})
            print(score, len(gone), gone[-1], round(rows[-1]["perplexity"], 2), flush=True)
            CELLS.write_text(json.dumps(found, indent=1))
        if score == "loss without it, greedy":
            shrunk = sc.shrink_(model, example=EXAMPLE)
            found["shrunk"] = {"parameters": shrunk.parameters, "perplexity": perplexity(model, judged)}
            CELLS.write_text(json.dumps(found, indent=1))


def times(build: Path, found: dict[str, Any]) -> None:
    """Tokens per second, dense and with 1, 2, 4, 8 blocks gone."""
    model, _ = network(build)
    found["speed"] = {"0": speed(model)}
    for count in (1, 2, 4, 8):
        model, _ = network(build)
        gone = found["loss without it, greedy"][count - 1]["gone"]
        zero(sc.find_sites(model, sc.Depth(), EXAMPLE), gone)
        sc.shrink_(model, example=EXAMPLE)
        found["speed"][str(count)] = speed(model)
    CELLS.write_text(json.dumps(found, indent=1))


def page(found: dict[str, Any]) -> None:
    """Write the page."""
    counts = list(range(1, MOST + 1))
    seeds = [found[score] for score in SCORES if score.startswith("random")]
    rows = [
        [score, *(f"{row['perplexity']:.1f}" for row in found[score])]
        for score in SCORES
        if not score.startswith("random") and len(found.get(score, ())) == MOST
    ]
    spread = [[seed[count - 1]["perplexity"] for seed in seeds] for count in counts]
    rows.append(["random, the better and the worse of two", *(f"{min(each):.0f} to {max(each):.0f}" for each in spread)])
    last = {score: sorted(int(name.rsplit(".", 1)[1]) for name in found[score][-1]["gone"]) for score in SCORES if found.get(score)}
    parts = [
        "# Blocks of a language model",
        f"SmolLM2-135M-Instruct (30 blocks, Q4_1 made float32), no training. Perplexity on the first {JUDGED} windows of {WINDOW} tokens "
        f"of the WikiText-2 test text ({found['dense']:.1f} dense), by how many blocks are gone; scores are taken on the first "
        f"{CALIBRATION} windows of the validation text. *Greedy* measures all that are left anew after each block. "
        "`python benchmarks/depth.py build`.",
        markdown(["score", *map(str, counts)], rows),
        "Which eight are gone: " + "; ".join(f"{score}: {', '.join(map(str, each))}" for score, each in last.items()) + ".",
    ]
    if "shrunk" in found:
        before, after = found["shrunk"]["parameters"]
        parts.append(
            f"Shrunk without the eight of *loss without it, greedy*: {before:,} to {after:,} parameters, perplexity "
            f"{found['shrunk']['perplexity']:.1f}."
        )
    if "speed" in found:
        dense = found["speed"]["0"]
        rows = [[count, f"{value:.1f}", f"{value / dense:.2f}"] for count, value in found["speed"].items()]
        parts += [
            "Generation with a cache, 64 tokens after 64, one thread:",
            markdown(["blocks gone", "tokens per second", "times dense"], rows),
        ]
    write("depth", *parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--speed", action="store_true")
    asked = parser.parse_args()
    cells: dict[str, Any] = json.loads(CELLS.read_text()) if CELLS.exists() else {}
    if asked.speed:
        times(asked.build, cells)
    elif not asked.report:
        measure(asked.build, cells)
    page(cells)
