// What coders that learn as they go have in common: the head, the end, and encoding before decoding.
#pragma once
#include <algorithm>

#include "neighbours.h"
#include "range_coder.h"

namespace secateurs::coding {

// The payload: how many bits the largest magnitude has, then the decisions; nothing where there are no numbers, and no decisions where
// all are zero. `walk(coder, shape, bits, numbers, found)` makes the decisions.
template <typename Walk>
Bytes encode_adaptively(const int32_t *numbers, Shape shape, Walk &&walk) {
    const int64_t count = shape.numbers();
    if (!count) return {};
    const int bits = bit_length(numbers, count);
    RangeEncoder coder(Bytes{uint8_t(bits)});
    if (bits) walk(coder, walked(shape), bits, numbers, static_cast<int32_t *>(nullptr));
    return padded(coder.finish(), count);
}

template <typename Walk>
void decode_adaptively(Span span, Shape shape, int32_t *found, Walk &&walk) {
    const int64_t count = shape.numbers();
    if (!count) return check_end(span, 0, 0, 0);
    if (!span.size) throw Malformed("it ends too early");
    const int bits = span.data[0];
    if (bits > 32) throw Malformed("a number of more than 32 bits");
    if (!bits) {
        std::fill_n(found, count, 0);
        return check_end(span, 1, 1, count);
    }
    RangeDecoder coder(span, 1);
    walk(coder, walked(shape), bits, static_cast<const int32_t *>(nullptr), found);
    check_end(span, coder.at() - 8, coder.at(), count);
}

} // namespace secateurs::coding
