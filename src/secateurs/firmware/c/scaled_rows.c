/* Rows of `count` numbers, each on the scale of y, to places `row` numbers apart; `by` is zero, multiplier,
   shifts as `sec_small` has them and zero of y. */
static void sec_scaled_rows(const int8_t *x, int8_t *y, int rows, int count, int row, const int32_t *by) {
    for (; rows > 0; rows--, x += count, y += row) {
        for (int each = 0; each < count; each++) {
            y[each] = (int8_t)sec_clamped(sec_small(x[each] - by[0], by[1], by[2], by[3]) + by[4], -128, 127);
        }
    }
}
