/* The sum of products of `taps` weights, a multiple of four, with numbers; of each four weights the middle two have changed places. */
static int32_t sec_dot(const int8_t *weights, const int16_t *x, int taps) {
    int32_t sum = 0;
#ifdef SEC_DSP
    for (; taps > 0; taps -= 4, weights += 4, x += 4) {
        uint32_t four, one, two, first, second;
        memcpy(&four, weights, 4);
        memcpy(&first, x, 4);
        memcpy(&second, x + 2, 4);
        __asm__("sxtb16 %[one], %[four]\n\tsxtb16 %[two], %[four], ror #8\n\t"
                "smlad %[sum], %[one], %[first], %[sum]\n\tsmlad %[sum], %[two], %[second], %[sum]"
                : [sum] "+r"(sum), [one] "=&r"(one), [two] "=&r"(two)
                : [four] "r"(four), [first] "r"(first), [second] "r"(second));
    }
#else
    for (; taps > 0; taps -= 4, weights += 4, x += 4) {
        sum += weights[0] * x[0] + weights[2] * x[1] + weights[1] * x[2] + weights[3] * x[3];
    }
#endif
    return sum;
}
