/* A convolution with the weights that are not 0: for each output how many, then for each of these how many taps further it is. `scratch`
   has room for all that one place reads. */
static void sec_float_sparse(const float *x, float *y, void *scratch, const int16_t *shape, const float *weights, const uint8_t *gaps,
                             const uint16_t *counts, const float *bias, float low, float high, int in_h, int in_w, int in_row, int out_h,
                             int out_w, int out_row, int top, int left) {
    const int inputs = shape[SEC_INPUTS], outputs = shape[SEC_OUTPUTS], groups = shape[SEC_GROUPS], all = inputs * groups;
    const int down = shape[SEC_DILATION_H], along = shape[SEC_DILATION_W], kernel_w = shape[SEC_KERNEL_W];
    for (int group = 0; group < groups; group++) {
        const float *first_weight = weights;
        const uint8_t *first_gap = gaps;
        for (int place = 0; place < out_h * out_w; place++) {
            const int iy = place / out_w * shape[SEC_STRIDE_H] - top, ix = place % out_w * shape[SEC_STRIDE_W] - left;
            float *column = (float *)scratch, *to = y + place / out_w * out_row + place % out_w * outputs * groups + group * outputs;
            for (int ky = 0; ky < shape[SEC_KERNEL_H]; ky++) {
                for (int kx = 0; kx < kernel_w; kx++, column += inputs) {
                    const int row = iy + ky * down, at = ix + kx * along;
                    if (row >= 0 && row < in_h && at >= 0 && at < in_w) {
                        memcpy(column, x + row * in_row + at * all + group * inputs, (size_t)inputs * sizeof *column);
                    } else {
                        memset(column, 0, (size_t)inputs * sizeof *column);
                    }
                }
            }
            weights = first_weight;
            gaps = first_gap;
            for (int output = 0; output < outputs; output++) {
                const float *from = (const float *)scratch;
                float sum = bias[group * outputs + output];
                for (int left_over = counts[group * outputs + output]; left_over > 0; left_over--) {
                    from += *gaps++;
                    sum += *from * *weights++;
                }
                to[output] = sum < low ? low : sum > high ? high : sum;
            }
        }
    }
}
