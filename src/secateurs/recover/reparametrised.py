"""Weights that are computed, in each step, from whole ones and from a few numbers that are learned beside them.

The network computes with w = f(v, θ). Its own parameters hold w, so its answers, its state and its masks are those of the sparse network;
the hook keeps v, the weights whole, and θ. Just before a step of the optimizer the gradient of w becomes that of v and of θ by the chain
rule, and v takes w's place; just after it θ is stepped too, and w is computed anew. Between, nobody sees anything but the sparse network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from secateurs.allocate import global_threshold
from secateurs.forward import parameters_in
from secateurs.given import COUNT, require
from secateurs.masks import Masks
from secateurs.patterns import Selection, find_sites
from secateurs.prune import masks_of, prune_
from secateurs.ranks import over_shards, shard_of, sharded_as
from secateurs.recover.inner import inside
from secateurs.recover.strength import Strength
from secateurs.recover.trial import needs_closure
from secateurs.solve import TopK
from secateurs.types import Criterion, FileError, Hook, NonFiniteError, Pattern, Run, SecateursError, Sites, Solution

Learner = Callable[[list[Tensor]], torch.optim.Optimizer]
"""What makes the optimizer of the numbers that are learned beside the weights."""

Values = Mapping[str, Tensor]


class Chance:
    """Random numbers that are alike in all processes, and go on where a checkpoint left them.

    >>> bool((Chance(0).uniform((2,), torch.ones(1)) == Chance(0).uniform((2,), torch.ones(1))).all())
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.generators: dict[str, torch.Generator] = {}

    def uniform(self, shape: Sequence[int], beside: Tensor) -> Tensor:
        """Numbers in [0, 1) where another tensor is."""
        return torch.rand(tuple(shape), generator=self._generator(beside), device=beside.device)

    def normal(self, shape: Sequence[int], beside: Tensor) -> Tensor:
        """Numbers of mean 0 and variance 1 where another tensor is."""
        return torch.randn(tuple(shape), generator=self._generator(beside), device=beside.device)

    def _generator(self, beside: Tensor) -> torch.Generator:
        device = str(beside.device)
        if device not in self.generators:
            self.generators[device] = torch.Generator(beside.device).manual_seed(self.seed)
        return self.generators[device]

    def state(self) -> dict[str, Tensor]:
        return {device: generator.get_state() for device, generator in self.generators.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        found = {}
        for device, saved in state.items():
            found[device] = torch.Generator(device)
            found[device].set_state(saved)
        self.generators = found


@dataclass(frozen=True)
class Beside:
    """What is learned beside the weights of some sites, and how the weights are computed of it.

    ``values``: the numbers by name, float32. ``of``: the weights, and of which values each is computed. ``weight(name, v, values, noise)``
    is f, differentiable in v and in the values; v is this process's shard of the weight, and so are values that are not ``shared``: of
    those that are, each process has all, and their gradients are summed over the shards. ``noise`` is empty where the network is not in
    training. ``penalty(values)`` presses for sparsity, at strength 1; of sharded values, this process's part. ``pull(name, v, w)`` is
    added to the gradient of a whole weight, times the strength, and ``lean(name, w)`` to that of the computed one. ``scores``: what says
    which units go first where a target must be met by force. ``kept``: site → the units that stay, where that says more than the zeros
    of w. ``expected``: the fraction that is kept on average, where that is a matter of chance. ``left``: the fraction that a target is of,
    where that is not of the weights. ``final`` makes the values what they are to be; where it is there, weights go on being computed of
    them to the end of the training, and zeros are no masks. ``tell``: what the history says of the values, in place of the sparsity.
    ``begun``: what the whole weights begin as, where that is not the weights as they are. ``removed`` is told a weight's mask, this
    process's shard, each time that masks are laid over it.
    """

    values: dict[str, Tensor]
    of: Mapping[str, tuple[str, ...]]
    weight: Callable[[str, Tensor, Values, Values], Tensor]
    shared: bool = False
    penalty: Callable[[Values], Tensor] | None = None
    pull: Callable[[str, Tensor, Tensor], Tensor] | None = None
    lean: Callable[[str, Tensor], Tensor] | None = None
    noise: Callable[[Chance, float], dict[str, Tensor]] | None = None
    scores: Callable[[Values, Values], Criterion] | None = None
    kept: Callable[[Values], Mapping[str, Tensor]] | None = None
    expected: Callable[[Values], float] | None = None
    left: Callable[[Values], float] | None = None
    final: Callable[[Values], None] | None = None
    tell: Callable[[Values], dict[str, float]] | None = None
    begun: Values = field(default_factory=dict)
    removed: Callable[[str, Tensor], None] | None = None


def added(parts: Iterable[Tensor]) -> Tensor:
    """A sum of single numbers, wherever each of them is.

    >>> added([torch.tensor(1.0), torch.tensor(2.0)])
    tensor(3.)
    """
    found = list(parts)
    return torch.stack([part.to(found[0].device) for part in found]).sum() if found else torch.zeros(())


@dataclass(frozen=True)
class Where:
    """Which weights take part."""

    pattern: Pattern
    only: Selection | None = None
    skip: Selection | None = None

    def sites(self, run: Run) -> Sites:
        model = inside(run.model)
        masks = run.masks.named_as_in(model) if run.masks else None
        return find_sites(model, self.pattern, run.task.example, only=self.only, skip=self.skip, masks=masks)


_acting: WeakValueDictionary[int, Reparametrised] = WeakValueDictionary()


@dataclass(eq=False)
class Reparametrised:
    """Weights computed of whole ones and of what is learned beside them; `hook()` is what plugs into training.

    In a loop of one's own: ``hook.start(run)`` with a `Run` of model, task, optimizer, epochs and masks, then train as ever: the rest
    happens in the steps of that optimizer. ``hook.epoch_end(run)`` after each epoch counts epochs, and sees whether all is well;
    ``hook.end(run)`` makes the masks, in ``run.masks``, and lets go of the optimizer.
    """

    name: str
    where: Where
    begin: Callable[[Sites, Chance], Beside]
    learner: Learner
    strength: Strength
    end: int | None = None
    strict: bool = False
    frozen: bool = False
    chance: Chance = field(default_factory=lambda: Chance(0))
    over: bool = False
    beside: Beside | None = None
    sites: Sites | None = None
    whole: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, nn.Parameter] = field(default_factory=dict)
    optimizer: torch.optim.Optimizer | None = None
    first_rate: float = 0.0
    rates: list[float] = field(default_factory=list)
    steps: int = 0
    per_epoch: int = 0
    noise: dict[str, Tensor] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)
    unsettled: bool = False
    unchecked: bool = True
    laid: tuple[list[Tensor], Values] = field(default_factory=lambda: ([], {}))
    sound: bool = True
    told: set[str] = field(default_factory=set)
    saved: Mapping[str, Any] | None = None
    restored: bool = False

    def __post_init__(self) -> None:
        if self.end is not None:
            require(self.name, "end", self.end, COUNT)
            if self.end < 0:
                raise SecateursError(
                    f"{self.name}: end={self.end}, the epoch from which on the zeros are masks, must be at least 0"
                )

    def hook(self) -> Hook:
        return Hook(
            self.name,
            start=self._start,
            epoch=self._epoch,
            epoch_end=self._epoch_end,
            end=self._finish,
            close=self._close,
            state=self._state,
            restore=self._restore,
        )

    # ------------------------------------------------------------ beginning

    def _start(self, run: Run) -> None:
        own = parameters_in(inside(run.model))
        if not self.restored and (self.over or any(own.get(name) is not weight for name, weight in self.weights.items())):
            self._forget()
        self.restored = False
        if self.over:
            return
        if needs_closure(run.optimizer):
            raise SecateursError(
                f"{self.name}: {type(run.optimizer).__name__} computes several gradients in one step, between which the weights cannot be "
                "computed anew: take an optimizer that takes one, such as SGD or AdamW"
            )
        again = self.saved or (self._state() if self.whole else None)
        sites = self.where.sites(run)
        beside = self.begin(sites, self.chance)
        weights = {name: parameter for name, parameter in parameters_in(inside(run.model)).items() if name in beside.of}
        self._require_trained(weights, run.optimizer)
        self.sites, self.beside, self.weights = sites, beside, weights
        self.whole = {name: shard_of(beside.begun.get(name, weight.detach())).clone() for name, weight in weights.items()}
        self._require_finite()
        for value in beside.values.values():
            value.requires_grad_()
        self.optimizer = self.learner(list(beside.values.values())) if beside.values else None
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups] if self.optimizer is not None else []
        group = run.optimizer.param_groups[0]
        self.first_rate = float(group.get("initial_lr", group["lr"]))
        if again is not None:
            self._go_on(again)
        self._hold(run)
        if again is None:
            self._settle(run)
        self.unchecked = True

    def _forget(self) -> None:
        """Begin anew: what an earlier run of this hook has learned is none of this one's."""
        self.over, self.beside, self.sites, self.optimizer, self.saved = False, None, None, None, None
        self.whole, self.weights, self.noise, self.laid, self.told = {}, {}, {}, ([], {}), set()
        self.steps = self.per_epoch = 0
        self.strength.forget_()
        self.chance.restore({})

    def _require_trained(self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, weight in weights.items():
            if not weight.requires_grad or id(weight) not in trained:
                why = "is not trained by the optimizer" if weight.requires_grad else "is frozen"
                raise SecateursError(
                    f"{self.name}: {name} {why}, so that no gradient tells what to learn beside it: train it, or leave it out with "
                    f'skip=["{name.rpartition(".")[0] or name}"]'
                )
            other = _acting.get(id(weight))
            if other is not None and other is not self and other.weights.get(name) is weight:
                raise SecateursError(
                    f"{self.name}: {name} is computed by {other.name} already: one weight cannot be computed in two ways; share "
                    "the weights out with only= and skip="
                )

    def _require_finite(self) -> None:
        for name, weight in self.whole.items():
            if weight.numel() and not bool(weight.isfinite().all()):
                raise NonFiniteError(f"{name}: a weight is NaN or infinite; restore a checkpoint from before they diverged")

    def _hold(self, run: Run) -> None:
        """From here on until `_close`, the steps of the optimizer are those of whole weights."""
        optimizer = run.optimizer
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner  # as masks do: accelerate's passes its steps on to this one, without the hooks
        self._let_go()
        before = lambda optimizer, *_: self._before_step(run, optimizer)  # noqa: E731
        after = lambda optimizer, *_: self._after_step(run, optimizer)  # noqa: E731
        self.handles = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        if self.beside is not None and self.beside.noise is not None:
            draw = lambda module, _: self._draw(run) if module is run.model else None  # noqa: E731 (not in a copy of the model)
            self.handles.append(run.model.register_forward_pre_hook(draw, prepend=True))
        _acting.update({id(weight): self for weight in self.weights.values()})

    def _let_go(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for weight in self.weights.values():
            if _acting.get(id(weight)) is self:
                del _acting[id(weight)]

    # ------------------------------------------------------------ a step

    def _compute(self, name: str, whole: Tensor) -> Tensor:
        assert self.beside is not None
        return self.beside.weight(name, whole, self.beside.values, self.noise).to(whole.dtype)

    def _settle(self, run: Run) -> None:
        """The network as it is without noise: what is validated, written and handed over."""
        self.noise = {}
        self._write(run)

    @torch.no_grad()
    def _write(self, run: Run) -> None:
        self.unsettled = True
        for name, weight in self.weights.items():
            shard_of(weight.detach()).copy_(self._compute(name, self.whole[name]))
        self.unsettled = bool(self.noise)

    @torch.no_grad()
    def _check(self, run: Run) -> None:
        """Once an epoch: raise `SecateursError` where somebody has changed the weights that are computed here, but by masks."""
        masks = self._masks(run)
        for name, weight in self.weights.items() if self.unchecked else ():
            computed = self._compute(name, self.whole[name])  # of what it was before masks that are new
            masked = computed.masked_fill(~shard_of(masks[name]), 0) if name in masks else computed
            if not torch.equal(masked, shard_of(weight.detach())):
                raise SecateursError(
                    f"{self.name}: {name} is not what it was computed to be: something else has changed it (weights that were loaded or "
                    "rewound, a constraint, a proximal step, a solver that writes weights, shrinking). While weights are computed, only "
                    "masks may be laid over them: share the weights out with only= and skip=, or let one begin after the other's end"
                )
        self.unchecked = False
        self._take_masks(run)

    def _draw(self, run: Run) -> None:
        assert self.beside is not None and self.beside.noise is not None
        if run.model.training and not self.noise:
            self._check(run)
            total = self._per_epoch(run) * max(1, self._last(run))
            done = run.epoch * self._per_epoch(run) + self.steps
            self.noise = self.beside.noise(self.chance, min(1.0, done / total))
            self._write(run)
        elif self.noise and not run.model.training:
            self._settle(run)

    def _before_step(self, run: Run, optimizer: Any) -> None:
        """The gradients of whole weights and of what is learned beside them, and the whole weights in their place."""
        assert self.beside is not None
        if getattr(optimizer, "grad_scale", None) is not None:
            raise SecateursError(f"{self.name}: the gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step")
        if self.beside.noise is not None and not self.noise:
            raise SecateursError(
                f"{self.name}: a step, but no noise was drawn for it: the loss must come from a call of the {type(run.model).__name__} "
                "itself, in training mode, not of a part of it"
            )
        sums = {key: torch.zeros_like(value) for key, value in self.beside.values.items()}
        self._check(run)
        self.unsettled = True
        for name, weight in self.weights.items():
            self._take_apart(name, weight, sums)
        if self.beside.penalty is not None:
            with torch.enable_grad():
                pressed = self.strength.now * self.beside.penalty(self.beside.values)
            used = [key for key, value in self.beside.values.items() if value.numel()]
            found = torch.autograd.grad(pressed, [self.beside.values[key] for key in used], allow_unused=True)
            for key, gradient in zip(used, found, strict=True):
                if gradient is not None:
                    sums[key] += gradient
        for key, value in self.beside.values.items():
            value.grad = sums[key]
        self.sound = self._is_sound(optimizer, sums)

    def _take_apart(self, name: str, weight: nn.Parameter, sums: dict[str, Tensor]) -> None:
        """One weight's gradient as one of its whole one, and of the values of which it is computed."""
        assert self.beside is not None
        keys = [key for key in self.beside.of[name] if self.beside.values[key].numel()]
        here, start = shard_of(weight.detach()), self.whole[name].detach().requires_grad_(weight.grad is not None)
        with torch.set_grad_enabled(weight.grad is not None):
            computed = self._compute(name, start)
        if weight.grad is not None:
            gradient = shard_of(weight.grad)
            if self.beside.lean is not None:
                gradient.add_(self.strength.now * self.beside.lean(name, computed.detach()))
            found = torch.autograd.grad(
                computed, [start, *(self.beside.values[key] for key in keys)], gradient.to(computed.dtype), allow_unused=True
            )
            for key, part in zip(keys, found[1:], strict=True):
                if part is not None:
                    sums[key] += over_shards(part, weight) if self.beside.shared else part
            own = torch.zeros_like(start) if found[0] is None else found[0]
            if self.beside.pull is not None:
                own = own + self.strength.now * self.beside.pull(name, start.detach(), computed.detach())
            gradient.copy_(own)
            if self.frozen:
                weight.grad = None
        here.copy_(self.whole[name])

    def _is_sound(self, optimizer: Any, gradients: Mapping[str, Tensor]) -> bool:
        """Whether what is learned beside may take its step: not where scaled gradients have overflowed."""
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and bool(overflow):
            return False
        sums = [gradient.sum() for gradient in gradients.values()]
        return bool(added(sums).isfinite())

    def _after_step(self, run: Run, optimizer: Any) -> None:
        for name, weight in self.weights.items():
            self.whole[name].copy_(shard_of(weight.detach()))
        self._take_masks(run)
        if self.sound and self.optimizer is not None:
            rate = float(run.optimizer.param_groups[0]["lr"]) / self.first_rate if self.first_rate else 1.0
            for group, own in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = own * rate
            self.optimizer.step()
        self._settle(run)
        self.steps += 1
        if self.strength.target is not None and self.optimizer is not None:
            total = self._per_epoch(run) * max(1, self._last(run))
            done = run.epoch * self._per_epoch(run) + self.steps
            self.strength.follow_(self._kept_soon(done / total), done / total, 1 / total)

    def _kept_soon(self, progress: float) -> float:
        """What is kept; of gates, what is expected to be, at first, as they open and close all at once."""
        assert self.beside is not None
        kept = self._kept() if self.beside.left is None else self.beside.left(self.beside.values)
        if self.beside.expected is None:
            return kept
        late = min(1.0, progress / self.strength.reach)
        return late * kept + (1 - late) * float(self.beside.expected(self.beside.values))

    @torch.no_grad()
    def _take_masks(self, run: Run) -> None:
        """What earlier prunings have removed, and what others remove meanwhile, is zero in the whole weights too."""
        for name, mask in self._masks(run).items():
            if name in self.whole:
                self.whole[name].masked_fill_(~shard_of(mask), 0)
                if self.beside is not None and self.beside.removed is not None:
                    self.beside.removed(name, shard_of(mask))

    def _masks(self, run: Run) -> Values:
        """The run's masks as they are now, by the names of the weights here."""
        masks = list(run.masks.values()) if run.masks else []
        if len(masks) != len(self.laid[0]) or any(one is not other for one, other in zip(masks, self.laid[0], strict=True)):
            self.laid = masks, run.masks.named_as_in(inside(run.model)) if masks else {}
        return self.laid[1]

    def _per_epoch(self, run: Run) -> int:
        """Steps an epoch: as many as the last one had, or as there are batches."""
        size = len(run.task.train) if hasattr(run.task.train, "__len__") else 0  # type: ignore[arg-type]
        return max(1, self.per_epoch or size, self.steps)

    def _last(self, run: Run) -> int:
        return run.epochs if self.end is None else min(self.end, run.epochs)

    def _kept(self) -> float:
        """The fraction of the weights that is not zero; of units that are learned as such, the fraction of their weights that stay."""
        if self.beside is not None and self.beside.kept is not None and self.sites is not None:
            kept, sizes = self.beside.kept(self.beside.values), {site.name: site.elements_per_unit for site in self.sites}
            all_of_it = sum(site.units * sizes[site.name] for site in self.sites)
            return sum(int(units.sum()) * sizes[name] for name, units in kept.items()) / all_of_it
        total = sum(weight.numel() for weight in self.weights.values())
        counts = [over_shards(torch.count_nonzero(shard_of(weight.detach())), weight) for weight in self.weights.values()]
        return float(added(counts)) / total if total else 1.0

    # ------------------------------------------------------------ epochs

    def _epoch(self, run: Run) -> None:
        self.unchecked = True
        if run.epoch >= self._last(run):
            self._finish(run) if self.beside is None or self.beside.final is None else self._fix(run)

    def _epoch_end(self, run: Run) -> None:
        if self.over or self.beside is None:
            return
        if self.noise:  # its step was skipped
            self._settle(run)
        self.per_epoch, self.steps = self.steps, 0
        self._require_alive()
        if run.history:
            told = {"sparsity": 1 - self._kept()} if self.beside.tell is None else self.beside.tell(self.beside.values)
            run.history[-1].update(told)

    def _require_alive(self) -> None:
        assert self.beside is not None
        for key, value in self.beside.values.items():
            if value.numel() and not bool(value.detach().isfinite().all()):
                raise NonFiniteError(
                    f"{self.name}: what is learned beside {key} became NaN or infinite: lower its learning rate, or the strength "
                    f"({self.strength.now:.3g})"
                )
        if self.weights and self._kept() == 0:
            told = f"{self.name}: everything is pruned, every weight of {', '.join(self.weights)}"
            if self.strength.target is not None:
                raise SecateursError(
                    f"{told}, though the target is {self.strength.target:.2%}: so few steps are not enough to find its strength. Train for "
                    "more, begin with a smaller strength=, or give a slower learner="
                )
            raise SecateursError(f"{told}: lower the strength ({self.strength.now:.3g}), or give a target=")
        for name, weight in self.weights.items():
            kept = over_shards(torch.count_nonzero(shard_of(weight.detach())), weight)
            if weight.numel() and not bool(kept) and name not in self.told:
                self.told.add(name)
                warnings.warn(
                    f"{self.name}: every weight of {name} is pruned: nothing passes this layer any more. Lower the strength "
                    f'({self.strength.now:.3g}), or leave it out with skip=["{name.rpartition(".")[0] or name}"]',
                    stacklevel=2,
                )

    # ------------------------------------------------------------ the end

    @torch.no_grad()
    def _fix(self, run: Run) -> None:
        """What is learned beside is what it is to be: the weights are computed of that, and learn on."""
        self._take_masks(run)
        if self.optimizer is not None and self.beside is not None and self.beside.final is not None:
            self.beside.final(self.beside.values)
            self.optimizer = None
        self._settle(run)

    def _finish(self, run: Run) -> None:
        if self.over or self.beside is None:
            return
        if self.beside.final is not None:
            self._fix(run)
            self._let_go()
            self.over, self.whole = True, {}
            return
        self._settle(run)
        self._let_go()
        self._require_alive()
        found = {name: weight.detach() != 0 for name, weight in self.weights.items()}
        for name, mask in self._of_units():
            found[name] = found[name] & sharded_as(mask, found[name]) if name in found else mask
        for name, mask in run.masks.named_as_in(inside(run.model)).items() if run.masks else ():
            found[name] = sharded_as(found[name], mask) & mask if name in found else mask
        run.masks.replace_(Masks(found, inside(run.model)))
        self._meet_target(run)
        self.over, self.whole = True, {}

    def _of_units(self) -> Iterator[tuple[str, Tensor]]:
        if self.beside is not None and self.beside.kept is not None and self.sites is not None:
            kept = self.beside.kept(self.beside.values)
            for site in self.sites:
                yield from masks_of(site, Solution(kept[site.name])).items()

    def _meet_target(self, run: Run) -> None:
        """Cut what is too much by what was learned, or say that there is."""
        assert self.beside is not None
        target, reached = self.strength.target, 1 - self._kept()
        if target is None or reached >= target:
            return
        if self.strict and self.beside.scores is not None:
            solver = TopK(self.beside.scores(self.whole, {key: value.detach() for key, value in self.beside.values.items()}))
            where, allocate = self.where, global_threshold(sparsity=target)
            masks = prune_(
                inside(run.model), where.pattern, solver, allocate, run.task, only=where.only, skip=where.skip, masks=run.masks
            )
            run.masks.replace_(masks)
        elif (1 - reached) > 1.02 * (1 - target):
            warnings.warn(
                f"{self.name}: the target of {target:.2%} was not reached, but {reached:.2%}: train for longer, begin with a larger "
                "strength=, or give strict=True, which cuts the rest by what was learned",
                stacklevel=2,
            )

    def _close(self, run: Run) -> None:
        """Let go of model and optimizer, whatever happened; the model is left as the sparse one that it is."""
        if self.handles and self.unsettled:
            self._settle(run)
        self._let_go()

    # ------------------------------------------------------------ through a checkpoint

    def _state(self) -> dict[str, Any]:
        begun = self.beside is not None and self.optimizer is not None and not self.over
        return {
            "over": self.over,
            "whole": dict(self.whole),
            "values": {key: value.detach() for key, value in self.beside.values.items()} if self.beside is not None else {},
            "optimizer": self.optimizer.state_dict() if begun and self.optimizer is not None else None,
            "strength": self.strength.state(),
            "chance": self.chance.state(),
            "first_rate": self.first_rate,
            "per_epoch": self.per_epoch,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        kinds = {"over": bool, "whole": Mapping, "values": Mapping, "chance": Mapping, "first_rate": float, "per_epoch": int}
        tensors = [*_values(state, "whole"), *_values(state, "values"), *_values(state, "chance")]
        if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()) or not all(
            isinstance(each, Tensor) for each in tensors
        ):
            raise FileError(f"{self.name}: the checkpoint holds no state of this hook")
        self.strength.restore(state["strength"])
        self.chance.restore(state["chance"])
        self.over, self.saved = state["over"], None if state["over"] or not state["whole"] else state
        self.restored = True

    def _go_on(self, state: Mapping[str, Any]) -> None:
        assert self.beside is not None
        for kind, here in (("whole", self.whole), ("values", self.beside.values)):
            there = state[kind]
            if {key: value.shape for key, value in there.items()} != {key: value.shape for key, value in here.items()}:
                raise FileError(
                    f"{self.name}: the checkpoint holds {', '.join(there)}, and here are {', '.join(here)}, of these shapes"
                )
            with torch.no_grad():
                for key, value in here.items():
                    value.copy_(there[key])
        if state["optimizer"] is None:  # the values are final
            self.optimizer = None
        elif self.optimizer is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.first_rate, self.per_epoch, self.saved = state["first_rate"], state["per_epoch"], None


def _values(state: Mapping[str, Any], key: str) -> list[Any]:
    found = state.get(key)
    return list(found.values()) if isinstance(found, Mapping) else []
