"""Several processes that train one model: what they must decide alike, and tensors of which each holds a shard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from secateurs.types import SecateursError

T = TypeVar("T")

_alone: ContextVar[bool] = ContextVar("alone", default=False)

WAY_OUT = "where each process has a model of its own, do it within `with secateurs.alone():`"


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process decides by itself, although it is one of many under `torch.distributed`.

    Outside, `prune_` and `train_` talk to the other processes, and wait for them: each must call them.

    >>> with alone():
    ...     count()
    1
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def count() -> int:
    """How many processes decide together: those of the default group, or this one alone."""
    together = not _alone.get() and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1


def rank() -> int:
    """Which of them this process is; the first where it is alone."""
    return 0 if count() == 1 else dist.get_rank()


def gathered(value: T) -> list[T]:
    """The value of every process, in order."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def of_first(value: T) -> T:
    """The first process's value, for all of them: what was measured, say, differs from one to the other."""
    if count() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@contextmanager
def together() -> Iterator[None]:
    """What fails in one process fails in all, so that none waits for one that is gone (but what waits within is not woken)."""
    if count() == 1:
        yield
        return
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    told = gathered(None if problem is None else f"{type(problem).__name__}: {problem}")
    if problem is not None:
        raise problem
    for rank, complaint in enumerate(told):
        if complaint is not None:
            raise SecateursError(f"process {rank} of {count()} failed: {complaint}")


def by_first(write: Callable[[], T]) -> T:
    """What a write returns that the first process does for all; the others wait for it, and fail where it does."""
    done: list[T] = []
    with together():
        if rank() == 0:
            done.append(write())
    return of_first(done)[0]


def summed(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all processes of tensors by name; one that has none of a name adds nothing to it.

    Raises `SecateursError` where shapes differ.

    >>> summed({"a": torch.ones(2)})
    {'a': tensor([1., 1.])}
    """
    if count() == 1:
        return dict(parts)
    layouts: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for rank, theirs in enumerate(gathered({name: (part.shape, part.dtype) for name, part in parts.items()})):
        for name, layout in theirs.items():
            if layouts.setdefault(name, layout) != layout:
                shapes = f"{tuple(layouts[name][0])} and {tuple(layout[0])}"
                raise SecateursError(f"{name}: processes 0 to {rank} observed {shapes}: they have different models; {WAY_OUT}")
    sums: dict[str, Tensor] = {}
    for name in sorted(layouts):
        shape, dtype = layouts[name]
        mine = parts[name].clone() if name in parts else torch.zeros(shape, dtype=dtype)
        carried = mine.cuda() if dist.get_backend() == "nccl" else mine
        dist.all_reduce(carried)
        sums[name] = carried.to(parts[name].device) if name in parts else carried
    return sums


def require_same(tensors: Mapping[str, Tensor], what: str, why: str) -> None:
    """Raise `SecateursError` that names the first tensor that is not the same to the bit in every process."""
    if count() == 1:
        return
    digests = gathered({name: _digest(tensor) for name, tensor in tensors.items()})
    for rank, theirs in enumerate(digests):
        for name in [*digests[0], *theirs]:
            if digests[0].get(name) != theirs.get(name):
                raise SecateursError(f"{name}: {what} of process {rank} differs from that of process 0: {why}, or {WAY_OUT}")


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    head = f"{tuple(plain.shape)} {plain.dtype}".encode()
    return hashlib.blake2b(head + plain.reshape(-1).view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()


# ---------------------------------------------------------------- shards


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only its part of a tensor, as `fully_shard` leaves parameters (a ``DTensor``)."""
    return hasattr(tensor, "full_tensor")


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any tensor is."""
    return any(map(is_sharded, tensors))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one every process must ask for it.

    >>> whole(torch.ones(2))
    tensor([1., 1.])
    """
    return cast(Any, tensor).full_tensor() if is_sharded(tensor) else tensor


def shard_of(tensor: Tensor) -> Tensor:
    """What of a tensor lies here, in the same memory."""
    return cast(Any, tensor).to_local() if is_sharded(tensor) else tensor


def sharded_as(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor, which every process has whole, or is asked for, in the same shards as another one (or whole, as that is)."""
    if not is_sharded(like):
        return whole(tensor)
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    if is_sharded(tensor) and cast(Any, tensor).device_mesh == mesh and cast(Any, tensor).placements == placements:
        return tensor
    everywhere = DTensor.from_local(whole(tensor).to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=placements).clone()  # a shard alone, not a view that keeps the whole


def over_shards(part: Tensor, like: Tensor) -> Tensor:
    """The sum over all shards of another tensor of what each process found in its own; as it is where that one is whole.

    >>> over_shards(torch.tensor(3.0), torch.ones(2))
    tensor(3.)
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    sums = [Partial() if placement.is_shard() else Replicate() for placement in placements]
    return DTensor.from_local(part, mesh, sums, run_check=False).full_tensor()


def from_shard(here: Tensor, like: Tensor) -> Tensor:
    """The tensor, sharded as another one, of which each process has this part; as it is where that one is whole.

    >>> from_shard(torch.ones(1), torch.ones(1))
    tensor([1.])
    """
    if not is_sharded(like):
        return here
    from torch.distributed.tensor import DTensor

    mesh, placements = cast(Any, like).device_mesh, cast(Any, like).placements
    return DTensor.from_local(here, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
