// What the coders share: shapes, bytes, and the ways in and out.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace secateurs::coding {

using Bytes = std::vector<uint8_t>;

struct Shape {
    int64_t rows, columns, inner;
    int64_t numbers() const { return rows * columns * inner; }
};

struct Span {
    const uint8_t *data;
    size_t size;
};

// Bytes that no encoder wrote.
struct Malformed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A payload has at least so many bytes, so that a short file cannot ask for much memory; what is short of it is filled with zeros.
inline size_t least_bytes(int64_t numbers) {
    const int64_t bytes = (numbers + 8191) / 8192 - 64;
    return bytes > 0 ? size_t(bytes) : 0;
}

inline Bytes padded(Bytes bytes, int64_t numbers) {
    if (bytes.size() < least_bytes(numbers)) bytes.resize(least_bytes(numbers), 0);
    return bytes;
}

// A payload whose coder needs at least `least` bytes and may read up to `most` ends here.
inline void check_end(Span span, size_t least, size_t most, int64_t numbers) {
    if (span.size < least) throw Malformed("it ends too early");
    if (span.size <= most) return;
    if (span.size != least_bytes(numbers)) throw Malformed("bytes are left over");
    for (size_t at = most; at < span.size; ++at)
        if (span.data[at]) throw Malformed("bytes are left over");
}

inline uint32_t magnitude(int32_t number) { return number < 0 ? 0u - uint32_t(number) : uint32_t(number); }

inline int bit_length(uint32_t number) { return number ? 32 - __builtin_clz(number) : 0; }

inline int bit_length(const int32_t *numbers, int64_t count) {
    uint32_t all = 0;
    for (int64_t at = 0; at < count; ++at) all |= magnitude(numbers[at]);
    return bit_length(all);
}

#define SECATEURS_CODER(name)                            \
    namespace name {                                     \
    Bytes encode(const int32_t *numbers, Shape shape);   \
    void decode(Span span, Shape shape, int32_t *found); \
    }
SECATEURS_CODER(fixed)
SECATEURS_CODER(huffman)
SECATEURS_CODER(rans)
SECATEURS_CODER(context)
SECATEURS_CODER(mixed)
#undef SECATEURS_CODER

namespace context {
double bits(const int32_t *numbers, Shape shape);
}

// What rate-distortion quantisation chooses from: levels lowest, lowest + 1, … of these values, of each run of numbers its own.
struct Choices {
    const float *table; // (runs, levels), or null: value = level × scale
    const float *scale; // (runs,)
    int64_t runs, levels;
    int32_t lowest;
};
void rate_distortion(const float *values, const float *weights, Shape shape, Choices choices, double price, int32_t *found);

} // namespace secateurs::coding
