/* Places in the array `by` of `sec_add`; shifts are to the right and 1 at least, `middle` is what rounds before them. */
enum {
    SEC_SUM_LEFT, SEC_SUM_OFFSET, SEC_SUM_LEFT_OTHER, SEC_SUM_OFFSET_OTHER, SEC_SUM_MULTIPLIER, SEC_SUM_SHIFT, SEC_SUM_MIDDLE, SEC_SUM_SIGN,
    SEC_SUM_MULTIPLIER_OUT, SEC_SUM_SHIFT_OUT, SEC_SUM_MIDDLE_OUT, SEC_SUM_LOW, SEC_SUM_HIGH
};

/* The sum of two terms of which the first is in steps that need no rounding. */
static void sec_add(const int8_t *x, const int8_t *other, int8_t *y, int count, const int32_t *by) {
    const int32_t left = by[SEC_SUM_LEFT], offset = by[SEC_SUM_OFFSET], left_other = by[SEC_SUM_LEFT_OTHER], offset_other = by[SEC_SUM_OFFSET_OTHER];
    const int32_t multiplier = by[SEC_SUM_MULTIPLIER], shift = by[SEC_SUM_SHIFT], middle = by[SEC_SUM_MIDDLE], sign = by[SEC_SUM_SIGN];
    const int32_t multiplier_out = by[SEC_SUM_MULTIPLIER_OUT], shift_out = by[SEC_SUM_SHIFT_OUT], middle_out = by[SEC_SUM_MIDDLE_OUT];
    const int32_t low = by[SEC_SUM_LOW], high = by[SEC_SUM_HIGH];
    for (int each = 0; each < count; each++) {
        int32_t term = sec_high(other[each] * left_other + offset_other, multiplier);
        term = (term + (term >> 31) + middle) >> shift;
        int32_t sum = sec_high(2 * (x[each] * left + offset + sign * term), multiplier_out);
        sum = (sum + (sum >> 31) + middle_out) >> shift_out;
        y[each] = (int8_t)sec_clamped(sum, -128, 127);
    }
    for (int each = 0; (low > -128 || high < 127) && each < count; each++) {
        y[each] = (int8_t)sec_clamped(y[each], low, high);
    }
}
