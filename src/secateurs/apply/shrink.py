"""Removing for good what pruning has masked: smaller tensors, the same answers, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateurs.apply.attention import attend
from secateurs.apply.fold import fold_constants_
from secateurs.apply.idle import idle_modules
from secateurs.apply.mask import Masks
from secateurs.apply.resize import (
    Rewrite,
    Step,
    Undo,
    at,
    cut_,
    implied,
    remember_,
    rewrite_,
    rewritten,
    set_attributes_,
    take_out_,
    takes_sizes,
)
from secateurs.forward import call, nested, run_example, tensors_in
from secateurs.graph import Axis, Dim, SizeCall, Structure, Value, analyse, kept, plain, ready, untouched
from secateurs.patterns import axis_names
from secateurs.types import SecateursError, Skipped

Gone = Mapping[Axis, Tensor]
"""Axis → bool tensor of its units, ``True`` = still there."""


@dataclass(frozen=True)
class Shrunk:
    """What `shrink_` did: units before and after by site, parameters before and after, and what could not be done, and why.

    ``layers`` were taken out whole; ``folded`` constant units went into the biases of the layers that read them.
    """

    sites: dict[str, tuple[int, int]] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    skipped: tuple[Skipped, ...] = ()
    largest_difference: float = 0.0
    layers: tuple[str, ...] = ()
    folded: int = 0

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [
            f"{before:,} -> {after:,} parameters; outputs differ from the masked model's by at most {self.largest_difference:.1e}"
        ]
        lines += [f"  {name}: {was} -> {now}" for name, (was, now) in self.sites.items()]
        lines += [f"  taken out: {name}" for name in self.layers]
        lines += [f"  {self.folded} constant units folded into biases"] if self.folded else []
        lines += [f"  left as it was: {item.name}: {item.reason}" for item in self.skipped]
        return "\n".join(lines)


def shrink_(
    model: nn.Module, masks: Masks | None = None, example: Any = None, *, optimizer: torch.optim.Optimizer | None = None
) -> Shrunk:
    """Remove every unit that is zero in all its weights, or that nothing reads: tensors become smaller, answers stay the same.

    Units that pruning has made constant go too, once what they add is in the biases of the layers that read them; layers that do
    nothing any more (a residual block whose branch is gone) are taken out.

    Gradients and the optimizer's state shrink with their parameters, which stay the same objects, so training goes on. Whether the
    smaller model gives the masked one's answers is checked on the example, in float64 where that is possible; sites for which it does
    not are put back whole and listed. ``example`` is by default the one that the masks were made with; without masks the zeros in the
    weights count. The masks given are of no more use afterwards.

    Raises `TaskError` where there is no example or the model rejects it, `SecateursError` where the model is compiled, scripted or
    wrapped.

    >>> from secateurs import Channel, Task, TopK, magnitude, prune_, uniform
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> masks = prune_(model, Channel(), TopK(magnitude()), uniform(sparsity=0.75), Task(example=torch.randn(1, 3)))
    >>> shrink_(model, masks).sites
    {'0': (8, 2)}
    >>> model[0]
    Linear(in_features=3, out_features=2, bias=True)
    """
    if masks is not None:
        masks.apply_()
    example = example if example is not None or masks is None else masks.example
    before = sum(parameter.numel() for parameter in model.parameters())
    telling = [example, _telling(example)]
    idle = _take_out_idle_(model, telling)
    structure = analyse(model, example)
    names = axis_names(structure)
    folded = _fold_constants_(model, structure, telling)
    asked = set(masks.plan or ()) if masks is not None else set()
    present = present_units(model, structure)
    candidates = [axis for axis, there in present.items() if not there.all()]
    exact = [axis for axis in candidates if not axis.approximate]
    approximate = [axis for axis in candidates if axis.approximate and names.get(axis) in asked]
    work = _Work(model, structure, example, optimizer, present, names)
    work.grow(exact, check=True)
    work.grow(approximate, check=False)
    return replace(work.finish(before), layers=idle, folded=folded)


def _take_out_idle_(model: nn.Module, examples: list[Any]) -> tuple[str, ...]:
    """Take out the layers that do nothing any more, where the answers stay the same; returns their names."""
    step, undo = idle_modules(model, examples), Undo()
    if not step.identities and not step.zeros:
        return ()
    reference, double = _answers(model, examples[-1])
    try:
        take_out_(model, step, undo)
        _require_same(reference, _answers(model, examples[-1], double)[0])
        remember_(model, step, undo)
    except _FAILURES:
        undo()
        return ()
    return (*step.identities, *step.zeros)


def _fold_constants_(model: nn.Module, structure: Structure, examples: list[Any]) -> int:
    """Move what constant channels add into the next biases, where the answers stay the same; returns how many there were."""
    undo = Undo()
    reference, double = _answers(model, examples[-1])
    folded = fold_constants_(model, structure, examples, undo)
    try:
        if folded:
            _require_same(reference, _answers(model, examples[-1], double)[0])
    except _FAILURES:
        undo()
        return 0
    return folded


# ---------------------------------------------------------------- which units are gone


def present_units(model: nn.Module, structure: Structure) -> dict[Axis, Tensor]:
    """Axis → which of its units still matter: something makes them and something reads them; at least one of each axis."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    summed = {axis for dim in structure.typing.summed for axis in dim.axes()}
    present: dict[Axis, Tensor] = {}
    axes = [axis for axis in structure.places if not axis.pinned and axis.size > 1 and axis in structure.producers]
    while True:
        nonzero = {name: _nonzero(parameters[name].detach(), dims, present) for name, dims in structure.parameters.items()}
        before, present = present, {}
        for axis in axes:
            there, read = torch.zeros(axis.size, dtype=torch.bool), torch.zeros(axis.size, dtype=torch.bool)
            consumers = False
            for place in structure.places[axis]:
                here = place.view(nonzero[place.parameter], place.dim).flatten(1).any(1)
                there |= here
                if place.role == "consumer":
                    consumers, read = True, read | here
            if consumers and axis not in summed and not axis.approximate:
                there &= read
            there[0] |= not there.any()
            present[axis] = there
        if before and all(torch.equal(before[axis], present[axis]) for axis in axes):
            return present
        if not axes:
            return present


def _nonzero(weight: Tensor, dims: Sequence[Dim], present: Gone) -> Tensor:
    """Which weights are not zero, and lie in no unit that is gone."""
    found = (weight != 0).cpu()
    for place, dim in enumerate(dims):
        if any(axis in present for axis in dim.axes()):
            found = found & kept(dim, present).view(-1, *(1,) * (found.ndim - place - 1))
    return found


# ---------------------------------------------------------------- trying


@dataclass
class _Work:
    """One shrinking in progress: what was accepted, and how to put back the last attempt."""

    model: nn.Module
    structure: Structure
    example: Any
    optimizer: torch.optim.Optimizer | None
    present: Gone
    names: Mapping[Axis, str]
    accepted: list[Axis] = field(default_factory=list)
    failed: dict[Axis, str] = field(default_factory=dict)
    undo: Undo = field(default_factory=Undo)
    difference: float = 0.0

    def __post_init__(self) -> None:
        self.inputs = _telling(self.example)
        self.reference, self.double = _answers(self.model, self.inputs)

    def grow(self, candidates: list[Axis], check: bool) -> None:
        """Shrink along as many of the axes as possible: all at once, else half and half, down to the ones that fail."""
        if not candidates:
            return
        reason = self._attempt([*self.accepted, *candidates], check)
        if reason is None:
            self.accepted += candidates
        elif len(candidates) == 1:
            self.failed[candidates[0]] = reason
        else:
            middle = len(candidates) // 2
            self.grow(candidates[:middle], check)
            self.grow(candidates[middle:], check)

    def finish(self, before: int) -> Shrunk:
        """The model with all that was accepted, and what came of it."""
        reason = self._attempt(self.accepted, check=False)
        if reason is not None:
            raise SecateursError(f"the model behaves differently each time that it runs: {reason}")
        sites = {self.names.get(axis, repr(axis)): (axis.size, int(self.present[axis].sum())) for axis in self.accepted}
        skipped = tuple(Skipped(self.names.get(axis, repr(axis)), reason) for axis, reason in self.failed.items())
        after = sum(parameter.numel() for parameter in self.model.parameters())
        return Shrunk(sites, (before, after), skipped, self.difference)

    def _attempt(self, axes: Sequence[Axis], check: bool) -> str | None:
        """Shrink along these axes, from the model as it was; where that fails, why, and the model is as it was."""
        self.undo()
        if not axes:
            return None
        try:
            self._shrink({axis: self.present[axis] for axis in axes})
            if check:
                answers, _ = _answers(self.model, self.inputs, self.double)
                self.difference = _require_same(self.reference, answers)
        except _FAILURES as problem:
            self.undo()
            first = (str(problem).strip().splitlines() or [""])[0]
            return f"{type(problem).__name__}: {first}" if not isinstance(problem, SecateursError) else first
        except BaseException:
            self.undo()
            raise
        return None

    def _shrink(self, choice: Gone) -> None:
        model, structure = self.model, self.structure
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
        cuts = _cuts(structure, choice)
        shapes = {name: list(tensors[name].shape) for name in cuts}
        cut_(model, cuts, self.undo, self.optimizer)
        attributes = _attributes(model, structure, choice)
        for name, changes in _rescale_(model, structure, choice, self.undo).items():
            attributes[name] = {**attributes.get(name, {}), **changes}
        set_attributes_(model, attributes, self.undo)
        also = implied(model)
        set_attributes_(model, also, self.undo)
        for name, changes in also.items():
            attributes[name] = {**attributes.get(name, {}), **changes}
        rewrites = _rewrites(model, structure, choice, self.example)
        set_attributes_(model, unfused := _unfused(model, rewrites), self.undo)
        attributes |= {name: {**attributes.get(name, {}), **changes} for name, changes in unfused.items()}
        rewrite_(model, rewrites, self.undo)
        remember_(model, Step(shapes, cuts, attributes, rewrites), self.undo)


_FAILURES = (SecateursError, RuntimeError, TypeError, ValueError, IndexError, AssertionError, KeyError, AttributeError)
"""What a model's code may raise when its sizes do not fit any more."""


def _cuts(structure: Structure, choice: Gone) -> dict[str, dict[int, list[int]]]:
    cuts: dict[str, dict[int, list[int]]] = {}
    for name, dims in {**structure.parameters, **structure.buffers}.items():
        for place, dim in enumerate(dims):
            stay = kept(dim, choice)
            if not stay.all():
                cuts.setdefault(name, {})[place] = stay.nonzero().flatten().tolist()
    return cuts


def _measured(structure: Structure, choice: Gone, value: Value, dim: int) -> Tensor:
    return kept(structure.typing.dims(value)[dim], choice)


def _attributes(model: nn.Module, structure: Structure, choice: Gone) -> dict[str, dict[str, list[Any]]]:
    """Attributes that the code passes to torch as sizes, where all its uses agree on the new one; and numbers of heads."""
    uses: dict[tuple[str, str, int | None], set[int]] = {}
    for size_call in structure.trace.sizes:
        for number in size_call.numbers:
            source = getattr(number.given, "source", None)
            if source is not None and source not in structure.trace.computed:
                uses.setdefault(source, set()).add(number.measure(_measured(structure, choice, number.tensor, number.dim)))
    modules = dict(model.named_modules())
    changes: dict[str, dict[str, list[Any]]] = {}
    for (path, attribute, place), values in uses.items():
        old = modules[path].__dict__[attribute]
        here = old if place is None else old[place]
        if len(values) != 1 or (new := next(iter(values))) == here:
            continue
        known = changes.setdefault(path, {}).setdefault(attribute, [old, old if place is None else list(old)])
        if place is None:
            known[1] = new
        else:
            known[1][place] = new
    for op in structure.trace.ops:  # without weights, nothing else tells such a layer how many channels come in
        module = modules[op.module]
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is None and isinstance(op.args[0], Value):
            old, new = module.num_features, int(_measured(structure, choice, op.args[0], 1).sum())
            if op.args[0].shape[1] == old != new:
                changes.setdefault(op.module, {})["num_features"] = [old, new]
    for axis, stay in choice.items():
        if axis.heads is not None:
            known = {attribute for path, attribute, _ in structure.trace.computed if path == axis.heads}
            _count_heads(modules[axis.heads], changes.setdefault(axis.heads, {}), known, axis.size, int(stay.sum()))
    return {path: found for path, found in changes.items() if found}


@torch.no_grad()
def _rescale_(model: nn.Module, structure: Structure, choice: Gone, undo: Undo) -> dict[str, dict[str, list[Any]]]:
    """Root-mean-square normalisations over fewer features scale as before; returns the attributes that hold their ε."""
    parameters, modules = dict(model.named_parameters(remove_duplicate=False)), dict(model.named_modules())
    changes: dict[str, dict[str, list[Any]]] = {}
    for norm in {norm.parameter: norm for norm in structure.typing.rms_norms.values()}.values():
        stay = _measured(structure, choice, norm.source, len(norm.source.shape) - 1)
        more = len(stay) / int(stay.sum())
        if more == 1:
            continue
        weight = parameters[norm.parameter]
        before = weight.data
        undo.add(lambda weight=weight, before=before: setattr(weight, "data", before))
        weight.data = (before + norm.offset) * more**0.5 - norm.offset
        for key, value in modules[norm.module].__dict__.items():
            if type(value) is float and value == norm.eps:
                changes.setdefault(norm.module, {})[key] = [value, value * more]
            elif key == "eps" and value is None:
                changes.setdefault(norm.module, {})[key] = [None, torch.finfo(weight.dtype).eps * more]
    return changes


def _count_heads(module: nn.Module, changes: dict[str, list[Any]], computed: set[str], before: int, after: int) -> None:
    """Attributes that count heads and that no call shows, because the code writes −1 in their place."""
    for key, value in module.__dict__.items():
        if "heads" in key and type(value) is int and value % before == 0 and key not in changes and key not in computed:
            changes[key] = [value, value // before * after]


# ---------------------------------------------------------------- sizes in the code


@dataclass(frozen=True)
class _Wanted:
    """What one call that takes sizes must be given once the model is smaller."""

    name: str
    numbers: tuple[tuple[Sequence[int | str], Any], ...]
    pieces: tuple[int, list[int]] | None
    narrower: bool


def _wanted(structure: Structure, choice: Gone, size_call: SizeCall) -> _Wanted:
    kept_of = [(number, _measured(structure, choice, number.tensor, number.dim)) for number in size_call.numbers]
    pieces = size_call.pieces
    lengths = [] if pieces is None else [int(_measured(structure, choice, value, pieces.dim).sum()) for value in pieces.tensors]
    return _Wanted(
        size_call.name,
        tuple((number.path, number.measure(stay)) for number, stay in kept_of),
        None if pieces is None else (pieces.dim, lengths),
        any(not bool(stay.all()) for _, stay in kept_of),
    )


class _Comparing(TorchFunctionMode):
    """Runs the shrunk model beside the trace of the whole one: where a call gives a size that is no more right, the right one."""

    def __init__(self, structure: Structure, choice: Gone) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = iter([_wanted(structure, choice, size_call) for size_call in structure.trace.sizes])
        self.stack: list[list[Any]] = [["", 0]]
        self._found: dict[str, dict[tuple[int, Any], Rewrite]] = {}
        self._right: set[tuple[str, str, Any, Any]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not takes_sizes(func):
            return func(*args, **kwargs)
        wanted = next(self._calls, None)
        if wanted is None or wanted.name != _name(func):
            raise SecateursError("the model takes another path once it is smaller")
        name, ordinal = self.stack[-1]
        for frame in self.stack:
            frame[1] += 1
        rewrites = [Rewrite(ordinal, wanted.name, *each) for each in _needed(wanted, func, args, kwargs)]
        for each in rewrites:
            known = self._found.setdefault(name, {}).setdefault((ordinal, each.path), each)
            if known != each:
                raise SecateursError(f"{name or 'the model'} is called more than once, and would need other sizes each time")
        changed = {each.path: each.new for each in rewrites}
        for path, given in _given(wanted, args, kwargs):
            if path not in changed:
                self._right.add((name, wanted.name, path, given))
            for outer, _ in self.stack[:-1]:  # sees the calls of the modules within, too
                self._right.add((outer, wanted.name, path, _hashable(changed.get(path, given))))
        return rewritten(func, args, kwargs, rewrites)

    def rewrites(self) -> dict[str, list[Rewrite]]:
        """What was wrong, by module. Where all calls with one number need the same new one, their order does not matter."""
        found = {}
        for name, entries in self._found.items():
            alike: dict[Any, set[Any]] = {}
            for each in entries.values():
                alike.setdefault((each.name, each.path, each.given), set()).add(str(each.new))
            everywhere = {key for key, news in alike.items() if len(news) == 1 and (name, *key) not in self._right}
            anywhere = [
                replace(each, ordinal=None) if (each.name, each.path, each.given) in everywhere else each
                for each in entries.values()
            ]
            found[name] = list({str(each): each for each in anywhere}.values())
        return found


def _hashable(new: Any) -> Any:
    return tuple(new) if isinstance(new, list) else new


def _given(wanted: _Wanted, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """The numbers that a call was given, with their places."""
    if wanted.pieces is not None:
        yield ("pieces",), args[0].shape[wanted.pieces[0]]
    else:
        yield from ((tuple(path), at(args, kwargs, path)) for path, _ in wanted.numbers)


def _needed(wanted: _Wanted, func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Where the numbers of a call are not what they must be: place, what is given, what must be."""
    if wanted.pieces is not None:
        dim, lengths = wanted.pieces
        try:
            found = [piece.shape[dim] for piece in func(*args, **kwargs)]
        except RuntimeError:
            found = []
        if found != lengths:
            yield ("pieces",), args[0].shape[dim], lengths
        return
    fused = func is functional.multi_head_attention_forward and wanted.narrower
    for path, new in wanted.numbers:
        given = at(args, kwargs, path)
        if new is not None and (fused or (given not in (new, -1) and not (func is attend and path == ("scale",)))):
            yield tuple(path), None if given is None else int(given), new


def _name(func: Any) -> str:
    return functional.multi_head_attention_forward.__name__ if func is attend else func.__name__


def _rewrites(model: nn.Module, structure: Structure, choice: Gone, example: Any) -> dict[str, list[Rewrite]]:
    """The sizes that the model's code gives wrongly now, by module."""
    comparing, trace = _Comparing(structure, choice), structure.trace
    with ready(model, trace.fake, lambda name: comparing.stack.append([name, 0]), lambda: comparing.stack.pop()) as mode:
        inputs = example if mode is None else nested(example, mode.from_tensor)
        with mode or nullcontext(), comparing:
            call(model, inputs)
    return comparing.rewrites()


def _unfused(model: nn.Module, rewrites: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Torch's encoder layers whose attention is narrower now must not take their fused path, which knows only the usual shape."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.TransformerEncoderLayer))
    return {
        name: {"activation_relu_or_gelu": [layer.activation_relu_or_gelu, 0]}
        for name, layer in layers
        if f"{name}.self_attn".removeprefix(".") in rewrites and layer.activation_relu_or_gelu
    }


# ---------------------------------------------------------------- the same answers


def _telling(example: Any) -> Any:
    """The example with noise in place of floating-point tensors that are the same everywhere, which would tell too little."""
    generator = torch.Generator().manual_seed(0)

    def change(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() < 2 or not bool((tensor == tensor.flatten()[0]).all()):
            return tensor
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    return nested(example, change)


def _answers(model: nn.Module, inputs: Any, double: bool | None = None) -> tuple[list[Tensor], bool]:
    """The model's floating-point outputs, in float64 where the model can do that; and whether it could."""
    with untouched(model), plain():
        if double is not False and sum(parameter.numel() for parameter in model.parameters()) < _LARGE:
            try:
                with _in_double(model):
                    return _floats(run_example(model, nested(inputs, _doubled))), True
            except SecateursError:
                if double:
                    raise
        return _floats(run_example(model, inputs)), False


_LARGE = 200_000_000


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _floats(output: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors_in(output) if tensor.is_floating_point()]


@contextmanager
def _in_double(model: nn.Module) -> Iterator[None]:
    """Every weight and buffer in float64; afterwards the tensors that were there before."""
    back: list[Callable[[], None]] = []
    try:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                gradient, data = parameter.grad, parameter.data
                parameter.grad = None
                back.append(lambda parameter=parameter, data=data, gradient=gradient: _put_back(parameter, data, gradient))
                parameter.data = data.double()
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    back.append(lambda module=module, key=key, buffer=buffer: module._buffers.__setitem__(key, buffer))
                    module._buffers[key] = buffer.double()
        yield
    finally:
        for restore in back:
            restore()


def _put_back(parameter: nn.Parameter, data: Tensor, gradient: Tensor | None) -> None:
    parameter.data = data
    parameter.grad = gradient


def _require_same(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest difference, as a part of the largest number; raises `SecateursError` where it is no rounding error."""
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        raise SecateursError("the smaller model's outputs are of other shapes")
    largest = 0.0
    for one, other in zip(before, after, strict=True):
        if not one.numel():
            continue
        tolerance = {torch.float64: 2e-5, torch.float32: 2e-4}.get(one.dtype, 2e-2)
        same = torch.isfinite(one) == torch.isfinite(other)
        scale = float(torch.where(torch.isfinite(one), one, 0).abs().max()) or 1.0
        difference = float(torch.where(torch.isfinite(one) & torch.isfinite(other), one - other, 0).abs().max()) / scale
        if not bool(same.all()) or not math.isfinite(difference) or difference > tolerance:
            raise SecateursError(f"the smaller model's outputs differ from the masked one's by {difference:.1e} of the largest")
        largest = max(largest, difference)
    return largest
