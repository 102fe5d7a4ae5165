/* What one place of a result reads, as a column of int16 numbers: those of each four in the order 0, 2, 1, 3, in pairs. Several columns
   lie side by side: a pair of each, then the next pair of each. */

/* Widens a multiple of four numbers; pairs are `step` numbers apart. Returns where the next go. */
static int16_t *sec_widen(const int8_t *from, int count, int16_t *to, int step) {
#ifdef SEC_DSP
    int32_t a, b;
    int bytes = 2 * step;
    for (; count >= 8; count -= 8) {
        __asm__ volatile(
            "ldr %[a], [%[from]], #4\n\tsxtb16 %[b], %[a]\n\tsxtb16 %[a], %[a], ror #8\n\t"
            "str %[b], [%[to]]\n\tstr %[a], [%[to], %[bytes]]\n\tadd %[to], %[to], %[bytes], lsl #1\n\t"
            "ldr %[a], [%[from]], #4\n\tsxtb16 %[b], %[a]\n\tsxtb16 %[a], %[a], ror #8\n\t"
            "str %[b], [%[to]]\n\tstr %[a], [%[to], %[bytes]]\n\tadd %[to], %[to], %[bytes], lsl #1"
            : [from] "+r"(from), [to] "+r"(to), [a] "=&r"(a), [b] "=&r"(b)
            : [bytes] "r"(bytes)
            : "memory");
    }
    if (count) {
        __asm__ volatile(
            "ldr %[a], [%[from]], #4\n\tsxtb16 %[b], %[a]\n\tsxtb16 %[a], %[a], ror #8\n\t"
            "str %[b], [%[to]]\n\tstr %[a], [%[to], %[bytes]]\n\tadd %[to], %[to], %[bytes], lsl #1"
            : [from] "+r"(from), [to] "+r"(to), [a] "=&r"(a), [b] "=&r"(b)
            : [bytes] "r"(bytes)
            : "memory");
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

/* The same for a multiple of four equal numbers. */
static int16_t *sec_level(int16_t value, int count, int16_t *to, int step) {
    for (; count > 0; count -= 2, to += step) {
        to[0] = value;
        to[1] = value;
    }
    return to;
}

/* What the place (oy, ox) reads, `x` pointing at the first channel of its group. `patch` has room for all of it as int8, in fours. */
static void sec_column(const int8_t *x, const int16_t *shape, const sec_place *place, int oy, int ox, int16_t *to, int step, int8_t *patch) {
    const int inputs = shape[SEC_INPUTS], kernel_w = shape[SEC_KERNEL_W], dilation_w = shape[SEC_DILATION_W], in_w = place->in_w;
    const int whole = inputs % 4 == 0, run = inputs * kernel_w, joined = dilation_w == 1 && place->in_step == inputs;
    const int left = ox * shape[SEC_STRIDE_W] - place->left;
    const int inside = left >= 0 && left + (kernel_w - 1) * dilation_w < in_w;
    int iy = oy * shape[SEC_STRIDE_H] - place->top;
    int8_t *byte = patch;
    for (int ky = 0; ky < shape[SEC_KERNEL_H]; ky++, iy += shape[SEC_DILATION_H]) {
        const int8_t *line = x + iy * place->in_row + left * place->in_step;
        const int row = iy >= 0 && iy < place->in_h;
        if (row && inside && joined && whole) {
            to = sec_widen(line, run, to, step);
            continue;
        }
        if (row && inside && joined) {
            memcpy(byte, line, (size_t)run);
            byte += run;
            continue;
        }
        for (int kx = 0, ix = left; kx < kernel_w; kx++, ix += dilation_w, line += dilation_w * place->in_step) {
            const int there = row && ix >= 0 && ix < in_w;
            if (whole) {
                to = there ? sec_widen(line, inputs, to, step) : sec_level(shape[SEC_ZERO], inputs, to, step);
            } else if (there) {
                memcpy(byte, line, (size_t)inputs);
                byte += inputs;
            } else {
                memset(byte, shape[SEC_ZERO], (size_t)inputs);
                byte += inputs;
            }
        }
    }
    if (!whole) {
        const int taps = (int)(byte - patch), padded = (taps + 3) / 4 * 4;
        memset(byte, 0, (size_t)(padded - taps));
        sec_widen(patch, padded, to, step);
    }
}
