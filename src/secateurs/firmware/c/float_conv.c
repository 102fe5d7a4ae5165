/* Adds products with `count` numbers to four sums; the weights of an output are `taps` numbers from those of the next. */
static void sec_float_four(const float *x, const float *weights, int taps, int count, float *sums) {
    const float *one = weights, *two = one + taps, *three = two + taps, *four = three + taps;
    float a = sums[0], b = sums[1], c = sums[2], d = sums[3];
    for (; count > 0; count--) {
        const float number = *x++;
        a += number * *one++;
        b += number * *two++;
        c += number * *three++;
        d += number * *four++;
    }
    sums[0] = a;
    sums[1] = b;
    sums[2] = c;
    sums[3] = d;
}

/* A convolution; of what it reads, padding is left out. */
static void sec_float_conv(const float *x, float *y, const int16_t *shape, const float *weights, const float *bias, float low, float high,
                           int in_h, int in_w, int in_row, int out_h, int out_w, int out_row, int top, int left) {
    const int inputs = shape[SEC_INPUTS], outputs = shape[SEC_OUTPUTS], groups = shape[SEC_GROUPS], all = inputs * groups;
    const int down = shape[SEC_DILATION_H], along = shape[SEC_DILATION_W], kernel_w = shape[SEC_KERNEL_W];
    const int taps = shape[SEC_KERNEL_H] * kernel_w * inputs;
    for (int place = 0; place < out_h * out_w; place++) {
        const int iy = place / out_w * shape[SEC_STRIDE_H] - top, ix = place % out_w * shape[SEC_STRIDE_W] - left;
        const sec_range rows = sec_inside(iy, shape[SEC_KERNEL_H], down, in_h), columns = sec_inside(ix, kernel_w, along, in_w);
        const int joined = along == 1 && groups == 1 ? columns.end - columns.first : 1;
        float *to = y + place / out_w * out_row + place % out_w * outputs * groups;
        for (int output = 0; output < outputs * groups;) {
            const int some = output % outputs + 4 <= outputs ? 4 : 1;
            float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            for (int ky = rows.first; ky < rows.end; ky++) {
                for (int kx = columns.first; kx < columns.end; kx += joined) {
                    const float *from = x + (iy + ky * down) * in_row + (ix + kx * along) * all + output / outputs * inputs;
                    const float *by = weights + output * taps + (ky * kernel_w + kx) * inputs;
                    if (some == 4) {
                        sec_float_four(from, by, taps, joined * inputs, sums);
                    } else {
                        for (int each = 0; each < joined * inputs; each++) {
                            sums[0] += from[each] * by[each];
                        }
                    }
                }
            }
            for (int each = 0; each < some; each++, output++) {
                const float sum = sums[each] + bias[output];
                to[output] = sum < low ? low : sum > high ? high : sum;
            }
        }
    }
}
