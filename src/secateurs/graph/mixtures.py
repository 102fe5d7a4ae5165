"""Mixtures of experts: where tokens are sent to the highest of a router's scores, found while an example runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from secateurs.forward import buffers_in, modules_in, parameters_in, run_example
from secateurs.types import Skipped
from secateurs.watch import Operations, modules


@dataclass(frozen=True)
class Routed:
    """A mixture: the module around it, the module or the list that holds its experts, the tensors of its router, how many experts there
    are and how many each token is sent to."""

    name: str
    experts: str
    router: tuple[str, ...]
    count: int
    top: int
    listed: bool


def mixtures_of(model: nn.Module, example: Any) -> tuple[list[Routed], list[Skipped]]:
    """The mixtures of a model, found while the example runs, and why others are none."""
    routing = _Routing(model)
    with modules(model, routing.stack.append, routing.stack.pop), Operations(routing.see):
        run_example(model, example)
    found: list[Routed] = []
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
            found.append(Routed(around[0], around[1], choice.router, choice.count, choice.top, around[2]))
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
