/* Products with single weights: `gaps` says how many taps are left out before each, or two bits say which of each four taps it is. */

enum { SEC_OF_FOUR = SEC_CHUNK };

/* All rows for one column or four, the numbers of the columns side by side. */
static void sec_scattered_rows(const sec_product *what, const int16_t *x, int columns, int8_t *const *y) {
    const int8_t *weights = (const int8_t *)what->weights;
    const uint8_t *gaps = what->gaps;
    for (int output = 0; output < what->shape[SEC_OUTPUTS]; output++) {
        const int count = what->counts[output];
        for (int column = 0; column < columns; column++) {
            const int16_t *seen = x + column;
            int32_t sum = 0;
            for (int each = 0; each < count; each++, seen += columns) {
                seen += columns * gaps[each];
                sum += weights[each] * *seen;
            }
            y[column][output] = sec_finish(sum, what->rows + SEC_ROW * output, what->shape);
        }
        weights += count;
        gaps += count;
    }
}

/* A convolution with single weights. `scratch`: four columns of int16, then one of int8, then lines. */
static void sec_scattered(const int8_t *x, int8_t *y, void *scratch, const int16_t *shape, const int8_t *weights, const uint8_t *gaps,
                          const uint16_t *counts, const int32_t *rows, int in_h, int in_w, int in_row, int out_h, int out_w, int out_row,
                          int top, int left) {
    const int taps = (shape[SEC_KERNEL_H] * shape[SEC_KERNEL_W] * shape[SEC_INPUTS] + 3) / 4 * 4;
    const sec_place place = sec_placed(shape, in_h, in_w, in_row, top, left);
    const sec_product what = {shape, weights, rows, counts, gaps, taps};
    sec_sweep(&what, sec_scattered_rows, 4, 1, x, y, scratch, &place, out_h, out_w, out_row);
}
