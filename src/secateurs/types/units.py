"""Patterns cut weights into units; sites are the units that compete with each other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from secateurs.types.errors import PlanError
from secateurs.types.extents import Extents

Within = Literal["model", "isomorphic", "layer", "row"] | int
"""Among whom units compete: all sites together, those of one kind (2407.04616: the same weight of the same class of layer, coupled
in the same way), their own layer, their own output row, or each M consecutive inputs."""


Role = Literal["producer", "consumer", "scale"]
"""What a member does with the units of its site: it makes them, reads them, or passes them on one by one."""


# ---------------------------------------------------------------- granularity


@runtime_checkable
class Pattern(Protocol):
    """What a unit is, where in a model units are, and among whom they compete. `find_sites` asks it, and so does whoever prunes."""

    @property
    def within(self) -> Within: ...

    @property
    def kept_of_each(self) -> int | None:
        """Units that every contest keeps where the pattern itself decides (2 for 2:4), else ``None``."""

    @property
    def removable(self) -> bool:
        """Whether units lie in every weight that makes or reads them, so that `shrink_` takes them out for good; else zeros stay."""

    def cut(self, shape: Sequence[int]) -> Cut:
        """How one weight of this canonical shape falls into units; raises `PatternError` where none does, with the way out."""

    def sites(self, model: nn.Module, example: Any, chosen: Chosen, masks: Mapping[str, Tensor] | None) -> Sites:
        """The sites in a model of those that were chosen, with what earlier masks have left of them; raises `PatternError` for none."""


@dataclass(frozen=True)
class Cut:
    """How one weight falls into units: ``view`` of its canonical view is ``(*contests, *competitors, *elements)``, written through."""

    view: Callable[[Tensor], Tensor]
    contests: tuple[int, ...]
    competitors: tuple[int, ...]
    elements: tuple[int, ...]


Part = str | nn.Module | Tensor
Selection = Part | Iterable[Part] | Mapping[str, str] | Callable[[str, nn.Module], bool]
"""What exists in a model: names (a container's means all inside it), globs (``"layer?.*"``), modules and parameters themselves, or a
predicate ``(name, module) → bool``; of ``skip`` also a mapping from names to the reasons that are told."""


@dataclass(frozen=True)
class Chosen:
    """What takes part: ``only`` these (``None``: what the pattern takes by itself), and none of ``skip``."""

    only: Selection | None = None
    skip: Selection | None = None


@runtime_checkable
class Tiling(Pattern, Protocol):
    """A pattern on single weights.

    It tiles the canonical view ``(groups, outputs, inputs, *kernel)`` with boxes of one size; the box is the unit. ``tail`` says
    what happens to the last outputs or inputs that do not fill a box: ``"error"``, or ``"keep"`` to leave them dense.
    """

    @property
    def tail(self) -> Literal["error", "keep"]: ...

    def tile(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Size of a unit along ``(outputs, inputs, *kernel)`` of a weight of that canonical shape; raises `PatternError`."""


@runtime_checkable
class Coupling(Pattern, Protocol):
    """A pattern whose units are the indices of an axis, in every weight where it lies.

    Kept numbers make widths that are multiples of ``round_to``; ``approximate`` lets axes take part over which a reduction runs;
    ``only_heads`` leaves all others alone.
    """

    @property
    def round_to(self) -> int: ...

    @property
    def approximate(self) -> bool: ...

    @property
    def only_heads(self) -> bool: ...


@dataclass(frozen=True)
class Member:
    """One weight's part in a site: where it lives, and how it is seen as units.

    ``canonical`` maps a tensor of the parameter's shape to its view ``(groups, outputs, inputs, *kernel)``; ``cut`` maps that view
    to ``(*contests, *competitors, *elements)``. Both return views, so writing through them writes the parameter (or its mask).
    ``stacked``: the groups are matrices that each meet inputs of their own, as those of experts; each is observed by itself.
    """

    parameter: str
    module: nn.Module
    attribute: str
    canonical: Callable[[Tensor], Tensor]
    cut: Callable[[Tensor], Tensor]
    role: Role = "producer"
    stacked: bool = False

    @property
    def weight(self) -> nn.Parameter:
        return getattr(self.module, self.attribute)

    @property
    def shape(self) -> torch.Size:
        """Shape of the canonical view."""
        return self.canonical(torch.empty(self.weight.shape, device="meta")).shape


@dataclass(frozen=True)
class Spot:
    """A tensor while a model runs: an operand (0 or 1) of an addition of two tensors, or (``None``) its result.

    It is the so-manyth such addition in one pass of those that the code of a module does itself, counted from 0.
    """

    module: str
    ordinal: int
    operand: int | None


@dataclass(frozen=True)
class Stretch:
    """Where a unit changes a stream of numbers: what goes into a module and what comes out, or a branch: what it is given and adds."""

    module: str | None = None
    before: Spot | None = None
    added: Spot | None = None


@dataclass(frozen=True)
class Mixture:
    """Where experts are: in the parameters of a module, or in a list of modules, of which they are one; and to how many a token goes."""

    experts: str
    index: int | None
    top: int


@dataclass(frozen=True)
class Site:
    """A named set of units that compete with each other.

    ``contests`` and ``competitors`` are the shapes of the leading parts of a cut; what trails them are a unit's elements.
    ``alive`` (bool, ``(contests, competitors)``) marks the units that an earlier pruning left, or is ``None`` at first. All contests
    keep the same number, a multiple of ``step``, or what they have. ``kind`` is the same for sites that are isomorphic;
    ``note`` is for people. ``whole``: it may go as a whole, so that no floor holds it; ``stretch``: where it changes a stream of numbers;
    ``mixture``: of which its units are experts, so that a plan keeps as many as a token is sent to.

    >>> from secateurs.patterns import Element, find_sites
    >>> masks = {"weight": torch.tensor([[True, True, True], [True, False, False]])}
    >>> site = find_sites(nn.Linear(3, 2), Element(within="row"), masks=masks)[0]
    >>> site.available, [site.kept_by(each) for each in (1, 2, 3)], site.each_of(3)
    (4, [2, 3, 4], 2)
    """

    name: str
    members: tuple[Member, ...]
    contests: tuple[int, ...]
    competitors: tuple[int, ...]
    elements_per_unit: int
    pattern: Pattern
    alive: Tensor | None = None
    step: int = 1
    kind: str = ""
    note: str = ""
    whole: bool = False
    stretch: Stretch | None = None
    mixture: Mixture | None = None

    @property
    def least(self) -> int:
        """How many units any plan keeps."""
        return self.mixture.top if self.mixture is not None and self.mixture.index is None else 0

    @property
    def contest_count(self) -> int:
        return torch.Size(self.contests).numel()

    @property
    def units(self) -> int:
        """How many units there are, pruned or not."""
        return self.contest_count * torch.Size(self.competitors).numel()

    @property
    def available(self) -> int:
        """How many units a plan may keep: those that are still alive, of a pattern such as 2:4 no more than it lets stay."""
        return self.kept_by(self.fullest)

    @property
    def fullest(self) -> int:
        """How many units the fullest contest may keep."""
        most, decided = self.left[-1][0], self.pattern.kept_of_each
        return most if decided is None else min(most, decided)

    @cached_property
    def left(self) -> tuple[tuple[int, int], ...]:
        """How many contests have so many units alive: ``((units, contests), …)``, the fullest last."""
        if self.alive is None:
            return ((torch.Size(self.competitors).numel(), self.contest_count),)
        units, contests = self.alive.sum(1).unique(return_counts=True)
        return tuple(zip(units.tolist(), contests.tolist(), strict=True))

    def kept_by(self, each: int) -> int:
        """How many units stay where every contest keeps `each`, or all that it has left."""
        return sum(min(units, each) * contests for units, contests in self.left)

    def each_of(self, kept: int) -> int:
        """How many units every contest keeps, or all that it has left, so that `kept` stay; raises `PlanError` where none does."""
        if not 0 <= kept <= self.available:
            raise PlanError(f"{self.name}: the plan keeps {kept} units, but only {self.available} of {self.units} can be kept")
        if kept < self.least:
            raise PlanError(
                f"{self.name}: the plan keeps {kept} experts, but each token is sent to {self.least} of them: keep as many"
            )
        each = bisect_left(range(self.fullest), kept, key=self.kept_by)
        if self.kept_by(each) != kept:
            near = " or ".join(str(self.kept_by(number)) for number in (each - 1, each))
            raise PlanError(
                f"{self.name}: {self.pattern} lets {self.contest_count} groups compete, each keeping the same number "
                f"or all that an earlier pruning left of it, so the plan can keep {near} units, not {kept}"
            )
        return each


@dataclass(frozen=True)
class Skipped:
    """A weight that is left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sites(Sequence[Site]):
    """The sites that a pattern found in a model, with what it left alone; of axes, the ``structure`` that they come from."""

    found: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    model: nn.Module
    example: Any = None
    extents: Extents = field(default_factory=dict)
    structure: Any = field(default=None, repr=False, compare=False)

    def __getitem__(self, index: Any) -> Any:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "structure": None}  # holds for this model alone, not for a copy

    def __str__(self) -> str:
        """A table: each site with its units, what is tied in it and what is to be known of it; then what was left alone, and why."""
        rows = [("site", "units", "tied", "")]
        for site in self.found:
            tied = list(dict.fromkeys(member.parameter for member in site.members))
            shown = ", ".join(tied[:4]) + (f", and {len(tied) - 4} more" if len(tied) > 4 else "")
            rows.append((site.name, str(site.units), shown, site.note))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{name:<{widths[0]}}  {units:>{widths[1]}}  {tied:<{widths[2]}}  {note}".rstrip() for name, units, tied, note in rows
        ]
        if self.skipped:
            lines += ["", "left alone:", *(f"  {item.name}: {item.reason}" for item in self.skipped)]
        return "\n".join(lines)
