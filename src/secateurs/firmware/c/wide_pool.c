/* The maximum or the average over windows, halves away from zero. */
static void sec_wide_pool(const int16_t *x, int16_t *y, const int16_t *shape, int average, int in_h, int in_w, int in_row, int out_h,
                          int out_w, int out_row, int top, int left) {
    const int channels = shape[SEC_POOL_CHANNELS], down = shape[SEC_POOL_DILATION_H], along = shape[SEC_POOL_DILATION_W];
    for (int place = 0; place < out_h * out_w; place++) {
        const int iy = place / out_w * shape[SEC_POOL_STRIDE_H] - top, ix = place % out_w * shape[SEC_POOL_STRIDE_W] - left;
        const sec_range rows = sec_inside(iy, shape[SEC_POOL_H], down, in_h), columns = sec_inside(ix, shape[SEC_POOL_W], along, in_w);
        const int area = (rows.end - rows.first) * (columns.end - columns.first);
        const int count = shape[SEC_POOL_COUNTS] ? shape[SEC_POOL_H] * shape[SEC_POOL_W] : area;
        for (int channel = 0; channel < channels; channel++) {
            int32_t sum = 0, largest = -32768;
            for (int ky = rows.first; ky < rows.end; ky++) {
                const int16_t *from = x + (iy + ky * down) * in_row + (ix + columns.first * along) * channels + channel;
                for (int kx = columns.first; kx < columns.end; kx++, from += along * channels) {
                    sum += *from;
                    largest = *from > largest ? *from : largest;
                }
            }
            const int32_t mean = average ? (sum + (sum < 0 ? -(count / 2) : count / 2)) / count : largest;
            y[place / out_w * out_row + place % out_w * channels + channel] = (int16_t)mean;
        }
    }
}
