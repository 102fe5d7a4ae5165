// Bits in bytes, the first bit highest.
#pragma once
#include <utility>

#include "codec.h"

namespace secateurs::coding {

class BitWriter {
  public:
    explicit BitWriter(Bytes head) : bytes_(std::move(head)) {}

    void put(uint32_t value, int width) { // width ≤ 32
        open_ = open_ << width | value;
        filled_ += width;
        while (filled_ >= 8) bytes_.push_back(uint8_t(open_ >> (filled_ -= 8)));
    }

    Bytes finish() {
        if (filled_) bytes_.push_back(uint8_t(open_ << (8 - filled_)));
        return std::move(bytes_);
    }

  private:
    Bytes bytes_;
    uint64_t open_ = 0;
    int filled_ = 0;
};

// Zeros follow the last byte; `finish` says whether any of them was asked for.
class BitReader {
  public:
    BitReader(Span span, size_t from) : span_(span), at_(from) {}

    uint32_t peek(int width) { // width ≤ 32
        if (filled_ < width) fill();
        return uint32_t(open_ >> (filled_ - width)) & uint32_t((uint64_t(1) << width) - 1);
    }
    void skip(int width) { filled_ -= width; }
    uint32_t get(int width) {
        const uint32_t value = peek(width);
        skip(width);
        return value;
    }

    void finish(int64_t numbers) const {
        const size_t end = at_ - size_t(filled_ / 8);
        check_end(span_, end, end, numbers);
        if (filled_ % 8 && open_ & ((uint64_t(1) << filled_ % 8) - 1) << (filled_ - filled_ % 8))
            throw Malformed("the last byte is not filled with zeros");
    }

  private:
    void fill() {
        if (at_ + 4 <= span_.size) {
            const uint8_t *from = span_.data + at_;
            open_ = open_ << 32 | uint32_t(from[0]) << 24 | uint32_t(from[1]) << 16 | uint32_t(from[2]) << 8 | from[3];
            at_ += 4;
            filled_ += 32;
        } else {
            do {
                if (at_ > span_.size + 8) throw Malformed("it ends too early");
                open_ = open_ << 8 | (at_ < span_.size ? span_.data[at_] : 0);
                ++at_;
                filled_ += 8;
            } while (filled_ <= 32);
        }
    }

    Span span_;
    size_t at_;
    uint64_t open_ = 0;
    int filled_ = 0;
};

} // namespace secateurs::coding
