/* x + other, or x - other where the sign is -1. */
static void sec_add(const int8_t *x, const int8_t *other, int8_t *y, int count, const int32_t *by) {
    const int32_t zero = by[SEC_ADD_ZERO], multiplier = by[SEC_ADD_MULTIPLIER], shift = by[SEC_ADD_SHIFT];
    const int32_t zero_other = by[SEC_ADD_ZERO_OTHER], multiplier_other = by[SEC_ADD_MULTIPLIER_OTHER], shift_other = by[SEC_ADD_SHIFT_OTHER];
    const int32_t multiplier_out = by[SEC_ADD_MULTIPLIER_OUT], shift_out = by[SEC_ADD_SHIFT_OUT], zero_out = by[SEC_ADD_ZERO_OUT];
    const int32_t low = by[SEC_ADD_LOW], high = by[SEC_ADD_HIGH], sign = by[SEC_ADD_SIGN];
    for (; count > 0; count--) {
        const int32_t one = sec_halved(sec_high((*x++ - zero) * (1 << 21), multiplier), shift);
        const int32_t two = sec_halved(sec_high((*other++ - zero_other) * (1 << 21), multiplier_other), shift_other);
        const int32_t sum = one + sign * two;
        const int32_t found = shift_out > 0 ? sec_rescaled(sum, multiplier_out, shift_out)
                                            : sec_halved(sec_high(2 * sum, multiplier_out), -shift_out);
        *y++ = (int8_t)sec_clamped(found + zero_out, low, high);
    }
}
