/* x * other; `other` begins anew after `period` numbers. `by` is both zeros, multiplier, shifts as `sec_small` has them and the zero of y. */
static void sec_times(const int8_t *x, const int8_t *other, int8_t *y, int count, int period, const int32_t *by) {
    const int32_t zero = by[0], zero_other = by[1], multiplier = by[2], left = by[3], right = by[4], zero_out = by[5];
    for (int at = 0; count > 0; count--) {
        const int32_t product = (*x++ - zero) * (other[at] - zero_other);
        *y++ = (int8_t)sec_clamped(sec_small(product, multiplier, left, right) + zero_out, -128, 127);
        at = at + 1 < period ? at + 1 : 0;
    }
}
