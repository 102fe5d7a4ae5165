// Numbers as few tokens: 0, -1, 1, -2, … one each as far as 512 go, the others by their number of bits, which then follow.
#pragma once
#include "range_coder.h"

namespace secateurs::coding {

constexpr uint32_t direct_tokens = 512, most_tokens = 535;

struct Token {
    uint32_t token;
    int width; // of what follows
    uint32_t rest;
};

inline Token token_of(int32_t number) {
    const uint32_t folded = uint32_t(number) << 1 ^ (number < 0 ? ~uint32_t(0) : 0);
    if (folded < direct_tokens) return {folded, 0, 0};
    const int length = bit_length(folded);
    return {direct_tokens + uint32_t(length) - 10, length - 1, folded - (uint32_t(1) << (length - 1))};
}

inline int rest_width(uint32_t token) { return token < direct_tokens ? 0 : int(token - direct_tokens) + 9; }

inline int32_t number_of(uint32_t token, uint32_t rest) {
    const uint32_t folded = token < direct_tokens ? token : (uint32_t(1) << (token - direct_tokens + 9)) + rest;
    return int32_t(folded >> 1 ^ (folded & 1 ? ~uint32_t(0) : 0));
}

inline std::vector<int64_t> counts_of(const int32_t *numbers, int64_t count) {
    std::vector<int64_t> counts(most_tokens);
    for (int64_t at = 0; at < count; ++at) ++counts[token_of(numbers[at]).token];
    while (!counts.back()) counts.pop_back();
    return counts;
}

// A table of numbers below 2^15, one a token, at the head of a payload: its length, the bytes that it takes, and the bytes. Each is
// coded as its number of bits (four decisions, by that of the one before), and then the bits below the highest.
template <typename Coder>
uint32_t code_entry(Coder &coder, uint32_t entry, Chance (&chances)[16][16], int &before) {
    const int wanted = bit_length(entry);
    int node = 1;
    for (int at = 3; at >= 0; --at) node = node * 2 + code(coder, wanted >> at & 1, chances[before][node], 30);
    before = node - 16;
    if (!before) return 0;
    uint32_t value = 1;
    for (int at = before - 2; at >= 0; --at) value = value * 2 + coder.code(entry >> at & 1, 32768);
    return value;
}

inline Bytes encode_table(const std::vector<uint32_t> &table) {
    RangeEncoder coder;
    Chance chances[16][16];
    int before = 0;
    for (uint32_t entry : table) code_entry(coder, entry, chances, before);
    const Bytes coded = coder.finish();
    Bytes head;
    for (size_t size : {table.size(), coded.size()}) {
        head.push_back(uint8_t(size >> 8));
        head.push_back(uint8_t(size));
    }
    for (uint8_t byte : coded) head.push_back(byte);
    return head;
}

// The table, and where the payload goes on.
inline std::vector<uint32_t> decode_table(Span span, size_t &end) {
    if (span.size < 4) throw Malformed("it ends too early");
    const uint32_t entries = uint32_t(span.data[0]) << 8 | span.data[1], bytes = uint32_t(span.data[2]) << 8 | span.data[3];
    if (!entries || entries > most_tokens) throw Malformed("a table of no length that there is");
    if (span.size - 4 < bytes) throw Malformed("it ends too early");
    const Span coded{span.data + 4, bytes};
    RangeDecoder coder(coded, 0);
    Chance chances[16][16];
    int before = 0;
    std::vector<uint32_t> table(entries);
    for (uint32_t &entry : table) entry = code_entry(coder, 0, chances, before);
    check_end(coded, coder.at() - 8, coder.at(), 0);
    if (!table.back()) throw Malformed("a table that ends in nothing");
    end = 4 + bytes;
    return table;
}

} // namespace secateurs::coding
