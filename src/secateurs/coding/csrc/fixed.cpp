// Equally many bits a number: the lowest number, the width, then what each is above the lowest.
#include <algorithm>

#include "bits.h"

namespace secateurs::coding::fixed {

Bytes encode(const int32_t *numbers, Shape shape) {
    const int64_t count = shape.numbers();
    if (!count) return {};
    const auto [low, high] = std::minmax_element(numbers, numbers + count);
    const uint32_t lowest = uint32_t(*low);
    const int width = bit_length(uint32_t(*high) - lowest);
    Bytes head = {uint8_t(width), uint8_t(lowest >> 24), uint8_t(lowest >> 16), uint8_t(lowest >> 8), uint8_t(lowest)};
    head.reserve(head.size() + size_t(count) * size_t(width) / 8 + 9);
    BitWriter bits(std::move(head));
    for (int64_t at = 0; at < count && width; ++at) bits.put(uint32_t(numbers[at]) - lowest, width);
    return padded(bits.finish(), count);
}

void decode(Span span, Shape shape, int32_t *found) {
    const int64_t count = shape.numbers();
    if (!count) return check_end(span, 0, 0, 0);
    BitReader bits(span, 0);
    const int width = int(bits.get(8));
    const uint32_t lowest = bits.get(32);
    if (width > 32) throw Malformed("a number of more than 32 bits");
    if (width && span.size < size_t(count) * size_t(width) / 8) throw Malformed("it ends too early");
    for (int64_t at = 0; at < count; ++at) {
        const int64_t number = int64_t(int32_t(lowest)) + (width ? bits.get(width) : 0);
        if (number > INT32_MAX) throw Malformed("a number of more than 32 bits");
        found[at] = int32_t(number);
    }
    bits.finish(count);
}

} // namespace secateurs::coding::fixed
