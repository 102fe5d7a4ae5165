"""A library of what each block may become, measured once, and from it the best model for any budgets by integer programming."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from secateurs.allocate import plan_of
from secateurs.allocate.account import budgets_of, told
from secateurs.allocate.integer import Program
from secateurs.criteria import magnitude
from secateurs.described import digest
from secateurs.given import COST, MODEL, PATH, TASK, require, require_values
from secateurs.graph import blocks_of
from secateurs.patterns import Channel, Depth, find_sites
from secateurs.progress import track
from secateurs.prune import prune_
from secateurs.replacing import replacing
from secateurs.search.bench import By, Setting, judged
from secateurs.shrink import low_rank_, shrink_
from secateurs.solve import TopK
from secateurs.types import (
    Budget,
    Cost,
    FileError,
    Pattern,
    PatternError,
    PlanError,
    SecateursError,
    Site,
    Skipped,
    Solver,
    Task,
)

DENSE = "as it is"
_CHOICE = TopK(magnitude(members="all"))
_TRIES, _SECONDS = 8, 60.0


class Alternative(Protocol):
    """What blocks may become: it changes some of a model for good, each told by its name."""

    @property
    def name(self) -> str: ...

    def make_(self, model: nn.Module, task: Task, blocks: Sequence[str]) -> None:
        """Change these blocks; raises `SecateursError` where one cannot become so."""


@dataclass(frozen=True)
class Narrower:
    """The fraction ``keep`` of the units that lie in the block alone: its inner channels, or its heads with ``pattern=Head()``."""

    keep: float
    pattern: Pattern = Channel()  # noqa: RUF009 (frozen)
    solver: Solver = _CHOICE

    @property
    def name(self) -> str:
        return f"{self.pattern} keeps {self.keep:g}"

    def make_(self, model: nn.Module, task: Task, blocks: Sequence[str]) -> None:
        """Prune and shrink them."""
        sites = find_sites(model, self.pattern, task.example)
        counts = {site.name: _kept(site, self.keep) for site in sites if any(_lies_in(site, block) for block in blocks)}
        if not counts:
            raise PatternError(f"{', '.join(blocks)}: no units of {self.pattern} lie in it alone")
        plan = plan_of(sites, {site.name: site.available for site in sites}).with_counts(counts)
        shrink_(model, prune_(model, self.pattern, self.solver, plan, task, recalibrate=False))


@dataclass(frozen=True)
class LowerRank:
    """Each layer of the block as two thin ones that hold the fraction ``keep`` of its weights (`low_rank_`)."""

    keep: float

    @property
    def name(self) -> str:
        return f"low rank keeps {self.keep:g}"

    def make_(self, model: nn.Module, task: Task, blocks: Sequence[str]) -> None:
        """Factor them."""
        low_rank_(model, task, keep=self.keep, only=[f"{block}.*" for block in blocks])


@dataclass(frozen=True)
class Gone:
    """The block taken out (`Depth`)."""

    @property
    def name(self) -> str:
        return "gone"

    def make_(self, model: nn.Module, task: Task, blocks: Sequence[str]) -> None:
        """Take them out, all at once, as those behind get other names."""
        sites = find_sites(model, Depth(), task.example)
        unknown = [block for block in blocks if block not in [site.name for site in sites]]
        if unknown:
            raise PatternError(f"{', '.join(unknown)} cannot be taken out; what can be is {', '.join(site.name for site in sites)}")
        plan = plan_of(sites, {site.name: site.available for site in sites}).with_counts(dict.fromkeys(blocks, 0))
        shrink_(model, prune_(model, Depth(), _CHOICE, plan, task, recalibrate=False))


def _kept(site: Site, keep: float) -> int:
    wanted = max(1, round(keep * site.units))
    return max(site.step, wanted // site.step * site.step) if wanted < site.available else site.available


def _lies_in(site: Site, block: str) -> bool:
    return all(member.parameter.startswith(f"{block}.") for member in site.members)


@dataclass(frozen=True)
class Entry:
    """One block as one alternative, the others as they are: what is measured, and what the whole model costs, by name."""

    block: str
    alternative: str
    value: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Library:
    """What was measured of every block with every alternative; ``skipped`` says what could not be made, and why."""

    model: nn.Module
    task: Task
    alternatives: tuple[Alternative, ...]
    costs: tuple[Cost, ...]
    dense: Entry
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    higher_is_better: bool

    def choice(self, budget: Budget | Sequence[Budget]) -> dict[str, str]:
        """Block → the alternative that it becomes: the least loss in sum within a budget or several, by what was measured of single blocks.

        What is chosen is built and counted; where blocks cost more together than each by itself told, there is less room, and another
        choice. Raises `PlanError` where no choice is within the budgets, with the least that was seen.
        """
        budgets = budgets_of("library", budget)
        unknown = [each.cost.name for each in budgets if each.cost.name not in self.dense.costs]
        if unknown:
            raise SecateursError(f"the library was not asked what its entries cost in {', '.join(unknown)}: make it with costs=[…]")
        limits = np.array([self._limit(each) for each in budgets])
        rows = {block: [self.dense, *self._of(block)] for block in dict.fromkeys(entry.block for entry in self.entries)}
        losses = [np.array([self._rise(entry) for entry in row]) for row in rows.values()]
        now = np.array([self.dense.costs[each.cost.name] for each in budgets])
        costs = [np.array([[entry.costs[each.cost.name] for each in budgets] for entry in row]) - now for row in rows.values()]
        room, least = limits - now, now + sum(each.min(axis=0) for each in costs)
        program = Program(losses, costs, {}, limits)
        for _ in range(_TRIES):
            numbers = program.solved(room, _SECONDS)
            if numbers is None:
                break
            chosen = {block: row[number].alternative for (block, row), number in zip(rows.items(), numbers, strict=True)}
            real = np.array([each.cost(self.built(chosen), self.task.example) for each in budgets])
            if (real <= limits).all():
                return chosen
            least = np.minimum(np.maximum(least, real), real)
            room = room - np.maximum(real - limits, 1e-6 * limits)
        said = "; ".join(
            f"{each.cost.name} can fall to about {low:g} {each.cost.unit} at the least, but the budget is {limit:g}"
            for each, low, limit in zip(budgets, least, limits, strict=True)
            if low > limit
        )
        raise PlanError(
            f"{said or ' and '.join(map(told, budgets)) + ' are not met together'}: raise the budget, or give more alternatives"
        )

    def built(self, choice: Mapping[str, str]) -> nn.Module:
        """A copy of the model with each block as a choice says."""
        model = copy.deepcopy(self.model)
        known = {each.name: each for each in self.alternatives}
        wrong = [name for name in choice.values() if name not in known and name != DENSE]
        if wrong:
            raise SecateursError(f"there is no alternative {wrong[0]!r}; there are {', '.join([DENSE, *known])}")
        for name, alternative in sorted(known.items(), key=lambda item: isinstance(item[1], Gone)):  # what goes, goes last
            blocks = [block for block, chosen in choice.items() if chosen == name]
            if blocks:
                alternative.make_(model, self.task, blocks)
        return model

    def small(self, budget: Budget | Sequence[Budget]) -> nn.Module:
        """The model for a budget or several."""
        return self.built(self.choice(budget))

    def _of(self, block: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.block == block]

    def _rise(self, entry: Entry) -> float:
        rise = self.dense.value - entry.value if self.higher_is_better else entry.value - self.dense.value
        return max(0.0, rise)

    def _limit(self, budget: Budget) -> float:
        return budget.limit if budget.limit is not None else (budget.keep or 0) * self.dense.costs[budget.cost.name]


def library(
    model: nn.Module,
    task: Task,
    alternatives: Sequence[Alternative],
    *,
    costs: Sequence[Cost],
    by: By = "loss",
    blocks: Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
) -> Library:
    """Make every block every alternative, the others as they are, and measure the model and what it costs: once, for any budgets.

    Alternatives are `Narrower` (inner channels, or heads), `LowerRank`, `Gone`, or of one's own. ``blocks`` are the names of modules that
    have nothing in common; by default those that `Depth` could take out, else those of `blocks_of`. Measured is ``by="loss"`` on
    validation data, by the task's ``"metric"``, or by a function (model, task) → number. What cannot be made, or measures no finite
    number, is listed with the reason. With ``checkpoint=``, a folder, what is measured is kept, and the same call goes on. The model
    stays as it is.

    Then ``found.choice(budgets)`` finds by integer programming (SciPy's `milp`) which block becomes what, for as many budgets as wanted,
    and ``found.small(budgets)`` builds it.

    Raises `SecateursError` where there is no block, or nothing can be made, `FileError` where the folder belongs to another library.

    >>> import torch
    >>> from secateurs import macs
    >>> _ = torch.manual_seed(0)
    >>> block = lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    >>> model, x = nn.Sequential(nn.Sequential(block(), block(), block()), nn.Linear(8, 2)), torch.randn(32, 8)
    >>> task = Task(x[:1], validation=[(x, model(x).detach())], loss=nn.functional.mse_loss)
    >>> found = library(model, task, [Narrower(0.5), Narrower(0.25), LowerRank(0.5)], costs=[macs])
    >>> small = found.small(Budget(macs, keep=0.6))
    >>> macs(small, x[:1]) <= 0.6 * macs(model, x[:1])
    True
    """
    _require(model, task, alternatives, costs, checkpoint)
    names = _blocks(model, task, blocks)
    file = None if checkpoint is None else _File(Path(checkpoint), _about(model, task, alternatives, costs, by))
    dense = _measured(model, task, "", DENSE, costs, by)
    entries, skipped = list[Entry](), list[Skipped]()
    for block, alternative in track([(block, each) for block in names for each in alternatives], "trying alternatives"):
        entry = None if file is None else file.kept(block, alternative.name)
        if entry is None:
            entry = _tried(model, task, block, alternative, costs, by)
            if file is not None:
                file.keep(block, alternative.name, entry)
        if isinstance(entry, Entry):
            entries.append(entry)
        else:
            skipped.append(entry)
    if not entries:
        raise SecateursError(f"library: nothing could be made of any block: {skipped[0].name}: {skipped[0].reason}")
    better = by != "loss" and task.higher_is_better
    return Library(copy.deepcopy(model), task, tuple(alternatives), tuple(costs), dense, tuple(entries), tuple(skipped), better)


def _tried(model: nn.Module, task: Task, block: str, alternative: Alternative, costs: Sequence[Cost], by: By) -> Entry | Skipped:
    """One block made an alternative on a copy, and measured; or why not."""
    changed = copy.deepcopy(model)
    try:
        alternative.make_(changed, task, [block])
        return _measured(changed, task, block, alternative.name, costs, by)
    except SecateursError as error:
        return Skipped(f"{block}, {alternative.name}", str(error))


def _measured(model: nn.Module, task: Task, block: str, alternative: str, costs: Sequence[Cost], by: By) -> Entry:
    value = judged(Setting(model, Channel(), _CHOICE, task, by))
    return Entry(block, alternative, value, {cost.name: cost(model, task.example) for cost in costs})


def _blocks(model: nn.Module, task: Task, blocks: Sequence[str] | None) -> list[str]:
    """The blocks; raises `SecateursError` where one is no module, or two have something in common."""
    if blocks is None:
        try:
            found = [site.name for site in find_sites(model, Depth(), task.example)]
        except PatternError:
            found = list(blocks_of(model, task.example))
    else:
        found = list(blocks)
    known = dict(model.named_modules())
    wrong = next((name for name in found if not name or name not in known), None)
    if wrong is not None or not found:
        raise SecateursError(f"library: there is no module {wrong!r}: name the blocks of the model with blocks=[…]")
    for one in found:
        inside = next((other for other in found if other.startswith(f"{one}.")), None)
        if inside is not None or found.count(one) > 1:
            raise SecateursError(f"library: {inside or one} lies in {one}, so that they cannot be changed apart: name one of them")
    return found


@dataclass(frozen=True)
class _File:
    """A folder with a file for each block and alternative that was tried."""

    folder: Path
    about: Mapping[str, str]

    def kept(self, block: str, alternative: str) -> Entry | Skipped | None:
        """What came of it, or ``None`` where it was not tried yet; raises `FileError` where the file is no such thing."""
        path = self._path(block, alternative)
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_text("utf-8"))
            about, found = dict(document["about"]), document["found"]
            entry: Entry | Skipped = (
                Skipped(str(found["name"]), str(found["reason"]))
                if "reason" in found
                else Entry(block, alternative, _finite(found["value"]), {str(k): _finite(v) for k, v in found["costs"].items()})
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
            raise FileError(f"{path} does not tell what was tried ({error}): remove it, or name another folder") from error
        differing = next((name for name, value in self.about.items() if about.get(name) != value), None)
        if differing is not None:
            raise FileError(f"{self.folder} belongs to another library: its {differing} is another one; name another folder")
        return entry

    def keep(self, block: str, alternative: str, found: Entry | Skipped) -> None:
        """Write down what came of it; the file is there whole or not at all."""
        said: dict[str, Any] = (
            {"name": found.name, "reason": found.reason}
            if isinstance(found, Skipped)
            else {"value": found.value, "costs": dict(found.costs)}
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._path(block, alternative)) as path:
            path.write_text(json.dumps({"about": self.about, "found": said}, indent=1), encoding="utf-8")

    def _path(self, block: str, alternative: str) -> Path:
        return self.folder / f"alternative-{digest((block, alternative))[:16]}.json"


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _about(model: nn.Module, task: Task, alternatives: Sequence[Alternative], costs: Sequence[Cost], by: By) -> dict[str, str]:
    data = task.validation if isinstance(task.validation, (list, tuple)) else ()
    return {
        "model": digest(model),
        "data": digest(data),
        "alternatives": digest([repr(each) for each in alternatives]),
        "costs": ", ".join(cost.name for cost in costs),
        "measure": digest((by, task.metric, task.loss)),
    }


def _require(model: object, task: object, alternatives: Sequence[Alternative], costs: Sequence[Cost], checkpoint: object) -> None:
    require("library", "model", model, MODEL)
    require("library", "task", task, TASK)
    require_values("library", model)  # type: ignore[arg-type]
    if checkpoint is not None:
        require("library", "checkpoint", checkpoint, PATH)
    if not costs or not alternatives:
        raise SecateursError(
            "library: give alternatives, such as [Narrower(0.5), Gone()], and the costs=[…] that budgets will limit"
        )
    for cost in costs:
        require("library", "a cost", cost, COST)
    names = [each.name for each in alternatives]
    twice = next((name for name in names if names.count(name) > 1 or name == DENSE), None)
    if twice is not None:
        raise SecateursError(f"library: two alternatives are called {twice!r}: which is meant could not be told")
