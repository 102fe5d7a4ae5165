"""Every kernel on every instruction set against plain references: shapes, strides, paddings and sparsities from 0 to 1."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from secateurs.run.choosing.table import KERNELS, candidates
from secateurs.run.kernels import spmm as packing
from secateurs.run.kernels.machine import InstructionSet, available, native_module
from secateurs.run.network.nodes import (
    Activate,
    Activation,
    Add,
    Affine,
    Concat,
    Conv,
    Linear,
    Mean,
    Network,
    Node,
    Pool,
    Scale,
    Value,
)
from secateurs.run.planning import layers
from secateurs.run.planning.homes import Homes, Segment
from secateurs.run.planning.layers import SINGLE, Choice
from secateurs.run.planning.layout import Packed, grid_for, read_tiles, stretches, tokens_for, written_tiles
from secateurs.run.planning.masked import is_masked
from secateurs.run.planning.plan import plan
from secateurs.run.planning.runner import Runner
from secateurs.run.planning.windows import windows

pytestmark = pytest.mark.skipif(not available(), reason="secateurs was installed without its kernels")

each_isa = pytest.mark.parametrize("isa", available(), ids=lambda isa: isa.name)
fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": functional.relu,
    "hard_swish": functional.hardswish,
    "hard_sigmoid": functional.hardsigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def run(
    nodes: Sequence[Node],
    inputs: dict[Value, Tensor],
    out: Value,
    isa: InstructionSet,
    threads: int = 1,
    choice: Choice | None = None,
    direct: bool = True,
) -> Tensor:
    """What nodes give, with everything that has kernels run by them."""
    network = Network(tuple(inputs), list(nodes), out)
    choices = dict.fromkeys(nodes, choice) if choice else {}
    made = plan(network, isa, threads, choices, direct)
    assert all(isinstance(item, Segment) for item in made.items), "something did not run on kernels"
    (found,) = Runner(network, made, threads)(*inputs.values())
    return found


def agree(found: Tensor, expected: Tensor, tolerance: float = 3e-6) -> None:
    """Equal up to float32's rounding of sums."""
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * scale)


def zeros_like_blocks(weight: Tensor, height: int, sparsity: float, generator: torch.Generator) -> Tensor:
    """The weight with that share of its places removed, whole blocks of rows at a time."""
    rows = len(weight)
    block = height if rows % height == 0 else 1
    stays = torch.rand((rows // block, *weight.shape[1:]), generator=generator) >= sparsity
    return weight * stays.repeat_interleave(block, 0)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """A convolution of any kind, small; the masked ones keep the image's size."""
    way = draw(st.sampled_from(["straight to the image", "by panels", "in bands", "in bands by panels", "masked"]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 2)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    if way == "masked":
        kernel, stride = (kernel[0] // 2 * 2 + 1, kernel[1] // 2 * 2 + 1), (1, 1)
        padding = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
    least = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    return {
        "images": draw(st.integers(1, 3)),
        "size": tuple(draw(st.integers(smallest, smallest + 22)) for smallest in least),
        "inputs": draw(st.integers(1, 7)),
        "outputs": draw(st.integers(1, 9)),
        "depthwise": draw(st.booleans()) and groups == 1,
        "groups": groups,
        "kernel": kernel,
        "dilation": dilation,
        "padding": padding,
        "stride": stride,
        "sparsity": draw(st.sampled_from([0.0, 0.3, 0.7, 0.9, 0.99, 1.0])),
        "height": 4 if way == "masked" else draw(st.sampled_from([1, 4])),
        "of_group": draw(st.sampled_from([1, 4])),
        "block": draw(st.sampled_from([256, 2048, 24 * 1024])),
        "activation": draw(st.sampled_from([None, *ACTIVATIONS])),
        "residual": way != "masked" and draw(st.booleans()),
        "bias": draw(st.booleans()),
        "threads": draw(st.integers(1, 3)),
        "way": way,
        "seed": draw(st.integers(0, 99)),
    }


@each_isa
@settings(fuzz, max_examples=200)
@given(case=convolutions())
def test_a_convolution_is_torchs(isa: InstructionSet, case: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(case["seed"])
    groups = case["inputs"] if case["depthwise"] else case["groups"]
    inputs = case["inputs"] if case["depthwise"] else case["inputs"] * groups
    outputs = case["outputs"] * groups * case["of_group"]
    x = torch.randn(case["images"], inputs, *case["size"], generator=generator)
    dense = torch.randn(outputs, inputs // groups, *case["kernel"], generator=generator)
    weight = zeros_like_blocks(dense, case["height"], case["sparsity"], generator)
    bias = torch.randn(outputs, generator=generator) if case["bias"] else None
    how = (case["stride"], case["padding"], case["dilation"])
    expected = functional.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), *how, groups)
    given_values = {Value(tuple(x.shape)): x}
    residual = None
    if case["residual"]:
        residual = Value(tuple(expected.shape))
        given_values[residual] = torch.randn(expected.shape, generator=generator)
        expected = expected + given_values[residual]
    activation = None if case["activation"] is None else Activation(case["activation"])
    if activation is not None:
        expected = ACTIVATIONS[activation.kind](expected)
    out = Value(tuple(expected.shape))
    first = next(iter(given_values))
    node = Conv("conv", first, out, weight, bias, *how, groups, residual, activation)
    seen = 1 if "bands" in case["way"] else layers._SEEN
    choice, direct = Choice(case["height"], case["block"], case["way"] == "masked"), "panels" not in case["way"]
    with mock.patch.object(layers, "_SEEN", seen):
        found = run([node], given_values, out, isa, case["threads"], choice, direct)
    agree(found, expected)


@each_isa
def test_blocks_of_an_image_may_be_masked(isa: InstructionSet) -> None:
    x, out = Value((1, 8, 56, 56)), Value((1, 8, 56, 56))
    node = Conv("conv", x, out, torch.ones(8, 8, 3, 3), None, padding=(1, 1))
    (segment,) = plan(Network((x,), [node], out), isa, 1, {node: Choice(4, masked=True)}).items
    assert isinstance(segment, Segment)
    assert {name for name, _ in segment.tasks} == {"conv"}, "nothing is copied before it or after it"
    homes = Homes(isa, 1, {x}, {out})
    assert is_masked(homes, node, Choice(4, masked=True))
    assert not is_masked(homes, node, Choice(4)) and not is_masked(homes, node, Choice(1, masked=True))
    assert not is_masked(Homes(isa, 1, {x}, set()), node, Choice(4, masked=True)), "others want panels of it"


@each_isa
def test_masks_are_tried_where_they_can_be_used(isa: InstructionSet) -> None:
    x, half = Value((1, 8, 56, 56)), Value((1, 8, 28, 28))
    tall = torch.ones(8, 8, 3, 3)
    thin = torch.eye(8)[:, :, None, None].expand(8, 8, 3, 3)
    nodes = {
        "blocks": Conv("conv", x, Value((1, 8, 56, 56)), tall, None, padding=(1, 1)),
        "strided": Conv("conv", x, half, tall, None, stride=(2, 2), padding=(1, 1)),
        "with a residual": Conv("conv", x, Value((1, 8, 56, 56)), tall, None, padding=(1, 1), residual=Value((1, 8, 56, 56))),
        "single weights": Conv("conv", x, Value((1, 8, 56, 56)), thin, None, padding=(1, 1)),
        "one position": Conv("conv", x, Value((1, 8, 56, 56)), tall[..., :1, :1], None),
    }
    tried = {name for name, node in nodes.items() if any(choice.masked for choice in candidates(node, isa))}
    assert tried == ({"blocks"} if isa.name == "avx512" else set())


@each_isa
def test_what_a_mask_hides_is_not_used(isa: InstructionSet) -> None:
    """Beside each row lies the end of the one before, and around the image lie other images."""
    x = torch.zeros(3, 4, 5, 18)
    x[0] = x[2] = x[1, :, :, -1] = torch.inf
    weight = torch.ones(4, 4, 3, 3)
    given, out = Value(tuple(x[1:2].shape)), Value((1, 4, 5, 18))
    node = Conv("conv", given, out, weight, None, padding=(1, 1))
    found = run([node], {given: x[1:2]}, out, isa, choice=Choice(4, masked=True))
    assert (found[..., :-2] == 0).all() and found[..., -2:].isposinf().all()


@pytest.fixture
def fenced() -> Iterator[Tensor]:
    """A page of numbers between two pages that nobody may touch: who does, dies."""
    page = mmap.PAGESIZE
    held = mmap.mmap(-1, 3 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(held))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for fence in (start, start + 2 * page):
        assert protect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    numbers = torch.frombuffer(held, dtype=torch.float32, offset=page, count=page // 4)
    yield numbers.copy_(torch.randn(page // 4, generator=torch.Generator().manual_seed(0)))
    for fence in (start, start + 2 * page):
        assert protect(ctypes.c_void_p(fence), ctypes.c_size_t(page), mmap.PROT_READ | mmap.PROT_WRITE) == 0


@each_isa
@pytest.mark.parametrize("choice", [Choice(1), Choice(4), Choice(4, masked=True)], ids=["1x1", "4x1", "masked"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_nothing_outside_of_an_image_is_touched(isa: InstructionSet, choice: Choice, kernel: int, fenced: Tensor) -> None:
    for size in ((16, 16), (8, 64), (2, 2)):
        x = fenced.view(1, -1, *size)
        weight = torch.randn(4, x.shape[1], kernel, kernel, generator=torch.Generator().manual_seed(1))
        given, out = Value(tuple(x.shape)), Value((1, 4, *size))
        node = Conv("conv", given, out, weight, None, padding=(kernel // 2, kernel // 2))
        found = run([node], {given: x}, out, isa, choice=choice)
        agree(found, functional.conv2d(x.double(), weight.double(), padding=kernel // 2))


@each_isa
@pytest.mark.parametrize("size", [(7, 7), (1, 17), (3, 11)])
@pytest.mark.parametrize("kind", ["clamp", "gelu"])
@pytest.mark.parametrize("height", [1, 4])
def test_a_position_that_is_left_over_is_computed_alone(isa: InstructionSet, size: tuple[int, int], kind: str, height: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, more = torch.randn(2, 40, *size, generator=generator), torch.randn(2, 24, *size, generator=generator)
    weight = zeros_like_blocks(torch.randn(24, 40, 1, 1, generator=generator), height, 0.8, generator)
    bias = torch.randn(24, generator=generator)
    given, residual, out = Value(tuple(x.shape)), Value(tuple(more.shape)), Value(tuple(more.shape))
    node = Conv("conv", given, out, weight, bias, residual=residual, activation=Activation(kind))
    for threads in (1, 2):
        found = run([node], {given: x, residual: more}, out, isa, threads, Choice(height))
        agree(found, ACTIVATIONS[kind](functional.conv2d(x.double(), weight.double(), bias.double()) + more))
    (segment,) = plan(Network((given, residual), [node], out), isa, 1, {node: Choice(height)}).items
    assert isinstance(segment, Segment)
    assert [name for name, _ in segment.tasks].count("conv") == (2 if isa.lanes == 16 else 1)


@fuzz
@given(height=st.integers(1, 40), width=st.integers(1, 60), lanes=st.sampled_from([4, 8, 16]))
def test_stretches_hold_every_position_once(height: int, width: int, lanes: int) -> None:
    grid = grid_for(height, width, lanes, whole_rows=True)
    assume(grid.across > 1 and grid.tile_width <= lanes // 2)
    found = stretches(grid)
    written = [
        start + place
        for start, bits in zip(found.origins.ravel().tolist(), found.there.ravel().tolist(), strict=True)
        for place in range(lanes)
        if bits >> place & 1
    ]
    assert sorted(written) == list(range(height * width))


@fuzz
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    span=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    lanes=st.sampled_from([4, 8, 16]),
)
def test_what_lanes_borrow_from_each_other_is_what_they_see(
    size: tuple[int, int], span: tuple[int, int], stride: int, lanes: int
) -> None:
    grid = grid_for(*size, lanes)
    for found in windows(
        grid, span, (stride, stride), (span[0] // 2, span[1] // 2), (1, 1), (size[0] * stride, size[1] * stride), 1
    ):
        rows, columns, _ = found.seen.shape
        read = read_tiles(found.seen, np.arange(rows * columns) * lanes, found.across, found.apart, size[0] * size[1] * stride**2)
        for column in range(read.own, columns):
            lent = found.seen[:, column - read.apart][:, np.maximum(read.neighbour, 0)]
            assert np.array_equal(np.where(read.neighbour < 0, -1, lent), found.seen[:, column])
        assert read.own == columns or read.own % (lanes // 2) == 0


def test_lanes_borrow_what_would_take_another_part() -> None:
    grid = grid_for(28, 28, 16)
    (found,) = windows(grid, (3, 3), (1, 1), (1, 1), (1, 1), (28, 28))
    read = read_tiles(found.seen, np.arange(found.seen.size // 16) * 16, found.across, found.apart, 28 * 28)
    assert (found.seen.shape[1], read.own) == (9, 8)


@each_isa
@fuzz
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=2),
    tokens=st.integers(1, 150),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 20),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    height=st.sampled_from([1, 4]),
    activation=st.sampled_from([None, "clamp", "gelu"]),
    has_residual=st.booleans(),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_a_linear_layer_is_torchs(
    isa: InstructionSet, shape: list[int], tokens: int, inputs: int, outputs: int, sparsity: float, height: int,
    activation: str | None, has_residual: bool, threads: int, seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, tokens, inputs, generator=generator)
    weight = zeros_like_blocks(torch.randn(4 * outputs, inputs, generator=generator), height, sparsity, generator)
    bias = torch.randn(4 * outputs, generator=generator)
    expected = functional.linear(x.double(), weight.double(), bias.double())
    given_values = {Value(tuple(x.shape)): x}
    residual = Value(tuple(expected.shape)) if has_residual else None
    if residual is not None:
        given_values[residual] = torch.randn(expected.shape, generator=generator)
        expected = expected + given_values[residual]
    expected = ACTIVATIONS[activation](expected) if activation else expected
    out = Value(tuple(expected.shape))
    node = Linear("fc", next(iter(given_values)), out, weight, bias, residual, Activation(activation) if activation else None)
    found = run([node], given_values, out, isa, threads, Choice(height, 1024))
    # With AVX-512 a few vectors are multiplied in a format that moves each weight by up to 2e-6 of itself.
    rounded = x.numel() // inputs <= SINGLE and isa.lanes == 16
    agree(found, expected, 2e-5 if rounded else 3e-6)


@each_isa
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [2, 8])
def test_rows_of_different_groups_never_share_places(isa: InstructionSet, kernel: int, groups: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 8, 9, 9), torch.randn(8, 8 // groups, kernel, kernel)
    start, out = Value((1, 8, 9, 9)), Value((1, 8, 9, 9))
    node = Conv("conv", start, out, weight, None, padding=(kernel // 2, kernel // 2), groups=groups)
    expected = functional.conv2d(x.double(), weight.double(), padding=kernel // 2, groups=groups)
    agree(run([node], {start: x}, out, isa, choice=Choice(4)), expected)
    assert all(choice.height == 1 for choice in candidates(node, isa)) == (groups == 8)


@each_isa
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (16, 16), (5, 23)])
@pytest.mark.parametrize("groups", [1, 2])
def test_pointwise_convolutions_one_after_the_other(isa: InstructionSet, size: tuple[int, int], groups: int) -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(2, 6, *size), [torch.randn(6, 6 // groups, 1, 1) for _ in range(3)]
    values = [Value(tuple(x.shape)) for _ in range(4)]
    relu = Activation("clamp")
    nodes = [  # the first reads what torch has, the others panels of it
        Conv("one", values[0], values[1], weights[0], None, groups=groups, activation=relu),
        Conv("two", values[1], values[2], functional.pad(weights[1], (1, 1, 1, 1)), None, padding=(1, 1), groups=groups),
        Conv("three", values[2], values[3], weights[2], None, groups=groups, residual=values[1]),
    ]
    one = functional.relu(functional.conv2d(x.double(), weights[0].double(), groups=groups))
    two = functional.conv2d(one, weights[1].double(), groups=groups)
    agree(run(nodes, {values[0]: x}, values[3], isa), functional.conv2d(two, weights[2].double(), groups=groups) + one)


@each_isa
@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(("window", "stride", "padding", "size"), [(3, 2, 1, (15, 17)), (2, 2, 0, (28, 28)), (3, 1, 1, (7, 5))])
def test_pooling_is_torchs(isa: InstructionSet, kind: str, window: int, stride: int, padding: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size)
    weight = functional.pad(torch.eye(5)[:, :, None, None], (1, 1, 1, 1))  # 3x3, so that what it gives lies in panels
    middle, start = Value((2, 5, *size)), Value((2, 5, *size))
    if kind == "max":
        expected = functional.max_pool2d(x.double(), window, stride, padding)
    else:
        expected = functional.avg_pool2d(x.double(), window, stride, padding, count_include_pad=False)
    out = Value(tuple(expected.shape))
    first = Conv("identity", start, middle, weight, None, padding=(1, 1))
    pool = Pool("pool", middle, out, kind, (window, window), (stride, stride), (padding, padding), counts_padding=False)
    agree(run([first, pool], {start: x}, out, isa), expected)


def image_network(size: tuple[int, int], seed: int) -> tuple[list[Node], dict[Value, Tensor], Value, Tensor]:
    """Everything that is done in panels, and what it comes to."""
    torch.manual_seed(seed)
    x = torch.randn(2, 6, *size)
    shape = tuple(x.shape)
    values = [Value(shape) for _ in range(7)]
    weight, scale, shift = torch.randn(6, 6, 3, 3), torch.rand(6), torch.randn(6)
    mean, joined, out = Value((2, 6, 1, 1)), Value((2, 12, *size)), Value((2, 12))
    relu, hard = Activation("clamp"), Activation("hard_swish")
    nodes: list[Node] = [
        Conv("conv", values[0], values[1], weight, None, padding=(1, 1)),
        Affine("bn", values[1], values[2], scale, shift, relu),
        Mean("squeeze", values[2], mean),
        Scale("excite", values[2], mean, values[3]),
        Add("add", values[3], values[1], values[4], relu),
        Activate("act", values[4], values[5], hard),
        Concat("cat", (values[5], values[2]), joined),
        Mean("mean", joined, out),
    ]
    one = functional.conv2d(x.double(), weight.double(), padding=1)
    two = functional.relu(one * scale[:, None, None] + shift[:, None, None])
    three = two * two.mean((2, 3), keepdim=True)
    five = functional.hardswish(functional.relu(three + one))
    return nodes, {values[0]: x}, out, torch.cat([five, two], 1).mean((2, 3))


@each_isa
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (14, 14), (31, 9)])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_done_between_convolutions(isa: InstructionSet, size: tuple[int, int], threads: int) -> None:
    nodes, inputs, out, expected = image_network(size, seed=1)
    agree(run(nodes, inputs, out, isa, threads), expected)


@each_isa
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_those_of_float64(isa: InstructionSet, kind: str) -> None:
    x = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, -0.0, 1e-40, -1e-40, 100.0, -100.0, 1e30, -1e30])])
    expected = ACTIVATIONS[kind](x.double())
    found = x.clone()
    code = ["clamp", "hard_swish", "hard_sigmoid", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"].index(kind)
    native_module().activate(isa.name, code, 0.0, float("inf"), found.data_ptr(), len(found))
    error = (found.double() - expected).abs() / expected.abs().clamp_min(1)
    assert float(error.max()) < 4e-7


@each_isa
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_nan_stays_nan(isa: InstructionSet, kind: str) -> None:
    x = torch.tensor([float("nan")] * 20)
    code = ["clamp", "hard_swish", "hard_sigmoid", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh"].index(kind)
    native_module().activate(isa.name, code, 0.0, 6.0, x.data_ptr(), len(x))
    assert x.isnan().all()


@each_isa
def test_nan_weights_and_inputs_give_nan_where_torch_has_them(isa: InstructionSet) -> None:
    weight = torch.randn(8, 4, 3, 3)
    weight[2, 1, 0, 0] = float("nan")
    x = torch.randn(1, 4, 9, 9)
    x[0, 0, 4, 4] = float("nan")
    expected = functional.relu(functional.conv2d(x, weight, padding=1))
    start, out = Value((1, 4, 9, 9)), Value((1, 8, 9, 9))
    found = run([Conv("conv", start, out, weight, None, padding=(1, 1), activation=Activation("clamp"))], {start: x}, out, isa)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any() and not found.isnan().all()


@each_isa
def test_denormals_are_not_flushed(isa: InstructionSet) -> None:
    tiny = torch.full((1, 16, 4, 4), 1e-40)
    weight = torch.eye(16)[:, :, None, None].contiguous()
    start, out = Value((1, 16, 4, 4)), Value((1, 16, 4, 4))
    assert torch.equal(run([Conv("conv", start, out, weight, None)], {start: tiny}, out, isa), tiny)
    assert float(torch.tensor(1e-40) * 1) > 0, "torch flushes denormals after our kernels ran"


@fuzz
@given(
    rows=st.integers(1, 12), inputs=st.integers(1, 30), sparsity=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    height=st.sampled_from([1, 4]), blocks=st.integers(1, 5), chunks=st.integers(1, 4), seed=st.integers(0, 99),
)  # fmt: skip
def test_packed_weights_decode_to_the_matrix(
    rows: int, inputs: int, sparsity: float, height: int, blocks: int, chunks: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    weight = (generator.normal(size=(rows * height, inputs)) * (generator.random((rows * height, inputs)) >= sparsity)).astype(
        np.float32
    )
    bias = generator.normal(size=rows * height).astype(np.float32)
    places = np.arange(inputs)
    packed = packing.pack(weight, places[None] * 3, places[None] % blocks, height, min(chunks, rows))
    x = generator.normal(size=(inputs * 3 + 5)).astype(np.float32)
    expected = weight.astype(np.float64) @ np.stack([x[places * 3 + start] for start in (0, 2, 4)], 1) + bias[:, None]
    np.testing.assert_allclose(packing.reference(packed, bias, x, np.array([0, 2, 4])), expected, atol=1e-5)
    if height == 1:
        assert len(packed.offsets) == np.count_nonzero(weight)


@fuzz
@given(height=st.integers(1, 40), width=st.integers(1, 40), lanes=st.sampled_from([4, 8, 16]), channels=st.integers(1, 3))
def test_panels_hold_every_position_once(height: int, width: int, lanes: int, channels: int) -> None:
    grid = grid_for(height, width, lanes)
    held = grid.positions()
    assert sorted(held[held >= 0].tolist()) == list(range(height * width))
    layout = Packed(grid, channels)
    places = layout.addresses()
    assert len(set(places.tolist())) == height * width and places.max() < layout.image_stride
    found = written_tiles(held.reshape(grid.tile_height, grid.tile_width, lanes), layout.vectors())
    assert sum(bits.bit_count() for bits in found.there.ravel().tolist()) == height * width


@pytest.mark.parametrize("count", [1, 5, 16, 17, 128, 197, 1000])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_tokens_hold_every_position_once(count: int, lanes: int) -> None:
    held = tokens_for(count, lanes).positions()
    assert sorted(held[held >= 0].tolist()) == list(range(count))


def test_the_table_of_kernels_has_a_reference_for_each() -> None:
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS)
    for kernel in KERNELS:
        assert kernel.choices
        assert callable(kernel.reference)


@fuzz
@given(st.data())
def test_weights_are_packed_by_the_extension_as_by_numpy(data: st.DataObject) -> None:
    height, blocks = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.integers(1, 4))
    rows, inputs = height * data.draw(st.integers(1, 9)), data.draw(st.integers(blocks, 30))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    weight = generator.standard_normal((rows, inputs)).astype(np.float32)
    weight[generator.random(weight.shape) < data.draw(st.sampled_from([0, 0.5, 0.9, 1]))] = 0
    weight[:1, :1] = data.draw(st.sampled_from([0, 1, float("nan")]))
    offsets = generator.integers(0, 1000, (data.draw(st.sampled_from([1, rows])), inputs))
    block_of = np.sort(generator.integers(0, blocks, inputs))[None]
    chunks = data.draw(st.integers(1, rows // height))
    fast = packing.pack(weight, offsets, block_of, height, chunks)
    with mock.patch.object(packing, "_in_blocks", return_value=None):
        plain = packing.pack(weight, offsets, block_of, height, chunks)
    for name in ("rows", "offsets", "values", "blocks", "chunks", "counts"):
        one, other = getattr(fast, name), getattr(plain, name)
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes(), name
