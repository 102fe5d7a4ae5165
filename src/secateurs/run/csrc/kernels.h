// The table of kernels that every instruction set fills in; it serves dispatch, tests and benchmarks.
#pragma once

#include "gemv.h"
#include "table.h"

namespace secateurs {

constexpr int32_t chains = 12;  // enough to hide the latency, few enough for 16 registers

struct Kernels {
    const char *name;
    int32_t lanes;
    SpmmKernel (*spmm)(int32_t height, int32_t columns, int32_t stride);  // null where there is none
    SpmmKernel (*masked_spmm)(int32_t height, int32_t columns);
    int32_t (*columns_at_once)(int32_t height);
    MoveKernel move;
    TilesKernel pack_tiles, unpack_tiles;
    WindowKernel window;
    MeanKernel mean;
    PointwiseKernel pointwise;
    TokensKernel pack_tokens, unpack_tokens;
    CellKernel cell;
    NormKernel (*norm_panel)(int32_t columns);
    NormKernel norm_row;
    CombineKernel combine;
    RotaryKernel rotate;
    ByteRowsKernel byte_rows;
    AttentionKernel attend_panel, attend_row;
    ActivateKernel activate;
    float (*multiply_adds)(int64_t rounds);  // so many times `chains` vectors, to measure the peak
    const GemvFormat *gemv;
    int32_t gemv_count;
};

}  // namespace secateurs
