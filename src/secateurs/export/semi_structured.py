"""Linear layers with 2:4 weights, for the sparse tensor cores of NVIDIA GPUs."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from secateurs.export.error import ExportError
from secateurs.export.program import answers, first_line, quiet, require_close
from secateurs.patterns import Layout, Selection, Weight, select
from secateurs.types import Skipped

_TOLERANCE = 5e-2
"""Of an output's largest number: sums of half-precision products in another order, layer after layer."""


@dataclass(frozen=True)
class Converted:
    """Linear layers whose weights are compressed now, those that stay dense and why, and by how much outputs changed where tried."""

    layers: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    largest_difference: float | None = None


def semi_structured_(
    model: nn.Module, example: Any = None, *, only: Selection | None = None, skip: Selection | None = None
) -> Converted:
    """Compress the 2:4 weights of linear layers into ``torch.sparse``'s semi-structured form, on a CUDA GPU of Ampere or later.

    A weight ``(outputs, inputs)`` takes part where each 4 consecutive inputs have at most 2 nonzeros (`NofM` (2, 4) leaves it so);
    it must be float16 or bfloat16, and its sizes multiples of what torch's kernels need. All other linear layers stay dense and are
    listed. ``only`` and ``skip`` choose layers by name, glob or predicate. With an ``example`` the model is run before and after.
    Compressed weights have no gradients and go into no file: save the model first. It saves memory; called as it is it is slower,
    which a warning says once (``benchmarks/results/semi_structured.md``).

    Raises `ExportError` where no layer can be converted, with the reasons, or the outputs are others afterwards; all weights are
    then as they were. `PatternError` for a name in ``only`` or ``skip`` that means nothing in the model.

    >>> semi_structured_(nn.Linear(64, 64))
    Traceback (most recent call last):
    secateurs.export.error.ExportError: Linear: no layer can be converted: ...
    """
    layers = [
        Weight(name or "weight", f"{name}.weight".strip("."), module, "weight", Layout())
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    reasons = _reasons(model, layers, only, skip)
    taking_part = [layer for layer in layers if layer.name not in reasons]
    left = tuple(Skipped(name, reason) for name, reason in reasons.items())
    if not taking_part:
        raise ExportError(f"{type(model).__name__}: no layer can be converted: {_told(left)}")
    before = answers(model, example) if example is not None else []
    dense = [layer.value for layer in taking_part]
    try:
        for layer in taking_part:
            _convert_(layer)
        change = _change(before, answers(model, example)) if before else None
    except BaseException:
        for layer, value in zip(taking_part, dense, strict=True):
            setattr(layer.module, layer.attribute, value)
        raise
    _say_what_was_measured()
    return Converted(tuple(layer.name for layer in taking_part), left, change)


@functools.cache
def _say_what_was_measured() -> None:
    warnings.warn(
        "2:4 weights lose time in eager mode: on an H200, layers of 4096 and 11008 ran at 0.05 to 0.40 times the dense speed, whatever "
        "the batch; inside a CUDA graph at 0.28 to 0.85 times up to 128 tokens, and at 0.95 to 1.41 times with 2,048. Run the model in "
        'a CUDA graph (torch.cuda.graph, or torch.compile(model, mode="reduce-overhead")), with batches of 2,048 tokens or more, and '
        "measure it there (benchmarks/semi_structured.py); otherwise the dense model is faster",
        UserWarning,
        stacklevel=3,
    )


def broken_group(weight: Tensor) -> str | None:
    """The first place where a weight ``(outputs, inputs)`` is not 2:4, in words; ``None`` where it is everywhere.

    >>> broken_group(torch.tensor([[1.0, 0.0, 0.0, 2.0]])), broken_group(torch.tensor([[1.0, 3.0, 0.0, 2.0]]))
    (None, 'output 0 has 3 nonzeros among inputs 0 to 3')
    """
    nonzeros = weight.detach().unflatten(1, (-1, 4)).count_nonzero(2)
    if not bool((nonzeros > 2).any()):
        return None
    output, group = (int(place) for place in (nonzeros > 2).nonzero()[0])
    return f"output {output} has {int(nonzeros[output, group])} nonzeros among inputs {4 * group} to {4 * group + 3}"


def _reasons(model: nn.Module, layers: list[Weight], only: Selection | None, skip: Selection | None) -> dict[str, str]:
    """Why layers stay dense, for those that do."""
    chosen = None if only is None else select(model, layers, only, "only=")
    left_alone = {} if skip is None else select(model, layers, skip, "skip=")
    users = Counter(id(each) for module in model.modules() for each in module.parameters(recurse=False))
    found = {}
    for layer in layers:
        if layer.name in left_alone:
            found[layer.name] = left_alone[layer.name]
        elif chosen is not None and layer.name not in chosen:
            found[layer.name] = "not named in only="
        elif users[id(layer.value)] > 1:
            found[layer.name] = "another layer uses the same weight"
        elif reason := _misfit(layer):
            found[layer.name] = reason
    return found


def _misfit(layer: Weight) -> str | None:
    """Why torch's kernels cannot take one linear layer."""
    weight = layer.value
    if type(layer.module) is not nn.Linear:
        return f"a {type(layer.module).__name__} may apply its weight in its own way; only torch.nn.Linear is converted"
    if isinstance(weight.data, SparseSemiStructuredTensor):
        return "it is converted already"
    if reason := _no_sparse_cores(weight.device):
        return reason
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"its weight is {weight.dtype}, and the kernels are for float16 and bfloat16: model.half()"
    rows, columns = _multiples(weight.dtype)
    if weight.shape[0] % rows or weight.shape[1] % columns or not weight.numel():
        return f"its weight is {tuple(weight.shape)}, and the kernels need multiples of ({rows}, {columns})"
    broken = broken_group(weight)
    return broken and f"its weight is not 2:4 ({broken}): prune it with NofM(2, 4)"


def _no_sparse_cores(device: torch.device) -> str | None:
    """Why a device cannot multiply with 2:4 weights."""
    needs = "sparse tensor cores are in NVIDIA GPUs of Ampere (compute capability 8.0) and later"
    if device.type != "cuda":
        return f"it is on {device}, and {needs}: model.cuda()"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"it is on {torch.cuda.get_device_name(device)} (compute capability {major}.{minor}), and {needs}"
    if not SparseSemiStructuredTensor._FORCE_CUTLASS and not torch.backends.cusparselt.is_available():
        return "this torch has no cuSPARSELt: install a build of torch for CUDA 12 or later"
    return None


def _multiples(dtype: torch.dtype) -> tuple[int, int]:
    """What outputs and inputs must be multiples of, for the kernels that torch chooses."""
    forced = SparseSemiStructuredTensor._FORCE_CUTLASS
    kernels = SparseSemiStructuredTensorCUTLASS if forced else SparseSemiStructuredTensorCUSPARSELT
    sizes = kernels._DTYPE_SHAPE_CONSTRAINTS[dtype]
    return sizes.sparse_min_rows, sizes.sparse_min_cols


def _convert_(layer: Weight) -> None:
    try:
        with quiet():
            packed = torch.sparse.to_sparse_semi_structured(layer.value.detach().contiguous())
    except RuntimeError as error:
        raise ExportError(
            f"{layer.name}: torch cannot compress it: {first_line(error)}; skip it with skip=[{layer.name!r}]"
        ) from error
    setattr(layer.module, layer.attribute, nn.Parameter(packed, requires_grad=False))


def _change(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest difference of the outputs."""
    pairs = enumerate(zip(before, after, strict=True))
    return max(require_close(f"output {n}", one, other, "the converted model", _TOLERANCE) for n, (one, other) in pairs)


def _told(left: tuple[Skipped, ...]) -> str:
    """A line for all reasons, each with the first layers that it holds for."""
    names: dict[str, list[str]] = {}
    for item in left:
        names.setdefault(item.reason, []).append(item.name)
    told = [f"{', '.join(of[:3])}{f' and {len(of) - 3} more' if len(of) > 3 else ''}: {reason}" for reason, of in names.items()]
    return "; ".join(told[:5]) or "it has no linear layer"
