"""Neurons that pruning has cut off: no connection comes in, or none goes out (the last step of 1506.02626).

Who reads whom is found by marking, not by rules for each operation. Some of a layer's outputs are replaced by NaN and the model
runs: NaN goes through activations, pooling, normalisation, flattening and residual sums, and arrives at just those inputs of the
next layers that depend on the marked outputs. Marking by the binary digits of the output's index tells apart n outputs in 2·log₂ n
passes. Where one input depends on several outputs (softmax, squeeze-and-excitation), they all count as alive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from secateurs.forward import run_example
from secateurs.masks.masks import Masks
from secateurs.nested import tensors_in
from secateurs.patterns import Weight, find_weights
from secateurs.progress import track
from secateurs.ranks import whole
from secateurs.types import SecateursError

_NONE, _MANY = -1, -2
_OUTPUT = ""


@dataclass(frozen=True)
class Dead:
    """Outputs, by layer, that nothing feeds (``no_input``) or that nothing reads (``no_output``), or both at once."""

    no_input: dict[str, Tensor] = field(default_factory=dict)
    no_output: dict[str, Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Outputs that are dead for one reason or the other."""
        names = self.no_input.keys() | self.no_output.keys()
        empty = torch.empty(0, dtype=torch.long)
        return sum(
            int(torch.cat([self.no_input.get(name, empty), self.no_output.get(name, empty)]).unique().numel()) for name in names
        )


Readers = dict[str, dict[str, Tensor]]
"""Producer → reader → for each of the reader's inputs the producer's output that feeds it, or none (−1), or many (−2)."""


def find_dead(model: nn.Module, masks: Masks, example: Any) -> Dead:
    """The dead outputs of every Linear and convolution, also those that are dead only because others are.

    Raises `TaskError` where the model rejects the example.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> model[0].weight.data, model[2].weight.data = torch.tensor([[0.0, 0.0], [1, 0], [1, 1]]), torch.tensor([[1.0, 0, 1]])
    >>> masks = Masks.of_zeros(model, ["0.weight", "2.weight"])
    >>> dead = find_dead(model, masks, torch.zeros(1, 2))
    >>> dead.no_input, dead.no_output
    ({'0': tensor([0])}, {'0': tensor([1])})
    """
    layers = _layers(model)
    return _cascade(layers, _readers(model, layers, example), _alive(layers, masks.named_as_in(model)))[0]


def zero_dead_(model: nn.Module, masks: Masks, example: Any) -> Dead:
    """Zero every dead output completely: its weights, its bias, and what would still read it; the masks grow accordingly, in place.

    Removing an output that nothing reads changes nothing. One that nothing feeds was a constant, its bias through the activation;
    what it added to the next layer goes, and the training that follows makes up for it.

    Raises `SecateursError`, with the model as it was, where an output turns out to be read after all, or where the masks are those of
    another copy of the model.
    """
    masks.require_of(model)
    layers = _layers(model)
    readers = _readers(model, layers, example)
    before = run_example(model, example)
    earlier = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    unread, alive = _cascade(layers, readers, _alive(layers, masks.named_as_in(model)), fed=False)
    grown = _grown(layers, masks, model, alive, unread.no_output).apply_()
    if not _same(before, run_example(model, example)):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(earlier[name])
        raise SecateursError(
            "zeroing outputs that seem to be read by no layer changed the model's answer: it reads them in a way that marking "
            "does not see (torch.where on a comparison, say); leave dead neurons in place with dead=False"
        )
    dead, alive = _cascade(layers, readers, alive, found=unread)
    masks.replace_(_grown(layers, grown, model, alive, dead.no_input))
    return dead


def _layers(model: nn.Module) -> dict[str, Weight]:
    """Layers whose inputs and outputs can be told apart from outside: Linear, convolutions, and Conv1D of Hugging Face."""
    weights, _ = find_weights(model)
    return {
        weight.name: weight
        for weight in weights
        if weight.attribute == "weight" and not isinstance(weight.module, (nn.Embedding, nn.EmbeddingBag))
    }


def _feature_dim(module: nn.Module, tensor: Tensor) -> int:
    """Which dimension of a layer's input or output counts features: the channels of a convolution, else the last."""
    if not isinstance(module, _ConvNd):
        return tensor.ndim - 1
    return tensor.ndim - len(module.kernel_size) - 1


def _alive(layers: dict[str, Weight], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which weights are there, as ``(outputs, inputs)``: any of a kernel's counts; groups along the diagonal."""
    alive = {}
    for name, layer in layers.items():
        mask = masks.get(layer.parameter)
        here = torch.ones(layer.value.shape, dtype=torch.bool) if mask is None else whole(mask)
        view = layer.layout.canonical(here).cpu()
        connected = view.flatten(3).any(3) if view.ndim > 3 else view
        alive[name] = torch.block_diag(*connected.unbind(0))
    return alive


def _cascade(
    layers: dict[str, Weight], readers: Readers, alive: dict[str, Tensor], fed: bool = True, found: Dead | None = None
) -> tuple[Dead, dict[str, Tensor]]:
    """Dead outputs, and what remains of the connections once all that hangs on them is gone too.

    ``fed=False`` looks only at outputs that nothing reads; ``found`` is what an earlier pass found, to which the rest is added.
    """
    dead = found or Dead()
    while True:
        changed = False
        for name in layers:
            no_input = ~alive[name].any(1) if fed else torch.zeros(alive[name].shape[0], dtype=torch.bool)
            no_output = _unread(name, readers, alive)
            _note(dead, name, no_input, no_output)
            changed |= bool(alive[name][no_output].any())
            alive[name][no_output] = False
            for reader, sources in readers[name].items():
                if reader != _OUTPUT:
                    gone = _fed_only_by(name, reader, sources, no_input, readers)
                    changed |= bool(alive[reader][:, gone].any())
                    alive[reader][:, gone] = False
        if not changed:
            return dead, alive


def _note(dead: Dead, name: str, no_input: Tensor, no_output: Tensor) -> None:
    """Add the outputs that have just died, each under the reason why; an output that is gone loses its other side later."""
    known = torch.zeros_like(no_input)
    for found in (dead.no_input, dead.no_output):
        known[found.get(name, [])] = True
    for found, gone in ((dead.no_input, no_input & ~known), (dead.no_output, no_output & ~known)):
        if gone.any():
            found[name] = torch.cat([found.get(name, gone.new_empty(0, dtype=torch.long)), gone.nonzero().flatten()])


def _unread(name: str, readers: Readers, alive: dict[str, Tensor]) -> Tensor:
    """Outputs of a layer that are seen to arrive somewhere, but nowhere at a weight that is there."""
    outputs = alive[name].shape[0]
    arrives, read = torch.zeros(outputs, dtype=torch.bool), torch.zeros(outputs, dtype=torch.bool)
    for reader, sources in readers[name].items():
        if (sources == _MANY).any():
            return torch.zeros(outputs, dtype=torch.bool)
        arrives[sources[sources >= 0]] = True
        live = torch.ones_like(sources, dtype=torch.bool) if reader == _OUTPUT else alive[reader].any(0)
        read[sources[(sources >= 0) & live]] = True
    return arrives & ~read


def _fed_only_by(name: str, reader: str, sources: Tensor, dead: Tensor, readers: Readers) -> Tensor:
    """Inputs of a reader that this layer's dead outputs feed, and no other layer and no model input besides."""
    fed = (sources >= 0) & dead[sources.clamp(min=0)]
    for other, theirs in readers.items():
        if other != name and reader in theirs:
            fed &= theirs[reader] == _NONE
    return fed


def _grown(layers: dict[str, Weight], masks: Masks, model: nn.Module, alive: dict[str, Tensor], dead: dict[str, Tensor]) -> Masks:
    """The masks without the connections that are gone and without the dead outputs' weights and biases."""
    grown = masks.named_as_in(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, layer in layers.items():
        rows = torch.zeros(alive[name].shape[0], dtype=torch.bool)
        rows[dead.get(name, [])] = True
        mask = grown.get(layer.parameter)
        mask = torch.ones(layer.value.shape, dtype=torch.bool, device=layer.value.device) if mask is None else whole(mask).clone()
        view = layer.layout.canonical(mask)
        groups, outputs, inputs = view.shape[:3]
        blocks = (alive[name] & ~rows[:, None]).view(groups, outputs, groups, inputs).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        view &= blocks.reshape(groups, outputs, inputs, *(1,) * (view.ndim - 3)).to(mask.device)
        if layer.parameter in grown or not bool(mask.all()):
            grown[layer.parameter] = mask
        bias = getattr(layer.module, "bias", None)
        if rows.any() and isinstance(bias, nn.Parameter) and id(bias) in names:
            there = grown.get(names[id(bias)])
            alone = ~rows.to(bias.device)
            grown[names[id(bias)]] = alone if there is None else whole(there) & alone
    return Masks(grown, model, masks.origin)


def _same(before: Any, after: Any) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max() if a.numel() else 0))
        for a, b in zip(tensors_in(before), tensors_in(after), strict=True)
        if a.is_floating_point()
    )


# ---------------------------------------------------------------- marking


def _readers(model: nn.Module, layers: dict[str, Weight], example: Any) -> Readers:
    readers: Readers = {}
    for name, layer in track(list(layers.items()), "tracing neurons"):
        outputs = layer.shape[0] * layer.shape[1]
        digits = max(1, (outputs - 1).bit_length())
        index = torch.arange(outputs)
        seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for digit in range(digits):
            is_one = (index >> digit & 1).bool()
            ones, zeros = (_arrivals(model, layers, name, marked, example) for marked in (is_one, ~is_one))
            for reader in ones.keys() | zeros.keys():
                _decode(seen, reader, ones.get(reader), zeros.get(reader), digit)
        readers[name] = {
            reader: torch.where(both, _MANY, torch.where(arrived, source, _NONE))
            for reader, (source, both, arrived) in seen.items()
        }
    readers[_OUTPUT] = {
        reader: torch.where(marked, _MANY, _NONE) for reader, marked in _arrivals(model, layers, _OUTPUT, None, example).items()
    }
    return readers


def _decode(
    seen: dict[str, tuple[Tensor, Tensor, Tensor]], reader: str, ones: Tensor | None, zeros: Tensor | None, digit: int
) -> None:
    """Add one binary digit of the index of the output that feeds each of a reader's inputs."""
    length = len(ones if ones is not None else zeros)  # type: ignore[arg-type]
    nothing = torch.zeros(length, dtype=torch.bool)
    ones, zeros = nothing if ones is None else ones, nothing if zeros is None else zeros
    source, both, arrived = seen.get(reader, (torch.zeros(length, dtype=torch.long), nothing, nothing))
    seen[reader] = (source + (ones.long() << digit), both | (ones & zeros), arrived | ones | zeros)


def _arrivals(
    model: nn.Module, layers: dict[str, Weight], marked_layer: str, marked: Tensor | None, example: Any
) -> dict[str, Tensor]:
    """At which inputs of which layers, and at which numbers of the answer, NaN arrives when some outputs of a layer are NaN."""
    arrived: dict[str, Tensor] = {}
    with _marking(layers, marked_layer, marked, arrived), _MarkedIntegers() if marked is None else nullcontext():  # type: ignore[no-untyped-call]
        answer = run_example(model, _poisoned(example) if marked is None else example)
    flat = [tensor.flatten() for tensor in tensors_in(answer) if tensor.is_floating_point()]
    if flat:
        arrived[_OUTPUT] = torch.cat([torch.isnan(tensor).cpu() for tensor in flat])
    return arrived


def _poisoned(example: Any) -> Any:
    """The example with NaN in place of every floating-point number: marks what the model's own inputs feed."""
    if isinstance(example, Tensor):
        return torch.full_like(example, torch.nan) if example.is_floating_point() else example
    if isinstance(example, dict):
        return {key: _poisoned(value) for key, value in example.items()}
    if isinstance(example, (tuple, list)):
        return type(example)(_poisoned(value) for value in example)
    return example


class _MarkedIntegers(TorchDispatchMode):
    """Marks the floating-point numbers that come from whole ones (looked up in an embedding, say), which cannot be NaN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or all(tensor.is_floating_point() for tensor in tensors_in(args)):
            return out
        return _poisoned(out)


@contextmanager
def _marking(layers: dict[str, Weight], marked_layer: str, marked: Tensor | None, arrived: dict[str, Tensor]) -> Iterator[None]:
    """Hooks that mark one layer's outputs, and note and stop the marks at every layer's inputs."""

    def stop(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            tensor = next(tensors_in((inputs, named)))
            here = torch.isnan(tensor).movedim(_feature_dim(module, tensor), 0).flatten(1).any(1).cpu()
            arrived[name] = arrived[name] | here if name in arrived else here
            return (tensor.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf),), {}

        return hook

    def mark(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert marked is not None
        dim = _feature_dim(module, output)
        shape = [1] * output.ndim
        shape[dim] = -1
        return output.masked_fill(marked.view(shape).to(output.device), torch.nan)

    hooks = [layer.module.register_forward_pre_hook(stop(name), with_kwargs=True) for name, layer in layers.items()]
    if marked is not None:
        hooks.append(layers[marked_layer].module.register_forward_hook(mark))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
