"""Random networks as C against the integer reference, many in one program under sanitizers: each number is compared.

python tests/firmware_fuzz.py --networks 2000 --kind int8
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from secateurs.firmware.call import Call, Constant
from secateurs.firmware.calls import call_of
from secateurs.firmware.firmware import told
from secateurs.firmware.formats import choices
from secateurs.firmware.host import SANITIZED, on_host
from secateurs.firmware.overwriting import overwriting
from secateurs.firmware.program import TYPES, Program, planned
from secateurs.firmware.source import header, names_of, source
from secateurs.firmware.text import declared
from secateurs.integers.build import built
from secateurs.integers.layers import Conv, Kind, Layer, Numbers
from secateurs.integers.quantise import quantised, to_integers
from secateurs.integers.ranges import calibrated
from secateurs.integers.reference import run

sys.path.insert(0, str(Path(__file__).parent))

from small_networks import small_network

Case = tuple[Program, list[Numbers], list[Numbers]]


def case(seed: int, kind: Kind, name: str) -> Case:
    """A random network as a program, integers that it was not calibrated on among its inputs, and what must come of them."""
    model, example = small_network(seed)
    floats = built(model, example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arrays that are always 0
        ranges = calibrated(floats, [example], kind=kind)
    network = floats if kind == "float32" else quantised(floats, ranges, kind)
    rng = np.random.default_rng(seed)
    inputs = []
    for face in network.inputs:
        given = to_integers(face.packed(example.numpy()), face.array)
        if kind != "float32":
            limits = np.iinfo(kind)
            given = np.concatenate([given, rng.integers(limits.min, limits.max + 1, given.shape, dtype=kind)])
        inputs.append(given)
    calls = [_call(layer, f"{name}_{number}", rng) for number, layer in enumerate(network.layers)]
    return planned(network, calls, name), inputs, run(network, inputs)


def _call(layer: Layer, name: str, rng: np.random.Generator) -> Call:
    """A layer in any of the formats that its weights allow."""
    if not isinstance(layer, Conv) or layer.x.kind != "int8":
        return call_of(layer, name)
    options = choices(layer, name)
    return overwriting(options[rng.integers(len(options))])


def program_of(cases: Sequence[Case]) -> dict[str, str]:
    """One program that runs all of them, each in an arena of exactly its size, and prints a line for each: how many numbers are wrong."""
    parts = ["#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>"]
    files = {"all.c": source(*(program for program, _, _ in cases))}
    calls = []
    for program, inputs, outputs in cases:
        name = program.name
        files[f"{name}.h"] = header(program)
        parts.append(f'#include "{name}.h"')
        lines = [f"    unsigned char *arena = malloc({max(1, program.arena.bytes)});", "    double wrong = 0;"]
        lines.append(f"    for (int test = 0; test < {len(inputs[0])}; test++) {{")
        for face, numbers in zip(program.network.inputs, inputs, strict=True):
            part = names_of(face)
            parts.append(declared(Constant(f"{name}_in_{part}", TYPES[face.array.kind], numbers.ravel())))
            size = face.array.size
            lines.append(
                f"        memcpy({name}_{part}(arena), {name}_in_{part} + test * {size}, {size} * sizeof *{name}_in_{part});"
            )
        lines.append(f"        {name}_run(arena);")
        for face, numbers in zip(program.network.outputs, outputs, strict=True):
            part, size, ctype = names_of(face), face.array.size, TYPES[face.array.kind]
            parts.append(declared(Constant(f"{name}_out_{part}", ctype, numbers.ravel())))
            slack = "1e-4 * MOST" if ctype == "float" else "0"
            most = f"{float(np.abs(numbers).max(initial=0)) + 1e-6!r}"
            lines.append(f"        for (int i = 0; i < {size}; i++) {{")
            lines.append(f"            double apart = (double){name}_{part}(arena)[i] - {name}_out_{part}[test * {size} + i];")
            lines.append(f"            wrong += (apart < 0 ? -apart : apart) > {slack.replace('MOST', most)};")
            lines.append("        }")
        lines += ["    }", f'    printf("{name} %g\\n", wrong);', "    free(arena);"]
        parts.append(f"static void try_{name}(void) {{\n" + "\n".join(lines) + "\n}")
        calls.append(f"    try_{name}();")
    parts.append("int main(void) {\n" + "\n".join(calls) + "\n    return 0;\n}")
    files["main.c"] = "\n\n".join(parts) + "\n"
    return files


def wrong(seeds: Sequence[int], kind: Kind, flags: Sequence[str] = ("-O1", *SANITIZED)) -> list[str]:
    """Of networks of some seeds, those with wrong numbers, told with their layers."""
    cases = [case(seed, kind, f"n{seed}") for seed in seeds]
    said = on_host(program_of(cases), flags)
    counts = {line.split()[0]: float(line.split()[1]) for line in said.splitlines()}
    return [
        f"seed {seed}: {counts[program.name]:g} wrong numbers: {', '.join(told(call.layer) + ' ' + call.label for call in program.steps)}"
        for seed, (program, _, _) in zip(seeds, cases, strict=True)
        if counts[program.name]
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", default="int8")
    options = parser.parse_args()
    start, faults = time.time(), 0
    for first in range(options.first, options.first + options.networks, 50):
        found = wrong(range(first, min(first + 50, options.first + options.networks)), options.kind)
        faults += len(found)
        print(
            "\n".join(found) if found else f"{first + 50 - options.first} networks, {time.time() - start:.0f} s, {faults} faults",
            flush=True,
        )
