/* x + sign * other, clamped. */
static void sec_float_add(const float *x, const float *other, float *y, int count, float sign, float low, float high) {
    for (; count > 0; count--) {
        const float sum = *x++ + sign * *other++;
        *y++ = sum < low ? low : sum > high ? high : sum;
    }
}
