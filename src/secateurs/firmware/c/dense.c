/* Products with dense weights. Two rows share an int16: 256 times the weight of the odd row plus that of the even one; four rows share
   the words of a pair of taps. A sum over these (`both`) and one over their low bytes (`even`) say both rows: (both - even) / 256. */

typedef struct {
    uint32_t both[4], even[4];
} sec_sums;

/* Adds `pairs` pairs of taps to the sums of rows / 2 * columns: [0, 0], [0, 1], [1, 0], [1, 1] are row pairs and columns. */
static const int16_t *sec_add_pairs(sec_sums *sums, const int16_t *weights, const int16_t *x, int pairs, int row_pairs, int columns) {
    for (int pair = 0; pair < pairs; pair++, x += 2 * columns) {
        for (int half = 0; half < row_pairs; half++, weights += 2) {
            const int32_t a = weights[0], b = weights[1], a_even = (int8_t)a, b_even = (int8_t)b;
            for (int column = 0; column < columns; column++) {
                const int32_t first = x[2 * column], second = x[2 * column + 1];
                sums->both[2 * half + column] += (uint32_t)(a * first + b * second);
                sums->even[2 * half + column] += (uint32_t)(a_even * first + b_even * second);
            }
        }
    }
    return weights;
}

/* Sums of the even and the odd row where the pairs are more than one sum over both can hold. */
static const int16_t *sec_tile(const int16_t *weights, const int16_t *x, int pairs, int chunk, int row_pairs, int columns, int32_t *even,
                               int32_t *odd) {
    sec_sums sums = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    odd[0] = odd[1] = odd[2] = odd[3] = 0;
    for (int left = pairs; left > 0; left -= chunk) {
        const int some = left < chunk ? left : chunk;
        weights = sec_add_pairs(&sums, weights, x, some, row_pairs, columns);
        x += 2 * columns * some;
        for (int each = 0; each < 4; each++) {
            odd[each] += (int32_t)(sums.both[each] - sums.even[each]) >> 8;
            sums.both[each] = sums.even[each];
        }
    }
    for (int each = 0; each < 4; each++) {
        even[each] = (int32_t)sums.even[each];
    }
    return weights;
}

#ifdef SEC_DSP
#define SEC_PAIR_4X2                                                                                                                       \
    "ldrd %[x0], %[x1], [%[x]], #8\n\tldrd %[w0], %[w1], [%[w]], #8\n\t"                                                                   \
    "smlad %[b0], %[w0], %[x0], %[b0]\n\tsmlad %[b1], %[w0], %[x1], %[b1]\n\tsmlad %[b2], %[w1], %[x0], %[b2]\n\t"                         \
    "smlad %[b3], %[w1], %[x1], %[b3]\n\tsxtb16 %[w0], %[w0]\n\tsxtb16 %[w1], %[w1]\n\tsmlad %[e0], %[w0], %[x0], %[e0]\n\t"               \
    "smlad %[e1], %[w0], %[x1], %[e1]\n\tsmlad %[e2], %[w1], %[x0], %[e2]\n\tsmlad %[e3], %[w1], %[x1], %[e3]\n\t"

/* Four rows and two columns at once: all of the core's registers. */
static const int16_t *sec_four_by_two(const int16_t *weights, const int32_t *rows, const int16_t *x, int pairs, int zero, int8_t *y0,
                                      int8_t *y1) {
    int32_t b0 = 0, b1 = 0, b2 = 0, b3 = 0, e0 = 0, e1 = 0, e2 = 0, e3 = 0, x0, x1, w0, w1;
    const int16_t *ends[2];
    ends[0] = x + 4 * (pairs & ~3);
    ends[1] = x + 4 * pairs;
    __asm__ volatile(
        "ldr %[w0], %[fours]\n\tcmp %[x], %[w0]\n\tbeq 2f\n"
        "1:\n\t" SEC_PAIR_4X2 SEC_PAIR_4X2 SEC_PAIR_4X2 SEC_PAIR_4X2
        "ldr %[w0], %[fours]\n\tcmp %[x], %[w0]\n\tbne 1b\n"
        "2:\n\tldr %[w0], %[end]\n\tcmp %[x], %[w0]\n\tbeq 3f\n\t" SEC_PAIR_4X2 SEC_PAIR_4X2 "\n3:"
        : [b0] "+r"(b0), [b1] "+r"(b1), [b2] "+r"(b2), [b3] "+r"(b3), [e0] "+r"(e0), [e1] "+r"(e1), [e2] "+r"(e2), [e3] "+r"(e3),
          [x] "+r"(x), [w] "+r"(weights), [x0] "=&r"(x0), [x1] "=&r"(x1), [w0] "=&r"(w0), [w1] "=&r"(w1)
        : [fours] "m"(ends[0]), [end] "m"(ends[1])
        : "cc", "memory");
#define SEC_TWO(at, a, b)                                                                                                                  \
    do {                                                                                                                                   \
        const int32_t start = rows[3 * (at)], multiplier = rows[3 * (at) + 1], shift = rows[3 * (at) + 2], middle = zero << shift;         \
        y0[at] = (int8_t)sec_easy(start + (a), multiplier, shift, middle);                                                                 \
        y1[at] = (int8_t)sec_easy(start + (b), multiplier, shift, middle);                                                                 \
    } while (0)
    SEC_TWO(0, 2 * e0, 2 * e1);
    SEC_TWO(1, (b0 - e0) >> 7, (b1 - e1) >> 7);
    SEC_TWO(2, 2 * e2, 2 * e3);
    SEC_TWO(3, (b2 - e2) >> 7, (b3 - e3) >> 7);
#undef SEC_TWO
    return weights;
}
#endif

/* All rows of a group for one or two columns. `pairs` is even; `chunk` is as many as one sum over two rows can hold. */
static void sec_dense_rows(const int16_t *weights, const int32_t *rows, const int16_t *shape, const int16_t *x, int pairs, int columns,
                           int8_t *y0, int8_t *y1) {
    const int outputs = shape[SEC_OUTPUTS], chunk = shape[SEC_CHUNK];
    int output = 0;
#ifdef SEC_DSP
    const int zero = 2 * shape[SEC_ZERO_OUT] + 1;
    if (shape[SEC_EASY] && pairs <= chunk && columns == 2) {
        for (; output + 4 <= outputs; output += 4) {
            weights = sec_four_by_two(weights, rows + SEC_ROW * output, x, pairs, zero, y0 + output, y1 + output);
        }
    }
#endif
    while (output < outputs) {
        const int left = outputs - output, some = left < 4 ? left : 4;
        int32_t even[4], odd[4];
        weights = sec_tile(weights, x, pairs, chunk, left > 2 ? 2 : 1, columns, even, odd);
        for (int each = 0; each < some; each++, output++) {
            const int at = each / 2 * 2;
            const int32_t *row = rows + SEC_ROW * output;
            y0[output] = sec_finish(each % 2 ? odd[at] : even[at], row, shape);
            if (columns == 2) {
                y1[output] = sec_finish(each % 2 ? odd[at + 1] : even[at + 1], row, shape);
            }
        }
    }
}

/* A convolution with dense weights. `scratch`: two columns of int16, then one of int8. */
static void sec_dense(const int8_t *x, int8_t *y, void *scratch, const int16_t *shape, const int16_t *weights, const int32_t *rows, int in_h,
                      int in_w, int in_row, int out_h, int out_w, int out_row, int top, int left) {
    const int inputs = shape[SEC_INPUTS], outputs = shape[SEC_OUTPUTS], groups = shape[SEC_GROUPS];
    const int taps = (shape[SEC_KERNEL_H] * shape[SEC_KERNEL_W] * inputs + 3) / 4 * 4;
    const sec_place place = {in_h, in_w, in_row, inputs * groups, out_h, out_w, out_row, outputs * groups, top, left};
    int16_t *wide = (int16_t *)scratch;
    int8_t *patch = (int8_t *)(wide + 2 * taps), *first = y;
    for (int group = 0; group < groups; group++) {
        int waiting = 0, remain = out_h * out_w;
        for (int oy = 0; oy < out_h; oy++) {
            for (int ox = 0; ox < out_w; ox++, remain--) {
                int8_t *to = y + oy * out_row + ox * place.out_step;
                const int columns = waiting || remain > 1 ? 2 : 1;
                sec_column(x, shape, &place, oy, ox, wide + 2 * waiting, 2 * columns, patch);
                if (columns == 2 && !waiting) {
                    waiting = 1;
                    first = to;
                    continue;
                }
                sec_dense_rows(weights, rows, shape, wide, taps / 2, columns, waiting ? first : to, to);
                waiting = 0;
            }
        }
        x += inputs;
        y += outputs;
        weights += (outputs + 1) / 2 * taps;
        rows += SEC_ROW * outputs;
    }
}
