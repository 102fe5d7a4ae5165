// Quantisation that weighs error against what the context coder would spend.
#include <cmath>

#include "context.h"

namespace secateurs::coding {
namespace {

// The levels of one run of numbers.
class Run {
  public:
    Run(const Choices &choices, int64_t run)
        : table_(choices.table ? choices.table + run * choices.levels : nullptr), scale_(choices.table ? 0 : choices.scale[run]),
          levels_(choices.levels), lowest_(choices.lowest) {}

    double value(int32_t level) const { return table_ ? double(table_[level - lowest_]) : double(float(level) * scale_); }

    // Of those that are equally near, the one nearest to zero. Zero is in every table.
    int32_t nearest(float value) const {
        if (table_) {
            const int64_t above = std::lower_bound(table_, table_ + levels_, value) - table_; // the first that is not less
            int64_t at = above;
            if (above == levels_) {
                at = levels_ - 1;
            } else if (above > 0) {
                const double over = double(table_[above]) - value, under = double(value) - table_[above - 1];
                if (!(over < under || (over == under && value < 0))) at = above - 1;
            }
            if (table_[at] == 0) return 0;
            while (table_[at] > 0 && table_[at - 1] == table_[at]) --at;
            while (table_[at] < 0 && table_[at + 1] == table_[at]) ++at;
            return lowest_ + int32_t(at);
        }
        if (scale_ == 0) return 0;
        const double exact = double(value) / double(scale_), most = double(lowest_ + levels_ - 1);
        const double rounded = std::copysign(std::ceil(std::fabs(exact) - 0.5), exact);
        return int32_t(std::min(std::max(rounded, double(lowest_)), most));
    }

  private:
    const float *table_;
    float scale_;
    int64_t levels_;
    int32_t lowest_;
};

struct Nothing {
    bool code(bool yes, uint32_t) { return yes; }
};

// The one of the nearest level, two towards zero from it, and zero that costs least; the nearest of equals.
int32_t cheapest(context::Model &model, const Run &run, float value, double weight, double price, int32_t nearest) {
    model.look_closer();
    int32_t best = nearest;
    double least = INFINITY;
    for (int32_t step = 0; step <= 3; ++step) {
        const int32_t level = step == 3 ? 0 : nearest > 0 ? nearest - step : nearest + step;
        if (step < 3 && step > 0 && (level > 0) != (nearest > 0)) continue;
        if (step == 3 && nearest == 0) continue;
        const double error = double(value) - run.value(level);
        const double cost = error * error * weight + price * (double(model.cost(level)) / 65536);
        if (cost < least) {
            least = cost;
            best = level;
        }
    }
    return best;
}

} // namespace

void rate_distortion(const float *values, const float *weights, Shape shape, Choices choices, double price, int32_t *found) {
    const int64_t count = shape.numbers(), length = choices.runs ? count / choices.runs : count;
    for (int64_t at = 0; at < count; ++at) found[at] = values[at] == 0 ? 0 : Run(choices, at / length).nearest(values[at]);
    const int bits = bit_length(found, count);
    if (!bits || price <= 0) return;
    const Shape walk = walked(shape);
    context::Model model(walk, bits);
    Nothing coder;
    int64_t at = 0;
    for (int64_t row = 0; row < walk.rows; ++row) {
        model.next_row();
        for (int64_t column = 0; column < walk.columns; ++column)
            for (int position = 0; position < int(walk.inner); ++position, ++at) {
                model.look(column, position);
                if (found[at])
                    found[at] = cheapest(model, Run(choices, at / length), values[at], weights ? double(weights[at]) : 1, price, found[at]);
                model.know(model.code(coder, found[at]));
            }
    }
}

} // namespace secateurs::coding
