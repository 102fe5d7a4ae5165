"""The entropy coders' speeds and sizes, beside zlib, zstd and xz → benchmarks/results/coders.md.

    python benchmarks/coders.py    # three minutes of one core; the SqueezeNet needs SECATEURS_DATA

Speeds are bytes of the float32 tensor for a second of processor time, the best of several rounds; sizes are those of payloads, without
tables of values.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from secateurs.coding.coder import Numbers
from secateurs.coding.coders import CODERS

RESULT = Path(__file__).parent / "results" / "coders.md"
ROUNDS = 5


def main() -> None:
    """Measure everything, write the page."""
    lines = [
        "# Entropy coders: speed and size",
        "",
        f"`python benchmarks/coders.py`, one thread of {processor()}; MB/s are float32 bytes for a second of processor time, the best "
        f"of {ROUNDS} rounds. Other processes ran meanwhile (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, which share their "
        "caches). `entropy` is that of the numbers' frequencies, without a table of them.",
        "",
    ]
    for title, tensors in specimens().items():
        lines += [f"## {title}", "", "| coder | bytes | bits a number | encode MB/s | decode MB/s |", "|---|---|---|---|---|"]
        count = sum(each.size for each in tensors)
        entropy = sum(entropy_of(each) for each in tensors)
        lines.append(f"| entropy | {entropy / 8:,.0f} | {entropy / count:.3f} | | |")
        for name, (encode, decode) in coders().items():
            size, into, out = measured(tensors, encode, decode)
            speeds = " | ".join(f"{4e-6 * count / seconds:,.0f}" for seconds in (into, out))
            lines.append(f"| {name} | {size:,} | {8 * size / count:.3f} | {speeds} |")
            print(title, lines[-1], flush=True)
        lines.append("")
    RESULT.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")


Encode = Callable[[Numbers], bytes]
Decode = Callable[[bytes, Numbers], object]


def coders() -> dict[str, tuple[Encode, Decode]]:
    """Ours by name, and general ones on the numbers as bytes."""
    found: dict[str, tuple[Encode, Decode]] = {
        name: (coder.encode, lambda data, like, coder=coder: coder.decode(memoryview(data), *like.shape))  # type: ignore[misc]
        for name, coder in CODERS.items()
    }
    found["zlib -9"] = (lambda numbers: zlib.compress(narrow(numbers), 9), lambda data, _: zlib.decompress(data))
    found["xz -9"] = (lambda numbers: lzma.compress(narrow(numbers), preset=9), lambda data, _: lzma.decompress(data))
    if shutil.which("zstd"):
        found["zstd -19"] = (
            lambda numbers: run("zstd", "-19", "-c", given=narrow(numbers)),
            lambda data, _: run("zstd", "-dc", given=data),
        )
    return found


def run(*command: str, given: bytes) -> bytes:
    """What a program makes of it."""
    return subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout


def narrow(numbers: Numbers) -> bytes:
    """The numbers in as few bytes each as they fit into."""
    return numbers.astype(np.min_scalar_type(-int(abs(numbers).max()) - 1)).tobytes()


def measured(tensors: list[Numbers], encode: Encode, decode: Decode) -> tuple[int, float, float]:
    """Bytes, and the seconds of processor time to encode and to decode."""
    coded = [encode(each) for each in tensors]
    into, out = [], []
    for _ in range(ROUNDS):
        start = now()
        for each in tensors:
            encode(each)
        middle = now()
        for data, each in zip(coded, tensors, strict=True):
            decode(data, each)
        into.append(middle - start)
        out.append(now() - middle)
        if into[0] > 2:
            break
    return sum(map(len, coded)), min(into), min(out)


def now() -> float:
    """Processor time, that of finished children too."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def entropy_of(numbers: Numbers) -> float:
    """Bits, where each number is coded by its frequency."""
    counts = np.unique(numbers, return_counts=True)[1].astype(np.float64)
    return float(-(counts * np.log2(counts / numbers.size)).sum())


def specimens() -> dict[str, list[Numbers]]:
    """Tensors of a million numbers, drawn independently of each other, and the pruned SqueezeNet's weights."""
    source = np.random.default_rng(0)
    heavy, normal = source.laplace(size=(512, 2048, 1)), source.normal(size=(512, 2048, 1))
    found = {
        "5 bits, 90 % zeros": [pruned(heavy, 0.9)],
        "5 bits, 80 % zeros": [pruned(heavy, 0.8)],
        "5 bits, dense": [np.rint(normal * 4).clip(-15, 15).astype(np.int32)],
        "8 bits, dense": [np.rint(normal * 32).clip(-127, 127).astype(np.int32)],
        "ternary, 60 % zeros": [np.sign(pruned(heavy, 0.6))],
    }
    if "SECATEURS_DATA" in os.environ:
        weights = load_file(Path(os.environ["SECATEURS_DATA"]) / "squeezenet_v1_0_pruned.safetensors").items()
        found["SqueezeNet v1.0, pruned to a third, 256 values a layer (26 weights)"] = [
            levels_of(weight) for name, weight in weights if name.endswith("weight")
        ]
    return found


def pruned(values: NDArray[np.float64], sparsity: float) -> Numbers:
    """Levels of at most 15 for what magnitude pruning leaves."""
    threshold = np.quantile(abs(values), sparsity)
    sizes = np.ceil((abs(values) - threshold) * 3).clip(0, 15)
    return (np.sign(values) * sizes).astype(np.int32)


def levels_of(weight: NDArray[np.float32]) -> Numbers:
    """Ranks of values, zero being 0."""
    values = np.unique(np.append(weight, np.float32(0)))
    levels = np.searchsorted(values, weight) - np.searchsorted(values, 0)
    return np.ascontiguousarray(levels.astype(np.int32).reshape(*weight.shape[:2], -1))


def processor() -> str:
    """What the machine calls itself."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "this machine")


if __name__ == "__main__":
    main()
