"""A model as ``torch.export`` sees it, with flat named outputs, and whether another runtime gives the same answers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateurs.answers import difference, telling
from secateurs.export.error import ExportError
from secateurs.forward import as_call, describe, evaluating, run_example
from secateurs.nested import changed, parts, tensors_in
from secateurs.types import NonFiniteError, TaskError
from secateurs.watch import untouched


@dataclass(frozen=True)
class Exported:
    """A file that another runtime has run and answered from as the model does.

    ``bytes`` counts every file that was written. ``differences`` are the largest ones of each output, as a part of the output's
    largest number, over all inputs tried. ``opset`` is ONNX's; a package of torch has none.
    """

    path: Path
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    differences: Mapping[str, float]
    opset: int | None = None

    @property
    def largest_difference(self) -> float:
        return max(self.differences.values())


@dataclass(frozen=True)
class Captured:
    """A model's graph, what the free sizes of its inputs and its outputs are called, and inputs with the model's answers."""

    program: torch.export.ExportedProgram
    sizes: tuple[Mapping[int, str], ...]
    outputs: tuple[str, ...]
    trials: tuple[tuple[Any, list[Tensor]], ...]

    def differences(self, run: Callable[[Any], Sequence[Tensor]], where: str, tolerance: float | None) -> dict[str, float]:
        """The largest difference of each output between the model and `run`, which takes an input as the model does.

        Raises `ExportError` where one is larger than the tolerance, or the shapes are others.
        """
        largest = dict.fromkeys(self.outputs, 0.0)
        for inputs, expected in self.trials:
            for name, mine, other in zip(self.outputs, expected, run(inputs), strict=True):
                largest[name] = max(largest[name], require_close(name, mine, other, where, tolerance))
        return largest


# ---------------------------------------------------------------- capturing


def capture(model: nn.Module, example: Any, dynamic: Sequence[int] = ()) -> Captured:
    """The graph of a model in evaluation mode.

    ``dynamic`` lists dimensions in which inputs may have other sizes than the example's: ``(0,)`` the batch, ``(0, 1)`` batch and
    length; each holds for every tensor that has it. The model is left as it was.

    Raises `ExportError` where there is no example, the model cannot be captured, or an output is no tensor; `TaskError` where the
    model rejects the example; `NonFiniteError` where it answers with NaN.

    >>> capture(nn.Linear(3, 2), torch.zeros(1, 3), dynamic=(0,)).outputs
    ('output',)
    """
    if not isinstance(model, nn.Module):
        raise ExportError(f"{type(model).__name__} is no torch.nn.Module; give the model itself")
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    if example is None:
        raise ExportError(f"there is no example input: give what {type(model).__name__} is called with, a tensor, tuple or mapping")
    unreal = [name for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor) and tensor.is_meta]
    if unreal:
        raise ExportError(f"{unreal[0]} is on the meta device and has no values to write; load the model first")
    dynamic = _checked(dynamic, example)
    with untouched(model):
        names = tuple(name for name, _ in named_outputs(run_example(model, example)))
    if not names:
        raise ExportError(f"{type(model).__name__} returns no tensor, so there is nothing to export")
    sample = _resized(example, dynamic, lambda size: max(size, 2))  # torch.export takes a size of 1 for a constant
    trials = [_trial(model, telling(example))]
    if dynamic:
        try:
            trials.append(_trial(model, _resized(telling(sample), dynamic, lambda size: size + 1)))
        except TaskError as error:
            raise ExportError(f"dynamic={dynamic}: {type(model).__name__} does not take other sizes: {error}") from error
    return Captured(_exported(model, sample, dynamic), _size_names(sample, dynamic), names, tuple(trials))


def _trial(model: nn.Module, inputs: Any) -> tuple[Any, list[Tensor]]:
    return inputs, answers(model, inputs)


def _exported(model: nn.Module, example: Any, dynamic: Sequence[int]) -> torch.export.ExportedProgram:
    positional, named = as_call(example)
    shapes = tree_map(lambda leaf: _free(leaf, dynamic), named or positional) if dynamic else None
    hook = model.register_forward_hook(lambda module, inputs, output: tuple(tensor for _, tensor in named_outputs(output)))
    try:
        with evaluating(model), quiet():
            return torch.export.export(model, positional, named, dynamic_shapes=shapes)
    except Exception as error:
        raise ExportError(f"{type(model).__name__} cannot be exported: {_reason(model, error)}") from error
    finally:
        hook.remove()


def _free(leaf: Any, dynamic: Sequence[int]) -> dict[int, Any] | None:
    """What torch is told of an argument: the dimensions of a tensor that may have any size."""
    return {dim: torch.export.Dim.DYNAMIC for dim in dynamic if dim < leaf.ndim} if isinstance(leaf, Tensor) else None


def named_outputs(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of an output with a name made of keys, fields and places; ``None`` is left out.

    Raises `ExportError` for anything else that is no tensor.

    >>> [name for name, _ in named_outputs({"logits": torch.zeros(1), "states": (torch.zeros(1), torch.zeros(1))})]
    ['logits', 'states_0', 'states_1']
    """
    if isinstance(output, Tensor):
        yield name or "output", output
    elif output is not None:
        inside = parts(output)
        if inside is None:
            what = f"the output {name!r}" if name else "the model's output"
            raise ExportError(
                f"{what} is a {type(output).__name__}, no tensor: make the model return tensors only, nested as you like "
                '(of a Hugging Face decoder with "use_cache": False in the example)'
            )
        for key, item in inside:
            yield from named_outputs(item, f"{name or 'output'}_{key}" if name or str(key).isdigit() else str(key))


def _place(model: nn.Module, error: BaseException) -> str:
    """The innermost module whose code was running."""
    names, found = {id(module): name for name, module in model.named_modules()}, ""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if id(owner) in names:
            line = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            found = f"; in {names[id(owner)] or 'the model itself'} ({type(owner).__name__}, {line})"
        trace = trace.tb_next
    return found


def _reason(model: nn.Module, error: BaseException) -> str:
    """What torch says, in which module it was, and what to do."""
    if violated := [line.strip(" -") for line in str(error).splitlines() if line.startswith("  - ")]:
        return f"{violated[0]}; leave out of dynamic= what cannot change"
    way_out = "; a graph holds for all values of a tensor: use torch.where or torch.cond in place of Python's if and while"
    return f"{first_line(error)}{_place(model, error)}{way_out if 'DataDependent' in type(error).__name__ else ''}"


def first_line(error: BaseException) -> str:
    """The kind of an exception and the first line that it says."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and notes that exporters write about their own inside; what matters comes as an error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # torch prints the graph that it could not finish
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# ---------------------------------------------------------------- other sizes


def _checked(dynamic: Sequence[int], example: Any) -> tuple[int, ...]:
    if isinstance(dynamic, (int, str)) or any(type(dim) is not int for dim in dynamic):
        raise ExportError(f"dynamic={dynamic!r}: give a tuple of dimensions, (0,) for the batch")
    most = max((tensor.ndim for tensor in tensors_in(example)), default=0)
    for dim in dynamic:
        if not 0 <= dim < most:
            raise ExportError(f"dynamic={tuple(dynamic)}: no input has a dimension {dim} (the example: {describe(example)})")
    return tuple(dict.fromkeys(dynamic))


def _resized(example: Any, dynamic: Sequence[int], size: Callable[[int], int]) -> Any:
    """The example with other sizes in some dimensions, filled up with its own values, backwards."""

    def change(tensor: Tensor) -> Tensor:
        for dim in dynamic:
            if dim < tensor.ndim and tensor.shape[dim]:
                more = tensor.flip(tuple(range(tensor.ndim)))
                tensor = torch.cat([tensor, more, tensor], dim).narrow(dim, 0, size(tensor.shape[dim]))
        return tensor.clone()  # of a view torch.export would watch the sizes of its base too

    return changed(example, change)


def _size_names(example: Any, dynamic: Sequence[int]) -> tuple[Mapping[int, str], ...]:
    """What the sizes of each input are called: the same name where the example has the same size in the same dimension."""
    seen: dict[int, list[int]] = {}
    found = []
    for tensor in tensors_in(example):
        names = {}
        for dim in (dim for dim in dynamic if dim < tensor.ndim):
            known = seen.setdefault(dim, [])
            if tensor.shape[dim] not in known:
                known.append(tensor.shape[dim])
            place = known.index(tensor.shape[dim])
            names[dim] = ("batch" if dim == 0 else f"size_{dim}") + (f"_{place}" if place else "")
        found.append(names)
    return tuple(found)


# ---------------------------------------------------------------- comparing


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The model's outputs, on the CPU; raises `NonFiniteError` where one has NaN, since nothing could be compared with it."""
    with untouched(model):
        found = list(named_outputs(run_example(model, inputs)))
    for name, tensor in found:
        if tensor.is_complex():
            raise ExportError(f"the output {name!r} is {tensor.dtype}; return torch.view_as_real of it")
        if tensor.isnan().any():
            raise NonFiniteError(
                f"the model's own output {name!r} has NaN ({describe(inputs)}); nothing could be compared with that"
            )
    return [tensor.detach().cpu() for _, tensor in found]


def require_close(name: str, mine: Tensor, other: Tensor, where: str, tolerance: float | None) -> float:
    """The largest difference, as a part of the largest number; raises `ExportError` where it is no rounding error."""
    if mine.shape != other.shape or mine.dtype != other.dtype:
        raise ExportError(f"the output {name!r} is {describe(other)} in {where}, and {describe(mine)} in the model")
    allowed = tolerance if tolerance is not None else _TOLERANCES.get(mine.dtype, 0.0)
    apart = difference(mine, other)
    if apart > allowed:
        raise ExportError(
            f"the output {name!r} differs in {where} from the model's by {apart:.1e} of its largest number, and {allowed:g} is "
            "allowed: does the model draw random numbers in evaluation mode, or depend on values that the example fixed? "
            "If so much is expected, say tolerance="
        )
    return apart


_TOLERANCES = {torch.float64: 3e-6, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
