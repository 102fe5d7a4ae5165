/* A sum below 2^47 times a factor: a multiplier of 16 bits, and one rounding, halves upwards; as a number of 16 bits. */
static inline int16_t sec_wide_finish(int64_t sum, int32_t multiplier, int32_t shift, int32_t zero, int32_t low, int32_t high) {
    const int64_t found = ((sum * multiplier + ((int64_t)1 << (shift - 1))) >> shift) + zero;
    return (int16_t)(found < low ? low : found > high ? high : found);
}
