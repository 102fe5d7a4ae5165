/* x * other; `other` begins anew after `period` numbers. `by` is both zeros, multiplier, shifts as `sec_small` has
   them and the zero of y. */
static void sec_times(const int8_t *x, const int8_t *other, int8_t *y, int count, int period, const int32_t *by) {
    for (int at = 0; count > 0; count--) {
        const int32_t product = (*x++ - by[0]) * (other[at] - by[1]);
        *y++ = (int8_t)sec_clamped(sec_small(product, by[2], by[3], by[4]) + by[5], -128, 127);
        at = at + 1 < period ? at + 1 : 0;
    }
}
