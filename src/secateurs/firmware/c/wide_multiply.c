/* x * other; `other` begins anew after `period` numbers. */
static void sec_wide_multiply(const int16_t *x, const int16_t *other, int16_t *y, int count, int period, int32_t multiplier, int32_t shift) {
    for (int at = 0; count > 0; count--) {
        *y++ = (int16_t)sec_clamped(sec_rescaled(*x++ * other[at], multiplier, shift), -32768, 32767);
        at = at + 1 < period ? at + 1 : 0;
    }
}
