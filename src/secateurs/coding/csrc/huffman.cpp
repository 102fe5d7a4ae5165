// Canonical prefix codes of at most 15 bits, one a token.
#include <algorithm>
#include <numeric>

#include "bits.h"
#include "tokens.h"

namespace secateurs::coding::huffman {
namespace {

constexpr int longest = 15, looked_up = 11;

// The lengths of the best code whose words have at most 15 bits (package-merge): of 2·tokens - 2 cheapest items of the last row, each
// token's length is how often it is in them. Among equals tokens come before packages, and earlier ones before later ones.
std::vector<uint32_t> lengths_of(const std::vector<int64_t> &counts) {
    std::vector<uint32_t> tokens, lengths(counts.size());
    for (uint32_t token = 0; token < counts.size(); ++token)
        if (counts[token]) tokens.push_back(token);
    if (tokens.size() == 1) {
        lengths[tokens[0]] = 1;
        return lengths;
    }
    std::stable_sort(tokens.begin(), tokens.end(), [&](uint32_t a, uint32_t b) { return counts[a] < counts[b]; });
    struct Item {
        int64_t weight;
        int32_t token; // or -1: a package, of items 2·pair and 2·pair + 1 of the row before
        uint32_t pair;
    };
    std::vector<std::vector<Item>> rows(longest);
    for (int row = 0; row < longest; ++row) {
        std::vector<Item> packages;
        if (row)
            for (uint32_t pair = 0; 2 * pair + 1 < rows[row - 1].size(); ++pair)
                packages.push_back({rows[row - 1][2 * pair].weight + rows[row - 1][2 * pair + 1].weight, -1, pair});
        auto package = packages.begin();
        for (uint32_t token : tokens) {
            while (package != packages.end() && package->weight < counts[token]) rows[row].push_back(*package++);
            rows[row].push_back({counts[token], int32_t(token), 0});
        }
        rows[row].insert(rows[row].end(), package, packages.end());
    }
    size_t taken = 2 * tokens.size() - 2;
    for (int row = longest - 1; row >= 0; --row) {
        size_t packages = 0;
        for (size_t at = 0; at < taken; ++at) {
            const Item &item = rows[row][at];
            if (item.token < 0)
                ++packages;
            else
                ++lengths[item.token];
        }
        taken = 2 * packages;
    }
    return lengths;
}

struct Code {
    std::vector<uint32_t> words, order; // order: tokens by length, then by number
    uint32_t first[longest + 2] = {}, before[longest + 2] = {}; // of each length: its first word, and how many tokens have a shorter one
};

// Throws where the lengths are not those of a code in which every row of bits means something.
Code code_of(const std::vector<uint32_t> &lengths) {
    Code code;
    uint32_t of_length[longest + 1] = {};
    for (uint32_t length : lengths) {
        if (length > uint32_t(longest)) throw Malformed("a word of more than 15 bits");
        ++of_length[length];
    }
    code.words.resize(lengths.size());
    uint32_t word = 0, before = 0;
    for (int length = 1; length <= longest; ++length) {
        word <<= 1;
        code.first[length] = word;
        code.before[length] = before;
        for (uint32_t token = 0; token < lengths.size(); ++token)
            if (lengths[token] == uint32_t(length)) {
                code.words[token] = word++;
                code.order.push_back(token);
            }
        before += of_length[length];
        if (word > uint32_t(1) << length) throw Malformed("more words than there are");
    }
    code.before[longest + 1] = before;
    const bool alone = before == 1 && of_length[1] == 1;
    if (word != uint32_t(1) << longest && !alone) throw Malformed("a code with words that mean nothing");
    return code;
}

} // namespace

Bytes encode(const int32_t *numbers, Shape shape) {
    const int64_t count = shape.numbers();
    if (!count) return {};
    const std::vector<uint32_t> lengths = lengths_of(counts_of(numbers, count));
    const Code code = code_of(lengths);
    const bool alone = code.order.size() == 1;
    BitWriter bits(encode_table(lengths));
    for (int64_t at = 0; at < count; ++at) {
        const Token token = token_of(numbers[at]);
        if (!alone) bits.put(code.words[token.token], int(lengths[token.token]));
        if (token.width) bits.put(token.rest, token.width);
    }
    return padded(bits.finish(), count);
}

void decode(Span span, Shape shape, int32_t *found) {
    const int64_t count = shape.numbers();
    if (!count) return check_end(span, 0, 0, 0);
    size_t from = 0;
    const std::vector<uint32_t> lengths = decode_table(span, from);
    const Code code = code_of(lengths);
    const bool alone = code.order.size() == 1;
    struct Entry {
        int32_t number;
        uint16_t token;
        uint8_t length, escape;
    };
    std::vector<Entry> table(1 << looked_up);
    for (uint32_t token : code.order) {
        const int length = int(lengths[token]);
        if (length > looked_up) break;
        const Entry entry{token < direct_tokens ? number_of(token, 0) : 0, uint16_t(token), uint8_t(length), token >= direct_tokens};
        std::fill_n(table.begin() + (code.words[token] << (looked_up - length)), 1 << (looked_up - length), entry);
    }
    BitReader bits(span, from);
    for (int64_t at = 0; at < count; ++at) {
        uint32_t token = code.order[0];
        if (!alone) {
            const uint32_t next = bits.peek(longest);
            const Entry &entry = table[next >> (longest - looked_up)];
            if (entry.length && !entry.escape) {
                bits.skip(entry.length);
                found[at] = entry.number;
                continue;
            }
            int length = entry.length;
            if (length) {
                token = entry.token;
            } else {
                length = looked_up + 1;
                while ((next >> (longest - length)) - code.first[length] >= code.before[length + 1] - code.before[length]) ++length;
                token = code.order[code.before[length] + (next >> (longest - length)) - code.first[length]];
            }
            bits.skip(length);
        }
        const int width = rest_width(token);
        found[at] = number_of(token, width ? bits.get(width) : 0);
    }
    bits.finish(count);
}

} // namespace secateurs::coding::huffman
