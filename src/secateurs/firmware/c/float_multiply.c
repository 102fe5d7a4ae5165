/* x * other; `other` begins anew after `period` numbers. */
static void sec_float_multiply(const float *x, const float *other, float *y, int count, int period) {
    for (int at = 0; count > 0; count--) {
        *y++ = *x++ * other[at];
        at = at + 1 < period ? at + 1 : 0;
    }
}
