"""TorchScript of shrunk networks: it works, or the error names what does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")


class Flat(nn.Module):
    """Its code writes down a size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(x)).view(-1, 8 * 16))


def test_scripting_a_network_with_sizes_in_its_code_names_tracing_which_works() -> None:
    model, x = Flat().eval(), torch.randn(2, 3, 4, 4)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example=x))
    sc.shrink_(model, masks, example=x)
    with pytest.raises(sc.SecateursError, match=r"the code of Flat writes down sizes .*torch\.jit\.trace\(model, example\)"):
        torch.jit.script(model)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    assert not hasattr(model.forward, "__globals__")
