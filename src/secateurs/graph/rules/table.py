"""One table: ATen operation → what it says of the dimensions of its operands. No rule knows a model."""

from __future__ import annotations

import torch

from secateurs.graph.ops import Op
from secateurs.graph.rules.lookups import (
    counted,
    embedding,
    embedding_bag,
    ending,
    gather,
    index,
    index_put,
    index_select,
    into,
    masked_scatter,
    ordered,
    transformed,
    unknown,
)
from secateurs.graph.rules.pointwise import factory, fake_quantised, identity, indexed_factory, pointwise, pointwise_with_notes
from secateurs.graph.rules.products import bilinear, bmm, cdist, convolution, dot, grouped_mm, linear, mm, mv, outer
from secateurs.graph.rules.reductions import along, batch_norm, group_norm, layer_norm, loss, reduction, renorm, weight_norm
from secateurs.graph.rules.shapes import (
    as_complex,
    as_real,
    as_strided,
    cat,
    diag_embed,
    diagonal,
    diagonal_scatter,
    expand,
    glu,
    pad,
    permute,
    pieces,
    repeat,
    repeat_interleave,
    select,
    select_scatter,
    slice_,
    slice_scatter,
    squeeze,
    stack,
    transpose,
    unbind,
    unsqueeze,
    view,
)
from secateurs.graph.rules.space import (
    affine_grid,
    channel_shuffle,
    col2im,
    im2col,
    pixel_shuffle,
    pixel_unshuffle,
    spatial,
    unfold,
)
from secateurs.graph.typing_context import Rule

Names = dict[str, Rule]


def _rows(rule: Rule, names: str) -> Names:
    return dict.fromkeys(names.split(), rule)


RULES: Names = {
    **_rows(identity, "clone detach alias contiguous lift lift_fresh lift_fresh_copy _to_copy dropout zeros_like ones_like "
            "empty_like full_like fill zero positive _conj resolve_conj resolve_neg _neg_view data "
            "new_empty_strided_like special_expit"),
    **_rows(factory, "zeros ones full empty new_zeros new_ones new_full new_empty empty_strided new_empty_strided scalar_tensor rand randn "
            "randint"),
    **_rows(indexed_factory, "arange linspace logspace eye randperm range tril_indices triu_indices hann_window multinomial"),
    **_rows(identity, "rand_like randn_like randint_like normal_functional uniform random exponential cauchy log_normal geometric"),
    **_rows(pointwise, "bernoulli normal poisson binomial"),
    **_rows(pointwise_with_notes, "rrelu_with_noise_functional"),
    **_rows(fake_quantised, "fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask "
            "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams fake_quantize_per_channel_affine "
            "fake_quantize_per_channel_affine_cachemask _fake_quantize_learnable_per_tensor_affine "
            "_fake_quantize_learnable_per_channel_affine _fused_moving_avg_obs_fq_helper_functional"),
    **_rows(pointwise, "copy where masked_fill lerp addcmul addcdiv bitwise_and bitwise_or logical_and logical_or "
            "logical_not isin bucketize nan_to_num complex polar view_as_real_like clamp clamp_min clamp_max expand_as rsub prelu "
            "_prelu_kernel rrelu_with_noise celu heaviside fmod remainder gelu silu mish hardswish hardsigmoid hardtanh leaky_relu elu "
            "softplus floor_divide softshrink threshold"),
    **_rows(pointwise_with_notes, "log_sigmoid_forward native_dropout"),
    **_rows(view, "view _unsafe_view reshape _reshape_alias flatten unflatten _reshape_copy view_copy ravel"),
    **_rows(permute, "permute"),
    **_rows(transpose, "transpose t swapaxes numpy_T"),
    **_rows(squeeze, "squeeze"),
    **_rows(unsqueeze, "unsqueeze"),
    **_rows(expand, "expand broadcast_to expand_copy"),
    **_rows(repeat, "repeat"),
    **_rows(repeat_interleave, "repeat_interleave"),
    **_rows(cat, "cat concat"),
    **_rows(stack, "stack"),
    **_rows(pieces, "split split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split split_copy "
            "split_with_sizes_copy"),
    **_rows(slice_, "slice"),
    **_rows(slice_scatter, "slice_scatter"),
    **_rows(select, "select"),
    **_rows(select_scatter, "select_scatter"),
    **_rows(unbind, "unbind"),
    **_rows(pad, "constant_pad_nd"),
    **_rows(ordered("dims"), "flip roll rot90"),
    **_rows(ordered("dim"), "topk sort argsort linalg_cross"),
    **_rows(along("order"), "cumsum cumprod cummax cummin logcumsumexp"),
    **_rows(index, "index _unsafe_index"),
    **_rows(index_put, "index_put _unsafe_index_put"),
    **_rows(index_select, "index_select"),
    **_rows(into(3), "index_add index_copy index_fill scatter scatter_add "
            "scatter_reduce index_reduce"),
    **_rows(gather, "gather"),
    **_rows(masked_scatter, "masked_scatter"),
    **_rows(counted, "nonzero nonzero_static masked_select take put bincount histc searchsorted unique_dim unique_consecutive _unique2 "
            "nll_loss_forward nll_loss2d_forward _ctc_loss multi_margin_loss multilabel_margin_loss_forward"),
    **_rows(transformed, "_fft_r2c _fft_c2r _fft_c2c"),
    **_rows(embedding, "embedding"),
    **_rows(embedding_bag, "_embedding_bag embedding_bag _embedding_bag_forward_only"),
    **_rows(mm, "mm addmm _int_mm"),
    **_rows(bmm, "bmm baddbmm addbmm"),
    **_rows(mv, "mv addmv"),
    **_rows(dot, "dot vdot"),
    **_rows(linear, "linear"),
    **_rows(convolution, "convolution _convolution convolution_overrideable"),
    **_rows(bilinear, "_trilinear"),
    **_rows(cdist, "_cdist_forward _euclidean_dist cdist"),
    **_rows(reduction("sum"), "sum any all nansum linalg_vector_norm norm count_nonzero linalg__powsum"),
    **_rows(reduction("mean"), "mean var std var_mean std_mean amax amin max min aminmax _aminmax logsumexp prod median nanmedian"),
    **_rows(reduction("order"), "argmax argmin kthvalue mode"),
    **_rows(along("softmax"), "_softmax _log_softmax softmax log_softmax _safe_softmax"),
    **_rows(batch_norm, "native_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit cudnn_batch_norm "
            "_native_batch_norm_legit_functional _batch_norm_no_update batch_norm _batch_norm_with_update "
            "_batch_norm_with_update_functional miopen_batch_norm"),
    **_rows(loss, "mse_loss binary_cross_entropy binary_cross_entropy_with_logits smooth_l1_loss huber_loss soft_margin_loss"),
    **_rows(renorm, "renorm"),
    **_rows(outer, "addr"),
    **_rows(layer_norm, "native_layer_norm layer_norm _fused_rms_norm rms_norm"),
    **_rows(group_norm, "native_group_norm"),
    **_rows(weight_norm, "_weight_norm_interface _weight_norm"),
    **_rows(spatial, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_pool2d max_pool3d avg_pool1d avg_pool2d "
            "avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d adaptive_max_pool1d "
            "adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
            "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
            "upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d "
            "replication_pad1d replication_pad2d replication_pad3d grid_sampler_2d grid_sampler_3d max_unpool2d fractional_max_pool2d "
            "fractional_max_pool3d max_unpool3d _upsample_lanczos2d_aa mkldnn_max_pool2d mkldnn_max_pool3d mkldnn_adaptive_avg_pool2d"),
    **_rows(im2col, "im2col"),
    **_rows(col2im, "col2im"),
    **_rows(unfold, "unfold"),
    **_rows(affine_grid, "affine_grid_generator"),
    **_rows(as_strided, "as_strided"),
    **_rows(pixel_shuffle, "pixel_shuffle"),
    **_rows(pixel_unshuffle, "pixel_unshuffle"),
    **_rows(channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **_rows(diagonal, "diagonal"),
    **_rows(diag_embed, "diag_embed"),
    **_rows(diagonal_scatter, "diagonal_scatter"),
    **_rows(glu, "glu"),
    **_rows(as_complex, "view_as_complex"),
    **_rows(as_real, "view_as_real"),
    **_rows(grouped_mm, "_grouped_mm"),
    **_rows(ending(2), "tril triu linalg_inv_ex linalg_cholesky_ex linalg_matrix_exp linalg_qr _linalg_eigh _linalg_svd"),
}  # fmt: skip
"""ATen operation → its rule; those that ATen itself tags as pointwise need no line."""


def rule_of(op: Op) -> Rule:
    """The rule of an operation: from the table, or what ATen's own tags say, or none."""
    if op.name in RULES:
        return RULES[op.name]
    if torch.Tag.pointwise in op.func.tags:
        return pointwise
    if not op.inputs:
        return indexed_factory
    return unknown
