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
from secateurs.graph import analyse, normal, trace_of

HERE = "tests/test_graph.py"


def values(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def writing(tensor: Tensor, write: Callable[[Tensor], Any]) -> Tensor:
    write(tensor)
    return tensor


def overlapping(m: Any, h: Tensor) -> Tensor:
    """As Longformer cuts a sequence into pieces of which each begins in the middle of the one before."""
    pieces = h.view(h.shape[0], 2, 2, h.shape[2])
    batch, outer, inner, width = pieces.stride()
    return pieces.as_strided((h.shape[0], 3, 2, h.shape[2]), (batch, outer // 2, inner, width)).flatten(1, 2)


class Listing(nn.Module):
    """Takes the halves of its channels by lists of indices, one counted from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h[..., [-8, -7, -6, -5, -4, -3, -2, -1]].relu() * h[..., [0, 1, 2, 3, 4, 5, 6, 7]])


def renormed(m: Any, h: Tensor) -> Tensor:
    """As EEGNet keeps its weights small."""
    m.a.data = m.a.data.renorm(2, 0, 0.5)
    return functional.linear(h, m.a)


class Statistics(nn.Module):
    """What a batch normalisation keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))


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
    assert set(shrunk.sites) == set(expected.split("; "))
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
    "copy_ slice": ("first", lambda m, h: writing(h.new_zeros(h.shape), lambda z: z[:, 1:].copy_(h[:, 1:])), dict),
    "channels written": (
        "first[0:5]; first[5:8]",
        lambda m, h: writing(h, lambda h: h[..., :5].copy_(m.a(h))),
        lambda: {"a": nn.Linear(8, 5)},
    ),
    "row written": ("first", lambda m, h: writing(h, lambda h: h[:, 2].mul_(h[:, 1])), dict),
    "diagonal written": ("first", lambda m, h: h @ writing(h.mT @ h, lambda g: g.diagonal(dim1=1, dim2=2).add_(1)), dict),
    "out=": ("first", lambda m, h: torch.mul(h.detach(), m.a.detach(), out=torch.empty(2, 4, 8).to(h)), lambda: {"a": values(8)}),
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
    "list": ("first[0:2]; first[2:6]; first[6:8]", lambda m, h: h[..., [2, 3, 4, 5]], dict),
    "list neg": ("first[0:5]; first[5:8]", lambda m, h: h[:, 1:][None, ..., [-3, -2, -1]][0], dict),
    "list stride": ("first:4", lambda m, h: h.transpose(0, 2)[[0, 2, 4, 6]].transpose(0, 2), dict),
    "list rows": ("first", lambda m, h: h[:, [2, 1, 1]], dict),
    "list written": (
        "first",
        lambda m, h: writing(h, lambda h: h.__setitem__((slice(None), [1, 2]), m.a)),
        lambda: {"a": values(8)},
    ),
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
    "lstmproj": ("first; a.weight_ih_l0[0:8]; a.weight_hr_l0", lambda m, h: m.a(h)[0], lambda: {"a": nn.LSTM(8, 8, proj_size=4)}),
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
    "fft": ("first", lambda m, h: torch.fft.fft(h, dim=1).real + torch.fft.irfft(torch.fft.rfft(h, dim=1), dim=1), dict),
    "mask of tokens": ("first", lambda m, h: h[m.i], lambda: {"i": nn.Parameter(torch.rand(2, 4) < 0.7, requires_grad=False)}),
    "masked_scatter": (
        "first",
        lambda m, h: h.masked_scatter(m.i.expand(h.shape), m.a(h)),
        lambda: {"a": nn.Linear(8, 8), "i": nn.Parameter(torch.rand(2, 4, 1) < 0.7, requires_grad=False)},
    ),
    "windows": ("first", lambda m, h: h.as_strided((*h.shape[:1], 3, 2, h.shape[2]), (*h.stride()[:2], *h.stride()[1:])), dict),
    "windows of windows": ("first", overlapping, dict),
    "renorm": ("a; first", lambda m, h: functional.linear(h, m.a.renorm(2, 0, 0.5)), lambda: {"a": values(5, 8)}),
    "renorm data": ("a; first", renormed, lambda: {"a": values(5, 8)}),
    "diag_embed": ("first", lambda m, h: h.diag_embed().sum(-1), dict),
    "addr": (
        "first; a",
        lambda m, h: (torch.addr(m.b, h[0, 0], m.a(h)[0, 0]).T @ h[0, 0])[None],
        lambda: {"a": nn.Linear(8, 5), "b": values(8, 5)},
    ),
    "addbmm": ("first", lambda m, h: h @ torch.addbmm(m.b, h.mT, h), lambda: {"b": values(8, 8)}),
    "loss": ("first", lambda m, h: h * functional.mse_loss(h, m.a, reduction="sum"), lambda: {"a": values(2, 4, 8)}),
    "losses": ("first", lambda m, h: functional.smooth_l1_loss(h, h * 2 + m.a, reduction="none"), lambda: {"a": values(8)}),
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
    "conv of rows": (
        "first; b",
        lambda m, h: m.b(h.flatten(2).mT * m.a(h.flatten(2).mT)).mT.unflatten(2, (6, 6)),
        lambda: {"a": nn.Conv1d(36, 36, 1), "b": nn.Linear(8, 5)},
    ),
    "fft2": ("first", lambda m, h: torch.fft.irfft2(torch.fft.rfft2(h) * m.a), lambda: {"a": values(8, 6, 4)}),
    "affine grid": (
        "first",
        lambda m, h: functional.grid_sample(
            h, functional.affine_grid(m.a(h.mean((2, 3))).view(-1, 2, 3), h.shape, align_corners=False), align_corners=False
        ),
        lambda: {"a": nn.Linear(8, 6)},
    ),
    "rot90": ("first", lambda m, h: h.rot90(1, (2, 3)), dict),
    "statistics": ("first", lambda m, h: functional.batch_norm(h, m.a.mean, m.a.var, training=True), lambda: {"a": Statistics()}),
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


def together(*functions: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Several operations of one kind, added up."""
    return lambda m, h: torch.stack([function(h) for function in functions]).sum(0)


KIND = {
    "activations": together(
        functional.silu,
        functional.mish,
        functional.hardswish,
        functional.hardsigmoid,
        functional.hardtanh,
        functional.leaky_relu,
        functional.elu,
        functional.celu,
        functional.selu,
        functional.softplus,
        functional.softshrink,
        functional.logsigmoid,
    ),
    "comparisons": together(
        lambda h: h * ((h > 0) & (h < 1) | ~(h > 2)),
        lambda h: h * torch.logical_or(h > 0, torch.logical_not(h > 1)),
        lambda h: h * torch.isin(h, torch.tensor([0.0])),
        lambda h: h + torch.bucketize(h, torch.tensor([-1.0, 0.0, 1.0])),
        lambda h: torch.nan_to_num(h.clamp_max(2).clamp_min(-2)) + torch.heaviside(h, torch.zeros_like(h)),
    ),
    "arithmetic": together(
        lambda h: torch.addcdiv(h, h, h.abs() + 1), lambda h: 2 - h, lambda h: h // 0.3, lambda h: h.fmod(0.7) + h.remainder(0.7)
    ),
    "shapes in place": lambda m, h: h.clone().unsqueeze_(1).squeeze_(1).transpose_(1, 2).transpose_(1, 2),
    "reductions over tokens": together(
        lambda h: h.amin(1),
        lambda h: h.std(1),
        lambda h: h.prod(1),
        lambda h: h.median(1).values,
        lambda h: h.min(1).values,
        lambda h: h.max(1).values,
        lambda h: h.nansum(1),
        lambda h: torch.var_mean(h, 1)[0],
        lambda h: h.any(1).to(h),
        lambda h: h.count_nonzero(1).to(h),
        lambda h: h.kthvalue(2, dim=1).values,
        lambda h: h.mode(1).values,
        lambda h: h.aminmax(dim=1).max,
    ),
    "sums over channels": together(
        lambda h: h * h.any(-1, keepdim=True),
        lambda h: h * torch.linalg.vector_norm(h, 1, -1, keepdim=True),
        lambda h: h * h.nansum(-1, True),
    ),
    "along tokens": together(
        lambda h: h.cumprod(1),
        lambda h: h.cummax(1).values,
        lambda h: h.cummin(1).values,
        lambda h: h.logcumsumexp(1),
        lambda h: h.gather(1, h.argsort(1)),
        lambda h: functional.softmin(h, 1),
        lambda h: h.sort(1).values,
        lambda h: h.diff(dim=1, prepend=h[:, :1]),
    ),
    "written by index": together(
        lambda h: torch.zeros_like(h).index_add_(1, torch.tensor([0, 0, 1, 3]), h),
        lambda h: h.index_copy(1, torch.tensor([0, 2]), h[:, :2]),
        lambda h: h.index_fill(1, torch.tensor([1]), 0.5),
        lambda h: h.scatter(1, torch.zeros(2, 4, 8, dtype=torch.long), h),
        lambda h: h.scatter_reduce(1, torch.zeros(2, 4, 8, dtype=torch.long), h, "amax"),
    ),
    "vectors": lambda m, h: h * torch.vdot(h[0, 0], h[0, 1]) + (h[0] @ h[0, 0])[:, None],
    "an inverse": lambda m, h: torch.linalg.inv(h @ h.mT + 9 * torch.eye(4).to(h)) @ h,
    "activations in place": lambda m, h: nn.Threshold(0.1, 0.0, True)(
        nn.Mish(True)(nn.Hardswish(True)(nn.RReLU(inplace=True)(h * 1)))
    ),
}


@pytest.mark.parametrize("name", KIND)
def test_what_goes_channel_by_channel(name):
    check("first", *around(KIND[name], dict, images=False))


def test_noise_that_stays_on_is_no_obstacle():
    """Of every kind, however its size is told; the answers are compared without it."""

    def op(m: Any, h: Tensor) -> Tensor:
        noise = (
            torch.randn_like(h) + torch.randn(2, 4, 8) * torch.rand(8) + torch.empty_like(h).normal_(1, 2) + torch.normal(h * 0, 1)
        )
        return functional.dropout(h, 0.5 * m.on, True) * torch.bernoulli(1 - torch.full_like(h, 0.3 * m.on)) + noise * m.on

    model, example = around(op, lambda: {"on": 1.0}, images=False)
    masks = prune(model, example)
    masked = copy.deepcopy(model)
    shrunk = sc.shrink_(model, masks)
    assert (shrunk.sites, shrunk.skipped) == ({"first": (8, 4)}, ())
    model.on = masked.on = 0.0
    torch.testing.assert_close(model(example + 1), masked(example + 1), rtol=1e-9, atol=1e-9)


def unpooled(h: Tensor) -> Tensor:
    pooled, places = functional.max_pool2d(h, 2, return_indices=True)
    return functional.max_unpool2d(pooled, places, 2)


SPACE = {
    "one": together(
        *(
            lambda h, mode=mode: functional.interpolate(h.flatten(2), 12, mode=mode)
            for mode in ("nearest", "linear", "nearest-exact")
        ),
        *(lambda h, pool=pool: pool(h.flatten(2), 12) for pool in (functional.adaptive_avg_pool1d, functional.adaptive_max_pool1d)),
        *(lambda h, pool=pool: pool(h.flatten(2), 3) for pool in (functional.avg_pool1d, functional.max_pool1d)),
        *(
            lambda h, mode=mode: functional.pad(h.flatten(2), (1, 1), mode=mode)[..., ::3][..., :12]
            for mode in ("reflect", "replicate")
        ),
    ),
    "two": together(
        *(
            lambda h, mode=mode: functional.interpolate(h, (5, 5), mode=mode)
            for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
        ),
        *(lambda h, mode=mode: functional.interpolate(h, (5, 5), mode=mode, antialias=True) for mode in ("bilinear", "bicubic")),
        *(
            lambda h, mode=mode: functional.avg_pool2d(functional.pad(h, (0, 1, 1, 0), mode=mode), 3, 1)
            for mode in ("reflect", "replicate", "circular")
        ),
        lambda h: unpooled(h)[..., :5, :5],
    ),
    "three": together(
        *(
            lambda h, mode=mode: functional.interpolate(h[:, :, None], (2, 3, 3), mode=mode).flatten(2, 3)
            for mode in ("nearest", "trilinear")
        ),
        lambda h: functional.adaptive_avg_pool3d(h[:, :, None], (2, 3, 3)).flatten(2, 3),
        lambda h: functional.adaptive_max_pool3d(h[:, :, None], (1, 6, 3)).flatten(2, 3),
        lambda h: functional.max_pool3d(functional.pad(h[:, :, None], (0, 0, 0, 6, 0, 0), mode="replicate"), (1, 2, 2)).flatten(
            2, 3
        ),
        lambda h: functional.avg_pool3d(functional.pad(h[:, :, None], (0, 0, 3, 3, 0, 0), mode="reflect"), (1, 2, 2)).flatten(2, 3),
    ),
}


@pytest.mark.parametrize("name", SPACE)
def test_what_is_done_with_space(name):
    more = name == "one"  # three dimensions become four
    check("first", *around(lambda m, h: SPACE[name](m, h)[:, :, None] if more else SPACE[name](m, h), dict, images=True))


def test_images_may_lie_pixel_by_pixel():
    """Torch then pools in other operations, which change the strides of what they give in place."""
    model, example = around(lambda m, h: functional.adaptive_avg_pool2d(h.relu_(), 1) * h, dict, images=True)
    example = example.contiguous(memory_format=torch.channels_last)
    assert "as_strided" not in {op.name for op in trace_of(model, example).ops}
    check("first", model, example)


def test_lists_of_indices_come_back_from_a_file(tmp_path):
    model, example = Listing(), torch.randn(4, 6)
    assert sc.shrink_(model, prune(model, example)).sites == {"first[0:8]": (8, 4)}
    sc.save(model, tmp_path / "small.safetensors")
    again = sc.load(tmp_path / "small.safetensors", Listing)
    assert torch.equal(again(example), model(example))


def test_bags_of_embeddings():
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags, self.last = nn.EmbeddingBag(11, 8, mode="sum"), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(self.bags(ids))

    model, example = Bags().double(), torch.arange(6).view(2, 3)
    masks = prune(model, example)
    expected = model(example + 3)
    assert sc.shrink_(model, masks).sites == {"bags": (8, 4)}
    torch.testing.assert_close(model(example + 3), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "reduce", ["std", "prod", "amin", "max", "min", "median", "softmin", "cumprod", "cummax", "kthvalue", "argmin"]
)  # fmt: skip
def test_what_depends_on_how_many_channels_there_are(reduce):
    def op(m: Any, h: Tensor) -> Tensor:
        found = (
            getattr(h, reduce)(*((2,) if reduce == "kthvalue" else ()), dim=-1)
            if reduce != "softmin"
            else functional.softmin(h, -1)
        )
        found = found if isinstance(found, Tensor) else found[0]
        return h * (found if found.shape == h.shape else found[..., None])

    model, example = around(op, dict, images=False)
    first = op.__code__.co_firstlineno
    lines = "|".join(str(line) for line in range(first, first + 5))
    with pytest.raises(sc.PatternError, match=rf"first: .* at {HERE}:({lines}) "):
        sc.find_sites(model, sc.Channel(), example)


# ------------------------------------------------------------------------------------------------ pinned and approximate

PINNED: dict[str, tuple[str, Callable[..., Tensor], Callable[[], dict[str, Any]]]] = {
    "stride odd": ("sliced with a step of 2 at {here}", lambda m, h: h[..., 1:7:2], dict),
    "select": ("first[1:8]: indexed by number at {here}", lambda m, h: h[..., 0:1] * h[..., 3].unsqueeze(-1), dict),
    "unbind": ("indexed by number at {here}", lambda m, h: torch.stack(h.unbind(-1)[:3], -1), dict),
    "index": ("looked up by index at {here}", lambda m, h: h[..., torch.tensor([0, 2, 3])], dict),
    "list uneven": ("looked up by index at {here}", lambda m, h: h[..., [0, 2, 3]], dict),
    "flip channels": ("flip at {here} depends on the order of its indices", lambda m, h: h.flip(-1), dict),
    "roll channels": ("roll at {here} depends on the order of its indices", lambda m, h: h.roll(1, -1), dict),
    "cumsum channels": ("cumsum at {here} depends on the order of its indices", lambda m, h: h.cumsum(-1), dict),
    "sort channels": ("sort at {here} depends on the order of its indices", lambda m, h: h.sort(-1).values, dict),
    "argmax channels": ("argmax at {here} depends on the order of its indices", lambda m, h: h * h.argmax(-1, keepdim=True), dict),
    "loss": ("approximate: mse_loss at {here} reduces over it", lambda m, h: h * functional.mse_loss(h, h * 2), dict),
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


# ------------------------------------------------------------------------------------------------ attention

Heads = Callable[[nn.MultiheadAttention, Tensor], Tensor]


class Attending(nn.Module):
    """Attention of four heads of two, between a layer that makes its input and one that reads its output."""

    def __init__(self, call: Heads, **settings: Any) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(6, 8), nn.MultiheadAttention(8, 4, **settings), nn.Linear(8, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.attention, self.first(x)))


def future(tensor: Tensor) -> Tensor:
    return torch.ones(4, 4, dtype=torch.bool, device=tensor.device).triu(1)


def padding(tensor: Tensor) -> Tensor:
    return torch.tensor([[False, False, True, True]]).expand(tensor.shape[0], 4)


ATTENTION: dict[str, tuple[Heads, dict[str, Any]]] = {
    "plain": (lambda a, h: a(h, h, h)[0], {}),
    "batch first": (lambda a, h: a(h, h, h, need_weights=False)[0], {"batch_first": True}),
    "by name": (lambda a, h: a(query=h, key=h, value=h)[0], {"batch_first": True}),
    "without bias": (lambda a, h: a(h, h, h)[0], {"bias": False}),
    "bias_k": (lambda a, h: a(h, h, h)[0], {"add_bias_kv": True}),
    "add_zero_attn": (lambda a, h: a(h, h, h)[0], {"add_zero_attn": True}),
    "unbatched": (lambda a, h: a(h[0], h[0], h[0])[0], {}),
    "mask": (lambda a, h: a(h, h, h, attn_mask=future(h))[0], {"batch_first": True}),
    "mask of each head": (lambda a, h: a(h, h, h, attn_mask=h.new_zeros(h.shape[0] * 4, 4, 4))[0], {"batch_first": True}),
    "added mask": (lambda a, h: a(h, h, h, attn_mask=future(h).to(h) * -3, need_weights=False)[0], {"batch_first": True}),
    "padding": (lambda a, h: a(h, h, h, key_padding_mask=padding(h))[0], {"batch_first": True}),
    "causal": (lambda a, h: a(h, h, h, attn_mask=future(h), is_causal=True, need_weights=False)[0], {"batch_first": True}),
    "everything": (
        lambda a, h: a(h, h, h, attn_mask=future(h), key_padding_mask=padding(h))[0],
        {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
    ),
}


FOR_ONE_BATCH = "mask of each head"
"""Whose code multiplies the batch by a number of heads that it writes down: no smaller number in its place is right for every batch."""


def test_a_mask_that_is_made_for_one_number_of_heads_keeps_them():
    call, settings = ATTENTION[FOR_ONE_BATCH]
    model, example = Attending(call, **settings).double().eval(), torch.randn(2, 4, 6, dtype=torch.float64)
    masks = prune(model, example, sc.Head())
    [left] = sc.shrink_(model, masks).skipped
    assert left.name == "attention:heads" and "fails at another size, which the masked one takes (tensor (3, 4, 6)" in left.reason
    assert model.attention.num_heads == 4


@pytest.mark.parametrize("name", [name for name in ATTENTION if name != FOR_ONE_BATCH])
def test_the_heads_of_attention(name):
    call, settings = ATTENTION[name]
    model, example = Attending(call, **settings).double().eval(), torch.randn(2, 4, 6, dtype=torch.float64)
    check("first; attention:heads; attention.out_proj", model, example)
    assert model.attention.num_heads == 2


def test_heads_over_learned_queries():
    """The queries of a decoder's first self-attention depend on weights alone, and so do its keys and values."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries, self.first, self.last = values(3, 8), nn.Linear(6, 8), nn.Linear(8, 3)
            self.itself, self.across = (nn.MultiheadAttention(8, 4, batch_first=True) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            q = self.queries.expand(x.shape[0], -1, -1)
            q = q + self.itself(q, q, torch.zeros_like(q), need_weights=False)[0]
            return self.last(self.across(q, self.first(x), self.first(x), need_weights=False)[0])

    model, example = Decoder().double().eval(), torch.randn(2, 4, 6).double()
    assert [site.name for site in sc.find_sites(model, sc.Head(), example)] == ["itself:heads", "across:heads"]
    masks = prune(model, example, sc.Head())
    expected = model(example)
    assert sc.shrink_(model, masks).sites == {"itself:heads": (4, 2), "across:heads": (4, 2)}
    torch.testing.assert_close(model(example), expected, rtol=1e-9, atol=1e-9)


def test_keys_and_values_of_other_widths():
    model = Attending(lambda a, h: a(h, h[..., :5], h[..., 2:8])[0], kdim=5, vdim=6).double().eval()
    check("first[0:2]; first[2:5]; first[5:8]; attention:heads; attention.out_proj", model, torch.randn(2, 4, 6).double())


@pytest.mark.parametrize("average", [True, False])
def test_where_the_weights_of_attention_are_used_its_heads_are_approximate(average):
    def call(a: nn.MultiheadAttention, h: Tensor) -> Tensor:
        out, weights = a(h, h, h, average_attn_weights=average)
        return (weights if average else weights.amax(1)) @ out

    model, example = Attending(call, batch_first=True).double().eval(), torch.randn(2, 4, 6).double()
    reasons = {item.name: item.reason for item in sc.find_sites(model, sc.Channel(), example).skipped}
    assert f"approximate: {'mean' if average else 'amax'} at {HERE}" in reasons["attention:heads"]
    check("first; attention.in_proj_weight:2; attention.out_proj", model, example)


class Layered(nn.Module):
    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.last, self.call = layer, nn.Linear(8, 3), call

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.layer, x))


def encoder_layer(**settings: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 4, 12, batch_first=True, **settings)


def decoder_layer() -> nn.Module:
    return nn.TransformerDecoderLayer(8, 4, 12, batch_first=True)


LAYERS: dict[str, tuple[str, Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor]]] = {
    "encoder layer": ("self_attn:heads; linear1", encoder_layer, lambda layer, x: layer(x)),
    "norm first": (
        "self_attn:heads; linear1",
        lambda: encoder_layer(norm_first=True, activation="gelu"),
        lambda layer, x: layer(x),
    ),
    "without bias": ("self_attn:heads; linear1", lambda: encoder_layer(bias=False), lambda layer, x: layer(x)),
    "masked": ("self_attn:heads; linear1", encoder_layer, lambda layer, x: layer(x, src_key_padding_mask=padding(x))),
    "encoder": (
        "layers.0.self_attn:heads; layers.0.linear1; layers.1.self_attn:heads; layers.1.linear1",
        lambda: nn.TransformerEncoder(encoder_layer(), 2),
        lambda layer, x: layer(x),
    ),
    "decoder layer": ("self_attn:heads; multihead_attn:heads; linear1", decoder_layer, lambda layer, x: layer(x, x.flip(1))),
    "decoder": (
        "layers.0.self_attn:heads; layers.0.multihead_attn:heads; layers.0.linear1",
        lambda: nn.TransformerDecoder(decoder_layer(), 1),
        lambda layer, x: layer(x, x.flip(1), tgt_mask=future(x)),
    ),
    "transformer": (
        "encoder.layers.0.self_attn:heads; encoder.layers.0.linear1; decoder.layers.0.self_attn:heads; "
        "decoder.layers.0.multihead_attn:heads; decoder.layers.0.linear1",
        lambda: nn.Transformer(8, 4, 1, 1, 12, batch_first=True),
        lambda layer, x: layer(x, x.flip(1)),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_torchs_transformer_layers(name):
    sites, layer, call = LAYERS[name]
    model = Layered(layer(), call).double().eval()
    check("; ".join(f"layer.{site}" for site in sites.split("; ")), model, torch.randn(2, 4, 8).double())


def test_grouped_queries_go_with_the_key_that_they_share():
    """Six query heads of 4 for two key heads: a unit is a key head, its value head and three query heads."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = nn.Linear(5, 24), nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(24, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            k, v = (each.repeat_interleave(3, dim=1) for each in (k, v))
            return self.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    model, example = Grouped().double(), torch.randn(2, 4, 5).double()
    assert "heads" in [site.name for site in sc.find_sites(model, sc.Head(), example)]
    check("heads", model, example)
    assert (model.q.out_features, model.k.out_features, model.v.out_features, model.o.in_features) == (12, 4, 4, 12)


def test_the_width_of_heads_is_pruned_where_it_is_named():
    model, example = Attending(lambda a, h: a(h, h, h)[0]).double().eval(), torch.randn(2, 4, 6).double()
    sites = sc.find_sites(model, sc.Channel(), example)
    reasons = {item.name: item.reason for item in sites.skipped}
    assert reasons["attention.in_proj_weight:2"] == "lies within each unit of attention:heads; name it in only= to prune it"
    masks = prune(model, example, only="attention.in_proj_weight:2")
    masked = copy.deepcopy(model)
    assert sc.shrink_(model, masks).sites == {"attention.in_proj_weight:2": (2, 1)}
    torch.testing.assert_close(model(example), masked(example), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------ fake quantisation


class Quantised(nn.Module):
    """What quantisation-aware training does to weights (a step size each row) and activations (one step size), in three ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(6, 8), nn.Linear(8, 3), kind
        self.step, self.size = nn.Parameter(torch.full((8,), 0.01)), nn.Parameter(torch.tensor([0.02]))
        self.zeros = nn.Parameter(torch.zeros(8), requires_grad=False)
        for name, start in (("on", torch.ones(1)), ("low", torch.full((8,), -1.0)), ("high", torch.full((8,), 1.0))):
            self.register_buffer(name, start)
        self.register_buffer("scales", torch.full((8,), 0.01))
        self.zero = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("points", torch.zeros(8, dtype=torch.int32))

    def rounded(self, weight: Tensor) -> Tensor:
        """A weight, each row with its own step size."""
        if self.kind == "fixed":
            return torch.fake_quantize_per_channel_affine(weight, self.scales, self.points, 0, -128, 127)
        if self.kind == "learned":
            return torch._fake_quantize_learnable_per_channel_affine(weight, self.step, self.zeros, 0, -128, 127, 1.0)
        if self.kind == "divided":
            return (weight / self.step[:, None]).round() * self.step[:, None]
        on = self.on.long()
        state = (self.low, self.high, self.scales, self.points)
        return torch.fused_moving_avg_obs_fake_quant(weight, on, on, *state, 0.01, -128, 127, 0, True, True)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.linear(x, self.rounded(self.first.weight), self.first.bias).relu()
        if self.kind == "fixed":
            h = torch.fake_quantize_per_tensor_affine(h, 0.02, 0, -128, 127)
            h = torch.fake_quantize_per_tensor_affine(h, self.size.detach(), self.point, -128, 127)
        elif self.kind == "learned":
            h = torch._fake_quantize_learnable_per_tensor_affine(h, self.size, self.zero, -128, 127, 1.0)
        return self.last(h)


@pytest.mark.parametrize("kind", ["fixed", "learned", "divided", "observed"])
def test_fake_quantisation_is_seen_through(kind):
    model, example = Quantised(kind).eval(), torch.randn(4, 6)
    masks = prune(model, example)
    masked = copy.deepcopy(model)
    shrunk = sc.shrink_(model, masks)
    assert (shrunk.sites, shrunk.skipped) == ({"first": (8, 4)}, ())
    other = torch.randn(5, 6)
    torch.testing.assert_close(model(other), masked(other))
    assert torch.isfinite(model(other)).all()


# ------------------------------------------------------------------------------------------------ the unknown


@torch.library.custom_op("secateurs_tests::sorted_halves", mutates_args=())
def sorted_halves(x: Tensor) -> Tensor:
    return x.sort(-1).values.clone()


@sorted_halves.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_an_unknown_operation_pins_what_it_touches_and_is_listed():
    op = lambda m, h: sorted_halves(h) + m.b(m.a(h).relu())  # noqa: E731
    model, example = around(op, lambda: {"a": nn.Linear(8, 6), "b": nn.Linear(6, 8)}, images=False)
    sites = sc.find_sites(model, sc.Channel(), example)
    where = f"{HERE}:{op.__code__.co_firstlineno}"
    reasons = {item.name: item.reason for item in sites.skipped}
    name = "secateurs_tests.sorted_halves"
    assert reasons[f"operation {name}"] == f"no rule is known for it, so what it touches is pinned (first at {where})"
    assert reasons["first"] == f"{name} at {where}"
    check("a", model, example)


def test_what_only_a_normalisation_is_in_the_way_of_is_told():
    """A network of token mixing alone: the layer and the way out are named, and the way out is one."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.mix, self.down = nn.Linear(6, 16), nn.LayerNorm(8), nn.Conv1d(4, 4, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            u, v = self.up(x).chunk(2, -1)
            return self.down(u * self.mix(self.norm(v)))

    model, example = Gated().double(), torch.randn(2, 4, 6).double()
    with pytest.raises(sc.PatternError, match=r"reduces over it, in norm; .*; Channel\(approximate=True\) prunes what a normal"):
        sc.find_sites(model, sc.Channel(), example)
    assert sc.shrink_(model, prune(model, example, sc.Channel(approximate=True))).sites == {"up[0:8]": (8, 4)}
    assert (model.up.out_features, model.norm.normalized_shape, model.mix.in_channels) == (8, (4,), 4)


def test_what_reduces_over_channels_does_not_matter_where_nobody_uses_it():
    def op(m: Any, h: Tensor) -> Tensor:
        h.mean(-1), h.softmax(-1)
        return h

    check("first", *around(op, dict, images=False))


# ------------------------------------------------------------------------------------------------ ties and types


def test_tied_weights_are_one_site():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.inside, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids) + self.inside(self.table(ids)).relu())

    model, example = Tied().double(), torch.arange(6).view(2, 3)
    masks = prune(model, example)
    masked = copy.deepcopy(model)
    assert sc.shrink_(model, masks).sites == {"table": (8, 4)}
    assert model.head.weight is model.table.weight and model.head.in_features == model.table.embedding_dim == 4
    torch.testing.assert_close(model(example + 2), masked(example + 2), rtol=1e-9, atol=1e-9)


def test_types_say_how_a_fused_projection_is_made_up():
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(5, 24), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.view(2, 4, 2, 4).transpose(1, 2) for part in self.qkv(x).split(8, dim=-1))
            return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(2, 4, 8))

    structure = analyse(Fused(), torch.randn(2, 4, 5))
    assert str(normal(structure.parameters["qkv.weight"][0])) == "2x4 + 2x4 + 2x4"
    (q, same), (k, also), (v, other) = normal(structure.parameters["qkv.weight"][0]).terms
    assert q is k is v and same is also and same is not other
    assert structure.places[q][0].role == "producer"
    assert {each.parameter for each in structure.places[other] if each.role == "consumer"} == {"out.weight"}
    assert structure.inner == {same: q, other: q}


def test_a_batch_and_positions_are_never_pruned():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    structure = analyse(model, torch.zeros(7, 3, 5, 5))
    assert [(axis.size, axis.pinned) for axis in structure.axes if axis.pinned] == [
        (2, "the model's output"),
        (3, "the model's input"),
    ]
