"""One layer smaller at a time: of all that could take a step to a budget alone, the one whose model measures best."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor, nn

from secateurs.allocate.account import Account, Ledger
from secateurs.allocate.budget import unreachable
from secateurs.allocate.levers import Lever
from secateurs.evidence import observe
from secateurs.files.partway import Kept, Partway
from secateurs.forward import buffers_in, parameters_in
from secateurs.masks import Masks
from secateurs.patterns import with_alive
from secateurs.progress import track
from secateurs.prune import prune_observed_
from secateurs.recover import evaluate
from secateurs.search.bench import Then
from secateurs.tried import taken_back
from secateurs.types import NonFiniteError, PlanError, Sites, Solver, Task

_HALVINGS = 8
_STEP, _METRIC = "netadapt: lever and units", "netadapt: metric"


def require_reachable(account: Account, levers: Sequence[Lever], ledger: Ledger) -> None:
    """Raise `PlanError` where the budgets are not met with the least of every lever."""
    dense = {site.name: ledger.counts[site.name] for lever in levers for site in lever.group}
    least = {name: kept for lever in levers for name, kept in lever.kept(lever.bounds.low).items()}
    ledger.move_(least)
    if not account.meet(ledger.now):
        raise PlanError(f"netadapt_: {unreachable(account, [ledger.now])}")
    ledger.move_(dense)


@dataclass(frozen=True)
class _Proposal:
    """A model with one lever smaller: what it keeps, its metric, and all its tensors and masks."""

    lever: Lever
    kept: Mapping[str, int]
    metric: float
    state: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]


@dataclass
class Adapting:
    """A model on its way to a budget."""

    model: nn.Module
    sites: Sites
    levers: Sequence[Lever]
    ledger: Ledger
    solver: Solver
    task: Task
    then: Then | None
    masks: Masks | None = None
    said: str = ""

    def steps(self, step: float, decay: float, partway: Partway | None) -> Iterator[int]:
        """Take one step after the other until the budgets are met; gives their numbers."""
        account, dense, number = self.ledger.account, self.ledger.now, 0
        while not account.meet(self.ledger.now):
            kept = None if partway is None else partway.kept(number, ["step"])
            if kept is not None:
                self._put_back_(kept)
            else:
                best = self._best([each * step * decay**number for each in dense])
                self._take_(best)
                if partway is not None:
                    partway.keep(number, ["step"], self._kept(best))
            yield number
            number += 1

    def _best(self, wanted: Sequence[float]) -> _Proposal:
        """Of all levers that can take the step alone, the proposal with the best metric."""
        moves = self._moves(wanted)
        alive = replace(self.sites, found=tuple(with_alive(site, self.masks) for site in self.sites))
        stats, best, said = observe(self.model, alive, self.solver.needs, self.task), None, list[str]()
        sign = 1 if self.task.higher_is_better else -1
        for lever, count in track(moves, "proposals"):
            plan = self.ledger.plan.with_counts(lever.kept(count))
            with taken_back(self.model):
                masks = prune_observed_(self.model, alive, plan, self.solver, stats)
                if self.then is not None:
                    self.then(self.model, masks, self.task)
                metric = evaluate(self.model, self.task, self.task.validation, show=False)
                said.append(f"{lever.whole.name} {metric}")
                if isfinite(metric) and (best is None or sign * metric > sign * best.metric):
                    state = {name: tensor.detach().clone() for name, tensor in _tensors(self.model).items()}
                    best = _Proposal(lever, lever.kept(count), metric, state, {name: mask.clone() for name, mask in masks.items()})
        if best is None:
            raise NonFiniteError(
                f"netadapt_: no proposal has a finite {self.task.metric_name} ({', '.join(said[:5])}): look at what "
                "the model as it is measures, then take a smaller step="
            )
        return best

    def _moves(self, wanted: Sequence[float]) -> list[tuple[Lever, int]]:
        """For each lever that can, what it keeps so that the costs that are too high fall so far; with less of a step where none can."""
        account, now = self.ledger.account, self.ledger.now
        for halving in range(_HALVINGS):
            goals = [
                limit if cost <= limit else max(limit, cost - each / 2**halving)
                for cost, limit, each in zip(now, account.limits, wanted, strict=True)
            ]
            found = [(lever, count) for lever in self.levers if (count := self._largest(lever, goals)) is not None]
            if found:
                return found
        raise PlanError(
            f"netadapt_: no layer alone can make the cost fall by {2.0**-_HALVINGS:g} of a step from {now[0]:g} "
            f"{account.budgets[0].cost.unit}: {unreachable(account, [now])}"
        )

    def _largest(self, lever: Lever, goals: Sequence[float]) -> int | None:
        """The largest number of units, fewer than now, with which the costs are within the goals."""
        now = lever.now(self.ledger.counts)
        for count in reversed([count for count in lever.grid(4096) if count < now]):
            if all(cost <= goal for cost, goal in zip(self.ledger.at(lever.kept(count)), goals, strict=True)):
                return count
        return None

    @torch.no_grad()
    def _take_(self, best: _Proposal) -> None:
        for name, tensor in _tensors(self.model).items():
            tensor.copy_(best.state[name])
        self.masks = Masks(dict(best.masks), self.model).apply_()
        self.ledger.move_(best.kept)
        costs = ", ".join(
            f"{cost:.4g} {budget.cost.unit}" for cost, budget in zip(self.ledger.now, self.ledger.account.budgets, strict=True)
        )
        name = best.lever.whole.name
        self.said = f"{name} keeps {self.ledger.counts[name]}; {costs}; {self.task.metric_name} {best.metric:.4g}"

    def _kept(self, best: _Proposal) -> Kept:
        place = self.levers.index(best.lever)
        number = torch.tensor([place, best.lever.now(self.ledger.counts)])
        return Kept({**best.state, _STEP: number, _METRIC: torch.tensor(best.metric, dtype=torch.float64)}, dict(best.masks))

    def _put_back_(self, kept: Kept) -> None:
        place, count = kept.weights[_STEP].tolist()
        lever, state = self.levers[place], {name: tensor for name, tensor in kept.weights.items() if name not in (_STEP, _METRIC)}
        device = {name: tensor.device for name, tensor in _tensors(self.model).items()}
        masks = {name: mask.to(device[name]) for name, mask in kept.masks.items()}
        self._take_(_Proposal(lever, lever.kept(count), float(kept.weights[_METRIC]), state, masks))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**parameters_in(model), **buffers_in(model)}
