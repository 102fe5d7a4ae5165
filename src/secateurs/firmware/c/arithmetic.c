/* What all products share: words of two or four numbers, and how a sum of products becomes a number of the result. */

#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__) && !defined(SEC_PORTABLE)
#define SEC_DSP 1
#endif

/* Places in the array `shape` of a convolution; inputs and outputs are those of one group. */
enum {
    SEC_KERNEL_H, SEC_KERNEL_W, SEC_STRIDE_H, SEC_STRIDE_W, SEC_DILATION_H, SEC_DILATION_W, SEC_INPUTS, SEC_OUTPUTS, SEC_GROUPS,
    SEC_ZERO, SEC_ZERO_OUT, SEC_LOW, SEC_HIGH, SEC_EASY, SEC_CHUNK
};

/* Places in the array `rows`, three numbers an output. */
enum { SEC_START, SEC_MULTIPLIER, SEC_SHIFT, SEC_ROW };

/* The part of an array that is read and the part of another that is written; `in_step` and `out_step` lead from place to place. */
typedef struct {
    int in_h, in_w, in_row, in_step, out_h, out_w, out_row, out_step, top, left;
} sec_place;

/* (a * b + 2^31) / 2^32, rounded down. */
static inline int32_t sec_high(int32_t a, int32_t b) {
#ifdef SEC_DSP
    int32_t high;
    __asm__("smmulr %0, %1, %2" : "=r"(high) : "r"(a), "r"(b));
    return high;
#else
    return (int32_t)(((int64_t)a * b + ((int64_t)1 << 31)) >> 32);
#endif
}

/* Where twice the sum fits and nothing is clamped but by the width: `doubled` is that sum, `row` says shift - 1, `middle` is
   (2 * zero + 1) << (shift - 1). The rounding is halves away from zero after halves upwards, as gemmlowp's. */
static inline int32_t sec_easy(int32_t doubled, int32_t multiplier, int32_t shift, int32_t middle) {
    int32_t high = sec_high(doubled, multiplier);
    high = (high + (high >> 31) + middle) >> shift;
#ifdef SEC_DSP
    __asm__("ssat %0, #8, %0, asr #1" : "+r"(high));
    return high;
#else
    high >>= 1;
    return high < -128 ? -128 : high > 127 ? 127 : high;
#endif
}

/* The same for any shift and any bounds. */
static int32_t sec_scaled(int32_t sum, int32_t multiplier, int32_t shift, int32_t zero, int32_t low, int32_t high) {
    int64_t product = (int64_t)sum * ((int64_t)1 << (shift > 0 ? shift : 0)) * multiplier;
    int64_t scaled = (product + ((int64_t)1 << 30)) >> 31;
    if (shift < 0) {
        scaled = (scaled + ((int64_t)1 << (-shift - 1)) - (scaled < 0)) >> -shift;
    }
    scaled += zero;
    return scaled < low ? low : scaled > high ? high : (int32_t)scaled;
}

/* A number of the result out of the sum of the products. */
static inline int8_t sec_finish(int32_t sum, const int32_t *row, const int16_t *shape) {
    if (shape[SEC_EASY]) {
        int32_t middle = (int32_t)((uint32_t)(2 * shape[SEC_ZERO_OUT] + 1) << row[SEC_SHIFT]);
        return (int8_t)sec_easy(2 * sum + row[SEC_START], row[SEC_MULTIPLIER], row[SEC_SHIFT], middle);
    }
    return (int8_t)sec_scaled(sum + row[SEC_START], row[SEC_MULTIPLIER], row[SEC_SHIFT], shape[SEC_ZERO_OUT], shape[SEC_LOW],
                              shape[SEC_HIGH]);
}
