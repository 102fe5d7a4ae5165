// A list of steps on buffers, run in order by a team of threads: what a compiled model does between two operations of torch.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace secateurs {

// A place in one of the buffers that are given to each run.
struct Place {
    int32_t buffer;
    int64_t offset;  // in floats
    float *in(float *const *buffers) const { return buffers[buffer] + offset; }
};
constexpr int32_t NOWHERE = -1;

struct Step {
    virtual int64_t jobs() const = 0;
    virtual void run(int64_t job, int member, float *const *buffers) const = 0;
    virtual ~Step() = default;
};

struct SpmmStep final : Step {
    SpmmKernel kernel;
    Spmm spmm;
    const Block *blocks;
    const int64_t *chunks;  // chunk i consists of blocks[chunks[i] ... chunks[i + 1])
    const Panel *panels;
    int64_t chunk_count, panel_count;
    int64_t y_member;  // from one thread's sums to the next's; 0 where each panel has its own
    Place x, y, residual, out;

    int64_t jobs() const override { return chunk_count * panel_count; }

    void run(int64_t job, int member, float *const *buffers) const override {
        Spmm mine = spmm;
        mine.x = x.in(buffers);
        mine.y = y.in(buffers) + member * y_member;
        mine.residual = residual.buffer == NOWHERE ? nullptr : residual.in(buffers);
        mine.out = out.buffer == NOWHERE ? nullptr : out.in(buffers);
        const int64_t chunk = job / panel_count;
        kernel(mine, blocks + chunks[chunk], blocks + chunks[chunk + 1], panels[job % panel_count]);
    }
};

// Work on all channels of several images or panels, a few channels a job.
struct Channels {
    int64_t outer, channels, group;
    int64_t groups() const { return (channels + group - 1) / group; }
    int64_t jobs() const { return outer * groups(); }
    int64_t first(int64_t job) const { return job % groups() * group; }
    int64_t count(int64_t job) const {
        const int64_t left = channels - first(job);
        return left < group ? left : group;
    }
};

struct MoveStep final : Step {
    MoveKernel kernel;
    Moves moves;
    Channels channels;  // outer: images
    int64_t x_image, y_image;
    Place x, y;

    int64_t jobs() const override { return channels.jobs(); }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t image = job / channels.groups(), first = channels.first(job);
        kernel(moves, x.in(buffers) + image * x_image + first * moves.x_stride, y.in(buffers) + image * y_image + first * moves.y_stride,
               channels.count(job));
    }
};

struct TilesStep final : Step {
    TilesKernel kernel;
    Tiles tiles;
    Channels channels;  // outer: images
    int64_t x_stride, y_stride, x_image, y_image;
    Place x, y;

    int64_t jobs() const override { return channels.jobs(); }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t image = job / channels.groups(), first = channels.first(job);
        Tiles mine = tiles;
        mine.before = image * channels.channels + first;
        mine.after = channels.outer * channels.channels - mine.before - channels.count(job);
        kernel(mine, x.in(buffers) + image * x_image + first * x_stride, y.in(buffers) + image * y_image + first * y_stride,
               channels.count(job));
    }
};

struct WindowStep final : Step {
    WindowKernel kernel;
    Window window;
    Channels channels;  // outer: panels
    const Panel *panels;
    int64_t panels_of_image, factors_of_panel;
    Place x, y;

    int64_t jobs() const override { return channels.jobs(); }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t number = job / channels.groups(), first = channels.first(job);
        Window mine = window;
        if (window.factors) mine.factors += number % panels_of_image * factors_of_panel;
        kernel(mine, x.in(buffers) + panels[number].x + first * window.x_stride, y.in(buffers) + panels[number].y + first * window.y_stride,
               channels.count(job));
    }
};

struct MeanStep final : Step {
    MeanKernel kernel;
    Mean mean;
    Channels channels;  // outer: images
    int64_t x_image;
    Place x, y;

    int64_t jobs() const override { return channels.jobs(); }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t image = job / channels.groups(), first = channels.first(job);
        kernel(mean, x.in(buffers) + image * x_image + first * mean.x_stride, y.in(buffers) + image * channels.channels + first,
               channels.count(job));
    }
};

struct PointwiseStep final : Step {
    PointwiseKernel kernel;
    Pointwise pointwise;
    Channels channels;  // outer: panels
    int64_t panels_of_image, x_panel, y_panel, z_panel;
    Place x, y, z, factors;  // factors: one number for each channel of each image, instead of the scale

    int64_t jobs() const override { return channels.jobs(); }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t panel = job / channels.groups(), first = channels.first(job);
        Pointwise mine = pointwise;
        if (mine.scale) mine.scale += first;
        if (mine.shift) mine.shift += first;
        if (factors.buffer != NOWHERE) mine.scale = factors.in(buffers) + panel / panels_of_image * channels.channels + first;
        kernel(mine, x.in(buffers) + panel * x_panel + first * mine.x_stride,
               z.buffer == NOWHERE ? nullptr : z.in(buffers) + panel * z_panel + first * mine.z_stride,
               y.in(buffers) + panel * y_panel + first * mine.y_stride, channels.count(job));
    }
};

struct TokensStep final : Step {
    TokensKernel kernel;
    Tokens tokens;  // positions: of all panels
    int64_t panel_count, positions_of_panel, x_panel, y_panel;
    Place x, y;

    int64_t jobs() const override { return panel_count; }

    void run(int64_t job, int, float *const *buffers) const override {
        Tokens mine = tokens;
        mine.positions = tokens.positions - job * positions_of_panel;
        if (mine.positions > positions_of_panel) mine.positions = positions_of_panel;
        kernel(mine, x.in(buffers) + job * x_panel, y.in(buffers) + job * y_panel);
    }
};

// Sparse weights times a few single vectors.
struct GemvStep final : Step {
    GemvKernel kernel;
    Gemv gemv;
    const int64_t *bounds;  // job i takes the groups bounds[i] ... bounds[i + 1]
    int64_t job_count, vectors, outputs;
    Place x, y, residual;

    int64_t jobs() const override { return job_count; }

    void run(int64_t job, int, float *const *buffers) const override {
        for (int64_t vector = 0; vector < vectors; ++vector) {
            const int64_t apart = vector * outputs * gemv.stride;
            const float *const more = residual.buffer == NOWHERE ? nullptr : residual.in(buffers) + apart;
            kernel(gemv, x.in(buffers) + vector * gemv.inputs, more, y.in(buffers) + apart, bounds[job], bounds[job + 1]);
        }
    }
};

// One step of an LSTM, some columns of one row a job.
struct CellStep final : Step {
    CellKernel kernel;
    int64_t rows, width;
    Place gates, more, state, out;

    static constexpr int64_t at_once = 256;
    int64_t parts() const { return (width + at_once - 1) / at_once; }
    int64_t jobs() const override { return rows * parts(); }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t row = job / parts(), first = job % parts() * at_once, last = first + at_once;
        kernel(gates.in(buffers) + row * 4 * width, more.in(buffers) + row * 4 * width, state.in(buffers) + row * width,
               out.in(buffers) + row * width, width, first, last < width ? last : width);
    }
};

// Rows of channels, or panels, normalised.
struct NormStep final : Step {
    NormKernel kernel;
    Norm norm;
    int64_t count, apart;  // rows or panels, and floats from one to the next
    Place x, y;

    int64_t jobs() const override { return count; }
    void run(int64_t job, int, float *const *buffers) const override { kernel(norm, x.in(buffers) + job * apart, y.in(buffers) + job * apart); }
};

struct CombineStep final : Step {
    CombineKernel kernel;
    int64_t count;
    int32_t multiplies, activation;
    float low, high;
    Place x, z, y;

    static constexpr int64_t at_once = 1 << 14;
    int64_t jobs() const override { return (count + at_once - 1) / at_once; }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t first = job * at_once, left = count - first;
        kernel(multiplies, activation, low, high, x.in(buffers) + first, z.in(buffers) + first, y.in(buffers) + first,
               left < at_once ? left : at_once);
    }
};

// `cos` and `sin` lie as x does, with `width` channels.
struct RotaryStep final : Step {
    RotaryKernel kernel;
    Rotary rotary;
    int64_t count, apart;  // rows or panels, and floats of x from one to the next
    Place x, cos, sin, y;

    int64_t jobs() const override { return count; }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t angles = job * rotary.width * rotary.stride;
        kernel(rotary, x.in(buffers) + job * apart, cos.in(buffers) + angles, sin.in(buffers) + angles, y.in(buffers) + job * apart);
    }
};

// Keys or values of a few tokens, added to those that are kept: rows of channels, the first at the number that `position` holds.
struct KeepStep final : Step {
    TokensKernel kernel;  // from panels; null where they are rows already
    Tokens tokens;        // positions: of all panels
    int64_t panel_count, positions_of_panel, x_panel;
    Place x, y, position;

    int64_t jobs() const override { return kernel ? panel_count : 1; }

    void run(int64_t job, int, float *const *buffers) const override {
        float *const to = y.in(buffers) + int64_t(*position.in(buffers)) * tokens.row_stride;
        if (!kernel) {
            memcpy(to, x.in(buffers), sizeof(float) * tokens.positions * tokens.channels);
            return;
        }
        Tokens mine = tokens;
        mine.positions = tokens.positions - job * positions_of_panel;
        if (mine.positions > positions_of_panel) mine.positions = positions_of_panel;
        kernel(mine, x.in(buffers) + job * x_panel, to + job * positions_of_panel * tokens.row_stride);
    }
};

// A job is one head of one panel, or row, of queries.
struct AttentionStep final : Step {
    AttentionKernel kernel;
    Attention attention;
    int64_t count, apart, at_once;  // panels or rows of queries, floats from one to the next, queries in each
    int64_t heads, of_keys;         // heads, and how many of them share one of keys and values
    int64_t query_head, key_head, value_head;  // floats from one head to the next
    int64_t room;                   // for the scores of one thread
    Place x, keys, values, y, scores, position;

    int64_t jobs() const override { return count * heads; }

    void run(int64_t job, int member, float *const *buffers) const override {
        const int64_t head = job % heads, number = job / heads, from = number * apart + head * query_head;
        Attention mine = attention;
        if (position.buffer != NOWHERE) mine.offset = int64_t(*position.in(buffers));
        mine.keys.base = keys.in(buffers) + head / of_keys * key_head;
        mine.values.base = values.in(buffers) + head / of_keys * value_head;
        kernel(mine, x.in(buffers) + from, y.in(buffers) + from, scores.in(buffers) + member * room, number * at_once);
    }
};

struct ByteRowsStep final : Step {
    ByteRowsKernel kernel;
    const int8_t *q;
    const float *scale;
    int64_t rows, inputs;
    Place x, y;

    static constexpr int64_t at_once = 512;
    int64_t jobs() const override { return (rows + at_once - 1) / at_once; }

    void run(int64_t job, int, float *const *buffers) const override {
        const int64_t first = job * at_once, left = rows - first;
        kernel(q + first * inputs, scale + first, x.in(buffers), y.in(buffers) + first, left < at_once ? left : at_once, inputs);
    }
};

struct CopyStep final : Step {
    int64_t count;
    Place x, y;

    int64_t jobs() const override { return 1; }

    void run(int64_t, int, float *const *buffers) const override { memcpy(y.in(buffers), x.in(buffers), sizeof(float) * count); }
};

class Program {
  public:
    Program() = default;
    Program(const Program &) = delete;
    void add(std::unique_ptr<Step> step) { steps_.push_back(std::move(step)); }
    int64_t size() const { return int64_t(steps_.size()); }
    void run(float *const *buffers, int threads) const;
    // Seconds that each step takes.
    std::vector<double> timed(float *const *buffers, int threads) const;

  private:
    std::vector<std::unique_ptr<Step>> steps_;
};

}  // namespace secateurs
