// What Python sees: tables of kernels by instruction set, arenas and programs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <tuple>

#include "pack.h"
#include "program.h"

namespace nb = nanobind;

namespace secateurs {
#if defined(__x86_64__)
extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;
#else
extern const Kernels kernels_generic;
#endif

namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Room = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
using At = std::tuple<int32_t, int64_t>;

Place place(const At &at) { return {std::get<0>(at), std::get<1>(at)}; }

std::vector<const Kernels *> supported() {
#if defined(__x86_64__)
    std::vector<const Kernels *> found;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) found.push_back(&kernels_avx512);
    if (__builtin_cpu_supports("x86-64-v3")) found.push_back(&kernels_avx2);
    found.push_back(&kernels_baseline);
    return found;
#else
    return {&kernels_generic};
#endif
}

const Kernels &kernels(const std::string &name) {
    for (const Kernels *each : supported())
        if (name == each->name) return *each;
    throw std::invalid_argument("this machine has no instruction set " + name);
}

// Zeroed memory on huge pages where the system has them: strided panels would otherwise miss the translation cache at every channel.
class Arena {
  public:
    explicit Arena(int64_t bytes) {
        constexpr int64_t huge = int64_t(1) << 21;
        size_ = (bytes / huge + 2) * huge;
        base_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        const uintptr_t aligned = (reinterpret_cast<uintptr_t>(base_) + huge - 1) / huge * huge;
        data_ = reinterpret_cast<float *>(aligned);
#if defined(MADV_HUGEPAGE)
        madvise(data_, size_ - huge, MADV_HUGEPAGE);
#endif
    }
    ~Arena() { munmap(base_, size_); }
    Arena(const Arena &) = delete;
    uintptr_t address() const { return reinterpret_cast<uintptr_t>(data_); }

  private:
    void *base_;
    int64_t size_;
    float *data_;
};

// A program, and what Python owns of that which its steps point to.
struct Owner {
    Program program;
    std::vector<nb::object> kept;

    template <typename T>
    const T *keep(const Array<T> &array) {
        kept.push_back(nb::cast(array));
        return array.data();
    }
};

std::vector<float *> pointers(const std::vector<uintptr_t> &addresses) {
    std::vector<float *> found;
    for (uintptr_t address : addresses) found.push_back(reinterpret_cast<float *>(address));
    return found;
}

int64_t panels_in(const Array<int64_t> &numbers) { return int64_t(numbers.size() * sizeof(int64_t) / sizeof(Panel)); }

void add_spmm(Owner &owner, const std::string &isa, int height, int columns, int stride, const Array<int32_t> &rows,
              const Array<int32_t> &offsets, const Array<float> &values, const Array<int64_t> &blocks, const Array<int64_t> &chunks,
              const Array<float> &bias, const Array<int64_t> &panels, const At &x, const At &y, const At &residual, const At &out,
              int64_t y_stride, int64_t residual_stride, int64_t out_stride, int64_t y_member, const Array<int32_t> &from,
              const Array<int32_t> &there, const Array<int32_t> &order, const Array<int32_t> &counts, const Array<int32_t> &masks,
              int places, int activation, float low, float high) {
    auto step = std::make_unique<SpmmStep>();
    Stretches stretches = {};
    if (from.size()) stretches = {owner.keep(from), owner.keep(there), owner.keep(order)};
    step->kernel = places ? kernels(isa).masked_spmm(height, columns) : kernels(isa).spmm(height, columns, stride);
    if (!step->kernel) throw std::invalid_argument("there is no kernel of this height and number of columns");
    step->spmm = {reinterpret_cast<const Row *>(owner.keep(rows)), owner.keep(offsets), owner.keep(values), owner.keep(bias), nullptr,
                  nullptr, nullptr, nullptr, stretches, {owner.keep(counts), owner.keep(masks), places}, y_stride, residual_stride,
                  out_stride, stride, activation, low, high};
    step->y_member = y_member;
    step->blocks = reinterpret_cast<const Block *>(owner.keep(blocks));
    step->chunks = owner.keep(chunks);
    step->chunk_count = int64_t(chunks.size()) - 1;
    step->panels = reinterpret_cast<const Panel *>(owner.keep(panels));
    step->panel_count = panels_in(panels);
    step->x = place(x), step->y = place(y), step->residual = place(residual), step->out = place(out);
    owner.program.add(std::move(step));
}

void add_move(Owner &owner, const std::string &isa, const Array<int32_t> &moves, const Array<int32_t> &table, int64_t images,
              int64_t channels, int64_t group, const At &x, const At &y, int64_t x_image, int64_t y_image, int64_t x_stride,
              int64_t y_stride, float fill) {
    auto step = std::make_unique<MoveStep>();
    step->kernel = kernels(isa).move;
    step->moves = {reinterpret_cast<const Move *>(owner.keep(moves)), int64_t(moves.size()) / 5, owner.keep(table), x_stride,
                   y_stride, fill};
    step->channels = {images, channels, group};
    step->x_image = x_image, step->y_image = y_image;
    step->x = place(x), step->y = place(y);
    owner.program.add(std::move(step));
}

void add_tiles(Owner &owner, const std::string &isa, bool pack, const Array<int32_t> &at, const Array<int32_t> &held,
               const Array<int32_t> &from, const Array<int32_t> &there, const Array<int32_t> &neighbour, int rows, int columns,
               int own, int apart, int edges, int64_t images, int64_t channels, int64_t group, const At &x, const At &y,
               int64_t x_image, int64_t y_image, int64_t x_stride, int64_t y_stride, float fill) {
    auto step = std::make_unique<TilesStep>();
    step->kernel = pack ? kernels(isa).pack_tiles : kernels(isa).unpack_tiles;
    step->tiles = {owner.keep(at), owner.keep(held), owner.keep(from), owner.keep(there), owner.keep(neighbour), rows, columns, own,
                   apart, edges, pack ? x_stride : y_stride,
                   pack ? y_stride : x_stride, fill, 0, 0};
    step->channels = {images, channels, group};
    step->x_image = x_image, step->y_image = y_image, step->x_stride = x_stride, step->y_stride = y_stride;
    step->x = place(x), step->y = place(y);
    owner.program.add(std::move(step));
}

void add_window(Owner &owner, const std::string &isa, const Array<int32_t> &taps, const Array<float> &factors, int columns, int stride,
                const Array<int64_t> &panels, int64_t panels_of_image, int64_t channels, int64_t group, const At &x, const At &y,
                int64_t x_stride, int64_t y_stride) {
    auto step = std::make_unique<WindowStep>();
    step->kernel = kernels(isa).window;
    step->window = {owner.keep(taps), int32_t(taps.size()), columns, stride, x_stride, y_stride,
                    factors.size() ? owner.keep(factors) : nullptr};
    step->panels = reinterpret_cast<const Panel *>(owner.keep(panels));
    step->channels = {panels_in(panels), channels, group};
    step->panels_of_image = panels_of_image;
    step->factors_of_panel = int64_t(columns) * kernels(isa).lanes;
    step->x = place(x), step->y = place(y);
    owner.program.add(std::move(step));
}

void add_mean(Owner &owner, const std::string &isa, const Array<float> &weights, int columns, int64_t panels, int64_t images,
              int64_t channels, int64_t group, const At &x, const At &y, int64_t x_image, int64_t x_panel, int64_t x_stride) {
    auto step = std::make_unique<MeanStep>();
    step->kernel = kernels(isa).mean;
    step->mean = {owner.keep(weights), panels, x_panel, x_stride, columns};
    step->channels = {images, channels, group};
    step->x_image = x_image;
    step->x = place(x), step->y = place(y);
    owner.program.add(std::move(step));
}

void add_pointwise(Owner &owner, const std::string &isa, const Array<float> &scale, const Array<float> &shift, int64_t panels,
                   int64_t panels_of_image, int64_t channels, int64_t group, int64_t count, const At &x, const At &y, const At &z,
                   const At &factors, const std::tuple<int64_t, int64_t, int64_t> &of_panel,
                   const std::tuple<int64_t, int64_t, int64_t> &of_channel, int activation, float low, float high) {
    auto step = std::make_unique<PointwiseStep>();
    step->kernel = kernels(isa).pointwise;
    const auto [x_stride, y_stride, z_stride] = of_channel;
    step->pointwise = {scale.size() ? owner.keep(scale) : nullptr, shift.size() ? owner.keep(shift) : nullptr, x_stride, y_stride,
                       z_stride, count, activation, low, high};
    step->channels = {panels, channels, group};
    step->panels_of_image = panels_of_image;
    std::tie(step->x_panel, step->y_panel, step->z_panel) = of_panel;
    step->x = place(x), step->y = place(y), step->z = place(z), step->factors = place(factors);
    owner.program.add(std::move(step));
}

void add_tokens(Owner &owner, const std::string &isa, bool pack, int64_t positions, int64_t channels, int64_t row_stride,
                int64_t channel_stride, int columns, int64_t panels, int64_t x_panel, int64_t y_panel, const At &x, const At &y) {
    auto step = std::make_unique<TokensStep>();
    step->kernel = pack ? kernels(isa).pack_tokens : kernels(isa).unpack_tokens;
    step->tokens = {positions, channels, row_stride, channel_stride, columns};
    step->panel_count = panels;
    step->positions_of_panel = int64_t(columns) * kernels(isa).lanes;
    step->x_panel = x_panel, step->y_panel = y_panel;
    step->x = place(x), step->y = place(y);
    owner.program.add(std::move(step));
}

GemvKernel gemv_kernel(const std::string &isa, const std::string &format, const std::string &values) {
    const Kernels &table = kernels(isa);
    for (int32_t i = 0; i < table.gemv_count; ++i)
        if (format == table.gemv[i].format && values == table.gemv[i].values) return table.gemv[i].kernel;
    return nullptr;
}

void add_gemv(Owner &owner, const std::string &isa, const std::string &format, const std::string &number, const Array<int32_t> &rows,
              const Array<int64_t> &steps, const Array<int64_t> &nonzeros, const Array<int32_t> &spans, const Array<int32_t> &counts,
              const Array<uint16_t> &codes, const Array<uint8_t> &data, const Array<float> &scale, const Array<float> &bias,
              const Array<int64_t> &bounds, int64_t inputs, int64_t outputs, int32_t blocks, int64_t vectors, int64_t stride,
              const At &x, const At &y, const At &residual, int activation, float low, float high) {
    auto step = std::make_unique<GemvStep>();
    step->kernel = gemv_kernel(isa, format, number);
    if (!step->kernel) throw std::invalid_argument("instruction set " + isa + " has no kernel for " + format + " of " + number);
    step->gemv = {};
    step->gemv.rows = owner.keep(rows), step->gemv.steps = owner.keep(steps), step->gemv.nonzeros = owner.keep(nonzeros);
    step->gemv.spans = owner.keep(spans), step->gemv.counts = owner.keep(counts), step->gemv.codes = owner.keep(codes);
    step->gemv.values = owner.keep(data), step->gemv.scale = scale.size() ? owner.keep(scale) : nullptr;
    step->gemv.bias = owner.keep(bias), step->gemv.inputs = inputs, step->gemv.blocks = blocks;
    step->gemv.stride = stride, step->gemv.activation = activation, step->gemv.low = low, step->gemv.high = high;
    step->bounds = owner.keep(bounds), step->job_count = int64_t(bounds.size()) - 1;
    step->vectors = vectors, step->outputs = outputs;
    step->x = place(x), step->y = place(y), step->residual = place(residual);
    owner.program.add(std::move(step));
}

Weights weights(const Array<float> &values, int64_t height, const Array<int64_t> &edges) {
    if (values.ndim() != 2) throw std::invalid_argument("weights are a matrix");
    const int64_t rows = int64_t(values.shape(0)), inputs = int64_t(values.shape(1)), blocks = int64_t(edges.size()) - 1;
    if (height < 1 || rows % height || blocks < 1 || edges.data()[0] != 0 || edges.data()[blocks] != inputs)
        throw std::invalid_argument("rows and blocks of weights must cover the matrix");
    return {values.data(), rows, inputs, height, blocks, edges.data()};
}

void add_cell(Owner &owner, const std::string &isa, int64_t rows, int64_t width, const At &gates, const At &more, const At &state,
              const At &out) {
    auto step = std::make_unique<CellStep>();
    step->kernel = kernels(isa).cell;
    step->rows = rows, step->width = width;
    step->gates = place(gates), step->more = place(more), step->state = place(state), step->out = place(out);
    owner.program.add(std::move(step));
}

void add_norm(Owner &owner, const std::string &isa, int columns, int64_t count, int64_t apart, const Array<float> &weight,
              const Array<float> &bias, int64_t groups, bool centred, float eps, const At &x, const At &y) {
    auto step = std::make_unique<NormStep>();
    step->kernel = columns ? kernels(isa).norm_panel(columns) : kernels(isa).norm_row;
    step->norm = {owner.keep(weight), bias.size() ? owner.keep(bias) : nullptr, int64_t(weight.size()), groups, centred, eps};
    step->count = count, step->apart = apart;
    step->x = place(x), step->y = place(y);
    owner.program.add(std::move(step));
}

void add_combine(Owner &owner, const std::string &isa, int64_t count, bool multiplies, const At &x, const At &z, const At &y,
                 int activation, float low, float high) {
    auto step = std::make_unique<CombineStep>();
    step->kernel = kernels(isa).combine;
    step->count = count, step->multiplies = multiplies, step->activation = activation, step->low = low, step->high = high;
    step->x = place(x), step->z = place(z), step->y = place(y);
    owner.program.add(std::move(step));
}

void add_rotary(Owner &owner, const std::string &isa, int64_t heads, int64_t size, int64_t width, int64_t stride, int64_t count,
                const At &x, const At &cos, const At &sin, const At &y) {
    auto step = std::make_unique<RotaryStep>();
    step->kernel = kernels(isa).rotate;
    step->rotary = {heads, size, width, stride};
    step->count = count, step->apart = heads * size * stride;
    step->x = place(x), step->cos = place(cos), step->sin = place(sin), step->y = place(y);
    owner.program.add(std::move(step));
}

void add_keep(Owner &owner, const std::string &isa, int64_t positions, int64_t channels, int columns, const At &x, const At &y,
              const At &position) {
    auto step = std::make_unique<KeepStep>();
    const int64_t lanes = kernels(isa).lanes, panel = columns * lanes;
    step->kernel = columns ? kernels(isa).unpack_tokens : nullptr;
    step->tokens = {positions, channels, channels, panel, columns};
    step->panel_count = columns ? (positions + panel - 1) / panel : 1;
    step->positions_of_panel = panel, step->x_panel = panel * channels;
    step->x = place(x), step->y = place(y), step->position = place(position);
    owner.program.add(std::move(step));
}

using Lie = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // of keys: tile, tile_stride, step, channel_stride

Keys keys_of(const Lie &lie) { return {nullptr, std::get<0>(lie), std::get<1>(lie), std::get<2>(lie), std::get<3>(lie)}; }

void add_attention(Owner &owner, const std::string &isa, int columns, int64_t queries, int64_t of_batch, int64_t heads, int64_t of_keys,
                   int64_t size, const Lie &keys_lie, const Lie &values_lie, bool causal, float scale, int64_t room, const At &x,
                   const At &keys, const At &values, const At &y, const At &scores, const At &position) {
    auto step = std::make_unique<AttentionStep>();
    const int64_t at_once = columns ? columns * kernels(isa).lanes : 1;
    step->kernel = columns ? kernels(isa).attend_panel : kernels(isa).attend_row;
    step->attention = {keys_of(keys_lie), keys_of(values_lie), queries, of_batch, 0, size, at_once, columns, causal, scale};
    step->at_once = at_once, step->count = (queries + at_once - 1) / at_once, step->apart = heads * size * at_once;
    step->heads = heads, step->of_keys = of_keys, step->query_head = size * at_once;
    step->key_head = size * std::get<3>(keys_lie), step->value_head = size * std::get<3>(values_lie);
    step->room = room;
    step->x = place(x), step->keys = place(keys), step->values = place(values), step->y = place(y);
    step->scores = place(scores), step->position = place(position);
    owner.program.add(std::move(step));
}

void add_byte_rows(Owner &owner, const std::string &isa, const Array<int8_t> &q, const Array<float> &scale, const At &x, const At &y) {
    auto step = std::make_unique<ByteRowsStep>();
    step->kernel = kernels(isa).byte_rows;
    step->q = owner.keep(q), step->scale = owner.keep(scale);
    step->rows = int64_t(scale.size()), step->inputs = scale.size() ? int64_t(q.size() / scale.size()) : 0;
    step->x = place(x), step->y = place(y);
    owner.program.add(std::move(step));
}

void add_copy(Owner &owner, int64_t count, const At &x, const At &y) {
    auto step = std::make_unique<CopyStep>();
    step->count = count, step->x = place(x), step->y = place(y);
    owner.program.add(std::move(step));
}

}  // namespace
}  // namespace secateurs

NB_MODULE(_native, m) {
    using namespace secateurs;
    m.def("instruction_sets", [] {
        std::vector<std::tuple<std::string, int>> found;
        for (const Kernels *each : supported()) found.emplace_back(each->name, each->lanes);
        return found;
    }, "Name and lanes of each instruction set that this machine has, the best one first.");
    m.def("activate", [](const std::string &isa, int kind, float low, float high, uintptr_t x, int64_t count) {
        kernels(isa).activate(kind, low, high, reinterpret_cast<float *>(x), count);
    });
    m.def("peak", [](const std::string &isa) {
        const Kernels &table = kernels(isa);
        constexpr int64_t rounds = 2000000;
        double best = 0;
        for (int turn = 0; turn < 5; ++turn) {
            const auto start = std::chrono::steady_clock::now();
            volatile float kept = table.multiply_adds(rounds);
            (void)kept;
            const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
            best = std::max(best, 2.0 * rounds * chains * table.lanes / seconds);
        }
        return best;
    }, nb::arg("isa"), "Floating-point operations a second that one core can do.");
    m.def("columns_at_once", [](const std::string &isa, int height) { return kernels(isa).columns_at_once(height); }, nb::arg("isa"),
          nb::arg("height"), "Columns of a panel whose sums are in registers together.");
    m.def("gemv_formats", [](const std::string &isa) {
        std::vector<std::tuple<std::string, std::string>> found;
        const Kernels &table = kernels(isa);
        for (int32_t i = 0; i < table.gemv_count; ++i)
            if (table.gemv[i].kernel) found.emplace_back(table.gemv[i].format, table.gemv[i].values);
        return found;
    }, nb::arg("isa"), "The formats for single vectors that an instruction set has kernels for.");
    m.def("count_nonzeros", [](const Array<float> &values, int64_t height, const Array<int64_t> &edges, const Room<int64_t> &counts) {
        const Weights of = weights(values, height, edges);
        if (int64_t(counts.size()) != of.rows / height * of.blocks) throw std::invalid_argument("a count for each row and block");
        nb::gil_scoped_release free;
        (height == 1 ? count_nonzeros<1> : height == 4 ? count_nonzeros<4> : count_nonzeros<0>)(of, counts.data());
    }, nb::arg("values"), nb::arg("height"), nb::arg("edges"), nb::arg("counts"), "Nonzeros of each row and block of inputs.");
    m.def("fill_nonzeros", [](const Array<float> &values, int64_t height, const Array<int64_t> &edges, const Array<int64_t> &counts,
                              const Array<int64_t> &starts, const Array<int64_t> &offsets, const Room<int32_t> &offset_of, const Room<float> &value_of) {
        const Weights of = weights(values, height, edges);
        const bool shared = int64_t(offsets.size()) == of.inputs;
        const size_t pieces = size_t(of.rows / height * of.blocks);
        if (starts.size() != pieces || counts.size() != pieces || (!shared && offsets.size() != values.size()) ||
            value_of.size() != offset_of.size() * size_t(height))
            throw std::invalid_argument("a start for each row and block, an offset for each input");
        nb::gil_scoped_release free;
        (height == 1 ? fill_nonzeros<1> : height == 4 ? fill_nonzeros<4> : fill_nonzeros<0>)(
            of, counts.data(), starts.data(), offsets.data(), shared ? 0 : of.inputs, offset_of.data(), value_of.data());
    }, nb::arg("values"), nb::arg("height"), nb::arg("edges"), nb::arg("counts"), nb::arg("starts"), nb::arg("offsets"), nb::arg("offset_of"),
       nb::arg("value_of"), "Nonzeros and their offsets, where each row and block begins.");
    nb::class_<Arena>(m, "Arena").def(nb::init<int64_t>(), nb::arg("bytes")).def_prop_ro("address", &Arena::address);
    nb::class_<Owner>(m, "Program")
        .def(nb::init<>())
        .def("__len__", [](const Owner &owner) { return owner.program.size(); })
        .def("spmm", add_spmm, nb::arg("isa"), nb::arg("height"), nb::arg("columns"), nb::arg("stride"), nb::arg("rows"),
             nb::arg("offsets"), nb::arg("values"), nb::arg("blocks"), nb::arg("chunks"), nb::arg("bias"), nb::arg("panels"),
             nb::arg("x"), nb::arg("y"), nb::arg("residual"), nb::arg("out"), nb::arg("y_stride"), nb::arg("residual_stride"), nb::arg("out_stride"),
             nb::arg("y_member"), nb::arg("from_"), nb::arg("there"), nb::arg("order"), nb::arg("counts"), nb::arg("masks"),
             nb::arg("places"), nb::arg("activation"), nb::arg("low"), nb::arg("high"))
        .def("move", add_move, nb::arg("isa"), nb::arg("moves"), nb::arg("table"), nb::arg("images"), nb::arg("channels"),
             nb::arg("group"), nb::arg("x"), nb::arg("y"), nb::arg("x_image"), nb::arg("y_image"), nb::arg("x_stride"),
             nb::arg("y_stride"), nb::arg("fill"))
        .def("tiles", add_tiles, nb::arg("isa"), nb::arg("pack"), nb::arg("at"), nb::arg("held"), nb::arg("from_"), nb::arg("there"),
             nb::arg("neighbour"), nb::arg("rows"), nb::arg("columns"), nb::arg("own"), nb::arg("apart"),
             nb::arg("edges"), nb::arg("images"), nb::arg("channels"), nb::arg("group"), nb::arg("x"), nb::arg("y"), nb::arg("x_image"),
             nb::arg("y_image"), nb::arg("x_stride"), nb::arg("y_stride"), nb::arg("fill"))
        .def("window", add_window, nb::arg("isa"), nb::arg("taps"), nb::arg("factors"), nb::arg("columns"), nb::arg("stride"),
             nb::arg("panels"), nb::arg("panels_of_image"), nb::arg("channels"), nb::arg("group"), nb::arg("x"), nb::arg("y"),
             nb::arg("x_stride"), nb::arg("y_stride"))
        .def("mean", add_mean, nb::arg("isa"), nb::arg("weights"), nb::arg("columns"), nb::arg("panels"), nb::arg("images"),
             nb::arg("channels"), nb::arg("group"), nb::arg("x"), nb::arg("y"), nb::arg("x_image"), nb::arg("x_panel"),
             nb::arg("x_stride"))
        .def("pointwise", add_pointwise, nb::arg("isa"), nb::arg("scale"), nb::arg("shift"), nb::arg("panels"),
             nb::arg("panels_of_image"), nb::arg("channels"), nb::arg("group"), nb::arg("count"), nb::arg("x"), nb::arg("y"),
             nb::arg("z"), nb::arg("factors"), nb::arg("of_panel"), nb::arg("of_channel"), nb::arg("activation"), nb::arg("low"), nb::arg("high"))
        .def("tokens", add_tokens, nb::arg("isa"), nb::arg("pack"), nb::arg("positions"), nb::arg("channels"), nb::arg("row_stride"),
             nb::arg("channel_stride"), nb::arg("columns"), nb::arg("panels"), nb::arg("x_panel"), nb::arg("y_panel"), nb::arg("x"),
             nb::arg("y"))
        .def("gemv", add_gemv, nb::arg("isa"), nb::arg("format"), nb::arg("number"), nb::arg("rows"), nb::arg("steps"),
             nb::arg("nonzeros"), nb::arg("spans"), nb::arg("counts"), nb::arg("codes"), nb::arg("data"), nb::arg("scale"),
             nb::arg("bias"), nb::arg("bounds"), nb::arg("inputs"), nb::arg("outputs"), nb::arg("blocks"), nb::arg("vectors"), nb::arg("stride"),
             nb::arg("x"), nb::arg("y"), nb::arg("residual"), nb::arg("activation"), nb::arg("low"), nb::arg("high"))
        .def("cell", add_cell, nb::arg("isa"), nb::arg("rows"), nb::arg("width"), nb::arg("gates"), nb::arg("more"), nb::arg("state"),
             nb::arg("out"))
        .def("norm", add_norm, nb::arg("isa"), nb::arg("columns"), nb::arg("count"), nb::arg("apart"), nb::arg("weight"), nb::arg("bias"),
             nb::arg("groups"), nb::arg("centred"), nb::arg("eps"), nb::arg("x"), nb::arg("y"))
        .def("combine", add_combine, nb::arg("isa"), nb::arg("count"), nb::arg("multiplies"), nb::arg("x"), nb::arg("z"), nb::arg("y"),
             nb::arg("activation"), nb::arg("low"), nb::arg("high"))
        .def("rotary", add_rotary, nb::arg("isa"), nb::arg("heads"), nb::arg("size"), nb::arg("width"), nb::arg("stride"),
             nb::arg("count"), nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("y"))
        .def("keep", add_keep, nb::arg("isa"), nb::arg("positions"), nb::arg("channels"), nb::arg("columns"), nb::arg("x"), nb::arg("y"),
             nb::arg("position"))
        .def("attention", add_attention, nb::arg("isa"), nb::arg("columns"), nb::arg("queries"), nb::arg("of_batch"), nb::arg("heads"),
             nb::arg("of_keys"), nb::arg("size"), nb::arg("keys_lie"), nb::arg("values_lie"), nb::arg("causal"), nb::arg("scale"),
             nb::arg("room"), nb::arg("x"), nb::arg("keys"), nb::arg("values"), nb::arg("y"), nb::arg("scores"), nb::arg("position"))
        .def("byte_rows", add_byte_rows, nb::arg("isa"), nb::arg("q"), nb::arg("scale"), nb::arg("x"), nb::arg("y"))
        .def("copy", add_copy, nb::arg("count"), nb::arg("x"), nb::arg("y"))
        .def("run", [](const Owner &owner, const std::vector<uintptr_t> &buffers, int threads) {
            const std::vector<float *> places = pointers(buffers);
            nb::gil_scoped_release free;
            owner.program.run(places.data(), threads);
        }, nb::arg("buffers"), nb::arg("threads"))
        .def("timed", [](const Owner &owner, const std::vector<uintptr_t> &buffers, int threads) {
            const std::vector<float *> places = pointers(buffers);
            nb::gil_scoped_release free;
            return owner.program.timed(places.data(), threads);
        }, nb::arg("buffers"), nb::arg("threads"), "Seconds that each step takes.");
}
