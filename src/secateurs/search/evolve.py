"""How much where, by evolution: levels are exchanged between layers, and what answers most like the dense network goes on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Literal

from torch import nn

from secateurs.allocate import plan_of
from secateurs.described import digest
from secateurs.evidence import at_once
from secateurs.given import ALLOCATOR, COUNT, MODEL, PATH, SOLVER, TASK, require, require_values
from secateurs.graph import blocks_of
from secateurs.patterns import Selection, find_sites
from secateurs.progress import tell, track
from secateurs.prune import planned
from secateurs.ranks import count
from secateurs.replacing import replacing
from secateurs.search.database import Database
from secateurs.search.fitness import Candidate, Fitness, Measure
from secateurs.search.genes import Gene, Levels, genes_of, kept_at, mutated
from secateurs.types import Allocator, FileError, NonFiniteError, Pattern, Plan, SecateursError, Sites, Solver, Task


@dataclass(frozen=True)
class Evolution:
    """What a search came to: the best plan, and what its start and the best after each generation measured on all batches."""

    plan: Plan
    losses: tuple[float, ...]


def evolve(
    model: nn.Module,
    pattern: Pattern,
    solver: Solver,
    start: Allocator,
    task: Task,
    *,
    exchange: Literal["layers", "blocks"] = "layers",
    step: float = 0.05,
    reach: int = 5,
    by: Measure = "divergence",
    generations: int = 30,
    offspring: int = 16,
    rounds: Sequence[tuple[int, int]] = ((1, 4), (8, 1)),
    blocks: str | Iterable[str] | None = None,
    only: Selection | None = None,
    skip: Selection | None = None,
    walk: Callable[[Sites], Sequence[Sites]] = at_once,
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> Evolution:
    """Search how much each layer keeps, the total being that of `start`, by evolution with a growing number of tokens
    (EvoPress, 2410.14649).

    Every site is pruned beforehand to levels that lie `step` of its units apart, up to `reach` of them to either side of the start, each
    layer with what was observed of the dense model (with ``walk=in_order()``, one layer's statistics in memory). In each generation
    `offspring` children of the best plan so far exchange one to three levels between layers of the same size (``exchange="blocks"``:
    between whole blocks, those of `blocks_of`), so the total stays what it is. ``rounds`` are pairs (calibration batches, survivors):
    children are first compared on few batches, drawn anew in each generation, and those that remain on more; the last round takes the
    first batches of all, and there a child must beat the best plan so far. So no plan is worse than its start on these batches. With the
    pattern ``Depth()`` it searches which blocks go.

    They are compared ``by`` the ``"divergence"`` of their answers from those of the dense model (KL of the softmax over the last
    dimension; of ``(n, classes, height, width)`` over the second), whose answers are held in memory, or by the task's ``"loss"``. The
    weights of all levels are held in memory, or with ``checkpoint=``, a folder, on disk; there a file for each generation is written,
    and the same call goes on behind the last one, with the same result. The model is afterwards as it was: give the plan to `prune_`.

    Raises `PlanError` where nothing can be exchanged, `PatternError` for units that share weights, `TaskError` where there are too few
    batches, `NonFiniteError` where the start cannot be measured, `FileError` where the folder belongs to another search, and what
    `prune_` raises.

    >>> import torch
    >>> from secateurs import Element, TopK, magnitude, uniform
    >>> _ = torch.manual_seed(0)
    >>> model, data = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(32, 8)
    >>> model[0].weight.data *= torch.rand(8, 8) < 0.3  # most of it is zero already
    >>> task = Task(data[:1], calibration=[(data, None)])
    >>> start = uniform(sparsity=0.5)
    >>> found = evolve(model, Element(), TopK(magnitude()), start, task, generations=6, offspring=2, rounds=[(1, 1)], only="*.weight")
    >>> found.plan["0"] < found.plan["1"], sum(found.plan.values()), found.losses[-1] < found.losses[0]
    (True, 64, True)
    """
    _require(model, solver, start, task, checkpoint)
    _require_sizes(step, reach, generations, offspring, rounds)
    if exchange not in ("layers", "blocks"):
        raise SecateursError(f'evolve: exchange={exchange!r} is none of "layers" and "blocks"')
    plan = planned(model, pattern, solver, start, task, only=only, skip=skip)
    sites = find_sites(model, pattern, task.example, only=only, skip=skip)
    found = None if exchange == "layers" else blocks_of(model, task.example, blocks)
    genes = genes_of(sites, plan, found, step, reach)
    batches = task.calibration if task.calibration is not None else task.train
    about = {
        "pattern": repr(pattern),
        "solver": repr(solver),
        "start": plan.to_json(),
        "model": digest(model),
        "data": digest((task.loss if by == "loss" else None, batches if isinstance(batches, (list, tuple)) else ())),
        "search": repr((exchange, step, reach, by, offspring, list(map(tuple, rounds)), seed)),
    }
    folder = None if checkpoint is None else Path(checkpoint)
    database = Database(model, sites, solver, folder, about)
    database.fill(genes, task, walk)
    fitness = Fitness(model, task, by, [many for many, _ in rounds])
    with Candidate(model, sites, genes, database) as candidate:
        search = _Search(
            genes, candidate, fitness, offspring, list(rounds), seed, None if folder is None else _Generations(folder, about)
        )
        best, losses = search.run(generations)
    return Evolution(plan_of(sites, kept_at(genes, best)), tuple(losses))


def _require(model: object, solver: object, start: object, task: object, checkpoint: object) -> None:
    for name, value, kind in (
        ("model", model, MODEL),
        ("solver", solver, SOLVER),
        ("start", start, ALLOCATOR),
        ("task", task, TASK),
    ):
        require("evolve", name, value, kind)
    if checkpoint is not None:
        require("evolve", "checkpoint", checkpoint, PATH)
    require_values("evolve", model)  # type: ignore[arg-type]
    if count() > 1:
        raise SecateursError(f"evolve is for one process, and here are {count()}: let the first search, and give all its plan")


def _require_sizes(step: float, reach: int, generations: int, offspring: int, rounds: Sequence[tuple[int, int]]) -> None:
    for name, value in (("reach", reach), ("generations", generations), ("offspring", offspring)):
        require("evolve", name, value, COUNT)
        if value < 1:
            raise SecateursError(f"evolve: {name}={value} must be at least 1")
    if not 0 < step < 1:
        raise SecateursError(f"evolve: step={step} is not in (0, 1); 0.05 lets levels lie 5 % of a layer's units apart")
    fits = all(isinstance(each, (tuple, list)) and len(each) == 2 and min(each) >= 1 for each in rounds)
    if not rounds or not fits or any(many > more for (many, _), (more, _) in pairwise(rounds)):
        raise SecateursError(
            f"evolve: rounds={rounds!r} must be pairs (calibration batches, survivors), with more batches "
            "from round to round: ((1, 4), (8, 1))"
        )


@dataclass
class _Search:
    genes: list[Gene]
    candidate: Candidate
    fitness: Fitness
    offspring: int
    rounds: list[tuple[int, int]]
    seed: int
    files: _Generations | None

    def run(self, generations: int) -> tuple[Levels, list[float]]:
        """The best levels, and what the best measured at the start and after each generation."""
        best: Levels = (0,) * len(self.genes)
        losses: list[float] = []
        if self.files is not None:
            best, losses = self.files.last(best)
        if not losses:
            losses = [self._measured(best, list(range(self.rounds[-1][0])))]
            if not isfinite(losses[0]):
                raise NonFiniteError(f"evolve: the network pruned as the start says measures {losses[0]}: start with less sparsity")
        done = len(losses) - 1

        def status() -> str:
            return f"{losses[0]:.4g} → {losses[-1]:.4g}"

        with closing(track(range(done, max(done, generations)), "evolving", status=status)) as numbers:
            for number in numbers:
                best, loss = self._generation(number, best, losses[-1])
                losses.append(loss)
                if self.files is not None:
                    self.files.write(number, best, losses)
                tell(f"generation {number + 1}/{generations}: {status()}")
        return best, losses

    def _generation(self, number: int, best: Levels, loss: float) -> tuple[Levels, float]:
        chance = random.Random(f"{self.seed}/{number}")
        pool = list(dict.fromkeys(mutated(self.genes, best, chance) for _ in range(self.offspring)))
        pool = [levels for levels in pool if levels != best]
        for place, (batches, survivors) in enumerate(self.rounds):
            last = place == len(self.rounds) - 1
            chosen = list(range(batches)) if last else chance.sample(range(self.rounds[-1][0]), batches)
            measured = [(self._measured(levels, chosen), order) for order, levels in enumerate(pool)]
            if last and measured and min(measured)[0] < loss:
                return pool[min(measured)[1]], min(measured)[0]
            pool = [pool[order] for _, order in sorted(measured)[:survivors]]
        return best, loss

    def _measured(self, levels: Levels, batches: Sequence[int]) -> float:
        self.candidate.become_(levels)
        loss = self.fitness(batches)
        return loss if loss == loss else float("inf")


@dataclass(frozen=True)
class _Generations:
    """A file for each generation: the best levels, and the losses so far."""

    folder: Path
    about: Mapping[str, str]

    def write(self, number: int, best: Levels, losses: Sequence[float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"search": self.about, "levels": best, "losses": losses}
        with replacing(self._path(number)) as path:
            path.write_text(json.dumps(document), encoding="utf-8")

    def last(self, best: Levels) -> tuple[Levels, list[float]]:
        """Where the last generation that was finished stands."""
        numbers = [int(path.stem.split("-")[1]) for path in self.folder.glob("generation-*.json")]
        if not numbers:
            return best, []
        path = self._path(max(numbers))
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            levels, losses = tuple(map(int, document["levels"])), list(map(float, document["losses"]))
            if document["search"] != self.about or len(levels) != len(best) or len(losses) != max(numbers) + 2:
                raise ValueError("it belongs to another search")
        except (ValueError, TypeError, KeyError) as error:
            raise FileError(f"{path} cannot be gone on from ({error}): name another folder, or remove this one") from error
        return levels, losses

    def _path(self, number: int) -> Path:
        return self.folder / f"generation-{number:05}.json"
