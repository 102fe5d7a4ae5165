// Packing of weights: what NumPy would do in ten passes over all of them, in two.
#pragma once

#include <cstdint>

namespace secateurs {

// A matrix of `rows` x `inputs`, of which `height` consecutive rows share places: an input that any of them reads is read by all. Its
// inputs come in blocks, block b from edges[b] to edges[b + 1].
struct Weights {
    const float *values;
    int64_t rows, inputs, height, blocks;
    const int64_t *edges;
};

// Whether any of the rows has a weight there; one that is NaN is one. HEIGHT: that of the weights if it is known, else 0.
template <int HEIGHT>
inline int32_t used(const Weights &of, const float *tall, int64_t place) {
    int32_t found = 0;
    for (int64_t h = 0; h < (HEIGHT ? HEIGHT : of.height); ++h) found |= tall[h * of.inputs + place] != 0;
    return found;
}

// [rows / height][blocks]: the nonzeros of each.
template <int HEIGHT>
void count_nonzeros(const Weights &of, int64_t *counts) {
    for (int64_t row = 0; row < of.rows; row += of.height, counts += of.blocks) {
        const float *const tall = of.values + row * of.inputs;
        for (int64_t block = 0; block < of.blocks; ++block) {
            int32_t count = 0;
            for (int64_t place = of.edges[block]; place < of.edges[block + 1]; ++place) count += used<HEIGHT>(of, tall, place);
            counts[block] = count;
        }
    }
}

// Those of each row and block go to starts[row][block] and on. `offset_rows`: floats from one row's offsets to the next one's, or 0. What is
// no nonzero is written too, and then written over by the next one that is: to guess which it is takes longer.
template <int HEIGHT>
void fill_nonzeros(const Weights &of, const int64_t *counts, const int64_t *starts, const int64_t *offsets, int64_t offset_rows,
                   int32_t *offset_of, float *value_of) {
    const int64_t height = HEIGHT ? HEIGHT : of.height;
    for (int64_t row = 0; row < of.rows; row += of.height, starts += of.blocks, counts += of.blocks) {
        const float *const tall = of.values + row * of.inputs;
        const int64_t *const where = offsets + row * offset_rows;
        for (int64_t block = 0; block < of.blocks; ++block) {
            int64_t to = starts[block];
            const int64_t end = to + counts[block];
            for (int64_t place = of.edges[block]; to < end; ++place) {
                offset_of[to] = int32_t(where[place]);
                for (int64_t h = 0; h < height; ++h) value_of[to * height + h] = tall[h * of.inputs + place];
                to += used<HEIGHT>(of, tall, place);
            }
        }
    }
}

}  // namespace secateurs
