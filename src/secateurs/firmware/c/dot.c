/* Sums of products of two rows of `taps` weights, a multiple of four, with the same numbers; of each four weights the middle two have
   changed places. */
static void sec_dots(const int8_t *weights, const int8_t *further, const int16_t *x, int taps, int32_t *sums) {
    int32_t one = 0, two = 0;
    for (const int16_t *end = x + taps; x < end; weights += 4, further += 4, x += 4) {
#ifdef SEC_DSP
        const int32_t a = sec_word(weights), b = sec_word(further), first = sec_word(x), second = sec_word(x + 2);
        one = sec_pair(sec_odds(a), second, sec_pair(sec_evens(a), first, one));
        two = sec_pair(sec_odds(b), second, sec_pair(sec_evens(b), first, two));
#else
        one += weights[0] * x[0] + weights[2] * x[1] + weights[1] * x[2] + weights[3] * x[3];
        two += further[0] * x[0] + further[2] * x[1] + further[1] * x[2] + further[3] * x[3];
#endif
    }
    sums[0] = one;
    sums[1] = two;
}
