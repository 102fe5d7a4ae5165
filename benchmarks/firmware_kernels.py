"""Instructions of the int8 kernels on emulated cores: `python benchmarks/firmware_kernels.py` counts, fits the table that predicts them,
and shows how well it does and from which sparsity on each format wins.

Writes ``src/secateurs/firmware/instructions.json`` and ``benchmarks/results/firmware_kernels.md``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls
from tables import markdown, write

from secateurs.firmware import instructions
from secateurs.firmware.call import Call
from secateurs.firmware.emulator import CLOCK, M0, M3, M4, M7, M55, Core, emulated
from secateurs.firmware.formats import FORMATS, uncounted_call
from secateurs.firmware.instructions import Size, features, kept_in, names, size_of
from secateurs.firmware.trying import Trial, program, told
from secateurs.integers.layers import Conv, Numbers
from secateurs.integers.reference import answers

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from products_in_c import apart, conv, of_four, pruned  # type: ignore[import-not-found]  # noqa: E402

FITTED = (M4, M55, M3, M0)
SAME = (M7,)
"""Cores that run what a Cortex-M4 runs."""


def _shapes(random: np.random.Generator, count: int, most: int, depthwise: bool) -> list[Conv]:
    """Layers as networks for small machines have them, none with more than ``most`` numbers in an array."""
    found: list[Conv] = []
    while len(found) < count:
        kernel = [(1, 1), (1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (1, 3), (10, 4), (10, 4), (1, 9)][random.integers(10)]
        inputs = int(random.choice([1, 1, 3, 8, 10, 16, 24, 32, 48, 64, 96, 128, 256]))
        outputs = int(random.choice([4, 8, 10, 12, 16, 21, 24, 32, 35, 48, 64, 96, 128]))
        high, wide = int(random.choice([1, 5, 8, 12, 16, 25])), int(random.choice([1, 4, 5, 8, 10, 12, 16, 24]))
        if depthwise:
            kernel = kernel if kernel != (1, 1) else (3, 3)
        if random.random() < 0.25 and not depthwise:
            high, wide, kernel, inputs = 1, 1, (1, 1), int(random.choice([64, 100, 128, 200, 256, 400]))
        stride = (2, 2) if kernel != (1, 1) and random.random() < 0.4 and high > 1 else (1, 1)
        half = [(each - 1) // 2 for each in kernel]
        padding = (half[0], kernel[0] - 1 - half[0], half[1], kernel[1] - 1 - half[1]) if random.random() < 0.8 else (0, 0, 0, 0)
        if high < kernel[0] - padding[0] - padding[1] or wide < kernel[1] - padding[2] - padding[3]:
            continue
        more: dict[str, Any] = {"low": -100.0, "high": 90.0} if random.random() < 0.15 else {}
        groups, outputs = (inputs, inputs) if depthwise else (1, outputs)
        if (
            (depthwise and inputs < 2)
            or high * wide * max(inputs, outputs) > most
            or outputs * kernel[0] * kernel[1] * inputs > 40_000
        ):
            continue
        found.append(
            conv(random, (high, wide, inputs), outputs, kernel, largest=40, stride=stride, padding=padding, groups=groups, **more)
        )
    return found


def _zeros(format: str, layer: Conv, random: np.random.Generator) -> Conv:
    """The layer with zeros as the format wants them, of which there are more or fewer."""
    keep = float(random.choice([0.05, 0.1, 0.2, 0.3, 0.5, 0.7]))
    if format.endswith("of 4") and format[0].isdigit():
        return of_four(layer, random, int(format[0]))
    if format == "CSR":
        return pruned(layer, random, keep, 1, 1)
    if format.startswith("blocks"):
        return pruned(layer, random, keep, int(format.split()[2]) if " x " in format else 1, 4)
    return layer


def count(calls: Sequence[Call], core: Core, random: np.random.Generator, at_once: int) -> list[float]:
    """Instructions of each call on the emulated core; its answers are held against the reference."""
    found: list[float] = []
    for start in range(0, len(calls), at_once):
        trials = []
        for call in apart(list(calls[start : start + at_once])):
            assert isinstance(call.layer, Conv)
            x = random.integers(-128, 128, (1, *call.layer.x.shape)).astype(np.int8)
            trials.append(Trial(call, x, answers(call.layer, {"x": x})[0]))
        for wrong, taken in told(emulated({"main.c": program(trials, CLOCK)}, core), core.tick):
            assert not wrong
            found.append(taken)
    return found


def fit(format: str, core: Core, random: np.random.Generator) -> tuple[list[float], Numbers]:
    """Coefficients, and relative errors on layers that were not fitted."""
    small = core is M0
    some = 60 if small else 160
    layers = [_zeros(format, each, random) for each in _shapes(random, some, 2000 if small else 20_000, format == "depthwise")]
    calls = [uncounted_call(layer, "c", format=format) for layer in layers]
    if small:
        calls = [call for call in calls if call.flash < 20_000 and call.scratch < 6000]
    taken = np.array(count(calls, core, random, 4 if small else 20))
    table = np.array([features(format, _size(call)) for call in calls])
    scaled = table / taken[:, None]
    fitted = np.arange(len(taken)) % 4 > 0
    by, _ = nnls(scaled[fitted], np.ones(fitted.sum()), maxiter=10_000)
    return [float(f"{each:.4g}") for each in by], (scaled @ by - 1)[~fitted]


def _size(call: Call) -> Size:
    assert isinstance(call.layer, Conv)
    return size_of(call.layer, None, kept_in(call))


def break_even(format: str, core: str, size: Size, most: float) -> str:
    """The sparsity from which on a format takes fewer instructions than dense, in steps of a hundredth; it keeps ``most`` at 0."""
    dense = instructions.instructions("dense", size, core)
    for sparsity in range(100):
        if instructions.instructions(format, replace(size, kept=round(most * (1 - sparsity / 100))), core) < dense:
            return f"{sparsity} %"
    return "never"


def _break_evens(core: str) -> Iterable[list[str]]:
    examples = {
        "linear, 784 to 300": Size(1, 1, (1, 1), 784, 300),
        "1 x 1, 64 to 64 on 25 x 5": Size(25, 5, (1, 1), 64, 64),
        "3 x 3, 32 to 32 on 16 x 16": Size(16, 16, (3, 3), 32, 32, lined=True, padded=True),
    }
    units = {"blocks of 4": 4, "blocks of 2 x 4": 8, "blocks of 4 x 4": 16, "CSR": 1}
    for name, size in examples.items():
        weights = size.kernel[0] * size.kernel[1] * size.inputs * size.outputs
        row = [break_even(each, core, size, weights / unit) for each, unit in units.items()]
        dense = instructions.instructions("dense", size, core)
        for most in (2, 1):
            some = instructions.instructions(f"{most} of 4", replace(size, kept=weights * most // 16), core)
            row.append(f"{some / dense:.2f}")
        yield [name, *row]


def main() -> None:
    """Count, fit, write the table and the page."""
    random = np.random.default_rng(0)
    fitted: dict[str, dict[str, list[float]]] = {}
    errors: dict[tuple[str, str], Numbers] = {}
    for core in FITTED:
        fitted[core.name] = {}
        for format in FORMATS:
            fitted[core.name][format], errors[core.name, format] = fit(format, core, random)
            print(core.name, format, f"{np.abs(errors[core.name, format]).mean():.1%}", file=sys.stderr)
    target = ROOT / "src" / "secateurs" / "firmware" / "instructions.json"
    target.write_text(json.dumps(fitted, indent=1) + "\n", encoding="utf-8")
    instructions._fitted.cache_clear()
    write("firmware_kernels", "# Instructions of the int8 kernels", *_page(errors, random))


def _page(errors: dict[tuple[str, str], Numbers], random: np.random.Generator) -> Iterable[str]:
    yield "Counted by qemu (`-icount shift=0`): instructions, not cycles. Coefficients are fitted to three quarters of random layers."
    yield "## Prediction on the other quarter: mean and largest error"
    rows = [
        [
            format,
            *(f"{np.abs(errors[core.name, format]).mean():.1%}, {np.abs(errors[core.name, format]).max():.0%}" for core in FITTED),
        ]
        for format in FORMATS
    ]
    yield markdown(["format", *(core.name for core in FITTED)], rows)
    yield "## Instructions a product on a Cortex-M4, by what is counted"
    for format in FORMATS:
        by = instructions._fitted()[M4.name][format]
        yield f"{format}: " + "; ".join(f"{name} {each:.3g}" for name, each in zip(names(format), by, strict=True) if each)
    yield "## The sparsity from which a format beats dense weights on a Cortex-M4; for N of 4, its part of the dense instructions"
    headings = ["layer", "blocks of 4", "blocks of 2 x 4", "blocks of 4 x 4", "CSR", "2 of 4", "1 of 4"]
    yield markdown(headings, _break_evens(M4.name))
    yield "## Other cores with the arithmetic of a Cortex-M4: their instructions by its"
    layers = _shapes(random, 20, 20_000, False)
    calls = [uncounted_call(layer, "c") for layer in layers]
    base = np.array(count(calls, M4, random, 20))
    yield markdown(
        ["core", "mean", "largest"],
        [
            [core.name, f"{(found := np.array(count(calls, core, random, 20)) / base).mean():.3f}", f"{found.max():.3f}"]
            for core in SAME
        ],
    )


if __name__ == "__main__":
    main()
