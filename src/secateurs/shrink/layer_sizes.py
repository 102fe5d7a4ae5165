"""Attributes of torch's own layers that follow from the sizes of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from secateurs.forward import modules_in

# ---------------------------------------------------------------- attributes


def _weight_sizes(out: str, inside: str) -> Callable[[Any], dict[str, int]]:
    return lambda module: {out: module.weight.shape[0], inside: module.weight.shape[1]}


def _length(attribute: str) -> Callable[[Any], dict[str, int]]:
    def of(module: Any) -> dict[str, int]:
        known = next((t for t in (module.weight, getattr(module, "running_mean", None)) if t is not None), None)
        return {} if known is None else {attribute: known.shape[0]}

    return of


def _convolution(module: Any) -> dict[str, int]:
    first, second = module.weight.shape[:2]
    if module.transposed:
        return {"in_channels": first, "out_channels": second * module.groups}
    return {"in_channels": second * module.groups, "out_channels": first}


def _recurrent(module: Any) -> dict[str, int]:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    sizes = {"input_size": module.weight_ih_l0.shape[1], "hidden_size": module.weight_ih_l0.shape[0] // gates}
    return {**sizes, "proj_size": module.weight_hr_l0.shape[0]} if module.proj_size else sizes


def _cell(module: Any) -> dict[str, int]:
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def _bilinear(module: Any) -> dict[str, int]:
    return dict(zip(("out_features", "in1_features", "in2_features"), module.weight.shape, strict=True))


def _attention(module: Any) -> dict[str, int]:
    return {"embed_dim": module.out_proj.weight.shape[0], "head_dim": module.out_proj.weight.shape[1] // module.num_heads}


SIZES: dict[type[nn.Module], Callable[[Any], dict[str, int]]] = {
    nn.Linear: _weight_sizes("out_features", "in_features"),
    nn.Bilinear: _bilinear,
    nn.modules.conv._ConvNd: _convolution,
    nn.modules.batchnorm._NormBase: _length("num_features"),
    nn.GroupNorm: _length("num_channels"),
    nn.PReLU: _length("num_parameters"),
    nn.Embedding: _weight_sizes("num_embeddings", "embedding_dim"),
    nn.EmbeddingBag: _weight_sizes("num_embeddings", "embedding_dim"),
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
    nn.MultiheadAttention: _attention,
}
"""Layer class → the attributes that its weights' shapes imply. What a layer passes to torch as a size is found without this table."""


def implied(model: nn.Module, computed: Iterable[tuple[str, str, Any]] = ()) -> dict[str, dict[str, list[Any]]]:
    """Attributes of torch's own layers that are not what the weights' shapes imply: module → attribute → [old, new].

    Those that the model's code computes with (a scale of attention, say) stay as they are.
    """
    fixed = {(path, key) for path, key, _ in computed}
    found: dict[str, dict[str, list[Any]]] = {}
    for name, module in modules_in(model).items():
        rule = next((SIZES[base] for base in type(module).__mro__ if base in SIZES), None)
        for key, new in (rule(module) if rule else {}).items():
            if (old := getattr(module, key)) != new and (name, key) not in fixed:
                found.setdefault(name, {})[key] = [old, new]
    return found
