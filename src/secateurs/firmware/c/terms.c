/* Places in the array `by` of a sum of two arrays; shifts of the terms are to the right. */
enum {
    SEC_ADD_ZERO, SEC_ADD_MULTIPLIER, SEC_ADD_SHIFT, SEC_ADD_ZERO_OTHER, SEC_ADD_MULTIPLIER_OTHER, SEC_ADD_SHIFT_OTHER,
    SEC_ADD_MULTIPLIER_OUT, SEC_ADD_SHIFT_OUT, SEC_ADD_ZERO_OUT, SEC_ADD_LOW, SEC_ADD_HIGH, SEC_ADD_SIGN
};

/* A number below 2^30 divided by 2^shift: to the nearest, halves away from zero. */
static inline int32_t sec_halved(int32_t number, int32_t shift) {
    return shift ? (number + (number >> 31) + ((1 << shift) >> 1)) >> shift : number;
}
