/* What all products share: words of two or four numbers, and how a sum of products becomes a number of the result. */

#if defined(__ARM_FEATURE_DSP) && defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE__) && !defined(SEC_PORTABLE)
#define SEC_DSP 1
#endif

/* Inner loops are functions of their own: within larger ones the compiler would keep their numbers in memory. */
#ifdef __GNUC__
#define SEC_ALONE __attribute__((noinline)) static
#else
#define SEC_ALONE static
#endif

/* Places in the array `shape` of a convolution; inputs and outputs are those of one group. */
enum {
    SEC_KERNEL_H, SEC_KERNEL_W, SEC_STRIDE_H, SEC_STRIDE_W, SEC_DILATION_H, SEC_DILATION_W, SEC_INPUTS, SEC_OUTPUTS, SEC_GROUPS,
    SEC_ZERO, SEC_ZERO_OUT, SEC_LOW, SEC_HIGH, SEC_EASY, SEC_CLAMPS, SEC_LINES, SEC_CHUNK,
    SEC_TURNED = SEC_LINES, SEC_BAND = SEC_CHUNK
};

/* Places in the array `rows`, three numbers an output. */
enum { SEC_START, SEC_MULTIPLIER, SEC_SHIFT, SEC_ROW };

/* The part of an array that is read, what is left of the padding, and how windows lie in it: numbers from row to row and from place to
   place, from a row of a window to the next in places and numbers, from the first to the last place of such a row, and whether that is one
   piece of memory. */
typedef struct {
    int in_h, in_w, in_row, in_step, top, left, down, line, reach, joined;
} sec_place;

#ifdef SEC_DSP
/* Four bytes from anywhere. */
static inline int32_t sec_word(const void *from) {
    int32_t word;
    memcpy(&word, from, 4);
    return word;
}

/* sum + the products of both halves. */
static inline int32_t sec_pair(int32_t a, int32_t b, int32_t sum) {
    __asm__("smlad %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b));
    return sum;
}

/* The first and third byte of four, widened. */
static inline int32_t sec_evens(int32_t word) {
    int32_t wide;
    __asm__("sxtb16 %0, %1" : "=r"(wide) : "r"(word));
    return wide;
}

/* The second and fourth byte of four, widened. */
static inline int32_t sec_odds(int32_t word) {
    int32_t wide;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(wide) : "r"(word));
    return wide;
}
#endif

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

/* Where twice the sum fits: `doubled` is that sum, `shift` is to the right and not 0. Halves go
   upwards, then away from zero, as gemmlowp's: the last bit shifted out is the carry. */
static inline int32_t sec_easy(int32_t doubled, int32_t multiplier, int32_t shift, int32_t zero) {
    int32_t high = sec_high(doubled, multiplier);
    high += high >> 31;
#ifdef SEC_DSP
    __asm__("asrs %0, %0, %1\n\tadc %0, %0, %2\n\tssat %0, #8, %0" : "+r"(high) : "r"(shift), "r"(zero) : "cc");
    return high;
#else
    high = (high >> shift) + ((high >> (shift - 1)) & 1) + zero;
    return high < -128 ? -128 : high > 127 ? 127 : high;
#endif
}

#ifdef SEC_DSP
/* The same as assembly: r0 start, r10 multiplier, r11 shift, r12 zero; the sum is doubled, or 256 times as large as it should be. */
#define SEC_DOUBLED(sum, how)                                                                                                              \
    "add " sum ", r0, " sum ", " how "\n\tsmmulr " sum ", " sum ", r10\n\tadd " sum ", " sum ", " sum ", asr #31\n\t"                      \
    "asrs " sum ", " sum ", r11\n\tadc " sum ", " sum ", r12\n\tssat " sum ", #8, " sum "\n\t"
#define SEC_EVEN(sum) SEC_DOUBLED(sum, "lsl #1")
#define SEC_ODD(sum) SEC_DOUBLED(sum, "asr #7")
#define SEC_NEXT_ROW "ldm r1!, {r0, r10, r11}\n\t"
#endif

/* The same for any shift and any bounds. */
static int32_t sec_scaled(int32_t sum, int32_t multiplier, int32_t shift, int32_t zero, int32_t low, int32_t high) {
    if (shift > 0) { /* what would leave 32 bits saturates before it is shifted */
        const int32_t most = INT32_MAX >> shift;
        sum = (sum > most ? most : sum < -most - 1 ? -most - 1 : sum) * (1 << shift);
    }
    int64_t scaled = ((int64_t)sum * multiplier + ((int64_t)1 << 30)) >> 31;
    if (shift < 0) {
        scaled = (scaled + ((int64_t)1 << (-shift - 1)) - (scaled < 0)) >> -shift;
    }
    scaled += zero;
    return scaled < low ? low : scaled > high ? high : (int32_t)scaled;
}

/* A number of the result out of the sum of the products, not yet clamped where that is easy. */
static inline int8_t sec_finish(int32_t sum, const int32_t *row, const int16_t *shape) {
    if (shape[SEC_EASY]) {
        return (int8_t)sec_easy(2 * sum + row[SEC_START], row[SEC_MULTIPLIER], row[SEC_SHIFT], shape[SEC_ZERO_OUT]);
    }
    return (int8_t)sec_scaled(sum + row[SEC_START], row[SEC_MULTIPLIER], row[SEC_SHIFT], shape[SEC_ZERO_OUT], shape[SEC_LOW],
                              shape[SEC_HIGH]);
}

/* Clamps numbers that are `step` apart, where that was left to do. */
static inline void sec_clamp(int8_t *y, int count, int step, const int16_t *shape) {
    if (shape[SEC_CLAMPS]) {
        const int low = shape[SEC_LOW], high = shape[SEC_HIGH];
        for (; count > 0; count--, y += step) {
            *y = (int8_t)(*y < low ? low : *y > high ? high : *y);
        }
    }
}
