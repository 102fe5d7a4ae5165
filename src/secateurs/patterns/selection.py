"""Which parts of a model a caller means: by name, by glob, as objects of the model, or by a predicate."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod

from torch import Tensor, nn

from secateurs.forward import buffers_in, modules_in, parameters_in
from secateurs.patterns.canonical import Weight
from secateurs.types import Chosen, Extents, PatternError, Selection, Site, Sites, Skipped


class Names:
    """The names that a model's parts have, tied parameters and shared modules under each of theirs."""

    def __init__(self, model: nn.Module, also: Iterable[str] = ()) -> None:
        self.model, self.also = model, tuple(also)
        self.modules, self.parameters = modules_in(model, again=True), parameters_in(model, again=True)
        self._of: dict[int, list[str]] = {}
        for name, parameter in self.parameters.items():
            self._of.setdefault(id(parameter), []).extend([name, *([name.rpartition(".")[0]] if "." in name else [])])

    def of(self, parameter: Tensor) -> list[str]:
        """A parameter's own names, and those of the layers that hold it."""
        return self._of.get(id(parameter), [])

    def resolved(self, selection: Selection, argument: str) -> list[str] | Callable[[str, nn.Module], bool]:
        """A selection as names and globs that mean something, or as its predicate; raises `PatternError` for anything else."""
        if callable(selection) and not isinstance(selection, (nn.Module, type)):
            return selection
        one = isinstance(selection, (str, nn.Module, Tensor)) or not isinstance(selection, Iterable)
        found = [name for part in ([selection] if one else selection) for name in self._named(part, argument)]  # type: ignore[union-attr]
        names = [*self.also, *self.modules, *self.parameters, *buffers_in(self.model, again=True)]
        known = [name for name in dict.fromkeys(names) if name]  # the model itself has none
        for wanted in found:
            if not means(wanted, known):
                close = difflib.get_close_matches(wanted, known, n=3) or known[:5]
                raise PatternError(
                    f"{argument}: nothing in {type(self.model).__name__} is called {wanted!r}; did you mean {', '.join(close)}?"
                )
        return found

    def _named(self, part: object, argument: str) -> list[str]:
        if isinstance(part, str):
            return [part]
        if part is self.model:
            return ["*"]
        names = [name for name, each in {**self.modules, **self.parameters}.items() if each is part]
        if names:
            return names
        if isinstance(part, (nn.Module, Tensor)):
            raise PatternError(
                f"{argument}: this {type(part).__name__} is no part of the {type(self.model).__name__}; name what is"
            )
        shown = f"the class {part.__name__}" if isinstance(part, type) else repr(part)
        raise PatternError(
            f"{argument} takes names, globs, modules of the model or a predicate (name, module) → bool, not {shown}; for all layers "
            "of a class: lambda name, module: isinstance(module, torch.nn.Linear)"
        )


def means(wanted: str, names: Iterable[str]) -> bool:
    """Whether a name or a glob, of the thing itself or of a container around it, means one of the names.

    >>> means("*.mlp", ["blocks.0.mlp.up"]), means("mlp", ["blocks.0.mlp.up"])
    (True, False)
    """
    inside = (f"{wanted}.", f"{wanted}:")
    globs = (wanted, *(f"{each}*" for each in inside))
    return bool(wanted) and any(
        name == wanted or name.startswith(inside) or any(fnmatchcase(name, glob) for glob in globs) for name in names
    )


def select(model: nn.Module, weights: list[Weight], selection: Selection, argument: str) -> dict[str, str]:
    """The weights that a selection means, by name, each with the reason that the selection gives.

    Raises `PatternError` for a name that means nothing in the model.
    """
    names = Names(model, [weight.name for weight in weights])
    wanted = names.resolved(selection, argument)
    if callable(wanted):
        return {weight.name: f"named in {argument}" for weight in weights if wanted(weight.name, weight.module)}
    told = selection if isinstance(selection, Mapping) else {}
    found: dict[str, str] = {}
    for each in wanted:
        for weight in weights:
            if means(each, (weight.name, *names.of(weight.value))):
                found.setdefault(weight.name, told.get(each, f"named in {argument}"))
    return found


def find_parameters(model: nn.Module, only: Selection | None = None, skip: Selection | None = None) -> dict[str, nn.Parameter]:
    """All parameters that are trained, biases too, or those of them that are chosen, by name.

    Raises `PatternError` for a name that means nothing, and where none is left.

    >>> list(find_parameters(nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1)), skip="1.bias"))
    ['0.weight', '0.bias', '1.weight']
    """
    names = Names(model)
    chosen = None if only is None else names.resolved(only, "only=")
    left_out = [] if skip is None else names.resolved(skip, "skip=")
    found = {
        name: parameter
        for name, parameter in parameters_in(model).items()
        if parameter.requires_grad
        and parameter.is_floating_point()
        and (chosen is None or _is_meant(names, name, parameter, chosen))
        and not _is_meant(names, name, parameter, left_out)
    }
    if not found:
        raise PatternError(
            f"{type(model).__name__} has no parameter left to choose from: all are frozen (requires_grad=False), not in only=, or in skip="
        )
    return found


def _is_meant(names: Names, name: str, parameter: Tensor, wanted: list[str] | Callable[[str, nn.Module], bool]) -> bool:
    if callable(wanted):
        return wanted(name, names.modules[name.rpartition(".")[0]])
    return any(means(each, [name, *names.of(parameter)]) for each in wanted)


class Axes:
    """Which sites of coupled axes a selection means: those that the named layers make, not those that they read."""

    def __init__(self, model: nn.Module, selection: Selection, argument: str, also: Iterable[str]) -> None:
        self.names = Names(model, also)
        self.wanted = self.names.resolved(selection, argument)

    def choose(self, site: Site) -> bool:
        """For ``only``: the layer is named after which the site is, or all layers that make it, or one of makers side by side."""
        if callable(self.wanted):
            return self.wanted(site.name, site.members[0].module)
        makers = self._makers(site)
        first = next(iter(makers.values()), [])
        side_by_side = len({name.rpartition(".")[0].rpartition(".")[0] for name in makers}) == 1
        return self._mean([site.name, *first]) or (any if side_by_side else all)(map(self._mean, makers.values()))

    def touch(self, site: Site) -> bool:
        """For ``skip``: the site is named, or any of the layers that make it."""
        if callable(self.wanted):
            return self.wanted(site.name, site.members[0].module)
        return self._mean([site.name]) or any(map(self._mean, self._makers(site).values()))

    def ask(self, site: Site) -> bool:
        """Whether a site is asked for by its own name, which is needed where it lies within the units of another."""
        if callable(self.wanted):
            return self.wanted(site.name, site.members[0].module)
        return any(each == site.name or (":" in each and fnmatchcase(site.name, each)) for each in self.wanted)

    def _makers(self, site: Site) -> dict[str, list[str]]:
        return {member.parameter: self.names.of(member.weight) for member in site.members if member.role == "producer"}

    def _mean(self, names: Iterable[str]) -> bool:
        names = list(names)
        return any(means(each, names) for each in self.wanted)  # type: ignore[union-attr]


def among(sites: Sites, chosen: Chosen) -> Sites:
    """Of sites that a pattern found, those that were chosen by their names or by the layers that make them; the others are left alone.

    Raises `PatternError` for a name that means nothing in the model.
    """
    known = [site.name for site in sites] + [item.name for item in sites.skipped]
    left_alone: list[Skipped] = []
    if chosen.only is not None:
        wanted = Axes(sites.model, chosen.only, "only=", known)
        left_alone += [Skipped(site.name, _unchosen(site, wanted)) for site in sites if not wanted.choose(site)]
    if chosen.skip is not None:
        touched = Axes(sites.model, chosen.skip, "skip=", known)
        left_alone += [Skipped(site.name, "named in skip=") for site in sites if touched.touch(site)]
    gone = {item.name for item in left_alone}
    found = tuple(site for site in sites if site.name not in gone)
    whole = {site.name: site.units for site in sites if site.name in gone}
    return replace(sites, found=found, skipped=(*sites.skipped, *left_alone), extents=extents_without(sites.extents, whole))


def _unchosen(site: Site, chosen: Axes) -> str:
    """Why ``only`` did not choose a site."""
    makers = [member.parameter.removesuffix(".weight") for member in site.members if member.role == "producer"]
    if not chosen.touch(site):
        return "not named in only="
    return f"made by more layers than only= names ({', '.join(makers[:3])}, …); name {site.name} in only= to prune it"


def extents_without(extents: Extents, whole: Mapping[str, int]) -> Extents:
    """Extents in which sites that take no part any more keep all their units: name → how many there are.

    >>> extents_without({"macs": ((((3, ("a", "b")),),),)}, {"b": 5})
    {'macs': ((((15, ('a',)),),),)}
    """

    if not whole:
        return extents

    def kept_whole(number: int, sites: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
        return number * prod(whole.get(site, 1) for site in sites), tuple(site for site in sites if site not in whole)

    return {
        name: tuple(tuple(tuple(kept_whole(*term) for term in dim) for dim in product) for product in products)
        for name, products in extents.items()
    }


def listed(skipped: Sequence[Skipped], wanted: str = "nothing of this kind") -> str:
    """What was left alone, and why, in a sentence: the end of an error. Where nothing was, that it has none of what is looked for."""
    if not skipped:
        return f"it has {wanted}"
    shown = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:5])
    return f"left alone: {shown}" + (f"; and {len(skipped) - 5} more" if len(skipped) > 5 else "")
