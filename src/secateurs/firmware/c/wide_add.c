/* x + other, or x - other where the sign is -1; `by` as `sec_add` has it. */
static void sec_wide_add(const int16_t *x, const int16_t *other, int16_t *y, int count, const int32_t *by) {
    for (; count > 0; count--) {
        const int32_t one = sec_halved(sec_high(*x++ * by[SEC_ADD_LEFT], by[SEC_ADD_MULTIPLIER]), by[SEC_ADD_SHIFT]);
        const int32_t two = sec_halved(sec_high(*other++ * by[SEC_ADD_LEFT_OTHER], by[SEC_ADD_MULTIPLIER_OTHER]), by[SEC_ADD_SHIFT_OTHER]);
        const int32_t sum = sec_rescaled(one + by[SEC_ADD_SIGN] * two, by[SEC_ADD_MULTIPLIER_OUT], by[SEC_ADD_SHIFT_OUT]);
        *y++ = (int16_t)sec_clamped(sum, by[SEC_ADD_LOW], by[SEC_ADD_HIGH]);
    }
}
