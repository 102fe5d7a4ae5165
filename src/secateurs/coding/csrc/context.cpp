// An adaptive binary range coder whose probabilities are chosen by neighbours, in the manner of DeepCABAC (arXiv 1907.11900).
#include "context.h"

#include "adaptive.h"

namespace secateurs::coding::context {

Bytes encode(const int32_t *numbers, Shape shape) { return encode_adaptively(numbers, shape, walk<RangeEncoder>); }

void decode(Span span, Shape shape, int32_t *found) { decode_adaptively(span, shape, found, walk<RangeDecoder>); }

double bits(const int32_t *numbers, Shape shape) {
    const int64_t count = shape.numbers();
    const int magnitude_bits = bit_length(numbers, count);
    BitCounter counter;
    if (magnitude_bits) walk(counter, walked(shape), magnitude_bits, numbers, nullptr);
    return counter.bits() + (count ? 8 : 0);
}

} // namespace secateurs::coding::context
