// Static asymmetric numeral systems: four states take turns, each of which takes in a token by its frequency in 2^14.
#include <algorithm>
#include <numeric>

#include "bits.h"
#include "tokens.h"

namespace secateurs::coding::rans {
namespace {

constexpr int scale = 14, states = 4;
constexpr uint32_t whole = uint32_t(1) << scale, least_state = uint32_t(1) << 16;

// Shares of 2^14 as near to the counts as whole numbers above 0 come. What rounding down leaves goes to the largest remainders; what
// tokens too rare for a share of their own take comes off the largest share.
std::vector<uint32_t> shares_of(const std::vector<int64_t> &counts) {
    const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t(0));
    std::vector<uint32_t> shares(counts.size()), order;
    std::vector<int64_t> remainders(counts.size());
    int64_t left = whole;
    for (uint32_t token = 0; token < counts.size(); ++token) {
        if (!counts[token]) continue;
        const int64_t exact = counts[token] * whole;
        shares[token] = uint32_t(std::max<int64_t>(1, exact / total));
        remainders[token] = exact / total ? exact % total : 0;
        left -= shares[token];
        order.push_back(token);
    }
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return remainders[a] > remainders[b]; });
    for (size_t at = 0; left > 0; ++at, --left) ++shares[order[at % order.size()]];
    for (; left < 0; ++left) --*std::max_element(shares.begin(), shares.end());
    return shares;
}

std::vector<uint32_t> starts_of(const std::vector<uint32_t> &shares) {
    std::vector<uint32_t> starts(shares.size() + 1);
    for (size_t token = 0; token < shares.size(); ++token) starts[token + 1] = starts[token] + shares[token];
    return starts;
}

} // namespace

Bytes encode(const int32_t *numbers, Shape shape) {
    const int64_t count = shape.numbers();
    if (!count) return {};
    const std::vector<uint32_t> shares = shares_of(counts_of(numbers, count));
    const std::vector<uint32_t> starts = starts_of(shares);
    uint32_t state[states];
    std::fill_n(state, states, least_state);
    std::vector<uint16_t> words;
    bool rests = false;
    for (int64_t at = count - 1; at >= 0; --at) {
        const Token token = token_of(numbers[at]);
        uint32_t &x = state[at % states];
        const uint32_t share = shares[token.token];
        rests |= token.width > 0;
        if (uint64_t(x) >= uint64_t(share) << (32 - scale)) {
            words.push_back(uint16_t(x));
            x >>= 16;
        }
        x = (x / share << scale) + x % share + starts[token.token];
    }
    Bytes bytes = encode_table(shares);
    for (uint32_t each : state)
        for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(uint8_t(each >> shift));
    for (auto word = words.rbegin(); word != words.rend(); ++word) {
        bytes.push_back(uint8_t(*word >> 8));
        bytes.push_back(uint8_t(*word));
    }
    BitWriter bits(std::move(bytes));
    for (int64_t at = 0; rests && at < count; ++at)
        if (const Token token = token_of(numbers[at]); token.width) bits.put(token.rest, token.width);
    return padded(bits.finish(), count);
}

void decode(Span span, Shape shape, int32_t *found) {
    const int64_t count = shape.numbers();
    if (!count) return check_end(span, 0, 0, 0);
    size_t at = 0;
    const std::vector<uint32_t> shares = decode_table(span, at);
    if (std::accumulate(shares.begin(), shares.end(), uint64_t(0)) != whole) throw Malformed("shares that do not add up");
    struct Entry {
        int32_t number;
        uint16_t share, above; // above: how far this is from the token's first
    };
    std::vector<Entry> table(whole);
    uint32_t start = 0;
    bool rests = false;
    for (uint32_t token = 0; token < shares.size(); ++token) {
        for (uint32_t above = 0; above < shares[token]; ++above)
            table[start + above] = {number_of(token, 0), uint16_t(shares[token]), uint16_t(above)};
        start += shares[token];
        rests |= token >= direct_tokens && shares[token];
    }
    const auto word = [&]() -> uint32_t {
        if (span.size - at < 2) throw Malformed("it ends too early");
        at += 2;
        return uint32_t(span.data[at - 2]) << 8 | span.data[at - 1];
    };
    uint32_t state[states];
    for (uint32_t &each : state) {
        each = word() << 16;
        each |= word();
        if (each < least_state) throw Malformed("a state that there is not");
    }
    const auto step = [&](uint32_t &x, int32_t &number) {
        const Entry entry = table[x & (whole - 1)];
        number = entry.number;
        x = entry.share * (x >> scale) + entry.above;
        if (x < least_state) x = x << 16 | word();
    };
    int64_t number = 0;
    for (; number + states <= count; number += states)
        for (int turn = 0; turn < states; ++turn) step(state[turn], found[number + turn]);
    for (int turn = 0; number + turn < count; ++turn) step(state[turn], found[number + turn]);
    for (uint32_t each : state)
        if (each != least_state) throw Malformed("states that do not end where they began");
    BitReader bits(span, at);
    for (number = 0; rests && number < count; ++number)
        if (const Token token = token_of(found[number]); token.width) found[number] = number_of(token.token, bits.get(token.width));
    bits.finish(count);
}


} // namespace secateurs::coding::rans
