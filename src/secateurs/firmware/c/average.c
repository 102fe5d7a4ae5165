/* The average over windows, halves away from zero. */
static void sec_average(const int8_t *x, int8_t *y, const int16_t *shape, int in_h, int in_w, int in_row, int out_h, int out_w, int out_row,
                        int top, int left) {
    const int channels = shape[SEC_POOL_CHANNELS], down = shape[SEC_POOL_DILATION_H], along = shape[SEC_POOL_DILATION_W];
    for (int oy = 0; oy < out_h; oy++) {
        const int iy = oy * shape[SEC_POOL_STRIDE_H] - top;
        const sec_range rows = sec_inside(iy, shape[SEC_POOL_H], down, in_h);
        for (int ox = 0; ox < out_w; ox++) {
            const int ix = ox * shape[SEC_POOL_STRIDE_W] - left;
            const sec_range columns = sec_inside(ix, shape[SEC_POOL_W], along, in_w);
            const int area = (rows.end - rows.first) * (columns.end - columns.first);
            const int count = shape[SEC_POOL_COUNTS] ? shape[SEC_POOL_H] * shape[SEC_POOL_W] : area;
            const int32_t outside = (count - area) * shape[SEC_POOL_ZERO];
            const int8_t *from = x + (iy + rows.first * down) * in_row + (ix + columns.first * along) * channels;
            int8_t *to = y + oy * out_row + ox * channels;
            for (int channel = 0; channel < channels; channel += 4) {
                const int some = channels - channel < 4 ? channels - channel : 4;
                int32_t sums[4];
                sec_sums_over(from + channel, rows.end - rows.first, columns.end - columns.first, down * in_row, along * channels, some, sums);
                for (int each = 0; each < some; each++) {
                    const int32_t sum = sums[each] + outside, half = sum < 0 ? -(count / 2) : count / 2;
                    to[channel + each] = (int8_t)((sum + half) / count);
                }
            }
        }
    }
}
