"""Masks are law: which weights are gone, and keeping them at zero through whatever a training loop does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from itertools import accumulate
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateurs.forward import parameters_in
from secateurs.given import require_values, told
from secateurs.masks.exchange import changed, plain_optimizer, require_forgetful, require_whole_units, write_
from secateurs.masks.origin import UNKNOWN, Origin
from secateurs.masks.pieces import pieces
from secateurs.patterns import find_weights
from secateurs.ranks import is_sharded, require_same, shard_of, sharded_as, together, whole
from secateurs.types import KindError, Plan, SecateursError, Site, Skipped

_AROUND, _WITHIN = (
    ("module.", "base_model.model."),
    ("_orig_mod.", "base_layer."),
)  # of DistributedDataParallel, peft | compile, peft
_SHOWN = 8  # reasons that print(masks) tells


class Masks(Mapping[str, Tensor]):
    """Parameter name → bool tensor of its shape, ``True`` = kept; one byte a weight, and a hold on the parameters themselves.

    ``origin`` tells how they came about: ``plan``, ``pattern``, ``skipped`` and the ``example`` input. Weights are set to zero exactly
    (+0.0, NaN included), after each step of every optimizer that the masks are attached to, so momentum, weight decay and whatever else
    an optimizer does cannot bring them back.

    >>> layer = nn.Linear(2, 1)
    >>> masks = Masks({"weight": torch.tensor([[True, False]])}, layer)
    >>> masks.apply_().sparsity, layer.weight[0, 1].item()
    (0.5, 0.0)
    """

    def __init__(self, masks: Mapping[str, Tensor], model: nn.Module, origin: Origin = UNKNOWN) -> None:
        if not isinstance(origin, Origin):
            raise KindError(f"Masks: origin is {told(origin)}, but must be an Origin, for example Origin(plan, pattern)")
        self._masks: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.origin = origin
        exact = parameters_in(model, again=True)
        unwrapped = {_unwrapped(name): parameter for name, parameter in exact.items()}
        self._kept: dict[str, int] = {}
        self._carried, self._taken_out = False, frozenset[str]()
        self._handles: list[RemovableHandle] = []
        for name, mask in masks.items():
            parameter = exact[name] if name in exact else unwrapped.get(_unwrapped(name))
            if parameter is None:
                raise SecateursError(
                    f"{name}: there is a mask for this parameter, but {type(model).__name__} has no such parameter"
                )
            if mask.dtype != torch.bool:
                raise SecateursError(
                    f"{name}: a mask must be a bool tensor of shape {tuple(parameter.shape)}, "
                    f"not {mask.dtype} of shape {tuple(mask.shape)}"
                )
            if mask.shape != parameter.shape:
                raise SecateursError(
                    f"{name}: the mask is of shape {tuple(mask.shape)}, but the weight of {tuple(parameter.shape)}: "
                    "the masks belong to another model"
                )
            if is_sharded(parameter):  # counted while it is whole: to be asked about masks must not take all processes
                self._kept[name] = int(torch.count_nonzero(whole(mask)))
            self._masks[name], self._parameters[name] = sharded_as(mask, parameter), parameter
        masked = set(map(id, self._parameters.values()))
        self._unmasked = {name: each for name, each in parameters_in(model).items() if id(each) not in masked}
        _living[id(self)] = self

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @property
    def plan(self) -> Plan | None:
        """The plan by which the units were chosen; none where there was no such plan."""
        return self.origin.plan

    @property
    def pattern(self) -> str:
        """How the weights were cut into units, in words."""
        return self.origin.pattern

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """What was left alone, and why."""
        return self.origin.skipped

    @property
    def example(self) -> Any:
        """The input on which the model was looked at."""
        return self.origin.example

    def __repr__(self) -> str:
        return f"Masks({len(self)} parameters, sparsity {self.sparsity:.4f})"

    def __str__(self) -> str:
        """The sparsity of the masked weights and of the whole model, new statistics, then what was left alone, largest first, and why.

        >>> from secateurs.types import Skipped
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2))
        >>> masks = Masks({"0.weight": torch.eye(2).bool()}, model, Origin(skipped=(Skipped("1", "a normalisation, never pruned"),)))
        >>> print(masks)
        1 parameter masked, sparsity 0.5000; of the whole model 0.2500
        left alone, 50.0 % of the parameters: 1: a normalisation, never pruned
        """
        masked = sum(mask.numel() for mask in self.values())
        total = masked + sum(parameter.numel() for parameter in self._unmasked.values())
        removed = masked - sum(map(self._kept_of, self))
        counted = f"{len(self)} parameter{'' if len(self) == 1 else 's'} masked"
        lines = [f"{counted}, sparsity {self.sparsity:.4f}; of the whole model {removed / total if total else 0.0:.4f}"]
        if (anew := len(self.origin.recalibrated)) > 0:
            lines.append(f"statistics of {anew} BatchNorm{'s' * (anew > 1)} taken anew on the calibration batches")
        reasons: dict[str, list[str]] = {}
        for item in self.skipped:
            reasons.setdefault(item.reason, []).append(item.name)
        shares = {reason: self._unmasked_in(names) / total if total else 0.0 for reason, names in reasons.items()}
        for reason in sorted(shares, key=shares.__getitem__, reverse=True)[:_SHOWN]:
            names = reasons[reason]
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            share = f", {shares[reason]:.1%} of the parameters".replace("%", " %") if shares[reason] else ""
            lines.append(f"left alone{share}: {shown}: {reason}")
        more = len(shares) - _SHOWN
        return "\n".join([*lines, f"and for {more} reasons more, see masks.skipped"] if more > 0 else lines)

    def _unmasked_in(self, names: Iterable[str]) -> int:
        """How many numbers the parameters of some layers hold that no mask reaches."""
        wanted = set(names)
        return sum(
            parameter.numel()
            for name, parameter in self._unmasked.items()
            if any(part in wanted for part in accumulate(name.split("."), "{}.{}".format))
        )

    @property
    def kept(self) -> int:
        """Weights that stay, of the masked weights."""
        return sum(map(self._kept_of, self._weights()))

    @property
    def sparsity(self) -> float:
        """Fraction removed of the masked weights; biases, which only dead neurons lose, do not count."""
        total = sum(self[name].numel() for name in self._weights())
        return 1 - self.kept / total if total else 0.0

    def _weights(self) -> list[str]:
        return [name for name, mask in self._masks.items() if mask.ndim > 1]

    def _kept_of(self, name: str) -> int:
        return self._kept[name] if name in self._kept else int(torch.count_nonzero(self._masks[name]))

    @torch.no_grad()
    def apply_(self, model: nn.Module | None = None) -> Masks:
        """Set the pruned weights to zero, in the model that was pruned or in a copy of it (an average of its weights, say)."""
        if model is not None:
            self.bind(model).apply_()
            return self
        for _, parts in self.applied_():
            for _ in parts:
                pass
        return self

    def applied_(self, moved: dict[str, int] | None = None) -> Iterator[tuple[nn.Parameter, Iterator[Tensor]]]:
        """Each parameter, and its pieces as they are once the pruned weights are set to zero, which is done as they are asked for.

        ``moved`` counts by parameter how many of them were not zero before.
        """
        for name, parameter in self._parameters.items():
            mask = self._masks[name]
            if mask.shape != parameter.shape:
                raise SecateursError(
                    f"{name}: its mask is of shape {tuple(mask.shape)}, but the parameter is of {tuple(parameter.shape)} by now; "
                    "if it was meant to be resized, end these masks: handle.remove() of what masks.attach(optimizer) returned"
                )
            if mask.device != parameter.device:
                mask = self._masks[name] = mask.to(parameter.device)
            here, kept = shard_of(parameter.detach()), shard_of(mask)
            yield parameter, _zeroed_(here, kept) if moved is None else _zeroed_counted_(here, kept, name, moved)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": []}  # no optimizer has the copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _living[id(self)] = self

    def bind(self, model: nn.Module) -> Masks:
        """The same masks for another copy of the model; what wrappers add to names (DistributedDataParallel, compile, averages, the
        adapters of peft) is ignored.

        Raises `SecateursError` where a mask does not fit, or where the copy is one from before a `shrink_` that these masks have followed.
        """
        if self._carried:
            self._require_shrunk(model)
        bound = Masks(self._masks, model, self.origin.forgetting())
        bound._carried, bound._taken_out = self._carried, self._taken_out
        return bound

    def _require_shrunk(self, model: nn.Module) -> None:
        """Raise `SecateursError` where a model is larger than the one that these masks have followed since `shrink_`."""
        exact = parameters_in(model, again=True)
        unwrapped = {_unwrapped(name): parameter for name, parameter in exact.items()}
        shapes = {name: parameter.shape for name, parameter in {**self._unmasked, **self._parameters}.items()}
        for name in (*shapes, *sorted(self._taken_out)):
            here = exact.get(name, unwrapped.get(_unwrapped(name)))
            if here is not None and here.shape != shapes.get(name):
                small = f"is of shape {tuple(shapes[name])} there" if name in shapes else "is not there any more"
                raise SecateursError(
                    f"{name}: since shrink_ these masks follow the smaller model, where it {small}, but it is of {tuple(here.shape)} in "
                    f"this {type(model).__name__}: bind the masks to the copy before shrinking, or copy the smaller model"
                )

    def named_as_in(self, model: nn.Module) -> dict[str, Tensor]:
        """The masks under the names that a model has for their parameters: wrappers' prefixes included, tied ones once.

        >>> layer = nn.Linear(2, 1)
        >>> list(Masks({"module.weight": torch.tensor([[True, False]])}, layer).named_as_in(layer))
        ['weight']
        """
        names = {id(parameter): name for name, parameter in parameters_in(model).items()}
        named: dict[str, Tensor] = {}
        for name, parameter in self.bind(model)._parameters.items():
            known = named.get(names[id(parameter)])
            named[names[id(parameter)]] = self[name] if known is None else self[name] & known.to(self[name].device)
        return named

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Apply the masks now and after each step of the optimizer; ``handle.remove()`` ends it.

        Raises `SecateursError` where the optimizer trains none of the masked parameters, `TypeError` where it is no torch optimizer.
        Warns where the masks hold nothing, unless `shrink_` has left nothing to hold.

        >>> layer = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> handle = Masks({"weight": torch.tensor([[True, False]])}, layer).attach(optimizer)
        """
        handle = self.hold(optimizer)
        if not self._carried and all(self._kept_of(name) == mask.numel() for name, mask in self._masks.items()):
            warnings.warn(
                "these masks hold nothing: no weight is pruned, and training will fill zeros. Do they come from a file without masks? "
                "Masks.of_zeros(model) makes those that a model's zeros mean",
                stacklevel=2,
            )
        return handle

    def trained_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer trains any of the masked parameters."""
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return any(id(parameter) in trained for parameter in self._parameters.values())

    def hold(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """As `attach`, where it is no surprise that nothing is pruned yet."""
        optimizer = plain_optimizer(optimizer)
        if self and not self.trained_by(optimizer):
            if not any(parameter.requires_grad for parameter in self._parameters.values()):
                raise SecateursError(
                    "the masked parameters are frozen, so no optimizer can fill them and there is nothing to attach: where adapters (LoRA) "
                    "are trained beside them, call masks.apply_() once they are merged"
                )
            raise SecateursError(
                "the optimizer trains none of the masked parameters: was it made for another copy of the model, or was the model sharded "
                "since (fully_shard)? make it from model.parameters() of the pruned model, or use masks.bind(copy).attach(optimizer)"
            )
        self.apply_()
        handle = optimizer.register_step_post_hook(self._after_step)
        self._handles = [each for each in self._handles if _still_there(each)] + [handle]
        return handle

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.apply_()

    def replace_(self, other: Masks) -> None:
        """Become the other masks, in place, so that what is attached goes on with them; applies them."""
        self._masks, self._parameters, self._kept = dict(other._masks), dict(other._parameters), dict(other._kept)
        self.origin, self._unmasked = other.origin, other._unmasked
        self._carried, self._taken_out = other._carried, other._taken_out
        self.apply_()

    def way_back(self) -> Callable[[], None]:
        """What makes these masks, wherever they are attached, those that they are now; it writes no weights.

        >>> layer = nn.Linear(2, 1)
        >>> masks = Masks({"weight": torch.tensor([[True, True]])}, layer)
        >>> back = masks.way_back()
        >>> masks.replace_(Masks({"weight": torch.tensor([[True, False]])}, layer))
        >>> back()
        >>> masks.sparsity
        0.0
        """
        names = ("_masks", "_parameters", "_kept", "_unmasked")
        before = {name: dict(getattr(self, name)) for name in names}
        before |= {name: getattr(self, name) for name in ("origin", "_carried", "_taken_out")}
        return lambda: self.__dict__.update(before)

    def regrow_(
        self,
        back: Mapping[str, Tensor],
        values: Mapping[str, Tensor] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        sites: Iterable[Site] | None = None,
        plan: Plan | None = None,
        from_pruned: bool = False,
    ) -> Masks:
        """Let removed weights come back: parameter name → bool tensor of its shape, ``True`` where one comes. As `exchange_`.

        >>> layer = nn.Linear(2, 1)
        >>> masks = Masks({"weight": torch.tensor([[True, False]])}, layer).apply_()
        >>> masks.regrow_({"weight": torch.tensor([[False, True]])}).sparsity, layer.weight[0, 1].item()
        (0.0, 0.0)
        """
        return self.exchange_({}, back, values, optimizer=optimizer, sites=sites, plan=plan, from_pruned=from_pruned)

    def exchange_(
        self,
        gone: Mapping[str, Tensor],
        back: Mapping[str, Tensor],
        values: Mapping[str, Tensor] | None = None,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        sites: Iterable[Site] | None = None,
        plan: Plan | None = None,
        from_pruned: bool = False,
    ) -> Masks:
        """Let weights go, and others come back in their place, all at once: parameter name → bool tensor of its shape, for each of both.

        What comes back starts at zero, or at what ``values``, of the parameters' shapes, say there. An ``optimizer`` forgets what it
        remembers of it: momentum and moments are then those of weights that were never trained. The ``plan`` of the masks holds on
        where as many weights of each parameter go as come back; else it is the one that is given, or none. Of coupled units
        (``Channel()``) whole ones go and come back alone, of which ``sites`` tell. Where several processes train the model, each must
        call it, and say the same. What is attached goes on with the changed masks; those bound to copies stay as they are.

        Raises `SecateursError` for weights that are gone already, or not gone; for units in part; and where other masks hold what is to
        come back: those that an optimizer has, and with ``from_pruned=False`` all that somebody has still, because they were made by an
        earlier pruning or loaded from a file. Then nothing has changed.

        >>> layer = nn.Linear(2, 1)
        >>> masks = Masks({"weight": torch.tensor([[True, False]])}, layer).apply_()
        >>> masks.exchange_({"weight": masks["weight"]}, {"weight": ~masks["weight"]})["weight"]
        tensor([[False,  True]])
        """
        with together():
            optimizer = None if optimizer is None else self._forgetful(optimizer)
            for name in (*gone, *back, *(values or {})):
                if name not in self._masks:
                    raise SecateursError(f"{name}: there is no mask of it; the masks are of {', '.join(list(self)[:3])}, …")
            changes = [
                changed(name, self._parameters[name], mask, gone.get(name), back.get(name), (values or {}).get(name))
                for name, mask in self._masks.items()
                if name in gone or name in back
            ]
            self.require_free({each.name: each.back for each in changes if each.some}, from_pruned)
            after = {**self._masks, **{each.name: each.mask for each in changes}}
            if sites is not None:
                require_whole_units(sites, self._masks, after)
            elif self.plan is not None and self.plan.extents and changes:
                raise SecateursError(
                    f"these masks are of coupled units ({self.pattern}), which go and come back whole: give sites=, those of find_sites"
                )
        alike = {each.name: each.mask for each in changes if not is_sharded(each.mask)}
        require_same(alike, "the mask after the exchange", "mark the same weights in every process")
        held = {each.name: int(torch.count_nonzero(whole(each.mask))) for each in changes}
        balanced = all(self._kept_of(name) == count for name, count in held.items())
        write_(changes, optimizer)
        self._masks = after
        self._kept |= {name: held[name] for name in self._kept if name in held}
        self.origin = self.origin if plan is None and balanced else replace(self.origin, plan=plan)
        return self

    def _forgetful(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """An optimizer that can forget weights, and trains some."""
        plain = plain_optimizer(optimizer)
        require_forgetful(plain)
        if not self.trained_by(plain):
            raise SecateursError(
                "the optimizer trains none of the masked parameters, so it has nothing to forget: give the one that trains this model"
            )
        return plain

    def require_free(self, back: Mapping[str, Tensor], from_pruned: bool = False) -> None:
        """Raise `SecateursError` where other masks hold what is to come back: those that an optimizer has, or that anybody has."""
        for name, wanted in back.items():
            parameter = self._parameters[name]
            others = [each for each in Masks.of_any({id(parameter)}) if each is not self]
            for masks in others if wanted.shape == parameter.shape else ():
                attached = any(map(_still_there, masks._handles))
                theirs = [mask for own, mask in masks._masks.items() if masks._parameters[own] is parameter]
                here = shard_of(sharded_as(wanted, parameter))
                count = sum(int((here & ~shard_of(mask).to(here.device)).sum()) for mask in theirs)
                if count and (attached or not from_pruned):
                    whose = "which an optimizer has" if attached else "of an earlier pruning or a file"
                    end = (
                        "end them with handle.remove() of what masks.attach(optimizer) returned"
                        if attached
                        else "say from_pruned=True"
                    )
                    raise SecateursError(
                        f"{name}: {count} of the weights that are to come back are held at zero by other masks, {masks!r}"
                        f"{f' of {masks.pattern}' if masks.pattern else ''}, {whose}: what they removed stays gone. Train with those, "
                        f"train_(..., masks=...), or {end}"
                    )

    def require_of(self, model: nn.Module) -> None:
        """Raise `SecateursError` where none of the masked parameters is one of this model's: they are those of a copy of it, say."""
        own = {id(parameter) for parameter in parameters_in(model).values()}
        held = self._parameters or (self._unmasked if self._carried else {})
        if held and not any(id(parameter) in own for parameter in held.values()):
            raise SecateursError(
                f"none of the masked parameters ({next(iter(held))}, …) is one of this {type(model).__name__}'s: were the masks made "
                "for another copy of it? use masks.bind(model)"
            )

    def follow_(
        self,
        change: Callable[[nn.Parameter, Tensor], Tensor | None],
        gone: Callable[[nn.Parameter], bool],
        concerned: Container[int] = (),
        moved: Mapping[str, str] | None = None,
    ) -> None:
        """Replace each mask by what its parameter's change makes of it: ``None`` where it is no mask any more; forget what is gone.

        What is gone of the parameters ``concerned`` (ids) was taken out of the model by this very change; ``moved`` are parameters that
        have another name since, the old one → the new one.
        """
        parameters = {**self._unmasked, **self._parameters}
        changed = {name: change(self._parameters[name], mask) for name, mask in self._masks.items()}
        self._masks = {name: mask for name, mask in changed.items() if mask is not None}
        self._parameters = {name: self._parameters[name] for name in self._masks}
        self._unmasked = {name: each for name, each in parameters.items() if name not in self._masks and not gone(each)}
        self._taken_out |= {name for name, each in parameters.items() if gone(each) and id(each) in concerned}
        if moved:
            self._rename(moved)
        self.origin, self._carried = self.origin.forgetting(), True

    def _rename(self, moved: Mapping[str, str]) -> None:
        before = {*self._parameters, *self._unmasked}
        self._masks = {moved.get(name, name): mask for name, mask in self._masks.items()}
        self._parameters = {moved.get(name, name): each for name, each in self._parameters.items()}
        self._unmasked = {moved.get(name, name): each for name, each in self._unmasked.items()}
        self._taken_out = (self._taken_out | before) - {*self._parameters, *self._unmasked}

    @staticmethod
    def of_any(parameters: Container[int]) -> list[Masks]:
        """All masks that somebody has still, an optimizer to which they are attached, say, and that hold any of the parameters (ids)."""
        living = list(_living.values())
        return [masks for masks in living if any(id(parameter) in parameters for parameter in masks._parameters.values())]

    @staticmethod
    def of_zeros(model: nn.Module, names: Iterable[str] | None = None) -> Masks:
        """The masks that a model's zeros mean: for the parameters named, by default for each prunable weight that has zeros.

        A weight that is nothing but zeros has not been pruned but not been trained (the last layer of a branch that starts from
        nothing), and is left out unless it is named. Raises `SecateursError` for a name that the model does not have.

        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[0.0, 5.0]])
        >>> Masks.of_zeros(layer, ["weight"])["weight"]
        tensor([[False,  True]])
        """
        require_values("Masks.of_zeros", model)
        parameters = parameters_in(model, again=True)
        if names is None:
            there = {weight.parameter: whole(weight.value.detach()) != 0 for weight in find_weights(model)[0]}
            return Masks({name: mask for name, mask in there.items() if bool(mask.any()) and not bool(mask.all())}, model)
        chosen = [names] if isinstance(names, str) else list(names)
        for name in chosen:
            if name not in parameters:
                close = ", ".join(get_close_matches(name, parameters, n=3)) or f"one of {', '.join(list(parameters)[:3])}, …"
                raise SecateursError(f"{name}: {type(model).__name__} has no such parameter; did you mean {close}?")
        return Masks({name: parameters[name].detach() != 0 for name in chosen}, model)


_living: WeakValueDictionary[int, Masks] = WeakValueDictionary()

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes → the whole numbers of that size."""


def _still_there(handle: RemovableHandle) -> bool:
    """Whether what a handle stands for was not removed, and who has it is still there."""
    hooks = handle.hooks_dict_ref()
    return hooks is not None and handle.id in hooks


def _zeroed_counted_(weight: Tensor, mask: Tensor, name: str, moved: dict[str, int]) -> Iterator[Tensor]:
    """As `_zeroed_`, and count what was not zero: a piece that stays as it is, the rule, is only read."""
    bits = INTEGERS.get(weight.element_size())
    for some, kept in pieces(weight, mask):
        if bits is not None and torch.equal((before := some.view(bits)) * kept, before):
            yield some
            continue
        count = int(torch.count_nonzero((some != 0) & ~kept))
        if count:
            moved[name] = moved.get(name, 0) + count
        yield from _zeroed_(some, kept)


def _zeroed_(weight: Tensor, mask: Tensor) -> Iterator[Tensor]:
    """Set to +0.0 what a mask does not keep, NaN too: bits times 1 or 0, several times faster than a choice between two numbers.

    Gives each piece while it is still in the processor's cache.
    """
    bits = INTEGERS.get(weight.element_size())
    if bits is None:
        yield weight.masked_fill_(~mask, 0)
        return
    for some, kept in pieces(weight, mask.view(torch.int8)):
        some.view(bits).mul_(kept.to(bits))
        yield some


def _unwrapped(name: str) -> str:
    for part in _WITHIN:
        name = name.replace(part, "")
    while (prefix := next((each for each in _AROUND if name.startswith(each)), None)) is not None:
        name = name.removeprefix(prefix)
    return name
