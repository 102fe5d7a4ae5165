"""Layers that are no products, in C: to the bit what the reference answers."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import secateurs.firmware
from secateurs.firmware.call import Call
from secateurs.firmware.calls import call_of
from secateurs.firmware.emulator import M0, M3, M4, missing
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.host import compiler, on_host
from secateurs.firmware.products import Place
from secateurs.firmware.text import KERNELS, kernel
from secateurs.integers.layers import (
    Add,
    Array,
    Concat,
    Conv,
    Cut,
    Layer,
    Mean,
    Multiply,
    Network,
    Pad,
    Pool,
    Recurrent,
    Reorder,
    Rescale,
    Softmax,
    Table,
    read,
    written,
)
from secateurs.integers.quantise import quantised

sys.path.insert(0, str(Path(__file__).parent))
import firmware_trials as trials

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler here")
needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()}")


def _size(random: np.random.Generator, most: int = 7) -> int:
    return int(random.integers(1, most + 1))


def _array(name: str, random: np.random.Generator) -> Array:
    return Array(name, (_size(random), _size(random), _size(random, 9)))


def pool(random: np.random.Generator) -> Pool:
    x = _array("x", random)
    window = min(x.shape[0], _size(random, 4)), min(x.shape[1], _size(random, 4))
    stride, dilation = (_size(random, 3), _size(random, 3)), (1, 1)
    padding = tuple(int(random.integers(0, size // 2 + 1)) for size in (window[0], window[0], window[1], window[1]))
    average = bool(random.random() < 0.5)
    if not average and random.random() < 0.3:
        dilation = tuple(
            1 if size == 1 else min(2, (extent - 1) // (size - 1)) or 1 for size, extent in zip(window, x.shape, strict=False)
        )
    out = [
        (x.shape[axis] + padding[2 * axis] + padding[2 * axis + 1] - dilation[axis] * (window[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]
    y = Array("y", (out[0], out[1], x.shape[2]))
    return Pool("pool", x, y, average, window, stride, padding, dilation, bool(random.random() < 0.5))  # type: ignore[arg-type]


def mean(random: np.random.Generator) -> Mean:
    x = _array("x", random) if random.random() < 0.7 else Array("x", (17, 31, _size(random)))
    return Mean("mean", x, Array("y", (1, 1, x.shape[2])))


def add(random: np.random.Generator) -> Add:
    x = _array("x", random)
    bounds = [(-np.inf, np.inf), (0.0, np.inf), (0.0, 1.5), (-0.5, 0.5)][int(random.integers(4))]
    return Add("add", x, replace(x, name="other"), replace(x, name="y"), *bounds, sign=int(random.choice([1, -1])))


def multiply(random: np.random.Generator) -> Multiply:
    x = _array("x", random)
    other = replace(x, name="other") if random.random() < 0.5 else Array("other", (1, 1, x.shape[2]))
    return Multiply("multiply", x, other, replace(x, name="y"))


def concat(random: np.random.Generator) -> Concat:
    x = _array("x", random)
    parts = tuple(Array(f"part{place}", (*x.shape[:2], _size(random))) for place in range(_size(random, 4)))
    return Concat("concat", parts, Array("y", (*x.shape[:2], sum(part.shape[2] for part in parts))))


FUNCTIONS = (
    "hard_swish",
    "hard_sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "sigmoid",
    "tanh",
    "clamp -0.5 1.25",
    "clamp 0 6",
    "clamp 0 inf",
)


def table(random: np.random.Generator) -> Table:
    x = _array("x", random)
    return Table("table", x, replace(x, name="y"), str(random.choice(FUNCTIONS)))


def softmax(random: np.random.Generator) -> Softmax:
    x = _array("x", random)
    return Softmax("softmax", x, replace(x, name="y"))


def pad(random: np.random.Generator) -> Pad:
    x = _array("x", random)
    around = tuple(int(random.integers(0, 3)) for _ in range(6))
    y = Array("y", (x.shape[0] + around[0] + around[1], x.shape[1] + around[2] + around[3], x.shape[2] + around[4] + around[5]))
    return Pad("pad", x, y, around[:4], float(random.choice([0.0, 0.7])), around[4:])  # type: ignore[arg-type]


def cut(random: np.random.Generator) -> Cut:
    x = _array("x", random)
    start = tuple(int(random.integers(0, size)) for size in x.shape)
    step = tuple(_size(random, 3) for _ in x.shape)
    most = [(size - begin - 1) // by + 1 for size, begin, by in zip(x.shape, start, step, strict=True)]
    return Cut("cut", x, Array("y", tuple(_size(random, each) for each in most)), start, step)  # type: ignore[arg-type]


def reorder(random: np.random.Generator) -> Reorder:
    sizes = tuple(_size(random, 4) for _ in range(_size(random, 5)))
    order = tuple(int(place) for place in random.permutation(len(sizes)))
    x = Array("x", (1, int(np.prod(sizes[:-1])), sizes[-1]))
    after = [sizes[place] for place in order]
    return Reorder("reorder", x, Array("y", (1, int(np.prod(after[:-1])), after[-1])), sizes, order)


def conv(random: np.random.Generator) -> Conv:
    """Dense, grouped, depthwise or linear, some of them mostly zeros."""
    which = random.choice(["plain", "grouped", "depthwise", "linear"])
    x = Array("x", (1, _size(random), _size(random, 40))) if which == "linear" else _array("x", random)
    groups = {"plain": 1, "linear": 1, "grouped": _size(random, 3), "depthwise": x.shape[2]}[which]
    inputs = 1 if which == "depthwise" else _size(random, 6)
    x = replace(x, shape=(*x.shape[:2], inputs * groups)) if which != "linear" else x
    inputs = x.shape[2] // groups
    outputs = groups * _size(random, 2 if which == "depthwise" else 9)
    kernel = (1, 1) if which == "linear" else (_size(random, 4), _size(random, 4))
    stride, dilation = (
        ((1, 1), (1, 1)) if which == "linear" else ((_size(random, 2), _size(random, 3)), (_size(random, 2), _size(random, 2)))
    )
    span = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    padding = [int(random.integers(0, 3)) if which != "linear" else 0 for _ in range(4)]
    for axis in (0, 1):
        padding[2 * axis] += max(0, span[axis] - x.shape[axis] - padding[2 * axis] - padding[2 * axis + 1])
    out = [(x.shape[axis] + padding[2 * axis] + padding[2 * axis + 1] - span[axis]) // stride[axis] + 1 for axis in (0, 1)]
    weight = random.normal(size=(outputs, *kernel, inputs)).astype(np.float32)
    weight[random.random(weight.shape) < random.choice([0.0, 0.5, 0.95])] = 0
    bias = random.normal(size=outputs).astype(np.float32)
    low, high = [(-np.inf, np.inf), (0.0, np.inf), (0.0, 2.0)][int(random.integers(3))]
    return Conv("conv", x, Array("y", (*out, outputs)), weight, bias, stride, tuple(padding), dilation, groups, low, high)  # type: ignore[arg-type]


MAKERS = (pool, mean, add, multiply, concat, table, softmax, pad, cut, reorder)


def of_kind(layer: Layer, kind: str, random: np.random.Generator) -> Layer:
    """A layer in integers, for ranges at random."""
    ranges = {array.name: tuple(sorted(random.normal(0, 3, 2))) for array in (*read(layer), *written(layer))}
    if random.random() < 0.3 and isinstance(layer, Concat):
        ranges = dict.fromkeys(ranges, (-1.0, 2.0))
    if random.random() < 0.3 and isinstance(layer, (Add, Multiply)):  # a result that saturates, or one that hardly moves
        factor = float(random.choice([1e-6, 300]))
        ranges["y"] = ranges["y"][0] * factor, ranges["y"][1] * factor
    return quantised(Network((), (), (layer,)), ranges, kind).layers[0]  # type: ignore[arg-type]


def many(kind: str, seed: int, each: int, makers: tuple = MAKERS) -> list[trials.Trial]:
    random = np.random.default_rng(seed)
    found = []
    for maker in (*makers, *(() if kind == "int8" else (conv,))):
        for number in range(each if maker is not conv else 2 * each):
            call = call_of(of_kind(maker(random), kind, random), f"{maker.__name__}_{number}")
            found.append(trials.trial(call, random, shared=call.in_place is not None and number % 2 == 0))
    return found


@needs_compiler
@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
def test_random_layers_answer_as_the_reference(kind: str) -> None:
    assert trials.wrong_on_host(many(kind, 0, 20)) == []


@needs_emulator
@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
def test_random_layers_on_emulated_cores(kind: str) -> None:
    assert trials.counted(many(kind, 1, 8), M4)[0] == []
    assert trials.counted(many(kind, 2, 2), M0 if kind == "int8" else M3)[0] == []


@needs_compiler
def test_all_kernels_stand_in_one_file() -> None:
    """Networks mix them as they like: no two have a name in common, and each of them is in the order."""
    there = {path.name for path in Path(secateurs.firmware.__file__).with_name("c").glob("*.c")}
    assert there <= set(KERNELS)
    parts = ["#include <math.h>\n#include <stdint.h>\n#include <string.h>", *(kernel(name) for name in KERNELS if name in there)]
    on_host({"main.c": "\n".join([*parts, "int main(void) {\n    return 0;\n}\n"])}, ("-Wno-unused-function",))


def in_parts(layer: Pool | Conv, prefix: str, random: np.random.Generator) -> Call:
    """A layer as four calls, each on a part of its arrays that begins where the last one ended."""
    whole, statements = call_of(layer, prefix), []
    cuts = [sorted({0, int(random.integers(0, size)), size}) for size in layer.y.shape[:2]]
    window = layer.window if isinstance(layer, Pool) else layer.kernel
    for top, bottom in pairwise(cuts[0]):
        for left, right in pairwise(cuts[1]):
            begin, size, around = [], [], []
            for axis, (first, end) in enumerate(((top, bottom), (left, right))):
                start = first * layer.stride[axis] - layer.padding[2 * axis]
                stop = (end - 1) * layer.stride[axis] - layer.padding[2 * axis] + layer.dilation[axis] * (window[axis] - 1) + 1
                begin.append(max(0, start))
                around.append(begin[axis] - start)
                size.append(min(layer.x.shape[axis], stop) - begin[axis])
            (_, in_w, inputs), (_, out_w, outputs) = layer.x.shape, layer.y.shape
            place = Place(*size, in_w * inputs, bottom - top, right - left, out_w * outputs, *around)
            x, y = (begin[0] * in_w + begin[1]) * inputs, (top * out_w + left) * outputs
            call = call_of(layer, prefix, place)
            statements.append(call.statement.replace("{x}", f"{{x}} + {x}").replace("{y}", f"{{y}} + {y}"))
    return replace(whole, statement="\n".join(statements))


@needs_compiler
@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
def test_parts_together_are_the_whole(kind: str) -> None:
    random, found = np.random.default_rng(5), []
    for number in range(30):
        layer = of_kind(pool(random) if number % 2 or kind == "int8" else conv(random), kind, random)
        assert isinstance(layer, (Pool, Conv))
        found.append(trials.trial(in_parts(layer, f"layer_{number}", random), random))
    assert trials.wrong_on_host(found) == []


def _bad_layers() -> dict[str, tuple[Layer, str]]:
    """Layers whose numbers do not fit a kernel, and what is told."""

    def array(name: str, *shape: int, kind: str = "int8", scale: float = 0.1) -> Array:
        return Array(name, shape, kind, scale)  # type: ignore[arg-type]

    one = Rescale(np.array([1 << 30], np.int32), np.array([0], np.int32))
    large = Rescale(np.array([1 << 30], np.int32), np.array([40], np.int32))
    wide, far = array("x", 2, 2, 40_000), array("x", 3000, 3000, 1)
    weight = np.ones((1, 1, 1, 40_000), np.float32)
    nine = tuple([2] * 9)
    x, y = array("x", 1, 2, 3), array("y", 1, 2, 3)
    x16, y16 = array("x", 1, 2, 3, kind="int16"), array("y", 1, 2, 3, kind="int16")
    heavy = Conv("conv", x16, y16, np.ones((3, 1, 1, 3), np.int8), np.full(3, 1 << 50, np.int64), rescale=one)
    recurrent = Recurrent("gru", x, y, *(np.ones(size, np.int8) for size in ((9, 3), (9, 3), 9, 9)), True)
    return {
        "wide pool": (
            Pool("pool", wide, array("y", 1, 1, 40_000), True, (2, 2), (2, 2)),
            "pool: sizes above 32767 .* split the layer",
        ),
        "wide conv": (
            Conv(
                "conv",
                array("x", 1, 1, 40_000, kind="float32"),
                array("y", 1, 1, 1, kind="float32"),
                weight,
                np.ones(1, np.float32),
            ),
            "conv: sizes above 32767 .* split the layer",
        ),
        "far mean": (Mean("mean", far, array("y", 1, 1, 1), one), "mean: the sum over 9000000 places can reach 2295000000"),
        "softmax": (Softmax("softmax", wide, wide, np.ones(256, np.uint32)), "softmax: softmax over 40000 channels"),
        "add": (
            Add("add", x, x, y, of_x=large, of_other=one, rescale=one),
            "add: a term is more than half of what its sums are in",
        ),
        "concat": (
            Concat("concat", (x16,), y16, (Rescale(np.array([1 << 30], np.int32), np.array([20], np.int32)),)),
            "concat: a factor of 1.05e[+]06 from its numbers to those of its result",
        ),
        "wide mean": (Mean("mean", x16, array("y", 1, 1, 3, kind="int16"), large), "mean: a factor of .* or more between its sums"),
        "heavy conv": (heavy, f"conv: sums can reach .*, more than kernels take \\({1 << 47}\\)"),
        "recurrent": (recurrent, "gru: it has arrays of int8, but no factors for integers; quantise the network first"),
        "reorder": (
            Reorder("reorder", array("x", 1, 1, 512), array("y", 1, 1, 512), nine, tuple(range(8, -1, -1))),
            "reorder: 9 loops over sizes .* where the kernel has 8; reorder in two steps",
        ),
    }


@pytest.mark.parametrize("which", _bad_layers())
def test_what_does_not_fit_a_kernel_is_told(which: str) -> None:
    layer, message = _bad_layers()[which]
    with pytest.raises(FirmwareError, match=message):
        call_of(layer, "layer")


def test_a_layer_without_a_kernel_is_told() -> None:
    x = Array("x", (1, 1, 1), "int8")
    with pytest.raises(FirmwareError, match="odd: there is no kernel for SimpleNamespace in int8"):
        call_of(SimpleNamespace(name="odd", x=x, y=x), "odd")  # type: ignore[arg-type]
