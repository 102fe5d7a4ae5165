"""Gathering the evidence: one walk over the calibration batches for everything that a criterion needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.batch import loss_of, run_batch, size_of, split
from secateurs.evidence.adding import Accumulators, add_up_
from secateurs.evidence.backward import Backward, require_gradients
from secateurs.evidence.experts import Stack, watched
from secateurs.evidence.flow import observe_flow
from secateurs.evidence.removals import observe_removals
from secateurs.evidence.routing import watched_routing
from secateurs.evidence.stream import watched_streams
from secateurs.evidence.units import Units
from secateurs.forward import check_fit, device_of, evaluating
from secateurs.given import STATISTICS, TASK, require
from secateurs.nested import tensors_in
from secateurs.progress import track
from secateurs.ranks import count, together
from secateurs.types import (
    Accumulator,
    Member,
    NonFiniteError,
    SecateursError,
    Seen,
    Site,
    Sites,
    Statistic,
    Stats,
    Task,
    TaskError,
)
from secateurs.watch import plain


def observe(model: nn.Module, sites: Sites, needs: Sequence[Statistic], task: Task) -> Stats:
    """Statistics of the weights of the sites, from the task's calibration batches (else its training batches), on the model's device.

    Of coupled weights those are watched that a statistic counts: by default the ones that make the units. Statistics of units stand
    under the site's name. The task's loss is run only where gradients are watched; the model's modes, buffers, gradients and random
    state stay as they were.

    Each expert of a mixture is observed with the tokens that reach it; where none does, the mean of the others stands for it, with a
    warning. Where several processes train one model, each observes its own batches, and what all have seen counts. Without needs it
    does nothing. Raises `TaskError` where there are no batches, no loss though it is needed, or none passes; `SecateursError` where
    what is to be watched cannot be seen, a weight is frozen; `NonFiniteError` where what was observed is NaN or infinite.

    >>> import torch
    >>> from secateurs.patterns import Element, find_sites
    >>> from secateurs.evidence import input_norm
    >>> model, batch = nn.Linear(2, 1), (torch.tensor([[3.0, 0.0], [4.0, 1.0]]), None)
    >>> norm = input_norm()
    >>> observe(model, find_sites(model, Element()), [norm], Task(example=batch[0], train=[batch]))["weight"][norm]
    tensor([[[5., 1.]]])
    """
    require("observe", "needs", needs, STATISTICS)
    require("observe", "task", task, TASK)
    if not needs:
        return {}
    watch = _Watch(sites, needs)
    with together():
        observe_flow(model, task.example, watch.flows, watch.member)
    removals = [need for need in needs if need.watches == "removals"]
    for name, seen in (observe_removals(model, sites, task) if removals else {}).items():
        for need in removals:
            watch.units.begun[name][need].add(seen)
    if any(need.needs_data for need in needs):
        _walk(model, watch, [need for need in needs if need.needs_data], task)
    return watch.results()


def _walk(model: nn.Module, watch: _Watch, needs: Sequence[Statistic], task: Task) -> None:
    """All calibration batches, one after the other."""
    batches = task.calibration if task.calibration is not None else task.train
    if batches is None:
        names = ", ".join(statistic.name for statistic in needs)
        raise TaskError(f"{names} must be observed on data: give Task(calibration=...) or Task(train=...)")
    seen = 0
    with together(), watch.entered(model), closing(track(batches, "observing")) as walk:
        for batch in walk:
            inputs, target = split(model, task, batch, "Task.loss" if watch.needs_loss and task.loss is not None else None)
            check_fit(model, inputs, "a calibration batch")
            output = run_batch(model, inputs, "a calibration batch", task.example)
            if watch.backward is not None:
                loss = loss_of(task, output, target) if watch.needs_loss else _size_of_answers(output)
                watch.backward(loss, output, size_of(inputs, target))
            seen += 1
        if not seen:
            raise TaskError("the calibration loader is empty: it gave no batch to observe")


def _size_of_answers(output: Any) -> Tensor:
    """The mean over samples of the L2 norm of what is answered, of several tensors the first."""
    found = next((each for each in tensors_in(output) if each.is_floating_point()), None)
    if found is None or not found.ndim or not found.requires_grad:
        raise SecateursError("the answers hold no floating-point numbers that depend on the weights, so their norm has no gradient")
    return found.float().flatten(min(1, found.ndim - 1)).norm(dim=-1).mean()


class _Watch:
    """Everything that is watched in one walk: the calls of layers, experts at work, gradients of weights, and units."""

    def __init__(self, sites: Sites, needs: Sequence[Statistic]) -> None:
        self.sites, self.streams = sites, [need for need in needs if need.watches == "stream"]
        self.routing = [need for need in needs if need.watches == "routing"]
        self.needs_loss = any(need.needs_loss for need in needs)
        others = [need.name for need in needs if need.needs_gradients and not need.needs_loss]
        if self.needs_loss and others:
            of_task = next(need.name for need in needs if need.needs_loss)
            raise SecateursError(
                f"{others[0]} is of the model's answers, and {of_task} of the task's loss: two losses are not watched in one walk; take "
                "one of the criteria"
            )
        of_weights = [need for need in needs if need.of == "weights"]
        of_calls = [need for need in of_weights if need.watches in ("inputs", "output_gradients")]
        of_gradients = [need for need in of_weights if need.watches in ("weight_gradients", "weight_curvatures")]
        self.members = {need: _counted(sites, need) for need in of_weights}
        self.calls = self._begun(of_calls, stacked=False)
        self.gradients = self._begun(of_gradients)
        self.flows = self._begun([need for need in of_weights if need.watches == "flow"])
        self.records = self._begun([need for need in of_weights if need.watches == "record"])
        stacks = {name: member for need in of_calls for name, member in self.members[need].items() if member.stacked}
        self.stacks = {name: Stack(member, of_calls) for name, member in stacks.items()}
        self.units = Units(sites, [need for need in needs if need.of == "units"])
        self.backward = Backward() if self.needs_loss or others else None
        if any(need.watches == "output_gradients" for need in of_calls) and stacks:
            raise SecateursError(
                f"{next(iter(stacks))}: the gradients of what experts answer are not watched; skip it with skip=[...], or take a "
                "criterion that looks at the gradients of weights"
            )

    def _begun(self, needs: Sequence[Statistic], stacked: bool | None = None) -> Mapping[str, Accumulators]:
        begun: dict[str, dict[Statistic, Accumulator]] = {}
        for need in needs:
            for name, member in self.members[need].items():
                if stacked is not None and member.stacked is not stacked:
                    continue
                try:
                    begun.setdefault(name, {})[need] = need.start(member)
                except SecateursError:
                    if member.role == "producer":
                        raise
        return begun

    def member(self, name: str) -> Member:
        return next(members[name] for members in self.members.values() if name in members)

    @contextmanager
    def entered(self, model: nn.Module) -> Iterator[None]:
        """Hooks in place, in evaluation mode, with gradients where they are needed; afterwards all as it was."""
        with ExitStack() as around:
            around.enter_context(evaluating(model))
            around.enter_context(watched(self.stacks))
            for name, accumulators in self.calls.items():
                hook = self.member(name).module.register_forward_hook(self._feed(accumulators))
                around.callback(hook.remove)
            around.enter_context(watched_streams(model, self.sites, self.units.begun, self.streams))
            around.enter_context(watched_routing(model, self.sites, self.units.begun, self.routing))
            for hook in self.units.hooks(self.backward):
                around.callback(hook.remove)
            if self.backward is not None:
                self._prepare_gradients()
                devices = [device_of(model)] if device_of(model).type == "cuda" else []
                around.enter_context(torch.random.fork_rng(devices=devices))
                around.enter_context(getattr(model, "no_sync", nullcontext)())  # others do not wait for these gradients
                around.enter_context(torch.backends.cudnn.flags(enabled=False))  # its recurrent layers have none in evaluation mode
                around.enter_context(torch.enable_grad())
                if any(curvature.of != "gauss_newton" for curvature in self.backward.curved.wanted):
                    around.enter_context(plain())  # fused attention and recurrent layers have no second derivatives
            yield

    def _prepare_gradients(self) -> None:
        assert self.backward is not None
        for name, accumulators in self.gradients.items():
            member = self.member(name)
            require_gradients(member)
            plain_ones = [accumulator for need, accumulator in accumulators.items() if need.curvature is None]
            if plain_ones:
                self.backward.of_weight(member, plain_ones)
            for need, accumulator in accumulators.items():
                if need.curvature is not None:
                    self.backward.of_curvature(member, need.curvature, accumulator)
        self.units.watch_weights(self.backward)

    def _feed(self, accumulators: Accumulators) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        now = [value for need, value in accumulators.items() if not need.needs_gradients]
        later = [value for need, value in accumulators.items() if need.needs_gradients]

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            for accumulator in now:
                accumulator.add(Seen(inputs, output))
            return self.backward.of_output(inputs, output, later) if later and self.backward is not None else None

        return hook

    def results(self) -> Stats:
        """What was found, summed over all processes."""
        kinds: dict[str, Mapping[str, Accumulators]] = {
            "calls": self.calls,
            "gradients": self.gradients,
            "flow": self.flows,
            "record": self.records,
            "units": self.units.begun,
        }
        begun: dict[str, Accumulators] = {
            f"{name} {kind}": accumulators for kind, found in kinds.items() for name, accumulators in found.items()
        }
        if count() > 1:
            add_up_(
                begun | {f"{name}[{index}]": part for name, stack in self.stacks.items() for index, part in stack.of_all().items()}
            )
        results: dict[str, dict[Statistic, Tensor]] = {}
        for key, accumulators in begun.items():
            results.setdefault(key.rpartition(" ")[0], {}).update({need: each.result() for need, each in accumulators.items()})
        for name, stack in self.stacks.items():
            results.setdefault(name, {}).update(stack.results())
        for name, statistics in results.items():
            for need, value in statistics.items():
                if not value.is_meta and not bool(torch.isfinite(value).all()):
                    raise NonFiniteError(
                        f"{name}: {need.name} is NaN or infinite: look at the calibration batches and at the model's answers to them, or "
                        "skip it with skip=[...]"
                    )
        return results


def _counted(sites: Sequence[Site], need: Statistic) -> dict[str, Member]:
    """The weights that a statistic counts; one that makes two kinds of units, once. A weight that is pruned by itself always counts."""
    roles = {"producers": ("producer",), "consumers": ("consumer",), "all": ("producer", "consumer", "scale"), "norms": ("scale",)}
    return {
        member.parameter: member
        for site in sites
        for member in site.members
        if member.role in roles[need.members] or (len(site.members) == 1 and need.members != "norms")
    }
