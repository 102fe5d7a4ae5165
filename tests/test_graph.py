"""What each operation says of its dimensions: a model made round it, shrunk, computes what the masked one did, or it is pinned."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateurs as sc

HERE = "tests/test_graph.py"


def values(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def writing(tensor: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    write(tensor)
    return tensor


class Around(nn.Module):
    """A layer that makes 8 channels, something done with them, and a layer that reads what comes of it."""

    def __init__(self, first: nn.Module, op: Callable[..., Tensor], parts: dict[str, Any]) -> None:
        super().__init__()
        self.first, self.op, self.last = first, op, nn.Identity()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(self, self.first(x)))


def around(op: Callable[..., Tensor], parts: Callable[[], dict[str, Any]], images: bool) -> tuple[nn.Module, Tensor]:
    """The model, in float64, and an example for it: 2 sequences of 4 tokens, or 2 images of 6 x 6."""
    x = torch.randn(2, 3, 6, 6) if images else torch.randn(2, 4, 6)
    model = Around(nn.Conv2d(3, 8, 1) if images else nn.Linear(6, 8), op, parts()).eval()
    made = model(x).shape
    model.last = nn.Conv2d(made[1], 3, 1) if images and len(made) == 4 else nn.Linear(made[-1], 3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return model.double(), x.double()


def prune(model: nn.Module, example: Any, pattern: Any = None, sparsity: float = 0.5, **which: Any) -> sc.Masks:
    return sc.prune_(
        model,
        pattern or sc.Channel(),
        sc.TopK(sc.random(seed=1)),
        sc.uniform(sparsity=sparsity),
        sc.Task(example=example),
        **which,
    )


def check_equal(model: nn.Module, example: Tensor) -> sc.Shrunk:
    """Half of every site goes; the masked and the shrunk model give the same answers to something else than the example."""
    masks = prune(model, example)
    masked = copy.deepcopy(model)
    shrunk = sc.shrink_(model, masks)
    other = torch.randn_like(example)
    with torch.no_grad():
        expected, got = masked(other), model(other)
        assert not torch.equal(expected, masked(example)), "the model does not look at its input"
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    return shrunk


def check(expected: str, model: nn.Module, example: Tensor) -> None:
    """`check_equal`, and the sites that shrink are those expected, and no others."""
    shrunk = check_equal(model, example)
    assert shrunk.skipped == ()
    assert "; ".join(shrunk.sites) == expected
    assert all(after < before for before, after in shrunk.sites.values())


# ------------------------------------------------------------------------------------------------ exact

TOKENS: dict[str, tuple[str, Callable[..., Tensor], Callable[[], dict[str, Any]]]] = {
    "pointwise": ("first", lambda m, h: functional.gelu(h) * h.sigmoid().clamp(0.2, 0.7) ** 2, dict),
    "parameter": ("first", lambda m, h: h * m.a + m.b, lambda: {"a": values(8), "b": values(4, 1)}),
    "table": ("first", lambda m, h: h + m.a, lambda: {"a": values(4, 8)}),
    "where": ("first", lambda m, h: torch.where(h > 0, h, m.a), lambda: {"a": values(8)}),
    "masked_fill": ("first", lambda m, h: h.masked_fill(h < 0.1, 0.5), dict),
    "addcmul lerp": ("first", lambda m, h: torch.addcmul(h, h, m.a).lerp(h, 0.3), lambda: {"a": values(8)}),
    "inplace": ("first", lambda m, h: h.add_(m.a).relu_().mul_(2), lambda: {"a": values(8)}),
    "inplace view": ("first", lambda m, h: writing(h, lambda h: h[:, 1:].mul_(m.a)), lambda: {"a": values(8)}),
    "copy_": ("first", lambda m, h: h.new_zeros(h.shape).copy_(h), dict),
    "outer broadcast": ("first", lambda m, h: h[:, :, None] + m.a(h)[:, None], lambda: {"a": nn.Linear(8, 8)}),
    "residual": ("first; a", lambda m, h: h + m.b(m.a(h).relu()), lambda: {"a": nn.Linear(8, 6), "b": nn.Linear(6, 8)}),
    "prelu": ("first", lambda m, h: m.a(h.transpose(1, 2)).transpose(1, 2), lambda: {"a": nn.PReLU(8)}),
    "flatten": ("first", lambda m, h: h.flatten(1), dict),
    "flatten swapped": ("first", lambda m, h: h.transpose(1, 2).flatten(1), dict),
    "view heads": ("first:2", lambda m, h: h.view(2, 4, 2, 4).relu().reshape(2, 4, 8), dict),
    "unflatten": ("first:2", lambda m, h: h.unflatten(-1, (2, 4)).flatten(2), dict),
    "permute": ("first", lambda m, h: h.permute(2, 0, 1).contiguous().permute(1, 2, 0), dict),
    "mT": ("first", lambda m, h: h.mT.mT, dict),
    "unsqueeze": ("first", lambda m, h: h.unsqueeze(1).squeeze(1)[:, None, ...], dict),
    "expand": ("first", lambda m, h: h[:, None].expand(-1, 3, 4, 8), dict),
    "repeat": ("first", lambda m, h: h.repeat(1, 1, 2), dict),
    "repeat_interleave": ("first", lambda m, h: h.repeat_interleave(2, -1), dict),
    "tile": ("first", lambda m, h: h.tile(2), dict),
    "cat": ("first; a", lambda m, h: torch.cat([h, m.a(h), h.relu()], -1), lambda: {"a": nn.Linear(8, 4)}),
    "cat empty": ("first", lambda m, h: torch.cat([h, h[..., :0]], -1), dict),
    "cat rows": ("first", lambda m, h: torch.cat([h, m.a.expand(h.shape[0], 1, 8)], 1), lambda: {"a": values(1, 1, 8)}),
    "stack": ("first", lambda m, h: torch.stack([h, m.a(h)], 1), lambda: {"a": nn.Linear(8, 8)}),
    "stack last": ("first", lambda m, h: torch.stack([h, h.relu()], -1).flatten(2), dict),
    "split": ("first[0:4]", lambda m, h: (lambda a, b: a + b)(*h.split([4, 4], -1)), dict),
    "split uneven": ("first[0:3]; first[4:8]", lambda m, h: (lambda a, b, c: torch.cat([c, a], -1))(*h.split([3, 1, 4], -1)), dict),
    "chunk": ("first[0:4]", lambda m, h: (lambda a, b: a * b.sigmoid())(*h.chunk(2, -1)), dict),
    "tensor_split": ("first[0:2]; first[2:5]; first[5:8]", lambda m, h: h.tensor_split([2, 5], -1)[1], dict),
    "narrow": ("first[0:2]; first[2:6]; first[6:8]", lambda m, h: h.narrow(-1, 2, 4), dict),
    "slice": ("first[0:2]; first[2:6]; first[6:8]", lambda m, h: h[..., 2:6], dict),
    "slice neg": ("first[0:5]; first[5:8]", lambda m, h: h[..., -3:], dict),
    "stride": ("first:4", lambda m, h: h[..., ::2], dict),
    "select row": ("first", lambda m, h: h[:, 0], dict),
    "unbind rows": ("first", lambda m, h: h.unbind(1)[2], dict),
    "pad": ("first", lambda m, h: functional.pad(h, (1, 2), value=0.5), dict),
    "pad cut": ("first[0:2]; first[2:8]", lambda m, h: functional.pad(h, (-2, 1)), dict),
    "index rows": ("first", lambda m, h: h[:, torch.tensor([0, 2])], dict),
    "index_select": ("first", lambda m, h: h.index_select(1, torch.tensor([0, 3])), dict),
    "gather": (
        "first",
        lambda m, h: h.gather(1, m.i[None, :, None].expand(h.shape[0], -1, 8)),
        lambda: {"i": nn.Parameter(torch.tensor([1, 0]), requires_grad=False)},
    ),
    "take_along": ("first", lambda m, h: h.take_along_dim(h.argsort(1), 1), dict),
    "index_add": (
        "first",
        lambda m, h: m.a.expand(h.shape[0], 4, 8).index_add(1, torch.tensor([0, 0, 1, 3]), h),
        lambda: {"a": values(4, 8)},
    ),
    "scatter_add": ("first", lambda m, h: torch.zeros_like(h).scatter_add(1, torch.zeros(h.shape, dtype=torch.long), h), dict),
    "index_put": ("first", lambda m, h: h.index_put((torch.tensor([0]), torch.tensor([1])), m.a), lambda: {"a": values(8)}),
    "flip": ("first", lambda m, h: h.flip(1), dict),
    "roll": ("first", lambda m, h: h.roll(1, 1), dict),
    "cumsum": ("first", lambda m, h: h.cumsum(1), dict),
    "topk": ("first", lambda m, h: h.topk(2, dim=1).values, dict),
    "sum": ("first", lambda m, h: h * h.sum(-1, keepdim=True), dict),
    "sum rows": ("first", lambda m, h: h.sum(1), dict),
    "norm": ("first", lambda m, h: h * h.norm(dim=-1, keepdim=True), dict),
    "normalize": ("first", lambda m, h: functional.normalize(h, dim=-1), dict),
    "mean rows": ("first", lambda m, h: h.mean(1), dict),
    "softmax rows": ("first", lambda m, h: h.softmax(1), dict),
    "mm": ("first; a", lambda m, h: h.flatten(0, 1) @ m.a, lambda: {"a": values(8, 5)}),
    "addmm": ("first; a", lambda m, h: torch.addmm(m.b, h.flatten(0, 1), m.a), lambda: {"a": values(8, 5), "b": values(5)}),
    "bmm": ("first; a", lambda m, h: torch.bmm(h, m.a.expand(h.shape[0], -1, -1)), lambda: {"a": values(1, 8, 5)}),
    "baddbmm": (
        "first; a",
        lambda m, h: torch.baddbmm(m.b, h, m.a.expand(h.shape[0], 8, 5)),
        lambda: {"a": values(1, 8, 5), "b": values(1, 1, 5)},
    ),
    "bmm acts": ("first", lambda m, h: (h @ h.mT) @ h, dict),
    "addmv": ("a; first", lambda m, h: torch.addmv(m.b, m.a, h[0, 0]), lambda: {"a": values(5, 8), "b": values(5)}),
    "dot": ("first", lambda m, h: h * torch.dot(h[0, 0], m.a), lambda: {"a": values(8)}),
    "einsum": ("a; first", lambda m, h: torch.einsum("bnc,oc->bno", h, m.a), lambda: {"a": values(5, 8)}),
    "einsum heads": (
        "first:2",
        lambda m, h: torch.einsum("bnhd,hde->bnhe", h.view(2, 4, 2, 4), m.a).flatten(2),
        lambda: {"a": values(2, 4, 5)},
    ),
    "tensordot": ("first; a", lambda m, h: torch.tensordot(h, m.a, 1), lambda: {"a": values(8, 5)}),
    "cdist": ("first", lambda m, h: torch.cdist(h, m.a(h)), lambda: {"a": nn.Linear(8, 8)}),
    "bilinear": ("first; a", lambda m, h: m.a(h, h.relu()), lambda: {"a": nn.Bilinear(8, 8, 5)}),
    "glu": ("first[0:4]", lambda m, h: functional.glu(h), dict),
    "triu": ("first", lambda m, h: (h @ h.mT).triu() @ h, dict),
    "diagonal": ("first", lambda m, h: h * torch.diagonal(h @ m.a, dim1=1, dim2=2)[:, :, None], lambda: {"a": values(8, 4)}),
    "dropout": ("first", lambda m, h: functional.dropout(h, 0.5, m.training), dict),
    "zeros": ("first", lambda m, h: h + torch.zeros(2, 4, 8), dict),
    "arange rows": ("first", lambda m, h: h * torch.arange(4)[:, None], dict),
    "unfold": ("first", lambda m, h: h.unfold(1, 2, 1).flatten(2), dict),
    "rope": ("first[0:4]", lambda m, h: torch.cat([-h[..., 4:], h[..., :4]], -1) * torch.ones(8) + h, dict),
    "meshgrid": ("first", lambda m, h: h * torch.outer(m.a, m.b)[:, :], lambda: {"a": values(4), "b": values(8)}),
    "kron": ("first", lambda m, h: torch.kron(h, m.a), lambda: {"a": values(1, 1, 2)}),
    "linear params": ("a; first", lambda m, h: functional.linear(h, m.a * 2, m.b), lambda: {"a": values(5, 8), "b": values(5)}),
    "weight made": (
        "a; first; a:4",
        lambda m, h: functional.linear(h, torch.cat([m.a, m.b])),
        lambda: {"a": values(5, 8), "b": values(4, 8)},
    ),
    "weight_norm": ("first", lambda m, h: m.a(h), lambda: {"a": torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))}),
    "lstm": ("first; a.weight_ih_l0[0:5]", lambda m, h: m.a(h)[0], lambda: {"a": nn.LSTM(8, 5, num_layers=2, batch_first=True)}),
    "bilstm": ("first; a.weight_ih_l0[0:5]", lambda m, h: m.a(h)[0], lambda: {"a": nn.LSTM(8, 5, bidirectional=True)}),
    "lstmproj": ("first; a.weight_ih_l0[0:5]", lambda m, h: m.a(h)[0], lambda: {"a": nn.LSTM(8, 8, proj_size=4)}),
    "gru": ("first; a.weight_ih_l0[0:5]", lambda m, h: m.a(h)[0], lambda: {"a": nn.GRU(8, 5)}),
    "rnn": ("first; a.weight_ih_l0", lambda m, h: m.a(h)[0], lambda: {"a": nn.RNN(8, 5, 2)}),
    "lstm cell": ("first; a.weight_hh[0:5]", lambda m, h: m.a(h[:, 0])[0], lambda: {"a": nn.LSTMCell(8, 5)}),
    "gru cell": ("first; a.weight_ih[0:5]", lambda m, h: m.a(h[:, 1], m.a(h[:, 0])), lambda: {"a": nn.GRUCell(8, 5)}),
    "rnn cell": ("first; a.weight_hh", lambda m, h: m.a(h[:, 1], m.a(h[:, 0])), lambda: {"a": nn.RNNCell(8, 5)}),
    "sdpa": (
        "first; heads",
        lambda m, h: (
            functional.scaled_dot_product_attention(*(x.unflatten(-1, (2, -1)).transpose(1, 2) for x in m.a(h).chunk(3, -1)))
            .transpose(1, 2)
            .flatten(2)
        ),
        lambda: {"a": nn.Linear(8, 24)},
    ),
    "sdpa scale": (
        "first; a; c",
        lambda m, h: functional.scaled_dot_product_attention(m.a(h), m.b(h), m.c(h), scale=0.3),
        lambda: {"a": nn.Linear(8, 6), "b": nn.Linear(8, 6), "c": nn.Linear(8, 7)},
    ),
    "sdpa width": (
        "first; a; c",
        lambda m, h: functional.scaled_dot_product_attention(m.a(h), m.b(h), m.c(h), is_causal=True),
        lambda: {"a": nn.Linear(8, 6), "b": nn.Linear(8, 6), "c": nn.Linear(8, 7)},
    ),
    "rms_norm": ("first", lambda m, h: m.a(h), lambda: {"a": nn.RMSNorm(8)}),
    "shuffle": ("first:2", lambda m, h: h.view(-1, 4, 2, 4).transpose(2, 3).reshape(-1, 4, 8), dict),
}
"""Operation → the sites that shrink, what is done with tokens ``(2, 4, 8)``, and the parts that it takes."""


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@pytest.mark.parametrize("name", TOKENS)
def test_what_is_done_with_tokens(name):
    expected, op, parts = TOKENS[name]
    check(expected, *around(op, parts, images=False))


IMAGES: dict[str, tuple[str, Callable[..., Tensor], Callable[[], dict[str, Any]]]] = {
    "conv": ("first; a", lambda m, h: m.a(h), lambda: {"a": nn.Conv2d(8, 6, 3, padding=1)}),
    "conv nobias stride": ("first; a", lambda m, h: m.a(h), lambda: {"a": nn.Conv2d(8, 6, 3, stride=2, bias=False)}),
    "conv circular": ("first; a", lambda m, h: m.a(h), lambda: {"a": nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular")}),
    "conv reflect": ("first; a", lambda m, h: m.a(h), lambda: {"a": nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect")}),
    "conv same": ("first; a", lambda m, h: m.a(h), lambda: {"a": nn.Conv2d(8, 6, 4, padding="same")}),
    "conv grouped": ("first:2", lambda m, h: m.a(h), lambda: {"a": nn.Conv2d(8, 12, 3, groups=2)}),
    "conv depthwise": ("first", lambda m, h: m.a(h), lambda: {"a": nn.Conv2d(8, 8, 3, groups=8)}),
    "conv multiplier": ("first", lambda m, h: m.a(h), lambda: {"a": nn.Conv2d(8, 16, 3, groups=8)}),
    "conv1d": ("first", lambda m, h: m.a(h.flatten(2)), lambda: {"a": nn.Conv1d(8, 6, 3)}),
    "conv3d": ("first:2", lambda m, h: m.a(h[:, :, None]).flatten(2, 3), lambda: {"a": nn.Conv3d(8, 6, (1, 2, 3), groups=2)}),
    "transposed": ("first; a", lambda m, h: m.a(h), lambda: {"a": nn.ConvTranspose2d(8, 6, 2, stride=2)}),
    "transposed grouped": ("first:2", lambda m, h: m.a(h), lambda: {"a": nn.ConvTranspose2d(8, 6, 2, groups=2)}),
    "transposed1d": ("first", lambda m, h: m.a(h.flatten(2)), lambda: {"a": nn.ConvTranspose1d(8, 6, 2)}),
    "transposed3d dw": (
        "first",
        lambda m, h: m.a(h[:, :, None]).squeeze(2),
        lambda: {"a": nn.ConvTranspose3d(8, 8, (1, 2, 2), groups=8)},
    ),
    "batchnorm": ("first", lambda m, h: m.a(h).relu(), lambda: {"a": nn.BatchNorm2d(8)}),
    "bn noaffine": ("first", lambda m, h: m.a(h), lambda: {"a": nn.BatchNorm2d(8, affine=False)}),
    "bn nostats": ("first", lambda m, h: m.a(h), lambda: {"a": nn.BatchNorm2d(8, track_running_stats=False)}),
    "instancenorm": ("first", lambda m, h: m.a(h), lambda: {"a": nn.InstanceNorm2d(8, affine=True)}),
    "groupnorm": ("first:4", lambda m, h: m.a(h), lambda: {"a": nn.GroupNorm(4, 8)}),
    "groupnorm8": ("first", lambda m, h: m.a(h), lambda: {"a": nn.GroupNorm(8, 8)}),
    "pools": (
        "first",
        lambda m, h: functional.adaptive_avg_pool2d(functional.avg_pool2d(functional.max_pool2d(h, 2, 1), 2), 1),
        dict,
    ),
    "adaptive max": ("first", lambda m, h: functional.adaptive_max_pool2d(h, 2).flatten(1), dict),
    "interpolate": (
        "first",
        lambda m, h: functional.interpolate(functional.interpolate(h, scale_factor=2), size=(5, 5), mode="bilinear"),
        dict,
    ),
    "pixel_shuffle": ("first:2", lambda m, h: functional.pixel_shuffle(h, 2), dict),
    "pixel_unshuffle": ("first", lambda m, h: functional.pixel_unshuffle(h, 2), dict),
    "channel_shuffle": ("first:4", lambda m, h: functional.channel_shuffle(h, 2), dict),
    "unfold": ("first", lambda m, h: functional.unfold(h, 2).transpose(1, 2), dict),
    "fold": ("first", lambda m, h: functional.fold(functional.unfold(h, 2, stride=2), (6, 6), 2, stride=2), dict),
    "pad": ("first", lambda m, h: functional.pad(h, (1, 1, 0, 2, 1, 3)), dict),
    "se": (
        "first; a",
        lambda m, h: h * m.b(m.a(h.mean((2, 3))).relu()).sigmoid()[:, :, None, None],
        lambda: {"a": nn.Linear(8, 4), "b": nn.Linear(4, 8)},
    ),
    "maxout": ("first:4", lambda m, h: h.view(2, 4, 2, 6, 6).amax(2), dict),
    "grid_sample": ("first", lambda m, h: functional.grid_sample(h, h.new_zeros(h.shape[0], 3, 3, 2), align_corners=False), dict),
    "conv by input": (
        "first",
        lambda m, h: functional.conv2d(h, m.a.repeat(8, 1, 1, 1), groups=8),
        lambda: {"a": values(1, 1, 3, 3)},
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", IMAGES)
def test_what_is_done_with_images(name):
    expected, op, parts = IMAGES[name]
    check(expected, *around(op, parts, images=True))


# ------------------------------------------------------------------------------------------------ pinned and approximate

PINNED: dict[str, tuple[str, Callable[..., Tensor], Callable[[], dict[str, Any]]]] = {
    "stride odd": ("sliced with a step of 2 at {here}", lambda m, h: h[..., 1:7:2], dict),
    "select": ("first[1:8]: indexed by number at {here}", lambda m, h: h[..., 0:1] * h[..., 3].unsqueeze(-1), dict),
    "unbind": ("indexed by number at {here}", lambda m, h: torch.stack(h.unbind(-1)[:3], -1), dict),
    "index": ("looked up by index at {here}", lambda m, h: h[..., torch.tensor([0, 2, 3])], dict),
    "flip channels": ("flip at {here} depends on the order of its indices", lambda m, h: h.flip(-1), dict),
    "roll channels": ("roll at {here} depends on the order of its indices", lambda m, h: h.roll(1, -1), dict),
    "cumsum channels": ("cumsum at {here} depends on the order of its indices", lambda m, h: h.cumsum(-1), dict),
    "sort channels": ("sort at {here} depends on the order of its indices", lambda m, h: h.sort(-1).values, dict),
    "argmax channels": ("argmax at {here} depends on the order of its indices", lambda m, h: h * h.argmax(-1, keepdim=True), dict),
    "mean": ("approximate: mean at {here} reduces over it", lambda m, h: h - h.mean(-1, keepdim=True), dict),
    "amax": ("approximate: amax at {here} reduces over it", lambda m, h: h - h.amax(-1, keepdim=True), dict),
    "var": ("approximate: var at {here} reduces over it", lambda m, h: h * h.var(-1, keepdim=True), dict),
    "logsumexp": ("approximate: logsumexp at {here} reduces over it", lambda m, h: h - h.logsumexp(-1, keepdim=True), dict),
    "softmax": ("approximate: _softmax at {here} mixes along it", lambda m, h: h.softmax(-1), dict),
    "log_softmax": ("approximate: _log_softmax at {here} mixes along it", lambda m, h: h.log_softmax(-1), dict),
    "layer_norm": (
        "approximate: native_layer_norm at {here} reduces over it",
        lambda m, h: m.a(h),
        lambda: {"a": nn.LayerNorm(8)},
    ),
    "complex": (
        "first:4: arange at {here} counts its indices; first:2: real and imaginary part at {here}",
        lambda m, h: torch.view_as_real(
            torch.view_as_complex(h.unflatten(-1, (4, 2))) * torch.polar(torch.ones(4, 4), torch.arange(16.0).view(4, 4))
        ).flatten(2),
        dict,
    ),
    "triu channels": ("triu at {here} depends on the order of its indices", lambda m, h: h.triu(), dict),
    "arange": ("arange at {here} counts its indices", lambda m, h: h * torch.arange(8), dict),
}
"""Operation → why the channels of the first layer cannot go, with the place in this file."""

PINNED_IN_IMAGES: dict[str, tuple[str, Callable[..., Tensor], Callable[[], dict[str, Any]]]] = {
    "groupnorm1": (
        "approximate: native_group_norm at {here} reduces over it",
        lambda m, h: m.a(h),
        lambda: {"a": nn.GroupNorm(1, 8)},
    ),
    "layernorm chw": (
        "approximate: native_layer_norm at {here} reduces over it",
        lambda m, h: m.a(h),
        lambda: {"a": nn.LayerNorm([8, 6, 6])},
    ),
    "lrn": ("positions in space (avg_pool3d at {here})", lambda m, h: m.a(h), lambda: {"a": nn.LocalResponseNorm(3)}),
    "cross": ("approximate: mean at {here} reduces over it", lambda m, h: h * h.mean(1, keepdim=True), dict),
    "softmax2d": ("approximate: _softmax at {here} mixes along it", lambda m, h: h.softmax(1), dict),
}


def check_left_alone(reason: str, op: Callable[..., Tensor], model: nn.Module, example: Tensor) -> None:
    first = inspect.getsourcelines(op)[1]
    places = [f"{HERE}:{line}" for line in range(first, first + 9)]
    with pytest.raises(sc.PatternError, match="finds no site") as caught:
        sc.find_sites(model, sc.Channel(), example)
    assert any(reason.format(here=place) in str(caught.value) for place in places), str(caught.value)


@pytest.mark.parametrize("name", PINNED)
def test_what_depends_on_all_of_the_channels_of_tokens(name):
    reason, op, parts = PINNED[name]
    check_left_alone(reason, op, *around(op, parts, images=False))


@pytest.mark.parametrize("name", PINNED_IN_IMAGES)
def test_what_depends_on_all_of_the_channels_of_images(name):
    reason, op, parts = PINNED_IN_IMAGES[name]
    check_left_alone(reason, op, *around(op, parts, images=True))
