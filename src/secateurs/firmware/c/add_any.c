/* x + other, or x - other where the sign is -1, for any factors. */
static void sec_add_any(const int8_t *x, const int8_t *other, int8_t *y, int count, const int32_t *by) {
    for (; count > 0; count--) {
        const int32_t one = sec_halved(sec_high(*x++ * by[SEC_ADD_LEFT] + by[SEC_ADD_OFFSET], by[SEC_ADD_MULTIPLIER]), by[SEC_ADD_SHIFT]);
        const int32_t two = sec_halved(sec_high(*other++ * by[SEC_ADD_LEFT_OTHER] + by[SEC_ADD_OFFSET_OTHER], by[SEC_ADD_MULTIPLIER_OTHER]),
                                       by[SEC_ADD_SHIFT_OTHER]);
        const int32_t sum = sec_rescaled(one + by[SEC_ADD_SIGN] * two, by[SEC_ADD_MULTIPLIER_OUT], by[SEC_ADD_SHIFT_OUT]);
        *y++ = (int8_t)sec_clamped(sum + by[SEC_ADD_ZERO_OUT], by[SEC_ADD_LOW], by[SEC_ADD_HIGH]);
    }
}
