"""Vision transformer: an image is a sentence of patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from secateurs.models.truncated_normal import truncated_normal_


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys and values from one linear layer.

    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2. Input and output ``(n, tokens, width)``. ``ValueError`` where
    ``heads`` does not divide ``width``.

    >>> tuple(Attention(8, heads=2)(torch.zeros(1, 5, 8)).shape)
    (1, 5, 8)
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"attention: width {width} is not a multiple of heads {heads}")
        self.num_heads = heads
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (n, heads, tokens, head_dim)
        y = scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, tokens, self.num_heads * self.head_dim))


class Mlp(nn.Module):
    """Two linear layers with GELU between them. Input and output ``(..., width)``.

    >>> tuple(Mlp(8, hidden=32)(torch.zeros(1, 5, 8)).shape)
    (1, 5, 8)
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """`Attention` and `Mlp`, each with layer normalisation before it and a shortcut around. Input and output ``(n, tokens, width)``.

    Dosovitskiy et al. 2020, arXiv:2010.11929, equations 2 and 3.

    >>> tuple(EncoderBlock(8, heads=2)(torch.zeros(1, 5, 8)).shape)
    (1, 5, 8)
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token and positions go through ``depth`` blocks; a linear layer reads what became of the class token.

    >>> model = VisionTransformer(5, 3, width=8, depth=1, heads=2, patch=4, image=8)
    >>> tuple(model(torch.zeros(2, 3, 8, 8)).shape)
    (2, 5)
    """

    def __init__(self, classes: int, in_channels: int, width: int, depth: int, heads: int, patch: int, image: int) -> None:
        super().__init__()
        if image % patch:
            raise ValueError(f"vit: an image of {image} pixels does not fall into patches of {patch}")
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (image // patch) ** 2, width).normal_(std=0.02))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        truncated_normal_(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


def vit(
    classes: int = 1000,
    in_channels: int = 3,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    patch: int = 16,
    image: int = 224,
) -> VisionTransformer:
    """Twelve transformer blocks on patches of 16x16 pixels: "ViT-B/16", unless other sizes are given.

    Dosovitskiy et al. 2020, arXiv:2010.11929, table 1. Input ``(n, in_channels, image, image)``, output ``(n, classes)``;
    86,567,656 parameters with 1000 classes and 3 channels. ``ValueError`` where ``patch`` does not divide ``image`` or ``heads``
    does not divide ``width``.

    >>> with torch.device("meta"):
    ...     model = vit()
    >>> sum(p.numel() for p in model.parameters())
    86567656
    """
    return VisionTransformer(classes, in_channels, width, depth, heads, patch, image)
