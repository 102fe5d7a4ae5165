"""Removing for good what pruning has masked: smaller tensors, the same answers, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from secateurs.answers import telling
from secateurs.forward import buffers_in, parameters_in
from secateurs.given import MASKS, MODEL, OPTIMIZER, require, require_values
from secateurs.graph import Axis, Choice, Dim, Knowing, Structure, analyse, axis_names, interpret, kept, normal
from secateurs.masks.masks import Masks
from secateurs.shrink.carry import carry_
from secateurs.shrink.experts import take_out_experts_
from secateurs.shrink.fold_constants import constant_units, fold_constants_
from secateurs.shrink.idle_modules import idle_modules
from secateurs.shrink.layer_sizes import implied
from secateurs.shrink.needed_units import Nonzero, present_units
from secateurs.shrink.remembered import remember_
from secateurs.shrink.rewrites import rewrites_for, sizes_stay, unfused
from secateurs.shrink.same_answers import Check, Incomparable
from secateurs.shrink.size_changes import attributes_of_code, rescale_
from secateurs.shrink.stacks import idle_entries, take_entries_, without_entries
from secateurs.shrink.step import Step
from secateurs.shrink.surgery import Indices, cut_, rewrite_, set_attributes_, take_out_
from secateurs.shrink.undo import Undo
from secateurs.types import SecateursError, Skipped
from secateurs.watch import refuse_opaque


@dataclass(frozen=True)
class Shrunk:
    """What `shrink_` did: units before and after by site, parameters before and after, and what could not be done, and why.

    ``layers`` were taken out whole; ``folded`` constant units went into the biases of the layers that read them. ``anew`` are the
    parameters of which the optimizer could not keep what it knew of them.
    """

    sites: dict[str, tuple[int, int]] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    skipped: tuple[Skipped, ...] = ()
    largest_difference: float = 0.0
    layers: tuple[str, ...] = ()
    folded: int = 0
    anew: tuple[str, ...] = ()

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [
            f"{before:,} -> {after:,} parameters; outputs differ from the masked model's by at most {self.largest_difference:.1e}"
        ]
        lines += [f"  {name}: {was} -> {now}" for name, (was, now) in self.sites.items()]
        lines += [f"  taken out: {name}" for name in self.layers]
        lines += [f"  {self.folded} constant units folded into biases"] if self.folded else []
        if self.anew:
            more = f" and {len(self.anew) - 3} more" if len(self.anew) > 3 else ""
            lines.append(f"  the optimizer begins anew with {', '.join(self.anew[:3])}{more}: what it held of them cannot be cut")
        lines += [f"  left as it was: {item.name}: {item.reason}" for item in self.skipped]
        return "\n".join(lines)


def shrink_(
    model: nn.Module, masks: Masks | None = None, example: Any = None, *, optimizer: torch.optim.Optimizer | None = None
) -> Shrunk:
    """Remove every unit that is zero in all its weights, or that nothing reads: tensors become smaller, answers stay the same.

    Units that pruning has made constant go too, once what they add is in the biases of the layers that read them; layers that do
    nothing any more (a residual block whose branch is gone) are taken out.

    Gradients and the optimizer's state shrink with their parameters, which stay the same objects, so training goes on (L-BFGS, whose
    history is of all parameters together, begins anew). Whether the
    smaller model gives the masked one's answers is checked on the example, in float64 where that is possible (large models first in
    float32, within the tolerance of float64); sites for which it does not are put back whole and listed. What `prune_` found out about
    the model is used again where nothing but the numbers in its tensors has changed since. ``example`` is by default the one that the
    masks were made with; without masks the zeros in the weights count. The masks given become those of the
    smaller weights: what is still pruned within them stays pruned. Other masks of these weights, of an earlier pruning and attached to
    an optimizer still, say, follow in the same way.

    Raises `TaskError` where there is no example or the model rejects it, `SecateursError` where the model is compiled, scripted or
    wrapped or has no values (lazy, or on the meta device), the masks are those of another copy of it, or the optimizer trains none of
    its parameters, and where what it answers to the example cannot be compared: there are no finite numbers. Warns where masked weights
    are not zero: the answers that stay the same are those of the model once the masks are applied.

    >>> from secateurs import Channel, Task, TopK, magnitude, prune_, uniform
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> masks = prune_(model, Channel(), TopK(magnitude()), uniform(sparsity=0.75), Task(example=torch.randn(1, 3)))
    >>> shrink_(model, masks).sites
    {'0': (8, 2)}
    >>> model[0]
    Linear(in_features=3, out_features=2, bias=True)
    """
    _require(model, masks, optimizer)
    example = example if example is not None or masks is None else masks.example
    before = _count(model)
    experts, difference = take_out_experts_(model, masks, example, optimizer) if masks is not None else ({}, 0.0)
    parameters, check = parameters_in(model), Check(model, telling(example))
    seen = _first_look(model, masks, example)
    blocks = _take_out_entries_(model, seen, check)
    seen = _look(model, example) if blocks else seen
    idle = _take_out_idle_(model, seen, check)
    seen = _look(model, example) if idle else seen
    folded, left = _fold_constants_(model, seen, check)
    structure, names = seen.structure, axis_names(seen.structure)
    there = Nonzero.of(model) if folded else seen.there
    present, kept_back = present_units(structure, there, _asked(masks, names), seen.knowing)
    del seen, there  # they hold the weights as they were
    work = _Work(model, structure, example, optimizer, present, names, check)
    candidates = [axis for axis, stay in present.items() if not stay.all()]
    work.grow([axis for axis in candidates if not axis.approximate], check=True)
    work.grow([axis for axis in candidates if axis.approximate], check=False)
    done = work.finish(before)
    stayed = [Skipped(names.get(axis, repr(axis)), reason) for axis, reason in (*left.items(), *kept_back.items())]
    stayed += [] if experts else _undecided(masks, structure)
    carry_(masks, parameters, model, work.cuts)
    if masks is not None:
        masks.origin = replace(masks.origin, example=example)
    return replace(
        done,
        sites={**experts, **done.sites},
        layers=(*blocks, *idle),
        folded=folded,
        skipped=(*done.skipped, *stayed),
        largest_difference=max(difference, done.largest_difference),
    )


def _require(model: nn.Module, masks: Masks | None, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise where something given is not what is asked for, or where these do not belong together."""
    require("shrink_", "model", model, MODEL)
    if masks is not None:
        require("shrink_", "masks", masks, MASKS)
    require_values("shrink_", model)
    refuse_opaque(model)
    if masks is not None:
        masks.require_of(model)
    if optimizer is not None:
        _require_trains(optimizer, model)


def _require_trains(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise `SecateursError` where a thing is no optimizer of any of a model's parameters."""
    require("shrink_", "optimizer", optimizer, OPTIMIZER)
    own = {id(parameter) for parameter in parameters_in(model).values()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise SecateursError(
            f"shrink_: the optimizer trains none of the parameters of this {type(model).__name__}, so what it holds could not follow: "
            "was it made for another copy of the model? give the one made from model.parameters(), or none"
        )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in parameters_in(model).values())


# ---------------------------------------------------------------- looking


@dataclass(frozen=True)
class _Seen:
    """A model as it is at one point: where its weights are not zero, its structure, and what zeros make certain."""

    there: Nonzero
    structure: Structure
    knowing: Knowing | None


def _first_look(model: nn.Module, masks: Masks | None, example: Any) -> _Seen:
    """With the masks applied; warns where masked weights were not zero."""
    if masks is None:
        return _look(model, example)
    there = Nonzero.under(masks, model)
    if there.moved:
        name, count = next(iter(there.moved.items()))
        more = f" (and others in {len(there.moved) - 1} parameters more)" if len(there.moved) > 1 else ""
        warn(
            f"{name}: {count:,} masked weights were not zero{more}: shrink_ has set them to zero, so the model answers otherwise than "
            "before the call; masks.attach(optimizer) keeps them at zero while training",
            stacklevel=3,
        )
    return _look(model, example, there, masks.origin.structure_of(model, example))


def _look(model: nn.Module, example: Any, there: Nonzero | None = None, structure: Structure | None = None) -> _Seen:
    there, structure = there or Nonzero.of(model), structure or analyse(model, example)
    return _Seen(there, structure, _known(model, structure, there))


def _known(model: nn.Module, structure: Structure, there: Nonzero) -> Knowing | None:
    """What zeros make certain; nothing where there are none, or where the model's code decides by numbers, so that it may do something
    else for another input."""
    weights = [(name, weight.ndim) for name, weight in there.weights.items() if weight.numel() and weight.ndim]
    zeros = any(not bool(there.along(name, dim).all()) for name, ndim in weights for dim in range(min(ndim, 2)))
    return interpret(model, structure) if zeros and structure.trace.fake else None


def _asked(masks: Masks | None, names: Mapping[Axis, str]) -> set[Axis]:
    """The axes that the plan names; one of single weights, which has no extents, or of whole blocks names none."""
    plan = masks.plan if masks is not None else None
    shares = plan.shares if plan is not None and plan.extents else {}
    return {axis for axis, name in names.items() if name in shares and shares[name].units > 1}


def _undecided(masks: Masks | None, structure: Structure) -> list[Skipped]:
    """The blocks (units by themselves) that stay because the model's code decides by numbers."""
    plan = masks.plan if masks is not None else None
    if plan is None or not plan.extents or structure.trace.fake:
        return []
    reason = "the model's code decides by numbers, so that nothing can be proven: it stays, as zeros"
    return [Skipped(name, reason) for name, share in plan.shares.items() if share.units == 1 and not share.kept]


# ---------------------------------------------------------------- before the cuts


def _take_out_entries_(model: nn.Module, seen: _Seen, check: Check) -> tuple[str, ...]:
    """Take whole blocks that do nothing any more out of their lists; returns the names that they had."""
    stay, undo = idle_entries(model, seen.structure, seen.there) if seen.knowing is not None else {}, Undo()
    if not stay:
        return ()
    places = {name: range(len(model.get_submodule(name)._modules)) for name in stay}
    names = [f"{name}.{index}" for name, kept in stay.items() for index in places[name] if index not in kept]
    step = without_entries(model, stay)
    check.ask()
    try:
        check.same_after(lambda: take_entries_(model, step, undo), undo)
    except SecateursError:  # other code counts on them
        return ()
    remember_(model, step, undo)
    return tuple(names)


def _take_out_idle_(model: nn.Module, seen: _Seen, check: Check) -> tuple[str, ...]:
    """Take out the layers that do nothing any more; returns their names."""
    step, undo = idle_modules(model, seen.structure, seen.knowing, seen.there) if seen.knowing is not None else Step(), Undo()
    if not step.identities and not step.zeros:
        return ()
    check.ask()
    try:
        check.same_after(lambda: take_out_(model, step, undo), undo)
    except SecateursError:  # other code asks for what is within them
        return ()
    remember_(model, step, undo)
    return (*step.identities, *step.zeros)


def _fold_constants_(model: nn.Module, seen: _Seen, check: Check) -> tuple[int, dict[Axis, str]]:
    """Move what constant channels add into the next biases; returns how many there were, and why others stay."""
    knowing = seen.knowing
    if knowing is None:
        return 0, {}
    constants, undo = constant_units(model, seen.structure, knowing, seen.there), Undo()
    if not constants.work:
        return 0, constants.left
    check.ask()
    try:
        folded, _ = check.same_after(lambda: fold_constants_(constants, knowing, undo), undo)
    except SecateursError as problem:
        reason = f"constant units were not folded: {str(problem).splitlines()[0]}"
        return 0, {**constants.left, **{axis: reason for axis, _, _ in constants.work}}
    return int(folded), constants.left


# ---------------------------------------------------------------- trying


@dataclass
class _Work:
    """One shrinking in progress: what was accepted, and how to put back the last attempt."""

    model: nn.Module
    structure: Structure
    example: Any
    optimizer: torch.optim.Optimizer | None
    present: Choice
    names: Mapping[Axis, str]
    check: Check
    accepted: list[Axis] = field(default_factory=list)
    failed: dict[Axis, str] = field(default_factory=dict)
    undo: Undo = field(default_factory=Undo)
    done: list[Axis] = field(default_factory=list)
    cuts: Mapping[str, Indices] = field(default_factory=dict)
    anew: tuple[str, ...] = ()
    difference: float = 0.0

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
        return Shrunk(sites, (before, _count(self.model)), skipped, self.difference, anew=self.anew)

    def _attempt(self, axes: list[Axis], check: bool) -> str | None:
        """Shrink along these axes, from the model as it was; where that fails, why, and the model is as it was.

        Where no size in the code has to follow, none is looked for unless the check fails. Where the code takes another way once its
        attributes have followed (``if self.repeats > 1``), they keep their values.
        """
        if axes == self.done:
            return None
        self.undo()
        self.done = []
        if check:
            self.check.ask()
        reason = None
        choice = {axis: self.present[axis] for axis in axes}
        ways = [(True, True), (False, True)] if axes else []
        if axes and check and sizes_stay(self.model, self.structure, choice):
            ways.insert(0, (True, False))
        for follow, rewriting in ways:
            again = self._try(choice, check, follow, rewriting)
            if again is None:
                self.done = list(axes)
                return None
            reason = reason or (again if rewriting else None)
        return reason

    def _try(self, choice: Choice, check: bool, follow: bool, rewriting: bool) -> str | None:
        try:
            if check:
                _, self.difference = self.check.same_after(lambda: self._shrink(choice, follow, rewriting), self.undo)
            else:
                self._shrink(choice, follow, rewriting)
        except SecateursError as problem:
            self.undo()
            if isinstance(problem, Incomparable):
                raise
            return str(problem).splitlines()[0]
        except BaseException:
            self.undo()
            raise
        return None

    def _shrink(self, choice: Choice, follow: bool, rewriting: bool) -> None:
        model, structure = self.model, self.structure
        tensors = {**parameters_in(model, again=True), **buffers_in(model, again=True)}
        self.cuts, written = _cuts(structure, choice)
        self.undo.add(partial(self.__dict__.update, cuts={}, anew=()))
        shapes = {name: list(tensors[name].shape) for name in self.cuts}
        attributes: dict[str, dict[str, list[Any]]] = {}
        self.anew = cut_(model, self.cuts, self.undo, self.optimizer)
        self._set(attributes_of_code(model, structure, choice, follow), attributes)
        self._set(rescale_(model, structure, choice, self.undo), attributes)
        self._set(implied(model, structure.trace.computed), attributes)
        rewrites = rewrites_for(model, structure, choice, self.example) if rewriting else {}
        self._set(unfused(model, rewrites), attributes)
        rewrite_(model, rewrites, self.undo)
        remember_(model, Step(shapes, written, attributes, rewrites), self.undo)

    def _set(self, changes: Mapping[str, Mapping[str, list[Any]]], noted: dict[str, dict[str, list[Any]]]) -> None:
        """Give attributes their new values, and note them."""
        set_attributes_(self.model, changes, self.undo)
        for name, found in changes.items():
            for key, (old, new) in found.items():
                noted.setdefault(name, {}).setdefault(key, [old, new])[1] = new


def _cuts(structure: Structure, choice: Choice) -> tuple[dict[str, dict[int, Tensor]], dict[str, dict[int, list[int]]]]:
    """Tensor → dimension → the indices that stay: as tensors to cut with, and as lists to write down."""

    @cache
    def stays(dim: Dim) -> tuple[Tensor, list[int]] | None:
        stay = kept(dim, choice)
        return None if bool(stay.all()) else ((indices := stay.nonzero().flatten()), indices.tolist())

    cuts: dict[str, dict[int, Tensor]] = {}
    written: dict[str, dict[int, list[int]]] = {}
    for name, dims in {**structure.parameters, **structure.buffers}.items():
        for place, dim in enumerate(dims):
            if (found := stays(normal(dim))) is not None:
                cuts.setdefault(name, {})[place], written.setdefault(name, {})[place] = found
    return cuts, written
