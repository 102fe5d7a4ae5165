"""What units do to the stream of a network: the numbers that pass before them and after them, seen while the model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.evidence.adding import Accumulators
from secateurs.forward import modules_in
from secateurs.nested import tensors_in
from secateurs.types import SecateursError, Seen, Site, Spot, Statistic
from secateurs.watch import Operations, modules, plain

_ADDITIONS = (torch.ops.aten.add, torch.ops.aten.add_)


@contextmanager
def watched_streams(
    model: nn.Module, sites: Sequence[Site], begun: Mapping[str, Accumulators], needs: Sequence[Statistic]
) -> Iterator[None]:
    """While it is entered, what passes before and behind each unit feeds its accumulators: two tensors ``(places, features)``.

    Raises `SecateursError` for units of which nobody knows where they change a stream, and where the model takes another way than the
    example did, so that a branch is not met.
    """
    for site in sites if needs else ():
        if site.stretch is None:
            raise SecateursError(
                f"{site.name}: {needs[0].name} compares the stream before a unit and behind it, which only whole blocks and branches have: "
                "take Depth(), or another criterion"
            )
    feed = {site.name: _feeding([begun[site.name][need] for need in needs]) for site in sites} if needs else {}
    blocks = {site.stretch.module: feed[site.name] for site in sites if needs and site.stretch and site.stretch.module is not None}
    branches = [_Branch(site, feed[site.name]) for site in sites if needs and site.stretch and site.stretch.module is None]
    with ExitStack() as around:
        for name, module in modules_in(model).items():
            if name in blocks:
                around.enter_context(_hooked(module, blocks[name]))
        if branches:
            watch = _Additions(branches)
            around.enter_context(plain())
            around.enter_context(modules(model, watch.stack.append, watch.stack.pop))
            around.enter_context(watch.passes(model))
            around.enter_context(Operations(watch.see))
        yield


Feed = Callable[[Tensor, Tensor], None]


def _feeding(accumulators: Sequence[Any]) -> Feed:
    def feed(before: Tensor, after: Tensor) -> None:
        one, other = places(before.detach()), places(after.detach())
        for accumulator in accumulators:
            accumulator.add(Seen((one,), other, samples=len(one)))

    return feed


def places(tensor: Tensor) -> Tensor:
    """A stream as ``(places, features)``, float32: features are the channels of images, else what is last.

    >>> places(torch.zeros(2, 5, 4)).shape, places(torch.zeros(2, 3, 8, 8)).shape
    (torch.Size([10, 4]), torch.Size([128, 3]))
    """
    return (tensor.movedim(1, -1) if tensor.ndim > 3 else tensor).flatten(0, -2).float()


@contextmanager
def _hooked(module: nn.Module, feed: Feed) -> Iterator[None]:
    """What goes into a module first and what comes out first."""
    given: list[Tensor] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        given.append(next(tensors_in((args, kwargs))).detach().clone())

    def after(_: nn.Module, args: Any, output: Any) -> None:
        feed(given.pop(), next(tensors_in(output)))

    hooks = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class _Branch:
    """A branch, with what was seen of it in this pass."""

    site: Site
    feed: Feed
    seen: dict[Spot, Tensor] = field(default_factory=dict)
    met: bool = False

    @property
    def spots(self) -> tuple[Any, Any]:
        assert self.site.stretch is not None
        return self.site.stretch.before, self.site.stretch.added

    def note(self, spot: Spot, tensor: Tensor) -> None:
        self.seen[spot] = tensor
        before, added = self.spots
        if before in self.seen and added in self.seen:
            stream, more = self.seen[before].detach(), self.seen[added].detach()
            self.feed(stream, stream + more.reshape(stream.shape))
            self.seen.clear()
            self.met = True


class _Additions:
    """Counts the additions of each module's own code in a pass, as the trace did, and shows what is wanted of them to the branches."""

    def __init__(self, branches: Sequence[_Branch]) -> None:
        self.branches = branches
        self.stack: list[str] = []
        self.count: Counter[str] = Counter()
        self.wanted: dict[tuple[str, int], list[tuple[Spot, _Branch]]] = {}
        for branch in branches:
            for spot in branch.spots:
                self.wanted.setdefault((spot.module, spot.ordinal), []).append((spot, branch))

    @contextmanager
    def passes(self, model: nn.Module) -> Iterator[None]:
        """Begin anew with each pass of the model, and see at its end that every branch was met."""

        def begin(*_: Any) -> None:
            self.count.clear()
            for branch in self.branches:
                branch.met = False
                branch.seen.clear()

        def end(*_: Any) -> None:
            for branch in self.branches:
                if not branch.met:
                    raise SecateursError(
                        f"{branch.site.name}: the model takes another way on the calibration batches than on the example, so that its "
                        f"branch was not met: give an example like them, or skip=[{branch.site.name!r}]"
                    )

        hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation; of additions of two tensors, show what is wanted."""
        both = func.overloadpacket in _ADDITIONS and len(args) > 1 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor)
        if not both or not self.stack:
            return func(*args, **kwargs)
        key = (self.stack[-1], self.count[self.stack[-1]])
        self.count[self.stack[-1]] += 1
        wanted = self.wanted.get(key, ())
        operands = [args[0].clone() if wanted and func.overloadpacket is _ADDITIONS[1] else args[0], args[1]]
        for spot, branch in wanted:
            if spot.operand is not None:
                branch.note(spot, operands[spot.operand])
        result = func(*args, **kwargs)
        for spot, branch in wanted:
            if spot.operand is None:
                branch.note(spot, result)
        return result
