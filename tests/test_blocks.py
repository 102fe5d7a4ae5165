"""The stack of blocks, found by structure: for models of transformers, for plain ones, and where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from language_models import FAMILIES, family

from secateurs import KindError, SecateursError, blocks_of


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_of_transformers(name: str) -> None:
    model, example, holders = family(name)
    names = {name for name, _ in model.named_modules()}
    found = blocks_of(model, example)
    expected = [[f"{holder}.{place}" for place in range(3)] for holder in holders if holder in names]
    assert [list(stack) for stack in found.stacks] == expected
    assert list(found) == [name for stack in expected for name in stack] and len(found) == 3 * len(expected)
    by_hand = [holder for holder in holders if holder in names]
    assert blocks_of(model, example, by_hand[0] if len(by_hand) == 1 else by_hand) == found


class _Residual(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class _Other(_Residual):
    pass


class _Between(nn.Module):
    """Something happens to the stream between two blocks."""

    def __init__(self, between: Callable[[Tensor], Tensor], times: int = 1) -> None:
        super().__init__()
        self.layers, self.between, self.times = nn.ModuleList([_Residual() for _ in range(4)]), between, times

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            for _ in range(self.times):
                x = layer(x if place != 2 else self.between(x))
        return x


def _mask_(x: Tensor) -> Tensor:
    return x.mul_(0.5)


@pytest.mark.parametrize("between", [_mask_, lambda x: x * 2], ids=["in place", "a new tensor"])
def test_a_stream_that_is_changed_on_the_way_ends_the_stack(between: Callable[[Tensor], Tensor]) -> None:
    model = _Between(between)
    assert blocks_of(model, torch.ones(1, 4)).stacks == (("layers.0", "layers.1"), ("layers.2", "layers.3"))
    with pytest.raises(SecateursError, match=r"layers\.2 is not given the tensor that layers\.1 gives, .*blocks=\"model\.layers\""):
        blocks_of(model, torch.ones(1, 4), "layers")


def test_plain_stacks() -> None:
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(3, 8), layers, nn.Linear(8, 2))
    assert blocks_of(model, torch.zeros(2, 5, 3)).stacks == (("1.layers.0", "1.layers.1", "1.layers.2"),)
    stack = nn.Sequential(nn.Linear(3, 4), _Residual(), _Residual(), _Other(), nn.Linear(4, 4), nn.Linear(4, 4))
    assert blocks_of(stack, torch.zeros(1, 3)).stacks == (("1", "2"),)  # modules of one kind, with others inside
    listed = nn.ModuleList([_Residual(), _Other(), _Residual()])
    stack = nn.Sequential(nn.Linear(3, 4), _Listed(listed))
    assert list(blocks_of(stack, torch.zeros(1, 3))) == ["1.layers.0", "1.layers.1", "1.layers.2"]


class _Listed(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_of_stacks_in_each_other_the_outer_one_counts() -> None:
    model = nn.Sequential(*(nn.Sequential(_Residual(), _Residual()) for _ in range(3)))
    assert list(blocks_of(model, torch.zeros(1, 4))) == ["0", "1", "2"]
    assert list(blocks_of(model, torch.zeros(1, 4), ["0", "2"])) == ["0.0", "0.1", "2.0", "2.1"]


def test_in_which_block_a_name_lies() -> None:
    blocks = blocks_of(_Between(lambda x: x), torch.zeros(1, 4))
    assert blocks.of("layers.1.layer.weight") == blocks.of("layers.1:heads") == blocks.of("layers.1") == "layers.1"
    assert blocks.of("layers.10.layer") is None and blocks.of("head") is None and blocks.of("layers") is None


def test_errors_say_what_to_do() -> None:
    example = torch.zeros(1, 4)
    with pytest.raises(SecateursError, match=r"Linear has no stack of blocks: .*blocks=\"model\.layers\""):
        blocks_of(nn.Linear(4, 4), example)
    with pytest.raises(SecateursError, match=r"layers\.0 is called 2 times in one pass, but each block must be called once"):
        blocks_of(_Between(lambda x: x, times=2), example, "layers")
    with pytest.raises(SecateursError, match="has no stack of blocks"):
        blocks_of(_Between(lambda x: x, times=2), example)
    with pytest.raises(SecateursError, match=r"blocks='layer': the model has no module of this name; did you mean layers\?"):
        blocks_of(_Between(lambda x: x), example, "layer")
    with pytest.raises(SecateursError, match=r"blocks='layers\.0\.layer': this module holds no others"):
        blocks_of(_Between(lambda x: x), example, "layers.0.layer")
    with pytest.raises(KindError, match="blocks is 3, but must be the name of a module"):
        blocks_of(_Between(lambda x: x), example, 3)  # type: ignore[arg-type]
    idle = _Between(lambda x: x)
    idle.spare = nn.Sequential(_Residual(), _Residual())
    with pytest.raises(SecateursError, match=r"spare\.0 is not called in one pass"):
        blocks_of(idle, example, "spare")
