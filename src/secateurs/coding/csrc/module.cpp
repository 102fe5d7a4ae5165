// What Python sees: two functions a coder, which read and write arrays that Python made.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "codec.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace secateurs::coding {
namespace {

using Numbers = nb::ndarray<const int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Room = nb::ndarray<int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Payload = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scale = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename Array>
Shape shape_of(const Array &array) {
    return {int64_t(array.shape(0)), int64_t(array.shape(1)), int64_t(array.shape(2))};
}

using Encode = Bytes (*)(const int32_t *, Shape);
using Decode = void (*)(Span, Shape, int32_t *);

void add_coder(nb::module_ &module, const std::string &name, Encode encode, Decode decode) {
    module.def((name + "_encode").c_str(), [encode](const Numbers &numbers) {
        Bytes bytes;
        {
            nb::gil_scoped_release release;
            bytes = encode(numbers.data(), shape_of(numbers));
        }
        return nb::bytes(bytes.data(), bytes.size());
    });
    module.def((name + "_decode").c_str(), [decode](const Payload &payload, const Room &found) {
        nb::gil_scoped_release release;
        decode({payload.data(), payload.size()}, shape_of(found), found.data());
    });
}

double context_bits(const Numbers &numbers) {
    nb::gil_scoped_release release;
    return context::bits(numbers.data(), shape_of(numbers));
}

void quantise(const Values &values, std::optional<Table> table, std::optional<Scale> scale, int64_t levels, int32_t lowest,
              std::optional<Values> weights, double price, const Room &found) {
    if (found.size() != values.size() || (weights && weights->size() != values.size()) || !(table || scale))
        throw std::invalid_argument("arrays that do not fit each other");
    const Choices choices{table ? table->data() : nullptr, scale ? scale->data() : nullptr,
                          int64_t(table ? table->shape(0) : scale->shape(0)), table ? int64_t(table->shape(1)) : levels, lowest};
    nb::gil_scoped_release release;
    rate_distortion(values.data(), weights ? weights->data() : nullptr, shape_of(values), choices, price, found.data());
}

} // namespace
} // namespace secateurs::coding

NB_MODULE(_native, module) {
    using namespace secateurs::coding;
    // What C++ throws is this type for as long as the process lives, also where the module is loaded twice and one of the two is gone.
    nb::exception<Malformed>(module, "Malformed", PyExc_ValueError).inc_ref();
    add_coder(module, "fixed", fixed::encode, fixed::decode);
    add_coder(module, "huffman", huffman::encode, huffman::decode);
    add_coder(module, "rans", rans::encode, rans::decode);
    add_coder(module, "context", context::encode, context::decode);
    add_coder(module, "mixed", mixed::encode, mixed::decode);
    module.def("context_bits", context_bits);
    module.def("rate_distortion", quantise, "values"_a, "table"_a.none(), "scale"_a.none(), "levels"_a, "lowest"_a, "weights"_a.none(),
               "price"_a, "found"_a);
}
