"""The heart: what dies together, the evidence, how much where, and which ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from secateurs.allocate import as_pattern
from secateurs.evidence import Observing, at_once, observe
from secateurs.files.partway import Kept, Partway, digest
from secateurs.given import ALLOCATOR, MASKS, MODEL, PATH, SOLVER, SWITCH, TASK, require, require_values
from secateurs.masks import Masks, Origin
from secateurs.nested import tensors_in
from secateurs.patterns import Selection, find_sites, marked, restrict
from secateurs.progress import track
from secateurs.ranks import count, of_first, require_same, sharded_as, together, whole
from secateurs.recalibrate import recalibrate_, tracking
from secateurs.types import Allocator, Pattern, Plan, PlanError, Scores, SecateursError, Site, Sites, Solution, Solver, Stats, Task


def prune_(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    allocate: Allocator | None,
    task: Task,
    *,
    only: Selection | None = None,
    skip: Selection | None = None,
    masks: Masks | None = None,
    walk: Callable[[Sites], Sequence[Sites]] = at_once,
    checkpoint: str | Path | None = None,
    recalibrate: bool | None = None,
) -> Masks:
    """Prune a model in place and return the masks of what stays.

    ``allocate=None`` leaves the amount to the pattern (2:4). ``only`` and ``skip`` choose layers as in `find_sites`. ``masks`` are
    those of an earlier pruning, whose removals stand. ``walk=in_order()`` observes each site with those before it pruned already, and
    keeps the statistics of one alone in memory; ``walk=in_blocks()`` does so block by block of a stack, each run by itself. How much each
    keeps is then decided beforehand, by an allocator that asks for no scores.
    Where anything is wrong, or it is interrupted, the model is left as it was; with ``checkpoint=``, a folder that gets a file for each
    part, the same call with the same model and data goes on behind the last part that was finished.

    Where anything was removed, the task has calibration batches and the model BatchNorms, their statistics are taken anew at the end
    (`recalibrate_`), and ``print(masks)`` says so; where that cannot be, a warning says why. ``recalibrate=False`` touches nothing but
    weights; ``True`` also takes the training batches, and raises what `recalibrate_` raises.

    Where several processes train one model under `torch.distributed`, each must call it: they choose from what all have observed, follow
    the plan of the first, and make sure that their masks are the same to the bit (`alone` for a process that prunes by itself).

    Raises `PatternError`, `PlanError`, `NonFiniteError` or `TaskError`, each naming the layer and the way out, `SecateursError` where
    the model has no values (lazy, or on the meta device), and `FileError` where a checkpoint is damaged or belongs to another pruning.

    >>> from secateurs import Element, TopK, magnitude, uniform
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> masks = prune_(model, Element(), TopK(magnitude()), uniform(sparsity=0.75), Task(example=torch.zeros(1, 8)))
    >>> masks.kept, masks.sparsity, int(model[0].weight.count_nonzero())
    (10, 0.75, 8)
    """
    _require_kinds(model, task, solver, allocate, masks, checkpoint)
    require("prune_", "recalibrate", recalibrate, SWITCH)
    require_values("prune_", model)
    earlier = masks.named_as_in(model) if masks is not None else None
    sites = find_sites(model, pattern, task.example, only=only, skip=skip, masks=earlier)
    parts = walk(sites)
    if sorted(site.name for part in parts for site in part) != sorted(site.name for site in sites):
        raise SecateursError("prune_: the walk must give every site once, in parts: see secateurs.evidence.in_order")
    with _taken_back_on_error() as write:
        found, observed = _Found(write), _observing(model, parts, solver, task)
        first = observed(0) if len(parts) == 1 else {}
        with together():
            plan = (allocate or as_pattern())(sites, partial(_scores, solver, sites, first, len(parts)))
        plan = of_first(plan)
        require_these_sites(plan, sites)
        partway = None if checkpoint is None else Partway(Path(checkpoint), _about(model, pattern, solver, plan, task))
        for number, part in enumerate(track(parts, "in parts", show=len(parts) > 1)):
            if partway is not None and found.put_back(partway, number, part):
                continue
            stats = first if len(parts) == 1 else observed(number)
            with together():
                for site in track(part, "pruning"):
                    found.solve(site, plan[site.name], solver, stats, last=len(parts) == 1)
            if partway is not None:
                partway.keep(number, [site.name for site in part], found.of(part))
        _require_agreement(sites, found.masks, found.written)
        anew = _recalibrates(model, sites, plan, task) if recalibrate is None else recalibrate
        for site in sites if anew else ():
            write(site, {}, found.masks, masked=True)  # so that it is taken back if what follows fails
        made = _imposed_(model, sites, plan, found.masks, earlier or {})
        return _recalibrated_(made, model, task, strict=recalibrate is True) if anew else made


def planned(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    allocate: Allocator,
    task: Task,
    *,
    only: Selection | None = None,
    skip: Selection | None = None,
    masks: Masks | None = None,
) -> Plan:
    """The plan that `prune_` would follow, and the model as it is.

    A plan can be given to `prune_` in the place of an allocator: what is decided by the scores of one solver, all layers of the dense model
    observed together, so guides another, also one layer after the other. The arguments, and the errors, are those of `prune_`.

    >>> from secateurs import Element, TopK, in_order, magnitude, owl, uniform
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> task = Task(example=torch.zeros(1, 8))
    >>> plan = planned(model, Element(), TopK(magnitude()), owl(sparsity=0.5), task)
    >>> sum(plan.values()), prune_(model, Element(), TopK(magnitude()), plan, task, walk=in_order()).kept
    (20, 20)
    """
    _require_kinds(model, task, solver, allocate, masks, None, "planned")
    require_values("planned", model)
    sites = find_sites(
        model, pattern, task.example, only=only, skip=skip, masks=masks.named_as_in(model) if masks is not None else None
    )
    observed: list[Stats] = []

    def scores() -> Iterator[Scores]:
        if not observed:
            observed.append(observe(model, sites, solver.needs, task))
        return solver.scores(sites, observed[0])

    with together():
        plan = allocate(sites, scores)
    require_these_sites(plan, sites)
    return of_first(plan)


def prune_observed_(model: nn.Module, sites: Sites, plan: Plan, solver: Solver, stats: Stats) -> Masks:
    """Prune a model by what was observed of it already, for who tries many plans on it and puts it back after each.

    ``sites`` and ``stats`` must be of the model as it is; the masks, and the weights, are then those that `prune_` makes. Where anything is
    wrong, the model is left as it was; raises what `prune_` raises.
    """
    require_these_sites(plan, sites)
    with _taken_back_on_error() as write:
        found = _Found(write)
        for site in sites:
            found.solve(site, plan[site.name], solver, stats, last=True)
        return _imposed_(model, sites, plan, found.masks, {})


def _require_kinds(
    model: object, task: object, solver: object, allocate: object, masks: object, checkpoint: object, who: str = "prune_"
) -> None:
    for name, value, kind in (("model", model, MODEL), ("task", task, TASK), ("solver", solver, SOLVER)):
        require(who, name, value, kind)
    for name, value, kind in (("allocate", allocate, ALLOCATOR), ("masks", masks, MASKS), ("checkpoint", checkpoint, PATH)):
        if value is not None:
            require(who, name, value, kind)


def _observing(model: nn.Module, parts: Sequence[Sites], solver: Solver, task: Task) -> Callable[[int], Stats]:
    """What observes the part of a number: the whole model at work, or as the walk does it."""
    if isinstance(parts, Observing):
        return parts.observing(solver.needs, task)
    return lambda number: observe(model, parts[number], solver.needs, task)


@dataclass
class _Found:
    """What was found so far: the masks, and which weights a solver wrote; ``write`` writes to the model."""

    write: Callable[..., None]
    masks: dict[str, Tensor] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)

    def solve(self, site: Site, kept: int, solver: Solver, stats: Stats, *, last: bool) -> None:
        """Solve one site and write what came of it; unless it is observed no more, what is gone is zero for those after it."""
        solution = solver(site, kept, stats)
        _require_count(site, kept, solution)
        _restrict(self.masks, site, solution)
        self.write(site, solution.weights, self.masks)
        self.written.update(solution.weights)
        if not last:
            self.write(site, {}, self.masks, masked=True)

    def of(self, part: Sites) -> Kept:
        """All that a part may have changed, as it is now."""
        weights = {name: whole(weight.detach()) for site in part for name, weight in _weights_of(site).items()}
        return Kept(weights, {name: self.masks[name] for name in weights if name in self.masks})

    def put_back(self, partway: Partway, number: int, part: Sites) -> bool:
        """Give the model what a part came to in a run that was stopped, if it did."""
        kept = partway.kept(number, [site.name for site in part])
        if kept is None:
            return False
        for site in part:
            weights = _weights_of(site)
            self.write(site, {name: kept.weights[name].to(weight.device) for name, weight in weights.items()}, {})
            self.masks.update({name: kept.masks[name].to(weight.device) for name, weight in weights.items() if name in kept.masks})
        self.written.update(kept.weights)
        return True


def _about(model: nn.Module, pattern: Pattern, solver: Solver, plan: Plan, task: Task) -> dict[str, str]:
    """To which pruning a checkpoint belongs. Batches are compared where they are a list; a loader may shuffle them."""
    batches = task.calibration if task.calibration is not None else task.train
    data = digest(dict(enumerate(tensors_in(batches)))) if isinstance(batches, (list, tuple)) else ""
    asked = {"pattern": repr(pattern), "solver": repr(solver), "plan": plan.to_json()}
    return {"model": type(model).__name__, "weights": digest(model.state_dict()), "calibration batches": data, **asked}


def _weights_of(site: Site) -> dict[str, nn.Parameter]:
    """The weights in which a site lies, and the biases beside them."""
    return {**biases_beside(site), **{member.parameter: member.weight for member in site.members}}


def _scores(solver: Solver, sites: Sites, stats: Stats, parts: int) -> Iterator[Scores]:
    return no_scores() if parts > 1 else solver.scores(sites, stats)


def no_scores() -> Iterator[Scores]:
    """What an allocator is given where one site is observed after the other."""
    raise PlanError(
        "the allocator compares the scores of all sites, which are not there when one site is observed after the other: prune at once "
        "(without walk=), or decide beforehand, for example with uniform(sparsity=0.5), erdos_renyi(sparsity=0.5) or with the plan "
        "that planned(...) makes"
    )


def prune_part_(sites: Sites, plan: Plan, solver: Solver, stats: Stats) -> list[str]:
    """Solve some sites and write what comes of it, for who cares for the rest of `prune_`; gives the parameters that were written.

    Where anything fails, what was written is taken back.
    """
    with _taken_back_on_error() as write:
        found = _Found(write)
        for site in track(sites, "pruning"):
            found.solve(site, plan[site.name], solver, stats, last=False)
    return list(dict.fromkeys([*found.masks, *found.written]))


def masks_of(site: Site, solution: Solution) -> dict[str, Tensor]:
    """The masks of a site's parameters that a choice of units means."""
    found: dict[str, Tensor] = {}
    _restrict(found, site, solution)
    return found


def _restrict(found: dict[str, Tensor], site: Site, solution: Solution) -> None:
    """Add a choice of units to the masks found already: what one of two coupled sites removes from a weight is gone."""
    for index, member in enumerate(site.members):
        kept = solution.kept.to(member.weight.device)
        if member.parameter in found:
            restrict(site, kept, found[member.parameter], index)
        else:
            found[member.parameter] = marked(site, kept, index)


def require_these_sites(plan: Plan, sites: Sites) -> None:
    """Raise `PlanError` where a plan is not one of these sites."""
    names = [site.name for site in sites]
    missing, unknown = [name for name in names if name not in plan], [name for name in plan if name not in names]
    if missing:
        raise PlanError(
            f"the plan does not say how many units of {', '.join(missing)} stay; it names {', '.join(plan) or 'no site'}"
        )
    if unknown:
        raise PlanError(f"the plan names {', '.join(unknown)}, but the sites are {', '.join(names)}: it belongs to another model")
    for site in sites:
        share = plan.shares[site.name]
        if share.units != site.units:
            raise PlanError(
                f"{site.name}: the plan is for {share.units} units, but here are {site.units}: it belongs to another model; make one "
                "of this one with planned(...)"
            )


def _require_count(site: Site, planned: int, solution: Solution) -> None:
    kept = int(torch.count_nonzero(solution.kept))
    if kept != planned:
        raise PlanError(
            f"{site.name}: the plan keeps {planned} units, but the solver chose {kept}: what a plan promises would be wrong; "
            "see site.each_of, and check the solver with secateurs.testing.check_solver"
        )


@contextmanager
def _taken_back_on_error() -> Iterator[Callable[..., None]]:
    """Gives what writes a site's new weights, with what the masks remove at zero; if the block fails, all are as they were.

    They are written before the next site is solved, so that of two sites with a weight in common the later one starts from what the
    earlier one made of it.
    """
    before: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def write(site: Site, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], masked: bool = False) -> None:
        members = {member.parameter: member.weight for member in site.members}
        beside = biases_beside(site)
        if masked:  # what is gone is zero for the sites that are observed after this one
            weights = {name: whole(weight.detach()) for name, weight in members.items()}
        for name, value in weights.items():
            weight = members.get(name, beside.get(name))
            if weight is None or value.shape != weight.shape:
                here = f"is none of {', '.join(members)}, nor a bias beside one" if weight is None else f"is {tuple(weight.shape)}"
                raise SecateursError(f"{site.name}: the solver writes {name} as {tuple(value.shape)}, but it {here}")
            before.setdefault(weight, weight.detach().clone())
            weight.copy_(sharded_as(value.masked_fill(~masks[name], 0) if name in masks else value, weight))

    try:
        yield write
    except BaseException:
        with torch.no_grad():
            for weight, value in before.items():
                weight.copy_(value)
        raise


def biases_beside(site: Site) -> dict[str, nn.Parameter]:
    """The biases of the layers in which a site lies, which a solver may change with the weights."""
    weights = [member for member in site.members if member.attribute == "weight"]
    return {
        member.parameter.removesuffix("weight") + "bias": bias
        for member in weights
        if isinstance(bias := getattr(member.module, "bias", None), nn.Parameter)
    }


def _require_agreement(sites: Sites, found: Mapping[str, Tensor], written: Container[str]) -> None:
    """Raise `SecateursError` where several processes train one model and would go on with different masks, or solved weights."""
    solved = {member.parameter: member.weight for site in sites for member in site.members if member.parameter in written}
    why = "their weights or their models differ already (wrap in DistributedDataParallel first)"
    require_same(found, "what is to stay", why)
    if count() > 1:
        require_same({name: whole(weight.detach()) for name, weight in solved.items()}, "what the solver wrote", why)


def _imposed_(model: nn.Module, sites: Sites, plan: Plan, found: dict[str, Tensor], earlier: Mapping[str, Tensor]) -> Masks:
    """The masks of what was found and of an earlier pruning together, applied."""
    for name, mask in earlier.items():
        found[name] = found[name] & whole(mask).to(found[name].device) if name in found else whole(mask)
    origin = Origin(plan, repr(sites[0].pattern), sites.skipped, sites.example)
    return Masks(found, model, origin.remembering(model, sites.structure)).apply_()


def _recalibrates(model: nn.Module, sites: Sites, plan: Plan, task: Task) -> bool:
    """Whether statistics of BatchNorms are to be taken anew where nobody says."""
    removed = any(plan[site.name] < site.available for site in sites)
    return removed and task.calibration is not None and bool(tracking(model))


def _recalibrated_(masks: Masks, model: nn.Module, task: Task, strict: bool) -> Masks:
    """The masks, once the BatchNorms hold statistics of what is left; unless ``strict``, a warning says why they cannot."""
    try:
        names = recalibrate_(model, task)
    except SecateursError as problem:
        if strict:
            raise
        warnings.warn(
            f"the statistics of BatchNorms stay those of the model before it was pruned: {problem}; recalibrate=False leaves them without "
            "a word",
            stacklevel=3,
        )
        return masks
    masks.origin = replace(masks.origin, recalibrated=names)
    return masks
