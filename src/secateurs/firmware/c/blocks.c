/* Products with weights of which only blocks are kept: four taps of one row, of two, or of four. A block begins where the block before
   ended, and so many blocks further (`gaps`); `counts` says how many blocks the rows have that share them. */

enum { SEC_TALL = SEC_CHUNK };

#ifdef SEC_DSP
/* r0 weights, r1 x, r2-r5 sums, r12 gaps; a block of one row for four columns. */
#define SEC_BLOCK_1X4                                                                                                                      \
    "ldrb r6, [r12], #1\n\tldr r10, [r0], #4\n\tadd r1, r1, r6, lsl #5\n\tsxtb16 r11, r10, ror #8\n\tsxtb16 r10, r10\n\t"                   \
    "ldm r1!, {r6, r7, r8, r9}\n\tsmlad r2, r10, r6, r2\n\tsmlad r3, r10, r7, r3\n\tsmlad r4, r10, r8, r4\n\tsmlad r5, r10, r9, r5\n\t"     \
    "ldm r1!, {r6, r7, r8, r9}\n\tsmlad r2, r11, r6, r2\n\tsmlad r3, r11, r7, r3\n\tsmlad r4, r11, r8, r4\n\tsmlad r5, r11, r9, r5\n\t"
/* A sum to a number: r6 start, r7 multiplier, r8 shift, r9 zero. */
#define SEC_SUM_DONE(sum)                                                                                                                  \
    "add " sum ", r6, " sum ", lsl #1\n\tsmmulr " sum ", " sum ", r7\n\tadd " sum ", " sum ", " sum ", asr #31\n\t"                         \
    "asrs " sum ", " sum ", r8\n\tadc " sum ", " sum ", r9\n\tssat " sum ", #8, " sum "\n\t"

/* All rows for four columns, in all registers of the core. */
static void sec_blocks_1x4(const sec_product *what, const int16_t *x, int8_t *const *y) {
    const int32_t *rows = what->rows;
    const void *weights = what->weights;
    const uint16_t *counts = what->counts;
    const uint8_t *gaps = what->gaps;
    const int zero = what->shape[SEC_ZERO_OUT], outputs = what->shape[SEC_OUTPUTS];
    int output = 0;
    __asm__ volatile(
        "ldr r0, %[weights]\n\tldr r12, %[gaps]\n"
        "0:\n\tldr r6, %[counts]\n\tmovs r2, #0\n\tmovs r3, #0\n\tmovs r4, #0\n\tmovs r5, #0\n\tldrh lr, [r6], #2\n\tldr r1, %[x]\n\t"
        "str r6, %[counts]\n\tlsrs lr, lr, #1\n\tbcc 1f\n\t" SEC_BLOCK_1X4 "\n"
        "1:\n\tcmp lr, #0\n\tbeq 3f\n"
        "2:\n\t" SEC_BLOCK_1X4 SEC_BLOCK_1X4 "subs lr, lr, #1\n\tbne 2b\n"
        "3:\n\tldr r1, %[rows]\n\tldr r9, %[zero]\n\tldm r1!, {r6, r7, r8}\n\tstr r1, %[rows]\n\t"
        SEC_SUM_DONE("r2") SEC_SUM_DONE("r3") SEC_SUM_DONE("r4") SEC_SUM_DONE("r5")
        "ldr r1, %[y]\n\tldr r10, %[output]\n\tldm r1, {r6, r7, r8, r9}\n\tstrb r2, [r6, r10]\n\tstrb r3, [r7, r10]\n\tstrb r4, [r8, r10]\n\t"
        "strb r5, [r9, r10]\n\tldr r6, %[outputs]\n\tadd r10, r10, #1\n\tstr r10, %[output]\n\tcmp r10, r6\n\tbne 0b"
        : [rows] "+m"(rows), [counts] "+m"(counts), [output] "+m"(output)
        : [weights] "m"(weights), [gaps] "m"(gaps), [x] "m"(x), [y] "m"(y), [zero] "m"(zero), [outputs] "m"(outputs)
        : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
}
#endif

/* Four weights of one row as two pairs, and the sums of one column over `count` blocks, whose pairs are `step` numbers apart. */
static inline int32_t sec_blocks_of_one(const int8_t *weights, const uint8_t *gaps, int count, const int16_t *x, int step) {
    int32_t sum = 0;
    for (; count > 0; count--, weights += 4, x += 2 * step) {
        x += 2 * step * *gaps++;
#ifdef SEC_DSP
        const int32_t word = sec_word(weights);
        sum = sec_pair(sec_evens(word), sec_word(x), sum);
        sum = sec_pair(sec_odds(word), sec_word(x + step), sum);
#else
        sum += weights[0] * x[0] + weights[2] * x[1] + weights[1] * x[step] + weights[3] * x[step + 1];
#endif
    }
    return sum;
}

/* All rows for one column or four: blocks of one row. */
static void sec_blocks_1(const sec_product *what, const int16_t *x, int columns, int8_t *const *y) {
    const int8_t *weights = (const int8_t *)what->weights;
    const uint8_t *gaps = what->gaps;
#ifdef SEC_DSP
    if (columns == 4 && what->shape[SEC_EASY]) {
        sec_blocks_1x4(what, x, y);
        return;
    }
#endif
    for (int output = 0; output < what->shape[SEC_OUTPUTS]; output++) {
        const int count = what->counts[output];
        for (int column = 0; column < columns; column++) {
            const int32_t sum = sec_blocks_of_one(weights, gaps, count, x + 2 * column, 2 * columns);
            y[column][output] = sec_finish(sum, what->rows + SEC_ROW * output, what->shape);
        }
        weights += 4 * count;
        gaps += count;
    }
}

/* The sums of rows that share blocks, two for each of `tall` / 2 words and each of one column or two: those of the even row of a word,
   then of the odd one. */
static void sec_blocks_of_rows(const int16_t *weights, const uint8_t *gaps, int count, const int16_t *x, int step, int half, int tall,
                               int32_t *sums) {
    uint32_t both = 0, even = 0;
    for (weights += 2 * half; count > 0; count--, x += 2 * step) {
        x += 2 * step * *gaps++;
        for (int pair = 0; pair < 2; pair++, weights += tall) {
#ifdef SEC_DSP
            const int32_t word = sec_word(weights), seen = sec_word(x + pair * step);
            both = (uint32_t)sec_pair(word, seen, (int32_t)both);
            even = (uint32_t)sec_pair(sec_evens(word), seen, (int32_t)even);
#else
            const int32_t first = x[pair * step], second = x[pair * step + 1];
            both += (uint32_t)(weights[0] * first + weights[1] * second);
            even += (uint32_t)((int8_t)(weights[0] & 255) * first + (int8_t)(weights[1] & 255) * second);
#endif
        }
    }
    sums[0] = (int32_t)even;
    sums[1] = (int32_t)(both - even) >> 8;
}

/* All rows for one column or two: blocks of two rows or four. */
static void sec_blocks_tall(const sec_product *what, const int16_t *x, int columns, int8_t *const *y) {
    const int outputs = what->shape[SEC_OUTPUTS], tall = what->shape[SEC_TALL];
    const int16_t *weights = (const int16_t *)what->weights;
    const uint8_t *gaps = what->gaps;
    const uint16_t *counts = what->counts;
    for (int output = 0; output < outputs; output += tall, counts++) {
        for (int half = 0; half < tall / 2 && output + 2 * half < outputs; half++) {
            for (int column = 0; column < columns; column++) {
                int32_t sums[2];
                sec_blocks_of_rows(weights, gaps, *counts, x + 2 * column, 2 * columns, half, tall, sums);
                for (int row = output + 2 * half, each = 0; each < 2 && row < outputs; each++, row++) {
                    y[column][row] = sec_finish(sums[each], what->rows + SEC_ROW * row, what->shape);
                }
            }
        }
        weights += 2 * tall * *counts;
        gaps += *counts;
    }
}

/* A convolution with blocks of weights: int8 in the order of the taps where they are of one row, else pairs as dense ones. `scratch`: four
   columns of int16, or two where blocks are tall, then one of int8, then lines. */
static void sec_blocks(const int8_t *x, int8_t *y, void *scratch, const int16_t *shape, const void *weights, const uint8_t *gaps,
                       const uint16_t *counts, const int32_t *rows, int in_h, int in_w, int in_row, int out_h, int out_w, int out_row, int top,
                       int left) {
    const int taps = (shape[SEC_KERNEL_H] * shape[SEC_KERNEL_W] * shape[SEC_INPUTS] + 3) / 4 * 4;
    const sec_place place = sec_placed(shape, in_h, in_w, in_row, top, left);
    const sec_product what = {shape, weights, rows, counts, gaps, taps};
    if (shape[SEC_TALL] == 1) {
        sec_sweep(&what, sec_blocks_1, 4, 0, x, y, scratch, &place, out_h, out_w, out_row);
    } else {
        sec_sweep(&what, sec_blocks_tall, 2, 0, x, y, scratch, &place, out_h, out_w, out_row);
    }
}
