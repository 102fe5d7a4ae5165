/* A convolution of each channel by itself, with `outputs` results for each; the weights of a tap lie side by side. */
static void sec_wide_depthwise(const int16_t *x, int16_t *y, const int16_t *shape, const int8_t *weights, const int64_t *bias,
                               const int32_t *rows, int low, int high, int in_h, int in_w, int in_row, int out_h, int out_w, int out_row,
                               int top, int left) {
    const int per = shape[SEC_OUTPUTS], inputs = shape[SEC_GROUPS], outputs = inputs * per;
    const int down = shape[SEC_DILATION_H], along = shape[SEC_DILATION_W], kernel_w = shape[SEC_KERNEL_W];
    for (int place = 0; place < out_h * out_w; place++) {
        const int iy = place / out_w * shape[SEC_STRIDE_H] - top, ix = place % out_w * shape[SEC_STRIDE_W] - left;
        const sec_range down_range = sec_inside(iy, shape[SEC_KERNEL_H], down, in_h), columns = sec_inside(ix, kernel_w, along, in_w);
        int16_t *to = y + place / out_w * out_row + place % out_w * outputs;
        for (int output = 0; output < outputs; output++) {
            int64_t sum = bias[output];
            for (int ky = down_range.first; ky < down_range.end; ky++) {
                const int16_t *from = x + (iy + ky * down) * in_row + (ix + columns.first * along) * inputs + output / per;
                const int8_t *by = weights + (ky * kernel_w + columns.first) * outputs + output;
                for (int kx = columns.first; kx < columns.end; kx++, from += along * inputs, by += outputs) {
                    sum += *from * *by;
                }
            }
            to[output] = sec_wide_finish(sum, rows[2 * output], rows[2 * output + 1], 0, low, high);
        }
    }
}
