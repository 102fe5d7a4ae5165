/* Rows of `count` numbers, each on the scale of y, to places `row` numbers apart; `by` is zero, multiplier, shifts as `sec_small` has them
   and zero of y. */
static void sec_scaled_rows(const int8_t *x, int8_t *y, int rows, int count, int row, const int32_t *by) {
    const int32_t zero = by[0], multiplier = by[1], left = by[2], right = by[3], zero_out = by[4];
    for (; rows > 0; rows--, x += count, y += row) {
        for (int each = 0; each < count; each++) {
            y[each] = (int8_t)sec_clamped(sec_small(x[each] - zero, multiplier, left, right) + zero_out, -128, 127);
        }
    }
}
