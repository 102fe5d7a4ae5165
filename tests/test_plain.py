"""What is no plain memory never reaches a kernel, and nothing that follows torch's operations misses what kernels do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from secateurs.run import CompileError, available, compile
from secateurs.run.network.plain import in_memory, is_plain, resolved
from secateurs.types import TaskError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning", "ignore:Sparse CSR:UserWarning")
has_kernels = pytest.mark.skipif(not available(), reason="secateurs was installed without its kernels")


def thin(seed: int = 0) -> nn.Module:
    """So sparse that kernels run all of it."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(torch.rand_like(parameter) > 0.9)
    return model


class Turned(nn.Module):
    """Torch makes something lazy between kernels."""

    def __init__(self, lazy: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.lazy, self.second = thin(1), lazy, thin(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.lazy(nn.functional.pad(self.first(x), (0, 54))))


class Named(torch.Tensor):
    """A subclass like those of other libraries."""


class Followed(nn.Module):
    """A compiled model within another one."""

    def __init__(self, fast: Any) -> None:
        super().__init__()
        self.fast = fast

    def forward(self, x: Tensor) -> Tensor:
        return self.fast(x) * 2


def conjugate_imaginary(x: Tensor) -> Tensor:
    return torch.complex(x, x).conj().imag


LAZY: dict[str, Callable[[Tensor], Tensor]] = {
    "negated": torch._neg_view,
    "negated, a part": lambda x: torch._neg_view(torch.cat([x, x]))[: len(x)],
    "of a conjugate": conjugate_imaginary,
    "zero": lambda x: torch._efficientzerotensor(x.shape),
}
"""Tensors whose memory does not show their numbers."""

STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "subclass": lambda x: x.as_subclass(Named),
    "sparse": Tensor.to_sparse,
    "sparse rows": Tensor.to_sparse_csr,
    "another library's": Tensor.to_mkldnn,
}


@pytest.fixture(scope="module")
def fast() -> Any:
    return compile(thin(), torch.zeros(8, 64), threads=1, tune=False)


def dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


@has_kernels
@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("shape", [(8, 64), (3, 64)], ids=["the example's", "another"])
def test_lazy_inputs_count_with_the_numbers_that_they_stand_for(fast: Any, lazy: Callable[[Tensor], Tensor], shape: Any) -> None:
    x = lazy(torch.randn(shape))
    assert not is_plain(x)
    torch.testing.assert_close(fast(x), thin()(x))


@has_kernels
@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
def test_lazy_tensors_between_kernels_too(lazy: Callable[[Tensor], Tensor]) -> None:
    model, x = Turned(lazy).eval(), torch.randn(8, 64)
    torch.testing.assert_close(compile(model, x, threads=1, tune=False)(x), model(x), rtol=1e-4, atol=1e-6)


@has_kernels
def test_a_lazy_example_and_lazy_weights() -> None:
    model, x = nn.Linear(64, 48), torch._neg_view(torch.randn(8, 64))
    model.weight = nn.Parameter(torch._neg_view(model.weight.detach() * (torch.rand(48, 64) > 0.9)))
    assert model.weight.is_neg()
    torch.testing.assert_close(compile(model, x, threads=1, tune=False)(x), model(x).detach())


def test_a_layer_of_a_nest_is_resolved_and_the_rest_stays() -> None:
    plain, lazy = torch.ones(2), torch._neg_view(torch.ones(2))
    found = resolved({"a": plain, "b": (lazy, 3)})
    assert found["a"].data_ptr() == plain.data_ptr()
    assert found["b"][0].tolist() == [-1, -1] and is_plain(found["b"][0])
    assert in_memory(plain) is plain


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_strange_inputs_are_run_by_torch_which_is_told(strange: Callable[[Tensor], Tensor]) -> None:
    fast, x = compile(thin(), torch.zeros(8, 64), threads=1, tune=False), strange(torch.randn(8, 64))
    expected = thin()(x)
    with pytest.warns(RuntimeWarning, match=r"the input is a .*: torch runs the model"):
        found = fast(x)
    assert type(found) is type(expected)
    torch.testing.assert_close(dense(found), dense(expected))
    fast(x)  # a second warning would be an error
    with pytest.raises(CompileError, match=r"is a .*with plain tensors for an example"):
        compile(thin(), x, threads=1, tune=False)


@pytest.mark.filterwarnings("ignore:.*torch runs the model")
def test_gradients_flow_to_an_input_that_asks_for_them(fast: Any) -> None:
    x = torch.randn(8, 64, requires_grad=True)
    found, expected = (torch.autograd.grad(run(x).square().sum(), x)[0] for run in (fast, thin()))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert not fast(x).requires_grad
    compile(thin(), x, threads=1, tune=False)


def test_freed_memory_is_refused(fast: Any) -> None:
    x = torch.randn(8, 64)
    x.untyped_storage().resize_(0)
    with pytest.raises(CompileError, match=r"the input of \(8, 64\) has no memory any more"):
        fast(x)


def forward_mode(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(x, x + 1))).tangent


FOLLOWERS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "vmap": lambda run, x: torch.vmap(run)(torch.stack([x, x + 1])),
    "vmap around": lambda run, x: torch.vmap(lambda row: row * run(x).sum())(x),
    "grad": lambda run, x: torch.func.grad(lambda it: run(it).sum())(x),
    "jvp": lambda run, x: torch.func.jvp(run, (x,), (x + 1,))[1],
    "functionalize": lambda run, x: torch.func.functionalize(run)(x),
    "functionalize around": lambda run, x: torch.func.functionalize(lambda it: run(x) + it.sum())(x),
    "forward mode": forward_mode,
    "jit.trace": lambda run, x: torch.jit.trace(Followed(run), x)(x + 1),
    "make_fx": lambda run, x: make_fx(Followed(run))(x)(x + 1),
    "export": lambda run, x: torch.export.export(Followed(run), (x,)).module()(x + 1),
    "compile": lambda run, x: torch.compile(Followed(run), backend="eager")(x),
}


@pytest.mark.filterwarnings("ignore:.*torch runs the model")
@pytest.mark.parametrize("follow", FOLLOWERS.values(), ids=FOLLOWERS)
def test_what_follows_torchs_operations_sees_the_models(fast: Any, follow: Any) -> None:
    x = torch.randn(8, 64)
    torch.testing.assert_close(follow(fast, x), follow(thin(), x))


@pytest.mark.filterwarnings("ignore:.*torch runs the model")
def test_fake_tensors_give_shapes(fast: Any) -> None:
    with FakeTensorMode() as mode:
        assert fast(mode.from_tensor(torch.zeros(3, 64))).shape == (3, 10)
    assert fast(FakeTensorMode().from_tensor(torch.zeros(8, 64))).shape == (8, 10)


@pytest.mark.filterwarnings("ignore:.*torch runs the model")
def test_what_torch_cannot_follow_is_an_error_of_ours(fast: Any) -> None:
    with pytest.raises(
        CompileError, match=r"ProxyTorchDispatchMode follows torch's operations.*torch cannot run the model so either"
    ):
        make_fx(Followed(fast), tracing_mode="fake")(torch.zeros(8, 64))
    with pytest.raises(CompileError, match=r"FakeTensorMode follows torch's operations.*compile outside"), FakeTensorMode():
        compile(thin(), torch.zeros(8, 64), threads=1, tune=False)


@contextmanager
def functionalized() -> Iterator[None]:
    torch._enable_functionalization(reapply_views=True)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._disable_functionalization()  # type: ignore[attr-defined]


@has_kernels
def test_a_null_pointer_never_reaches_a_kernel(fast: Any) -> None:
    x = torch.randn(8, 64)
    with functionalized(), pytest.raises(CompileError, match="a tensor without memory"):  # what is allocated there has none
        fast(x)


def test_a_copy_is_the_compiled_model_itself_and_pickling_says_what_to_do(fast: Any) -> None:
    assert copy.copy(fast) is fast and copy.deepcopy({"fast": fast})["fast"] is fast
    with pytest.raises(CompileError, match=r"cannot be pickled.*secateurs\.save"):
        pickle.dumps(fast)


class Any32(nn.Module):
    """Its first layer takes any dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = thin()

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(x.to(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("make", [Any32, lambda: nn.Sequential(nn.Flatten(), nn.ReLU())], ids=["cast", "no weights"])
def test_a_dtype_that_torch_accepts_is_accepted(make: Any, dtype: torch.dtype) -> None:
    model, x = make().eval(), (4 * torch.randn(8, 64)).to(dtype)
    for fast in (compile(model, torch.zeros(8, 64), threads=1, tune=False), compile(model, x, threads=1, tune=False)):
        assert fast(x).dtype == model(x).dtype
        torch.testing.assert_close(fast(x), model(x))


def test_a_dtype_that_torch_rejects_is_rejected_in_words(fast: Any) -> None:
    with pytest.raises(TaskError, match=r"is torch.float64 but the model's weights are torch.float32: convert one of them"):
        fast(torch.zeros(8, 64, dtype=torch.float64))
