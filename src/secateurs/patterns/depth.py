"""The pattern whose units are whole blocks of a network, or what a block adds to the stream: its attention, its MLP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from secateurs.forward import modules_in
from secateurs.graph import (
    Branch,
    Knowing,
    ModuleCall,
    Operand,
    Structure,
    additions,
    analyse,
    branches_of,
    interpret,
    keys_and_values,
    serving_alone,
)
from secateurs.patterns.canonical import layout_of, quantised
from secateurs.patterns.selection import among, listed
from secateurs.patterns.shapes import written
from secateurs.patterns.units import with_alive
from secateurs.types import (
    KEYS_AND_VALUES,
    Chosen,
    Cut,
    Extents,
    Member,
    PatternError,
    Product,
    Site,
    Sites,
    Skipped,
    Spot,
    Stretch,
    Within,
)

Parts = Literal["block", "attention", "mlp", "halves"]
"""Whole blocks; their attentions; what else they add; or both of these, which compete."""


@dataclass(frozen=True)
class Depth:
    """Whole blocks of a network, or the branches that a block adds to its stream (2403.03853, 2406.15786); all compete over the model.

    A unit is a site of its own, in all weights that serve it alone. Units are found in the residual additions of the trace, and each is
    proven to leave nothing behind once its weights are zero: a block gives back what it is given, a branch adds zeros. `shrink_` takes
    them out. ``parts`` is ``"block"``, ``"attention"`` (branches with a softmax over the places of a sequence), ``"mlp"`` (all others) or
    ``"halves"`` (both). No floor holds these sites: ``uniform(keep=0.75)`` keeps three quarters of all units.

    >>> Depth(parts="halves")
    Depth(parts='halves')
    """

    parts: Parts = "block"

    __repr__ = written
    removable = True

    @property
    def within(self) -> Within:
        return "model"

    @property
    def kept_of_each(self) -> None:
        return None

    def __post_init__(self) -> None:
        if self.parts not in get_args(Parts):
            raise PatternError(f"Depth: parts is {self.parts!r}, but must be one of {', '.join(map(repr, get_args(Parts)))}")

    def cut(self, shape: Sequence[int]) -> Cut:
        """Cuts no weight; always raises `PatternError`."""
        raise PatternError(f"{self} removes whole blocks or branches, not parts of a weight: print(find_sites(...)) shows them")

    def sites(self, model: nn.Module, example: Any, chosen: Chosen, masks: Mapping[str, Tensor] | None) -> Sites:
        """A site a block or branch that can go. Raises `PatternError` where there is none, `TaskError` where the example is rejected."""
        search = _Search(model, analyse(model, example))
        found = search.blocks() if self.parts == "block" else search.halves(self.parts)
        units, skipped = search.proven([each for each in found if isinstance(each, _Unit)])
        skipped += [each for each in found if isinstance(each, Skipped)] + search.unlike()
        skipped += [Skipped("trace", note) for note in search.trace.notes] + quantised(model)
        sites = tuple(search.site(self, unit) for unit in units)
        left = among(Sites(sites, tuple(dict.fromkeys(skipped)), model, example, search.extents(units), search.structure), chosen)
        if not left:
            wanted = "no branch that is added to what goes around it, so nothing can go and leave the rest as it was"
            raise PatternError(f"{self} finds no site in {type(model).__name__}; {listed(left.skipped, wanted)}")
        return replace(left, found=tuple(with_alive(site, masks) for site in left))


@dataclass(frozen=True)
class _Unit:
    """What can go: its name, the parameters that serve it alone, its branches, and the module that goes with it."""

    name: str
    parameters: tuple[str, ...]
    branches: tuple[Branch, ...]
    kind: str
    module: str | None = None


class _Search:
    """The units of depth of one model."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self.model, self.structure, self.trace = model, structure, structure.trace
        self.modules = modules_in(model)
        self.kinds = {name: type(module).__name__ for name, module in self.modules.items()}
        self.all = branches_of(structure)
        self.additions = additions(self.trace)
        count = Counter(call.module for call in self.trace.calls)
        self.calls = {call.module: call for call in self.trace.calls if count[call.module] == 1}

    # ------------------------------------------------------------ candidates

    def blocks(self) -> list[_Unit | Skipped]:
        """Around each branch the outermost module that gives back what it is given where no branch adds anything, and is no stack."""
        knowing = self._knowing(self._alone(self.all.found))
        around = {name for branch in self.all.found for name in _around(self._path(branch))}
        same = {name for name, call in self.calls.items() if name in around and gives_back(call, knowing)}
        inner = {name for name in same if not self._is_stack(name, same)}
        found: dict[str, list[Branch]] = {}
        by_themselves: list[Branch] = []
        for branch in self.all.found:
            block = next((name for name in _around(self._path(branch)) if name in inner), None)
            if block is None:
                by_themselves.append(branch)
            else:
                found.setdefault(block, []).append(branch)
        units: list[_Unit | Skipped] = [
            _Unit(name, self._alone(inside), tuple(inside), self.kinds[name], name) for name, inside in found.items()
        ]
        return units + [self._by_itself(branch) for branch in by_themselves]

    def halves(self, parts: str) -> list[_Unit | Skipped]:
        """The branches of these parts."""
        wanted = [each for each in self.all.found if parts == "halves" or each.attends is (parts == "attention")]
        return [_Unit(self._name(each), each.parameters, (each,), self._kind(each)) for each in wanted]

    def _by_itself(self, branch: Branch) -> _Unit | Skipped:
        """A branch around which no module is the stream unchanged: it is the block, unless a normalisation lies behind the sum."""
        total = self.trace.ops[branch.seen_added.place].outputs[0]
        readers = self.trace.readers.get(total, [])
        if readers and all("norm" in op.name for op in readers):
            return Skipped(
                self._path(branch) or self._name(branch),
                f"post-norm: {readers[0].module} normalises what the branch is added to, so that the block does not give back what it is "
                'given even where the branch adds nothing, and cannot be left out; its branches can: Depth(parts="halves")',
            )
        if not self.trace.fake:
            return Skipped(self._path(branch), "the model's code decides by numbers, so that of its blocks nothing can be proven")
        return _Unit(self._name(branch), branch.parameters, (branch,), self._kind(branch))

    def _is_stack(self, name: str, same: Iterable[str]) -> bool:
        """Whether a module holds several of one kind, none in the other, that give back what they are given."""
        inside = [each for each in same if each.startswith(f"{name}.")]
        outer = [each for each in inside if not any(each.startswith(f"{other}.") for other in inside)]
        return max(Counter(self.kinds[each] for each in outer).values(), default=0) > 1

    def unlike(self) -> list[Skipped]:
        """Sums that no stream passes unchanged."""
        return [
            Skipped(
                self.trace.ops[place].module or "the model",
                f"the parts of the sum at {self.trace.ops[place].where} are computed side by side, none of them from the other: nothing "
                "passes unchanged (a shortcut that changes the shape), so that nothing fits in the place of the block",
            )
            for place in self.all.unlike
        ]

    # ------------------------------------------------------------ names

    def _path(self, branch: Branch) -> str:
        """The module that adds the branch to the stream."""
        return self.trace.ops[branch.seen_added.place].module

    def _name(self, branch: Branch) -> str:
        """The innermost module around the branch's weights but those of normalisations; where others are in there too, with a word."""
        path = self._around_weights(branch)
        if any(self._around_weights(other).startswith(path) for other in self.all.found if other is not branch):
            return f"{path}:{'attention' if branch.attends else 'mlp'}" if path else f"{'attention' if branch.attends else 'mlp'}"
        return path or "branch"

    def _around_weights(self, branch: Branch) -> str:
        values = self.trace.parameters
        names = [name for name in branch.parameters if len(values[name].shape) > 1] or list(branch.parameters)
        paths = [name.split(".")[:-1] for name in names]
        common: list[str] = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        return ".".join(common)

    def _kind(self, branch: Branch) -> str:
        return f"{self.kinds.get(self._path(branch), '')}:{'attention' if branch.attends else 'mlp'}"

    # ------------------------------------------------------------ proofs

    def _alone(self, branches: Sequence[Branch]) -> tuple[str, ...]:
        """The parameters that serve these branches alone and that may be zero."""
        others = [each for each in self.all.found if not any(each is one for one in branches)]
        names = serving_alone(self.trace, branches, others)
        return tuple(name for name in names if name not in self.structure.typing.divisors)

    def _knowing(self, zero: Iterable[str]) -> Knowing:
        """What is certain where these parameters are zero."""
        shapes = {name: self.trace.parameters[name].shape for name in zero}
        return interpret(
            self.model, self.structure, {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, evenly=True
        )

    def proven(self, units: Sequence[_Unit]) -> tuple[list[_Unit], list[Skipped]]:
        """The units that leave nothing behind once their weights are zero, and why the others are none."""
        knowing = self._knowing({name for unit in units for name in unit.parameters})
        good, skipped = [], []
        for unit in units:
            reason = self._remains(unit, knowing)
            if reason is None:
                good.append(unit)
            else:
                skipped.append(Skipped(unit.name, reason))
        return good, skipped

    def _remains(self, unit: _Unit, knowing: Knowing) -> str | None:
        """Why a unit would leave something behind."""
        if not unit.parameters:
            return "its weights serve other places too, so that it cannot go without them"
        if not all(self.trace.parameters[name].dtype.is_floating_point for name in unit.parameters):
            return "its weights are no floating-point numbers; prune first, then quantise"
        if unit.module is not None and (others := self._read_elsewhere(unit)):
            return f"{others[0]} lies within it and serves other places too, so that it cannot go"
        if unit.module is not None and gives_back(self.calls[unit.module], knowing):
            return None
        if unit.module is None and all(knowing.of(branch.added).all_zero for branch in unit.branches):
            return None
        return "with its own weights at zero it is not proven to add nothing: other weights or the code itself may"

    def _read_elsewhere(self, unit: _Unit) -> list[str]:
        """Parameters in the module of a unit that something else reads."""
        others = [each for each in self.all.found if not any(each is one for one in unit.branches)]
        alone = serving_alone(self.trace, unit.branches, others)
        inside = [name for name in self.trace.parameters if name.startswith(f"{unit.module}.")]
        return [name for name in inside if name not in alone and self.trace.readers.get(self.trace.parameters[name])]

    # ------------------------------------------------------------ sites

    def site(self, pattern: Depth, unit: _Unit) -> Site:
        """A site of one unit."""
        members = tuple(self._member(name) for name in unit.parameters)
        branch = unit.branches[0]
        where = (
            Stretch(unit.module) if unit.module else Stretch(None, self._spot(branch.seen_before), self._spot(branch.seen_added))
        )
        size = sum(member.weight.numel() for member in members)
        kind = f"{unit.kind} of {size:,}"
        return Site(unit.name, members, (), (1,), size, pattern, kind=kind, note="exact", whole=True, stretch=where)

    def _spot(self, seen: Operand) -> Spot:
        return Spot(*self.additions[seen.place], seen.which)

    def _member(self, name: str) -> Member:
        path, _, attribute = name.rpartition(".")
        layout = layout_of(self.modules[path], attribute)
        canonical, stacked = (as_it_is, False) if layout is None else (layout, layout.stacked)
        return Member(name, self.modules[path], attribute, canonical, AsOne(), stacked=stacked)

    def extents(self, units: Sequence[_Unit]) -> Extents:
        """Sizes of the parameters, and the MACs of the model, in numbers of kept units."""
        values, typing = self.trace.parameters, self.structure.typing
        found: dict[str, tuple[Product, ...]] = {
            name: (((((prod(values[name].shape)), (unit.name,)),),),) for unit in units for name in unit.parameters
        }
        owner = {place: unit.name for unit in units for branch in unit.branches for place in branch.ops}
        terms: Counter[tuple[str, ...]] = Counter()
        for dims, place in zip(typing.products, typing.multiplying, strict=True):
            terms[(owner[place],) if place in owner else ()] += prod(dim.size for dim in dims)
        found["macs"] = ((tuple((count, names) for names, count in terms.items()),),)
        kept = [
            ((((size * prod(dim.size for dim in dims)), (owner[place],) if place in owner else ()),),)
            for place, size, dims in keys_and_values(self.structure)
        ]
        return {**found, KEYS_AND_VALUES: tuple(kept)} if kept else found


def gives_back(call: ModuleCall, knowing: Knowing) -> bool:
    """Whether a call of a module gives what it was given, for every input.

    >>> from secateurs.graph import analyse, interpret
    >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> structure = analyse(model, torch.ones(1, 2))
    >>> [gives_back(call, interpret(model, structure)) for call in structure.trace.calls if call.module]
    [True, False]
    """
    if call.input is None or call.overwrites or call.overwritten or call.input.dtype != call.output.dtype:
        return False
    given, made = knowing.of(call.input), knowing.of(call.output)
    return given.sizes == made.sizes and (made.same or call.output) is (given.same or call.input)


def _around(path: str) -> list[str]:
    """A module and those around it, the outermost first."""
    parts = path.split(".") if path else []
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


@dataclass(frozen=True)
class AsOne:
    """A whole weight as one unit."""

    def __call__(self, tensor: Tensor) -> Tensor:
        """``(1, *elements)``; what is written to it is written to the tensor."""
        return tensor.unsqueeze(0)


def as_it_is(tensor: Tensor) -> Tensor:
    """The tensor itself: the canonical view of what has no layout."""
    return tensor
