"""CMSIS-NN's kernels on layers of ours, in the same emulator: what they answer, and how many instructions they take.

Nothing of CMSIS-NN is part of this project: its folder is given to the benchmark, which builds it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.firmware.call import Constant
from secateurs.firmware.emulator import CLOCK, M4, emulated
from secateurs.firmware.text import declared
from secateurs.firmware.trying import _SAY, told
from secateurs.integers.layers import Add, Array, Conv, Mean, Network, Numbers, Pool, View, read
from secateurs.integers.reference import values_of

FOLDERS = (
    "BasicMathFunctions",
    "ConvolutionFunctions",
    "FullyConnectedFunctions",
    "NNSupportFunctions",
    "PoolingFunctions",
)
_LEFT = ("f16", "f32", "s16.c", "s4", "lstm", "svdf", "transpose", "batch_matmul", "get_buffer_sizes_s16")
_NEEDED = ("s8_s16", "q7_to_q15", "mat_mult_kernel")
BUFFER = 1 << 16
BUILDS = ("-O2", "-O3", "-Ofast")
"""How CMSIS-NN is built; the last is its own choice."""
Known = Conv | Pool | Mean | Add


@dataclass(frozen=True)
class Counted:
    """A layer: how many numbers differ from ours, and instructions."""

    name: str
    wrong: int
    instructions: float


def sources_in(folder: Path) -> dict[str, str]:
    """The files of CMSIS-NN that int8 layers take, by name."""
    found = {}
    for each in FOLDERS:
        for path in sorted((folder / "Source" / each).glob("*.c")):
            if not any(part in path.name for part in _LEFT) or any(part in path.name for part in _NEEDED):
                found[path.name] = path.read_text("utf-8")
    return found


def version_of(folder: Path) -> str:
    """Which state of CMSIS-NN it is."""
    done = subprocess.run(["git", "-C", str(folder), "describe", "--tags", "--always"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown version"


def counted(folder: Path, network: Network, inputs: Numbers, optimise: str = "-Ofast") -> list[Counted]:
    """Each layer of a network by CMSIS-NN, on what our reference gives it for one sample; views take nothing and are left out."""
    values: dict[str, Numbers] = {}

    def see(array: Array, numbers: Numbers) -> None:
        values[array.name] = numbers

    values_of(network, [inputs[:1]], see)
    layers = [layer for layer in network.layers if isinstance(layer, (Conv, Pool, Mean, Add))]
    other = [layer.name for layer in network.layers if not isinstance(layer, (Conv, Pool, Mean, Add, View))]
    if other:
        raise NotImplementedError(f"there is no call of CMSIS-NN here for {', '.join(other)}")
    text = program(layers, values)
    flags = ("-w", "-std=gnu99", f"-I{(folder / 'Include').resolve()}", optimise)
    said = emulated({"main.c": text, **sources_in(folder)}, M4, flags)
    return [Counted(layer.name, *each) for layer, each in zip(layers, told(said, M4.tick), strict=True)]


def program(layers: Sequence[Known], values: dict[str, Numbers]) -> str:
    """A ``main.c`` that runs one layer after another on given numbers."""
    parts = ["#include <stdint.h>\n#include <string.h>\n#include <arm_nnfunctions.h>", _SAY]
    parts.append(f"static uint32_t sec_clock(void) {{ {CLOCK} }}")
    most = max(array.bytes for layer in layers for array in (*read(layer), layer.y))
    parts.append(f"static uint32_t x[{most // 4 + 4}], other[{most // 4 + 4}], y[{most // 4 + 4}], buffer[{BUFFER // 4}];")
    parts.append("static cmsis_nn_context context = {buffer, sizeof buffer};")
    for place, layer in enumerate(layers):
        for end, array in (("x", layer.x), ("y", layer.y)):
            parts.append(declared(Constant(f"{end}_{place}", "int8_t", values[array.name][0])))
        if isinstance(layer, Add):
            parts.append(declared(Constant(f"other_{place}", "int8_t", values[layer.other.name][0])))
        parts += _constants(place, layer)
        parts.append(_trial(place, layer))
    runs = "\n".join(f"    try_{place}();" for place in range(len(layers)))
    return "\n".join(parts) + f"\nint main(void) {{\n{runs}\n    return 0;\n}}\n"


def _constants(place: int, layer: Known) -> list[str]:
    """Weights, biases and factors as CMSIS-NN wants them: the channels of depthwise ones last, factors not constant."""
    if not isinstance(layer, Conv):
        return []
    assert layer.rescale is not None
    weight = layer.weight.reshape(len(layer.weight), -1).T if layer.is_depthwise else layer.weight
    outputs = len(layer.weight)
    numbers = {"multiplier": layer.rescale.multiplier, "shift": layer.rescale.shift}
    return [
        declared(Constant(f"w_{place}", "int8_t", np.ascontiguousarray(weight))),
        declared(Constant(f"b_{place}", "int32_t", layer.bias)),
        *(
            declared(Constant(f"{name}_{place}", "int32_t", np.broadcast_to(each, (outputs,)))).replace("static const", "static")
            for name, each in numbers.items()
        ),
    ]


def _trial(place: int, layer: Known) -> str:
    """One layer between two looks at the clock, and the comparison."""
    more = f"    memcpy(other, other_{place}, sizeof other_{place});\n" if isinstance(layer, Add) else ""
    return (
        f"static void try_{place}(void) {{\n    memcpy(x, x_{place}, sizeof x_{place});\n{more}    memset(y, 85, sizeof y);\n"
        f"{_set_up(place, layer)}\n    const uint32_t before = sec_clock();\n    {_call(place, layer)}\n"
        f"    const uint32_t after = sec_clock();\n    uint32_t wrong = 0;\n"
        f"    for (long each = 0; each < {layer.y.size}; each++) wrong += ((const int8_t *)y)[each] != y_{place}[each];\n"
        f"    say({place}u, ' ');\n    say(wrong, ' ');\n    say(after - before, '\\n');\n}}"
    )


def _dims(array: Array) -> str:
    return f"{{1, {array.shape[0]}, {array.shape[1]}, {array.shape[2]}}}"


def _bounds(layer: Any) -> str:
    low, high = getattr(layer, "low", -128), getattr(layer, "high", 127)
    return f"{{{int(max(-128, low))}, {int(min(127, high))}}}"


def is_linear(layer: Known) -> bool:
    """Whether it is for CMSIS-NN's fully-connected kernel."""
    return isinstance(layer, Conv) and layer.kernel == (1, 1) and layer.x.shape[:2] == (1, 1) and layer.groups == 1


def _set_up(place: int, layer: Known) -> str:
    """The structures that a call takes."""
    lines = [f"cmsis_nn_dims in = {_dims(layer.x)}, out = {_dims(layer.y)};"]
    if isinstance(layer, Conv):
        lines += _of_products(place, layer)
    elif isinstance(layer, (Pool, Mean)):
        window = layer.window if isinstance(layer, Pool) else layer.x.shape[:2]
        stride = layer.stride if isinstance(layer, Pool) else (1, 1)
        padding = layer.padding if isinstance(layer, Pool) else (0, 0, 0, 0)
        lines.append(f"cmsis_nn_dims window = {{1, {window[0]}, {window[1]}, 1}};")
        tiles = f"{{{stride[1]}, {stride[0]}}}, {{{padding[2]}, {padding[0]}}}"
        lines.append(f"cmsis_nn_pool_params how = {{{tiles}, {_bounds(layer)}}};")
    return "\n".join(f"    {line}" for line in lines)


def _of_products(place: int, layer: Conv) -> list[str]:
    outputs = len(layer.weight)
    if is_linear(layer):
        return [
            f"cmsis_nn_dims filter = {{{layer.weight.shape[3]}, 1, 1, {outputs}}}, bias = {{1, 1, 1, {outputs}}};",
            f"cmsis_nn_fc_params how = {{{-layer.x.zero}, 0, {layer.y.zero}, {_bounds(layer)}}};",
            f"cmsis_nn_quant_params factors = {{multiplier_{place}, shift_{place}, 1}};",
        ]
    tiles = [layer.stride, (layer.padding[0], layer.padding[2]), layer.dilation]
    shown = ", ".join(f"{{{tile[1]}, {tile[0]}}}" for tile in tiles)
    kind = "cmsis_nn_dw_conv_params" if layer.is_depthwise else "cmsis_nn_conv_params"
    multiplier = f"{outputs // layer.groups}, " if layer.is_depthwise else ""
    height, width = layer.kernel
    last = outputs if layer.is_depthwise else layer.weight.shape[3]
    return [
        f"cmsis_nn_dims filter = {{{1 if layer.is_depthwise else outputs}, {height}, {width}, {last}}}, bias = {{1, 1, 1, {outputs}}};",
        f"{kind} how = {{{-layer.x.zero}, {layer.y.zero}, {multiplier}{shown}, {_bounds(layer)}}};",
        f"cmsis_nn_per_channel_quant_params factors = {{multiplier_{place}, shift_{place}}};",
    ]


def _call(place: int, layer: Known) -> str:
    x, y, other = "(const int8_t *)x", "(int8_t *)y", "(const int8_t *)other"
    if isinstance(layer, Conv):
        name = "fully_connected" if is_linear(layer) else "depthwise_conv" if layer.is_depthwise else "convolve"
        arguments = f"&context, &how, &factors, &in, {x}, &filter, w_{place}, &bias, b_{place}, &out, {y}"
        return f"arm_{name}_wrapper_s8({arguments});"
    if isinstance(layer, (Pool, Mean)):
        name = "avgpool" if isinstance(layer, Mean) or layer.average else "max_pool"
        return f"arm_{name}_s8(&context, &how, &in, {x}, &window, &out, {y});"
    assert isinstance(layer, Add) and layer.of_x is not None and layer.of_other is not None and layer.rescale is not None
    terms = [
        f"{-array.zero}, {by.multiplier[0]}, {by.shift[0]}" for array, by in ((layer.x, layer.of_x), (layer.other, layer.of_other))
    ]
    low, high = _bounds(layer).strip("{}").split(", ")
    after = f"{layer.y.zero}, {layer.rescale.multiplier[0]}, {layer.rescale.shift[0]}, {low}, {high}, {layer.y.size}"
    return f"arm_elementwise_add_s8({x}, {other}, {terms[0]}, {terms[1]}, 20, {y}, {after});"
