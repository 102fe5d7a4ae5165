"""Structural pruning of every model of the zoo: what is found, and whether the small model is the masked one.

    python benchmarks/structure.py              # all, a few minutes on one core
    python benchmarks/structure.py --only bert  # those whose name contains it, without writing the page
    python benchmarks/structure.py --billion    # only the decoder of a billion parameters

Half of each site that can be removed exactly is removed. The masked model and the small one then run on the example, in float64 where
the model's code allows that, and a file of the small one is loaded by a fresh model of the class. Convolutional networks stand the
trial a second time, with images in channels-last memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tables import markdown, write
from torch import nn
from zoo import CLASSIC, HAND_WRITTEN, TRANSFORMERS, channels_last
from zoo.halving import Outcome, halve

import secateurs as sc

HEADINGS = (
    "model",
    "kind",
    "exact",
    "approximate",
    "pinned (commonest reasons)",
    "parameters",
    "after",
    "largest difference",
    "reload",
    "analysed in",
)
SECONDS, GIBIBYTES = 60, 2
"""What finding the sites of the large decoder may take."""


def row(outcome: Outcome) -> list[str]:
    """A subject's line in the table."""
    why = ", ".join(f"{count} {reason}" for reason, count in outcome.reasons.most_common(2))
    before, after = outcome.parameters
    difference = "–" if outcome.difference is None else f"{outcome.difference:.0e}" + ("" if outcome.double else " (float32)")
    return [
        outcome.name,
        outcome.family,
        f"{outcome.exact}",
        f"{outcome.approximate}",
        f"{outcome.pinned}" + (f" ({why})" if why else ""),
        f"{before:,}",
        f"{after:,}" if before else "–",
        difference,
        "same bits" if outcome.reloaded else "–",
        f"{outcome.seconds:.2f} s",
    ]


def not_the_same(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each subject that something is to be said of."""
    lines = [f"- **{each.name}**: {each.failure}" for each in outcomes if each.failure]
    for each in outcomes:
        if each.failure or each.nothing:
            continue
        if not each.same:
            lines.append(f"- **{each.name}**: answers differ by {each.difference:.1e} of the largest")
        if not each.reloaded:
            lines.append(f"- **{each.name}**: the file gives another model")
        for reason, names in grouped(each).items():
            lines.append(f"- {each.name}: masked, but not removed: {names}: {reason}")
    return lines


def grouped(outcome: Outcome) -> dict[str, str]:
    """What was put back: reason → the sites."""
    found: dict[str, list[str]] = {}
    for item in outcome.put_back:
        found.setdefault(item.reason, []).append(item.name)
    return {reason: f"{names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "") for reason, names in found.items()}


def told_apart(outcomes: Sequence[Outcome], others: dict[str, Outcome]) -> list[str]:
    """How the trial with channels-last images went: a sentence, and a line for each network that it went otherwise for."""
    refused = {name for name, other in others.items() if other.failure.startswith("TaskError")}
    differ = [each for each in outcomes if each.name in others.keys() - refused and _told(each) != _told(others[each.name])]
    wrong = sum(not each.same and not each.nothing for name, each in others.items() if name not in refused)
    sentence = (
        f"{len(others)} convolutional networks were tried with channels-last images too: {len(refused)} of them do not take these "
        f"(`view` in their code), sites and parameters left are the same in {len(others) - len(refused) - len(differ)}, and {wrong} give "
        "other answers than the masked model."
    )
    return [sentence, *(f"- {each.name}: {_told(each)}, with channels-last images {_told(others[each.name])}" for each in differ)]


def _told(outcome: Outcome) -> tuple[Any, ...]:
    """What should not depend on how images lie in memory."""
    numbers = (outcome.exact, outcome.approximate, outcome.pinned, *outcome.parameters)
    return (*numbers, outcome.nothing or outcome.same, outcome.failure)


def totals(outcomes: Sequence[Outcome]) -> str:
    """The sums, in words."""
    with_sites = [each for each in outcomes if each.exact and not each.failure]
    bare = [each for each in outcomes if each.nothing]
    pinned = sum((each.reasons for each in outcomes), Counter[str]())
    commonest = ", ".join(f"{reason} ({count})" for reason, count in pinned.most_common(8))
    reloaded = sum(each.reloaded for each in with_sites)
    doubles = [each.difference for each in with_sites if each.double and each.same and each.difference is not None]
    singles = [each.difference for each in with_sites if not each.double and each.same and each.difference is not None]
    whole = sum(not each.put_back for each in with_sites)
    seconds = sorted(each.seconds for each in outcomes)
    return (
        f"{len(outcomes)} models. In {len(with_sites)} of them something can be removed exactly; in {len(bare)} nothing can, which is an "
        f"error that lists why; {sum(bool(each.failure) for each in outcomes)} failed otherwise. "
        f"{sum(each.exact for each in outcomes):,} sites are exact, {sum(each.approximate for each in outcomes):,} approximate "
        f"(left alone), {sum(each.pinned for each in outcomes):,} pinned.\n\n"
        f"With half of each exact site removed, **{sum(each.same for each in with_sites)} of {len(with_sites)}** small models give the "
        f"masked model's answers: {len(doubles)} compared in float64, the largest difference {max(doubles, default=0):.0e} of the largest "
        f"number, {len(singles)} in float32, {max(singles, default=0):.0e}. In {whole} every masked site was removed; the rest is listed "
        f"below. **{reloaded} of {len(with_sites)}** come back from their file bit for bit. Finding the sites takes "
        f"{1e3 * median(seconds):.0f} ms in the median, {seconds[-1]:.1f} s at most.\n\n"
        f"Pinned because of: {commonest}."
    )


def billion() -> dict[str, float]:
    """Finds the sites of a Llama of 1.1 billion parameters on the meta device; what that takes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4
    )
    with torch.device("meta"):
        make: Any = LlamaForCausalLM  # annotated in some versions only
        model: nn.Module = make(config)
        example = {"input_ids": torch.zeros(1, 32, dtype=torch.long), "use_cache": False}
    model.eval()
    before, start = resident("VmRSS"), time.perf_counter()
    sites = sc.find_sites(model, sc.Channel(), example)
    seconds = time.perf_counter() - start
    more = (resident("VmHWM") - before) / 2**20  # getrusage's peak would begin with that of the process that started this one
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "sites": len(sites), "seconds": seconds, "gibibytes": more}


def resident(kind: str) -> int:
    """KiB of this process in memory: VmRSS now, VmHWM at the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def about_billion() -> str:
    """The section on the large decoder, measured in a process of its own; raises `SystemExit` where it takes too much."""
    done = subprocess.run([sys.executable, __file__, "--billion"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["seconds"] > SECONDS or found["gibibytes"] > GIBIBYTES:
        raise SystemExit(f"too slow or too large: {found}")
    return (
        "## A decoder of a billion parameters\n\n"
        f"Llama, 22 layers, width 2048, grouped-query attention, {found['parameters'] / 1e9:.2f} billion parameters on the meta device: "
        f"{found['sites']} sites found in **{found['seconds']:.1f} s** with **{1024 * found['gibibytes']:.0f} MiB** of extra memory "
        f"(allowed: {SECONDS} s, {GIBIBYTES} GiB)."
    )


def main() -> None:
    """Try all subjects, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="part of a subject's name")
    parser.add_argument("--billion", action="store_true", help="only the large decoder; one line of JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.billion:
        print(json.dumps(billion()))
        return
    outcomes, others = [], {}
    for subject in [*TRANSFORMERS, *HAND_WRITTEN, *CLASSIC]:
        if chosen.only is None or chosen.only in subject.name:
            outcomes.append(halve(subject))
            print(" | ".join(row(outcomes[-1])), flush=True)
            if (other := channels_last(subject)) is not None:
                others[subject.name] = halve(other)
    remarks, arranged = not_the_same(outcomes), told_apart(outcomes, others)
    if chosen.only is not None:
        print("\n".join([*remarks, *arranged]))
        return
    without = ", ".join(each.name for each in outcomes if each.nothing)
    write(
        "structure",
        "# Structural pruning of every model of the zoo",
        (__doc__ or "").rpartition("\n\n")[2].strip(),
        totals(outcomes),
        "\n".join(arranged),
        about_billion(),
        "## What did not go smoothly",
        "\n".join([*remarks, f"- nothing to remove exactly: {without}"]),
        "## All models",
        markdown(HEADINGS, map(row, outcomes)),
    )


if __name__ == "__main__":
    main()
