/* Places in the array `by` of a sum of two arrays; shifts of the terms are to the right. */
enum {
    SEC_ADD_ZERO, SEC_ADD_MULTIPLIER, SEC_ADD_SHIFT, SEC_ADD_ZERO_OTHER, SEC_ADD_MULTIPLIER_OTHER, SEC_ADD_SHIFT_OTHER,
    SEC_ADD_MULTIPLIER_OUT, SEC_ADD_SHIFT_OUT, SEC_ADD_ZERO_OUT, SEC_ADD_LOW, SEC_ADD_HIGH, SEC_ADD_SIGN
};

/* A number below 2^30 divided by 2^shift: to the nearest, halves away from zero. */
static inline int32_t sec_halved(int32_t number, int32_t shift) {
    return shift ? (number + (number >> 31) + ((1 << shift) >> 1)) >> shift : number;
}

/* x + other, or x - other where the sign is -1. */
static void sec_add(const int8_t *x, const int8_t *other, int8_t *y, int count, const int32_t *by) {
    const int32_t zero = by[SEC_ADD_ZERO], multiplier = by[SEC_ADD_MULTIPLIER], shift = by[SEC_ADD_SHIFT];
    const int32_t zero_other = by[SEC_ADD_ZERO_OTHER], multiplier_other = by[SEC_ADD_MULTIPLIER_OTHER], shift_other = by[SEC_ADD_SHIFT_OTHER];
    const int32_t multiplier_out = by[SEC_ADD_MULTIPLIER_OUT], shift_out = by[SEC_ADD_SHIFT_OUT], sign = by[SEC_ADD_SIGN];
    for (; count > 0; count--) {
        const int32_t one = sec_halved(sec_high((*x++ - zero) * (1 << 21), multiplier), shift);
        const int32_t two = sec_halved(sec_high((*other++ - zero_other) * (1 << 21), multiplier_other), shift_other);
        const int32_t sum = one + sign * two;
        const int32_t found = shift_out > 0 ? sec_rescaled(sum, multiplier_out, shift_out)
                                            : sec_halved(sec_high(2 * sum, multiplier_out), -shift_out);
        *y++ = (int8_t)sec_clamped(found + by[SEC_ADD_ZERO_OUT], by[SEC_ADD_LOW], by[SEC_ADD_HIGH]);
    }
}
