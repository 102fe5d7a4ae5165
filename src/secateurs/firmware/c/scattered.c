/* Products with single weights: `gaps` says how many taps are left out before each, or two bits say which of each four taps it is. */

enum { SEC_OF_FOUR = SEC_CHUNK };

#ifdef SEC_DSP
/* r0 weights, r1 x, r2-r5 sums, r12 gaps; one weight for four columns. */
#define SEC_SINGLE_4                                                                                                                       \
    "ldrb r9, [r12], #1\n\tldrsb r8, [r0], #1\n\tadd r1, r1, r9, lsl #3\n\tldrd r6, r7, [r1], #8\n\tsmlabb r2, r6, r8, r2\n\t"             \
    "smlatb r3, r6, r8, r3\n\tsmlabb r4, r7, r8, r4\n\tsmlatb r5, r7, r8, r5\n\t"
/* One of four weights, half a word of `pair`: two bits of r9 say which tap of the `place`-th four it meets. */
#define SEC_PICK_4(bit, place, pair, half)                                                                                                 \
    "ubfx r6, r9, #" bit ", #2\n\tadd r6, r1, r6, lsl #3\n\tldrd r6, r7, [r6, #" place "]\n\tsmlab" half " r2, r6, " pair ", r2\n\t"          \
    "smlat" half " r3, r6, " pair ", r3\n\tsmlab" half " r4, r7, " pair ", r4\n\tsmlat" half " r5, r7, " pair ", r5\n\t"
#define SEC_PICKS_4(second, third, fourth, next)                                                                                           \
    "ldrb r9, [r12], #1\n\tldr r10, [r0], #4\n\tsxtb16 r11, r10, ror #8\n\tsxtb16 r10, r10\n\t" SEC_PICK_4("0", "0", "r10", "b")            \
    SEC_PICK_4("2", second, "r11", "b") SEC_PICK_4("4", third, "r10", "t") SEC_PICK_4("6", fourth, "r11", "t") "adds r1, #" next "\n\t"

/* The same for one column: r2. */
#define SEC_SINGLE_1 "ldrb r9, [r12], #1\n\tldrsb r8, [r0], #1\n\tadd r1, r1, r9, lsl #1\n\tldrsh r6, [r1], #2\n\tsmlabb r2, r6, r8, r2\n\t"
#define SEC_PICK_1(bit, place, pair, half)                                                                                                 \
    "ubfx r6, r9, #" bit ", #2\n\tadd r6, r1, r6, lsl #1\n\tldrsh r6, [r6, #" place "]\n\tsmlab" half " r2, r6, " pair ", r2\n\t"
#define SEC_PICKS_1(second, third, fourth, next)                                                                                           \
    "ldrb r9, [r12], #1\n\tldr r10, [r0], #4\n\tsxtb16 r11, r10, ror #8\n\tsxtb16 r10, r10\n\t" SEC_PICK_1("0", "0", "r10", "b")            \
    SEC_PICK_1("2", second, "r11", "b") SEC_PICK_1("4", third, "r10", "t") SEC_PICK_1("6", fourth, "r11", "t") "adds r1, #" next "\n\t"
#define SEC_BY_ONE(one) "1:\n\t" one "subs lr, lr, #1\n\tbne 1b\n\t"

/* All rows for four columns or one, in all registers of the core. */
static void sec_singles_4(const sec_product *what, const int16_t *x, int8_t *const *y) {
    SEC_ALL_ROWS(SEC_BY_FOUR(SEC_SINGLE_4), SEC_FOUR_MORE);
}

static void sec_singles_1(const sec_product *what, const int16_t *x, int8_t *const *y) {
    SEC_ALL_ROWS(SEC_BY_FOUR(SEC_SINGLE_1), SEC_ONE_MORE);
}

static void sec_one_of_four_4(const sec_product *what, const int16_t *x, int8_t *const *y) {
    SEC_ALL_ROWS(SEC_BY_ONE(SEC_PICKS_4("32", "64", "96", "128")), SEC_FOUR_MORE);
}

static void sec_one_of_four_1(const sec_product *what, const int16_t *x, int8_t *const *y) {
    SEC_ALL_ROWS(SEC_BY_ONE(SEC_PICKS_1("8", "16", "24", "32")), SEC_ONE_MORE);
}

static void sec_two_of_four_4(const sec_product *what, const int16_t *x, int8_t *const *y) {
    SEC_ALL_ROWS(SEC_BY_ONE(SEC_PICKS_4("0", "32", "32", "64")), SEC_FOUR_MORE);
}

static void sec_two_of_four_1(const sec_product *what, const int16_t *x, int8_t *const *y) {
    SEC_ALL_ROWS(SEC_BY_ONE(SEC_PICKS_1("0", "8", "8", "16")), SEC_ONE_MORE);
}
#endif

/* Sums of a row: `step` numbers from tap to tap; `count` weights, or fours of them of which each four taps have `of_four`. */
static inline int32_t sec_singles(const int8_t *weights, const uint8_t *gaps, int count, const int16_t *x, int step) {
    int32_t sum = 0;
    for (; count > 0; count--, x += step) {
        x += step * *gaps++;
        sum += *weights++ * *x;
    }
    return sum;
}

static inline int32_t sec_picks(const int8_t *weights, const uint8_t *gaps, int count, int of_four, const int16_t *x, int step) {
    int32_t sum = 0;
    const int second = 4 * step * (2 - of_four), third = 4 * step * (of_four == 1 ? 2 : 1), fourth = 4 * step * (of_four == 1 ? 3 : 1);
    for (; count > 0; count--, weights += 4, x += 16 / of_four * step) {
        const int which = *gaps++;
        sum += weights[0] * x[step * (which & 3)] + weights[1] * x[second + step * ((which >> 2) & 3)];
        sum += weights[2] * x[third + step * ((which >> 4) & 3)] + weights[3] * x[fourth + step * (which >> 6)];
    }
    return sum;
}

/* All rows for one column or four, the numbers of the columns side by side. */
static void sec_scattered_rows(const sec_product *what, const int16_t *x, int columns, int8_t *const *y) {
    const int8_t *weights = (const int8_t *)what->weights;
    const uint8_t *gaps = what->gaps;
    const int of_four = what->shape[SEC_OF_FOUR];
#ifdef SEC_DSP
    if (what->shape[SEC_EASY] && columns == 4) {
        of_four == 0 ? sec_singles_4(what, x, y) : of_four == 1 ? sec_one_of_four_4(what, x, y) : sec_two_of_four_4(what, x, y);
        return;
    }
    if (what->shape[SEC_EASY]) {
        of_four == 0 ? sec_singles_1(what, x, y) : of_four == 1 ? sec_one_of_four_1(what, x, y) : sec_two_of_four_1(what, x, y);
        return;
    }
#endif
    for (int output = 0; output < what->shape[SEC_OUTPUTS]; output++) {
        const int count = what->counts[output];
        for (int column = 0; column < columns; column++) {
            const int32_t sum = of_four ? sec_picks(weights, gaps, count, of_four, x + column, columns)
                                        : sec_singles(weights, gaps, count, x + column, columns);
            y[column][output] = sec_finish(sum, what->rows + SEC_ROW * output, what->shape);
        }
        weights += of_four ? 4 * count : count;
        gaps += count;
    }
}

/* A convolution with single weights. `scratch`: four columns of int16, then one of int8, then lines; where weights are of each four taps,
   the taps of whole bytes of `gaps`. */
static void sec_scattered(const int8_t *x, int8_t *y, void *scratch, const int16_t *shape, const int8_t *weights, const uint8_t *gaps,
                          const uint16_t *counts, const int32_t *rows, int in_h, int in_w, int in_row, int out_h, int out_w, int out_row,
                          int top, int left) {
    const int unit = shape[SEC_OF_FOUR] ? 16 / shape[SEC_OF_FOUR] : 4;
    const int taps = (shape[SEC_KERNEL_H] * shape[SEC_KERNEL_W] * shape[SEC_INPUTS] + unit - 1) / unit * unit;
    const sec_place place = sec_placed(shape, in_h, in_w, in_row, top, left);
    const sec_product what = {shape, weights, rows, counts, gaps, taps};
    memset(scratch, 0, (size_t)(8 * taps));
    sec_sweep(&what, sec_scattered_rows, 4, 1, x, y, scratch, &place, out_h, out_w, out_row);
}
