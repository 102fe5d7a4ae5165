"""A model that is ready to run for one shape of input, by the kernels or by a dense runtime, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from secateurs.nested import Value, changed, leaves
from secateurs.run.choosing.tune import Tuned
from secateurs.run.clock.backends import Lent, OnnxSession
from secateurs.run.clock.timing import Timing
from secateurs.run.network.fits import fits
from secateurs.run.network.interpret import bare, interpreter
from secateurs.run.network.nodes import Network, Node
from secateurs.run.network.plain import accepting, only_torch, resolved


@dataclass(frozen=True)
class Ready:
    """A model for one shape of input: how it runs, what each layer got, and what the race against dense runtimes came to.

    ``chosen`` is "kernels" or the name of a dense runtime. ``straight``: a shorter way to run it, which may give nothing. ``between``: how
    often which operation is left to torch where the kernels run.
    """

    network: Network
    run: Callable[[Any], Any]
    chosen: str
    straight: Callable[[Any], Tensor | None] | None = None
    tuned: Mapping[Node, Tuned] = field(default_factory=dict)
    race: Mapping[str, Timing] = field(default_factory=dict)
    between: Mapping[str, int] = field(default_factory=dict)


def answered(ready: Ready, inputs: Any, by_torch: Callable[[Any, str], Any], other: Callable[[Any], Ready]) -> Any:
    """The answer to inputs of any kind: ``by_torch`` runs what only torch can, and hears why; ``other`` finds what is ready for another
    shape."""
    why = only_torch(inputs)
    if why is not None:
        return by_torch(inputs, why)
    inputs = resolved(inputs)
    if not fits(ready.network, inputs):
        ready = other(inputs)
    return ready.run(inputs)


def torch_ready(network: Network) -> Ready:
    """The network as it was recorded, run by torch."""
    return Ready(network, interpreter(network), "torch", straight(network, bare(network)))


def dense_ready(name: str, run: Callable[[Any], Any], network: Network, example: Any) -> Ready:
    """The same model in a dense runtime."""
    short: Callable[[Any], Tensor | None] = partial(_alone, run)
    if isinstance(run, OnnxSession) and isinstance(example, Tensor) and isinstance(network.result, Value):
        short = run.bound(example)
    return Ready(network, _shaped(network, run), name, straight(network, short))


def straight(network: Network, run: Callable[[Any], Tensor | None]) -> Callable[[Any], Tensor | None] | None:
    """A way around all that is done for other inputs than the expected one: what it takes counts, where the model takes microseconds."""
    wanted, made = network.example, network.result
    if not isinstance(wanted, Value) or not isinstance(made, Value):
        return None
    accepts = accepting(wanted.shape, wanted.dtype)

    return lambda x: run(x) if accepts(x) else None


def nothing(inputs: Any) -> None:
    """Where there is no short way."""


def _alone(run: Callable[[Any], Any], inputs: Any) -> Tensor:
    """The one tensor that a dense runtime gives, bare from torch, in a tuple from the others."""
    found = run(inputs)
    return found if isinstance(found, Tensor) else _own(found)[0]


def _own(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Tensors that the next call leaves alone."""
    return tuple(each.clone() for each in found) if isinstance(found, Lent) else found


def _shaped(network: Network, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A dense runtime whose tensors are put where the model has them."""
    places = [value for _, value in leaves(network.result) if isinstance(value, Value)]

    def shaped(inputs: Any) -> Any:
        found = run(inputs)
        if not isinstance(found, tuple) or not all(isinstance(each, Tensor) for each in found):
            return found  # torch gives what the model gives
        return changed(network.result, dict(zip(places, _own(found), strict=True)).__getitem__, objects=True)

    return shaped
