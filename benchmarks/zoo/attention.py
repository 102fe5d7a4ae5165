"""Attention and transformers as people write them by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.subject import Subject, floats, keywords, positional, subject, tokens


class TimmAttention(nn.Module):
    """The attention of timm's vision transformer; the three parts come out by `unbind`, or by indexing."""

    def __init__(self, dim: int, heads: int, unbind: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (dim // heads) ** -0.5
        self.unbind = unbind
        self.qkv = nn.Linear(dim, dim * 3, bias=unbind)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if self.unbind else (qkv[0], qkv[1], qkv[2])
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, C))


class TimmVit(nn.Module):
    """A vision transformer with a class token and learned positions."""

    def __init__(self, unbind: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 48, 8, stride=8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 48))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 48))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(48),
                    "attention": TimmAttention(48, 4, unbind),
                    "norm2": nn.LayerNorm(48),
                    "mlp": nn.Sequential(nn.Linear(48, width), nn.GELU(), nn.Linear(width, 48)),
                }
            )
            for width in (80, 68)
        )
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["attention"](block["norm1"](x))
            x = x + block["mlp"](block["norm2"](x))
        return self.head(self.norm(x)[:, 0])


class NanoGpt(nn.Module):
    """nanoGPT: `c_attn(x).split(n_embd, dim=2)`, a causal mask in a buffer or in the kernel, tied embeddings."""

    bias: Tensor

    def __init__(self, flash: bool = True) -> None:
        super().__init__()
        self.n_embd, self.n_head, self.flash = 48, 4, flash
        self.wte = nn.Embedding(97, 48)
        self.wpe = nn.Embedding(40, 48)
        self.ln_1, self.ln_2, self.ln_f = nn.LayerNorm(48), nn.LayerNorm(48), nn.LayerNorm(48)
        self.c_attn = nn.Linear(48, 3 * 48)
        self.c_proj = nn.Linear(48, 48)
        self.c_fc = nn.Linear(48, 80)
        self.mlp_proj = nn.Linear(80, 48)
        self.lm_head = nn.Linear(48, 97, bias=False)
        self.lm_head.weight = self.wte.weight
        self.register_buffer("bias", torch.tril(torch.ones(40, 40)).view(1, 1, 40, 40))

    def attend(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))
        x = x + self.attend(self.ln_1(x))
        x = x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))
        return self.lm_head(self.ln_f(x)[:, [-1], :])


class EinsumAttention(nn.Module):
    """Separate projections and `einsum`, with a head size of its own; a mask comes as the second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.to_q = nn.Linear(40, 36, bias=False)
        self.to_k = nn.Linear(40, 36, bias=False)
        self.to_v = nn.Linear(40, 30, bias=False)
        self.to_out = nn.Linear(30, 40)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, -1) for layer in (self.to_q, self.to_k, self.to_v))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        out = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(b, n, -1)
        return self.head(x + self.to_out(out))


class EinsumWeights(nn.Module):
    """Projections that are four-dimensional parameters: (model, heads, head size), as in JAX."""

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Parameter(torch.randn(40, 3, 12))
        self.wk = nn.Parameter(torch.randn(40, 3, 12))
        self.wv = nn.Parameter(torch.randn(40, 3, 10))
        self.wo = nn.Parameter(torch.randn(3, 10, 40))
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("btm,mhd->bhtd", x, self.wq)
        k = torch.einsum("btm,mhd->bhtd", x, self.wk)
        v = torch.einsum("btm,mhd->bhtd", x, self.wv)
        weights = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) * 12**-0.5, -1)
        x = x + torch.einsum("bhqk,bhkd,hdm->bqm", weights, v, self.wo)
        return self.head(x)


def rotate_half_slices(x: Tensor) -> Tensor:
    """Turns the second half to the front, negated, by slices."""
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)


def rotate_half_chunk(x: Tensor) -> Tensor:
    """Turns the second half to the front, negated, by `chunk`."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_interleaved(x: Tensor) -> Tensor:
    """Turns each pair of neighbours."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def repeat_interleave(x: Tensor, repeats: int) -> Tensor:
    """Repeats key or value heads by `repeat_interleave`."""
    return x.repeat_interleave(repeats, dim=1)


def repeat_expand(x: Tensor, repeats: int) -> Tensor:
    """Repeats key or value heads by `expand` and `reshape`."""
    b, heads, n, size = x.shape
    return x[:, :, None, :, :].expand(b, heads, repeats, n, size).reshape(b, heads * repeats, n, size)


class Llama(nn.Module):
    """A Llama block: grouped-query attention, rotary positions, hand-written RMSNorm, a gated network."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        rotate: Callable[[Tensor], Tensor] = rotate_half_slices,
        repeat: Callable[[Tensor, int], Tensor] | None = repeat_expand,
        kv_heads: int = 2,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = 6, kv_heads, 12
        self.rotate, self.repeat, self.fused = rotate, repeat, fused
        self.embed = nn.Embedding(97, 48)
        self.norm1 = nn.Parameter(torch.ones(48))
        self.norm2 = nn.Parameter(torch.ones(48))
        self.wq = nn.Linear(48, 6 * 12, bias=False)
        self.wk = nn.Linear(48, kv_heads * 12, bias=False)
        self.wv = nn.Linear(48, kv_heads * 12, bias=False)
        self.wo = nn.Linear(6 * 12, 48, bias=False)
        if fused:
            self.gate_up = nn.Linear(48, 2 * 80, bias=False)
        else:
            self.w1 = nn.Linear(48, 80, bias=False)
            self.w3 = nn.Linear(48, 80, bias=False)
        self.w2 = nn.Linear(80, 48, bias=False)
        self.norm = nn.RMSNorm(48)
        self.output = nn.Linear(48, 97, bias=False)
        angles = torch.outer(torch.arange(40.0), 100.0 ** (-torch.arange(0, 12, 2) / 12))
        angles = angles.repeat_interleave(2, -1) if rotate is rotate_interleaved else torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    def attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.wq(x).view(b, n, self.n_heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(b, n, self.n_kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(b, n, self.n_kv_heads, self.head_dim).transpose(1, 2)
        cos, sin = self.cos[:n], self.sin[:n]
        q = q * cos + self.rotate(q) * sin
        k = k * cos + self.rotate(k) * sin
        if self.repeat is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = (self.repeat(t, self.n_heads // self.n_kv_heads) for t in (k, v))
            scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.head_dim)
            scores = scores + torch.full((n, n), float("-inf")).triu(1)
            out = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(q), v)
        return self.wo(out.transpose(1, 2).contiguous().view(b, n, -1))

    def feed_forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1) if self.fused else (self.w1(x), self.w3(x))
        return self.w2(F.silu(gate) * up)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        h = h + self.attend(self.rms_norm(h, self.norm1))
        h = h + self.feed_forward(self.rms_norm(h, self.norm2))
        return self.output(self.norm(h))


class ComplexRotary(nn.Module):
    """Rotary positions as complex numbers, the way Meta's Llama has them."""

    freqs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.wqkv = nn.Linear(40, 3 * 36, bias=False)
        self.wo = nn.Linear(36, 40, bias=False)
        angles = torch.outer(torch.arange(40.0), 100.0 ** (-torch.arange(0, 12, 2) / 12))
        self.register_buffer("freqs", torch.polar(torch.ones_like(angles), angles))

    def rotate(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.freqs[: x.shape[1], None]).flatten(3).type_as(x)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (part.view(b, n, 3, 12) for part in self.wqkv(x).split([36, 36, 36], dim=-1))
        q, k = self.rotate(q), self.rotate(k)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.wo(out.transpose(1, 2).reshape(b, n, 36))


class TorchAttention(nn.Module):
    """`nn.MultiheadAttention` between linear layers."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.inputs = nn.Linear(20, 48)
        self.attention = nn.MultiheadAttention(48, 4, batch_first=batch_first)
        self.norm = nn.LayerNorm(48)
        self.fc1 = nn.Linear(48, 72)
        self.fc2 = nn.Linear(72, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inputs(x)
        y, weights = self.attention(x, x, x)
        return self.fc2(F.relu(self.fc1(self.norm(x + y)))), weights


class CrossAttention(nn.Module):
    """`nn.MultiheadAttention` whose keys and values have sizes of their own, and extra biases."""

    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Linear(9, 28)
        self.value = nn.Linear(9, 20)
        self.attention = nn.MultiheadAttention(36, 3, kdim=28, vdim=20, batch_first=True, add_bias_kv=True)
        self.out = nn.Linear(36, 10)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y, _ = self.attention(x, F.relu(self.key(context)), self.value(context), need_weights=False)
        return self.out(x + y)


class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder` over words, with a padding mask, mean over the words that are there."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 48, padding_idx=0)
        layer = nn.TransformerEncoderLayer(48, 4, 80, activation="gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(48, 10)

    def forward(self, words: Tensor) -> Tensor:
        padding = words < 20
        x = self.encoder(self.embed(words), src_key_padding_mask=padding)
        keep = (~padding).unsqueeze(-1).to(x.dtype)
        return self.fc((x * keep).sum(1) / keep.sum(1).clamp(min=1))


class TorchSeq2Seq(nn.Module):
    """`nn.Transformer` with sinusoidal positions, the sequence first."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(97, 48)
        self.target = nn.Embedding(83, 48)
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(48, 4, 72), 2, enable_nested_tensor=False)
        self.transformer = nn.Transformer(48, 4, 2, 2, 80, custom_encoder=encoder)
        self.generator = nn.Linear(48, 83)
        positions = torch.arange(40.0)[:, None] * torch.exp(torch.arange(0, 48, 2) * (-math.log(100.0) / 48))
        self.register_buffer("positions", torch.cat((positions.sin(), positions.cos()), 1)[:, None])

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        source = self.source(src) * math.sqrt(48) + self.positions[: src.size(0)]
        target = self.target(tgt) * math.sqrt(48) + self.positions[: tgt.size(0)]
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(0))
        return self.generator(self.transformer(source, target, tgt_mask=mask))


class WindowAttention(nn.Module):
    """Swin: windows of 4x4, shifted by `torch.roll`, with a table of relative positions; then patches are merged."""

    index: Tensor

    def __init__(self, shift: int = 2) -> None:
        super().__init__()
        self.shift, self.heads = shift, 3
        self.embed = nn.Conv2d(3, 30, 2, stride=2)
        self.norm = nn.LayerNorm(30)
        self.qkv = nn.Linear(30, 90)
        self.proj = nn.Linear(30, 30)
        self.table = nn.Parameter(torch.zeros(49, 3))
        self.reduction = nn.Linear(120, 52, bias=False)
        self.head = nn.Linear(52, 10)
        at = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + 3
        self.register_buffer("index", offset[0] * 7 + offset[1])

    def attend(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = y.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
        y = self.attend(y).view(b, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, c)
        x = x + torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.reduction(x).mean((1, 2)))


class Head(nn.Module):
    """One head, with three projections of its own."""

    mask: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.key = nn.Linear(dim, size, bias=False)
        self.query = nn.Linear(dim, size, bias=False)
        self.value = nn.Linear(dim, size, bias=False)
        self.register_buffer("mask", torch.tril(torch.ones(40, 40)))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        weights = self.query(x) @ self.key(x).transpose(-2, -1) * self.key.out_features**-0.5
        weights = weights.masked_fill(self.mask[:n, :n] == 0, float("-inf"))
        return F.softmax(weights, dim=-1) @ self.value(x)


class HeadModules(nn.Module):
    """Karpathy's lecture: `torch.cat([head(x) for head in self.heads], dim=-1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 40)
        self.heads = nn.ModuleList(Head(40, 12) for _ in range(3))
        self.proj = nn.Linear(36, 40)
        self.out = nn.Linear(40, 97)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        x = x + self.proj(torch.cat([head(x) for head in self.heads], dim=-1))
        return self.out(x)


class HeadSlices(nn.Module):
    """One projection, from which a Python loop cuts each head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size = 3, 12
        self.q = nn.Linear(40, 36)
        self.k = nn.Linear(40, 36)
        self.v = nn.Linear(40, 36)
        self.out = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        outputs = []
        for i in range(self.heads):
            cut = slice(i * self.size, (i + 1) * self.size)
            weights = torch.softmax(q[..., cut] @ k[..., cut].mT / self.size**0.5, dim=-1)
            outputs.append(weights @ v[..., cut])
        return self.out(torch.cat(outputs, dim=-1))


class SelfAttentionGan(nn.Module):
    """Attention between pixels by 1x1 convolutions and `bmm`, with a gate that begins at zero (arXiv:1805.08318)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.query = nn.Conv2d(24, 5, 1)
        self.key = nn.Conv2d(24, 5, 1)
        self.value = nn.Conv2d(24, 24, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        b, c, h, w = x.size()
        query = self.query(x).view(b, -1, h * w).permute(0, 2, 1)
        attention = torch.bmm(query, self.key(x).view(b, -1, h * w)).softmax(dim=-1)
        out = torch.bmm(self.value(x).view(b, -1, h * w), attention.permute(0, 2, 1)).view(b, c, h, w)
        return self.fc((self.gamma * out + x).mean((2, 3)))


class LinearAttention(nn.Module):
    """No softmax over scores: keys and values are multiplied first (arXiv:2006.16236)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv1d(20, 3 * 36, 1, bias=False)
        self.out = nn.Conv1d(36, 20, 1)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, _, n = x.shape
        q, k, v = (part.reshape(b, 3, 12, n) for part in self.qkv(x).chunk(3, dim=1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        scale = 1 / torch.einsum("bhdn,bhd->bhn", q, k.sum(-1))
        out = torch.einsum("bhde,bhdn,bhn->bhen", context, q, scale).reshape(b, -1, n)
        return self.head((x + self.out(out)).mean(2))


class Perceiver(nn.Module):
    """Learned queries look at the inputs, then at themselves (arXiv:2103.03206)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(5, 40))
        self.inputs = nn.Linear(14, 28)
        self.norm = nn.LayerNorm(28)
        self.to_q = nn.Linear(40, 36, bias=False)
        self.to_kv = nn.Linear(28, 72, bias=False)
        self.to_out = nn.Linear(36, 40)
        self.mlp = nn.Sequential(nn.LayerNorm(40), nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 40))
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
        q = self.to_q(latents).unflatten(-1, (3, 12)).transpose(1, 2)
        k, v = self.to_kv(self.norm(self.inputs(x))).chunk(2, dim=-1)
        k, v = (t.unflatten(-1, (3, 12)).transpose(1, 2) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        latents = latents + self.to_out(out)
        latents = latents + self.mlp(latents)
        return self.head(latents.mean(dim=1))


class Detr(nn.Module):
    """A convolutional backbone, an encoder and decoder of `torch.nn`, object queries; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 20, 3, 4, 1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 28, 3, 2, 1), nn.ReLU()
        )
        self.project = nn.Conv2d(28, 36, 1)
        self.row = nn.Parameter(torch.rand(8, 18))
        self.column = nn.Parameter(torch.rand(8, 18))
        self.queries = nn.Parameter(torch.rand(6, 36))
        layer = nn.TransformerDecoderLayer(36, 3, 60, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(36, 3, 72, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(36))
        self.classes = nn.Linear(36, 7)
        self.boxes = nn.Sequential(nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.project(self.backbone(images))
        b, _, h, w = x.shape
        row, column = self.row[:h].unsqueeze(1).repeat(1, w, 1), self.column[:w].unsqueeze(0).repeat(h, 1, 1)
        positions = torch.cat([column, row], dim=-1).flatten(0, 1).unsqueeze(0)
        memory = self.encoder(positions + x.flatten(2).permute(0, 2, 1))
        out = self.decoder(self.queries.unsqueeze(0).expand(b, -1, -1), memory)
        return {"logits": self.classes(out), "boxes": self.boxes(out).sigmoid()}


class KeyValueCache(nn.Module):
    """Reads one word after another: keys and values of earlier words are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(97, 40)
        self.q, self.k, self.v = nn.Linear(40, 36), nn.Linear(40, 36), nn.Linear(40, 36)
        self.o = nn.Linear(36, 40)
        self.out = nn.Linear(40, 97)

    def forward(self, words: Tensor) -> Tensor:
        keys: Tensor | None = None
        values: Tensor | None = None
        outputs = []
        for step in range(words.shape[1]):
            x = self.embed(words[:, step : step + 1])
            k = self.k(x).view(-1, 1, 3, 12).transpose(1, 2)
            v = self.v(x).view(-1, 1, 3, 12).transpose(1, 2)
            keys = k if keys is None else torch.cat((keys, k), dim=2)
            values = v if values is None else torch.cat((values, v), dim=2)
            q = self.q(x).view(-1, 1, 3, 12).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, keys, values).transpose(1, 2).reshape(-1, 1, 36)
            outputs.append(self.out(x + self.o(y)))
        return torch.cat(outputs, dim=1)


class AdaLayerNorm(nn.Module):
    """A diffusion transformer's block: six modulations from a condition (arXiv:2212.09748)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(36, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(36, elementwise_affine=False)
        self.attention = TimmAttention(36, 3, unbind=True)
        self.mlp = nn.Sequential(nn.Linear(36, 60), nn.SiLU(), nn.Linear(60, 36))
        self.condition = nn.Sequential(nn.Linear(9, 24), nn.SiLU(), nn.Linear(24, 6 * 36))
        self.out = nn.Linear(36, 10)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.condition(t).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return self.out(x)


class ParallelBlock(nn.Module):
    """GPT-J and PaLM: one projection makes queries, one key, one value and the gated network; one brings all back."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (36, 12, 12, 56, 56)
        self.embed = nn.Embedding(97, 40)
        self.norm = nn.LayerNorm(40, bias=False)
        self.fused = nn.Linear(40, sum(self.sizes), bias=False)
        self.back = nn.Linear(36 + 56, 40, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        q, k, v, gate, up = self.fused(self.norm(x)).split(self.sizes, dim=-1)
        q = q.view(*q.shape[:2], 3, 12).transpose(1, 2)
        scores = torch.einsum("bhid,bjd->bhij", q, k) * 12**-0.5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        out = torch.einsum("bhij,bjd->bhid", scores.softmax(-1), v).transpose(1, 2).flatten(2)
        x = x + self.back(torch.cat((out, F.silu(gate) * up), -1))
        return x @ self.embed.weight.T


class QkNormAttention(nn.Module):
    """Queries and keys are normalised in each head, cosine similarity with a learned temperature for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(40, 36), nn.Linear(40, 72)
        self.norm_q, self.norm_k = nn.RMSNorm(12), nn.RMSNorm(12)
        self.temperature = nn.Parameter(torch.ones(3, 1, 1))
        self.out = nn.Linear(36, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.norm_q(self.q(x).reshape(b, n, 3, 12)).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, 3, 12).permute(2, 0, 3, 1, 4)
        q, k = F.normalize(q, dim=-1), F.normalize(self.norm_k(k), dim=-1)
        out = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        return self.out(out.transpose(1, 2).flatten(2))


class TalkingHeads(nn.Module):
    """Heads are mixed before and after the softmax (arXiv:2003.02436)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(40, 3 * 48)
        self.before = nn.Linear(4, 4)
        self.after = nn.Linear(4, 4)
        self.out = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 12).permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.transpose(-2, -1) / 12**0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.after(scores.softmax(dim=-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((weights @ v).transpose(1, 2).reshape(b, n, 48))


SEQUENCE = floats(2, 7, 40)
WORDS = tokens(2, 7)

ATTENTION: list[Subject] = [
    subject("timm_vit", "attention", TimmVit, floats(2, 3, 32, 32)),
    subject("timm_vit_indexed", "attention", lambda: TimmVit(unbind=False), floats(2, 3, 32, 32)),
    subject("nano_gpt", "attention", NanoGpt, WORDS),
    subject("nano_gpt_masked", "attention", lambda: NanoGpt(flash=False), WORDS),
    subject("einsum_attention", "attention", EinsumAttention, keywords(x=SEQUENCE, mask=lambda: torch.arange(7)[None] < 5)),
    subject("einsum_weights", "attention", EinsumWeights, SEQUENCE),
    subject("llama_expand", "attention", Llama, WORDS),
    subject("llama_chunk_interleave", "attention", lambda: Llama(rotate_half_chunk, repeat_interleave, fused=True), WORDS),
    subject("llama_enable_gqa", "attention", lambda: Llama(rotate_interleaved, None), WORDS),
    subject("llama_multi_query", "attention", lambda: Llama(kv_heads=1, fused=True), WORDS),
    subject("llama_multi_head", "attention", lambda: Llama(kv_heads=6), WORDS),
    subject("complex_rotary", "attention", ComplexRotary, SEQUENCE),
    subject("torch_attention", "attention", lambda: TorchAttention(True), floats(2, 7, 20)),
    subject("torch_attention_sequence_first", "attention", lambda: TorchAttention(False), floats(7, 2, 20)),
    subject("cross_attention", "attention", CrossAttention, positional(floats(2, 7, 36), floats(2, 5, 9))),
    subject("torch_encoder", "attention", TorchEncoder, WORDS),
    subject("torch_encoder_norm_first", "attention", lambda: TorchEncoder(True), WORDS),
    subject("torch_seq2seq", "attention", TorchSeq2Seq, keywords(src=tokens(7, 2), tgt=tokens(5, 2, vocabulary=83))),
    subject("window_attention", "attention", WindowAttention, floats(2, 3, 16, 16)),
    subject("head_modules", "attention", HeadModules, WORDS),
    subject("head_slices", "attention", HeadSlices, SEQUENCE),
    subject("self_attention_gan", "attention", SelfAttentionGan, floats(2, 3, 8, 8)),
    subject("linear_attention", "attention", LinearAttention, floats(2, 20, 7)),
    subject("perceiver", "attention", Perceiver, floats(2, 9, 14)),
    subject("detr", "attention", Detr, floats(2, 3, 32, 32)),
    subject("key_value_cache", "attention", KeyValueCache, WORDS),
    subject("ada_layer_norm", "attention", AdaLayerNorm, positional(floats(2, 7, 36), floats(2, 9))),
    subject("parallel_block", "attention", ParallelBlock, WORDS),
    subject("qk_norm_attention", "attention", QkNormAttention, SEQUENCE),
    subject("talking_heads", "attention", TalkingHeads, SEQUENCE),
]
