/* The sum of products of `taps` weights, a multiple of four, with numbers; of each four weights the middle two have changed places. */
static int64_t sec_wide_dot(const int8_t *weights, const int16_t *x, int taps) {
    int64_t sum = 0;
#ifdef SEC_DSP
    for (; taps > 0; taps -= 4, weights += 4, x += 4) {
        uint32_t four, one, two, first, second;
        memcpy(&four, weights, 4);
        memcpy(&first, x, 4);
        memcpy(&second, x + 2, 4);
        __asm__("sxtb16 %[one], %[four]\n\tsxtb16 %[two], %[four], ror #8\n\t"
                "smlald %Q[sum], %R[sum], %[one], %[first]\n\tsmlald %Q[sum], %R[sum], %[two], %[second]"
                : [sum] "+r"(sum), [one] "=&r"(one), [two] "=&r"(two)
                : [four] "r"(four), [first] "r"(first), [second] "r"(second));
    }
#else
    for (; taps > 0; taps -= 4, weights += 4, x += 4) {
        sum += weights[0] * x[0] + weights[2] * x[1];
        sum += weights[1] * x[2] + weights[3] * x[3];
    }
#endif
    return sum;
}

/* A convolution of numbers of 16 bits around zero. `rows` is multiplier and shift of each output; `scratch` holds what a place reads. */
static void sec_wide_conv(const int16_t *x, int16_t *y, void *scratch, const int16_t *shape, const int8_t *weights, const int64_t *bias,
                          const int32_t *rows, int low, int high, int in_h, int in_w, int in_row, int out_h, int out_w, int out_row, int top,
                          int left) {
    const int inputs = shape[SEC_INPUTS], outputs = shape[SEC_OUTPUTS], groups = shape[SEC_GROUPS], all = inputs * groups;
    const int down = shape[SEC_DILATION_H], along = shape[SEC_DILATION_W], kernel_w = shape[SEC_KERNEL_W];
    const int taps = (shape[SEC_KERNEL_H] * kernel_w * inputs + 3) / 4 * 4;
    for (int group = 0; group < groups; group++) {
        for (int place = 0; place < out_h * out_w; place++) {
            const int iy = place / out_w * shape[SEC_STRIDE_H] - top, ix = place % out_w * shape[SEC_STRIDE_W] - left;
            const int8_t *weight = weights + group * outputs * taps;
            int16_t *column = (int16_t *)scratch, *to = y + place / out_w * out_row + place % out_w * outputs * groups;
            memset(column + taps - 4, 0, 8);
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
            for (int output = group * outputs; output < (group + 1) * outputs; output++, weight += taps) {
                const int64_t sum = sec_wide_dot(weight, (const int16_t *)scratch, taps) + bias[output];
                to[output] = sec_wide_finish(sum, rows[2 * output], rows[2 * output + 1], 0, low, high);
            }
        }
    }
}
