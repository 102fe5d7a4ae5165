"""What a model costs as a file: the bytes that `save` writes, header included, of the model as it is and as a plan leaves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from secateurs.costs import checked, tensor_bytes
from secateurs.files import container
from secateurs.files.layouts import BITS, entry_of_staying
from secateurs.files.model_file import document_of, stored_once
from secateurs.forward import modules_in
from secateurs.shrink.remembered import steps_of
from secateurs.types import Cost, Plan, Product

_NAMES = 256
"""Room for what no plan knows: the pattern's name, the seed, a few metrics."""

_A_MODULE = 256
"""Room for the attributes of a module that gets smaller, and for the sizes in its code."""


def _prepare(model: nn.Module, example: Any) -> Callable[[Plan | None], float]:
    tensors, tied = stored_once(model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    content = tensor_bytes.prepare(model, example)
    steps = [step.to_document() for step in steps_of(model)]

    def count(plan: Plan | None) -> float:
        if plan is None:
            return content(None) + container.header_bytes(tensors, document_of(model, tied=tied, steps=steps))
        checked(plan, sizes)
        if plan.extents:
            record = [*steps, _record(model, plan, tensors)]
            header = container.header_bytes(tensors, document_of(model, plan=plan, tied=tied, steps=record))
        else:
            masked = {tied.get(name, name) for share in plan.shares.values() for name in share.elements}
            stored = tensors | {name + BITS: tensors[name] for name in masked}
            layouts = {name: entry_of_staying(tensors[name].shape) for name in masked}
            header = container.header_bytes(stored, document_of(model, plan=plan, layouts=layouts, tied=tied, steps=steps))
        return content(plan) + header + _NAMES

    return count


def _record(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A record of shrinking as long as the one of this plan can be: which units go, and what follows from it, is not known yet."""
    kept: dict[Any, list[int]] = {}
    shapes, cuts = {}, {}
    gone: list[str] = []
    for name, (product, *_) in plan.extents.items():
        left = plan.size(name)
        if name not in tensors or left == plan.size(name, whole=True):
            continue
        shares = [plan.shares[site] for site in {site for dim in product for _, each in dim for site in each}]
        if not left and all(share.units == 1 for share in shares):  # goes with a block, or with an expert of a list
            gone.append(name)
            continue
        shapes[name] = list(tensors[name].shape)
        cuts[name] = {str(dim): len(kept) for dim in range(len(shapes[name]))}
        if len(product) < len(shapes[name]):  # its entries are experts
            kept.setdefault(product, _longest(sum(share.kept for share in shares), sum(share.units for share in shares)))
            continue
        for size, each in zip(shapes[name], product, strict=True):
            kept.setdefault(each, _longest(_left(plan, each), size))
    modules = {name.rpartition(".")[0]: "-" * _A_MODULE for name in shapes}
    return {
        "shapes": shapes,
        "cuts": cuts,
        "attributes": modules,
        "rewrites": {},
        "identities": [],
        "zeros": [],
        "kept": [*kept.values()],
        **_of_lists(model, gone),
    }


def _of_lists(model: nn.Module, gone: Sequence[str]) -> dict[str, Any]:
    """What a record says at most where these parameters go with entries of lists: of the lists, and of the configurations around."""
    modules: dict[str, Any] = modules_in(model)
    lists = {name: each for name, each in modules.items() if isinstance(each, nn.ModuleList)}
    lengths = {name: len(each) for name, each in lists.items() if any(one.startswith(f"{name}.") for one in gone)}
    configs = {
        path: module.config.to_dict() for path, module in modules.items() if hasattr(getattr(module, "config", 0), "to_dict")
    }
    counts = {*lengths.values()}
    said = {
        path: {key: [value, value] for key, value in config.items() if _length(value) in counts}
        for path, config in configs.items()
        if any(name.startswith(path) for name in lengths)
    }
    return {"entries": {name: list(range(length)) for name, length in lengths.items()}, "configs": said}


def _length(value: Any) -> Any:
    """What a number or a list in a configuration counts, or nothing."""
    return len(value) if isinstance(value, list) else value if type(value) is int else None


def _left(plan: Plan, dim: tuple[tuple[int, tuple[str, ...]], ...]) -> int:
    """How long the plan leaves a dimension."""
    product: tuple[Product, ...] = ((dim,),)
    return Plan(plan.shares, extents={"": product}).size("")


def _longest(count: int, size: int) -> list[int]:
    """The list of so many indices that takes the most room as text, or nothing where all stay."""
    return list(range(size - count, size)) if count < size else []


bytes_ = Cost("bytes", "bytes", _prepare)
"""Bytes of the file that `save` writes, its header included: of the model as it is; of a plan, at most those of the sparse layout
(``save(model, path, masks, sparse=True)``), or of the smaller model where whole channels go. A budget in it is met by the file on
disk. Bits that a plan gives are counted, without codebooks; `save` alone does not make numbers smaller."""
