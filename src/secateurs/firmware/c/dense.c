/* Products with dense weights. Two rows share an int16: 256 times the weight of the odd row plus that of the even one; four rows share
   the words of a pair of taps. A sum over these (`both`) and one over their low bytes (`even`) say both rows: (both - even) / 256. */

/* Sums of an even and an odd row over one or two columns: those of the even row, then of the odd one. Words of weights are `step` numbers
   apart; a sum over both rows can hold `chunk` pairs. */
SEC_ALONE void sec_two_rows(const int16_t *weights, int step, const int16_t *x, int pairs, int chunk, int columns, int32_t *sums) {
    const int second = 2 * (columns - 1);
    uint32_t both0 = 0, both1 = 0, even0 = 0, even1 = 0;
    sums[2] = sums[3] = 0;
    for (int left = pairs; left > 0; left -= chunk) {
        int some = left < chunk ? left : chunk;
#ifdef SEC_DSP
        int32_t word, seen;
        __asm__ volatile(
            "0:\n\tldr %[word], [%[w]]\n\tadd %[w], %[w], %[step], lsl #1\n\tldr %[seen], [%[x]]\n\tsmlad %[both0], %[word], %[seen], %[both0]\n\t"
            "sxtb16 r12, %[word]\n\tsmlad %[even0], r12, %[seen], %[even0]\n\tldr %[seen], [%[x], %[second], lsl #1]\n\t"
            "smlad %[both1], %[word], %[seen], %[both1]\n\tsmlad %[even1], r12, %[seen], %[even1]\n\tadd %[x], %[x], %[columns], lsl #2\n\t"
            "subs %[some], %[some], #1\n\tbne 0b"
            : [w] "+r"(weights), [x] "+r"(x), [some] "+r"(some), [both0] "+r"(both0), [both1] "+r"(both1), [even0] "+r"(even0),
              [even1] "+r"(even1), [word] "=&r"(word), [seen] "=&r"(seen)
            : [step] "r"(step), [second] "r"(second), [columns] "r"(columns)
            : "r12", "cc", "memory");
#else
        for (; some > 0; some--, weights += step, x += 2 * columns) {
            const int32_t a = weights[0], b = weights[1], low = (int8_t)(a & 255), next = (int8_t)(b & 255);
            const int16_t *const other = x + second;
            both0 += (uint32_t)(a * x[0] + b * x[1]);
            even0 += (uint32_t)(low * x[0] + next * x[1]);
            both1 += (uint32_t)(a * other[0] + b * other[1]);
            even1 += (uint32_t)(low * other[0] + next * other[1]);
        }
#endif
        sums[2] += (int32_t)(both0 - even0) >> 8;
        sums[3] += (int32_t)(both1 - even1) >> 8;
        both0 = even0;
        both1 = even1;
    }
    sums[0] = (int32_t)even0;
    sums[1] = (int32_t)even1;
}

#ifdef SEC_DSP
/* The sums of four rows and two columns, as assembly: in the end r0 is at the weights that follow, r2-r5 are sums over both rows, r6-r9 over
   even ones. For one column r2 and r3, r6 and r7. */
#ifdef __ARM_FEATURE_MVE
#define SEC_AT_ONCE 4
/* r3 weights, r1 x; sums in even registers, as vectors want them: r0, r2, r4, r6 and r8, r10, r12, lr. */
#define SEC_VECTORS_2                                                                                                                      \
    "vld20.32 {q0, q1}, [r3]\n\tvld21.32 {q0, q1}, [r3]!\n\tvld20.32 {q2, q3}, [r1]\n\tvld21.32 {q2, q3}, [r1]!\n\t"                      \
    "vmladava.s16 r0, q0, q2\n\tvmladava.s16 r2, q0, q3\n\tvmladava.s16 r4, q1, q2\n\tvmladava.s16 r6, q1, q3\n\tvmovlb.s8 q0, q0\n\t"    \
    "vmovlb.s8 q1, q1\n\tvmladava.s16 r8, q0, q2\n\tvmladava.s16 r10, q0, q3\n\tvmladava.s16 r12, q1, q2\n\tvmladava.s16 lr, q1, q3\n\t"
#define SEC_PAIR_2                                                                                                                         \
    "ldrd r7, r9, [r1], #8\n\tldr r11, [r3], #4\n\tsmlad r0, r11, r7, r0\n\tsmlad r2, r11, r9, r2\n\tsxtb16 r11, r11\n\t"                \
    "smlad r8, r11, r7, r8\n\tsmlad r10, r11, r9, r10\n\tldr r11, [r3], #4\n\tsmlad r4, r11, r7, r4\n\tsmlad r6, r11, r9, r6\n\t"         \
    "sxtb16 r11, r11\n\tsmlad r12, r11, r7, r12\n\tsmlad lr, r11, r9, lr\n\t"
#define SEC_SUMS_2                                                                                                                         \
    "movs r0, #0\n\tmovs r2, #0\n\tmovs r4, #0\n\tmovs r6, #0\n\tmov r8, r0\n\tmov r10, r0\n\tmov r12, r0\n\tmov lr, r0\n\t"             \
    "ldr r3, %[w]\n\tldr r1, %[x]\n\tldr r5, %[most]\n\tcmp r1, r5\n\tbeq 2f\n1:\n\t" SEC_VECTORS_2 "cmp r1, r5\n\tbne 1b\n"               \
    "2:\n\tldr r5, %[end]\n\tcmp r1, r5\n\tbeq 3f\n\t" SEC_PAIR_2 SEC_PAIR_2                                                             \
    "\n3:\n\tmov r11, r3\n\tmov r7, r10\n\tmov r5, r6\n\tmov r6, r8\n\tmov r8, r12\n\tmov r9, lr\n\tmov r3, r2\n\tmov r2, r0\n\tmov r0, r11\n\t"
/* r9 weights; sums in r0, r2 and r4, r6. */
#define SEC_VECTORS_1                                                                                                                      \
    "vld20.32 {q0, q1}, [r9]\n\tvld21.32 {q0, q1}, [r9]!\n\tvldrh.u16 q2, [r1], #16\n\tvmladava.s16 r0, q0, q2\n\t"                       \
    "vmladava.s16 r2, q1, q2\n\tvmovlb.s8 q0, q0\n\tvmovlb.s8 q1, q1\n\tvmladava.s16 r4, q0, q2\n\tvmladava.s16 r6, q1, q2\n\t"
#define SEC_PAIR_1                                                                                                                         \
    "ldr r7, [r1], #4\n\tldrd r3, r5, [r9], #8\n\tsmlad r0, r3, r7, r0\n\tsmlad r2, r5, r7, r2\n\tsxtb16 r3, r3\n\tsxtb16 r5, r5\n\t"     \
    "smlad r4, r3, r7, r4\n\tsmlad r6, r5, r7, r6\n\t"
#define SEC_SUMS_1                                                                                                                         \
    "movs r0, #0\n\tmovs r2, #0\n\tmovs r4, #0\n\tmovs r6, #0\n\tldr r9, %[w]\n\tldr r1, %[x]\n\tldr r12, %[most]\n\tldr lr, %[end]\n\t"  \
    "cmp r1, r12\n\tbeq 2f\n1:\n\t" SEC_VECTORS_1 "cmp r1, r12\n\tbne 1b\n2:\n\tcmp r1, lr\n\tbeq 3f\n\t" SEC_PAIR_1 SEC_PAIR_1             \
    "\n3:\n\tmov r7, r6\n\tmov r6, r4\n\tmov r3, r2\n\tmov r2, r0\n\tmov r0, r9\n\t"
#define SEC_CLOBBERED "d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7",
#else
#define SEC_AT_ONCE 8
#define SEC_PAIR_2                                                                                                                         \
    "ldrd r10, r11, [r1], #8\n\tldrd r12, lr, [r0], #8\n\t"                                                                                \
    "smlad r2, r12, r10, r2\n\tsmlad r3, r12, r11, r3\n\tsmlad r4, lr, r10, r4\n\tsmlad r5, lr, r11, r5\n\tsxtb16 r12, r12\n\t"          \
    "sxtb16 lr, lr\n\tsmlad r6, r12, r10, r6\n\tsmlad r7, r12, r11, r7\n\tsmlad r8, lr, r10, r8\n\tsmlad r9, lr, r11, r9\n\t"
#define SEC_PAIRS_2 SEC_PAIR_2 SEC_PAIR_2
#define SEC_SUMS_2                                                                                                                         \
    "movs r2, #0\n\tmovs r3, #0\n\tmovs r4, #0\n\tmovs r5, #0\n\tmovs r6, #0\n\tmovs r7, #0\n\tmov r8, r2\n\tmov r9, r2\n\t"             \
    "ldr r0, %[w]\n\tldr r1, %[x]\n\tldr r12, %[most]\n\tcmp r1, r12\n\tbeq 2f\n"                                                       \
    "1:\n\t" SEC_PAIRS_2 SEC_PAIRS_2 SEC_PAIRS_2 SEC_PAIRS_2 "ldr r12, %[most]\n\tcmp r1, r12\n\tbne 1b\n"                              \
    "2:\n\tldr r12, %[end]\n\tcmp r1, r12\n\tbeq 3f\n\t" SEC_PAIRS_2 "b 2b\n3:\n\t"
#define SEC_PAIRS_1                                                                                                                        \
    "ldrd r10, r11, [r1], #8\n\tldm r0!, {r4, r5, r8, r9}\n\t"                                                                            \
    "smlad r2, r4, r10, r2\n\tsmlad r3, r5, r10, r3\n\tsxtb16 r4, r4\n\tsxtb16 r5, r5\n\tsmlad r6, r4, r10, r6\n\tsmlad r7, r5, r10, r7\n\t" \
    "smlad r2, r8, r11, r2\n\tsmlad r3, r9, r11, r3\n\tsxtb16 r8, r8\n\tsxtb16 r9, r9\n\tsmlad r6, r8, r11, r6\n\tsmlad r7, r9, r11, r7\n\t"
#define SEC_SUMS_1                                                                                                                         \
    "movs r2, #0\n\tmovs r3, #0\n\tmovs r6, #0\n\tmovs r7, #0\n\t"                                                                       \
    "ldr r0, %[w]\n\tldr r1, %[x]\n\tldr r12, %[most]\n\tldr lr, %[end]\n\tcmp r1, r12\n\tbeq 2f\n"                                     \
    "1:\n\t" SEC_PAIRS_1 SEC_PAIRS_1 SEC_PAIRS_1 SEC_PAIRS_1 "cmp r1, r12\n\tbne 1b\n2:\n\tcmp r1, lr\n\tbeq 3f\n\t" SEC_PAIRS_1 "b 2b\n3:\n\t"
#define SEC_CLOBBERED
#endif

/* Fours of rows for two columns, in all registers of the core. Returns the weights that follow. */
static const int16_t *sec_fours_2(const int16_t *weights, const int32_t *rows, const int16_t *x, int pairs, int fours, int zero,
                                  int8_t *y0, int8_t *y1) {
    const int16_t *const most = x + 4 * (pairs / SEC_AT_ONCE * SEC_AT_ONCE), *const end = x + 4 * pairs;
    const int8_t *const last = y0 + 4 * fours;
    __asm__ volatile(
        "0:\n\t" SEC_SUMS_2
        "str r0, %[w]\n\tldr r1, %[rows]\n\tldr r12, %[zero]\n\tsubs r2, r2, r6\n\tsubs r3, r3, r7\n\tldr lr, %[y0]\n\t" SEC_NEXT_ROW
        SEC_EVEN("r6") SEC_EVEN("r7") "strb r6, [lr], #1\n\tldr r6, %[y1]\n\tstrb r7, [r6], #1\n\t" SEC_NEXT_ROW
        SEC_ODD("r2") SEC_ODD("r3") "strb r2, [lr], #1\n\tstrb r3, [r6], #1\n\t" SEC_NEXT_ROW
        "subs r4, r4, r8\n\tsubs r5, r5, r9\n\t" SEC_EVEN("r8") SEC_EVEN("r9") "strb r8, [lr], #1\n\tstrb r9, [r6], #1\n\t" SEC_NEXT_ROW
        SEC_ODD("r4") SEC_ODD("r5") "strb r4, [lr], #1\n\tstrb r5, [r6], #1\n\t"
        "str r1, %[rows]\n\tstr lr, %[y0]\n\tstr r6, %[y1]\n\tldr r0, %[last]\n\tcmp lr, r0\n\tbne 0b"
        : [w] "+m"(weights), [rows] "+m"(rows), [y0] "+m"(y0), [y1] "+m"(y1)
        : [x] "m"(x), [most] "m"(most), [end] "m"(end), [zero] "m"(zero), [last] "m"(last)
        : SEC_CLOBBERED "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
    return weights;
}

/* The same for one column. */
static const int16_t *sec_fours_1(const int16_t *weights, const int32_t *rows, const int16_t *x, int pairs, int fours, int zero,
                                  int8_t *y) {
    const int16_t *const most = x + 2 * (pairs / SEC_AT_ONCE * SEC_AT_ONCE), *const end = x + 2 * pairs;
    const int8_t *const last = y + 4 * fours;
    __asm__ volatile(
        "0:\n\t" SEC_SUMS_1
        "str r0, %[w]\n\tldr r1, %[rows]\n\tldr r12, %[zero]\n\tsubs r2, r2, r6\n\tsubs r3, r3, r7\n\tldr lr, %[y]\n\t" SEC_NEXT_ROW
        SEC_EVEN("r6") "strb r6, [lr], #1\n\t" SEC_NEXT_ROW SEC_ODD("r2") "strb r2, [lr], #1\n\t" SEC_NEXT_ROW
        SEC_EVEN("r7") "strb r7, [lr], #1\n\t" SEC_NEXT_ROW SEC_ODD("r3") "strb r3, [lr], #1\n\t"
        "str r1, %[rows]\n\tstr lr, %[y]\n\tldr r0, %[last]\n\tcmp lr, r0\n\tbne 0b"
        : [w] "+m"(weights), [rows] "+m"(rows), [y] "+m"(y)
        : [x] "m"(x), [most] "m"(most), [end] "m"(end), [zero] "m"(zero), [last] "m"(last)
        : SEC_CLOBBERED "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory");
    return weights;
}
#endif

/* All rows of a group for one or two columns. */
static void sec_dense_rows(const sec_product *what, const int16_t *x, int columns, int8_t *const *y) {
    const int16_t *const shape = what->shape, *weights = (const int16_t *)what->weights;
    const int outputs = shape[SEC_OUTPUTS], chunk = shape[SEC_CHUNK], pairs = what->taps / 2;
    int output = 0;
#ifdef SEC_DSP
    if (shape[SEC_EASY] && pairs <= chunk && outputs >= 4) {
        output = outputs & ~3;
        weights = columns == 2 ? sec_fours_2(weights, what->rows, x, pairs, outputs >> 2, shape[SEC_ZERO_OUT], y[0], y[1])
                               : sec_fours_1(weights, what->rows, x, pairs, outputs >> 2, shape[SEC_ZERO_OUT], y[0]);
    }
#endif
    for (; output < outputs; output += 2) {
        const int step = output + 2 < outputs || output % 4 ? 4 : 2;
        int32_t sums[4];
        sec_two_rows(weights + output % 4, step, x, pairs, chunk, columns, sums);
        for (int each = 0; each < 2 && output + each < outputs; each++) {
            for (int column = 0; column < columns; column++) {
                y[column][output + each] = sec_finish(sums[2 * each + column], what->rows + SEC_ROW * (output + each), shape);
            }
        }
        weights += output % 4 ? 4 * pairs : 0;
    }
}

/* A convolution with dense weights. `scratch`: two columns of int16, then one of int8, then lines. */
static void sec_dense(const int8_t *x, int8_t *y, void *scratch, const int16_t *shape, const int16_t *weights, const int32_t *rows, int in_h,
                      int in_w, int in_row, int out_h, int out_w, int out_row, int top, int left) {
    const int inputs = shape[SEC_INPUTS], outputs = shape[SEC_OUTPUTS];
    const int taps = (shape[SEC_KERNEL_H] * shape[SEC_KERNEL_W] * inputs + 3) / 4 * 4;
    const sec_place place = sec_placed(shape, in_h, in_w, in_row, top, left);
    sec_product what = {shape, weights, rows, 0, 0, taps};
    for (int group = 0; group < shape[SEC_GROUPS]; group++) {
        sec_sweep(&what, sec_dense_rows, 2, 0, x + group * inputs, y + group * outputs, scratch, &place, out_h, out_w, out_row);
        weights += (outputs + 1) / 2 * taps;
        what.weights = weights;
        what.rows += SEC_ROW * outputs;
    }
}
