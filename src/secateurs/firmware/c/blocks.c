/* Products with weights of which only blocks are kept: four taps of one row, of two, or of four. A block begins where the block before
   ended, and so many blocks further (`gaps`); `counts` says how many blocks the rows have that share them. */

enum { SEC_TALL = SEC_CHUNK };

#ifdef SEC_DSP
/* r0 weights, r1 x, r2-r5 sums, r12 gaps; a block of one row for four columns. */
#define SEC_BLOCK_1X4                                                                                                                      \
    "ldrb r6, [r12], #1\n\tldr r10, [r0], #4\n\tadd r1, r1, r6, lsl #5\n\tsxtb16 r11, r10, ror #8\n\tsxtb16 r10, r10\n\t"                   \
    "ldm r1!, {r6, r7, r8, r9}\n\tsmlad r2, r10, r6, r2\n\tsmlad r3, r10, r7, r3\n\tsmlad r4, r10, r8, r4\n\tsmlad r5, r10, r9, r5\n\t"     \
    "ldm r1!, {r6, r7, r8, r9}\n\tsmlad r2, r11, r6, r2\n\tsmlad r3, r11, r7, r3\n\tsmlad r4, r11, r8, r4\n\tsmlad r5, r11, r9, r5\n\t"

/* And for one column: r2. */
#define SEC_BLOCK_1X1                                                                                                                      \
    "ldrb r6, [r12], #1\n\tldr r10, [r0], #4\n\tadd r1, r1, r6, lsl #3\n\tldrd r7, r8, [r1], #8\n\tsxtb16 r11, r10, ror #8\n\t"            \
    "sxtb16 r10, r10\n\tsmlad r2, r10, r7, r2\n\tsmlad r2, r11, r8, r2\n\t"

/* All rows, in all registers of the core. */
static void sec_blocks_1x4(const sec_product *what, const int16_t *x, int8_t *const *y) {
    SEC_ALL_ROWS(SEC_BY_TWO(SEC_BLOCK_1X4), SEC_FOUR_MORE);
}

static void sec_blocks_1x1(const sec_product *what, const int16_t *x, int8_t *const *y) {
    SEC_ALL_ROWS(SEC_BY_FOUR(SEC_BLOCK_1X1), SEC_ONE_MORE);
}

/* r0 weights, r1 x, r2-r5 sums over both rows, r6-r9 over even rows, lr gaps; half a block of four rows for two columns. */
#define SEC_HALF_4X2                                                                                                                       \
    "ldrd r10, r11, [r1], #8\n\tldr r12, [r0], #4\n\tsmlad r2, r12, r10, r2\n\tsmlad r3, r12, r11, r3\n\tsxtb16 r12, r12\n\t"            \
    "smlad r6, r12, r10, r6\n\tsmlad r7, r12, r11, r7\n\tldr r12, [r0], #4\n\tsmlad r4, r12, r10, r4\n\tsmlad r5, r12, r11, r5\n\t"       \
    "sxtb16 r12, r12\n\tsmlad r8, r12, r10, r8\n\tsmlad r9, r12, r11, r9\n\t"
#define SEC_BLOCK_4X2 "ldrb r12, [lr], #1\n\tadd r1, r1, r12, lsl #4\n\t" SEC_HALF_4X2 SEC_HALF_4X2
/* For one column: r2 and r3 sums over both rows, r6 and r7 over even rows. */
#define SEC_BLOCK_4X1                                                                                                                      \
    "ldrb r12, [lr], #1\n\tadd r1, r1, r12, lsl #3\n\tldrd r10, r11, [r1], #8\n\tldm r0!, {r4, r5, r8, r9}\n\t"                           \
    "smlad r2, r4, r10, r2\n\tsmlad r3, r5, r10, r3\n\tsxtb16 r4, r4\n\tsxtb16 r5, r5\n\tsmlad r6, r4, r10, r6\n\tsmlad r7, r5, r10, r7\n\t" \
    "smlad r2, r8, r11, r2\n\tsmlad r3, r9, r11, r3\n\tsxtb16 r8, r8\n\tsxtb16 r9, r9\n\tsmlad r6, r8, r11, r6\n\tsmlad r7, r9, r11, r7\n\t"
/* Two rows: r2 and r3 sums over both for two columns, r6 and r7 over the even one. */
#define SEC_BLOCK_2X2                                                                                                                      \
    "ldrb r12, [lr], #1\n\tadd r1, r1, r12, lsl #4\n\tldm r1!, {r4, r5, r8, r9}\n\tldrd r10, r11, [r0], #8\n\t"                           \
    "smlad r2, r10, r4, r2\n\tsmlad r3, r10, r5, r3\n\tsxtb16 r10, r10\n\tsmlad r6, r10, r4, r6\n\tsmlad r7, r10, r5, r7\n\t"             \
    "smlad r2, r11, r8, r2\n\tsmlad r3, r11, r9, r3\n\tsxtb16 r11, r11\n\tsmlad r6, r11, r8, r6\n\tsmlad r7, r11, r9, r7\n\t"
/* And for one column: r2 and r6. */
#define SEC_BLOCK_2X1                                                                                                                      \
    "ldrb r12, [lr], #1\n\tadd r1, r1, r12, lsl #3\n\tldrd r10, r11, [r0], #8\n\tldrd r4, r5, [r1], #8\n\tsmlad r2, r10, r4, r2\n\t"       \
    "sxtb16 r10, r10\n\tsmlad r6, r10, r4, r6\n\tsmlad r2, r11, r5, r2\n\tsxtb16 r11, r11\n\tsmlad r6, r11, r5, r6\n\t"

/* All blocks of the rows that share them, then `done`, which makes numbers of the sums; `clear` are the further sums. */
#define SEC_TALL_ROWS(clear, block, done)                                                                                                  \
    __asm__ volatile(                                                                                                                      \
        "ldr lr, %[gaps]\n"                                                                                                                \
        "0:\n\tldr r0, %[counts]\n\tmovs r2, #0\n\tmovs r3, #0\n\tmovs r6, #0\n\tmovs r7, #0\n\t" clear                                      \
        "ldrh r12, [r0], #2\n\tadd r12, r12, lr\n\tstr r0, %[counts]\n\tstr r12, %[end]\n\tldr r0, %[w]\n\tldr r1, %[x]\n"                     \
        "1:\n\tldr r12, %[end]\n\tcmp lr, r12\n\tbeq 2f\n\t" block "b 1b\n"                                                              \
        "2:\n\tstr lr, %[gaps]\n\tstr r0, %[w]\n\tldr r1, %[rows]\n\tldr r12, %[zero]\n\tsubs r2, r2, r6\n\tsubs r3, r3, r7\n\t"             \
        "ldr lr, %[y0]\n\t" SEC_NEXT_ROW done                                                                                             \
        "str r1, %[rows]\n\tstr lr, %[y0]\n\tldr r0, %[last]\n\tcmp lr, r0\n\tldr lr, %[gaps]\n\tbne 0b"                                  \
        : [w] "+m"(weights), [gaps] "+m"(gaps), [counts] "+m"(counts), [rows] "+m"(rows), [y0] "+m"(y0), [y1] "+m"(y1), [end] "+m"(end)     \
        : [x] "m"(x), [zero] "m"(zero), [last] "m"(last)                                                                                   \
        : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory")

/* `groups` of two or four rows that share blocks, for one column or two. */
static void sec_blocks_shared(sec_product *what, const int16_t *x, int tall, int groups, int columns, int8_t *y0, int8_t *y1) {
    const void *weights = what->weights;
    const uint8_t *gaps = what->gaps, *end = gaps;
    const uint16_t *counts = what->counts;
    const int32_t *rows = what->rows;
    const int zero = what->shape[SEC_ZERO_OUT];
    const int8_t *const last = y0 + tall * groups;
    if (tall == 4 && columns == 2) {
        SEC_TALL_ROWS("movs r4, #0\n\tmovs r5, #0\n\tmov r8, r4\n\tmov r9, r4\n\t", SEC_BLOCK_4X2,
                      SEC_EVEN("r6") SEC_EVEN("r7") "strb r6, [lr], #1\n\tldr r6, %[y1]\n\tstrb r7, [r6], #1\n\t" SEC_NEXT_ROW
                      SEC_ODD("r2") SEC_ODD("r3") "strb r2, [lr], #1\n\tstrb r3, [r6], #1\n\tsubs r4, r4, r8\n\tsubs r5, r5, r9\n\t" SEC_NEXT_ROW
                      SEC_EVEN("r8") SEC_EVEN("r9") "strb r8, [lr], #1\n\tstrb r9, [r6], #1\n\t" SEC_NEXT_ROW
                      SEC_ODD("r4") SEC_ODD("r5") "strb r4, [lr], #1\n\tstrb r5, [r6], #1\n\tstr r6, %[y1]\n\t");
    } else if (tall == 4) {
        SEC_TALL_ROWS("", SEC_BLOCK_4X1,
                      SEC_EVEN("r6") "strb r6, [lr], #1\n\t" SEC_NEXT_ROW SEC_ODD("r2") "strb r2, [lr], #1\n\t" SEC_NEXT_ROW
                      SEC_EVEN("r7") "strb r7, [lr], #1\n\t" SEC_NEXT_ROW SEC_ODD("r3") "strb r3, [lr], #1\n\t");
    } else if (columns == 2) {
        SEC_TALL_ROWS("", SEC_BLOCK_2X2,
                      SEC_EVEN("r6") SEC_EVEN("r7") "strb r6, [lr], #1\n\tldr r6, %[y1]\n\tstrb r7, [r6], #1\n\t" SEC_NEXT_ROW
                      SEC_ODD("r2") SEC_ODD("r3") "strb r2, [lr], #1\n\tstrb r3, [r6], #1\n\tstr r6, %[y1]\n\t");
    } else {
        SEC_TALL_ROWS("", SEC_BLOCK_2X1, SEC_EVEN("r6") "strb r6, [lr], #1\n\t" SEC_NEXT_ROW SEC_ODD("r2") "strb r2, [lr], #1\n\t");
    }
    what->weights = weights;
    what->gaps = gaps;
    what->counts = counts;
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
    if (what->shape[SEC_EASY]) {
        columns == 4 ? sec_blocks_1x4(what, x, y) : sec_blocks_1x1(what, x, y);
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
    sec_product next = *what;
    int output = 0;
#ifdef SEC_DSP
    if (what->shape[SEC_EASY] && outputs >= tall) {
        output = outputs / tall * tall;
        sec_blocks_shared(&next, x, tall, outputs / tall, columns, y[0], y[columns - 1]);
    }
#endif
    for (; output < outputs; output += tall, next.counts++) {
        for (int half = 0; half < tall / 2 && output + 2 * half < outputs; half++) {
            for (int column = 0; column < columns; column++) {
                int32_t sums[2];
                sec_blocks_of_rows((const int16_t *)next.weights, next.gaps, *next.counts, x + 2 * column, 2 * columns, half, tall, sums);
                for (int row = output + 2 * half, each = 0; each < 2 && row < outputs; each++, row++) {
                    y[column][row] = sec_finish(sums[each], what->rows + SEC_ROW * row, what->shape);
                }
            }
        }
        next.weights = (const int16_t *)next.weights + 2 * tall * *next.counts;
        next.gaps += *next.counts;
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
