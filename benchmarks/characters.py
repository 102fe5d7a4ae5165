"""An LSTM that writes Shakespeare, with 90 % of its LSTM's weights gone: perplexity, texts side by side, characters per second.

    SECATEURS_DATA=... python benchmarks/characters.py              # about an hour of one core; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/characters.py --speed      # measure the characters per second again, on a quiet machine
    SECATEURS_DATA=... python benchmarks/characters.py --report

Two layers of 256 units over single characters of tinyshakespeare: the first 90 % of the text train, the next 5 % are for choosing, the last
5 % are reported. The dense network is trained until its validation loss no longer falls; then its LSTM's weights go by magnitude while it
trains on (a cubic, `gradual`), with its dense self as a teacher, and retrain. Both write from the same beginning with the same random
numbers. Speed is one character at a time, dense in torch and sparse by `run.compile`, in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tables import RESULTS, markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs import run
from secateurs.tasks.images import data_file

WIDTH, DEPTH, LENGTH, BATCH, STEPS = 256, 2, 64, 64, 125
DENSE, PRUNING, AFTER, SPARSITY = 16, 6, 12, 0.9
BEGINNING = "ROMEO:\n"
FILE = RESULTS / "characters.json"
WORK = Path("build/characters")


class Characters(nn.Module):
    """Characters so far and a state → logits of the next ones, and the state."""

    def __init__(self, classes: int, drop: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, WIDTH)
        self.drop = nn.Dropout(drop)
        self.lstm = nn.LSTM(WIDTH, WIDTH, DEPTH, dropout=drop, batch_first=True)
        self.output = nn.Linear(WIDTH, classes)

    def forward(self, tokens: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, (hidden, cell) = self.lstm(self.drop(self.embedding(tokens)), (hidden, cell))
        return self.output(self.drop(x)), hidden, cell


def nothing(batch: int) -> Tensor:
    """The state at the beginning of a text."""
    return torch.zeros(DEPTH, batch, WIDTH)


@dataclass(frozen=True)
class Passages:
    """Passages of the text from random places: so many batches an epoch."""

    text: Tensor

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], Tensor]]:
        for _ in range(STEPS):
            places = torch.randint(0, len(self.text) - LENGTH - 1, (BATCH,))
            taken = self.text[places[:, None] + torch.arange(LENGTH + 1)]
            yield (taken[:, :-1], nothing(BATCH), nothing(BATCH)), taken[:, 1:]


def in_order(text: Tensor) -> list[tuple[tuple[Tensor, Tensor, Tensor], Tensor]]:
    """The whole text in passages, each told with 64 characters before it that do not count."""
    found = []
    for start in range(0, len(text) - 2 * LENGTH - 1, LENGTH * BATCH):
        places = [at for at in range(start, start + LENGTH * BATCH, LENGTH) if at + 2 * LENGTH < len(text)]
        taken = torch.stack([text[at : at + 2 * LENGTH + 1] for at in places])
        found.append(((taken[:, :-1], nothing(len(places)), nothing(len(places))), taken[:, 1:]))
    return found


def loss(output: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Nats a character; of long passages those of the second half."""
    logits = output[0]
    if target.shape[1] > LENGTH:
        logits, target = logits[:, LENGTH:], target[:, LENGTH:]
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def data() -> tuple[sc.Task, str]:
    """The task, and the characters that there are."""
    text = Path(data_file("tinyshakespeare.txt")).read_text()
    letters = "".join(sorted(set(text)))
    tokens = torch.tensor([letters.index(letter) for letter in text])
    first, second = int(0.9 * len(tokens)), int(0.95 * len(tokens))
    example = (tokens[None, :LENGTH], nothing(1), nothing(1))
    return sc.Task(
        example,
        train=Passages(tokens[:first]),
        validation=in_order(tokens[first:second]),
        test=in_order(tokens[second:]),
        loss=loss,
        metric=loss,
        metric_name="perplexity",
        higher_is_better=False,
        summary=math.exp,
    ), letters


def train(model: nn.Module, task: sc.Task, epochs: int, rate: float, name: str, *hooks: sc.Hook) -> sc.Run:
    """Adam, one cosine over all steps."""
    WORK.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    cosine = sc.per_step(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * STEPS))
    return sc.train_(
        model,
        task,
        optimizer,
        epochs,
        hooks=[sc.clip_gradients(1.0), cosine, *hooks],
        checkpoint=WORK / f"{name}.safetensors",
        seed=0,
        show=False,
    )


def networks(task: sc.Task, letters: str) -> tuple[nn.Module, nn.Module, sc.Masks]:
    """The dense network, the sparse one and its masks; trained where they are not there yet."""
    torch.manual_seed(0)
    dense = Characters(len(letters))
    train(dense, task, DENSE, 4e-3, "dense")
    sparse = copy.deepcopy(dense)
    prune = sc.gradual(
        sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold, sc.cubic(SPARSITY), end=PRUNING, only=["lstm"], dropout=False
    )
    teacher = sc.distill(sc.teacher_of(dense), temperature=1.0, weight=0.5, logits=lambda output: output[0].flatten(0, 1))
    done = train(sparse, task, PRUNING + AFTER, 2e-3, "sparse", prune, teacher)
    return dense.eval(), sparse.eval(), done.masks


def written(step: Callable[..., Any], letters: str, length: int, seed: int = 1) -> str:
    """A text of a network, character by character, at temperature 0.8."""
    chance, text = torch.Generator().manual_seed(seed), BEGINNING
    hidden, cell = nothing(1), nothing(1)
    with torch.no_grad():
        for letter in BEGINNING:
            logits, hidden, cell = step(torch.tensor([[letters.index(letter)]]), hidden, cell)
        for _ in range(length):
            chosen = torch.multinomial(torch.softmax(logits[0, -1] / 0.8, -1), 1, generator=chance)
            text += letters[int(chosen)]
            logits, hidden, cell = step(chosen[None], hidden, cell)
    return text


def speeds(dense: nn.Module, sparse: nn.Module, letters: str) -> dict[str, float]:
    """Characters per second, one at a time: the median of 9 turns of 200 characters each."""
    step = (torch.zeros(1, 1, dtype=torch.long), nothing(1), nothing(1))
    with torch.no_grad():
        ways: dict[str, Callable[..., Any]] = {
            "dense, torch": dense,
            "dense, run.compile": run.compile(dense, step),
            "sparse, torch": sparse,
            "sparse, run.compile": run.compile(sparse, step),
        }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(9):
        for way, network in ways.items():
            start = time.perf_counter()
            written(network, letters, 200 - len(BEGINNING))
            taken[way].append(time.perf_counter() - start)
    return {way: 200 / statistics.median(times) for way, times in taken.items()}


def measure(again: bool) -> None:
    """Train what is not there yet, and keep what came of it."""
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    task, letters = data()
    dense, sparse, masks = networks(task, letters)
    if "perplexity" not in found:
        both = {"dense": dense, "sparse": sparse}
        found["perplexity"] = {name: sc.evaluate(each, task, task.test) for name, each in both.items()}
        found["validation"] = {name: sc.evaluate(each, task, task.validation) for name, each in both.items()}
        found["text"] = {name: written(each, letters, 400) for name, each in both.items()}
        found["sparsity"], found["left"] = masks.sparsity, masks.kept
    if again or "speed" not in found:
        found["speed"] = speeds(dense, sparse, letters)
    FILE.write_text(json.dumps(found, indent=1))


def report() -> None:
    """Write the page from what is there."""
    found = json.loads(FILE.read_text())
    dense, sparse = found["perplexity"]["dense"], found["perplexity"]["sparse"]
    head = (
        f"`SECATEURS_DATA=… python benchmarks/characters.py`: {100 * found['sparsity']:.0f} % of the LSTM's weights removed "
        f"({found['left']:,} are left), {DENSE} epochs dense, {PRUNING} while pruning and {AFTER} after, of {STEPS * BATCH * LENGTH:,} "
        "characters each; perplexity a character of the last 5 % of the text."
    )
    rows = [["dense", f"{dense:.3f}", ""], ["sparse", f"{sparse:.3f}", f"{100 * (sparse / dense - 1):+.1f} %"]]
    speed = [[way, f"{value:,.0f}", f"{value / found['speed']['dense, torch']:.2f}x"] for way, value in found["speed"].items()]
    texts = "\n\n".join(f"**{name}**\n\n```text\n{text}\n```" for name, text in found["text"].items())
    write(
        "characters",
        "# An LSTM that writes Shakespeare, dense and sparse",
        head,
        markdown(["network", "perplexity", "against dense"], rows),
        markdown(["way", "characters per second", "against dense in torch"], speed),
        "What both write, from the same beginning and with the same random numbers:",
        texts,
    )


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true", help="measure the characters per second again")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if not given.report:
        torch.set_num_threads(1)
        measure(given.speed)
    report()


if __name__ == "__main__":
    main()
