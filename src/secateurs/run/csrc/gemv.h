// Sparse weights times one vector: y = activation(W x + bias + residual). The formats are described in gemv.py, which packs them.
#pragma once

#include <cstdint>

namespace secateurs {

// A group is 16 rows of the weights, one in each lane. Groups are independent: any split of them among threads is right.
struct Gemv {
    const int32_t *rows;        // [groups][16]: the output that each lane computes, -1 for none
    const int64_t *steps;       // [groups + 1]: where each group's steps begin
    const int64_t *nonzeros;    // [groups + 1]: lanes: where each group's values begin
    const int32_t *spans;       // [groups][blocks][2]: columns: steps in which all lanes are busy; steps
    const uint16_t *codes;      // lanes: [steps][2], mask and advance (int8: [steps], advance); columns: [steps][16], columns
    const void *values;         // as gemv.py says; lanes of float32: readable 64 bytes past the end
    const int32_t *counts;      // columns: [groups][blocks][16]: nonzeros of each lane
    const float *scale;         // [groups][16], or null for 1
    const float *bias;          // [outputs], or null for 0
    int64_t inputs;
    int64_t stride;             // floats from one output to the next, in y and in the residual
    int32_t blocks;             // columns: of 65536 inputs each
    int32_t activation;
    float low, high;
};

// The residual may be null, for 0.
typedef void (*GemvKernel)(const Gemv &, const float *x, const float *residual, float *y, int64_t first_group, int64_t last_group);

struct GemvFormat {
    const char *format, *values;    // as in gemv.py
    GemvKernel kernel;              // null where the instruction set lacks what the format needs
};

}  // namespace secateurs
