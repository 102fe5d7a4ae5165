/* The larger ones of two times `count` numbers, in `y`. */
static void sec_larger(const int8_t *x, int8_t *y, int count) {
#ifdef SEC_DSP
    for (; count >= 4; count -= 4, x += 4, y += 4) {
        uint32_t a, b, rest;
        memcpy(&a, x, 4);
        memcpy(&b, y, 4);
        __asm__("ssub8 %[rest], %[a], %[b]\n\tsel %[a], %[a], %[b]" : [a] "+r"(a), [rest] "=&r"(rest) : [b] "r"(b) : "cc");
        memcpy(y, &a, 4);
    }
#endif
    for (; count > 0; count--, x++, y++) {
        *y = *x > *y ? *x : *y;
    }
}

/* The maximum over windows. */
static void sec_maximum(const int8_t *x, int8_t *y, const int16_t *shape, int in_h, int in_w, int in_row, int out_h, int out_w, int out_row,
                        int top, int left) {
    const int channels = shape[SEC_POOL_CHANNELS], down = shape[SEC_POOL_DILATION_H], along = shape[SEC_POOL_DILATION_W];
    for (int oy = 0; oy < out_h; oy++) {
        const int iy = oy * shape[SEC_POOL_STRIDE_H] - top;
        const sec_range rows = sec_inside(iy, shape[SEC_POOL_H], down, in_h);
        for (int ox = 0; ox < out_w; ox++) {
            const int ix = ox * shape[SEC_POOL_STRIDE_W] - left;
            const sec_range columns = sec_inside(ix, shape[SEC_POOL_W], along, in_w);
            int8_t *to = y + oy * out_row + ox * channels;
            int begun = 0;
            for (int ky = rows.first; ky < rows.end; ky++) {
                for (int kx = columns.first; kx < columns.end; kx++) {
                    const int8_t *from = x + (iy + ky * down) * in_row + (ix + kx * along) * channels;
                    if (begun) {
                        sec_larger(from, to, channels);
                    } else {
                        memcpy(to, from, (size_t)channels);
                        begun = 1;
                    }
                }
            }
        }
    }
}
