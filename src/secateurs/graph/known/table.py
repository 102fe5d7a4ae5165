"""One table: ATen operation → what is known of its results from what is known of its operands. Without a rule, nothing is."""

from __future__ import annotations

import torch

from secateurs.graph.known.knowing import Rule
from secateurs.graph.known.pointwise import (
    bounded,
    chosen,
    extreme,
    filled,
    identity,
    overwritten,
    plus_product,
    pointwise,
    positive,
    product,
    quotient,
    rectified,
    total,
)
from secateurs.graph.known.products import convolution, dot, linear, mm, mv
from secateurs.graph.known.shapes import (
    cat,
    diag_embed,
    embedding,
    expand,
    glu,
    index_select,
    looked_up,
    moved,
    pad,
    permute,
    pieces,
    repeat,
    scattered,
    select,
    slice_,
    squeeze,
    stack,
    transpose,
    unbind,
    unsqueeze,
    view,
    windows,
)
from secateurs.graph.known.space import (
    batch_norm,
    cumulative,
    group_norm,
    layer_norm,
    max_pool,
    mean_pool,
    reduction,
    shuffled,
    softmax,
    spread,
    weight_norm,
    zeros,
)
from secateurs.graph.ops import Op

Names = dict[str, Rule]


def _rows(rule: Rule, names: str) -> Names:
    return dict.fromkeys(names.split(), rule)


KNOWN: Names = {
    **_rows(identity, "clone detach alias contiguous lift lift_fresh lift_fresh_copy _to_copy dropout positive resolve_conj "
            "resolve_neg data"),
    **_rows(filled(0.0), "zeros zeros_like new_zeros zero"),
    **_rows(filled(1.0), "ones ones_like new_ones"),
    **_rows(filled(None), "full full_like new_full fill scalar_tensor"),
    **_rows(overwritten, "copy"),
    **_rows(product, "mul"),
    **_rows(quotient, "div"),
    **_rows(total, "add sub rsub"),
    **_rows(plus_product, "addcmul"),
    **_rows(chosen, "where masked_fill"),
    **_rows(rectified, "relu abs"),
    **_rows(positive, "sigmoid exp exp2 square softplus hardsigmoid special_expit"),
    **_rows(bounded, "clamp clamp_min hardtanh"),
    **_rows(extreme, "maximum minimum fmax fmin"),
    **_rows(view, "view _unsafe_view reshape _reshape_alias flatten unflatten _reshape_copy view_copy ravel"),
    **_rows(permute, "permute"),
    **_rows(transpose, "transpose t swapaxes numpy_T"),
    **_rows(squeeze, "squeeze"),
    **_rows(unsqueeze, "unsqueeze"),
    **_rows(expand, "expand broadcast_to expand_copy"),
    **_rows(repeat, "repeat"),
    **_rows(cat, "cat concat"),
    **_rows(stack, "stack"),
    **_rows(pieces, "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split split_copy "
            "split_with_sizes_copy"),
    **_rows(slice_, "slice"),
    **_rows(select, "select"),
    **_rows(unbind, "unbind"),
    **_rows(pad, "constant_pad_nd"),
    **_rows(scattered, "slice_scatter select_scatter"),
    **_rows(moved("dims"), "flip roll"),
    **_rows(diag_embed, "diag_embed"),
    **_rows(glu, "glu"),
    **_rows(windows, "unfold"),
    **_rows(looked_up, "index"),
    **_rows(index_select, "index_select"),
    **_rows(embedding, "embedding"),
    **_rows(mm, "mm addmm bmm baddbmm"),
    **_rows(mv, "mv addmv"),
    **_rows(dot, "dot vdot"),
    **_rows(linear, "linear"),
    **_rows(convolution, "convolution _convolution convolution_overrideable"),
    **_rows(reduction("sum"), "sum nansum linalg_vector_norm norm any all count_nonzero var std var_mean std_mean prod logsumexp"),
    **_rows(reduction("mean"), "mean amax amin"),
    **_rows(softmax, "_softmax softmax _safe_softmax _log_softmax log_softmax"),
    **_rows(cumulative, "cumsum"),
    **_rows(batch_norm, "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm "
            "_batch_norm_no_update batch_norm _batch_norm_with_update miopen_batch_norm"),
    **_rows(layer_norm, "native_layer_norm layer_norm _fused_rms_norm rms_norm"),
    **_rows(group_norm, "native_group_norm"),
    **_rows(weight_norm, "_weight_norm_interface _weight_norm"),
    **_rows(max_pool, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_pool2d max_pool3d "
            "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d"),
    **_rows(mean_pool, "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d "
            "adaptive_avg_pool2d"),
    **_rows(spread, "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
            "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d reflection_pad1d reflection_pad2d "
            "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"),
    **_rows(zeros, "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d max_unpool2d"),
    **_rows(shuffled, "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col col2im"),
}  # fmt: skip
"""ATen operation → its rule; those that ATen tags as pointwise, and draw no random numbers, need no line."""


def rule_of(op: Op) -> Rule | None:
    """The rule of an operation, or none: then nothing is known of what it gives."""
    if op.name in KNOWN:
        return KNOWN[op.name]
    drawn = torch.Tag.nondeterministic_seeded in op.func.tags
    return pointwise if torch.Tag.pointwise in op.func.tags and not drawn and len(op.outputs) == 1 and op.inputs else None
