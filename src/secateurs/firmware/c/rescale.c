/* A whole number times a factor below 2^31: what would leave 32 bits saturates. */
static inline int32_t sec_rescaled(int32_t number, int32_t multiplier, int32_t shift) {
    if (shift > 0) {
        const int32_t most = INT32_MAX >> shift;
        number = number > most ? most : number < -most - 1 ? -most - 1 : number;
    }
    return sec_scaled(number, multiplier, shift, 0, INT32_MIN, INT32_MAX);
}

static inline int32_t sec_clamped(int32_t number, int32_t low, int32_t high) {
    return number < low ? low : number > high ? high : number;
}
