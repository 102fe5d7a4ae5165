"""Where a model's prunable weights are, and the canonical view ``(groups, outputs, inputs, *kernel)`` of each.

Groups are the parts that never mix: the groups of a convolution, the gates of an LSTM, the query, key and value projections of an
attention, the experts of a mixture. No unit straddles two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import prune
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from secateurs.forward import modules_in, run_example
from secateurs.products import Products
from secateurs.ranks import is_sharded
from secateurs.types import PatternError, Skipped


@dataclass(frozen=True)
class Layout:
    """How a parameter lies in memory: groups along its first dimension; ``transposed`` = inputs before outputs.

    ``stacked`` = the first dimension counts the groups and nothing else, as that of all experts' matrices in one parameter.
    """

    groups: int = 1
    transposed: bool = False
    stacked: bool = False

    def __call__(self, tensor: Tensor) -> Tensor:
        """The canonical view: what a `Member` asks for."""
        return self.canonical(tensor)

    def canonical(self, tensor: Tensor) -> Tensor:
        """The view ``(groups, outputs, inputs, *kernel)``.

        >>> import torch
        >>> Layout(groups=2, transposed=True).canonical(torch.zeros(6, 5, 3, 3)).shape
        torch.Size([2, 5, 3, 3, 3])
        """
        grouped = tensor if self.stacked else tensor.unsqueeze(0) if self.groups == 1 else self._unflattened(tensor)
        return grouped.transpose(1, 2) if self.transposed else grouped

    def _unflattened(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (self.groups, tensor.shape[0] // self.groups))

    def restore(self, view: Tensor) -> Tensor:
        """The way back from the canonical view to the parameter's own shape.

        >>> import torch
        >>> layout = Layout(groups=2, transposed=True)
        >>> layout.restore(layout.canonical(torch.zeros(6, 5, 3, 3))).shape
        torch.Size([6, 5, 3, 3])
        """
        grouped = view.transpose(1, 2) if self.transposed else view
        return grouped if self.stacked else grouped.squeeze(0) if self.groups == 1 else grouped.flatten(0, 1)


@dataclass(frozen=True)
class Weight:
    """A prunable weight: the site's name, where it lives, and how it lies."""

    name: str
    parameter: str
    module: nn.Module
    attribute: str
    layout: Layout

    @property
    def value(self) -> nn.Parameter:
        return getattr(self.module, self.attribute)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the canonical view."""
        return tuple(self.layout.canonical(torch.empty(self.value.shape, device="meta")).shape)


LayoutOf = Callable[[nn.Module, str], Layout | None]


def _plain(module: nn.Module, attribute: str) -> Layout | None:
    return Layout() if attribute == "weight" else None


def _convolution(module: nn.Module, attribute: str) -> Layout | None:
    return Layout(int(module.groups)) if attribute == "weight" else None  # type: ignore[arg-type]


def _transposed_convolution(module: nn.Module, attribute: str) -> Layout | None:
    return Layout(int(module.groups), transposed=True) if attribute == "weight" else None  # type: ignore[arg-type]


def _recurrent(module: nn.Module, attribute: str) -> Layout | None:
    gates = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}
    kinds = [gates[base.__name__] for base in type(module).__mro__ if base.__name__ in gates]
    if attribute.startswith("weight_hr"):
        return Layout()
    return Layout(kinds[0] if kinds else 1) if attribute.startswith("weight_") else None


def _attention(module: nn.Module, attribute: str) -> Layout | None:
    if attribute == "in_proj_weight":
        return Layout(groups=3)
    return Layout() if attribute in ("q_proj_weight", "k_proj_weight", "v_proj_weight") else None


LAYOUTS: dict[type[nn.Module], LayoutOf] = {
    nn.Linear: _plain,
    nn.Embedding: _plain,
    nn.EmbeddingBag: _plain,
    _ConvNd: _convolution,
    _ConvTransposeNd: _transposed_convolution,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _recurrent,
    nn.MultiheadAttention: _attention,
}
"""Layer class → layout of each of its parameters; a subclass is its nearest base. Add a line for a layer of your own."""

NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def layout_of(module: nn.Module, attribute: str) -> Layout | None:
    """The layout of one parameter of a layer, or ``None`` where it is not a prunable weight.

    >>> layout_of(nn.ConvTranspose2d(6, 4, 3, groups=2), "weight")
    Layout(groups=2, transposed=True, stacked=False)
    """
    for base in type(module).__mro__:
        if base in LAYOUTS:
            return LAYOUTS[base](module, attribute)
    # Hugging Face's Conv1D is a Linear with its weight transposed; transformers need not be installed.
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf") and attribute == "weight":
        return Layout(transposed=True)
    # Its mixtures of experts say themselves how the matrices of all experts lie in one parameter.
    if hasattr(module, "has_gate") and hasattr(module, "is_transposed") and getattr(module, attribute).ndim == 3:
        return Layout(stacked=True, transposed=bool(module.is_transposed))
    return None


def find_weights(model: nn.Module, example: Any = None) -> tuple[list[Weight], list[Skipped]]:
    """Every prunable weight of a model, tied ones once, and what is left alone.

    Where there is an example, it shows how stacks of matrices are multiplied that no layout is known of, as those of experts.
    Raises `PatternError` for lazy modules that have not seen an input yet.

    >>> weights, skipped = find_weights(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    >>> [w.name for w in weights], skipped
    (['0'], [Skipped(name='1', reason='a normalisation, never pruned')])
    """
    weights: list[Weight] = []
    skipped: list[Skipped] = []
    owner: dict[int, str] = {}
    at_work = _seen_at_work(model, example) if example is not None else {}
    for name, module, attribute, parameter in _parameters(model):
        full_name = f"{name}.{attribute}" if name else attribute
        layout = None if isinstance(parameter, UninitializedParameter) else layout_of(module, attribute) or at_work.get(full_name)
        remedy = "an example may show how it is multiplied, or " if example is None and parameter.ndim == 3 else ""
        reason = _reason_to_skip(full_name, module, attribute, parameter, layout, remedy)
        if id(parameter) in owner:
            skipped.append(Skipped(full_name, f"tied to {owner[id(parameter)]}, pruned there"))
        elif layout is not None and reason is None:
            owner[id(parameter)] = full_name
            site = name if attribute == "weight" and name else full_name
            weights.append(Weight(site, full_name, module, attribute, layout))
        elif reason is not None:
            skipped.append(Skipped(name if isinstance(module, NORMALISATIONS) else full_name, reason))
    return weights, list(dict.fromkeys(skipped + quantised(model)))


def quantised(model: nn.Module) -> list[Skipped]:
    """Layers whose weights are no parameters any more, since they were packed into whole numbers.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> model[0].register_buffer("qweight", torch.zeros(4, 3, dtype=torch.int8))
    >>> [(item.name, item.reason) for item in quantised(model)]
    [('0', 'its weight is quantised; prune first, then quantise')]
    """
    found: list[Skipped] = []
    for name, module in modules_in(model).items():
        inside = bool(found) and name.startswith(f"{found[-1].name}.")
        of_torch = ".quantized." in f"{type(module).__module__}."
        packed = of_torch and (callable(getattr(module, "weight", None)) or hasattr(module, "get_weight"))
        others = any(
            key.endswith("weight") and buffer is not None and buffer.ndim > 1 and not buffer.is_floating_point()
            for key, buffer in module._buffers.items()
        )
        if (packed or others) and not inside:
            found.append(Skipped(name or type(module).__name__, "its weight is quantised; prune first, then quantise"))
    return found


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            yield name, module, attribute, parameter


def _seen_at_work(model: nn.Module, example: Any) -> dict[str, Layout]:
    """The layout of each stack of matrices that no layout is known of and that the example multiplies one by one, always alike."""
    stacks = {
        f"{name}.{attribute}" if name else attribute: parameter
        for name, module, attribute, parameter in _parameters(model)
        if not isinstance(parameter, UninitializedParameter)
        and parameter.ndim == 3
        and min(parameter.shape) > 1
        and layout_of(module, attribute) is None
    }
    found: dict[str, set[bool]] = {}
    if stacks:
        with Products(stacks, lambda product: found.setdefault(product.parameter, set()).add(product.inputs_first)):
            run_example(model, example)
    return {name: Layout(stacked=True, transposed=ways.pop()) for name, ways in found.items() if len(ways) == 1}


def _reason_to_skip(
    full_name: str, module: nn.Module, attribute: str, parameter: nn.Parameter, layout: Layout | None, remedy: str
) -> str | None:
    """Why a parameter is not a prunable weight; ``None`` where it is one, and for the biases, which nobody expects to see."""
    if isinstance(parameter, UninitializedParameter):
        raise PatternError(f"{full_name} has no shape yet: run the lazy model on one input before pruning it")
    if isinstance(module, NORMALISATIONS):
        return "a normalisation, never pruned"
    if layout is not None:
        value: Any = parameter
        if not is_sharded(value) and is_traceable_wrapper_subclass(value):
            return f"its numbers are packed in a {type(value).__name__}; prune first, then pack"
        return (
            None if parameter.is_floating_point() else f"its numbers are {parameter.dtype}; only floating-point weights are pruned"
        )
    if isinstance(module, ParametrizationList):
        kinds = ", ".join(type(each).__name__.removeprefix("_") for each in module)
        return f"behind a parametrization ({kinds}); remove it first: torch.nn.utils.parametrize.remove_parametrizations"
    hooked = _hooked(module, attribute)
    if hooked is not None or parameter.ndim < 2 or attribute.endswith("bias"):
        return hooked
    return f"no canonical view is known for {type(module).__name__}.{attribute}; {remedy}add one to secateurs.patterns.LAYOUTS"


def _hooked(module: nn.Module, attribute: str) -> str | None:
    """How torch undoes what a hook computes from this parameter before each pass, in the older way; ``None`` where there is no such."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and attribute == f"{hook._tensor_name}_orig":
            return f'behind a mask of torch; make that permanent first: torch.nn.utils.prune.remove(layer, "{hook._tensor_name}")'
        if isinstance(hook, SpectralNorm) and attribute == f"{hook.name}_orig":
            return f'behind a spectral norm; remove that first: torch.nn.utils.remove_spectral_norm(layer, "{hook.name}")'
        if isinstance(hook, WeightNorm) and attribute in (f"{hook.name}_g", f"{hook.name}_v"):
            return f'behind a weight norm; remove that first: torch.nn.utils.remove_weight_norm(layer, "{hook.name}")'
    return None
