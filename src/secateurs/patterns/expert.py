"""The pattern whose units are the experts of mixtures, with the rows of the router that choose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.forward import buffers_in, modules_in, parameters_in, run_example
from secateurs.patterns.canonical import layout_of
from secateurs.patterns.depth import AsOne, as_it_is
from secateurs.patterns.selection import among
from secateurs.patterns.shapes import written
from secateurs.patterns.units import with_alive
from secateurs.types import Chosen, Cut, Extents, Member, Mixture, PatternError, Role, Site, Sites, Skipped, Within
from secateurs.watch import Operations, modules


@dataclass(frozen=True)
class Expert:
    """Experts of mixtures, each with all its matrices and the row of the router that chooses it (2510.13999).

    Found where an example's tokens are sent to the highest of a router's scores (``topk``): experts whose matrices lie in one parameter,
    as those of current transformers, are the units of one site; those of a list of modules are a site each. Experts of one mixture
    compete, or with ``within="model"`` all. No mixture keeps fewer than each token is sent to. A masked expert gives zeros but may
    still be chosen: it is gone, and tokens go to others, after `shrink_`, which checks that against routers that never choose it.

    >>> Expert(within="model")
    Expert(within='model')
    """

    within: Within = "isomorphic"

    __repr__ = written
    removable = True

    def __post_init__(self) -> None:
        if self.within not in ("isomorphic", "model"):
            raise PatternError(f'Expert: within is "isomorphic" (the experts of one mixture) or "model", not {self.within!r}')

    @property
    def kept_of_each(self) -> None:
        return None

    def cut(self, shape: Sequence[int]) -> Cut:
        """Cuts no weight; always raises `PatternError`."""
        raise PatternError(f"{self} removes whole experts, not parts of one weight: print(find_sites(...)) shows them")

    def sites(self, model: nn.Module, example: Any, chosen: Chosen, masks: Mapping[str, Tensor] | None) -> Sites:
        """A site a mixture, or of a list an expert. Raises `TaskError` where the model rejects the example."""
        found, skipped = mixtures_of(model, example)
        sites = [site for each in found for site in _sites(self, each, modules_in(model))]
        every = Sites(tuple(sites), tuple(skipped), model, example, _extents(sites))
        left = among(every, chosen)
        return replace(left, found=tuple(with_alive(site, masks) for site in left))


@dataclass(frozen=True)
class Found:
    """A mixture: the module around it, the module or the list that holds its experts, the tensors of its router, how many experts there
    are and how many each token is sent to."""

    name: str
    experts: str
    router: tuple[str, ...]
    count: int
    top: int
    listed: bool


# ---------------------------------------------------------------- looking


def mixtures_of(model: nn.Module, example: Any) -> tuple[list[Found], list[Skipped]]:
    """The mixtures of a model, found while the example runs, and why others are none."""
    routing = _Routing(model)
    with modules(model, routing.stack.append, routing.stack.pop), Operations(routing.see):
        run_example(model, example)
    found: list[Found] = []
    skipped: list[Skipped] = []
    for choice in routing.choices:
        around = _around(model, choice)
        groups = {other.count for other in routing.choices if other.module == choice.module and not other.router}
        if not choice.router or any(each.router == choice.router for each in found):
            continue
        if around is None:
            skipped.append(
                Skipped(
                    choice.module or "the model",
                    f"it chooses {choice.top} of {choice.count}, but around it is no parameter of {choice.count} matrices, and no list of "
                    f"{choice.count} modules",
                )
            )
        elif groups - {choice.count}:
            skipped.append(Skipped(around[0], "its router chooses among groups of experts, which have one size"))
        else:
            found.append(Found(around[0], around[1], choice.router, choice.count, choice.top, around[2]))
    return found, skipped


@dataclass
class _Choice:
    module: str
    router: tuple[str, ...]
    count: int
    top: int


@dataclass
class _Routing:
    """Follows what routers' weights make until the highest of it are taken."""

    model: nn.Module
    stack: list[str] = field(default_factory=lambda: [""])
    choices: list[_Choice] = field(default_factory=list)
    made: dict[int, tuple[Tensor, tuple[str, ...], int]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        held = {**parameters_in(self.model), **buffers_in(self.model)}
        self.names = {_place(tensor): name for name, tensor in held.items() if tensor.ndim in (1, 2)}

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, and follow it."""
        result = func(*args, **kwargs)
        tensors = [each for each in args if isinstance(each, Tensor)]
        name = func.name().rpartition("::")[2].partition(".")[0]
        if name == "topk":
            known = self.made.get(id(args[0]))
            names = known[1] if known is not None and args[0].shape[-1] == known[2] else ()
            self.choices.append(_Choice(self.stack[-1], names, args[0].shape[-1], int(args[1])))
        elif isinstance(result, Tensor) and result.ndim:
            self._follow(name, tensors, result)
        return result

    def _follow(self, name: str, tensors: list[Tensor], result: Tensor) -> None:
        width = result.shape[-1]
        names: list[str] = []
        for tensor in tensors:
            known = self.made.get(id(tensor))
            own = self.names.get(_place(tensor))
            names += known[1] if known is not None and known[2] == width else []
            of_router = own is not None and (tensor.ndim == 1 or (name in ("mm", "addmm") and tensor is tensors[-1]))
            names += [own] if own is not None and of_router and tensor.shape[-1] == width else []
        begun = any(self.made.get(id(tensor)) is not None for tensor in tensors)
        if names and (begun or name in ("mm", "addmm")):
            self.made[id(result)] = (result, tuple(dict.fromkeys(names)), width)


def _place(tensor: Tensor) -> int:
    """The same for a parameter and its transpose."""
    return hash((tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()))


def _around(model: nn.Module, choice: _Choice) -> tuple[str, str, bool] | None:
    """The innermost module around a choice that holds as many experts; where these are, and whether they are a list."""
    path = choice.module
    while True:
        module = model.get_submodule(path)
        inside = [(f"{path}.{name}".strip("."), each) for name, each in modules_in(module).items()]
        for name, each in inside:
            if isinstance(each, nn.ModuleList) and len(each) == choice.count and len({type(one) for one in each}) == 1:
                return path, name, True
        for name, each in inside:
            stacks = [value for value in each._parameters.values() if value is not None and value.ndim == 3]
            if stacks and all(len(value) == choice.count for value in stacks):
                return path, name, False
        if not path:
            return None
        path = path.rpartition(".")[0]


# ---------------------------------------------------------------- sites


@dataclass(frozen=True)
class Row:
    """One index of a dimension as one unit."""

    index: int
    dim: int = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """``(1, *elements)``; what is written to it is written to the tensor."""
        return tensor.narrow(self.dim, self.index, 1).movedim(self.dim, 0)


@dataclass(frozen=True)
class Rows:
    """The indices of a dimension as units."""

    dim: int = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """``(units, *elements)``; what is written to it is written to the tensor."""
        return tensor.movedim(self.dim, 0)


def _sites(pattern: Expert, found: Found, held: Mapping[str, nn.Module]) -> Iterator[Site]:
    kind = f"experts of {found.name or 'the model'}"
    routers = [(name, _dim(name, found, held)) for name in found.router if _attribute(name, held) is not None]
    if not found.listed:
        inside = [key for key, value in held[found.experts]._parameters.items() if value is not None and len(value) == found.count]
        members = [_member(f"{found.experts}.{key}".strip("."), held, Rows(), "producer") for key in inside]
        members += [_member(name, held, Rows(dim), "scale") for name, dim in routers]
        size = sum(member.weight.numel() for member in members) // found.count
        where = Mixture(found.experts, None, found.top)
        yield Site(found.name or "experts", tuple(members), (), (found.count,), size, pattern, kind=kind, note=_NOTE, mixture=where)
        return
    for index in range(found.count):
        path = f"{found.experts}.{index}"
        inside = list(parameters_in(held[path]))
        members = [_member(f"{path}.{name}", held, AsOne(), "producer") for name in inside]
        members += [_member(name, held, Row(index, dim), "scale") for name, dim in routers]
        size = sum(member.cut(torch.empty(member.shape, device="meta")).numel() for member in members)
        where = Mixture(found.experts, index, found.top)
        yield Site(path, tuple(members), (), (1,), size, pattern, kind=kind, note=_NOTE, whole=True, mixture=where)


_NOTE = "approximate: who is not there cannot be chosen"


def _attribute(name: str, held: Mapping[str, nn.Module]) -> Any:
    path, _, key = name.rpartition(".")
    return held[path]._parameters.get(key)


def _dim(name: str, found: Found, held: Mapping[str, nn.Module]) -> int:
    """The dimension of a router's weight that counts the experts."""
    return 0 if len(_attribute(name, held)) == found.count else 1


def _member(name: str, held: Mapping[str, nn.Module], cut: Any, role: Role) -> Member:
    path, _, attribute = name.rpartition(".")
    layout = layout_of(held[path], attribute) if role == "producer" and isinstance(cut, (AsOne, Rows)) else None
    stacked = layout is not None and layout.stacked
    canonical = layout if layout is not None and (stacked or isinstance(cut, AsOne)) else as_it_is
    return Member(name, held[path], attribute, canonical, cut, role, stacked)


def _extents(sites: Sequence[Site]) -> Extents:
    """Sizes of the parameters in numbers of kept units."""
    found: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
    for site in sites:
        for member in site.members:
            view = member.cut(torch.empty(member.shape, device="meta"))
            found.setdefault(member.parameter, []).append((view.numel() // site.units, (site.name,)))
    return {name: ((tuple(terms),),) for name, terms in found.items()}
