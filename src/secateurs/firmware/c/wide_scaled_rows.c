/* Rows of `count` numbers, each on the scale of y, to places `row` numbers apart; `by` as `sec_scaled_rows`
   has it. */
static void sec_wide_scaled_rows(const int16_t *x, int16_t *y, int rows, int count, int row, const int32_t *by) {
    for (; rows > 0; rows--, x += count, y += row) {
        for (int each = 0; each < count; each++) {
            y[each] = (int16_t)sec_clamped(sec_small(x[each] - by[0], by[1], by[2], by[3]) + by[4], -32768, 32767);
        }
    }
}
