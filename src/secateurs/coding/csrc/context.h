// The model of the context coder: which probability decides on what, by the neighbours that are known.
//
// A number is coded as: is it other than zero; is it negative; how many bits its magnitude has (one decision each: more?); the bits
// below the highest. Each probability is the mean of two, which know different neighbours and forget at different speeds.
#pragma once
#include "neighbours.h"
#include "range_coder.h"

namespace secateurs::coding::context {

class Model {
  public:
    Model(Shape shape, int magnitude_bits)
        : inner_(int(shape.inner)), bits_(magnitude_bits), side_(side(shape.inner)),
          apart_(shape.inner > 1 ? int(shape.inner) : 3), rows_(shape), own_(nodes_from + 1024),
          shared_(nodes_from + 17 * 512), columns_nonzero_(size_t(shape.columns), 32768) {}

    void next_row() {
        if (row_ >= 0) rows_.next();
        ++row_;
    }

    // Looks around at the number that is to be coded; after that `code`, and `know`.
    void look(int64_t column, int position) {
        column_ = column;
        position_ = position;
        at_ = column * inner_ + position;
        if (position == 0) kernel_nonzero_ = 0;
        const int16_t *row = rows_.row(0) + at_;
        beneath_ = side_ > 1 && position >= side_ ? row[-side_] : 0;
        across_ = row[-apart_];
        over_ = rows_.row(1)[at_];
        second_over_ = rows_.row(2)[at_];
        const int around = (row[-1] != 0) | (row[-2] != 0) << 1 | (across_ != 0) << 2 | (over_ != 0) << 3 | (beneath_ != 0) << 4 |
                           (second_over_ != 0) << 5;
        at_zero_[0] = around | std::min(kernel_nonzero_, 3) << 6;
        at_zero_[1] = ((lately_nonzero_ >> 12) * 16 + int(columns_nonzero_[size_t(column)] >> 12)) * 16 + std::min(position, 15);
    }

    template <typename Coder>
    int32_t code(Coder &coder, int32_t number) {
        if (!decide(coder, number != 0, at_zero_[0], at_zero_[1])) return 0;
        look_closer();
        const bool negative = decide(coder, number < 0, at_sign_[0], at_sign_[1]);
        const int own = nodes_from + 512 * negative, sized = nodes_from + 512 * size_, plain = nodes_from + 512 * 16;
        const uint32_t wanted = magnitude(number);
        const int wanted_log = bit_length(wanted) - 1;
        int log = 0;
        while (log < bits_ - 1 && decide(coder, wanted_log > log, own + log, sized + log)) ++log;
        uint32_t found = 1;
        for (int at = log - 1; at >= 0; --at) {
            const bool bit = wanted >> at & 1;
            const int depth = log - 1 - at;
            if (log > 7 && depth > 2) {
                found = found * 2 + coder.code(bit, 32768);
                continue;
            }
            const int node = 32 + (log <= 7 ? (1 << log) + int(found) : 256 + (log - 8) * 8 + int(found));
            found = found * 2 + decide(coder, bit, own + node, (depth < 2 ? sized : plain) + node);
        }
        if (log == 31 && (!negative || found > uint32_t(1) << 31)) throw Malformed("a number of more than 32 bits");
        return int32_t(negative ? 0u - found : found);
    }

    // What `code` would take now, in 2^-16 bits; `look_closer` comes before.
    uint64_t cost(int32_t number) const {
        uint64_t bits = price(number != 0, at_zero_[0], at_zero_[1]);
        if (!number) return bits;
        const bool negative = number < 0;
        bits += price(negative, at_sign_[0], at_sign_[1]);
        const int own = nodes_from + 512 * negative, sized = nodes_from + 512 * size_, plain = nodes_from + 512 * 16;
        const uint32_t wanted = magnitude(number);
        const int wanted_log = bit_length(wanted) - 1;
        for (int log = 0; log < bits_ - 1 && log <= wanted_log; ++log) bits += price(wanted_log > log, own + log, sized + log);
        for (int at = wanted_log - 1; at >= 0; --at) {
            const int depth = wanted_log - 1 - at, found = int(wanted >> (at + 1));
            if (wanted_log > 7 && depth > 2) return bits + (uint64_t(at + 1) << 16);
            const int node = 32 + (wanted_log <= 7 ? (1 << wanted_log) + found : 256 + (wanted_log - 8) * 8 + found);
            bits += price(wanted >> at & 1, own + node, (depth < 2 ? sized : plain) + node);
        }
        return bits;
    }

    // What matters where the number is not zero.
    void look_closer() {
        const int16_t *row = rows_.row(0) + at_;
        const int last = row[-1], second = row[-2];
        at_sign_[0] = signs_from + sign_of(last) + 3 * sign_of(across_) + 9 * sign_of(over_) + 27 * sign_of(beneath_);
        at_sign_[1] = signs_from + sign_of(over_) + 3 * sign_of(second_over_) + 9 * sign_of(second) + 27 * std::min(position_, 9);
        size_ = bit_length(uint32_t(2 * std::abs(last) + 2 * std::abs(across_) + std::abs(over_) + std::abs(second)));
    }

    void know(int32_t number) {
        const bool nonzero = number != 0;
        rows_.row(0)[at_] = near(number);
        kernel_nonzero_ += nonzero;
        move(columns_nonzero_[size_t(column_)], nonzero, std::min<int64_t>(row_ * inner_ + position_, 4 * inner_ + 12) + 1);
        lately_nonzero_ += ((nonzero ? 65535 : 0) - lately_nonzero_) >> 6;
    }

  private:
    static constexpr int signs_from = 4096, nodes_from = 4096 + 512, slow = 1023, fast = 127;

    uint32_t chance(int own, int shared) const { return sure((own_[size_t(own)].p16() + shared_[size_t(shared)].p16()) >> 1); }

    uint64_t price(bool yes, int own, int shared) const {
        const uint32_t p = chance(own, shared);
        return tables.cost[(yes ? p : 65536 - p) >> 4];
    }

    template <typename Coder>
    bool decide(Coder &coder, bool yes, int own, int shared) {
        yes = coder.code(yes, chance(own, shared));
        own_[size_t(own)].learn(yes, slow);
        shared_[size_t(shared)].learn(yes, fast);
        return yes;
    }

    int inner_, bits_, side_, apart_;
    Rows<int16_t> rows_;
    std::vector<Chance> own_, shared_;
    std::vector<uint32_t> columns_nonzero_;
    int lately_nonzero_ = 32768;
    int64_t row_ = -1, column_ = 0, at_ = 0;
    int across_ = 0, over_ = 0, second_over_ = 0, beneath_ = 0;
    int position_ = 0, kernel_nonzero_ = 0, size_ = 0;
    int at_zero_[2] = {}, at_sign_[2] = {};
};

// Walks through all numbers with a coder that reads or writes them.
template <typename Coder>
void walk(Coder &coder, Shape shape, int magnitude_bits, const int32_t *numbers, int32_t *found) {
    Model model(shape, magnitude_bits);
    walk_with(model, coder, shape, numbers, found);
}

} // namespace secateurs::coding::context
