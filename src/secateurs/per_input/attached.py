"""Other code in the place of a module's ``forward``, while its parameters and their names stay as they are; and how it is taken off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from torch import nn

from secateurs.forward import modules_in
from secateurs.patterns.selection import Names, means
from secateurs.types import SecateursError, Selection, Skipped


@dataclass(frozen=True)
class PerInput:
    """What leaves out a part of a model's work input by input, for as long as it is attached to it.

    ``parts`` are what stands in place of the modules of these names, ``skipped`` those that were left alone, with the reason. A
    copy (``copy.deepcopy(attached)``) is attached to a copy of the model.
    """

    model: nn.Module
    parts: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    taken: list[tuple[nn.Module, Any, Any, int]] = field(default_factory=list, repr=False)
    children: list[tuple[nn.Module, str]] = field(default_factory=list, repr=False)

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """Within it the model does all of its work, as if nothing were attached.

        >>> import torch
        >>> from secateurs.per_input import skip_small_
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> attached = skip_small_(layer, {"": 9.0})
        >>> bool(layer(torch.ones(1, 2)).any())
        False
        >>> with attached.off():
        ...     bool(layer(torch.ones(1, 2)).any())
        True
        """
        before = [(part, part.on) for part in self.parts.values()]
        try:
            for part, _ in before:
                part.on = False
            yield self.model
        finally:
            for part, on in before:
                part.on = on

    def remove(self) -> nn.Module:
        """Take it off: the model is what it was, its weights as they are by now; returns it.

        Raises `SecateursError` where something was attached later that is still there.
        """
        for module, _, forward, _ in self.taken:
            if module.__dict__.get("forward") is not forward:
                raise SecateursError(
                    f"a {type(module).__name__} of {type(self.model).__name__} has something else attached since: remove() that first"
                )
        for module, before, _, hook in reversed(self.taken):
            module._forward_pre_hooks.pop(hook, None)
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before
        for module, name in self.children:
            delattr(module, name)
        for part in self.parts.values():
            getattr(part, "removed", lambda: None)()
        self.taken.clear()
        self.children.clear()
        self.parts.clear()
        return self.model

    def take_over(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Let a module run `forward` (a method, so that copies have their own); returns what it has run until now."""
        before, inner = module.__dict__.get("forward"), module.forward
        module.__dict__["forward"] = forward
        self.taken.append((module, before, forward, module.register_forward_pre_hook(_here).id))
        return inner

    def add_child(self, module: nn.Module, name: str, child: nn.Module) -> None:
        """Put a part with parameters or buffers under a module, where files keep them."""
        if hasattr(module, name):
            raise SecateursError(
                f"a {type(module).__name__} of {type(self.model).__name__} has something called {name!r} already: where that was attached "
                "before, remove() it first"
            )
        module.add_module(name, child)
        self.children.append((module, name))


def _here(module: nn.Module, args: Any) -> None:
    """A hook that does nothing but be there: torch's own transformers pass over the layers in them where nobody listens."""


@contextmanager
def attaching(attached: PerInput) -> Iterator[PerInput]:
    """Takes all off again where anything fails in the block."""
    try:
        yield attached
    except BaseException:
        attached.remove()
        raise


def selected(model: nn.Module, names: Iterable[str], only: Selection | None, skip: Selection | None) -> list[str]:
    """Those of some modules that a caller means."""
    known, modules = Names(model), modules_in(model, again=True)

    def asked(selection: Selection, argument: str) -> Callable[[str], bool]:
        found = known.resolved(selection, argument)
        if isinstance(found, Sequence):
            return lambda name: any(means(each, [name]) or each == "*" for each in found)
        return lambda name: bool(found(name, modules[name]))

    wanted = (lambda name: True) if only is None else asked(only, "only=")
    unwanted = (lambda name: False) if skip is None else asked(skip, "skip=")
    return [name for name in names if wanted(name) and not unwanted(name)]


def require_fraction(who: str, argument: str, value: object) -> float:
    """A fraction in (0, 1]; raises `SecateursError` for anything else.

    >>> require_fraction("boost_", "keep", 0)
    Traceback (most recent call last):
    secateurs.types.SecateursError: boost_: keep=0 must be a fraction in (0, 1]
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise SecateursError(f"{who}: {argument}={value!r} must be a fraction in (0, 1]")
    return float(value)


def kept_of(keep: float, units: int) -> int:
    """How many of some units a fraction is: rounded up, so that something is left.

    >>> kept_of(0.5, 3), kept_of(0.1, 10), kept_of(0.7, 10)
    (2, 1, 7)
    """
    return ceil(round(keep * units, 9))


def told(skipped: Mapping[str, str]) -> tuple[Skipped, ...]:
    """Names with reasons, as what was left alone."""
    return tuple(Skipped(name, reason) for name, reason in skipped.items())
