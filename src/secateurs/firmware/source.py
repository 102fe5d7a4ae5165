"""The text of a network as C: one header, one source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from secateurs import __version__
from secateurs.firmware.call import Call
from secateurs.firmware.program import TYPES, Program
from secateurs.firmware.text import KERNELS, declared, kernel
from secateurs.integers.layers import Face


def header(program: Program) -> str:
    """What a caller includes: sizes, scales, and four functions."""
    name, upper = program.name, program.name.upper()
    lines = [
        f"/* {name}: a network in {program.network.kind}. Give memory, write the input, run, read the output. Secateurs {__version__}. */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        "/* Bytes of memory that a run needs, aligned to eight: nothing is kept in it between runs, and nothing anywhere else. */",
        f"#define {upper}_ARENA_BYTES {program.arena.bytes}",
        f"#define {upper}_STEPS {len(program.steps)}",
        "",
    ]
    for face in (*program.network.inputs, *program.network.outputs):
        lines += _face(program, face)
    lines += [
        "/* Runs the network on the inputs that lie in the memory. Inputs may be overwritten: write them anew for each run. */",
        f"void {name}_run(void *memory);",
        "",
        "/* One of its steps, in order from 0 on, for those who want to measure them or to do something in between. */",
        f"void {name}_step(void *memory, int step);",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        f"#endif /* {upper}_H */",
        "",
    ]
    return "\n".join(lines)


def names_of(face: Face) -> str:
    """What a face is called in C: the name without the signs that C has not."""
    return "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in face.name)


def _face(program: Program, face: Face) -> Iterator[str]:
    array, part = face.array, names_of(face)
    kind, upper = TYPES[array.kind], f"{program.name}_{part}".upper()
    shape = " x ".join(str(face.shape[dim]) for dim in face.order if face.shape[dim] != 1 or dim == face.order[-1])
    told = "in the order of the model's dimensions" if face.order == tuple(range(len(face.order))) else "channels last"
    yield f"/* {face.name}: {shape} numbers, {told}. */"
    yield f"#define {upper}_SIZE {array.size}"
    if array.kind != "float32":
        yield f"/* A number q means SCALE * (q - ZERO). */\n#define {upper}_SCALE {array.scale!r}f\n#define {upper}_ZERO ({array.zero})"
    is_input = face in program.network.inputs
    yield f"/* Where it lies in the memory{', to be written before a run' if is_input else ' after a run'}. */"
    yield f"{'' if is_input else 'const '}{kind} *{program.name}_{part}({'' if is_input else 'const '}void *memory);"
    yield ""


def source(*programs: Program) -> str:
    """All of the code and the weights, in one file; of several networks the kernels stand there once."""
    used = {name for program in programs for call in program.calls for name in call.kernels}
    unknown = used - set(KERNELS)
    assert not unknown, f"kernels without a place in the order: {sorted(unknown)}"
    names = ", ".join(program.name for program in programs)
    floats = any(program.network.kind == "float32" for program in programs)
    parts = [
        f"/* {names}: kernels, weights and steps. C99, no allocation, no recursion. Secateurs {__version__}. */",
        *(f'#include "{program.name}.h"' for program in programs),
        "#include <math.h>\n#include <string.h>" if floats else "#include <string.h>",
        *(kernel(name) for name in KERNELS if name in used),
    ]
    for program in programs:
        for number, call in enumerate(program.steps):
            parts += [declared(constant) for constant in call.constants]
            parts.append(_step(program, number, call))
        parts += [*_places(program), _runs(program)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _step(program: Program, number: int, call: Call) -> str:
    layer = call.layer
    name = "".join(sign for sign in layer.name if sign.isalnum() or sign in "._- ")
    what = f"{type(layer).__name__.lower()}{', ' + call.label if call.label else ''}"
    shape = " x ".join(map(str, layer.y.shape))
    return (
        f"/* {name}: {what}; {shape} numbers. */\nstatic void {program.name}_step_{number}(uint8_t *arena) {{\n"
        f"    {program.statement(call)}\n}}"
    )


def _places(program: Program) -> Iterator[str]:
    for face in (*program.network.inputs, *program.network.outputs):
        kind, offset = TYPES[face.array.kind], program.arena.places[face.array.name].offset
        const = "" if face in program.network.inputs else "const "
        yield (
            f"{const}{kind} *{program.name}_{names_of(face)}({const}void *memory) {{\n"
            f"    return ({const}{kind} *)(({const}void *)(({const}uint8_t *)memory + {offset}));\n}}"
        )


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A text with words in it replaced, all at once: what is put in may have these words in it.

    >>> filled("NAME_run(COUNT)", {"NAME": "COUNTER", "COUNT": "3"})
    'COUNTER_run(3)'
    """
    return re.sub("|".join(sorted(parts, key=len, reverse=True)), lambda found: parts[found[0]], text)


def _runs(program: Program) -> str:
    steps = "".join(f"{program.name}_step_{number}, " for number in range(len(program.steps))).removesuffix(", ")
    text = _NONE if not program.steps else _RUN
    return filled(text, {"COUNT": str(len(program.steps)), "STEPS": steps, "NAME": program.name})


_RUN = """static void (*const NAME_steps[COUNT])(uint8_t *arena) = {STEPS};

void NAME_step(void *memory, int step) {
    NAME_steps[step]((uint8_t *)memory);
}

void NAME_run(void *memory) {
    for (int step = 0; step < COUNT; step++) {
        NAME_step(memory, step);
    }
}"""

_NONE = """void NAME_step(void *memory, int step) {
    (void)memory;
    (void)step;
}

void NAME_run(void *memory) {
    (void)memory;
}"""
