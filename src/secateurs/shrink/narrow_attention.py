"""Multi-head attention whose heads together may be narrower than the model: what torch's own cannot do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function_variadic


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The arguments and results of `torch.nn.functional.multi_head_attention_forward`; widths come from the projections' weights.

    ``scale`` is what the products of queries and keys are multiplied with, by default the root of one over the heads' width.
    """
    given = dict(locals())
    if has_torch_function_variadic(query, key, value):  # seen as one call by whoever watches, as torch's own is
        return handle_torch_function(attend, (query, key, value), **given)
    batched = query.ndim == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    separate = use_separate_proj_weight
    packed = None if separate or in_proj_weight is None else in_proj_weight.chunk(3)
    weights = packed or (q_proj_weight, k_proj_weight, v_proj_weight)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        functional.linear(x, w, b)  # type: ignore[arg-type]
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([x, bias.expand(1, x.shape[1], -1)]) for x, bias in ((k, bias_k), (v, bias_v)))
    if add_zero_attn:
        k, v = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (k, v))
    q, k, v = (x.reshape(x.shape[0], x.shape[1], num_heads, -1).permute(1, 2, 0, 3) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal and not need_weights and key_padding_mask is None:  # then torch looks at no mask
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    scores = _masked(scores, attn_mask, key_padding_mask)
    attention = functional.dropout(scores.softmax(-1), dropout_p if training else 0.0)
    out = (attention @ v).permute(2, 0, 1, 3).flatten(2)
    out = functional.linear(out, out_proj_weight, out_proj_bias)
    told: Any = (attention.mean(1) if average_attn_weights else attention) if need_weights else None
    if batched:
        return out, told
    return out.squeeze(1), None if told is None else told.squeeze(0)


def _masked(scores: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor:
    """Scores with both masks added; positions that `bias_k` or a zero appended are never masked."""
    batch, heads, _, keys = scores.shape
    if attn_mask is not None:
        mask = attn_mask.view(batch, heads, *attn_mask.shape[1:]) if attn_mask.ndim == 3 else attn_mask
        scores = scores + functional.pad(_additive(mask, scores), (0, keys - mask.shape[-1]))
    if key_padding_mask is not None:
        mask = key_padding_mask[:, None, None]
        scores = scores + functional.pad(_additive(mask, scores), (0, keys - mask.shape[-1]))
    return scores


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(scores.dtype)
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -torch.inf)
