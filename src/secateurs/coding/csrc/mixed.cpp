#include "mixed.h"

#include "adaptive.h"

namespace secateurs::coding::mixed {
namespace {

// A mean in 1/16 of what came, over all while little has.
struct Mean {
    int32_t value = 0, seen = 0;
    void know(int32_t number, int most) {
        value += int32_t((int64_t(number * 16 - value) * tables.share[seen]) >> 16);
        seen += seen < most;
    }
};

int part_of(uint32_t density, int parts) { return int(density * uint32_t(parts) >> 16); } // density below 2^16
int octave(int number) { return std::min(7, bit_length(uint32_t(std::abs(number)))); }

class Model {
  public:
    Model(Shape shape, int magnitude_bits)
        : inner_(int(shape.inner)), bits_(magnitude_bits), side_(side(shape.inner)), apart_(inner_ > 1 ? inner_ : 3), near_(shape),
          normal_(shape), predictor_(shape), column_nonzero_(size_t(shape.columns), 32768), column_size_(size_t(shape.columns)),
          place_nonzero_(size_t(shape.columns * shape.inner), 32768) {}

    void next_row() {
        if (row_ >= 0) {
            near_.next();
            normal_.next();
        }
        ++row_;
        row_nonzero_ = all_nonzero_;
        row_size_ = all_size_;
        row_seen_ = 7;
    }

    void look(int64_t column, int position) {
        column_ = column;
        position_ = position;
        place_ = column * inner_ + position;
        if (position == 0) kernel_nonzero_ = 0;
        const int16_t *row = near_.row(0) + place_;
        last_ = row[-1];
        second_ = row[-2];
        across_ = row[-apart_];
        over_ = near_.row(1)[place_];
        beneath_ = side_ > 1 && position >= side_ ? row[-side_] : 0;
        const int second_over = near_.row(2)[place_], second_across = row[-2 * apart_];
        around_ = (last_ != 0) | (second_ != 0) << 1 | (across_ != 0) << 2 | (over_ != 0) << 3 | (beneath_ != 0) << 4 |
                  (second_over != 0) << 5;
        near_count_ = 2 * (last_ != 0) + (second_ != 0) + 2 * (across_ != 0) + (second_across != 0) + 2 * (over_ != 0) +
                      (second_over != 0) + (beneath_ != 0);
        const int16_t *normal = normal_.row(0) + place_, *above = normal_.row(1) + place_, *second = normal_.row(2) + place_;
        predictor_.look(normal, above, second, place_, position);
        const int local = (2 * std::abs(normal[-1]) + std::abs(normal[-2]) + 2 * std::abs(normal[-apart_]) +
                           std::abs(normal[-2 * apart_]) + 2 * std::abs(above[0]) + std::abs(second[0])) >> 3;
        const int row_size = row_size_ >> 4, column_size = column_size_[size_t(column)] >> 4;
        local_ = std::min(63, quarters(uint32_t(local)));
        size_ = std::min(63, quarters(uint32_t((2 * row_size + 2 * column_size + local) / 5)));
        error_of_[0] = &errors_[size_t(std::min(position, 255))];
        error_of_[1] = &errors_[size_t(256 + size_)];
        error_of_[2] = &errors_[size_t(256 + 64 + std::min(63, quarters(uint32_t((row_size + column_size) / 2))))];
        for (int at = 0; at < predictions; ++at) {
            const Mean &error = *error_of_[at];
            sharpness_[at] = tables.inverse[error.seen ? clamp(error.value >> 4, 1, 8191) : 1200];
        }
        for (int at = 0; at < 2; ++at)
            predicted_class_[at] = clamp(((int64_t(predictor_.predicted[at]) * sharpness_[at] * 17) >> 24) + 24, 0, 47);
    }

    template <typename Coder>
    int32_t code(Coder &coder, int32_t number) {
        if (!code_nonzero(coder, number != 0)) return 0;
        const bool negative = code_sign(coder, number < 0);
        const uint32_t found = code_magnitude(coder, magnitude(number), negative);
        return int32_t(negative ? 0u - found : found);
    }

    void know(int32_t number) {
        const bool nonzero = number != 0;
        const int size = int((uint64_t(magnitude(number)) << 12) >> bits_), normal = number < 0 ? -size : size;
        near_.row(0)[place_] = near(number);
        normal_.row(0)[place_] = int16_t(normal);
        if (nonzero) {
            error_of_[0]->know(std::abs(normal - predictor_.predicted[0]), 250);
            error_of_[1]->know(std::abs(normal - predictor_.predicted[1]), 250);
            error_of_[2]->know(size, 250);
            predictor_.know(normal);
        }
        kernel_nonzero_ += nonzero;
        row_seen_ = std::min(row_seen_ + 1, 1023);
        all_seen_ = std::min(all_seen_ + 1, 1023);
        const int64_t column_seen = std::min<int64_t>(row_ * inner_ + position_, 4 * inner_ + 10) + 1;
        move(row_nonzero_, nonzero, row_seen_);
        move(all_nonzero_, nonzero, all_seen_);
        move(column_nonzero_[size_t(column_)], nonzero, column_seen);
        move(place_nonzero_[size_t(place_)], nonzero, std::min<int64_t>(row_, 100) + 1);
        move(row_size_, size, row_seen_);
        move(all_size_, size, all_seen_);
        move(column_size_[size_t(column_)], size, column_seen);
    }

  private:
    static void move(uint32_t &mean, bool yes, int64_t seen) { secateurs::coding::move(mean, yes, seen); }
    static void move(int32_t &mean, int size, int64_t seen) {
        mean += int32_t((int64_t(size * 16 - mean) * tables.share[seen]) >> 16);
    }

    template <typename Coder>
    bool code_nonzero(Coder &coder, bool nonzero) {
        const uint32_t row = row_nonzero_, column = column_nonzero_[size_t(column_)], place = place_nonzero_[size_t(place_)];
        const Contexts context = {std::min(position_, 63),
                                  around_,
                                  inner_ > 1 ? std::min(position_, 9) * 6 + std::min(kernel_nonzero_, 5) : part_of(row, 40),
                                  part_of(row, 8) * 8 + part_of(column, 8),
                                  predicted_class_[0],
                                  predicted_class_[1]};
        Guesses placed{};
        for (int at = 0; at < 2; ++at) {
            const int64_t far = (int64_t(std::abs(predictor_.predicted[at])) * sharpness_[at]) >> 16;
            placed[size_t(at)] = clamp(far * 4 - 2047, -2047, 2047);
        }
        placed[2] = -2047;
        const Guesses guesses = {tables.stretch[row >> 4], tables.stretch[column >> 4], tables.stretch[place >> 4]};
        return mixer_.decide(coder, nonzero, context, 0, 0, guesses, placed, 0, std::min(near_count_, 15));
    }

    template <typename Coder>
    bool code_sign(Coder &coder, bool negative) {
        const int last = sign_of(last_), across = sign_of(across_), over = sign_of(over_);
        const Contexts context = {std::min(position_, 63), last + 3 * across + 9 * over, sign_of(beneath_) + 3 * last + 9 * (position_ > 2),
                                  over + 3 * across,       predicted_class_[0],          predicted_class_[1]};
        Guesses guesses{};
        for (int at = 0; at < 2; ++at)
            guesses[size_t(at)] = clamp(-((int64_t(predictor_.predicted[at]) * sharpness_[at]) >> 15), -2047, 2047);
        return mixer_.decide(coder, negative, context, 1, 1, guesses, guesses, 1, context[1]);
    }

    template <typename Coder>
    uint32_t code_magnitude(Coder &coder, uint32_t wanted, bool negative) {
        const Contexts context = {0, octave(last_) * 8 + octave(across_), inner_ > 1 ? std::min(position_, 63) : local_,
                                  size_, predicted_class_[0], predicted_class_[1]};
        const int wanted_log = bit_length(wanted) - 1, sign = negative ? 512 : 0;
        int log = 0;
        while (log < bits_ - 1) {
            const Guesses guesses = parts(negative, int64_t(1) << log, int64_t(2) << log, 0);
            const int node = 2 + log;
            if (!mixer_.decide(coder, wanted_log > log, context, node + sign, node, guesses, guesses, 2 + std::min(log, 9), size_)) break;
            ++log;
        }
        uint32_t found = 1;
        for (int at = log - 1; at >= 0; --at) {
            const bool bit = wanted >> at & 1;
            const int depth = log - 1 - at, from = int(found);
            if (log > 7 && depth > 2) {
                found = found * 2 + coder.code(bit, 32768);
                continue;
            }
            const int node = 34 + (log <= 7 ? (1 << log) + from : 256 + (log - 8) * 8 + from);
            const int64_t half = int64_t(1) << at;
            const Guesses guesses = parts(negative, 2 * from * half, (2 * from + 1) * half, (2 * from + 2) * half);
            const int kind = 12 + std::min(log, 7) * 6 + std::min(depth, 5);
            found = found * 2 + mixer_.decide(coder, bit, context, node + sign, node, guesses, guesses, kind, size_);
        }
        if (log == 31 && (!negative || found > uint32_t(1) << 31)) throw Malformed("a number of more than 32 bits");
        return found;
    }

    // The logit, by each prediction, that a magnitude of at least `low` and below `high` (0: without end) is at least `middle`.
    Guesses parts(bool negative, int64_t low, int64_t middle, int64_t high) const {
        Guesses found;
        for (int at = 0; at < predictions; ++at) {
            const int predicted = at < 2 ? predictor_.predicted[at] : 0, towards = negative ? -predicted : predicted;
            const auto below = [&](int64_t bound) -> int64_t { // 2^30 times the probability of less
                const int64_t place = ((2 * bound - 1) << 11) >> bits_;
                return tables.logistic[clamp(((place - towards) * sharpness_[at]) >> 16, -2048, 2048) + 2048];
            };
            const int64_t least = below(low), most = high ? below(high) : int64_t(1) << 30, between = below(middle);
            found[size_t(at)] = tables.stretch[clamp(((most - between + 1) << 12) / (most - least + 2), 0, 4095)];
        }
        return found;
    }

    int inner_, bits_, side_, apart_;
    Rows<int16_t> near_, normal_;
    Predictor predictor_;
    Mixer mixer_;
    std::vector<uint32_t> column_nonzero_;
    std::vector<int32_t> column_size_; // in 1/16
    std::vector<uint32_t> place_nonzero_;
    uint32_t row_nonzero_ = 32768, all_nonzero_ = 32768;
    int32_t row_size_ = 0, all_size_ = 0;
    std::array<Mean, 256 + 128> errors_ = {};
    std::array<Mean *, predictions> error_of_ = {};
    int sharpness_[predictions] = {}, predicted_class_[2] = {};
    int64_t row_ = -1, column_ = 0, place_ = 0;
    int position_ = 0, kernel_nonzero_ = 0, row_seen_ = 0, all_seen_ = 0;
    int last_ = 0, second_ = 0, across_ = 0, over_ = 0, beneath_ = 0, around_ = 0, near_count_ = 0, local_ = 0, size_ = 0;
};

template <typename Coder>
void walk(Coder &coder, Shape shape, int magnitude_bits, const int32_t *numbers, int32_t *found) {
    Model model(shape, magnitude_bits);
    walk_with(model, coder, shape, numbers, found);
}

} // namespace

Bytes encode(const int32_t *numbers, Shape shape) { return encode_adaptively(numbers, shape, walk<RangeEncoder>); }

void decode(Span span, Shape shape, int32_t *found) { decode_adaptively(span, shape, found, walk<RangeDecoder>); }

} // namespace secateurs::coding::mixed
