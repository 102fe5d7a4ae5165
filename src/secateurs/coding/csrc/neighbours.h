// What stands around the number that is next: how tensors are walked, and what is kept of the rows before.
#pragma once
#include <algorithm>

#include "codec.h"
#include "tables.h"

namespace secateurs::coding {

// Kernels of very many positions are rows of their own.
inline Shape walked(Shape shape) {
    return shape.inner > 256 ? Shape{shape.rows * shape.columns, shape.inner, 1} : shape;
}

// Three rows, of which the last is being filled; zeros stand before their beginnings and behind their ends.
template <typename Number>
class Rows {
  public:
    Rows(Shape shape) : before_(3 * std::max<int64_t>(shape.inner, 4) + 8) {
        for (auto &row : rows_) row.assign(size_t(before_ + shape.columns * shape.inner + shape.inner + 1), 0);
    }
    void next() {
        std::rotate(rows_, rows_ + 2, rows_ + 3);
        std::fill(rows_[0].begin(), rows_[0].end(), Number(0));
    }
    Number *row(int back) { return rows_[back].data() + before_; }

  private:
    int64_t before_;
    std::vector<Number> rows_[3];
};

// The side of a square kernel; 0 where it is none.
inline int side(int64_t inner) {
    int side = 1;
    while (int64_t(side) * side < inner) ++side;
    return int64_t(side) * side == inner ? side : 0;
}

inline int16_t near(int32_t number) { return int16_t(clamp(number, -127, 127)); }
inline int sign_of(int number) { return number > 0 ? 1 : number < 0 ? 2 : 0; }

// A mean as it moves: over all that came while `seen` is small.
inline void move(uint32_t &mean, bool yes, int64_t seen) {
    mean = uint32_t(mean + (((int64_t(yes ? 65535 : 0) - mean) * tables.share[seen]) >> 16));
}

// All numbers in order, each foretold by the model and coded, until the model knows them all.
template <typename Model, typename Coder>
void walk_with(Model &model, Coder &coder, Shape shape, const int32_t *numbers, int32_t *found) {
    int64_t at = 0;
    for (int64_t row = 0; row < shape.rows; ++row) {
        model.next_row();
        for (int64_t column = 0; column < shape.columns; ++column)
            for (int position = 0; position < int(shape.inner); ++position, ++at) {
                model.look(column, position);
                const int32_t number = model.code(coder, numbers ? numbers[at] : 0);
                model.know(number);
                if (found) found[at] = number;
            }
    }
}

} // namespace secateurs::coding
