// What the kernels are told: plain structs, the same for every instruction set.
//
// Numbers are float32; every stride and offset counts floats. Activations at rest lie as [panel][channel][column][lane], where
// lanes and columns are output positions (see layout.py); convolutions with a window read [channel][row][column][lane].
#pragma once

#include <cstdint>

namespace secateurs {

// CLAMP is relu, relu6 and any other interval.
enum Activation : int32_t { CLAMP, HARD_SWISH, HARD_SIGMOID, SILU, GELU, GELU_TANH, SIGMOID, TANH, NO_ACTIVATION };

// One row (of `height` output channels) of the weights within one block of input channels.
struct Row {
    int32_t row;
    int32_t count;  // nonzeros
    int32_t flags;  // FIRST: begin with the bias; LAST: finish with residual and activation
};
enum : int32_t { FIRST = 1, LAST = 2 };

// A block of input channels that fits the first cache: rows[first ... last), whose nonzeros begin at `nonzero`.
struct Block {
    int32_t first, last;
    int64_t nonzero;
};

// Where one panel of output positions is read and written; `out` and what follows only where finished rows go elsewhere.
struct Panel {
    int64_t x, y, residual, out;
    int64_t positions;  // of this panel that exist: the rest of a row is not written to `out`
    int64_t lanes;      // where that begins which is said of the lanes of this panel: its stretches, or its masks
};

// How the rows of panels lie in an image: lanes l and l + LANES / 2 hold one stretch of it for each l < LANES / 2.
struct Stretches {
    const int32_t *from, *there;  // where it begins, and a bit for each of its places that exists
    const int32_t *order;         // of a vector that holds the columns of the one lane, then those of the other: the places written
};

// Inputs that are read where an image has them, though windows reach beyond it: nonzeros are ordered by their place in the window.
struct Masks {
    const int32_t *counts;  // [row][place]: nonzeros
    const int32_t *bits;    // [panel][place][column]: a bit for each lane whose input exists
    int32_t places;         // 0: all inputs exist
};

struct Spmm {
    const Row *rows;
    const int32_t *offsets;  // of each nonzero, from the panel's x
    const float *values;     // `height` for each nonzero
    const float *bias;
    const float *x;
    float *y;
    const float *residual;              // or null
    float *out;                         // where finished rows go, if not to y; or null
    Stretches stretches;                // how rows lie in `out`; `from` is null if all positions lie one after the other
    Masks masks;
    int64_t y_stride, residual_stride, out_stride;  // from one output channel to the next
    int32_t stride;                     // vectors from one input position to the next
    int32_t activation;
    float low, high;
};
typedef void (*SpmmKernel)(const Spmm &, const Block *first, const Block *last, const Panel &);

// How one vector of the new layout comes about.
enum MoveKind : int32_t { FILL, COPY, PERMUTE, GATHER };
struct Move {
    int32_t to, from;  // of channel 0
    int32_t kind;
    int32_t table;  // PERMUTE: lanes of the vector at `from`; GATHER: places in the channel. In either, -1 is fill
    int32_t count;  // lanes that are written
};
struct Moves {
    const Move *moves;
    int64_t move_count;
    const int32_t *table;
    int64_t x_stride, y_stride;  // from one channel to the next
    float fill;
};
typedef void (*MoveKernel)(const Moves &, const float *x, float *y, int64_t channels);

// Between an image as torch has it and vectors whose lanes are tiles of it, for each row of tiles. A row is cut into parts (when reading
// of half as many columns as lanes, when writing of as many), in which lane l holds places from[l], from[l] + 1 ... of the image, of which
// those exist whose bits are set in there[l].
struct Tiles {
    const int32_t *at, *held;     // [row][column]: where the vector lies; a bit for each lane that exists
    const int32_t *from, *there;  // [row][part of a row][lane]
    // Reading: columns from `own` on are what other lanes have `apart` columns before, and what does not exist is read all the same (and
    // dropped), as it lies in the channels beside; but not so near to the first channel of all, or the last, as `edges`.
    const int32_t *neighbour;  // the lane that has a lane's later columns; -1 is fill
    int32_t rows, columns, own, apart, edges;
    int64_t image_stride, vector_stride;  // from one channel to the next
    float fill;
    int64_t before, after;  // channels before those of this work, and after them
};
typedef void (*TilesKernel)(const Tiles &, const float *x, float *y, int64_t channels);

// Windows over [channel][row][column][lane]: maximum, or sum times a factor for each position.
struct Window {
    const int32_t *taps;
    int32_t tap_count, columns, stride;
    int64_t x_stride, y_stride;
    const float *factors;  // [column][lane] of this panel; null for the maximum
};
typedef void (*WindowKernel)(const Window &, const float *x, float *y, int64_t channels);

// The weighted sum over all positions of a channel: [panel][channel][column][lane] -> one number a channel.
struct Mean {
    const float *weights;  // [panel][column][lane]
    int64_t panels, panel_stride, x_stride;
    int32_t columns;
};
typedef void (*MeanKernel)(const Mean &, const float *x, float *y, int64_t channels);

// y = activation(x * scale + shift + z), with one scale and shift a channel; each of the three may be null.
struct Pointwise {
    const float *scale, *shift;
    int64_t x_stride, y_stride, z_stride, count;  // `count` floats a channel
    int32_t activation;
    float low, high;
};
typedef void (*PointwiseKernel)(const Pointwise &, const float *x, const float *z, float *y, int64_t channels);

// Between [position][channel] and [channel][column][lane] of one panel; positions beyond `positions` are zero, or are not written.
struct Tokens {
    int64_t positions, channels;  // of this panel
    int64_t row_stride;           // from one position to the next
    int64_t channel_stride;       // from one channel to the next
    int32_t columns;
};
typedef void (*TokensKernel)(const Tokens &, const float *x, float *y);

// One step of an LSTM for one row: the sum of two times four gates (input, forget, cell, output) -> new state and output.
typedef void (*CellKernel)(const float *gates, const float *more, float *state, float *out, int64_t width, int64_t first, int64_t last);

// Normalisation over the channels of each group: (x - mean) / sqrt(variance + eps) * weight + bias, or without the mean where not `centred`.
// `weight` and `bias` (or null) have a number for each channel of a group.
struct Norm {
    const float *weight, *bias;
    int64_t channels, groups;
    int32_t centred;
    float eps;
};
typedef void (*NormKernel)(const Norm &, const float *x, float *y);

// x * z or x + z, and then an activation.
typedef void (*CombineKernel)(int32_t multiplies, int32_t activation, float low, float high, const float *x, const float *z, float *y,
                              int64_t count);

// Rotary embeddings of `heads` heads of `size` channels, of which `width` turn; a channel is `stride` floats.
struct Rotary {
    int64_t heads, size, width, stride;
};
typedef void (*RotaryKernel)(const Rotary &, const float *x, const float *cos, const float *sin, float *y);

// y = scale * (q x), for rows of whole numbers.
typedef void (*ByteRowsKernel)(const int8_t *q, const float *scale, const float *x, float *y, int64_t rows, int64_t inputs);

// Keys, or values, of one head: number j begins at base + j / tile * tile_stride + j % tile * step.
struct Keys {
    const float *base;
    int64_t tile, tile_stride, step, channel_stride;
};

// Attention of one head. Query i belongs to batch i / of_batch, and sees the keys of that one; where it is `causal`, those up to
// offset + i: `offset` keys came before the first query.
struct Attention {
    Keys keys, values;
    int64_t queries, of_batch, offset;
    int64_t size, stride;  // channels of a head; floats from one channel of the queries to the next
    int32_t columns, causal;
    float scale;
};
typedef void (*AttentionKernel)(const Attention &, const float *q, float *y, float *scores, int64_t query);

typedef void (*ActivateKernel)(int32_t activation, float low, float high, float *x, int64_t count);

}  // namespace secateurs
