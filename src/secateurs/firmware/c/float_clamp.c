/* Each number, no smaller than `low` and no larger than `high`. */
static void sec_float_clamp(const float *x, float *y, int count, float low, float high) {
    for (; count > 0; count--, x++) {
        *y++ = *x < low ? low : *x > high ? high : *x;
    }
}
