"""Experts that pruning has masked leave their mixture, with the rows of the router that choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.answers import telling
from secateurs.forward import buffers_in, modules_in, parameters_in
from secateurs.graph import Routed, mixtures_of
from secateurs.masks.masks import Masks
from secateurs.patterns import Expert
from secateurs.shrink.carry import carry_
from secateurs.shrink.layer_sizes import implied
from secateurs.shrink.remembered import remember_
from secateurs.shrink.same_answers import Check
from secateurs.shrink.stacks import take_entries_
from secateurs.shrink.step import Step
from secateurs.shrink.surgery import cut_, set_attributes_
from secateurs.shrink.undo import Undo
from secateurs.types import Chosen, Plan, SecateursError
from secateurs.watch import Operations, modules


def take_out_experts_(
    model: nn.Module, masks: Masks, example: Any, optimizer: torch.optim.Optimizer | None
) -> tuple[dict[str, tuple[int, int]], float]:
    """Take masked experts out of their mixtures; returns how many there were and are, and the largest difference of answers.

    The smaller model must answer as this one does where its routers never choose the experts that go. Raises `SecateursError` where it
    does not, or where fewer experts would be left than each token is sent to; the model is then as it was.
    """
    stay = _staying(model, masks, example) if _counts_entries(masks.plan, model) else {}
    if not stay:
        return {}, 0.0
    mixtures, _ = mixtures_of(model, example)
    step, undo, before = _step(model, mixtures, stay), Undo(), parameters_in(model)
    check = Check(model, telling(example))
    with _never_chosen(model, mixtures, stay):
        check.ask()

    def change() -> None:
        take_entries_(model, step, undo)
        cut_(model, step.cuts, undo, optimizer)
        set_attributes_(model, step.attributes, undo)
        sizes = implied(model, set())
        set_attributes_(model, sizes, undo)
        remember_(model, _with(step, sizes), undo)

    _, difference = check.same_after(change, undo)
    carry_(masks, before, model, step.cuts)
    return {name: (found, len(kept)) for name, (found, kept) in stay.items()}, difference


def _with(step: Step, sizes: Mapping[str, Mapping[str, list[Any]]]) -> Step:
    attributes = {path: {**step.attributes.get(path, {}), **sizes.get(path, {})} for path in {**step.attributes, **sizes}}
    return Step(step.shapes, step.cuts, attributes, entries=step.entries)


def _counts_entries(plan: Plan | None, model: nn.Module) -> bool:
    """Whether a plan may be of experts: it counts several units as entries of one matrix, and not by the indices of its dimensions."""
    if plan is None:
        return False
    entries = {
        name: {site for _, sites in product[0] for site in sites}
        for name, parameter in parameters_in(model).items()
        for product in plan.extents.get(name, ())
        if len(product) == 1 < parameter.ndim
    }
    return any(sum(plan.shares[site].units for site in sites) > 1 for sites in entries.values())


def _staying(model: nn.Module, masks: Masks, example: Any) -> dict[str, tuple[int, list[int]]]:
    """Mixture → how many experts it has, and which stay, of those that lose some; nothing where the plan is of something else."""
    alive: dict[str, list[bool]] = {}
    top: dict[str, int] = {}
    sites = Expert().sites(model, example, Chosen(), masks.named_as_in(model))
    shares = masks.plan.shares if masks.plan is not None else {}
    if not any(site.name in shares and shares[site.name].units == site.units for site in sites):
        return {}
    for site in sites:
        assert site.mixture is not None
        left = [True] * site.units if site.alive is None else site.alive.flatten().tolist()
        alive.setdefault(site.mixture.experts, []).extend(left)
        top[site.mixture.experts] = site.mixture.top
    for name, left in alive.items():
        if sum(left) < top[name]:
            raise SecateursError(
                f"{name}: {sum(left)} of {len(left)} experts would be left, but each token is sent to {top[name]} of them: keep as many"
            )
    return {name: (len(left), [index for index, here in enumerate(left) if here]) for name, left in alive.items() if not all(left)}


def _step(model: nn.Module, mixtures: Sequence[Routed], stay: Mapping[str, tuple[int, list[int]]]) -> Step:
    """What it takes to make the mixtures smaller."""
    tensors = {**parameters_in(model, again=True), **buffers_in(model, again=True)}
    held = modules_in(model)
    cuts: dict[str, dict[int, list[int]]] = {}
    entries: dict[str, list[int]] = {}
    attributes: dict[str, dict[str, list[Any]]] = {}
    counts = [(each.count, len(stay[each.experts][1]) if each.experts in stay else each.count) for each in mixtures]
    for found in mixtures:
        if found.experts not in stay:
            continue
        count, kept = stay[found.experts]
        if found.listed:
            entries[found.experts] = kept
        else:
            inside = [key for key, value in held[found.experts]._parameters.items() if value is not None and len(value) == count]
            cuts |= {f"{found.experts}.{key}".strip("."): {0: kept} for key in inside}
        cuts |= {name: {0 if len(tensors[name]) == count else 1: kept} for name in found.router}
        around = [name for name in held if name == found.name or name.startswith(f"{found.name}." if found.name else "")]
        _count(held, around, count, len(kept), attributes)
    if len(set(counts)) == 1:  # what holds for all may stand in the modules around, too
        _count(held, list(held), *counts[0], attributes)
    shapes = {name: list(tensors[name].shape) for name in cuts}
    return Step(shapes, cuts, attributes, entries=entries)


def _count(
    held: Mapping[str, nn.Module], paths: Sequence[str], old: int, new: int, attributes: dict[str, dict[str, list[Any]]]
) -> None:
    """Note the attributes that count experts."""
    for path in paths:
        for key, value in held[path].__dict__.items():
            if "experts" in key and "tok" not in key and type(value) is int and value == old:
                attributes.setdefault(path, {})[key] = [old, new]


@contextmanager
def _never_chosen(model: nn.Module, mixtures: Sequence[Routed], stay: Mapping[str, tuple[int, list[int]]]) -> Iterator[None]:
    """While it is entered, routers give −∞ for the experts that go."""
    gone: dict[str, tuple[int, list[int]]] = {}
    for found in mixtures:
        if found.experts in stay:
            count, kept = stay[found.experts]
            gone[found.router[0].rpartition(".")[0]] = (count, [index for index in range(count) if index not in kept])
    stack = [""]

    def see(func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        count, without = gone.get(stack[-1], (0, []))
        name = func.name().rpartition("::")[2].partition(".")[0]
        if name in ("mm", "addmm") and isinstance(result, Tensor) and result.shape[-1] == count:
            result[..., without] = -torch.inf
        return result

    with ExitStack() as around:
        around.enter_context(modules(model, stack.append, stack.pop))
        around.enter_context(Operations(see))
        yield
