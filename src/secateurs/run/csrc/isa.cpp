// Compiled once for each instruction set, with SECATEURS_ISA its name.
#include "simd.h"

#include "kernels.h"

#include "activate.inc"
#include "gemv.inc"
#include "layouts.inc"
#include "spmm.inc"
#include "tokens.inc"

#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

namespace {

float multiply_adds(int64_t rounds) {
    vf sums[secateurs::chains];
    for (int i = 0; i < secateurs::chains; ++i) sums[i] = splat(float(i));
    const vf factor = splat(0.999f), term = splat(0.001f);
    for (int64_t round = 0; round < rounds; ++round)
        for (int i = 0; i < secateurs::chains; ++i) sums[i] = sums[i] * factor + term;
    float total = 0;
    for (int i = 0; i < secateurs::chains; ++i) total += sums[i][0];
    return total;
}

}  // namespace

namespace secateurs {
extern const Kernels JOIN(kernels_, SECATEURS_ISA);
const Kernels JOIN(kernels_, SECATEURS_ISA) = {
    TEXT(SECATEURS_ISA), LANES, find_spmm, find_masked_spmm, columns_at_once, move, pack_tiles, unpack_tiles, window, mean,
    pointwise, pack_tokens, unpack_tokens, cell, find_norm, norm_row, combine, rotate, byte_rows, attend_panel, attend_row, activate, multiply_adds,
    gemv_formats, sizeof(gemv_formats) / sizeof(gemv_formats[0]),
};
}  // namespace secateurs
