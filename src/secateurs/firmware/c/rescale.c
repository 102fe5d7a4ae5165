/* A whole number times a factor below 2^31: what would leave 32 bits saturates. */
static inline int32_t sec_rescaled(int32_t number, int32_t multiplier, int32_t shift) {
    return sec_scaled(number, multiplier, shift, 0, INT32_MIN, INT32_MAX);
}

static inline int32_t sec_clamped(int32_t number, int32_t low, int32_t high) {
    return number < low ? low : number > high ? high : number;
}

/* A number below 2^30 divided by 2^shift: to the nearest, halves away from zero. */
static inline int32_t sec_halved(int32_t number, int32_t shift) {
    return shift ? (number + (number >> 31) + ((1 << shift) >> 1)) >> shift : number;
}

/* A number, which `left` may shift and double without leaving 32 bits, times a multiplier, shifted to the right. */
static inline int32_t sec_small(int32_t number, int32_t multiplier, int32_t left, int32_t right) {
    return sec_halved(sec_high(number * left, multiplier), right);
}
