"""Tensors in nested containers: what is found, and what stays what it was when they are changed."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch

from secateurs.nested import Value, among, arguments, changed, holds, leaves, parts, tensors_in

ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)
Pair = namedtuple("Pair", "first second")


@dataclass(frozen=True)
class Answer:
    logits: Any
    hidden: Any = None
    shown: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        assert self.logits is not None, "a constructor that nobody but the model may call"


class Output(OrderedDict):
    """Like those of transformers: entries, and attributes beside them."""


class Cache:
    """An object that holds tensors and itself."""

    __slots__ = ("again", "keys")

    def __init__(self, keys: Any) -> None:
        self.keys, self.again = keys, self


NESTS = {
    "tuple": (ONE, [TWO], 3),
    "named tuple": Pair(ONE, (TWO, "text")),
    "dict": {"a": ONE, 1: {"b": TWO}},
    "ordered": Output(a=ONE, b=[TWO]),
    "mapping": MappingProxyType({"a": ONE, "b": TWO}),
    "user's dict": UserDict({"a": ONE, "b": [TWO]}),
    "dataclass": Answer(ONE, hidden=(TWO, None)),
}


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_containers_keep_their_classes_and_their_order(nest):
    found = changed(nest, lambda tensor: tensor + 10)
    assert [float(each) for each in tensors_in(nest)] == [1, 2] and [float(each) for each in tensors_in(found)] == [11, 12]
    mapping = isinstance(nest, (MappingProxyType, UserDict))
    assert type(found) is (dict if mapping else type(nest)) and found is not nest
    assert [key for key, _ in parts(found)] == [key for key, _ in parts(nest)]
    assert changed(found, lambda tensor: tensor - 10, objects=True) is not found, "the deep walk sees them too"


@pytest.mark.parametrize("nest", NESTS.values(), ids=NESTS)
def test_the_deep_walk_finds_the_same_tensors_in_the_same_order_as_it_changes(nest):
    seen: list[torch.Tensor] = []
    found = changed(nest, lambda tensor: seen.append(tensor) or tensor + 10, objects=True)
    tensors = [leaf for _, leaf in leaves(nest) if isinstance(leaf, torch.Tensor)]
    assert len(tensors) == 2 and all(one is other for one, other in zip(seen, tensors, strict=True))
    assert [float(leaf) for _, leaf in leaves(found) if isinstance(leaf, torch.Tensor)] == [11, 12]


def test_objects_are_looked_into_only_by_the_deep_walk():
    cache = Cache([ONE])
    assert not list(tensors_in(cache)) and not holds(cache, objects=False) and changed([cache], torch.neg)[0] is cache
    assert [(path, float(leaf)) for path, leaf in leaves((cache,))] == [("[0].keys[0]", 1.0)]
    found = changed(cache, torch.neg, objects=True)
    assert found is not cache and found.again is found and float(found.keys[0]) == -1 and float(cache.keys[0]) == 1


def test_what_holds_no_tensor_is_not_copied():
    nest = {"sizes": torch.Size([2, 3]), "names": ["a"], "answer": Answer(3)}
    assert changed(nest, torch.neg) is nest and changed(nest, torch.neg, objects=True) is nest


def test_paths_are_written_as_code_would_write_them():
    nest = {"ids": Pair(1, [Answer(2)])}
    assert [path for path, _ in leaves(nest)][:2] == ["['ids'].first", "['ids'].second[0].logits"]


def test_arguments_of_operations():
    value = Value((2, 3))
    nest = ([value, 1], {"dim": (value,)})
    assert list(among(nest, Value)) == [value, value]
    assert arguments(nest, Value, lambda each: each.shape) == (((2, 3), 1), {"dim": ((2, 3),)})
    assert holds(nest) and Value((2, 3)) != value and repr(value) == "Value(2, 3)"
