/* Dense weights that lie in flash as words of a canonical prefix code, and are decoded before they are used. */

enum { SEC_SHORTEST, SEC_LONGEST, SEC_WORDS };

/* Decodes pairs of weights, the even row's first. `code` says, from the shortest length of a word to the longest, the last word of each
   (in 16 bits, the rest ones) and what leads from a word to the place of its `symbol`. */
SEC_ALONE void sec_decode(const uint8_t *bits, const uint16_t *code, const int8_t *symbols, int count, int16_t *to) {
    const int shortest = code[SEC_SHORTEST], lengths = code[SEC_LONGEST] - shortest + 1;
    const uint16_t *const last = code + SEC_WORDS, *const offset = last + lengths;
    uint32_t window = 0, number = 0;
    int have = 0;
    for (int each = 0; each < 2 * count; each++) {
        int at = 0;
        for (; have <= 16; have += 8) {
            window |= (uint32_t)*bits++ << (24 - have);
        }
        const uint32_t word = window >> 16;
        while (word > last[at]) {
            at++;
        }
        const int length = shortest + at;
        const int32_t symbol = symbols[(uint16_t)((word >> (16 - length)) + offset[at])];
        window <<= length;
        have -= length;
        if (each % 2) {
            *to++ = (int16_t)(256 * symbol + (int32_t)number);
        }
        number = (uint32_t)symbol;
    }
}

/* A convolution with weights that are decoded first. `scratch`: all of them as `sec_dense` reads them, then what it needs. */
static void sec_coded(const int8_t *x, int8_t *y, void *scratch, const int16_t *shape, const uint8_t *bits, const uint16_t *code,
                      const int8_t *symbols, const int32_t *rows, int in_h, int in_w, int in_row, int out_h, int out_w, int out_row, int top,
                      int left) {
    const int taps = (shape[SEC_KERNEL_H] * shape[SEC_KERNEL_W] * shape[SEC_INPUTS] + 3) / 4 * 4;
    const int count = shape[SEC_GROUPS] * ((shape[SEC_OUTPUTS] + 1) / 2) * taps;
    int16_t *const weights = (int16_t *)scratch;
    sec_decode(bits, code, symbols, count, weights);
    sec_dense(x, y, weights + count, shape, weights, rows, in_h, in_w, in_row, out_h, out_w, out_row, top, left);
}
