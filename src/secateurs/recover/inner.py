"""What a model computes on the way: the outputs of chosen modules, as they come, with their gradients."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateurs.forward import modules_in
from secateurs.nested import tensors_in
from secateurs.types import KindError, SecateursError


def inside(model: nn.Module) -> nn.Module:
    """The model within what wraps it: DistributedDataParallel, compile.

    >>> layer = nn.Linear(1, 1)
    >>> inside(nn.DataParallel(layer)) is inside(layer) is layer
    True
    """
    while True:
        parallel = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        within = model.module if parallel else getattr(model, "_orig_mod", None)
        if not isinstance(within, nn.Module):
            return model
        model = within


def chosen(who: str, model: nn.Module, modules: object) -> list[str]:
    """The modules of a model that names and globs mean, in the model's order. Raises `SecateursError` for one that means nothing.

    >>> chosen("mine", nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()), ["0.*", "1"])
    ['0.0', '1']
    """
    wanted: list[Any] = list(modules) if isinstance(modules, Iterable) and not isinstance(modules, (str, nn.Module)) else [modules]
    known = list(modules_in(model, again=True))
    for each in wanted:
        if not isinstance(each, str):
            raise KindError(
                f"{who}: modules has {each!r}, but must be names or globs, or a dict of the model's names to the teacher's"
            )
        if not any(fnmatchcase(name, each) for name in known):
            close = difflib.get_close_matches(each, known, n=3) or [name for name in known if name][:3]
            raise SecateursError(
                f"{who}: {type(model).__name__} has no module {each!r}; did you mean {', '.join(close) or 'another model'}?"
            )
    return [name for name in known if any(fnmatchcase(name, each) for each in wanted)]


class Looks(Protocol):
    """Looks at what a model computes on the way: ``{module: [tensor of each call]}``, until it is closed."""

    def watch(self, model: nn.Module) -> None: ...

    def take(self) -> dict[str, list[Tensor]]: ...

    def close(self) -> None: ...


@dataclass
class Outputs:
    """Looks at the first tensor that modules give in each pass of a model.

    ``learning``: only at passes with gradients, so that validation leaves nothing behind. What the pass before has left (one that runs
    again for its gradients, as checkpointed activations do, calls modules once more) is forgotten when the whole model is called anew.

    >>> looks, model = Outputs(["0"]), nn.Sequential(nn.Flatten(), nn.ReLU())
    >>> looks.watch(model)
    >>> _, seen = model(torch.ones(1, 2)), looks.take()
    >>> looks.close()
    >>> seen
    {'0': [tensor([[1., 1.]])]}
    """

    names: Iterable[str]
    learning: bool = False
    _seen: dict[str, list[Tensor]] = field(default_factory=dict)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def watch(self, model: nn.Module) -> None:
        """Look at this model from now on, and at no other."""
        self.close()
        modules = modules_in(inside(model), again=True)
        self._handles = [model.register_forward_pre_hook(self._forget)]
        self._handles += [modules[name].register_forward_hook(partial(self._see, name)) for name in self.names]

    def _forget(self, *_: Any) -> None:
        if not self.learning or torch.is_grad_enabled():
            self._seen = {}

    def _see(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        found = next(tensors_in(output), None)
        if found is not None and (not self.learning or torch.is_grad_enabled()):
            self._seen.setdefault(name, []).append(found)

    def take(self) -> dict[str, list[Tensor]]:
        """What was seen in the last pass, which is then forgotten."""
        seen, self._seen = self._seen, {}
        return seen

    def close(self) -> None:
        """Look at nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._seen = [], {}
