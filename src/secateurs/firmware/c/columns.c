/* What one place of a result reads, as a column of int16 numbers: those of each four in the order 0, 2, 1, 3, in pairs. Several columns
   lie side by side: a pair of each, then the next pair of each. */

/* Widens a multiple of four numbers; pairs are `step` numbers apart. Returns where the next go. */
static int16_t *sec_widen(const int8_t *from, int count, int16_t *to, int step) {
#ifdef SEC_DSP
    int32_t a, b, c;
#define SEC_FOUR(word, first, second)                                                                                                      \
    "sxtb16 %[c], " word "\n\tsxtb16 " word ", " word ", ror #8\n\tstr %[c], [%[to], #" first "]\n\tstr " word ", [%[to], #" second "]\n\t"
    if (step == 4) {
        for (; count >= 16; count -= 16) {
            __asm__ volatile("ldr %[a], [%[from]], #4\n\tldr %[b], [%[from]], #4\n\t" SEC_FOUR("%[a]", "0", "8") SEC_FOUR("%[b]", "16", "24")
                             "ldr %[a], [%[from]], #4\n\tldr %[b], [%[from]], #4\n\t" SEC_FOUR("%[a]", "32", "40") SEC_FOUR("%[b]", "48", "56") "adds %[to], #64"
                             : [from] "+r"(from), [to] "+r"(to), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c)
                             :
                             : "memory", "cc");
        }
    }
#undef SEC_FOUR
    for (; count > 0; count -= 4, from += 4, to += 2 * step) {
        a = sec_word(from);
        b = sec_evens(a);
        a = sec_odds(a);
        memcpy(to, &b, 4);
        memcpy(to + step, &a, 4);
    }
#else
    for (; count > 0; count -= 4, from += 4, to += 2 * step) {
        to[0] = from[0];
        to[1] = from[2];
        to[step] = from[1];
        to[step + 1] = from[3];
    }
#endif
    return to;
}

/* The same in the order in which they lie, each `step` numbers after the last. */
static inline int16_t *sec_apart(const int8_t *from, int count, int16_t *to, int step) {
    for (; count >= 4; count -= 4, from += 4, to += 4 * step) {
        to[0] = from[0];
        to[step] = from[1];
        to[2 * step] = from[2];
        to[3 * step] = from[3];
    }
    return to;
}

/* Copies a few numbers. */
static inline int8_t *sec_few(int8_t *to, const int8_t *from, int count) {
#ifdef SEC_DSP
    for (; count >= 4; count -= 4, from += 4, to += 4) {
        memcpy(to, from, 4);
    }
#endif
    while (count-- > 0) {
        *to++ = *from++;
    }
    return to;
}

/* One row of a window, of which some may be outside, as bytes. */
static int8_t *sec_line(const int8_t *line, const int16_t *shape, const sec_place *place, int there, int left, int8_t *byte) {
    const int inputs = shape[SEC_INPUTS], dilation = shape[SEC_DILATION_W], step = dilation * place->in_step;
    for (int kx = 0, ix = left; kx < shape[SEC_KERNEL_W]; kx++, ix += dilation, line += step) {
        if (there && ix >= 0 && ix < place->in_w) {
            byte = sec_few(byte, line, inputs);
        } else {
            for (int each = 0; each < inputs; each++) {
                *byte++ = (int8_t)shape[SEC_ZERO];
            }
        }
    }
    return byte;
}

/* What the place (oy, ox) reads, `x` pointing at the first channel of its group, in pairs or, where `single`, one by one; `patch` has room
   for all of it as int8, in fours. */
static void sec_column(const int8_t *x, const int16_t *shape, const sec_place *place, int oy, int ox, int single, int16_t *to, int step,
                       int8_t *patch) {
    const int run = shape[SEC_INPUTS] * shape[SEC_KERNEL_W], rows = shape[SEC_KERNEL_H];
    const int left = ox * shape[SEC_STRIDE_W] - place->left, inside = left >= 0 && left + place->reach < place->in_w;
    int iy = oy * shape[SEC_STRIDE_H] - place->top;
    const int8_t *line = x + iy * place->in_row + left * place->in_step;
    int8_t *byte = patch;
    if (run % 4 == 0 && place->joined && inside && iy >= 0 && iy + (rows - 1) * place->down < place->in_h) {
#ifdef SEC_DSP
        if (run == 4 && !single) {
            for (int ky = 0; ky < rows; ky++, line += place->line, to += 2 * step) {
                const int32_t word = sec_word(line), even = sec_evens(word), odd = sec_odds(word);
                memcpy(to, &even, 4);
                memcpy(to + step, &odd, 4);
            }
            return;
        }
#endif
        for (int ky = 0; ky < rows; ky++, line += place->line) {
            to = single ? sec_apart(line, run, to, step) : sec_widen(line, run, to, step);
        }
        return;
    }
    for (int ky = 0; ky < rows; ky++, iy += place->down, line += place->line) {
        const int there = iy >= 0 && iy < place->in_h;
        byte = there && inside && place->joined ? sec_few(byte, line, run) : sec_line(line, shape, place, there, left, byte);
    }
    for (; (byte - patch) % 4; byte++) {
        *byte = 0;
    }
    if (single) {
        sec_apart(patch, (int)(byte - patch), to, step);
    } else {
        sec_widen(patch, (int)(byte - patch), to, step);
    }
}

/* The rows that the row `oy` of the result reads, whole with their padding, one after another in `lines`; what the row before read stays. */
static void sec_lines(const int8_t *x, const int16_t *shape, const sec_place *place, int oy, int8_t *lines, int bytes) {
    const int before = place->left * place->in_step, most = bytes - before, there = place->in_w * place->in_step;
    const int some = there < most ? there : most, rows = shape[SEC_KERNEL_H], moved = shape[SEC_STRIDE_H];
    const int stay = oy > 0 && place->down == 1 && moved < rows ? rows - moved : 0;
    memmove(lines, lines + moved * bytes, (size_t)(stay * bytes));
    lines += stay * bytes;
    int iy = oy * moved - place->top + stay * place->down;
    for (int ky = stay; ky < rows; ky++, iy += place->down, lines += bytes) {
        if (iy < 0 || iy >= place->in_h || some <= 0) {
            memset(lines, shape[SEC_ZERO], (size_t)bytes);
            continue;
        }
        memset(lines, shape[SEC_ZERO], (size_t)before);
        memcpy(lines + before, x + iy * place->in_row, (size_t)some);
        memset(lines + before + some, shape[SEC_ZERO], (size_t)(most - some));
    }
}

/* Where windows lie in the array itself. */
static sec_place sec_placed(const int16_t *shape, int in_h, int in_w, int in_row, int top, int left) {
    const int groups = shape[SEC_GROUPS], dilation = shape[SEC_DILATION_W], down = shape[SEC_DILATION_H];
    const sec_place place = {in_h, in_w, in_row, shape[SEC_INPUTS] * groups, top, left, down, down * in_row,
                             (shape[SEC_KERNEL_W] - 1) * dilation, dilation == 1 && groups == 1};
    return place;
}

/* Where they lie in lines of so many numbers. */
static sec_place sec_in_lines(const sec_place *place, int bytes) {
    const sec_place in = {1 << 14, bytes / place->in_step, bytes, place->in_step, 0, 0, 1, bytes, place->reach, place->joined};
    return in;
}

/* The weights of one group, whatever their format, and how they are multiplied with some columns that lie side by side in `x`. */
typedef struct sec_product {
    const int16_t *shape;
    const void *weights;
    const int32_t *rows;
    const uint16_t *counts;
    const uint8_t *gaps;
    int taps;
} sec_product;
typedef void (*sec_multiply)(const sec_product *what, const int16_t *x, int columns, int8_t *const *y);

/* One group's channels of the result, `most` places at a time (4 at most), then the rest one by one. */
static void sec_sweep(const sec_product *what, sec_multiply multiply, int most, int single, const int8_t *x, int8_t *y, void *scratch,
                      const sec_place *place, int out_h, int out_w, int out_row) {
    const int16_t *const shape = what->shape;
    const int out_step = shape[SEC_OUTPUTS] * shape[SEC_GROUPS], lined = shape[SEC_LINES];
    const int line = ((out_w - 1) * shape[SEC_STRIDE_W] + place->reach + 1) * place->in_step;
    int16_t *const wide = (int16_t *)scratch;
    int8_t *const patch = (int8_t *)(wide + most * what->taps), *const lines = patch + what->taps, *to[4];
    const sec_place from = lined ? sec_in_lines(place, line) : *place;
    const int inside = !place->top && !place->left && (out_h - 1) * shape[SEC_STRIDE_H] < place->in_h && (out_w - 1) * shape[SEC_STRIDE_W] < place->in_w;
    const int plain = inside && shape[SEC_KERNEL_H] * shape[SEC_KERNEL_W] == 1 && shape[SEC_INPUTS] % 4 == 0 && !single;
    int waiting = 0, columns = 0, remain = out_h * out_w;
    for (int oy = 0; oy < out_h; oy++) {
        int8_t *at = y + oy * out_row;
        if (lined) {
            sec_lines(x, shape, place, oy, lines, line);
        }
        for (int ox = 0; ox < out_w; ox++, at += out_step) {
            if (!waiting) {
                columns = remain < most ? 1 : most;
                remain -= columns;
            }
            to[waiting] = at;
            int16_t *const column = wide + (single ? waiting : 2 * waiting);
            const int step = single ? columns : 2 * columns;
            if (plain) {
                sec_widen(x + oy * shape[SEC_STRIDE_H] * place->in_row + ox * shape[SEC_STRIDE_W] * place->in_step, what->taps, column, step);
            } else {
                sec_column(lined ? lines : x, shape, &from, lined ? 0 : oy, ox, single, column, step, patch);
            }
            if (++waiting == columns) {
                multiply(what, wide, columns, to);
                while (waiting > 0) {
                    sec_clamp(to[--waiting], shape[SEC_OUTPUTS], 1, shape);
                }
            }
        }
    }
}

#ifdef SEC_DSP
/* What begins and ends a row for four columns or one, as assembly: r2-r5 are sums, lr counts what is kept, r1 is at the columns. */
#define SEC_ROW_BEGINS                                                                                                                     \
    "ldr r6, %[counts]\n\tmovs r2, #0\n\tmovs r3, #0\n\tmovs r4, #0\n\tmovs r5, #0\n\tldrh lr, [r6], #2\n\tldr r1, %[x]\n\tstr r6, %[counts]\n\t"
#define SEC_SUM_DONE(sum)                                                                                                                  \
    "add " sum ", r6, " sum ", lsl #1\n\tsmmulr " sum ", " sum ", r7\n\tadd " sum ", " sum ", " sum ", asr #31\n\t"                         \
    "asrs " sum ", " sum ", r8\n\tadc " sum ", " sum ", r9\n\tssat " sum ", #8, " sum "\n\t"
#define SEC_ROW_ENDS "ldr r1, %[rows]\n\tldr r9, %[zero]\n\tldm r1!, {r6, r7, r8}\n\tstr r1, %[rows]\n\t" SEC_SUM_DONE("r2")
#define SEC_FOUR_MORE                                                                                                                      \
    SEC_SUM_DONE("r3") SEC_SUM_DONE("r4") SEC_SUM_DONE("r5")                                                                               \
    "ldr r1, %[y]\n\tldr r10, %[output]\n\tldm r1, {r6, r7, r8, r9}\n\tstrb r2, [r6, r10]\n\tstrb r3, [r7, r10]\n\tstrb r4, [r8, r10]\n\t"  \
    "strb r5, [r9, r10]\n\t"
#define SEC_ONE_MORE "ldr r1, %[y]\n\tldr r10, %[output]\n\tldr r6, [r1]\n\tstrb r2, [r6, r10]\n\t"
#define SEC_ROW_NEXT "ldr r6, %[outputs]\n\tadd r10, r10, #1\n\tstr r10, %[output]\n\tcmp r10, r6\n\tbne 0b"
/* The statement around: `kept` is the work on what is kept of a row, r0 its weights and r12 its gaps. */
#define SEC_ALL_ROWS(kept, more)                                                                                                           \
    const int32_t *rows = what->rows;                                                                                                      \
    const void *const weights = what->weights;                                                                                             \
    const uint16_t *counts = what->counts;                                                                                                 \
    const uint8_t *const gaps = what->gaps;                                                                                                \
    const int zero = what->shape[SEC_ZERO_OUT], outputs = what->shape[SEC_OUTPUTS];                                                        \
    int output = 0;                                                                                                                        \
    __asm__ volatile("ldr r0, %[weights]\n\tldr r12, %[gaps]\n0:\n\t" SEC_ROW_BEGINS kept SEC_ROW_ENDS more SEC_ROW_NEXT                   \
                     : [rows] "+m"(rows), [counts] "+m"(counts), [output] "+m"(output)                                                     \
                     : [weights] "m"(weights), [gaps] "m"(gaps), [x] "m"(x), [y] "m"(y), [zero] "m"(zero), [outputs] "m"(outputs)          \
                     : "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "lr", "cc", "memory")
/* Something lr times, in pairs or in fours. */
#define SEC_BY_TWO(one) "lsrs lr, lr, #1\n\tbcc 1f\n\t" one "\n1:\n\tcmp lr, #0\n\tbeq 3f\n2:\n\t" one one "subs lr, lr, #1\n\tbne 2b\n3:\n\t"
#define SEC_BY_FOUR(one)                                                                                                                   \
    "lsrs lr, lr, #1\n\tbcc 1f\n\t" one "\n1:\n\tlsrs lr, lr, #1\n\tbcc 2f\n\t" one one "\n2:\n\tcmp lr, #0\n\tbeq 4f\n3:\n\t"          \
    one one one one "subs lr, lr, #1\n\tbne 3b\n4:\n\t"
#endif
