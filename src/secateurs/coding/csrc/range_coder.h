// Arithmetic coding of decisions between two, each with a probability of 16 bits; and the probabilities that learn.
#pragma once
#include <utility>

#include "codec.h"
#include "tables.h"

namespace secateurs::coding {

// Yes takes the lower part of the range. 64 bits of the code are open, of which 32 leave at a time.
class RangeEncoder {
  public:
    bool code(bool yes, uint32_t probability) {
        const uint64_t part = (range_ >> 16) * probability;
        if (yes) {
            range_ = part;
        } else {
            low_ += part;
            if (low_ < part) carry();
            range_ -= part;
        }
        if (range_ >> 32 == 0) {
            for (int shift = 56; shift >= 32; shift -= 8) bytes_.push_back(uint8_t(low_ >> shift));
            low_ <<= 32;
            range_ <<= 32;
        }
        return yes;
    }

    // The fewest bytes of a number within the range: what follows is read as zeros.
    Bytes finish() {
        for (int count = 0; count <= 8; ++count) {
            const unsigned __int128 unit = static_cast<unsigned __int128>(1) << (64 - 8 * count);
            const unsigned __int128 number = (low_ + unit - 1) / unit * unit;
            if (number >= static_cast<unsigned __int128>(low_) + range_) continue;
            if (number >> 64) carry();
            for (int at = 0; at < count; ++at) bytes_.push_back(uint8_t(uint64_t(number) >> (56 - 8 * at)));
            break;
        }
        return std::move(bytes_);
    }

    explicit RangeEncoder(Bytes head = {}) : bytes_(std::move(head)), head_(bytes_.size()) {}

  private:
    void carry() {
        for (size_t at = bytes_.size(); at > head_ && ++bytes_[at - 1] == 0;) --at;
    }

    Bytes bytes_;
    size_t head_;
    uint64_t low_ = 0, range_ = ~uint64_t(0);
};

class RangeDecoder {
  public:
    RangeDecoder(Span span, size_t from) : span_(span), at_(from) {
        code_ = next();
        code_ = code_ << 32 | next();
    }

    bool code(bool, uint32_t probability) {
        const uint64_t part = (range_ >> 16) * probability;
        const bool yes = code_ < part;
        range_ = yes ? part : range_ - part;
        code_ -= yes ? 0 : part;
        if (range_ >> 32 == 0) {
            range_ <<= 32;
            code_ = code_ << 32 | next();
        }
        return yes;
    }

    // Past the last byte that was looked at; the encoder wrote at most eight fewer.
    size_t at() const { return at_; }

  private:
    uint64_t next() {
        if (__builtin_expect(at_ + 4 > span_.size, 0)) return beyond();
        const uint8_t *from = span_.data + at_;
        at_ += 4;
        return uint32_t(from[0]) << 24 | uint32_t(from[1]) << 16 | uint32_t(from[2]) << 8 | from[3];
    }

    [[gnu::noinline, gnu::cold]] uint64_t beyond() {
        if (at_ + 4 > span_.size + 8) throw Malformed("it ends too early");
        uint32_t found = 0;
        for (size_t end = at_ + 4; at_ < end; ++at_) found = found << 8 | (at_ < span_.size ? span_.data[at_] : 0);
        return found;
    }

    Span span_;
    size_t at_;
    uint64_t code_ = 0, range_ = ~uint64_t(0);
};

// Codes nothing, and counts what it would take.
class BitCounter {
  public:
    bool code(bool yes, uint32_t probability) {
        bits_ += tables.cost[(yes ? probability : 65536 - probability) >> 4];
        return yes;
    }
    double bits() const { return double(bits_) / 65536; }

  private:
    uint64_t bits_ = 0;
};

// A probability of 22 bits, and how many decisions it has seen: the mean of them, and after `limit` a sliding one.
class Chance {
  public:
    uint32_t p16() const { return state_ >> 16; }
    uint32_t p12() const { return state_ >> 20; }
    int seen() const { return int(state_ & 1023); }
    void learn(bool yes, int limit) {
        const int n = seen();
        const int32_t p = int32_t(state_ >> 10), target = yes ? (1 << 22) - 1 : 0;
        const int32_t moved = p + int32_t((int64_t(target - p) * tables.count[n]) >> 16);
        state_ = uint32_t(moved) << 10 | uint32_t(n < limit ? n + 1 : n);
    }

  private:
    uint32_t state_ = uint32_t(1) << 31;
};

inline uint32_t sure(uint32_t probability) { return probability < 32 ? 32 : probability > 65504 ? 65504 : probability; }

// One decision on one probability.
template <typename Coder>
bool code(Coder &coder, bool yes, Chance &chance, int limit = 1023) {
    yes = coder.code(yes, sure(chance.p16()));
    chance.learn(yes, limit);
    return yes;
}

} // namespace secateurs::coding
