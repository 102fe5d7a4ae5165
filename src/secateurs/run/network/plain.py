"""What kernels may read: numbers that lie in memory as they are, while nobody follows torch's operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from secateurs.nested import changed, leaves
from secateurs.run.network.error import CompileError

_keys = torch._C._dispatch_keys
with torch.inference_mode():
    _PLAIN = {_keys(torch.empty(0, device="cpu")).raw_repr()}
_PLAIN.add(_keys(torch.empty(0, device="cpu")).raw_repr())
"""What torch dispatches on for tensors on the CPU without any peculiarity. Sparse, negated, conjugated, wrapped tensors and whatever
torch may invent have other keys."""


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but numbers in the CPU's memory, a stride apart.

    >>> is_plain(torch.ones(2)), is_plain(torch._neg_view(torch.ones(2)))
    (True, False)
    """
    return type(tensor) in (Tensor, nn.Parameter) and _keys(tensor).raw_repr() in _PLAIN


def only_torch(nest: Any) -> str | None:
    """Why only torch can run a model on these inputs at this moment; None where kernels can.

    Raises `CompileError` for a tensor whose memory was freed, which nobody can read.

    >>> only_torch(torch.ones(2)), only_torch([torch.ones(2).to_sparse()])
    (None, 'the input[0] is a torch.sparse_coo tensor')
    """
    follower = _follower()
    if follower is not None:
        return f"{follower} follows torch's operations, and kernels are none"
    for path, leaf in leaves(nest):
        found = _peculiarity(leaf) if isinstance(leaf, Tensor) else None
        if found is not None:
            return f"the input{path} {found}"
        if isinstance(leaf, Tensor) and is_plain(leaf) and leaf.numel() and not leaf.data_ptr():
            raise CompileError(f"the input{path} of {tuple(leaf.shape)} has no memory any more: its storage was freed")
    return None


def is_followed() -> bool:
    """Whether something follows torch's operations: what it does not see would be missing."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def accepting(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[Any], bool]:
    """Whether something is a plain tensor of this shape and dtype, at a moment when nothing follows torch's operations: one quick look
    at what nearly every call brings.

    >>> accepts = accepting((2,), torch.float32)
    >>> accepts(torch.ones(2)), accepts(torch.ones(3)), accepts(torch._neg_view(torch.ones(2)))
    (True, False, False)
    """
    dispatching, tracing, transforming = (
        torch._C._len_torch_dispatch_stack,
        torch._C._get_tracing_state,
        torch._C._functorch.peek_interpreter_stack,
    )
    strided = torch.strided

    def accepts(x: Any) -> bool:
        return (
            type(x) is Tensor
            and not dispatching()
            and tracing() is None
            and transforming() is None
            and forward_ad._current_level < 0
            and x.layout is strided  # from here on what `is_plain` says in one word, which takes longer to ask for
            and x.is_cpu
            and not x.is_nested
            and not x.is_neg()
            and not x._is_zerotensor()
            and not x.requires_grad
            and x.dtype is dtype
            and x.shape == shape
        )

    return accepts


def resolved(nest: Any) -> Any:
    """The same inputs with lazily negated, conjugated and zero tensors written out, and without their history.

    >>> resolved((torch._neg_view(torch.ones(2)), 3))
    (tensor([-1., -1.]), 3)
    """
    lazy = any(isinstance(leaf, Tensor) and (leaf.requires_grad or not is_plain(leaf)) for _, leaf in leaves(nest))
    return changed(nest, written_out, objects=True) if lazy else nest


def in_memory(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it, whose numbers lie one after the other as they are."""
    return (tensor if is_plain(tensor) else written_out(tensor)).contiguous()


def written_out(tensor: Tensor) -> Tensor:
    """The tensor's numbers without its history; lazily negated, conjugated and zero ones in memory of their own."""
    tensor = tensor.detach()
    if tensor._is_zerotensor():
        return torch.zeros_like(tensor)
    return tensor.resolve_conj().resolve_neg()


def _follower() -> str | None:
    if not is_followed():
        return None
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if torch._C._len_torch_dispatch_stack():
        return type(torch.utils._python_dispatch._get_current_dispatch_mode()).__name__
    return "forward-mode differentiation" if forward_ad._current_level >= 0 else "a transform of torch.func"


def _peculiarity(tensor: Tensor) -> str | None:
    if tensor.requires_grad and torch.is_grad_enabled():
        return "requires gradients, which kernels do not compute (call it under torch.no_grad() if you need none)"
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is a {type(tensor).__name__}"
    if tensor.device.type != "cpu" or is_plain(tensor):
        return None
    if tensor.layout is not torch.strided:
        return f"is a {tensor.layout} tensor"
    return None if is_plain(written_out(tensor)) else f"is a tensor with {_keys(tensor)}"
