/* Sums of `some` channels, four at most, over rows and columns of an array. */
static void sec_sums_over(const int8_t *x, int rows, int columns, int row, int step, int some, int32_t *sums) {
#ifdef SEC_DSP
    if (some == 4 && rows * columns < 256) {
        uint32_t even = 0, odd = 0;
        for (int down = 0; down < rows; down++, x += row) {
            const int8_t *place = x;
            for (int along = 0; along < columns; along++, place += step) {
                uint32_t four;
                memcpy(&four, place, 4);
                __asm__("sxtab16 %0, %0, %2\n\tsxtab16 %1, %1, %2, ror #8" : "+r"(even), "+r"(odd) : "r"(four));
            }
        }
        sums[0] = (int16_t)even;
        sums[1] = (int16_t)odd;
        sums[2] = (int32_t)even >> 16;
        sums[3] = (int32_t)odd >> 16;
        return;
    }
#endif
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
    for (int down = 0; down < rows; down++, x += row) {
        const int8_t *place = x;
        for (int along = 0; along < columns; along++, place += step) {
            for (int each = 0; each < some; each++) {
                sums[each] += place[each];
            }
        }
    }
}
