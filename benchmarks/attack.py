"""Attacks: mutants of every kind of file, killed training runs, and random sequences of what may happen to masks.

    python benchmarks/attack.py                                   # 10⁶ mutants, 300 killed runs, 1000 sequences: hours on one core
    python benchmarks/attack.py --seconds 600                     # as far as it comes in ten minutes; the next call goes on from there
    python benchmarks/attack.py --mutants 10_000 --kills 0 --sequences 0

What was done is kept in `results/attack/progress.json` (remove it to begin anew), and the page is written after every round. Each batch
runs in a process of its own, so that one that crashes or hangs is told and does not end the rest. Every fault is told with its seed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from attacks import KINDS, Verdict, kill, mutants, sequence, sound
from tables import RESULTS, markdown, write

PROGRESS = RESULTS / "attack" / "progress.json"

BATCH_SECONDS = 900
"""What no batch may take."""

SHARES = {
    "model": 18,
    "sparse": 16,
    "masks": 16,
    "shrunk": 16,
    "compressed": 100,
    "checkpoint": 2,
    "plan": 16,
    "record": 16,
    "measurements": 0.01,
}
"""Of a hundred mutants, those of each kind, and as many again of compressed files; checkpoints take a step of training each, and
measurements a compiled model."""


@dataclass
class Work:
    """One kind of attack: how many there are to be, how many were, and what came of them."""

    name: str
    wanted: int
    batch: int
    attack: Callable[[int, str], Verdict]
    done: int = 0
    peak: int = 0
    verdict: Verdict = field(default_factory=Verdict)

    def go_on(self) -> None:
        """The next batch, in a process of its own."""
        count = min(self.batch, self.wanted - self.done)
        found, peak = apart(lambda: self.attack(count, f"{self.name} {self.done}"))
        self.done, self.peak = self.done + count, max(self.peak, peak)
        self.verdict.join(found)


def apart(attack: Callable[[], Verdict]) -> tuple[Verdict, int]:
    """What an attack finds in a process of its own, and the most memory that it took, in KiB."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(BATCH_SECONDS)
            found = attack().to_plain()
            found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with os.fdopen(writing, "w") as pipe:
                json.dump(found, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    if status:
        verdict = Verdict()
        verdict.add("faults", f"a batch ended with {os.waitstatus_to_exitcode(status)}")
        return verdict, 0
    found = json.loads(text)
    return Verdict.of_plain(found), found["peak"]


def many(attack: Callable[[str], Verdict]) -> Callable[[int, str], Verdict]:
    """A number of attacks of a kind that makes one at a time."""

    def run(count: int, seed: str) -> Verdict:
        verdict = Verdict()
        for number in range(count):
            verdict.join(attack(f"{seed}+{number}"))
        return verdict

    return run


def works(mutants_wanted: int, kills: int, sequences: int) -> list[Work]:
    """All attacks, with what earlier calls have done."""

    def mutating(kind: str) -> Callable[[int, str], Verdict]:
        return lambda count, seed: mutants(kind, count, seed)

    found = []
    for kind in KINDS:
        count, batch = int(mutants_wanted * SHARES[kind] / 100), max(5, int(50 * SHARES[kind]))
        found.append(Work(f"{kind} mutants", count, batch, mutating(kind)))
    found += [Work("killed runs", kills, 5, many(kill)), Work("sequences", sequences, 20, many(sequence))]
    known: dict[str, Any] = json.loads(PROGRESS.read_text()) if PROGRESS.exists() else {}
    for work in found:
        if work.name in known:
            kept = known[work.name]
            work.done, work.peak, work.verdict = kept["done"], kept["peak"], Verdict.of_plain(kept)
    return found


def keep(found: list[Work]) -> None:
    """Write down what was done, in one piece."""
    PROGRESS.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({work.name: {"done": work.done, "peak": work.peak, **work.verdict.to_plain()} for work in found}, indent=1)
    part = PROGRESS.with_suffix(".part")
    part.write_text(text)
    os.replace(part, PROGRESS)


def page(found: list[Work]) -> None:
    """The page of results."""
    rows = []
    for work in found:
        counts = {outcome: count for outcome, count in work.verdict.counts.items() if outcome != "faults" and count}
        told = "; ".join(f"{outcome}: {count:,}" for outcome, count in sorted(counts.items()))
        rows.append([work.name, f"{work.done:,}", told, f"{work.verdict.counts['faults']:,}", f"{work.peak // 1024} MiB"])
    every = sum(work.done for work in found if work.name.endswith("mutants"))
    faults = [f"- {fault}" for work in found for fault in work.verdict.faults]
    write(
        "attack",
        "# Attacks",
        f"{every:,} mutants of files, {found[-2].done:,} training runs that were killed again and again, {found[-1].done:,} random "
        "sequences of what may happen to masks. Made by `python benchmarks/attack.py`, which goes on from where it was stopped.",
        markdown(("attack", "made", "what came of it", "faults", "most memory"), rows),
        "*Damaged*: bits flipped, bytes lost, doubled, moved; *changed*: document or header rewritten by somebody who knows the format, "
        "without checksums. *Refused* is an error of ours, after which model, optimizer, scheduler and random state are as they were. "
        "*Read, but the model cannot run*: a stranger's record of a shrinking that fits all of the file's tensors and yet gives the "
        "model's code wrong sizes; damage never does that. A fault is anything else: another exception, a changed model, other "
        "numbers from a damaged model file, more than five seconds for one file (measurements are made again), a crash, a pruned "
        "weight that moved, a run that resumed to other bits, a file left over.",
        "## Faults\n\n" + ("\n".join(faults) or "None."),
    )


def main() -> None:
    """Go round all kinds of attack until there are as many as wanted, or time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=300, help="training runs, each killed up to four times")
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    end, found = time.monotonic() + chosen.seconds, works(chosen.mutants, chosen.kills, chosen.sequences)
    while waiting := [work for work in found if work.done < work.wanted]:
        for work in waiting:
            if work.name.endswith(" mutants"):
                sound(work.name.removesuffix(" mutants"))  # made once, before the processes part
            if time.monotonic() > end:
                page(found)
                return
            work.go_on()
            keep(found)
    page(found)


if __name__ == "__main__":
    main()
