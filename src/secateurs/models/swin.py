"""Swin transformer: attention within windows, which move by half a window from block to block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softmax

from secateurs.models.stochastic_depth import StochasticDepth
from secateurs.models.truncated_normal import truncated_normal_
from secateurs.models.vit import Mlp


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for each offset between two pixels.

    Liu et al. 2021, arXiv:2103.14030, equation 4. Input and output ``(n, windows, window * window, width)``; ``apart``
    ``(windows, window * window, window * window)`` is true where a pixel must not attend to another. ``ValueError`` where
    ``heads`` does not divide ``width``.

    >>> x = torch.zeros(1, 4, 9, 8)
    >>> tuple(WindowAttention(8, heads=2, window=3)(x, torch.zeros(4, 9, 9, dtype=torch.bool)).shape)
    (1, 4, 9, 8)
    """

    offsets: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"window attention: width {width} is not a multiple of heads {heads}")
        self.num_heads = heads
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.register_buffer("offsets", _offsets(window), persistent=False)

    def forward(self, x: Tensor, apart: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.num_heads, self.head_dim)) for part in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("nwqhd,nwkhd->nwhqk", q * self.head_dim**-0.5, k)
        scores = scores + self.bias[self.offsets].permute(2, 0, 1)
        scores = scores.masked_fill(apart.unsqueeze(1), float("-inf"))
        y = torch.einsum("nwhqk,nwkhd->nwqhd", softmax(scores, dim=-1), v)
        return self.out(y.flatten(-2))


class SwinBlock(nn.Module):
    """`WindowAttention` and `Mlp`, each with layer normalisation before it and a shortcut around.

    Liu et al. 2021, arXiv:2103.14030, equation 3 and figure 4: the image is rolled by ``shift`` before it is cut into windows,
    and pixels that became neighbours only by that do not see each other. Sides that are not a multiple of ``window`` are
    padded, and sides that fit into one window are not rolled. Input and output ``(n, h, w, width)``.

    >>> tuple(SwinBlock(8, heads=2, window=4, shift=2, drop=0.1)(torch.zeros(1, 9, 6, 8)).shape)
    (1, 9, 6, 8)
    """

    def __init__(self, width: int, heads: int, window: int, shift: int, drop: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self._attend(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = pad(x, (0, 0, 0, -w % self.window, 0, -h % self.window))
        _, rows, columns, _ = x.shape
        shifts = tuple(self.shift if side > self.window else 0 for side in (rows, columns))
        y = torch.roll(x, (-shifts[0], -shifts[1]), dims=(1, 2))
        apart = _apart(rows, columns, self.window, shifts, x.device)
        y = self.attention(to_windows(y, self.window), apart)
        y = torch.roll(from_windows(y, rows, columns), shifts, dims=(1, 2))
        return y[:, :h, :w]


class PatchMerging(nn.Module):
    """Puts each 2x2 pixels into one, and halves the ``4 * width`` channels that this gives.

    Liu et al. 2021, arXiv:2103.14030, section 3.1. Input ``(n, h, w, width)``, output ``(n, h / 2, w / 2, 2 * width)``, rounded
    up.

    >>> tuple(PatchMerging(8)(torch.zeros(1, 4, 5, 8)).shape)
    (1, 2, 3, 16)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """Patches of 4x4 pixels, stages of `SwinBlock` with `PatchMerging` between them, and one linear layer.

    ``blocks`` and ``heads`` hold one number for each stage. ``width`` channels are in the first stage, and each further one
    doubles them.

    >>> model = Swin((1, 2), (2, 4), width=8, window=4, classes=5, in_channels=3)
    >>> tuple(model(torch.zeros(2, 3, 32, 32)).shape)
    (2, 5)
    """

    def __init__(
        self, blocks: tuple[int, ...], heads: tuple[int, ...], width: int, window: int, classes: int, in_channels: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, 4, stride=4)
        self.norm0 = nn.LayerNorm(width)
        self.stages = nn.Sequential()
        drops = torch.linspace(0, 0.2, sum(blocks), device="cpu").tolist()
        for i, (depth, number) in enumerate(zip(blocks, heads, strict=True)):
            if i > 0:
                self.stages.append(PatchMerging(width))
                width *= 2
            shifts = [0 if j % 2 == 0 else window // 2 for j in range(depth)]
            self.stages.append(nn.Sequential(*(SwinBlock(width, number, window, shift, drops.pop(0)) for shift in shifts)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        truncated_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.patches(x).permute(0, 2, 3, 1))
        x = self.norm(self.stages(x))
        return self.head(x.mean(dim=(1, 2)))


def swin_t(
    classes: int = 1000,
    in_channels: int = 3,
    width: int = 96,
    blocks: tuple[int, ...] = (2, 2, 6, 2),
    heads: tuple[int, ...] = (3, 6, 12, 24),
    window: int = 7,
) -> Swin:
    """Twelve blocks in four stages for ImageNet, with windows of 7x7 and stochastic depth up to 0.2: "Swin-T".

    Liu et al. 2021, arXiv:2103.14030, section 3.3. Input ``(n, in_channels, 224, 224)`` or other sizes from 32, output
    ``(n, classes)``; 28,288,354 parameters with 1000 classes and 3 channels. ``ValueError`` where a stage's ``heads`` do not
    divide its width, or ``heads`` and ``blocks`` are not of one length.

    >>> with torch.device("meta"):
    ...     model = swin_t()
    >>> sum(p.numel() for p in model.parameters())
    28288354
    """
    if len(blocks) != len(heads):
        raise ValueError(f"swin_t: blocks {blocks} and heads {heads}: expected one number for each stage in both")
    return Swin(blocks, heads, width, window, classes, in_channels)


def to_windows(x: Tensor, window: int) -> Tensor:
    """Cuts an image into windows: ``(n, h, w, channels)`` to ``(n, windows, window * window, channels)``.

    >>> to_windows(torch.arange(8).reshape(1, 2, 4, 1), 2).squeeze().tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    n, h, w, channels = x.shape
    x = x.reshape(n, h // window, window, w // window, window, channels)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(x: Tensor, h: int, w: int) -> Tensor:
    """Puts windows together again: ``(n, windows, window * window, channels)`` to ``(n, h, w, channels)``.

    >>> x = torch.arange(48).reshape(2, 4, 6, 1)
    >>> torch.equal(from_windows(to_windows(x, 2), 4, 6), x)
    True
    """
    n, _, pixels, channels = x.shape
    window = round(pixels**0.5)
    x = x.reshape(n, h // window, w // window, window, window, channels)
    return x.transpose(2, 3).reshape(n, h, w, channels)


def _offsets(window: int) -> Tensor:
    """For each two pixels of a window, the row of the bias table that belongs to the offset between them."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down = row.flatten()[:, None] - row.flatten()[None, :] + window - 1
    right = column.flatten()[:, None] - column.flatten()[None, :] + window - 1
    return down * (2 * window - 1) + right


def _apart(h: int, w: int, window: int, shifts: tuple[int, ...], device: torch.device) -> Tensor:
    """True where two pixels of a window were not neighbours before the image was rolled."""
    rows = torch.arange(h, device=device) >= h - shifts[0]
    columns = torch.arange(w, device=device) >= w - shifts[1]
    regions = 2 * rows[:, None].int() + columns[None, :].int()
    regions = to_windows(regions[None, :, :, None], window)[0, :, :, 0]
    return regions[:, :, None] != regions[:, None, :]
